"""The cases of whole models, ten steps of training, other projects' files, and a tiny trained model.

Float32 cases obey the code-flip rule (docs/numerics.md, NU.14): a seed is taken only if every value before
rounding is at least MARGIN from a tie, so that no rounding error can move a code; the margin is recorded.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import oracle
import torch
from oracle import Shape

MARGIN = 1e-3
BATCH, TOKENS = 2, 5


def shapes():
    """{case name: Shape}: 3 norms x 2 units x tied or not x 3 groupings, then what else a config can say."""
    found = {}
    for norm, glu, tied, kv in itertools.product(
        ("pre", "sub", "inner"), ("swiglu", "relu2"), (True, False), (4, 2, 1)
    ):
        name = f"{norm}_{glu}_{'tied' if tied else 'untied'}_gqa{4 // kv}"
        found[name] = Shape(norm=norm, glu=glu, tied=tied, kv_heads=kv)
    for glu in ("swiglu", "relu2"):
        found[f"inner_{glu}_gains"] = Shape(norm="inner", inner_gain=True, glu=glu)
        found[f"sub_{glu}_ternary_head"] = Shape(glu=glu, head="ternary", tied=False)
    found["pre_swiglu_full"] = Shape(norm="pre", linear="full")
    found["sub_relu2_full"] = Shape(glu="relu2", linear="full", tied=False, theta=500000.0)
    return found


def draw(shape, seed):
    """Parameters (float32), ids, targets. Matrices are moved off the threshold of their trits."""
    rng = np.random.default_rng(seed)
    params = {}
    for name, size in oracle.tensor_shapes(shape).items():
        if len(size) == 1:
            params[name] = np.exp(rng.normal(0, 0.3, size)).astype(np.float32)
        else:
            params[name] = off_the_threshold(rng.normal(0, 0.5, size).astype(np.float32))
    ids, targets = rng.integers(0, shape.vocab, (2, BATCH, TOKENS))
    return params, ids, targets


def off_the_threshold(w):
    """w with every |w| / mean|w| at least 2 MARGIN from 1/2."""
    for _ in range(100):
        near = np.abs(np.abs(w, dtype=np.float64) / np.abs(w).mean(dtype=np.float64) - 0.5) < 2 * MARGIN
        if not near.any():
            return w
        w = np.where(near, w * np.float32(1.05), w)
    raise AssertionError("weights stay near the threshold")


def clear_seed(shape):
    """The first seed whose margin is enough, and the margin."""
    for seed in range(100_000):
        params, ids, _ = draw(shape, seed)
        model = oracle.Model(shape, {n: torch.from_numpy(p).double() for n, p in params.items()})
        with torch.no_grad():
            model.logits(torch.from_numpy(ids))
        if model.margin >= MARGIN:
            return seed, model.margin
    raise AssertionError("no seed is clear of ties")


def run(shape, params, ids, targets, dtype):
    """{"out.logits", "out.loss", "out.hidden0".., "grad.<name>"} of the first oracle."""
    given = {n: torch.from_numpy(p).to(dtype).requires_grad_() for n, p in params.items()}
    model = oracle.Model(shape, given)
    logits = model.logits(torch.from_numpy(ids))
    loss, _ = oracle.cross_entropy(logits.reshape(-1, shape.vocab), torch.from_numpy(targets).reshape(-1))
    grads = torch.autograd.grad(loss, list(given.values()))
    found = {"out.logits": logits, "out.loss": loss}
    found |= {f"out.hidden{i}": h for i, h in enumerate(model.hidden)}
    found |= {f"grad.{n}": g for n, g in zip(given, grads)}
    return {n: t.detach().numpy() for n, t in found.items()}


# ---- ten steps of training -------------------------------------------------------------------------------

TRAIN = {
    "steps": 10,
    "warmup": 2,
    "lr": 0.02,
    "lr_stage2": 2 / 3,
    "lr_end": 1 / 50,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.95,
    "adam_eps": 1e-8,
    "max_norm": 1.0,
}
TRAIN_SHAPE, TRAIN_SEED = Shape(norm="sub", glu="relu2", tied=True, kv_heads=2), 11


def train10():
    """(tensors, record): ten steps of AdamW under the two-stage schedule, float64; gains do not decay."""
    t, rng = TRAIN, np.random.default_rng(TRAIN_SEED)
    params, _, _ = draw(TRAIN_SHAPE, TRAIN_SEED)
    now = {n: torch.from_numpy(p).double() for n, p in params.items()}
    m, v = ({n: torch.zeros_like(p) for n, p in now.items()} for _ in range(2))
    steps = []
    for step in range(t["steps"]):
        ids, targets = rng.integers(0, TRAIN_SHAPE.vocab, (2, BATCH, TOKENS))
        given = {n: p.clone().requires_grad_() for n, p in now.items()}
        logits = oracle.Model(TRAIN_SHAPE, given).logits(torch.from_numpy(ids))
        loss, _ = oracle.cross_entropy(
            logits.reshape(-1, TRAIN_SHAPE.vocab), torch.from_numpy(targets).reshape(-1)
        )
        grads = dict(zip(given, torch.autograd.grad(loss, list(given.values()))))
        norm = math.sqrt(sum(float((g * g).sum()) for g in grads.values()))
        factor = t["max_norm"] / norm if norm > t["max_norm"] else 1.0
        lr, wd = oracle.two_stage(
            step, t["steps"], t["warmup"], t["lr"], t["lr_stage2"], t["lr_end"], t["weight_decay"]
        )
        for n in now:
            now[n], m[n], v[n] = oracle.adamw(
                now[n],
                grads[n] * factor,
                m[n],
                v[n],
                step + 1,
                lr,
                wd if now[n].ndim == 2 else 0.0,
                t["beta1"],
                t["beta2"],
                t["adam_eps"],
            )
        steps.append(
            {
                "ids": ids.tolist(),
                "targets": targets.tolist(),
                "lr": lr,
                "weight_decay": wd,
                "loss": float(loss.detach()),
                "gradient_norm": norm,
            }
        )
    tensors = {f"initial.{n}": p for n, p in params.items()}
    for kind, table in (("final", now), ("first_moment", m), ("second_moment", v)):
        tensors |= {f"{kind}.{n}": p.numpy() for n, p in table.items()}
    return tensors, {"model": TRAIN_SHAPE._asdict(), "train": TRAIN, "steps": steps}


def named(prefix, tensors):
    """Those whose names begin so, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def figures(record):
    """{"loss": (steps,), ...}: what train10.json says of the steps."""
    return {n: np.array([step[n] for step in record["steps"]]) for n in record["steps"][0]}


