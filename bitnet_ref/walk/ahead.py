"""What becomes of guesses, call by call, and what the formulas say that they bring: for notebook 08.

`guessed` makes a text as generate/speculative does and keeps a diary of its calls; `chances` counts in it how
often the guess at each place was right, and `expected` makes tokens a call of that. A place where nothing was
guessed counts as wrong: the call makes as many tokens.
Read after: walk/packing. Read next: walk/generate_and_chain.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bitnet_ref.chain.draft import REACH, Draft, Drafter
from bitnet_ref.chain.show import visible
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.generate.sampling import GREEDY, Sampling
from bitnet_ref.generate.speculative import Pace, speculate
from bitnet_ref.generate.window import Window
from bitnet_ref.model import Transformer


class Call(NamedTuple):
    """A call of the model: what was guessed, and the tokens that came of it. The last of them is its own."""

    guess: tuple[int, ...]
    made: tuple[int, ...]


class Diary(Pace):
    """Guesses of `fixed` tokens, or of as many as there are; every call is noted."""

    def __init__(self, fixed: int) -> None:
        super().__init__(fixed)
        self.calls: list[Call] = []

    def observe(self, draft: Draft, length: int, drawn: Sequence[int], seconds: float) -> None:
        """A call verified `length` tokens of the draft; `drawn` came of it."""
        super().observe(draft, length, drawn, seconds)
        self.calls.append(Call(draft.tokens[:length], tuple(drawn)))


def guessed(model: Transformer, prompt: Sequence[int], tokens: int, drafter: Drafter, k: int = REACH,
            how: Sampling = GREEDY) -> tuple[list[int], list[Call]]:
    """The ids that follow `prompt`, and the calls that made all of them but the first.

    >>> from bitnet_ref import kernels
    >>> from bitnet_ref.chain.draft import oracle
    >>> from bitnet_ref.config import ModelConfig
    >>> from bitnet_ref.model.params import init_params
    >>> cfg = ModelConfig(vocab_size=8, d_model=8, d_ff=8, n_heads=2, n_kv_heads=2, n_layers=1, context=16)
    >>> model = Transformer(cfg, init_params(cfg, 0), kernels.load("numpy"))
    >>> text, _ = guessed(model, [1], 7, oracle([]))
    >>> again, calls = guessed(model, [1], 7, oracle([1, *text]), k=2)
    >>> again == text, [len(call.made) for call in calls]
    (True, [3, 3])
    """
    diary = Diary(k)
    steps = speculate(Window(model), prompt, tokens, drafter, how, pace=diary)
    return [step.token for step in steps], diary.calls


def chances(calls: Sequence[Call], k: int = REACH) -> np.ndarray:
    """(k,): of the calls whose guesses before place i were right, the share in which that at i was too.

    >>> chances([Call((3, 4), (3, 4, 9)), Call((3, 4), (3, 5)), Call((), (7,))], k=3)
    array([0.66666667, 0.5       , 0.        ])
    """
    right = np.array([len(call.made) - 1 for call in calls])
    there = np.array([np.sum(right >= i) for i in range(k + 1)])
    return there[1:] / np.maximum(1, there[:-1])


def expected(a: np.ndarray) -> np.ndarray:
    """E(0), E(1), ... of (SP.2): tokens a call makes, from the chances a (k,) of each place.   ->  (k + 1,)

    >>> expected(np.array([0.5, 0.5, 0.0]))
    array([1.  , 1.5 , 1.75, 1.75])
    """
    s = np.cumprod(a)
    return 1 + np.concatenate([[0.0], np.cumsum(s)])


def per_call(calls: Sequence[Call]) -> float:
    """Tokens that a call made, counted.

    >>> per_call([Call((3, 4), (3, 4, 9)), Call((), (7,))])
    2.0
    """
    return sum(len(call.made) for call in calls) / max(1, len(calls))


def acceptance(calls: Sequence[Call]) -> float:
    """The share of all guessed tokens that were right; NaN where nobody guessed.

    >>> acceptance([Call((3, 4), (3, 9)), Call((), (7,))])
    0.5
    """
    said = sum(len(call.guess) for call in calls)
    return (sum(len(call.made) for call in calls) - len(calls)) / said if said else float("nan")


def marked(calls: Sequence[Call], tokenizer: Tokenizer) -> list[list[tuple[str, bool]]]:
    """For each call, its tokens as they are shown, and whether each had been guessed.

    >>> from bitnet_ref.data.tokenizer import train_bpe
    >>> letters = train_bpe(["ab " * 9], 257)
    >>> a, b = letters.encode("a").tolist() + letters.encode("b").tolist()
    >>> marked([Call((a, b), (a, a))], letters)
    [[('a', True), ('a', False)]]
    """
    return [[(visible(tokenizer.piece(i)), n < len(call.made) - 1) for n, i in enumerate(call.made)]
            for call in calls]
