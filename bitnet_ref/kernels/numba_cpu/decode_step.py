"""prefill and decode_step with a key/value cache: the whole-model path of the Numba backend.

The state that they pass on is a place in a cache: how many tokens of it belong to this text. An earlier state
may be used again, which takes the text back to there; a state whose tokens were overwritten since is refused.
Read after: kernels/numba_cpu/whole. Read next: model.
"""

from typing import Any, NamedTuple

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
from bitnet_ref.layers.rope import rope_table

FIRST_ROOM = 256             # positions of a new cache; it doubles when it is full, up to the context
ALONE = 1 << 25              # multiply-adds up to which waking other threads costs more than they bring


class Call:
    """The buffers and the schedule for so many rows, and the frame in which the walk finds them."""

    def __init__(self, rows: Rows, tiles: np.ndarray, phases: np.ndarray) -> None:
        self.rows, self.tiles, self.phases = rows, tiles, phases
        self.framed: tuple[Any, ...] = (None, None)

    def frame(self, program: Program, cache: Cache, scratch: np.ndarray) -> np.ndarray:
        """Made anew only when cache or scratch are other ones: from token to token they seldom are."""
        if self.framed[0] is not cache or self.framed[1] is not scratch:
            made = frame(arrays_of(program.tables, self.rows, cache, self.tiles, self.phases, scratch))
            self.framed = cache, scratch, made
        return self.framed[2]


