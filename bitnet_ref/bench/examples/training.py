"""Examples of the kernels of training: gradients, sums, the update, and trits made anew after it.

Layouts are those of training: keys and values (B, KV, T, Dh), and rows that lie apart as stacked products
leave them. Gradients that are added to start from something else than 0.
Read after: bench/examples/decoder. Read next: bench/card.
"""

from functools import partial
from typing import Any

import numpy as np

from bitnet_ref import layers, quant
from bitnet_ref.bench.examples import EXAMPLES, Launch, example
from bitnet_ref.bench.examples.products import codes, normal, trits
from bitnet_ref.layers.rope import rope_table

THREADS, WARPS, TILE = 256, 8, 64
GRADIENT = 1e-5              # of the largest: tests/conftest.py's float32_model, sums of sums


def _threads(n: int) -> tuple[int]:
    return (-(-n // THREADS),)


# ---- numbers one by one ----

@example
def fill(rng: Any, n: int = 300) -> Launch:
    """All the same."""
    after = np.full(n, 0.5, np.float32)
    return Launch(_threads(n), {"x": normal(rng, n), "n": n, "value": 0.5}, {"x": after})


@example
def scale(rng: Any, n: int = 300) -> Launch:
    """Times a factor."""
    x = normal(rng, n)
    return Launch(_threads(n), {"x": x, "n": n, "factor": 0.3}, {"x": x * np.float32(0.3)})


@example
def add(rng: Any, n: int = 300) -> Launch:
    """The sum of two."""
    x, y = normal(rng, n), normal(rng, n)
    return Launch(_threads(n), {"x": x, "y": y, "n": n}, {"x": x + y})


@example
def approach(rng: Any, n: int = 300) -> Launch:
    """A step towards another."""
    x, y = normal(rng, n), normal(rng, n)
    return Launch(_threads(n), {"x": x, "y": y, "n": n, "weight": 0.1}, {"x": x + np.float32(0.1) * (y - x)})


@example
def adamw(rng: Any, n: int = 300) -> Launch:
    """The seventh step."""
    p, g, m, v = (normal(rng, n) for _ in "pgmv")
    v = v * v
    beta1, beta2, lr, decay, eps, step = 0.9, 0.95, 1e-2, 0.1, 1e-8, 7
    given = {"p": p, "g": g, "m": m, "v": v, "n": n, "beta1": beta1, "beta2": beta2, "rest1": 1 - beta1,
             "rest2": 1 - beta2, "keep": 1 - lr * decay, "rate": lr / (1 - beta1**step),
             "correct2": 1 - beta2**step, "eps": eps}
    exact = [a.astype(np.float64) for a in (p, g, m, v)]
    m, v = exact[2] * beta1 + (1 - beta1) * exact[1], exact[3] * beta2 + (1 - beta2) * exact[1] ** 2
    p = exact[0] * (1 - lr * decay) - lr / (1 - beta1**step) * m / (np.sqrt(v / (1 - beta2**step)) + eps)
    return Launch(_threads(n), given, {name: a.astype(np.float32) for name, a in zip("pmv", (p, m, v))})


@example
def sum_parts(rng: Any, n: int = 3000, blocks: int = 3) -> Launch:
    """Sums of squares of integers, exact."""
    x = rng.integers(-99, 100, n).astype(np.float32)
    padded = np.pad(x.astype(np.float64) ** 2, (0, -n % (blocks * THREADS))).reshape(-1, blocks, THREADS)
    return Launch((blocks,), {"x": x, "n": n, "what": 2}, {"sums": padded.sum(axis=(0, 2))})


@example
def sum_sums(rng: Any, n: int = 700) -> Launch:
    """Into the first."""
    sums = rng.integers(-99, 100, n).astype(np.float64)
    return Launch((1,), {"sums": sums, "n": n}, {"sums": np.append(sums.sum(), sums[1:])})


# ---- weights to trits ----

@example
def absmean_scale(rng: Any, n: int = 1000) -> Launch:
    """A mean."""
    return Launch((1,), {"total": np.array([730.5]), "n": n}, {"w_scale": np.array([0.7305], np.float32)})


@example
def absmean_trits(rng: Any, N: int = 13, K: int = 50) -> Launch:
    """With the scale that they have."""
    w = normal(rng, N, K)
    w_q, w_scale = quant.absmean_ternary(w)
    given = {"w": w, "w_scale": np.array([w_scale], np.float32), "n": w.size}
    return Launch(_threads(w.size), given, {"w_q": w_q})


@example
def pack_trits(rng: Any, N: int = 37, K: int = 300) -> Launch:
    """A matrix alone in its stack."""
    from bitnet_ref.pack.tiles import pack_tiles
    w_q, w_scale = trits(rng, N, K), np.array([0.7], np.float32)
    words = pack_tiles(w_q)
    given = {"w_q": w_q, "w_scale": w_scale, "words": np.zeros_like(words), "N": N, "K": K, "row": 0,
             "tiles": words.shape[1]}
    return Launch((len(words),), given,
                  {"words": words, "scales": np.full(N, w_scale[0], np.float32)})


# ---- gradients of a row ----

@example
def rmsnorm_dx(rng: Any, M: int = 3, K: int = 300) -> Launch:
    """Onto what is there."""
    dy, x, dx = (normal(rng, M, K) for _ in range(3))
    g = rng.random(K, np.float32) + np.float32(0.5)
    _, rstd = layers.rmsnorm(x, g)
    new = layers.rmsnorm_backward(dy, x, g, rstd, np.zeros(K, np.float32))
    given = {"dy": dy, "x": x, "g": g, "gained": 1, "rstd": rstd[:, 0], "dx": dx, "onto": 1, "K": K}
    return Launch((M,), given, {"dx": dx + new}, within=GRADIENT)


@example
def rmsnorm_dg(rng: Any, M: int = 11, K: int = 70) -> Launch:
    """Added to a gradient."""
    dy, x, dg = normal(rng, M, K), normal(rng, M, K), normal(rng, K)
    rstd = rng.random(M, np.float32) + np.float32(0.5)
    exact = dg + (dy.astype(np.float64) * x * rstd[:, None]).sum(axis=0)
    return Launch((-(-K // 32),), {"dy": dy, "x": x, "rstd": rstd, "dg": dg, "M": M, "K": K},
                  {"dg": exact.astype(np.float32)})


@example
def gated_backward(rng: Any, M: int = 3, F: int = 100) -> Launch:
    """SwiGLU of rows that stand alone."""
    du, gate, up = (normal(rng, M, F) for _ in range(3))
    dgate, dup = layers.swiglu_backward(du, gate, up)
    given = {"du": du, "gate": gate, "up": up, "apart": F, "squared": 0, "F": F, "n": M * F}
    return Launch(_threads(M * F), given, {"dgate": dgate, "dup": dup})


@example
def cross_entropy(rng: Any, M: int = 5, V: int = 700) -> Launch:
    """Losses, and the gradient in place of the logits."""
    logits, targets = normal(rng, M, V), rng.integers(0, V, M, np.int32)
    exact = logits.astype(np.float64)
    lse = np.log(np.exp(exact).sum(axis=1))
    p = np.exp(exact - lse[:, None])
    p[np.arange(M), targets] -= 1
    return Launch((M,), {"logits": logits, "targets": targets, "scale": 0.25, "V": V},
                  {"losses": (lse - exact[np.arange(M), targets]).astype(np.float32),
                   "logits": (0.25 * p).astype(np.float32)})


@example
def embedding_dw(rng: Any, M: int = 9, V: int = 7, D: int = 200) -> Launch:
    """Rows of which some come several times."""
    dx, dw, ids = normal(rng, M, D), normal(rng, V, D), rng.integers(0, V, M, np.int32)
    order = np.argsort(ids, kind="stable").astype(np.int32)
    found, starts = np.unique(ids[order], return_index=True)
    starts = np.append(starts, M).astype(np.int32)
    given = {"dx": dx, "ids": found, "starts": starts, "order": order, "dw": dw.copy(), "D": D}
    layers.embedding_backward(dx, ids, dw)
    return Launch((len(found),), given, {"dw": dw})


# ---- products ----

def product(a_turned: bool, b_turned: bool, coded: bool, rng: Any, rows: int = 70, columns: int = 90,
            deep: int = 37) -> Launch:
    """C (rows, columns) = A (rows, deep) B (deep, columns) + D; either may lie turned, B may be codes."""
    a = normal(rng, rows, deep)
    b = codes(rng, deep, columns) if coded else normal(rng, deep, columns)
    factor, d = rng.random(deep, np.float32) + np.float32(0.5), normal(rng, rows, columns)
    exact = a.astype(np.float64) @ (b * factor[:, None].astype(np.float64) if coded else b) + d
    there = [np.ascontiguousarray(x.T if turned else x) for x, turned in ((a, a_turned), (b, b_turned))]
    lda, ldb = (x.shape[1] for x in there)
    given = {"a": there[0], "lda": lda, "b": there[1], "ldb": ldb, "scale": factor, "d": d, "added": 1,
             "ldc": columns, "I": rows, "J": columns, "R": deep}
    grid = (-(-columns // TILE), -(-rows // TILE))
    return Launch(grid, given, {"c": exact.astype(np.float32)}, within=GRADIENT)


EXAMPLES |= {"linear_y": partial(product, False, True, False),
             "linear_dx": partial(product, False, False, False),
             "linear_dw": partial(product, True, False, False),
             "codes_dx": partial(product, False, False, True),
             "codes_dw": partial(product, True, False, True)}


# ---- attention ----

def _attention(rng: Any, T: int, H: int, KV: int, Dh: int, B: int = 2) -> dict[str, Any]:
    """Inputs, results and gradients, in the layouts of training."""
    q, do = normal(rng, B, T, H, Dh), normal(rng, B, T, H, Dh)
    k, v = normal(rng, B, T, KV, Dh), normal(rng, B, T, KV, Dh)
    o, lse = layers.attention(q, k, v)
    dq, dk, dv = layers.attention_backward(do, q, k, v, o, lse)
    k, v, dk, dv = (np.ascontiguousarray(x.swapaxes(1, 2)) for x in (k, v, dk, dv))
    lse = lse.reshape(B, H, T).swapaxes(1, 2) if lse.shape[1] != T else lse
    delta = (do.astype(np.float64) * o).sum(axis=-1).astype(np.float32)
    return {"q": q, "k": k, "v": v, "o": o, "lse": np.ascontiguousarray(lse.reshape(B, T, H)), "do": do,
            "dq": dq, "dk": dk, "dv": dv, "delta": delta, "T": T, "H": H, "KV": KV, "Dh": Dh}


def attention_dq(width: int, rng: Any, T: int = 41, H: int = 4, KV: int = 2) -> Launch:
    """The gradient of the queries."""
    c = _attention(rng, T, H, KV, width - 12)
    return Launch((-(-T // WARPS), 2 * H), c, {"out": c.pop("dq")}, within=GRADIENT)


def attention_dkv(width: int, rng: Any, T: int = 41, H: int = 4, KV: int = 2) -> Launch:
    """The gradients of keys and values."""
    c = _attention(rng, T, H, KV, width - 12)
    return Launch((-(-T // WARPS), 2 * KV), c, {"dk": c.pop("dk"), "dv": c.pop("dv")}, within=GRADIENT)


@example
def attention_delta(rng: Any, n: int = 30, Dh: int = 52) -> Launch:
    """A sum for each row."""
    do, o = normal(rng, n, Dh), normal(rng, n, Dh)
    exact = (do.astype(np.float64) * o).sum(axis=1)
    given = {"do": do, "o": o, "Dh": Dh, "n": n}
    return Launch((-(-n // WARPS),), given, {"delta": exact.astype(np.float32)})


for each in (attention_dq, attention_dkv):
    EXAMPLES |= {f"{each.__name__}_{width}": partial(each, width) for width in (64, 128)}


def _turned(rng: Any, back: bool, T: int = 5, H: int = 4, KV: int = 2, Dh: int = 10, B: int = 2) -> Launch:
    half, n = Dh // 2, B * T * (H + 2 * KV) * (Dh // 2)
    cos, sin = (t[:, 0] for t in rope_table(np.arange(T), Dh, 1e4))
    rows = {name: normal(rng, B, T, heads, Dh) for name, heads in (("q", H), ("k", KV), ("v", KV))}
    turn = layers.rope_backward if back else layers.rope
    table = rope_table(np.arange(T), Dh, 1e4)
    after = {name: x if name == "v" else turn(x, *table) for name, x in rows.items()}
    given = {"q_apart": H * Dh, "k_apart": KV * Dh, "v_apart": KV * Dh, "cos": cos, "sin": sin, "T": T,
             "H": H, "KV": KV, "half": half, "n": n}
    inner, outer = (rows, after) if back else (after, rows)
    heads_first = {name: np.ascontiguousarray(x if name == "q" else x.swapaxes(1, 2))
                   for name, x in inner.items()}
    flat = {f"{name}_in": x for name, x in outer.items()}
    put, get = (heads_first, flat) if back else (flat, heads_first)
    return Launch(_threads(n), {**given, **put}, get)


@example
def rope_split(rng: Any) -> Launch:
    """Rows into heads, turned."""
    return _turned(rng, False)


@example
def rope_join(rng: Any) -> Launch:
    """Gradients back into rows."""
    return _turned(rng, True)
