"""What a backend with a cache passes on from call to call: which tokens of each text stand in it.

A state is a place: how many tokens of each text count. An earlier one may be used again, or taken `back`,
which is all that a rollback is; one whose tokens were overwritten since is refused. Where the numbers
themselves lie is the backend's business.
Read after: kernels. Read next: kernels/numba_cpu.
"""

import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from bitnet_ref.checks import check, shorter

Counts = tuple[int, ...]     # of tokens, of each text


class Cached(Protocol):
    """The cache of some texts, as a state knows it. `serials`: of the call that wrote each position."""

    program: Any
    serials: list[list[int]]
    calls: int

    def grow(self, length: int) -> None:
        """Have room for `length` positions. Raises CheckError beyond the model's context."""


class State(NamedTuple):
    """The first `lengths` tokens of B texts, as the calls number `serials` left the last of each."""

    texts: Any
    lengths: Counts
    serials: Counts

    def back(self, lengths: Any) -> "State":
        """The state in which the texts had these lengths, int or (B,), none longer than now.

        Raises CheckError for others. Nothing is copied: what comes next is written over what was dropped.
        """
        asked = shorter(lengths, self.lengths)
        self.require()
        return State(self.texts, asked, tuple(s[n - 1] for s, n in zip(self.texts.serials, asked)))

    def require(self) -> None:
        """Raise CheckError unless its tokens still stand in the cache."""
        check(all(n == 0 or (len(s) >= n and s[n - 1] == serial)
                  for s, n, serial in zip(self.texts.serials, self.lengths, self.serials)),
              "a state must stand in its cache", "one whose tokens were overwritten from an earlier state",
              "prefill the text again")


def beginning(texts: Cached) -> State:
    """No token yet, of any text.
    >>> from types import SimpleNamespace
    >>> beginning(SimpleNamespace(serials=[[], []])).lengths
    (0, 0)
    """
    none = (0,) * len(texts.serials)
    return State(texts, none, none)


def appended(state: State, program: Any, counts: Counts) -> State:
    """The state with so many tokens more of each text, for which there is room now; they are to be written.

    Raises CheckError for a state that is not (or no longer) of these weights or texts.
    >>> from types import SimpleNamespace
    >>> cache = SimpleNamespace(program="p", serials=[[], []], calls=0, grow=lambda length: None)
    >>> state = appended(beginning(cache), "p", (3, 1))
    >>> state.lengths, appended(state, "p", (0, 2)).lengths
    ((3, 1), (3, 3))
    """
    texts: Cached = state.texts
    check(texts.program is program, "a state must be of these weights", "one of others",
          "prefill the text again after the weights have changed")
    state.require()
    new = tuple(at + n for at, n in zip(state.lengths, counts))
    texts.grow(max(new))
    texts.calls += 1
    for serials, at, n in zip(texts.serials, state.lengths, counts):
        serials[at:] = [texts.calls] * n
    return State(texts, new, tuple(s[n - 1] if n else 0 for s, n in zip(texts.serials, new)))


def chosen(ids: np.ndarray, counts: Counts) -> np.ndarray:
    """Of ids (B, T) the first counts[b] of each row, row after row: (M,).
    >>> chosen(np.array([[7, 8, 9], [4, 0, 0]]), (3, 1)).tolist()
    [7, 8, 9, 4]
    """
    return ids[np.arange(ids.shape[1]) < np.array(counts)[:, None]]


def delivered(logits: np.ndarray, counts: Counts, T: int, every: bool) -> np.ndarray:
    """A copy (B, V), or `every` (B, T, V); what was not asked for is zeros.
    >>> rows = np.array([[0.5, 0.25], [1.0, 2.0]], np.float32)       # logits after a token of texts 0 and 2
    >>> delivered(rows, (1, 0, 1), T=1, every=False).tolist()
    [[0.5, 0.25], [0.0, 0.0], [1.0, 2.0]]
    """
    shape = (len(counts), *((T,) if every else ()), logits.shape[1])
    if logits.size == math.prod(shape):
        return logits.reshape(shape).copy()
    new, out = np.array(counts), np.zeros(shape, np.float32)
    out[np.arange(T) < new[:, None] if every else new > 0] = logits
    return out
