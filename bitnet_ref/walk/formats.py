"""The questions of notebook 09: files, and how a file is misread.

Read after: walk/exploding. Read next: walk/evaluate.
"""

import numpy as np

from bitnet_ref.pack.rosetta import unpack_hf
from bitnet_ref.walk.exploding import SHARES
from bitnet_ref.walk.puzzle import Question, choice, number, works_like

BYTES = np.array([[0b10010001, 0b01000110], [0b00011000, 0b10100101]], np.uint8)


def _decoded(packed: np.ndarray) -> np.ndarray:
    return unpack_hf(packed, 4 * len(packed))


QUESTIONS = [
    Question("Write `decode(packed)`: the trits int8 (4n, K) of a matrix uint8 (n, K) as Hugging Face packs.",
             works_like(_decoded, (BYTES,), (BYTES[:1],)),
             "bits 2i and 2i+1 of byte (r, k) are row i * n + r: four blocks of rows, one under the other; "
             "less 1 for the trit, and cast to int8 before you subtract: a uint8 of 0 less 1 is 255",
             lambda packed: np.vstack([(packed >> 2 * i & 3).astype(np.int8) - 1 for i in range(4)])),
    Question("A file's `weight_scale` is 2.5, and its family stores the reciprocal. What multiplies the "
             "trits?", number(1 / 2.5, 1e-3),
             "a scale is what you multiply integers by; this one divides", 0.4),
    Question("Trits of shares 0.3, 0.4, 0.3 are read in a wrong order. What share is right by chance?",
             number(sum(p * p for p in SHARES), 5e-3),
             "two independent draws agree with the sum of the squared shares", 0.34),
    Question("Which check could have found the port's mistake: \"norms\", \"my own decoder in Python\" or "
             "\"tensors of others\"?",
             choice("tensors of others", {"norms": "The right model's norms grow as well",
                                          "my own decoder in Python": "It would share the mistake"}),
             "what must the check not share with the port?", "tensors of others"),
]
