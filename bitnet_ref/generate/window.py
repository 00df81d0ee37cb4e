"""The text as the model sees it: the ids in its cache, and the logits of what comes next.

A text that grows out of the model's context keeps its first token and the newest of the rest; so half of the
context, at least, is history. A text that begins as the last one did is not read again from the start.
Read after: generate/sampling. Read next: generate/decode.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.model import Transformer


def fitted(ids: list[int], room: int) -> list[int]:
    """`ids` where they fit into `room`; else the first of them, and the newest room - 1 (room 1: the newest).

    The first is what every text of training began with, and what attention leans on when nothing else fits.
    """
    if len(ids) <= room:
        return list(ids)
    return [ids[0], *ids[len(ids) - room + 1:]] if room > 1 else ids[-1:]


class Window:
    """One text before the model. `ids` are in the cache; `logits` are of the token after them.

    `prefilled` counts the ids that went through the model other than as generated tokens.
    """

    def __init__(self, model: Transformer) -> None:
        self.model, self.prefilled = model, 0
        self.ids: list[int] = []
        self.states: list[Any] = []          # after the first so many ids; None where it was not kept
        self._next = (0, np.zeros(0, np.float32))         # after so many ids, the logits of the next

    @property
    def logits(self) -> np.ndarray:
        """float (V,), of the token after `ids`."""
        return self._next[1]

    def check(self, ids: Sequence[int]) -> None:
        """Raise CheckError for no ids, and for ids outside the vocabulary."""
        vocab = self.model.cfg.vocab_size
        check(len(ids) > 0, "a prompt must have at least one token", len(ids), "give some text")
        check(min(ids) >= 0 and max(ids) < vocab, f"ids must lie in 0..{vocab - 1}",
              f"{min(ids)}..{max(ids)}", "use the model's own tokenizer")

    def read(self, ids: Sequence[int]) -> np.ndarray:
        """Have exactly `ids` in the window, shortened by `fitted`  ->  logits (V,) of the next token.

        Only what differs from what it holds is read. Raises CheckError as `check`.
        """
        self.check(ids)
        wanted = fitted([int(i) for i in ids], self.model.cfg.context)
        if not len(self.ids) == self._next[0] == len(self.states) - 1:
            self.ids = []                                  # Ctrl-C came between two of these
        if wanted == self.ids:
            return self.logits
        shared = self._shared(wanted)
        self.prefilled += len(wanted) - shared
        if shared == 0:
            self._prefill(wanted)
        else:
            del self.ids[shared:], self.states[shared + 1:]
            for token in wanted[shared:]:
                self._step(token)
        return self.logits

    def push(self, token: int) -> np.ndarray:
        """Append a generated token  ->  logits (V,) of the next. A full window is shortened to half first."""
        context = self.model.cfg.context
        if len(self.ids) < context:
            self._step(token)
        else:
            self._prefill(fitted([*self.ids, token], context - context // 2))
        return self.logits

    def _shared(self, wanted: list[int]) -> int:
        """How many of `wanted` stand in the cache, with a state to go on from; fewer than all of them."""
        same = 0
        for ours, theirs in zip(self.ids, wanted[:-1]):
            if ours != theirs:
                break
            same += 1
        return same if same and self.states[same] is not None else 0

    def _prefill(self, ids: list[int]) -> None:
        self.ids = []                                      # should the model refuse, nothing is held
        logits, state = self.model.prefill(np.array([ids]))
        self.states, self._next = [*[None] * len(ids), state], (len(ids), logits[0])
        self.ids = list(ids)

    def _step(self, token: int) -> None:
        logits, state = self.model.decode_step(np.array([token]), self.states[-1])
        self.states.append(state)
        self._next = len(self.ids) + 1, logits[0]
        self.ids.append(token)
