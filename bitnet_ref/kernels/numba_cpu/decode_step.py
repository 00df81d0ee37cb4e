"""prefill, extend and decode_step with a key/value cache: the whole-model path of the Numba backend.

The state that they pass on is a place in a cache (kernels/state.py). Texts of a batch may differ in length: a
row of a call knows its text and its position.
Read after: kernels/numba_cpu/whole. Read next: kernels/ptx.
"""

import math
from typing import Any

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.kernels.numba_cpu.attention import TILE, padded
from bitnet_ref.kernels.numba_cpu.frame import frame, on_threads
from bitnet_ref.kernels.numba_cpu.program import Program, aligned, build
from bitnet_ref.kernels.numba_cpu.threads import exclusive, pool_size, team
from bitnet_ref.kernels.numba_cpu.tiles import PANEL
from bitnet_ref.kernels.numba_cpu.whole import (
    CHUNK,
    Cache,
    Rows,
    arrays_of,
    compiled_walk,
    schedule,
    scratch_bytes,
)
from bitnet_ref.kernels.state import Counts, State, appended, beginning, chosen, delivered
from bitnet_ref.layers.rope import rope_table

FIRST_ROOM = 256             # positions of a new cache; it doubles when it is full, up to the context
ALONE = 1 << 25              # multiply-adds up to which waking other threads costs more than they bring
MOST_CALLS = 16              # kinds of call whose buffers are kept: a draft may have any length


class Call:
    """Buffers and schedule of calls of one kind, and the frame in which the walk finds them."""

    def __init__(self, rows: Rows, offset: np.ndarray, tiles: np.ndarray, phases: np.ndarray) -> None:
        self.rows, self.offset, self.tiles, self.phases = rows, offset, tiles, phases
        self.framed: tuple[Any, ...] = (None, None)

    def frame(self, program: Program, cache: Cache, name: object, scratch: np.ndarray) -> np.ndarray:
        """Made anew only when cache or scratch are other ones: from token to token they seldom are.

        A cache is known by its `name`: what is kept here must not keep it alive.
        """
        if self.framed[0] is not name or self.framed[1] is not scratch:
            made = frame(arrays_of(program.tables, self.rows, cache, self.tiles, self.phases, scratch))
            self.framed = name, scratch, made
        return self.framed[2]


class Texts:
    """The cache of B texts, and which tokens stand in it. `size`: bytes of its numbers, 4 or 2."""

    def __init__(self, program: Program, cfg: Any, n_texts: int, room: int, size: int = 4) -> None:
        self.program, self.cfg, self.n_texts, self.size = program, cfg, n_texts, size
        self.serials: list[list[int]] = [[] for _ in range(n_texts)]    # of the call that wrote each position
        self.calls = 0
        self.buffers: dict[Any, Call] = program.buffers
        self.cache, self.name = self._room(room), object()

    def _room(self, room: int) -> Cache:
        L, _, H, KV, Dh = self.program.tables.dims[:5].tolist()
        room = padded(min(room, self.cfg.context), PANEL)
        cos, sin = rope_table(np.arange(room), Dh, self.cfg.rope_theta)
        self.heads, wide = L * self.n_texts * KV, padded(Dh, PANEL)
        return Cache(np.zeros(self.heads * room * Dh * self.size, np.uint8),
                     np.zeros(self.heads * room * wide * self.size, np.uint8),
                     np.array([self.n_texts, KV, room, Dh, wide, self.size]), cos[:, 0], sin[:, 0],
                     np.zeros((len(_tiles((1,) * self.n_texts, H, KV)), TILE, room + PANEL), np.float32))

    def grow(self, length: int) -> None:
        """Have room for `length` positions. Raises CheckError beyond the model's context."""
        check(length <= self.cfg.context, f"a sequence must have at most {self.cfg.context} tokens", length,
              "drop the oldest tokens and prefill again")
        room = len(self.cache.cos)
        if length > room:
            larger = self._room(max(length, 2 * room))
            for now, before in zip(larger[:2], self.cache[:2]):
                held = before.reshape(self.heads, -1)      # each head's positions lie in one piece
                now.reshape(self.heads, -1)[:, :held.shape[1]] = held
            self.name = object()                           # first: Ctrl-C may come before, or behind
            self.cache = larger

    def call(self, counts: Counts, every: bool, chunks: int) -> Call:
        """The buffers of such a call. Those of the last few kinds are kept; a prompt's are too large."""
        kind = counts, every, chunks
        found = self.buffers.pop(kind, None) or _buffers(self.program, counts, every, chunks)
        if sum(counts) <= MOST_CALLS * self.n_texts:
            while len(self.buffers) >= MOST_CALLS:
                del self.buffers[next(iter(self.buffers))]
            self.buffers[kind] = found
        return found


