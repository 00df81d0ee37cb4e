"""forward, prefill, extend and decode_step on the device, where weights, cache and buffers stay.

A call writes its tokens and their positions to the device, starts its kernels and reads the logits. The
kernels find everything else in memory, so those of one kind of call are recorded as a graph when it comes
the second time (the first compiles them), and a token is one start of it; a larger cache is recorded anew.
Every sum has an order of its row alone: a text is the same, bit for bit, alone, in a batch and from a cache.
Read after: kernels/numba_cuda/program. Read next: kernels/numba_cuda/threads.
"""

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cuda.attention import Parts, Queries, attention, parts, tiled
from bitnet_ref.kernels.numba_cuda.bitlinear import Packed, padded, product
from bitnet_ref.kernels.numba_cuda.embedding import EMBEDDING
from bitnet_ref.kernels.numba_cuda.glu import GLU, GLU_INT8
from bitnet_ref.kernels.numba_cuda.linear import SIDE, linear
from bitnet_ref.kernels.numba_cuda.memory import Array, Device, Graph, device
from bitnet_ref.kernels.numba_cuda.program import Program, Step, build, cache_size, check_memory
from bitnet_ref.kernels.numba_cuda.rmsnorm import rmsnorm, rmsnorm_int8
from bitnet_ref.kernels.numba_cuda.rope import ROPE, moved
from bitnet_ref.kernels.numba_cuda.sampling import argmax
from bitnet_ref.kernels.numba_cuda.threads import exclusive
from bitnet_ref.kernels.state import Counts, State, appended, beginning, chosen, delivered
from bitnet_ref.layers.rope import rope_table

FIRST_ROOM = 256             # positions of a new cache; it doubles when it is full, up to the context
MOST_CALLS = 16              # kinds of call whose buffers and graphs are kept: a draft may have any length
FEW = 8                      # new tokens of a text up to which attention is split over the keys
AT_ONCE = 4096               # rows of `forward` that are computed together


class Rows(NamedTuple):
    """What a call of M rows computes in; float32 unless said. Two that are never needed at once are one."""

    ids: Array                   # (M,), int32
    position: Array              # (M,), int32, directly behind
    last: Array                  # int32; the rows whose logits are asked for
    x: Array                     # (M, D): the stream
    wide: Array                  # (M, D + 2 KV Dh or 2 F): q, k, v; gate, up
    turned: Array                # (M, H, Dh): queries behind RoPE
    o: Array                     # (M, D)
    lse: Array                   # (M, H)
    floats: Array                # (M, widest input, padded): an input of a float product
    u: Array                     # (M, F): the gated unit's result before one
    codes: Array                 # (M, widest input, padded), int8
    x_scale: Array               # (M,)
    x_sum: Array                 # (M,), int32
    rstd: Array                  # (M,)
    end: Array                   # the last rows of the stream
    logits: Array                # (last, V)


class Call:
    """Buffers of calls of one kind. `offset` (M,): how far a row's position lies from its text's last."""

    def __init__(self, rows: Rows, queries: Queries, offset: np.ndarray, slot: np.ndarray) -> None:
        self.rows, self.queries, self.offset, self.slot = rows, queries, offset, slot
        self.between: Parts | None = None
        self.room = 0                                      # of the cache that `between` is for
        self.began = False                                 # its kernels are compiled and loaded


class Texts:
    """The cache of B texts, and which tokens stand in it: keys and values (L, B, KV, room, Dh)."""

    def __init__(self, program: Program, cfg: Any, n_texts: int, room: int, half: bool) -> None:
        self.program, self.cfg, self.n_texts, self.kept = program, cfg, n_texts, "f16" if half else "f32"
        self.serials: list[list[int]] = [[] for _ in range(n_texts)]    # of the call that wrote each position
        self.calls, self.room = 0, 0
        self.keys: Array
        self.values: Array
        self.graphs: WeakKeyDictionary[Call, Graph] = WeakKeyDictionary()
        self._make(min(room, cfg.context))

    def _make(self, room: int) -> None:
        cfg, device, half = self.cfg, self.program.device, self.kept == "f16"
        check_memory(device, 0, cache_size(cfg, self.n_texts, room, half), f"{self.n_texts} texts of {room} "
                     "positions")
        shape = (cfg.n_layers, self.n_texts, cfg.n_kv_heads, room, cfg.head_dim)
        made = [device.zeros(shape, np.uint16 if half else np.float32) for _ in range(2)]   # all is moved
        if self.room:                                      # each head's positions lie in one piece
            words, heads = cfg.head_dim * (1 if half else 2), cfg.n_layers * self.n_texts * cfg.n_kv_heads
            for before, now in zip((self.keys, self.values), made):
                device.launch(moved, (heads,), _words(before), _words(now), self.room * words, room * words)
            device.wait()                                  # what is moved may be given back now
        cos, sin = rope_table(np.arange(room), cfg.head_dim, cfg.rope_theta)
        self.cos, self.sin = device.upload(cos[:, 0]), device.upload(sin[:, 0])
        self.keys, self.values = made
        self.room = room
        self.graphs.clear()

    def grow(self, length: int) -> None:
        """Have room for `length` positions. Raises CheckError beyond the model's context."""
        check(length <= self.cfg.context, f"a sequence must have at most {self.cfg.context} tokens", length,
              "drop the oldest tokens and prefill again")
        if length > self.room:
            self._make(min(max(length, 2 * self.room), self.cfg.context))

    def layer(self, l: int) -> tuple[Array, Array]:
        """The keys and the values of layer l: (B, KV, room, Dh)."""
        shape = self.keys.shape[1:]
        at = l * self.keys.size // self.cfg.n_layers
        return self.keys.part(at, shape), self.values.part(at, shape)