class Text:
    """The cache of B sequences of one length, and which tokens stand in it."""

    def __init__(self, program: Program, cfg: Any, n_sequences: int, room: int) -> None:
        self.program, self.cfg, self.n_sequences = program, cfg, n_sequences
        self.serials: list[int] = []         # of the call that wrote each position
        self.calls = 0
        self.buffers: dict[tuple[int, int, int], Call] = {}
        self.cache = self._room(room)

    def _room(self, room: int) -> Cache:
        L, _, H, KV, Dh = self.program.tables.dims[:5].tolist()
        room = padded(min(room, self.cfg.context), PANEL)
        cos, sin = rope_table(np.arange(room), Dh, self.cfg.rope_theta)
        return Cache(np.zeros((L, self.n_sequences, KV, room // PANEL, Dh, PANEL), np.float32),
                     np.zeros((L, self.n_sequences, KV, room, padded(Dh, PANEL)), np.float32),
                     cos[:, 0], sin[:, 0],
                     np.zeros((len(_tiles(self.n_sequences, 1, H, KV)), TILE, room + PANEL), np.float32))

    def grow(self, length: int) -> None:
        """Have room for `length` positions. Raises CheckError beyond the model's context."""
        check(length <= self.cfg.context, f"a sequence must have at most {self.cfg.context} tokens", length,
              "drop the oldest tokens and prefill again")
        old, room = self.cache, len(self.cache.cos)
        if length > room:
            self.cache = self._room(max(length, 2 * room))
            self.cache.keys[:, :, :, :old.keys.shape[3]] = old.keys
            self.cache.values[:, :, :, :room] = old.values


class State(NamedTuple):
    """The first `length` tokens of a text, as call number `serial` left them."""

    text: Text
    length: int
    serial: int


def prefill(plan: Any, w: Any, ids: np.ndarray) -> tuple[np.ndarray, State]:
    """As model.transformer.prefill: ids int (B, T)  ->  logits (B, V) of the next token, state.

    NotImplemented for float64 and complex models: they are the reference's.
    """
    if w["embedding"].dtype == np.float64 or w["embedding"].dtype.kind == "c":
        return NotImplemented
    program = w.kept.get("program")
    if program is None:
        program = w.kept["program"] = build(plan, w)
    text = Text(program, plan.cfg, len(ids), max(FIRST_ROOM, ids.shape[1] + 1))
    return advance(w, ids, State(text, 0, 0))


def decode_step(plan: Any, w: Any, token: np.ndarray, state: State) -> tuple[np.ndarray, State]:
    """As model.transformer.decode_step: token int (B,), state  ->  logits (B, V), new state."""
    if not isinstance(state, State):
        return NotImplemented
    return advance(w, token[:, None], state)


def advance(w: Any, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
    """Append ids int (B, T) to the text of `state`. Raises CheckError for a state that is not (or no longer)
    of these weights, this batch or this text."""
    with exclusive():                                      # the cache and the buffers are its text's
        return _advance(w, ids, state)


def _advance(w: Any, ids: np.ndarray, state: State) -> tuple[np.ndarray, State]:
    text, at = state.text, state.length
    check(text.program is w.kept.get("program"), "a state must be of these weights", "one of others",
          "prefill the text again after the weights have changed")
    check(len(ids) == text.n_sequences, f"a step must have a token for each of {text.n_sequences} sequences",
          len(ids), "pass as many as were prefilled")
    check(at == 0 or (len(text.serials) >= at and text.serials[at - 1] == state.serial),
          "a state must stand in its cache", "one whose tokens were overwritten from an earlier state",
          "prefill the text again")
    B, T = ids.shape
    text.grow(at + T)
    text.calls += 1
    text.serials[at:] = [text.calls] * T
    program = text.program
    alone = pool_size() == 1 or B * T * program.work <= ALONE
    chunks = 0 if alone or T > 1 else (at + T + CHUNK - 1) // CHUNK
    call = text.buffers.get((B, T, chunks)) or _buffers(program, B, T, chunks)
    if T == 1:
        text.buffers = {(B, T, chunks): call}
    rows = call.rows
    rows.x[:] = w["embedding"][ids.reshape(-1)]
    rows.position[:] = at + np.arange(B * T) % T
    rows.counters[:] = 0
    with team(scratch_bytes(program.widest, at + T, program.head_dim), pool=not alone) as t:
        where = call.frame(program, text.cache, t.scratch)
        if alone:
            compiled_walk().ctypes(where.ctypes.data, len(where), 0)
        else:
            on_threads(compiled_walk().address, where.ctypes.data, len(where), t.threads)
    return rows.logits.copy(), State(text, at + T, text.calls)


def _buffers(program: Program, B: int, T: int, chunks: int) -> Call:
    """What a call needs for B sequences of T new tokens. `chunks`: see schedule."""
    L, D, H, KV, Dh, F, V = program.tables.dims[:7].tolist()
    M, widest = B * T, padded(program.widest + 32, 64)

    def floats(*shape: int) -> np.ndarray:
        return aligned(4 * int(np.prod(shape))).view(np.float32).reshape(shape)

    codes = aligned(M * widest).view(np.int8).reshape(M, widest)
    rows = Rows(np.arange(M) // T, np.zeros(M, np.int64), np.arange(T - 1, M, T), floats(M, D), floats(M, D),
                floats(M, KV * Dh), floats(M, KV * Dh), floats(M, D), floats(M, D), floats(M, F),
                floats(M, F), floats(M, F), codes, floats(M if program.floats else 1, widest), floats(M),
                np.zeros(M, np.int32), floats(B, V), np.zeros(20 * (L + 1), np.int64))
    tiles = _tiles(B, T, H, KV)
    return Call(rows, tiles, schedule(program.tables, M, B, len(tiles), chunks))


def _tiles(B: int, T: int, H: int, KV: int) -> np.ndarray:
    """int64 (tasks, 4) for whole.attend: several rows of a head, or the heads that share keys for one row."""
    R = H // KV
    if T == 1:
        found = [(b, 1, g * R + h, min(TILE, R - h))
                 for b in range(B) for g in range(KV) for h in range(0, R, TILE)]
    else:
        found = [(b * T + i, min(TILE, T - i), h, 1)
                 for b in range(B) for h in range(H) for i in range(0, T, TILE)]
    return np.array(found, np.int64)
