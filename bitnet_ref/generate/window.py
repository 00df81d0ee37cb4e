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

    >>> fitted([0, 1, 2, 3, 4, 5], room=4)
    [0, 3, 4, 5]
    """
    if len(ids) <= room:
        return list(ids)
    return [ids[0], *ids[len(ids) - room + 1:]] if room > 1 else ids[-1:]


class Window:
    """One text before the model. `ids` are in the cache; `logits` float (V,) are of the token after them.

    `prefilled` counts the ids that went through the model other than as generated tokens.
    """

    def __init__(self, model: Transformer) -> None:
        self.model, self.prefilled = model, 0
        self.ids: list[int] = []
        self.logits = np.zeros(0, np.float32)
        self._state: Any = None

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
        if wanted != self.ids:
            same = next((n for n, (ours, theirs) in enumerate(zip(self.ids, wanted)) if ours != theirs),
                        min(len(self.ids), len(wanted)))
            same = min(same, len(wanted) - 1)              # one, at least, to have logits of
            self.prefilled += len(wanted) - same
            self._append(wanted[same:], same)
        return self.logits

    def push(self, token: int) -> np.ndarray:
        """Append a generated token  ->  logits (V,) of the next. A full window is shortened to half first."""
        context = self.model.cfg.context
        if len(self.ids) < context:
            held, self.ids = self.ids, []                  # as in _append, without what one token need not
            logits, self._state = self.model.decode_step(np.array([token]), self._state)
            self.logits = logits[0]
            held.append(token)
            self.ids = held
        else:
            ids = fitted([*self.ids, token], context - context // 2)
            after = int(len(ids) > 1)                      # its first token stays where it is
            self._append(ids[after:], after)
        return self.logits

    def push_all(self, tokens: Sequence[int]) -> np.ndarray:
        """Append tokens, for which there must be room, in one call  ->  logits (n, V) after each of them."""
        held, self.ids = self.ids, []
        logits, self._state = self.model.extend(np.array([tokens]), self._state)
        self.logits = logits[0, -1]
        self.ids = [*held, *tokens]
        return logits[0]

    def back(self, length: int, logits: np.ndarray) -> None:
        """Drop all ids but the first `length`, after which stand these logits (V,)."""
        self._state, self.logits = self._state.back(length), logits
        del self.ids[length:]

    def _append(self, new: list[int], after: int) -> None:
        """Go back to the first `after` ids, and read `new`."""
        held, self.ids = self.ids, []                      # nothing is held should Ctrl-C come before the end
        if after == 0:
            self._state = None                             # room for the next one's cache
            logits, state = self.model.prefill(np.array([new]))
        else:
            before = self._state if after == len(held) else self._state.back(after)
            logits, state = (self.model.decode_step(np.array(new), before) if len(new) == 1
                             else self.model.extend(np.array([new]), before, every=False))
        self._state, self.logits = state, logits[0]
        del held[after:]
        held += new
        self.ids = held
