"""Examples of the kernels around the products: norms, tables, RoPE, attention, gated units, the head.

Sizes are such that no tile is full and more than one is begun. Caches are of two texts of different lengths.
Read after: bench/examples/products. Read next: bench/examples/training.
"""

from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from bitnet_ref import layers
from bitnet_ref.bench.examples import EXAMPLES, FLOAT, Launch, example
from bitnet_ref.bench.examples.products import normal
from bitnet_ref.layers.rope import rope_table

KEPT = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "i8": np.int8}
HALF = 2.0**-11              # of the largest: a float16 that is rounded the other way
CHUNK, TILE = 64, 32         # keys whose scores stand together; queries of a tile
SLOT, POSITION = np.array([0, 0, 1], np.int32), np.array([4, 5, 11], np.int32)    # of three rows


def stored(x: np.ndarray, kept: str) -> tuple[np.ndarray, np.ndarray]:
    """(x as a table keeps it, bits where NumPy's type is foreign; the same in float64)."""
    there = x.astype(KEPT[kept])
    return there.view(np.uint16) if kept == "bf16" else there, there.astype(np.float64)


# ---- norms and gated units ----

@example
def rmsnorm(rng: Any, M: int = 3, K: int = 600) -> Launch:
    """Floats in, floats out, a gain."""
    x, g = normal(rng, M, K), rng.random(K, np.float32) + np.float32(0.5)
    y, rstd = layers.rmsnorm(x, g)
    return Launch((M,), {"x": x, "g": g, "mode": 1, "eps": 1e-5, "K": K, "apart": K},
                  {"y": y, "rstd_out": rstd[:, 0]})


def gated(name: str, rng: Any, M: int = 3, F: int = 300) -> Launch:
    """gate and up of their own."""
    gate, up = normal(rng, M, F), normal(rng, M, F)
    return Launch((M,), {"gate": gate, "up": up, "stride": F, "F": F}, {"u": getattr(layers, name)(gate, up)})


def gated_int8(name: str, rng: Any, M: int = 3, F: int = 300) -> Launch:
    """The same, normalised without a gain, and quantised."""
    gate, up = normal(rng, M, F), normal(rng, M, F)
    x_q, x_scale, rstd = layers.rmsnorm_int8(getattr(layers, name)(gate, up), None)
    return Launch((M,), {"a": gate, "b": up, "stride": F, "g": np.ones(F, np.float32), "mode": 0, "eps": 1e-5,
                         "K": F, "apart": F},
                  {"x_q": x_q, "x_scale": x_scale[:, 0], "x_sum": x_q.sum(axis=1, dtype=np.int32),
                   "rstd_out": rstd[:, 0]}, near=("x_q", "x_sum"))


EXAMPLES |= {name: partial(gated, name) for name in ("swiglu", "relu2")}
EXAMPLES |= {f"{name}_int8": partial(gated_int8, name) for name in ("swiglu", "relu2")}


# ---- tables ----

def embedding(kept: str, rng: Any, M: int = 5, V: int = 11, D: int = 300) -> Launch:
    """Rows of a table, one of them twice."""
    table, wide = stored(normal(rng, V, D), kept)
    ids = rng.integers(0, V, M, np.int32)
    ids[-1] = ids[0]
    return Launch((M,), {"ids": ids, "table": table, "D": D, "apart": D}, {"y": wide[ids].astype(np.float32)})


