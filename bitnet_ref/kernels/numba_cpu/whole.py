"""A token, or a prompt, through the whole model in one compiled call: the walk of phases that threads share.

A phase is a list of tasks (a row to be normalised, a block of outputs, the queries of a head); threads claim
them (atomics.py), so starting threads costs once per call. Everything that rounds is a function of one row or
one output, the same that the ops use: the result is that of the ops, bit for bit, for any number of rows and
threads and from any cached prefix.
Read after: kernels/numba_cpu/atomics. Read next: kernels/numba_cpu/decode_step.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import cfunc, types

from bitnet_ref.kernels.numba_cpu.atomics import fetch_add, wait
from bitnet_ref.kernels.numba_cpu.attention import TILE, few, padded, weigh
from bitnet_ref.kernels.numba_cpu.attention import WIDE as PANELS
from bitnet_ref.kernels.numba_cpu.bitlinear import (
    BLOCK,
    FEW,
    few_rows,
    many_rows,
    next_rows,
    norm_row,
    unpack_block,
)
from bitnet_ref.kernels.numba_cpu.bitlinear import ROWS as CODE_ROWS
from bitnet_ref.kernels.numba_cpu.cache import compiled, inlined
from bitnet_ref.kernels.numba_cpu.frame import (
    float32_1,
    float32_2,
    float32_3,
    int8_2,
    int32_1,
    int64_1,
    int64_2,
    int64_3,
    table_at,
    uint8_1,
    uint8_2,
)
from bitnet_ref.kernels.numba_cpu.glu import gated
from bitnet_ref.kernels.numba_cpu.program import (
    AT,
    BLOCKS,
    DOWN,
    FLOAT16,
    FLOAT32,
    FRESH,
    GAIN,
    GATE,
    HEAD_DIM,
    INT8,
    KIND,
    N_IN,
    N_LAYERS,
    N_OUT,
    NORMED,
    PACKED_B3,
    PACKED_I2,
    RELU2,
    O,
    Q,
    Tables,
)
from bitnet_ref.kernels.numba_cpu.rmsnorm import norm_floats
from bitnet_ref.kernels.numba_cpu.tiles import PANEL, STORED, TIER, emit_floats, emit_stored, kernel
from bitnet_ref.kernels.numba_cpu.vectors import softmax_row

SEVERAL = tuple(range(2, TILE + 1))          # rows of a tile
_rows, _rows_16, _rows_8, _rows_b = (kernel(emit_floats, rows=SEVERAL, panels=TIER.float_panels, kind=kind,
                                            ahead=1024) for kind in STORED)
WIDE = 2 * TIER.float_panels                 # panels of a single row: enough chains to hide the latency
_row, _row_16, _row_8, _row_b = (kernel(emit_floats, rows=1, panels=WIDE, kind=kind, ahead=1024)
                                 for kind in STORED)
_narrow, _narrow_16, _narrow_8, _narrow_b = (kernel(emit_floats, rows=1, panels=1, kind=kind)
                                             for kind in STORED)
_keep, _keep_16 = kernel(emit_stored, kind="float32"), kernel(emit_stored, kind="float16")
GRAIN = 8                                    # panels of a task of few rows
CHUNK, COLUMNS = 16 * PANEL, PANELS * PANEL  # keys of a task of scores, features of a task of values
PRODUCT, ENTER, AGAIN, LEAVE, ENTER_O, ENTER_U, TURN, ATTEND, SCORES, SOFTMAX, VALUES = range(11)    # phases


class Rows(NamedTuple):
    """The M rows of a call and their buffers; float32 unless said."""

    slot: np.ndarray             # int64 (M,): sequence of each row
    position: np.ndarray         # int64 (M,): its place there
    last: np.ndarray             # int64 (B,): the row whose logits are asked for, for each sequence
    x: np.ndarray                # (M, D): the stream
    q: np.ndarray                # (M, D)
    k: np.ndarray                # (M, KV Dh)
    v: np.ndarray                # (M, KV Dh)
    o: np.ndarray                # (M, D)
    a: np.ndarray                # (M, D): what is added to the stream next
    gate: np.ndarray             # (M, F)
    up: np.ndarray               # (M, F)
    u: np.ndarray                # (M, F): the gated unit's result
    codes: np.ndarray            # (M, widest input and some zeros), int8
    floats: np.ndarray           # (M, widest input): the same, where the product is in float32
    x_scale: np.ndarray          # (M,)
    x_sum: np.ndarray            # (M,), int32
    logits: np.ndarray           # (B, V)
    counters: np.ndarray         # (1 + phases,), int64: tasks done of all phases; tasks claimed of each


class Cache(NamedTuple):
    """Keys and values of all layers, as weigh() reads them, the table of angles, scores of one token.

    Keys lie as (L, B, KV, S/16, Dh, 16), values as (L, B, KV, S, Dh padded to 16); in float32 or float16.
    """

    keys: np.ndarray             # uint8: their bytes
    values: np.ndarray           # uint8
    dims: np.ndarray             # int64: B, KV, S, Dh, Dh padded, bytes of a number
    cos: np.ndarray              # (S, Dh/2)
    sin: np.ndarray              # (S, Dh/2)
    scores: np.ndarray           # (tiles, TILE, S + 16): and in the last column the sum of a row


@compiled
def scratch_bytes(widest, n_keys, n_d):
    """What a thread needs: unpacked codes and an edge, or scores, queries and results."""
    product = BLOCK * padded(widest + 64, 64) + 4 * TILE * WIDE * PANEL + 4 * CODE_ROWS * BLOCK
    attention = 4 * (TILE * (padded(n_keys, PANEL) + 2 * padded(n_d, PANEL)) + 8 * PANEL)
    return max(product, attention) + 64


@compiled
def enter(m, src, l, p, prog, rows):
    """Row m of the input `src` (M, K) of projection p: normalised, and quantised if the weights are trits."""
    f = prog.table[l, p]
    g, n = prog.gains[l, p, :f[GAIN]], f[N_IN]
    x = src[m]
    if f[KIND] <= PACKED_B3:
        rows.x_scale[m], rows.x_sum[m], _ = norm_row(x, g, prog.eps[0], f[NORMED] != 0, rows.codes[m, :n])
        rows.codes[m, n:f[BLOCKS] * (16 if f[KIND] == PACKED_I2 else 20)] = 0
        return
    if f[NORMED]:
        norm_floats(x, g, prog.eps[0], rows.floats[m, :n])
    else:
        rows.floats[m, :n] = x


@compiled
def product(task, l, p, prog, rows, scratch):
    """Task number `task` of the entered rows times the weights of projection p."""
    f, y = prog.table[l, p], rows.logits
    if l < len(prog.table) - 1:
        y = (rows.q, rows.k, rows.v, rows.a, rows.gate, rows.up, rows.a)[p]
    n_rows, panels = len(y), (f[N_OUT] + PANEL - 1) // PANEL
    if f[KIND] > PACKED_B3:
        float_product(task, f, prog.arena, rows.floats, y, scratch)
        return
    groups, blocks = 4 if f[KIND] == PACKED_I2 else 5, f[BLOCKS]
    packed = prog.arena[f[AT]:f[AT] + panels * blocks * 64].reshape(panels, blocks, 64)
    w_scale = prog.scales[l, p:p + 1]
    n_codes = BLOCK * 4 * groups * blocks
    words = scratch[n_codes:n_codes + 4 * max(CODE_ROWS * BLOCK, 4 * PANEL)].view(np.float32)
    if n_rows <= FEW:
        few_rows(packed, groups, GRAIN * task, min(GRAIN * task + GRAIN, panels), rows.codes, rows.x_scale,
                 w_scale, rows.x_sum, y, words[:4 * PANEL].reshape(4, PANEL))
    else:
        codes = scratch[:n_codes].reshape(BLOCK // PANEL, groups * blocks, PANEL, 4)
        unpack_block(packed, groups, BLOCK // PANEL * task, codes)
        many_rows(codes, BLOCK * task, 0, n_rows, rows.codes, rows.x_scale, w_scale, rows.x_sum, y,
                  words[:CODE_ROWS * BLOCK].reshape(CODE_ROWS, BLOCK))


@compiled
def float_product(task, f, arena, x, y, scratch):
    """The same for GRAIN panels of floats: up to TILE rows at a time, or one over more panels at once."""
    n_rows, n_out = y.shape
    n_in, kind = f[N_IN], f[KIND]
    size = 64 if kind == FLOAT32 else 16 if kind == INT8 else 32           # bytes of sixteen weights
    panels = (n_out + PANEL - 1) // PANEL
    edge = scratch[:4 * TILE * WIDE * PANEL].view(np.float32)
    m = 0
    while m < n_rows:
        count = next_rows(n_rows - m, TILE)
        p = GRAIN * task
        while p < min(GRAIN * task + GRAIN, panels):
            wide = WIDE // 2 if count > 1 else WIDE
            together = wide if p + wide <= min(GRAIN * task + GRAIN, n_out // PANEL) else 1
            w = arena.ctypes.data + f[AT] + p * n_in * size
            width = min(together * PANEL, n_out - PANEL * p)
            tile, aside = count > 1 and together == wide and width >= PANEL, width < PANEL
            for r in range(m, m + count):
                out, ldy = y.ctypes.data + 4 * (r * n_out + PANEL * p), 4 * n_out
                if aside:
                    out = edge.ctypes.data
                ldx = 4 * x.shape[1]
                args = (x.ctypes.data + r * ldx, ldx, 4, w, n_in * size, size, n_in, out, ldy)
                if tile:
                    many_floats(kind, (count, *args))
                    break
                one_float_row(kind, together, args)
                if aside:
                    y[r, PANEL * p:PANEL * p + width] = edge[:width]
            p += together
        m += count
    if kind == INT8:
        at = f[AT] + panels * n_in * size
        scales = arena[at:at + 4 * n_out].view(np.float32)
        for r in range(n_rows):
            for n in range(PANEL * GRAIN * task, min(PANEL * GRAIN * (task + 1), n_out)):
                y[r, n] *= scales[n]


@compiled
def many_floats(kind, args):
    """Several rows, whose count comes first, over half of WIDE panels."""
    if kind == FLOAT32:
        _rows(args)
    elif kind == FLOAT16:
        _rows_16(args)
    elif kind == INT8:
        _rows_8(args)
    else:
        _rows_b(args)


@compiled
def one_float_row(kind, panels, args):
    """A row over WIDE panels, or over one."""
    if panels == WIDE:
        if kind == FLOAT32:
            _row(args)
        elif kind == FLOAT16:
            _row_16(args)
        elif kind == INT8:
            _row_8(args)
        else:
            _row_b(args)
    elif kind == FLOAT32:
        _narrow(args)
    elif kind == FLOAT16:
        _narrow_16(args)
    elif kind == INT8:
        _narrow_8(args)
    else:
        _narrow_b(args)


@compiled
def turn_and_keep(m, l, rows, cache):
    """RoPE of the queries and keys of row m; its keys and values go to the cache."""
    n_half = cache.cos.shape[1]
    s, at = rows.slot[m], rows.position[m]
    for x in (rows.q[m], rows.k[m]):
        for h in range(x.size // (2 * n_half)):
            for i in range(n_half):
                cos, sin = cache.cos[at, i], cache.sin[at, i]
                a, b = x[2 * n_half * h + i], x[2 * n_half * h + n_half + i]
                x[2 * n_half * h + i] = a * cos - b * sin                       # (RO.2)
                x[2 * n_half * h + n_half + i] = b * cos + a * sin              # (RO.3)
    n_d, size = 2 * n_half, cache.dims[5]
    for g in range(rows.k.shape[1] // n_d):
        key = key_at(cache, l, s, g, at // PANEL) + at % PANEL * size
        value = value_at(cache, l, s, g) + at * cache.dims[4] * size
        sources = rows.k.ctypes.data + 4 * (m * rows.k.shape[1] + g * n_d), rows.v.ctypes.data + 4 * (
            m * rows.v.shape[1] + g * n_d)
        if size == 4:
            _keep((sources[0], key, PANEL * size, n_d))
            _keep((sources[1], value, size, n_d))
        else:
            _keep_16((sources[0], key, PANEL * size, n_d))
            _keep_16((sources[1], value, size, n_d))


@inlined
def key_at(cache, l, s, g, panel):
    """Address of a panel (Dh, 16) of keys of layer l, text s, head g."""
    B, KV, S, n_d, _, size = cache.dims
    return cache.keys.ctypes.data + ((((l * B + s) * KV + g) * (S // PANEL) + panel) * n_d * PANEL) * size


@inlined
def value_at(cache, l, s, g):
    """Address of the first row of values."""
    B, KV, S, _, wide, size = cache.dims
    return cache.values.ctypes.data + (((l * B + s) * KV + g) * S * wide) * size


@compiled
def attend(tile, l, rows, cache, scratch):
    """o of up to TILE queries. A tile is (row, rows from it on, head, heads from it on that share keys)."""
    m, n_rows, h, n_heads = tile
    n_d, n = 2 * cache.cos.shape[1], n_rows * n_heads
    g = h // (rows.q.shape[1] // rows.k.shape[1])
    s, wide, n_keys = rows.slot[m], cache.dims[4], padded(rows.position[m] + n_rows, PANEL)
    floats = scratch[:scratch.size // 4 * 4].view(np.float32)
    queries = floats[:TILE * wide].reshape(TILE, wide)
    results = floats[TILE * wide:2 * TILE * wide].reshape(TILE, wide)
    rest = floats[2 * TILE * wide:]
    lanes, totals, lse = rest[:PANEL], rest[PANEL:2 * PANEL], rest[2 * PANEL:3 * PANEL]
    scores = rest[4 * PANEL:4 * PANEL + TILE * n_keys].reshape(TILE, n_keys)
    scale = np.float32(n_d ** -0.5)
    for r in range(n):
        row, at = m + r % n_rows, n_d * (h + r // n_rows)
        for d in range(n_d):
            queries[r, d] = rows.q[row, at + d] * scale
    keys, values = key_at(cache, l, s, g, 0), value_at(cache, l, s, g)
    if cache.dims[5] == 4:
        weigh(None, n, rows.position[m] + 1, n_rows, queries.ctypes.data, 4 * wide, n_d, keys, values, wide,
              scores, lanes, totals, results, lse)
    else:
        weigh(True, n, rows.position[m] + 1, n_rows, queries.ctypes.data, 4 * wide, n_d, keys, values, wide,
              scores, lanes, totals, results, lse)
    for r in range(n):
        row, at = m + r % n_rows, n_d * (h + r // n_rows)
        rows.o[row, at:at + n_d] = results[r, :n_d]


@compiled
def score(task, l, tiles, rows, cache, scratch):
    """Scores of a tile of heads of one token with the keys of a chunk."""
    m, _, h, n_heads = tiles[task % len(tiles)]
    n_d, first = 2 * cache.cos.shape[1], task // len(tiles) * CHUNK // PANEL
    g, scores = h // (rows.q.shape[1] // rows.k.shape[1]), cache.scores[task % len(tiles)]
    panels = min(CHUNK // PANEL, padded(rows.position[m] + 1, PANEL) // PANEL - first)
    queries = scratch[:4 * TILE * n_d].view(np.float32).reshape(TILE, n_d)
    scale = np.float32(n_d ** -0.5)
    for r in range(n_heads):
        for d in range(n_d):
            queries[r, d] = rows.q[m, n_d * (h + r) + d] * scale
    keys, out = key_at(cache, l, rows.slot[m], g, first), scores.ctypes.data + 4 * PANEL * first
    if cache.dims[5] == 4:
        few(None, n_heads, panels, queries.ctypes.data, 4 * n_d, 4, keys, 4 * n_d * PANEL, 4 * PANEL, n_d,
            out, 4 * scores.shape[1])
    else:
        few(True, n_heads, panels, queries.ctypes.data, 4 * n_d, 4, keys, 2 * n_d * PANEL, 2 * PANEL, n_d,
            out, 4 * scores.shape[1])


@compiled
def weigh_values(task, l, tiles, rows, cache, scratch):
    """o of a tile of heads of one token, WIDE panels of its features."""
    m, _, h, n_heads = tiles[task % len(tiles)]
    n_d, wide, first = 2 * cache.cos.shape[1], cache.dims[4], task // len(tiles) * COLUMNS
    g, scores = h // (rows.q.shape[1] // rows.k.shape[1]), cache.scores[task % len(tiles)]
    columns = min(COLUMNS, wide - first)
    results = scratch[:4 * TILE * COLUMNS].view(np.float32).reshape(TILE, COLUMNS)
    size, n_keys = cache.dims[5], rows.position[m] + 1
    values = value_at(cache, l, rows.slot[m], g) + size * first
    if size == 4:
        few(None, n_heads, columns // PANEL, scores.ctypes.data, 4 * scores.shape[1], 4, values, 4 * PANEL,
            4 * wide, n_keys, results.ctypes.data, 4 * COLUMNS)
    else:
        few(True, n_heads, columns // PANEL, scores.ctypes.data, 4 * scores.shape[1], 4, values, 2 * PANEL,
            2 * wide, n_keys, results.ctypes.data, 4 * COLUMNS)
    for r in range(n_heads):
        inverse = np.float32(1) / scores[r, -1]
        for d in range(min(columns, n_d - first)):
            rows.o[m, n_d * (h + r) + first + d] = results[r, d] * inverse


@inlined
def do(kind, task, l, p, prog, rows, cache, tiles, scratch):
    """One task of a phase."""
    if kind == PRODUCT:
        product(task, l, p, prog, rows, scratch)
    elif kind == ENTER:                                    # of the stream, with what was last added to it
        if (p == Q and l > 0) or p == GATE:
            x, a = rows.x[task], rows.a[task]
            for i in range(x.size):
                x[i] += a[i]
        enter(task, rows.x, l, p, prog, rows)
    elif kind == AGAIN:                                    # another gain on the same stream
        enter(task, rows.x, l, p, prog, rows)
    elif kind == LEAVE:                                    # the rows whose logits are asked for, to the front
        m = rows.last[task]
        x, a, front = rows.x[m], rows.a[m], rows.o[task]
        for i in range(x.size):
            front[i] = x[i] + a[i]
        enter(task, rows.o, l, p, prog, rows)
    elif kind == ENTER_O:
        enter(task, rows.o, l, p, prog, rows)
    elif kind == ENTER_U:
        gated(rows.gate[task], rows.up[task], prog.dims[RELU2] != 0, rows.u[task])
        enter(task, rows.u, l, p, prog, rows)
    elif kind == TURN:
        turn_and_keep(task, l, rows, cache)
    elif kind == ATTEND:
        attend(tiles[task], l, rows, cache, scratch)
    elif kind == SCORES:
        score(task, l, tiles, rows, cache, scratch)
    elif kind == SOFTMAX:
        tile = tiles[task % len(tiles)]
        if task // len(tiles) < tile[3]:
            row = cache.scores[task % len(tiles), task // len(tiles)]
            row[-1], _ = softmax_row(row, rows.position[tile[0]] + 1, scratch[:4 * PANEL].view(np.float32))
    else:
        weigh_values(task, l, tiles, rows, cache, scratch)


def schedule(prog: Tables, n_rows: int, n_last: int, n_tiles: int, chunks: int) -> np.ndarray:
    """int64 (phases, 5): kind, tasks, layer, projection, and how many tasks must be done before it begins.

    Attention has a task for each tile of queries. One token has few tiles: with `chunks` of keys, and columns
    of features, the threads' shares are equal; 0 where there is one thread.
    """
    columns = -(-int(prog.dims[HEAD_DIM]) // COLUMNS)
    parts = ((SCORES, chunks), (SOFTMAX, TILE), (VALUES, columns))
    L, phases, done, ready = int(prog.dims[N_LAYERS]), [], 0, 0

    def add(kind: int, n_tasks: int, l: int, p: int) -> None:
        nonlocal done
        phases.append((kind, n_tasks, l, p, ready))
        done += n_tasks

    for l in range(L):
        for p in range(7):
            if prog.table[l, p, FRESH]:
                ready = done                               # its input comes of all that was done before
                if p == O:
                    add(TURN, n_rows, l, p)
                    ready = done
                    for kind, n_parts in parts if chunks else ((ATTEND, 1),):
                        add(kind, n_parts * n_tiles, l, p)
                        ready = done
                add({Q: ENTER, GATE: ENTER, O: ENTER_O, DOWN: ENTER_U}.get(p, AGAIN), n_rows, l, p)
                ready = done
            add(PRODUCT, tasks_of(prog.table[l, p], n_rows), l, p)
    ready = done
    add(LEAVE, n_last, L, 0)
    ready = done
    add(PRODUCT, tasks_of(prog.table[L, 0], n_last), L, 0)
    ready = done
    add(PRODUCT, 0, L, 0)                                  # nothing: all wait for the last
    return np.array(phases, np.int64)


def tasks_of(f: np.ndarray, n_rows: int) -> int:
    """Into how many tasks the product of a projection is cut."""
    outputs = BLOCK if f[KIND] <= PACKED_B3 and n_rows > FEW else GRAIN * PANEL
    return -(-int(f[N_OUT]) // outputs)


def arrays_of(prog: Tables, rows: Rows, cache: Cache, tiles: np.ndarray, plan: np.ndarray,
              scratch: np.ndarray) -> list[np.ndarray]:
    """What walk finds in its frame, in its order."""
    return [*prog, *rows, *cache, tiles, plan, scratch]


@lru_cache
def compiled_walk():
    """walk as a C function, compiled (or fetched) when it is first needed."""
    return cfunc(types.void(*(types.int64,) * 3), cache=True, error_model="numpy")(walk)


def walk(address, n_arrays, thread):
    """All phases, as every thread takes part in them. A phase waits only for the tasks that it reads from."""
    f = table_at(address, n_arrays)
    prog = Tables(uint8_1(f, 0), int64_3(f, 1), float32_2(f, 2), float32_3(f, 3), int64_1(f, 4),
                  float32_1(f, 5))
    rows = Rows(int64_1(f, 6), int64_1(f, 7), int64_1(f, 8), float32_2(f, 9), float32_2(f, 10),
                float32_2(f, 11), float32_2(f, 12), float32_2(f, 13), float32_2(f, 14), float32_2(f, 15),
                float32_2(f, 16), float32_2(f, 17), int8_2(f, 18), float32_2(f, 19), float32_1(f, 20),
                int32_1(f, 21), float32_2(f, 22), int64_1(f, 23))
    cache = Cache(uint8_1(f, 24), uint8_1(f, 25), int64_1(f, 26), float32_2(f, 27), float32_2(f, 28),
                  float32_3(f, 29))
    tiles, phases, scratch = int64_2(f, 30), int64_2(f, 31), uint8_2(f, 32)[thread]
    for i in range(len(phases)):
        kind, n_tasks, l, p, ready = phases[i]
        wait(rows.counters, 0, ready)
        while True:
            task = fetch_add(rows.counters, i + 1, 1)
            if task >= n_tasks:
                break
            do(kind, task, l, p, prog, rows, cache, tiles, scratch)
            fetch_add(rows.counters, 0, 1)
