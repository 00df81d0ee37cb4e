"""Several tokens from one call of the model: a drafter guesses what comes next, and the model says how far.

The last token and the guess go through the model together; after each of them it draws its own token, with
the random number that plain decoding draws with there, and goes on as long as that is what was guessed. So a
text is the plain text, token for token, greedy or sampled, whatever the drafter says. How much is guessed
follows from what guesses were worth and from what calls took (docs/speculative.md).
Read after: generate/decode. Read next: generate/text.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bitnet_ref.chain.draft import NOTHING, REACH, Draft, Drafter
from bitnet_ref.generate.decode import Step, check_tokens, drawn
from bitnet_ref.generate.sampling import GREEDY, Sampling, logprob
from bitnet_ref.generate.window import Window

BINS = 8                         # of stated chances, each with what became of them
TRUST = 4.0                      # guesses that a drafter's own word counts for
KEEP = 1 - 1 / 64                # of what was seen of a bin, at each new guess in it
LATEST = 5                       # times of a length of call, whose median counts: a disturbance does not
OLD = 1024                       # calls after which such a time is no longer believed
FRESH = 16                       # calls between looks at the times
UNKNOWN = 0.0                    # seconds
TICK = 1e-9                      # seconds of a call, at least: a coarse clock may say none
LENGTHS = range(1, REACH + 2)    # tokens of a call


@dataclass
class Counts:
    """What became of guesses: `calls` of the model after a text's first token, tokens `drafted` in them, how
    many of those were `accepted`, and tokens `made`."""

    calls: int = 0
    drafted: int = 0
    accepted: int = 0
    made: int = 0

    def add(self, drafted: int, made: int) -> None:
        """One call."""
        self.calls += 1
        self.drafted += drafted
        self.accepted += made - 1
        self.made += made


class Pace:
    """How long a guess should be. Learns from every call: `observe` what was guessed, drawn, and its time.

    It may serve many texts, one after another or by turns. `fixed`: always guess that much, or as much as
    there is.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self.counts = Counts()
        self.right, self.tried = [0.0] * BINS, [0.0] * BINS
        self.times = {n: deque[float](maxlen=LATEST) for n in LENGTHS}
        self.when = dict.fromkeys(LENGTHS, 0)
        self.costs = [UNKNOWN] * (REACH + 2)

    def length(self, draft: Draft, room: int) -> int:
        """How many of the draft's tokens to have verified, at most `room`: what makes the most of time."""
        most = max(0, min(len(draft.tokens), room, REACH))
        if self.fixed is not None:
            return min(most, self.fixed)
        if most == 0 or self.costs[1] == UNKNOWN:          # what one token costs comes first
            return 0
        best, length, tokens, sure = 1.0 / self.costs[1], 0, 1.0, 1.0
        for k in range(1, most + 1):
            sure *= self.chance(draft.chances[k - 1])                                       # (SP.1)
            tokens += sure                                                                  # (SP.2)
            rate = tokens / self.costs[k + 1]                                               # (SP.3)
            if rate > best:
                best, length = rate, k
        return length

    def chance(self, stated: float) -> float:
        """How often guesses that were stated to be so sure were right."""
        at = min(BINS - 1, int(BINS * stated))
        return (self.right[at] + TRUST * stated) / (self.tried[at] + TRUST)                 # (SP.4)

    def observe(self, draft: Draft, length: int, drawn: Sequence[int], seconds: float) -> None:
        """A call verified `length` tokens of the draft and took `seconds`; `drawn` came of it."""
        for guess, chance, token in zip(draft.tokens, draft.chances, drawn):
            at = min(BINS - 1, int(BINS * chance))
            self.right[at] = KEEP * self.right[at] + (guess == token)
            self.tried[at] = KEEP * self.tried[at] + 1
            if guess != token:
                break
        n = length + 1
        self.counts.add(length, len(drawn))
        self.times[n].append(max(seconds, TICK))
        self.when[n] = self.counts.calls
        if self.counts.calls % FRESH == 0 or len(self.times[n]) < LATEST:
            self._look()

    def _look(self) -> None:
        """Seconds of a call of n tokens: the median of its latest. The first, which makes buffers, is not
        believed alone. Of a length not made lately: those of the next shorter one, for trying is how they
        become known."""
        for n in LENGTHS:
            times = sorted(self.times[n])
            if len(times) > 1 and self.counts.calls - self.when[n] < OLD:
                self.costs[n] = times[(len(times) - 1) // 2]
            else:
                self.costs[n] = self.costs[n - 1]


def speculate(window: Window, prompt: Sequence[int], tokens: int, drafter: Drafter, how: Sampling = GREEDY,
              stop: Collection[int] = (), logprobs: bool = False, pace: Pace | None = None,
              counts: Counts | None = None, clock: Callable[[], float] = time.perf_counter
              ) -> Iterator[Step]:
    """The steps of decode.decode, the same ones, in fewer calls of the window's model.

    Raises CheckError as decode does, at once. `pace`: what was learnt, to go on from and to be read.
    `counts`: of this text, brought up to date.

    >>> from bitnet_ref.chain.draft import Lookup
    >>> from bitnet_ref.generate.example import speaker
    >>> counts, window = Counts(), Window(speaker().transformer)
    >>> steps = speculate(window, [0, 65, 65, 65], 9, Lookup(), pace=Pace(fixed=3), counts=counts)
    >>> len([step.token for step in steps]), counts.calls      # of the model, after the first token
    (9, 4)
    """
    check_tokens(tokens)
    text = [int(i) for i in prompt]
    window.check(text)
    return _speculated(window, text, tokens, drafter, how, stop, logprobs, pace or Pace(),
                       Counts() if counts is None else counts, clock)


def _speculated(window: Window, text: list[int], tokens: int, drafter: Drafter, how: Sampling,
                stop: Collection[int], logprobs: bool, pace: Pace, counts: Counts,
                clock: Callable[[], float]) -> Iterator[Step]:
    left, context, vocab = tokens, window.model.cfg.context, window.model.cfg.vocab_size
    rows = [window.read(text)] if left > 0 else []
    while left > 0:
        if left < tokens:
            room = min(context - len(window.ids), left) - 1
            draft = _possible(drafter(text), vocab) if room > 0 else NOTHING
            length, start = pace.length(draft, room), clock()
            rows, length = _verified(window, text[-1], draft.tokens[:length])
            taken = clock() - start
            new = _drawn(window, rows, draft.tokens[:length], how, len(text), stop)
            pace.observe(draft, length, new, taken)
            counts.add(length, len(new))
        else:
            new = _drawn(window, rows, (), how, len(text), stop)
        for token, logits in zip(new, rows):
            text.append(token)
            yield Step(token, logprob(logits, token) if logprobs else None)
        left -= len(new)
        if new[-1] in stop:
            return


def _verified(window: Window, last: int, guess: Sequence[int]) -> tuple[list[np.ndarray], int]:
    """The logits (V,) after `last` and after each token of a guess, and the guess's length.

    A guess that meets damaged weights may spoil the rows before its own: 0 * NaN in a tile of attention is
    NaN. Then there is no guess, and an error comes where it comes without one.
    """
    if guess:
        before = len(window.ids), window.logits
        rows = window.push_all([last, *guess])
        if np.isfinite(np.max(rows, axis=-1)).all():
            return list(rows), len(guess)
        window.back(*before)
    return [window.push(last)], 0


def _possible(draft: Draft, vocab: int) -> Draft:
    """What of a draft can be tokens of the model at all."""
    n = next((n for n, token in enumerate(draft.tokens) if not 0 <= token < vocab), len(draft.tokens))
    return draft if n == len(draft.tokens) else Draft(draft.tokens[:n], draft.chances[:n])


def _drawn(window: Window, rows: Sequence[np.ndarray], guess: Sequence[int], how: Sampling, position: int,
           stop: Collection[int]) -> list[int]:
    """The text's next tokens, from logits (V,) after the last one and after each of `guess`: as long as those
    are drawn, and one more. The window goes back to where the last of them was drawn."""
    ids, tokens = window.ids, list[int]()
    for n, logits in enumerate(rows):
        end = len(ids) - len(guess) + n
        seen = ids if how.repetition_penalty == 1 or n == len(guess) else ids[:end]
        tokens.append(drawn(window, logits, how, position + n, seen))
        if n == len(guess) or tokens[-1] != guess[n] or tokens[-1] in stop:
            if n < len(guess):
                window.back(end, logits)
            break
    return tokens
