"""Loss over a token stream, every token counted once, and the three figures made of it.

Bits per byte compares models with different tokenizers; perplexity does not, and above the vocabulary size it
says only that the model is worse than guessing, so it is refused there.
Port note: the stream starts with the end-of-text token, so every byte of text is predicted; the loss of the
end-of-text tokens counts, their bytes (none) do not: the figure can only be too high, never too low.
Read after: evaluate/provenance. Read next: evaluate/likelihood.
"""

import math
from typing import NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.data.batches import sequential
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import require_finite


class Score(NamedTuple):
    """A sum of losses and what it was summed over. `vocab_size` is the bound of a meaningful perplexity."""

    nats: float
    tokens: int
    bytes: int
    vocab_size: int

    @property
    def loss(self) -> float:
        """Nats per token."""
        return self.nats / self.tokens

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8 text."""
        return self.nats / math.log(2) / self.bytes                             # (PP.1)

    @property
    def perplexity(self) -> float | None:
        """exp(loss), or None where it would exceed the vocabulary size: the model is worse than guessing."""
        guessing = math.log(self.vocab_size)
        return math.exp(self.loss) if self.loss <= guessing else None           # (PP.2)


def score(model: Transformer, tokens: np.ndarray, token_bytes: np.ndarray, windows: int | None = None,
          batch: int = 8, what: str = "the loss of the text") -> Score:
    """Score of `tokens` int (n,), which starts with the end-of-text token, in windows of the model's context.

    `token_bytes` int (V,): bytes of text that each token stands for. `windows`: at most this many, evenly
    spaced. Raises NonFiniteError, naming `what` and the first bad tensor, where the loss is not finite.

    >>> from bitnet_ref.generate.example import speaker
    >>> model = speaker()
    >>> found = score(model.transformer, np.array([0, 65, 65, 66]), model.tokenizer.token_bytes)
    >>> found.tokens, found.bytes
    (3, 3)
    """
    check(len(tokens) > 1, "there must be at least two tokens to score", len(tokens), "give more text")
    nats, count, size = 0.0, 0, 0
    for ids, targets in sequential(tokens, model.cfg.context, batch, windows):
        _, loss = model(ids, targets)
        assert loss is not None
        require_finite(loss, what, model, ids)
        nats += float(loss) * targets.size
        count += targets.size
        size += int(token_bytes[targets].sum())
    return Score(nats, count, size, model.cfg.vocab_size)