def linear(kept: str, several: bool, rng: Any, M: int = 6, N: int = 37, K: int = 304) -> Launch:
    """Floats times a table, scaled and added to; a row alone, or four to a warp."""
    M = M if several else 1
    x, values = normal(rng, M, K), normal(rng, N, K)
    w, wide = stored(40 * values if kept == "i8" else values, kept)
    scales, add = rng.random(N, np.float32) + np.float32(0.5), normal(rng, M, N)
    y = x.astype(np.float64) @ wide.T * scales + add
    given = {"x": x, "w": w, "scales": scales, "scaled": 1, "add": add, "added": 1, "M": M, "N": N, "K": K}
    return Launch((-(-N // 8), -(-M // 4)), given, {"y": y.astype(np.float32)})


EXAMPLES |= {f"embedding_{kept}": partial(embedding, kept) for kept in ("f32", "f16", "bf16")}
EXAMPLES |= {f"linear_{kept}{'_several' if several else ''}": partial(linear, kept, several)
             for kept in KEPT for several in (False, True)}


@example
def argmax(rng: Any, M: int = 3, V: int = 1500, room: int = 8) -> Launch:
    """The first of the largest."""
    logits, position = normal(rng, M, V), np.arange(M, dtype=np.int32)
    logits[0, [20, 700, V - 1]] = 9
    ids, found = logits.argmax(axis=1).astype(np.int32), np.zeros((M, room), np.int32)
    after = found.copy()
    after[np.arange(M), position + 1] = ids
    return Launch((M,), {"logits": logits, "position": position, "found": found, "V": V, "room": room},
                  {"ids": ids, "position": position + 1, "found": after})


# ---- the cache ----

def rope(kept: str, rng: Any, H: int = 6, KV: int = 3, Dh: int = 10, room: int = 12) -> Launch:
    """Queries turned; keys and values of three rows at their places, all others as they were."""
    M = len(SLOT)
    q, k, v = normal(rng, M, H, Dh), normal(rng, M, KV, Dh), normal(rng, M, KV, Dh)
    cos, sin = rope_table(POSITION, Dh, 1e4)
    turned = layers.rope(np.concatenate([q, k], axis=1)[:, None], cos[:, None], sin[:, None])[:, 0]
    keys, values = (np.zeros((2, KV, room, Dh), KEPT[kept]) for _ in "kv")
    given: dict[str, Any] = {"keys": keys.copy(), "values": values.copy()}
    for m, (s, at) in enumerate(zip(SLOT, POSITION)):
        keys[s, :, at], values[s, :, at] = turned[m, H:], v[m]
    table = (t[:, 0] for t in rope_table(np.arange(room), Dh, 1e4))
    given |= {"q": q, "k": k, "v": v, "q_row": H * Dh, "k_row": KV * Dh, "v_row": KV * Dh, "slot": SLOT,
              "position": POSITION, "H": H, "KV": KV, "Dh": Dh, "room": room}
    given["cos"], given["sin"] = table
    expected = {"turned": np.ascontiguousarray(turned[:, :H]), "keys": keys, "values": values}
    return Launch((M,), given, expected, within=HALF if kept == "f16" else FLOAT)


@example
def moved(rng: Any, heads: int = 6, held: int = 30, room: int = 44) -> Launch:
    """A cache into a larger one."""
    before, now = rng.integers(0, 1 << 16, (heads, held), np.uint16), np.zeros((heads, room), np.uint16)
    after = now.copy()
    after[:, :held] = before
    return Launch((heads,), {"before": before, "now": now, "held": held, "room": room}, {"now": after})


def _cached(rng: Any, kept: str, M: int, H: int, KV: int, Dh: int, room: int) -> dict[str, Any]:
    keys, values = (normal(rng, 2, KV, room, Dh).astype(KEPT[kept]) for _ in "kv")
    return {"q": normal(rng, M, H, Dh), "keys": keys, "values": values, "KV": KV, "R": H // KV, "Dh": Dh,
            "room": room, "scale": Dh ** -0.5}


def _attended(c: dict[str, Any], slot: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """o (M, H Dh), lse (M, H) by the reference, a row at a time."""
    o, lse = np.empty_like(c["q"]), np.empty(c["q"].shape[:2], np.float32)
    for m, (s, at) in enumerate(zip(slot, position)):
        k, v = (np.ascontiguousarray(c[n][s, :, :at + 1].swapaxes(0, 1))[None].astype(np.float32)
                for n in ("keys", "values"))
        one, total = layers.attention(c["q"][m][None, None], k, v)
        o[m], lse[m] = one[0, 0], total.reshape(-1)
    return o.reshape(len(o), -1), lse


def _chunks(c: dict[str, Any], slot: np.ndarray, position: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """What each chunk of keys says, of each row and head; 0 behind the text."""
    M, H, Dh = c["q"].shape
    part, top, total = np.zeros((M, n, H, Dh)), np.zeros((M, n, H)), np.zeros((M, n, H))
    for m, (s, at) in enumerate(zip(slot, position)):
        for i in range(at // CHUNK + 1):
            seen = slice(i * CHUNK, min((i + 1) * CHUNK, at + 1))
            k, v = (np.repeat(c[name][s, :, seen].astype(np.float64), c["R"], axis=0)
                    for name in ("keys", "values"))
            scores = np.einsum("hd,hjd->hj", c["q"][m].astype(np.float64), k) * c["scale"]
            top[m, i] = scores.max(axis=1)
            p = np.exp(scores - top[m, i][:, None])
            total[m, i], part[m, i] = p.sum(axis=1), np.einsum("hj,hjd->hd", p, v)
    return {"part": part.astype(np.float32), "part_top": top.astype(np.float32),
            "part_total": total.astype(np.float32)}


def attend_few(kept: str, rng: Any, H: int = 6, KV: int = 2, Dh: int = 36, room: int = 150) -> Launch:
    """Rows of two texts, each over its chunks of keys."""
    position = np.array([0, 63, 64, 140], np.int32)
    slot, n = np.array([0, 1, 1, 0], np.int32), -(-room // CHUNK)
    c = _cached(rng, kept, len(slot), H, KV, Dh, room)
    found = _chunks(c, slot, position, n)
    return Launch((n, KV, len(slot)), {**c, "slot": slot, "position": position,
                                       **{name: np.zeros_like(a) for name, a in found.items()}}, found)


@example
def combine(rng: Any, H: int = 6, KV: int = 2, Dh: int = 36, room: int = 150) -> Launch:
    """Chunks into rows."""
    slot, position, n = np.array([0, 1], np.int32), np.array([5, 140], np.int32), -(-room // CHUNK)
    c = _cached(rng, "f32", len(slot), H, KV, Dh, room)
    o, lse = _attended(c, slot, position)
    return Launch((H, len(slot)), {**_chunks(c, slot, position, n), "position": position, "H": H, "Dh": Dh,
                                   "chunks": n}, {"o": o, "lse": lse})


def attend_many(kept: str, rng: Any, H: int = 6, KV: int = 2, Dh: int = 36, room: int = 100) -> Launch:
    """A full tile of queries across the border of two chunks, one of a single row, one of another text."""
    tiles = np.array([[0, TILE], [TILE, 1], [TILE + 1, 3]], np.int32)
    slot = np.array([0] * (TILE + 1) + [1] * 3, np.int32)
    position = np.array([*range(44, 44 + TILE + 1), 0, 1, 2], np.int32)
    c = _cached(rng, kept, len(slot), H, KV, Dh, room)
    o, lse = _attended(c, slot, position)
    return Launch((len(tiles), KV, H // KV), {**c, "slot": slot, "position": position, "tiles": tiles},
                  {"o": o, "lse": lse})


for each in (rope, attend_few, attend_many):
    EXAMPLES |= {f"{each.__name__}_{kept}": partial(each, kept) for kept in ("f32", "f16")}
