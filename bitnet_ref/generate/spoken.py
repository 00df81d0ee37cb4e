"""The chains of what a model itself says: it continues texts of its corpus, and what it repeats is mined.

Guesses have to meet the model's words, not people's. A small model says less than it has read, and says it
again, so 256 chains of its own greedy text meet far more of it than 256 of its corpus (docs/speculative.md).
Read after: generate/together. Read next: generate/language_model.
"""

import numpy as np

from bitnet_ref.chain.mine import mine
from bitnet_ref.chain.table import Table
from bitnet_ref.data.dataset import Dataset
from bitnet_ref.model import Transformer

SPOKEN = "spoken.json"           # of a run, beside the chains of its corpus
TEXTS, AT_ONCE = 256, 32         # that the model continues; in one call
PROMPT, FOLLOWS = 64, 64         # tokens of a prompt, and of what follows: before most loops begin


def spoken(model: Transformer, data: Dataset) -> Table:
    """The table of what `model` says, greedily, after places all over the training side of `data`.

    >>> from types import SimpleNamespace as Of
    >>> from bitnet_ref.generate.example import speaker
    >>> model, header = speaker(), Of(eos=0, vocab_size=257)
    >>> data = Of(tokenizer=model.tokenizer, train=Of(header=header, tokens=np.arange(1, 65)))
    >>> spoken(model.transformer, data).corpus
    'what the model says'
    """
    header, tokens = data.train.header, data.train.tokens
    given = max(1, min(PROMPT, model.cfg.context // 2, len(tokens)))
    follows = min(FOLLOWS, model.cfg.context - given)
    starts = np.linspace(0, len(tokens) - given, min(TEXTS, len(tokens) - given + 1)).astype(np.int64)
    prompts = np.asarray(tokens[starts[:, None] + np.arange(given)], np.int64)
    texts = [continued(model, prompts[a:a + AT_ONCE], follows) for a in range(0, len(prompts), AT_ONCE)]
    ends = np.full((len(prompts), 1), header.eos)          # no chain from one text into the next
    stream = np.concatenate([np.concatenate(texts), ends], axis=1).reshape(-1)
    return Table(data.tokenizer.vocabulary, header.vocab_size, "what the model says", len(stream),
                 mine(stream, header.eos))


def continued(model: Transformer, prompts: np.ndarray, tokens: int) -> np.ndarray:
    """prompts int64 (B, T)  ->  what follows each, greedily, int64 (B, tokens).

    >>> from bitnet_ref.generate.example import speaker
    >>> continued(speaker().transformer, np.array([[0, 65], [0, 66]]), 3).tolist()
    [[65, 65, 65], [66, 66, 66]]
    """
    found = np.empty((len(prompts), tokens), np.int64)
    logits, state = model.prefill(prompts)
    for n in range(tokens):
        found[:, n] = np.argmax(logits, axis=-1)
        if n + 1 < tokens:
            logits, state = model.extend(found[:, n:n + 1], state, every=False)
    return found
