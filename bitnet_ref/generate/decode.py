"""Token by token: sample from the window's logits, hand the token out, push it into the window.

Each token is there before the next is computed. What the text does when it outgrows the context is the
window's rule, not this loop's.
Read after: generate/window. Read next: generate/speculative.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.generate.sampling import GREEDY, Sampling, logprob, sample, whole_number
from bitnet_ref.generate.window import Window
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import require_finite


class Step(NamedTuple):
    """A token, and ln of the probability that the model itself gave it (None unless asked for)."""

    token: int
    logprob: float | None


def decode(model: Transformer, prompt: Sequence[int], tokens: int, how: Sampling = GREEDY,
           stop: Collection[int] = (), logprobs: bool = False,
           window: Window | None = None) -> Iterator[Step]:
    """Up to `tokens` steps that continue the ids of `prompt` (T,); ends early after an id of `stop`.

    `window`: of this model, to go on from what it has read already. Raises CheckError, at once: an empty
    prompt, ids outside the vocabulary, a negative number of tokens.

    >>> from bitnet_ref.generate.example import speaker
    >>> [step.token for step in decode(speaker().transformer, prompt=[0, 65], tokens=3)]
    [65, 65, 65]
    """
    check_tokens(tokens)
    ids = [int(i) for i in prompt]
    window = window or Window(model)
    window.check(ids)
    return _decoded(window, ids, tokens, how, stop, logprobs)


def check_tokens(tokens: int) -> None:
    """Raise CheckError for less than none, and for what is no integer.

    >>> check_tokens(-1)
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: tokens must not be negative; got -1; use 0 or more
    """
    whole_number("tokens", tokens)
    check(tokens >= 0, "tokens must not be negative", tokens, "use 0 or more")


def _decoded(window: Window, prompt: list[int], tokens: int, how: Sampling, stop: Collection[int],
             logprobs: bool) -> Iterator[Step]:
    token = prompt[-1]
    for n in range(tokens):
        logits = window.push(token) if n else window.read(prompt)
        token = drawn(window, logits, how, len(prompt) + n, window.ids)
        yield Step(token, logprob(logits, token) if logprobs else None)
        if token in stop:
            return


def drawn(window: Window, logits: np.ndarray, how: Sampling, position: int, seen: Sequence[int]) -> int:
    """The token at `position` of a text, from logits (V,) of the window's model after the ids `seen`.

    Raises NonFiniteError that names what is not finite first.

    >>> from bitnet_ref.generate.example import speaker
    >>> window = Window(speaker().transformer)
    >>> drawn(window, window.read([0, 65]), GREEDY, position=2, seen=window.ids)
    65
    """
    largest = float(np.max(logits))                        # NaN if one is; a logit of -inf may be
    if not np.isfinite(largest):
        require_finite(largest, f"the largest logit at token {position}", window.model,
                       np.array([window.ids]))
    return sample(logits, how, position, seen)