# ---- other projects' files -------------------------------------------------------------------------------


def rosetta():
    """{name: array}: trits and the bytes that hold them, written element by element; a product."""
    rng, found = np.random.default_rng(12), {}
    for rows, columns in ((8, 128), (12, 64), (6, 10), (5, 3)):
        w_q = rng.choice(np.array([-1, 0, 1], np.int8), (rows, columns))
        at = f"{rows}x{columns}/"
        found[at + "w_q"] = w_q
        found[at + "hf"] = _hf(w_q)
        if rows * columns % 128 == 0 and rows % 4 == 0:
            scale = np.float32(rng.uniform(0.5, 3))
            found[at + "w_scale"] = np.array(scale)
            for layout in ("128", "64", "4row"):
                found[at + f"i2s_{layout}"] = np.append(_i2s(w_q, layout), _tail(scale))
    x = rng.normal(size=(3, 128)).astype(np.float32)
    found["products/x"] = x
    found["products/weight_scale_autobitlinear"] = found["8x128/w_scale"]
    found["products/weight_scale_bitlinear"] = np.array(1 / found["8x128/w_scale"], np.float32)
    x_q, s = oracle.activation_codes(torch.from_numpy(x).double())
    acc = x_q @ torch.from_numpy(found["8x128/w_q"]).double().T
    found["products/y"] = (acc / s * float(found["8x128/w_scale"])).numpy()
    return found


