"""The questions of notebook 08: what a cache saves, which token is drawn, what a guess is worth.

Read after: walk/ahead. Read next: walk/exploding.
"""

import math

import numpy as np

from bitnet_ref.generate.sampling import Sampling, candidates
from bitnet_ref.walk.ahead import expected
from bitnet_ref.walk.puzzle import Question, choice, number, works_like


def _rows(prompt: int, tokens: int) -> tuple[int, int]:
    """A window reads the prompt, then pushes every token but the last."""
    return prompt + tokens - 1, sum(prompt + n for n in range(tokens))


def _kept(p: np.ndarray, top_p: float) -> int:
    return len(candidates(np.log(p), Sampling(1.0, None, top_p))[0])


def _expected(a: np.ndarray) -> float:
    return float(expected(np.asarray(a))[-1])


_two = candidates(np.array([1.0, 0.0]), Sampling(0.5, None))[1]

QUESTIONS = [
    Question("Write `rows(prompt, tokens)`: how many rows go through the model to read a prompt and make "
             "so many tokens, (with a cache, without).",
             works_like(_rows, (10, 1), (32, 96), (1, 5)),
             "the prompt gives the first token, and the last one made is not read; without a cache the "
             "whole text so far goes through for each",
             lambda p, n: (p + n - 1, n * p + n * (n - 1) // 2)),
    Question("Two logits differ by 1. At temperature 0.5, how many times as likely is the one as the other?",
             number(float(_two[0] / _two[1]), 1e-2),
             "logits are divided by the temperature, and probabilities are as their exponentials",
             math.exp(2)),
    Question("Write `kept(p, top_p)`: how many tokens top-p keeps of probabilities p (V,), in any order.",
             works_like(_kept, (np.array([0.1, 0.5, 0.25, 0.15]), 0.8),
                        (np.array([0.1, 0.5, 0.25, 0.15]), 0.4), (np.array([0.3, 0.3, 0.4]), 0.95)),
             "from the likeliest on, a token stays if what is before it does not reach top_p",
             lambda p, top_p: 1 + int(np.sum(np.cumsum(np.sort(p)[::-1])[:-1] < top_p))),
    Question("What else does the random number at a position depend on: \"seed and number of the text\", "
             "\"draws before it\" or \"the prompt\"?",
             choice("seed and number of the text",
                    {"draws before it": "A text that goes on in a second call must go on as in one",
                     "the prompt": "The numbers are drawn in the order of positions, whatever stands there"}),
             "what are the arguments of `uniform`?", "seed and number of the text"),
    Question("A drafter is always wrong. Compared with plain decoding the text is: \"the same\", \"worse\" "
             "or \"slower and worse\"?",
             choice("the same", {"worse": "A wrong guess is not kept: what the model drew stands there",
                                 "slower and worse": "It comes later; but a wrong guess is not kept"}),
             "what happens at the first token that differs?", "the same"),
    Question("Write `made(a)`: tokens that a call makes on average, if guess i is right with chance a[i] "
             "where all before it are.",
             works_like(_expected, (np.array([0.5]),), (np.array([0.9, 0.8, 0.1]),), (np.zeros(0),)),
             "the first i are all right with the product of their chances (SP.1); sum those, and the call's "
             "own token (SP.2)", lambda a: 1 + float(np.sum(np.cumprod(a)))),
    Question("A guess of one token is right in 60 % of the calls; a call of two tokens takes 1.3 times as "
             "long as of one. How many times as fast does text come?",
             number(_expected(np.array([0.6])) / 1.3, 5e-3),
             "(SP.3): tokens that a call makes, over what it costs", 1.6 / 1.3),
]
