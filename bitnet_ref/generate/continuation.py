"""A text in the making: iterate for its pieces; what was made, why it ended and how long it took stay.

Time is that of the model and the sampling alone, not of whoever reads the pieces. Up to the first token it is
prefill, after it decode, a prefill of a full window included.
Read after: generate/text. Read next: generate/together.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from bitnet_ref.chain.draft import Drafter
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.generate.decode import decode
from bitnet_ref.generate.sampling import Sampling
from bitnet_ref.generate.speculative import Counts, Pace, speculate
from bitnet_ref.generate.text import TextStream
from bitnet_ref.generate.window import Window

LENGTH, END, STOP_STRING, INTERRUPTED = "length", "end of text", "stop string", "interrupted"


class Continuation:
    """The text that continues the ids `prompt` (T,) in a window. Can be iterated over once.

    `ids` are those of the text, `logprobs` theirs where asked for; `prefilled`: tokens of the prompt that the
    window had not read before. `reason`: LENGTH, END (`stop_id` came),
    STOP_STRING (`stop_string` came), or INTERRUPTED while it is not at its end. The ids of a text that a stop
    string ended spell all or a part of that string too. `drafter`: who guesses ahead; it changes no text.
    """

    def __init__(self, window: Window, tokenizer: Tokenizer, prompt: Sequence[int], tokens: int,
                 how: Sampling, ends: Sequence[int] = (), stop: Sequence[str] = (),
                 logprobs: bool = False, drafter: Drafter | None = None, pace: Pace | None = None) -> None:
        self.prompt, self.how, self.reason = list(prompt), how, INTERRUPTED
        self.stop_id: int | None = None
        self.stop_string: str | None = None
        self.ids: list[int] = []
        self.logprobs: list[float | None] = []
        self.prefilled, self.prefill_seconds, self.decode_seconds = 0, 0.0, 0.0
        self._window, self._shown, self._counted = window, list[str](), window.prefilled
        self._ends, self._stream = frozenset(ends), TextStream(tokenizer, stop)
        self._guesses = None if drafter is None else Counts()
        self._steps = (decode(window.model, self.prompt, tokens, how, self._ends, logprobs, window)
                       if drafter is None else
                       speculate(window, self.prompt, tokens, drafter, how, self._ends, logprobs, pace,
                                 self._guesses))
        self._pieces = self._made()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    @property
    def text(self) -> str:
        """What was shown so far."""
        return "".join(self._shown)

    def _made(self) -> Iterator[str]:
        while True:
            start = time.perf_counter()
            step = next(self._steps, None)
            spent = time.perf_counter() - start
            if self.prefill_seconds:
                self.decode_seconds += spent
            else:
                self.prefilled, self.prefill_seconds = self._window.prefilled - self._counted, spent
            if step is None:
                self.reason = LENGTH
                break
            if step.token in self._ends:
                self.reason, self.stop_id = END, step.token
                break
            self.ids.append(step.token)
            self.logprobs.append(step.logprob)
            yield self._show(self._stream.push(step.token))
            if self._stream.stopped is not None:
                self.reason, self.stop_string = STOP_STRING, self._stream.stopped
                return
        yield self._show(self._stream.finish())

    def _show(self, piece: str) -> str:
        self._shown.append(piece)
        return piece

    @property
    def speculation(self) -> dict[str, int] | None:
        """The Counts of this text's guesses by their names; None where nobody guesses."""
        return None if self._guesses is None else asdict(self._guesses)

    def record(self) -> dict[str, Any]:
        """All that is known of what was made so far, for JSON."""
        made = len(self.ids) + (self.stop_id is not None)
        return {
            "text": self.text, "ids": self.ids, "logprobs": self.logprobs, "prompt_ids": self.prompt,
            "stop": {"reason": self.reason, "id": self.stop_id, "string": self.stop_string},
            "prefill": _rate(self.prefilled, self.prefill_seconds),
            "decode": _rate(max(0, made - 1), self.decode_seconds),
            "seconds": self.prefill_seconds + self.decode_seconds, "sampling": asdict(self.how),
            "speculation": self.speculation,
        }


def _rate(tokens: int, seconds: float) -> dict[str, Any]:
    return {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds if seconds else None}