def _words(array: Array) -> Array:
    """The same memory in pieces of 16 bits."""
    return Array(array.address, (array.nbytes // 2,), np.dtype(np.uint16), array.block)


def program_of(plan: Any, w: Any, n_texts: int, room: int) -> Program:
    """The weights `w` on the device, sent there when first asked for.

    Raises CheckError for a model that is not of float32 (or less), and one that does not fit.
    """
    found = w.kept.get("program")
    if found is None:
        kind = w["embedding"].dtype.name
        check(kind in ("float32", "float16", "bfloat16"), "--backend cuda runs float32 models", kind,
              "use --backend numpy for others")
        found = w.kept["program"] = build(device(), plan, w, n_texts, room)
    return found


def forward(plan: Any, w: Any, ids: np.ndarray) -> np.ndarray:
    """As model.transformer.forward, the logits alone: ids int (B, T)  ->  logits (B, T, V)."""
    B, T = ids.shape
    out, together = np.empty((B, T, plan.cfg.vocab_size), np.float32), max(1, AT_ONCE // T)
    with exclusive():
        for b in range(0, B, together):
            part = ids[b:b + together]
            program = program_of(plan, w, len(part), T)
            texts = Texts(program, plan.cfg, len(part), T, w.half_cache)
            out[b:b + together] = advance(plan, w, part, None, beginning(texts), True)[0]
    return out


def prefill(plan: Any, w: Any, ids: np.ndarray,
            lengths: np.ndarray | None = None) -> tuple[np.ndarray, State]:
    """As model.transformer.prefill: ids int (B, T)  ->  logits (B, V) of the next token, state.

    Raises CheckError for float64 and complex models, and for one that the card cannot hold.
    """
    (B, T), context = ids.shape, plan.cfg.context
    with exclusive():
        room = min(max(FIRST_ROOM, T + 1), context)
        texts = Texts(program_of(plan, w, B, room), plan.cfg, B, room, w.half_cache)
        return advance(plan, w, ids, lengths, beginning(texts), False)


def extend(plan: Any, w: Any, ids: np.ndarray, state: State, lengths: np.ndarray | None = None,
           every: bool = True) -> tuple[np.ndarray, State]:
    """As model.transformer.extend: ids int (B, T)  ->  logits (B, T, V) after each of them, new state."""
    with exclusive():
        return advance(plan, w, ids, lengths, state, every)


def decode_step(plan: Any, w: Any, token: np.ndarray, state: State) -> tuple[np.ndarray, State]:
    """As model.transformer.decode_step: token int (B,), state  ->  logits (B, V), new state."""
    with exclusive():
        return advance(plan, w, token[:, None], None, state, False)


def advance(plan: Any, w: Any, ids: np.ndarray, lengths: np.ndarray | None, state: State,
            every: bool) -> tuple[np.ndarray, State]:
    """Append ids int (B, T), of text b the first lengths[b] of them, to the texts of `state`.

    Returns logits (B, V) of the last ones, or `every` (B, T, V). Raises CheckError for a state that is not
    (or no longer) of these weights, this batch or these texts.
    """
    B, T = ids.shape
    counts = (T,) * B if lengths is None else tuple(lengths.tolist())
    after = _appended(w, state, counts)
    call = call_of(plan, state.texts, counts, every)
    start(plan, call, state.texts, chosen(ids, counts), state.lengths)
    return delivered(state.texts.program.device.read(call.rows.logits), counts, T, every), after


def greedy(plan: Any, w: Any, token: np.ndarray, state: State, n: int) -> tuple[np.ndarray, State]:
    """`n` steps, each of the most probable token, chosen on the device.

    token int (B,)  ->  ids (B, n), state.   Nothing waits for the host between two tokens. Of equal logits
    the first counts.
    """
    with exclusive():
        texts, B = state.texts, len(token)
        after = _appended(w, state, (n,) * B)
        device, call = texts.program.device, call_of(plan, texts, (1,) * B, False)
        found = device.zeros((B, texts.room + 1), np.int32)
        start(plan, call, texts, token, state.lengths)
        for step in range(n):
            if step:
                run(plan, call, texts)
            device.launch(argmax, (B,), call.rows.logits, call.rows.ids, call.rows.position, found,
                          plan.cfg.vocab_size, texts.room + 1)
        ids = device.read(found)
    return np.stack([row[at + 1:at + 1 + n] for row, at in zip(ids, state.lengths)]), after


def _appended(w: Any, state: Any, counts: Counts) -> State:
    check(isinstance(state, State) and isinstance(state.texts, Texts), "a state must be of this backend",
          type(state).__name__, "prefill the text with this model")
    return appended(state, w.kept.get("program"), counts)


def start(plan: Any, call: Call, texts: Texts, ids: np.ndarray, at: Counts) -> None:
    """Run the call for ids (M,), text after text, of texts that had the lengths `at`."""
    device, where = texts.program.device, np.array(at)[call.slot] + call.offset
    both = Array(call.rows.ids.address, (2 * len(ids),), np.dtype(np.int32), call.rows.ids.block)
    device.write(both, np.concatenate([ids, where]).astype(np.int32))
    run(plan, call, texts)


def run(plan: Any, call: Call, texts: Texts) -> None:
    """Start the call's kernels on what is in memory: one by one when it is new, as a graph from then on."""
    device, cfg = texts.program.device, plan.cfg
    if call.queries.tiles is None and call.room != texts.room:
        call.between = parts(device, call.queries.M, texts.room, cfg.n_heads, cfg.head_dim)
        call.room = texts.room
    graph = texts.graphs.get(call)
    if graph is None and call.began:
        with device.recording() as graph:
            _launch(plan, call, texts)
        texts.graphs[call] = graph
    if graph is None:
        _launch(plan, call, texts)
        call.began = True
    else:
        device.start(graph)


def _launch(plan: Any, call: Call, texts: Texts) -> None:
    """All kernels of the call, in order."""
    program, cfg, rows = texts.program, plan.cfg, call.rows
    device, M, (D, F) = program.device, call.queries.M, (cfg.d_model, cfg.d_ff)
    kv = cfg.n_kv_heads * cfg.head_dim
    device.launch(EMBEDDING[program.embedding.kept], (M,), rows.ids, program.embedding.numbers, rows.x, D,
                  program.embedding.numbers.shape[1])
    for l, layer in enumerate(program.layers):
        keys, values = texts.layer(l)
        (q, k, v), apart = _enter_all(plan, program, call, layer.qkv, (D, kv, kv))            # (BK.1)
        device.launch(ROPE[texts.kept], (M,), q, k, v, *apart, call.queries.slot, rows.position, texts.cos,
                      texts.sin, rows.turned, keys, values, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim,
                      texts.room)                                                             # (BK.2)
        attention(device, rows.turned, keys, values, call.queries, rows.o, rows.lse, call.between)  # (BK.3)
        _enter(plan, program, rows, layer.out[0], rows.o, M)
        _multiply(device, rows, layer.out[0], rows.x, M, rows.x)                              # (BK.4), (BK.5)
        (gate, up), apart = _enter_all(plan, program, call, layer.gate_up, (F, F))            # (BK.6)
        _enter_gated(plan, program, rows, layer.down[0], gate, up, apart[0], M)               # (BK.7)
        _multiply(device, rows, layer.down[0], rows.x, M, rows.x)                             # (BK.8), (BK.9)
    n, end = rows.last.size, rows.x
    if n < M:
        end = rows.end
        device.launch(EMBEDDING["f32"], (n,), rows.last, rows.x, end, D, D)
    _enter(plan, program, rows, program.head, end, n)
    _multiply(device, rows, program.head, rows.logits, n)                                     # (TR.3)


def _enter_all(plan: Any, program: Program, call: Call, steps: tuple[Step, ...],
               widths: tuple[int, ...]) -> tuple[list[Array], list[int]]:
    """The stream through a place's steps  ->  its outputs of those widths, and how far their rows are apart.

    One step writes them side by side, several one behind the other.
    """
    rows, M, at = call.rows, call.queries.M, 0
    for step in steps:
        _enter(plan, program, rows, step, rows.x, M)
        _multiply(program.device, rows, step, rows.wide.part(at, (M, step.N)), M)
        at += M * step.N
    starts = np.cumsum([0, *widths[:-1]]).tolist()
    if len(steps) == 1:
        return [rows.wide.part(s, (1, n)) for s, n in zip(starts, widths)], [sum(widths)] * len(widths)
    return [rows.wide.part(M * s, (M, n)) for s, n in zip(starts, widths)], list(widths)


def _enter(plan: Any, program: Program, rows: Rows, step: Step, x: Array, M: int) -> None:
    """x (M, K) normalised, and quantised where the step's weights are trits."""
    gain, eps = step.gain or program.none, plan.cfg.norm_eps
    if isinstance(step.matrix, Packed):
        program.device.launch(rmsnorm_int8, (M,), x, x, step.K, gain, step.mode, eps, rows.codes,
                              rows.x_scale, rows.x_sum, rows.rstd, step.K, padded(step.K))
    else:
        program.device.launch(rmsnorm, (M,), x, gain, step.mode, eps, rows.floats, rows.rstd, step.K,
                              step.matrix.numbers.shape[1])


def _enter_gated(plan: Any, program: Program, rows: Rows, step: Step, gate: Array, up: Array, apart: int,
                 M: int) -> None:
    """The gated unit of rows that lie so far apart, entered in the same launch where it is quantised."""
    cfg = plan.cfg
    if isinstance(step.matrix, Packed):
        program.device.launch(GLU_INT8[cfg.glu], (M,), gate, up, apart, step.gain or program.none, step.mode,
                              cfg.norm_eps, rows.codes, rows.x_scale, rows.x_sum, rows.rstd, step.K,
                              padded(step.K))
        return
    program.device.launch(GLU[cfg.glu], (M,), gate, up, apart, rows.u, cfg.d_ff)
    _enter(plan, program, rows, step, rows.u, M)


def _multiply(device: Device, rows: Rows, step: Step, y: Array, M: int, add: Array | None = None) -> None:
    """What was entered last, times the step's weights: y (M, N) [+ add]."""
    if isinstance(step.matrix, Packed):
        product(device, rows.codes, rows.x_scale, rows.x_sum, step.matrix, y, M, add)
    else:
        table = step.matrix
        linear(device, rows.floats, table.numbers, table.kept, table.scales, y, M, add)


def call_of(plan: Any, texts: Texts, counts: Counts, every: bool) -> Call:
    """The buffers of such a call. Those of the last few kinds are kept; a prompt's are too large."""
    kept, kind = texts.program.kept, (counts, every)
    found = kept.pop(kind, None) or _buffers(plan, texts.program, counts, every)
    if sum(counts) <= MOST_CALLS * len(counts):
        while len(kept) >= MOST_CALLS:
            del kept[next(iter(kept))]
        kept[kind] = found
    return found


def _buffers(plan: Any, program: Program, counts: Counts, every: bool) -> Call:
    cfg, device, M = plan.cfg, program.device, sum(counts)
    D, F, H, widest = cfg.d_model, cfg.d_ff, cfg.n_heads, max(cfg.d_model, cfg.d_ff)
    slot, ends = np.repeat(np.arange(len(counts)), counts), np.cumsum(counts)
    last = np.arange(M) if every else (ends - 1)[np.array(counts) > 0]
    full = not isinstance(program.head.matrix, Packed)
    twin = not isinstance(program.layers[0].down[0].matrix, Packed)

    def floats(*shape: int) -> Array:
        return device.empty(shape, np.float32)

    where = device.zeros((2 * M,), np.int32)
    rows = Rows(where.part(0, (M,)), where.part(M, (M,)), device.upload(last.astype(np.int32)), floats(M, D),
                floats(M, max(D + 2 * cfg.n_kv_heads * cfg.head_dim, 2 * F)), floats(M, H, cfg.head_dim),
                floats(M, D), floats(M, H), floats(M if twin else len(last) if full else 1, widest + SIDE),
                floats(M if twin else 1, F), device.zeros((M, padded(widest)), np.int8), floats(M),
                device.empty((M,), np.int32), floats(M), floats(len(last), D),
                floats(len(last), cfg.vocab_size))
    queries = Queries(M, device.upload(slot.astype(np.int32)), rows.position,
                      device.upload(tiled(counts)) if max(counts) > FEW else None)
    return Call(rows, queries, np.arange(M) - (ends - counts)[slot], slot)