def _hf(w_q):
    """Row i * ceil(N/4) + r in bits 2i, 2i + 1 of byte row r."""
    blocks = -(-len(w_q) // 4)
    packed = np.zeros((blocks, w_q.shape[1]), np.uint8)
    for row in range(len(w_q)):
        for column in range(w_q.shape[1]):
            packed[row % blocks, column] |= np.uint8((int(w_q[row, column]) + 1) << 2 * (row // blocks))
    return packed


def _i2s(w_q, layout):
    """The first of the four trits of a byte has the high bits."""
    data = np.zeros(w_q.size // 4, np.uint8)
    for row in range(len(w_q)):
        for column in range(w_q.shape[1]):
            if layout == "4row":
                byte, place = row // 4 * w_q.shape[1] + column, row % 4
            else:
                size, n = int(layout), row * w_q.shape[1] + column
                byte, place = n // size * (size // 4) + n % (size // 4), n % size // (size // 4)
            data[byte] |= np.uint8((int(w_q[row, column]) + 1) << (6 - 2 * place))
    return data


def _tail(scale):
    return np.frombuffer(np.float32(scale).tobytes() + bytes(28), np.uint8)


BLOCKS = {"tq1_0": 256, "tq2_0": 256, "q2_0": 64, "pq2_0": 128, "ptq1_0": 128}
ODD = ("i2", "b3", "hf", "base3", "keras")  # take every shape


def layouts():
    """{name: array}: a matrix in all layouts, an odd one where it fits, blocks whose scales are not 1."""
    rng, found = np.random.default_rng(13), {}
    for at, rows, columns in (("layouts", 32, 256), ("odd", 7, 13), ("scaled", 3, 512)):
        w_q = rng.choice(np.array([-1, 0, 1], np.int8), (rows, columns))
        found[f"{at}/w_q"] = w_q
        for name in ODD if at == "odd" else (*ODD, "gpu", "torchao") if at == "layouts" else ():
            found[f"{at}/{name}"] = _trit_by_trit(w_q, name)
        for name, size in BLOCKS.items() if at != "odd" else ():
            d = np.ones((rows, columns // size), np.float32)
            if at == "scaled":
                d = rng.uniform(0.001, 3, d.shape).astype(np.float16).astype(np.float32)
                found[f"{at}/{name}_scale"] = d
            found[f"{at}/{name}"] = _in_blocks(w_q, d, name)
    return found


def _trit_by_trit(w_q, name):
    """Bytes as sums: every trit adds its code, or its digit, at its place."""
    (rows, columns), held = w_q.shape, {}
    for row in range(rows):
        for column in range(columns):
            byte, worth = _place(row, column, rows, columns, name)
            held.setdefault(byte, {})[worth] = _code(int(w_q[row, column]), name)
    empty = {"hf": 0}.get(name, 1)  # the code of a trit that the matrix does not have
    worths = (1, 3, 9, 27, 81) if name in ("b3", "base3", "keras") else (1, 4, 16, 64)
    data = [sum(w * held[byte].get(w, empty) for w in worths) for byte in range(max(held) + 1)]
    return np.array(data, np.uint8)


def _code(trit, name):
    return {"gpu": trit + 2, "torchao": trit % 4}.get(name, trit + 1)


def _place(row, column, rows, columns, name):
    """(number of the byte, what a code of 1 adds to it)."""
    n = row * columns + column
    if name == "i2":
        return row * math.ceil(columns / 4) + column // 4, 4 ** (column % 4)
    if name == "b3":
        return row * math.ceil(columns / 5) + column // 5, 3 ** (column % 5)
    if name == "base3":
        return n // 5, 3 ** (n % 5)
    if name == "keras":  # the kernel is stored transposed, and five neighbours share a byte along its inputs
        return column // 5 * rows + row, 3 ** (column % 5)
    if name == "hf":
        blocks = math.ceil(rows / 4)
        return row % blocks * columns + column, 4 ** (row // blocks)
    if name == "torchao":
        return n // 4, 4 ** (3 - n % 4)
    # the GPU kernel: a thread loads 16 neighbours of a row; 32 threads, in this order, hold a tile of 16 x 32
    tile = row // 16 * (columns // 32) + column // 32
    thread = row % 16 // 8 * 16 + column % 32 // 16 * 8 + row % 8
    return tile * 128 + thread * 4 + column % 4, 4 ** (column % 16 // 4)


def _in_blocks(w_q, d, name):
    """Blocks one after the other: GGUF's types, from ggml-common.h and ggml-quants.c."""
    data, size = b"", BLOCKS[name]
    for row in range(len(w_q)):
        for i in range(w_q.shape[1] // size):
            trits = [int(t) for t in w_q[row, i * size : (i + 1) * size]]
            scale = np.float16(d[row, i]).tobytes()
            if name in ("q2_0", "pq2_0"):
                data += scale + bytes(
                    sum((trits[4 * j + k] + 1) << 2 * k for k in range(4)) for j in range(size // 4)
                )
            elif name == "tq2_0":
                data += bytes(
                    sum((trits[128 * (j // 32) + 32 * k + j % 32] + 1) << 2 * k for k in range(4))
                    for j in range(64)
                )
                data += scale
            else:
                data += _base_3(trits, (32, 16, 4) if name == "tq1_0" else (16, 8, 2)) + scale
    return np.frombuffer(data, np.uint8)


def _base_3(trits, stages):
    """Five digits to a byte, four in the last stage, the first leading; as a fraction of 243, rounded up."""
    data, begin = b"", 0
    for stage, n in enumerate(stages):
        digits = 4 if stage == 2 else 5
        for m in range(n):
            number = sum((trits[begin + k * n + m] + 1) * 3 ** (4 - k) for k in range(digits))
            data += bytes([math.ceil(Fraction(256 * number, 243))])
        begin += digits * n
    return data


# ---- a tiny trained model --------------------------------------------------------------------------------

TINY = Shape(
    vocab=128,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    ffn=128,
    norm="sub",
    glu="relu2",
    tied=True,
    theta=500000.0,
)
PROMPT = "A trit "
TEXT = """\
A trit is a digit with three values: minus one, zero and plus one. A matrix of trits needs no multiplication:
add where it says plus, subtract where it says minus, and skip the rest. The scale is one number for the whole
matrix, the mean of what was there before rounding. Training keeps a shadow of every weight in full precision,
and rounds it anew at each step, so that many small pushes can turn a trit over.
"""


def train_tiny(steps=400, tokens=320, batch=4):
    """Parameters of a model that has learnt TEXT by heart; a token is a character."""
    torch.manual_seed(0)
    ids = torch.tensor([ord(c) for c in TEXT])
    params = {
        n: (torch.ones(s) if len(s) == 1 else 0.1 * torch.randn(s)).requires_grad_()
        for n, s in oracle.tensor_shapes(TINY).items()
    }
    opt = torch.optim.AdamW(
        [
            {"params": [p for p in params.values() if p.ndim == 2], "weight_decay": 0.1},
            {"params": [p for p in params.values() if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    for step in range(steps):
        lr, wd = oracle.two_stage(step, steps, 20, 1e-2, 2 / 3, 1 / 50, 0.1)
        for group in opt.param_groups:
            group["lr"], group["weight_decay"] = lr, wd if group["weight_decay"] else 0.0
        starts = torch.randint(0, len(ids) - tokens, (batch,))
        starts[0] = 0  # where the greedy text begins, too
        rows = torch.stack([ids[a : a + tokens + 1] for a in starts])
        logits = oracle.Model(TINY, params).logits(rows[:, :-1])
        loss, _ = oracle.cross_entropy(logits.reshape(-1, TINY.vocab), rows[:, 1:].reshape(-1))
        opt.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        opt.step()
    return params


def greedy(logits_of, tokens):
    """PROMPT and what follows, taking the likeliest character; the smallest lead of one over the next."""
    ids, lead = [ord(c) for c in PROMPT], math.inf
    for _ in range(tokens):
        with torch.no_grad():
            best, other = torch.topk(logits_of(torch.tensor([ids]))[0, -1], 2)
        lead = min(lead, float(best[0] - best[1]))
        ids.append(int(other[0]))
    return "".join(map(chr, ids)), lead
