"""Prefill the prompt, then one decode step per token, streaming each as it comes.

When the text outgrows the model's context, the oldest half is dropped and the rest is prefilled again: a rule
that a cached decoder can follow at the same cost, and that keeps at least half a context of history.
Read after: generate/sampling. Read next: generate/language_model.
"""

from collections.abc import Iterator

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.generate.sampling import sample
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import decode_step, prefill, require_finite


def decode(model: Transformer, prompt: np.ndarray, tokens: int, temperature: float = 0.0,
           top_k: int | None = None, seed: int = 0, stop: int | None = None) -> Iterator[int]:
    """Up to `tokens` ids that continue prompt int (T,); ends early after `stop`.

    Raises CheckError for an empty prompt, ids outside the vocabulary, or options out of range.
    """
    check(len(prompt) > 0, "a prompt must have at least one token", len(prompt), "give some text")
    check(tokens >= 0 and temperature >= 0 and (top_k is None or top_k > 0) and 0 <= seed < 1 << 64,
          "tokens, temperature and seed must not be negative, seed below 2^64, top_k positive",
          f"{tokens}, {temperature}, {seed} and {top_k}", "correct the options")
    window = list(np.asarray(prompt).tolist())
    keep = model.cfg.context
    check(max(window) < model.cfg.vocab_size and min(window) >= 0,
          f"ids must lie in 0..{model.cfg.vocab_size - 1}",
          f"{min(window)}..{max(window)}", "use the model's own tokenizer")
    window = window[-keep:]
    logits, state = prefill(model.plan, model.ready, np.array([window]))
    for n in range(tokens):
        require_finite(float(np.max(np.abs(logits))), f"the largest logit at token {len(prompt) + n}", model,
                       np.array([window]))
        token = sample(logits[0], temperature, top_k, seed, len(prompt) + n)
        yield token
        if token == stop or n + 1 == tokens:
            return
        if len(window) < keep:
            window.append(token)
            logits, state = decode_step(model.plan, model.ready, np.array([token]), state)
        else:
            window = [*window[keep // 2 + 1:], token]
            logits, state = prefill(model.plan, model.ready, np.array([window]))
