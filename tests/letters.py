"""A corpus of random pieces, in which little but a neighbour can be learnt: for tests of small models."""

import numpy as np

from bitnet_ref.data.prepare import prepare
from bitnet_ref.walk import twin


def corpus(folder, pieces):
    """A dataset of 300 documents of 200 pieces each, in the vocabulary of the notebooks' models."""
    rng = np.random.default_rng(0)
    file = folder / "text.txt"
    file.write_text("\n\n".join("".join(rng.choice(pieces, 200)) for _ in range(300)), encoding="utf-8")
    return prepare(str(file), vocab_size=twin.SMALL.vocab_size, progress=False)
