"""The questions of notebook 01: what a trit is, and what making one does to a weight.

Read after: walk/twin. Read next: walk/layers_by_hand.
"""

import math

import numpy as np

from bitnet_ref.quant import absmean_ternary
from bitnet_ref.walk.puzzle import Question, choice, number, works_like

BELL = np.random.default_rng(1).normal(size=(7, 5))
TIES = np.array([[1.0, 0.5, -0.5, 1.5], [-1.5, 2.0, 0.25, -0.75]])     # mean |w| is 1: two lie on a threshold


def _trits(w: np.ndarray) -> np.ndarray:
    return absmean_ternary(w)[0]


def _again(s: float, rho: float) -> float:
    """The scale that the library gives a matrix of trits times s, a share rho of which is not 0."""
    w_q = np.zeros(1000)
    w_q[:round(1000 * rho)] = 1
    return float(absmean_ternary(w_q * s)[1])


QUESTIONS = [
    Question("How many bits does one trit hold, when all three values are equally likely?",
             number(math.log2(3), 5e-3),
             "n equally likely values hold log2(n) bits", math.log2(3)),
    Question("Write `trits(w)`: the int8 codes of a float matrix, by (QU.1) to (QU.3); leave the floor out.",
             works_like(_trits, (np.array([[1.0, -3.0, 0.25]]),), (BELL,), (TIES,)),
             "times 1 / mean |w|, np.rint, np.clip to -1 and 1; a tie at half the scale goes to 0",
             lambda w: np.clip(np.rint(w * (1 / np.mean(np.abs(w)))), -1, 1).astype(np.int8)),
    Question("What share of normally distributed weights becomes 0?",
             number(math.erf(1 / (2 * math.sqrt(math.pi))), 5e-3),
             "mean |w| is sigma * sqrt(2/pi), zeros lie within half of that; math.erf(a / sqrt(2)) is the "
             "share within a sigma", math.erf(1 / (2 * math.sqrt(math.pi)))),
    Question("A latent weight starts at 1, the scale stays 1, each step takes 1/64 away: after how many "
             "steps does its trit change?", number(32, 0),
             "at exactly half the scale the tie goes to the even code, 0: count until |w| <= 1/2", 32),
    Question("Weight decay multiplies a whole latent matrix by 0.99. What share of its trits changes?",
             number(0, 0), "the scale is a mean of the same weights: what happens to it?", 0),
    Question("Write `again(s, rho)`: the scale found when a matrix of -s, 0 and s, a share rho of it not "
             "0, is quantised once more.",
             works_like(_again, (1.0, 0.5), (0.02, 0.7)),
             "the scale is the mean of |w|, and zeros count in a mean", lambda s, rho: s * rho),
    Question("Why must the weights that the optimiser moves stay float: \"range\", \"steps\" or \"sign\"?",
             choice("steps", {"range": "A trit and its scale reach as far as the latent weights do",
                              "sign": "A trit has a sign"}),
             "compare the size of one update with the distance between two trits", "steps"),
]
