"""The questions of notebook 03: what reads what in a block, and what straight-through means.

Read after: walk/layers_by_hand. Read next: walk/train_nano.
"""

import numpy as np

from bitnet_ref.config import PRESETS
from bitnet_ref.model.layout import FREE, layout
from bitnet_ref.walk.puzzle import Question, choice, number, works_like

BIG = PRESETS["2b4t"].model


def _gains() -> int:
    """How many gains a block of layout "sub" has."""
    places = [entry for place in layout(BIG) for entry in place]
    return sum(entry.norm not in (None, FREE) for entry in places)


def _may_read(T: int, S: int) -> np.ndarray:
    return np.arange(S) <= np.arange(S - T, S)[:, None]


def _cache(n_layers: int, n_kv_heads: int, head_dim: int) -> int:
    return 2 * n_layers * n_kv_heads * head_dim * 2


QUESTIONS = [
    Question("How many RMSNorm gains does a block of layout \"sub\" have?", number(_gains(), 0),
             "four places where projections read an input; count those with a name", _gains()),
    Question("20 query heads share 5 key/value heads. Which of the 5 (from 0) does query head 11 read?",
             number(11 // (BIG.n_heads // BIG.n_kv_heads), 0),
             "heads share in runs, 0 0 0 0 1 1 1 1 ...: divide by R = H / KV, do not take the remainder", 2),
    Question("Write `may_read(T, S)`: bool (T, S), whether query i of the last T may read key j of S.",
             works_like(_may_read, (4, 4), (2, 5), (1, 3)),
             "query i stands at position S - T + i and reads keys at or before it",
             lambda T, S: np.tril(np.ones((T, S), bool), S - T)),
    Question("Write `cache(n_layers, n_kv_heads, head_dim)`: bytes of keys and values that a token adds, in "
             "float16.",
             works_like(_cache, (BIG.n_layers, BIG.n_kv_heads, BIG.head_dim), (4, 8, 32)),
             "a key and a value, in each layer, for each key/value head, two bytes a number", _cache),
    Question("A query at position 7 and a key at 3 have some score. The same query stands at 104: at which "
             "position must the same key be, for the same score?",
             number(100, 0), "RoPE turns both; the score knows their distance alone", 100),
    Question("The residual r = Q(x) - x is frozen. What is the derivative of x + r by x?", number(1, 0),
             "r is a constant now", 1),
    Question("Which gradient does the straight-through estimator leave out: \"of the input\", \"of the "
             "scale\" or \"of the gain\"?",
             choice("of the scale", {"of the input": "dx goes through, by the identity",
                                     "of the gain": "dg is summed in the norm's backward, like any other"}),
             "mean |w| depends on every weight; does backward know?", "of the scale"),
]