def prefill(plan: Any, w: Any, ids: np.ndarray,
            lengths: np.ndarray | None = None) -> tuple[np.ndarray, State]:
    """As model.transformer.prefill: ids int (B, T)  ->  logits (B, V) of the next token, state.

    NotImplemented for float64 and complex models: they are the reference's.
    """
    if w["embedding"].dtype == np.float64 or w["embedding"].dtype.kind == "c":
        return NotImplemented
    with exclusive():                                      # one program, whoever comes first
        program = w.kept.get("program")
        if program is None:
            program = w.kept["program"] = build(plan, w)
    B, T = ids.shape
    texts = Texts(program, plan.cfg, B, max(FIRST_ROOM, T + 1), 2 if w.half_cache else 4)
    return advance(w, ids, lengths, beginning(texts), False)


def extend(plan: Any, w: Any, ids: np.ndarray, state: State, lengths: np.ndarray | None = None,
           every: bool = True) -> tuple[np.ndarray, State]:
    """As model.transformer.extend: ids int (B, T)  ->  logits (B, T, V) after each of them, new state."""
    if not isinstance(state, State):
        return NotImplemented
    return advance(w, ids, lengths, state, every)


def decode_step(plan: Any, w: Any, token: np.ndarray, state: State) -> tuple[np.ndarray, State]:
    """As model.transformer.decode_step: token int (B,), state  ->  logits (B, V), new state."""
    if not isinstance(state, State):
        return NotImplemented
    return advance(w, token[:, None], None, state, False)


def advance(w: Any, ids: np.ndarray, lengths: np.ndarray | None, state: State,
            every: bool) -> tuple[np.ndarray, State]:
    """Append ids int (B, T), of text b the first lengths[b] of them, to the texts of `state`.

    Returns logits (B, V) of the last ones, or `every` (B, T, V). Raises CheckError for a state that is not
    (or no longer) of these weights, this batch or these texts.
    """
    with exclusive():                                      # the cache and the buffers are its texts'
        return _advance(w, ids, lengths, state, every)


def _advance(w: Any, ids: np.ndarray, lengths: np.ndarray | None, state: State,
             every: bool) -> tuple[np.ndarray, State]:
    B, T = ids.shape
    counts = (T,) * B if lengths is None else tuple(lengths.tolist())
    after = appended(state, w.kept.get("program"), counts)
    call = _run(w, chosen(ids, counts), state.texts, counts, state.lengths, every)
    return delivered(call.rows.logits, counts, T, every), after


def _run(w: Any, ids: np.ndarray, texts: Texts, counts: Counts, at: Counts, every: bool) -> Call:
    """The call that appends ids (M,), text after text; its rows have the logits."""
    program, longest = texts.program, max(a + n for a, n in zip(at, counts))
    alone = pool_size() == 1 or len(ids) * program.work <= ALONE
    chunks = 0 if alone or max(counts) > 1 else (longest + CHUNK - 1) // CHUNK
    call = texts.call(counts, every, chunks)
    rows = call.rows
    rows.x[:] = w["embedding"][ids]
    rows.position[:] = np.array(at)[rows.slot] + call.offset
    rows.counters[:] = 0
    with team(scratch_bytes(program.widest, longest, program.head_dim), pool=not alone) as t:
        where = call.frame(program, texts.cache, texts.name, t.scratch)
        if alone:
            compiled_walk().ctypes(where.ctypes.data, len(where), 0)
        else:
            on_threads(compiled_walk().address, where.ctypes.data, len(where), t.threads)
    return call


def _buffers(program: Program, counts: Counts, every: bool, chunks: int) -> Call:
    """What a call needs for so many new tokens of each text. `chunks`: see schedule."""
    L, D, H, KV, Dh, F, V = program.tables.dims[:7].tolist()
    M, widest = sum(counts), padded(program.widest + 32, 64)

    def floats(*shape: int) -> np.ndarray:
        return aligned(4 * math.prod(shape)).view(np.float32).reshape(shape)

    codes = aligned(M * widest).view(np.int8).reshape(M, widest)
    slot, ends = np.repeat(np.arange(len(counts)), counts), np.cumsum(counts)
    last = np.arange(M) if every else (ends - 1)[np.array(counts) > 0]
    rows = Rows(slot, np.zeros(M, np.int64), last, floats(M, D), floats(M, D),
                floats(M, KV * Dh), floats(M, KV * Dh), floats(M, D), floats(M, D), floats(M, F),
                floats(M, F), floats(M, F), codes, floats(M if program.floats else 1, widest), floats(M),
                np.zeros(M, np.int32), floats(len(last), V), np.zeros(20 * (L + 1), np.int64))
    tiles = _tiles(counts, H, KV)
    return Call(rows, np.arange(M) - (ends - counts)[slot], tiles,
                schedule(program.tables, M, len(last), len(tiles), chunks))


def _tiles(counts: Counts, H: int, KV: int) -> np.ndarray:
    """int64 (tasks, 4) for whole.attend: up to TILE new tokens, and as many heads that share keys as fit."""
    R, found = H // KV, []
    for n, end in zip(counts, np.cumsum(counts).tolist()):
        for i in range(0, n, TILE):
            rows = min(TILE, n - i)
            heads = min(R, TILE // rows)
            found += [(end - n + i, rows, g * R + h, min(heads, R - h)) for g in range(KV)
                      for h in range(0, R, heads)]
    return np.array(found, np.int64).reshape(-1, 4)
