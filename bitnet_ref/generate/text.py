"""From token ids to text that can be shown now: whole characters, and nothing of a stop string.

A token may end in the middle of a character, and a stop string may begin in one token and end in another. So
what is not decided yet is held back, and shown or dropped when it is. Each token costs the same, however long
the text: bytes go through an incremental UTF-8 decoder, and no text is decoded twice.
Read after: generate/speculative. Read next: generate/continuation.
"""

import codecs
from collections.abc import Sequence

from bitnet_ref.checks import check
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.generate.sampling import whole_number

MOST_STOPS = 64              # stop strings; each is looked for at every token
LONGEST_STOP = 4096          # characters
LARGEST = 1 << 31            # ids of a model that is not known yet


class TextStream:
    """Push ids, get the text that they settle. `stopped`: the stop string that ended it, or None.

    Bytes that are no UTF-8 become U+FFFD once no further byte can mend them. The first stop string to be
    complete ends the text, which ends before its first character; of two complete at once, the longer.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        check_stops(stop)
        self.tokenizer, self.stop, self.held = tokenizer, tuple(stop), ""
        self.stopped: str | None = None
        self.utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that can be shown now that `token` has come; a padded vocabulary's has none."""
        known = token < self.tokenizer.vocab_size
        return self._settled(self.utf8.decode(self.tokenizer.piece(token) if known else b""))

    def finish(self) -> str:
        """The rest, when no more tokens come: half a character is U+FFFD, half a stop string is text."""
        settled = self._settled(self.utf8.decode(b"", final=True))
        rest, self.held = self.held, ""
        return settled + ("" if self.stopped is not None else rest)

    def _settled(self, new: str) -> str:
        if self.stopped is not None:
            return ""
        self.held += new
        found = [(at + len(s), at, s) for s in self.stop if (at := self.held.find(s)) >= 0]
        if found:
            _, at, self.stopped = min(found)
            shown, self.held = self.held[:at], ""
            return shown
        keep = max((_overlap(self.held, s) for s in self.stop), default=0)
        cut = len(self.held) - keep
        shown, self.held = self.held[:cut], self.held[cut:]
        return shown


def check_stops(stop: Sequence[str]) -> None:
    """Raise CheckError for a stop string that is empty or absurdly long, or for too many.

    >>> check_stops("END")
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: stop strings must be a list; got 'END'; put it in brackets
    """
    check(isinstance(stop, Sequence) and not isinstance(stop, str), "stop strings must be a list",
          repr(stop)[:50], "put it in brackets")
    check(len(stop) <= MOST_STOPS, f"there may be at most {MOST_STOPS} stop strings", len(stop), "give fewer")
    for s in stop:
        check(isinstance(s, str) and 0 < len(s) <= LONGEST_STOP,
              f"a stop string must have 1 to {LONGEST_STOP} characters", repr(s)[:50], "give another")


def check_stop_ids(stop_ids: Sequence[int], vocab: int = LARGEST) -> None:
    """Raise CheckError for a stop id that no vocabulary of `vocab` entries has.

    >>> check_stop_ids([300], vocab=257)
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: a stop id must lie in 0..256; got 300; give an id of the model's vocabulary
    """
    check(isinstance(stop_ids, Sequence) and not isinstance(stop_ids, str), "stop ids must be a list",
          repr(stop_ids)[:50], "put it in brackets")
    for i in stop_ids:
        check(0 <= whole_number("a stop id", i) < vocab, f"a stop id must lie in 0..{vocab - 1}", i,
              "give an id of the model's vocabulary")


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` with which `stop` begins, all of `stop` excepted."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
