"""Several texts at once: one call of the model for a token of each, texts of any lengths side by side.

The weights, which a token must all read, are read once for all of them. A text is the same as alone: its draw
depends on its own position, its logits on its own row, its window follows its own rule.
Read after: generate/continuation. Read next: generate/spoken.
"""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.generate.decode import check_tokens
from bitnet_ref.generate.sampling import Sampling, sample
from bitnet_ref.generate.text import TextStream
from bitnet_ref.generate.window import Window, fitted
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import require_finite


def together(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[list[int]], tokens: int,
             how: Sampling, ends: Collection[int] = (), stop: Sequence[str] = ()) -> list[str]:
    """The text that continues each list of ids, as Continuation has it alone. Raises CheckError as decode.

    >>> from bitnet_ref.generate.example import speaker
    >>> model, how = speaker(), Sampling(seed=3)
    >>> both = together(model.transformer, model.tokenizer, [[0, 65], [0, 66, 67]], 8, how)
    >>> both[1] == together(model.transformer, model.tokenizer, [[0, 66, 67]], 8, how)[0]    # as alone
    True
    """
    check_tokens(tokens)
    for ids in prompts:
        Window(model).check(ids)
    texts = [TextStream(tokenizer, stop) for _ in prompts]
    shown: list[list[str]] = [[] for _ in prompts]
    if not prompts or tokens == 0:
        return ["" for _ in prompts]
    windows = [fitted(list(ids), model.cfg.context) for ids in prompts]
    rows, lengths = rows_of(windows)
    logits, state = model.prefill(rows, lengths)
    going = set(range(len(prompts)))
    for n in range(tokens):
        for b in sorted(going):
            largest = float(np.max(logits[b]))             # NaN if one is; a logit of -inf may be
            require_finite(largest, f"the largest logit of text {b}", model, np.array([windows[b]]))
            token = sample(logits[b], how, len(prompts[b]) + n, windows[b])
            if token not in ends:
                shown[b].append(texts[b].push(token))
                windows[b].append(token)
            if token in ends or texts[b].stopped is not None:
                going.remove(b)
        if not going or n + 1 == tokens:
            break
        logits, state = _step(model, state, windows, going)
    return ["".join([*parts, "" if text.stopped is not None else text.finish()])
            for parts, text in zip(shown, texts)]


def _step(model: Transformer, state: Any, windows: list[list[int]], going: set[int]) -> Any:
    """Read the last token of each text that goes on; one that is full is shortened and read anew."""
    context, back = model.cfg.context, list(state.lengths)
    for b in going:
        if len(windows[b]) > context:
            windows[b] = fitted(windows[b], context - context // 2)
            back[b] = 1 if len(windows[b]) > 1 else 0      # its first token stays where it is
    if 0 in back:                                          # a context of one token has no past
        rows, lengths = rows_of(windows)
        return model.prefill(rows, lengths)
    new = [w[back[b]:] if b in going else [] for b, w in enumerate(windows)]
    rows, lengths = rows_of(new)
    return model.extend(rows, state.back(back), lengths, every=False)


def rows_of(texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """int (B, T) with zeros behind the shorter ones, and their lengths (B,).

    >>> rows_of([[5, 6, 7], [8]])
    (array([[5, 6, 7],
           [8, 0, 0]]), array([3, 1]))
    """
    lengths = np.array([len(t) for t in texts])
    rows = np.zeros((len(texts), lengths.max()), np.int64)
    for row, text in zip(rows, texts):
        row[:len(text)] = text
    return rows, lengths
