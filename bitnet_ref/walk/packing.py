"""The questions of notebook 05: trits as bytes.

Read after: walk/train_nano. Read next: walk/ahead.
"""

import math

import numpy as np

from bitnet_ref.config import PRESETS
from bitnet_ref.model.params import param_specs
from bitnet_ref.pack.b3 import unpack_b3
from bitnet_ref.pack.i2 import pack_i2
from bitnet_ref.pack.rans import entropy
from bitnet_ref.walk.puzzle import Question, choice, number, works_like

TRITS = sum(math.prod(s.shape) for s in param_specs(PRESETS["2b4t"].model) if s.ternary)


def _byte(t: np.ndarray) -> int:
    return int(pack_i2(t[None])[0, 0])


def _five(byte: int) -> np.ndarray:
    return unpack_b3(np.array([[byte]], np.uint8), 5)[0]


def _bits(minus: float, zero: float, plus: float) -> float:
    return -sum(p * math.log2(p) for p in (minus, zero, plus) if p)


QUESTIONS = [
    Question("Write `byte(t)`: the i2 byte of an int8 array of four trits, the first in the low bits.",
             works_like(_byte, (np.array([-1, 0, 1, 1], np.int8),), (np.array([1, 1, 0, -1], np.int8),),
                        (np.zeros(4, np.int8),)),
             "each trit is stored as its value + 1, in two bits: four digits in base 4; shift in wider "
             "integers, an int8 wraps at 128",
             lambda t: sum((int(t[j]) + 1) << 2 * j for j in range(4))),
    Question("Write `five(byte)`: the five trits of a b3 byte, the first the least significant digit.",
             works_like(_five, (0,), (242,), (121,), (1,), (100,)),
             "divide by 3 again and again: the remainders are the digits, less 1 the trits",
             lambda byte: [byte // 3**j % 3 - 1 for j in range(5)]),
    Question("How many trits fit into 64 bits, as digits of one number?", number(int(64 / math.log2(3)), 0),
             "the largest n with 3^n at most 2^64", 40),
    Question("Write `bits(minus, zero, plus)`: bits a trit that an ideal code spends on these shares.",
             works_like(_bits, (0.3, 0.4, 0.3), (0.25, 0.5, 0.25), (0.5, 0.0, 0.5)),
             "(QU.8): a trit of share p costs log2(1/p), and comes up with probability p; what does not "
             "occur costs nothing", lambda *shares: entropy(tuple(1000 * p for p in shares))),
    Question("How many megabytes (10^6 bytes) are the trits of the published 2B4T at two bits each?",
             number(TRITS / 4 / 1e6, 1), "four trits a byte; `param_specs` knows every shape, and which are "
             "ternary", TRITS / 4 / 1e6),
    Question("Bytes of one layout are read in another with the same codes. What do you get: \"an error\", "
             "\"the same histogram\" or \"zeros\"?",
             choice("the same histogram", {"an error": "Every code is valid in both",
                                           "zeros": "The codes are there, each in some place"}),
             "the layouts differ in where a trit is, not in what it is", "the same histogram"),
]
