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
from bitnet_ref.model.transformer import require_finite


def decode(model: Transformer, prompt: np.ndarray, tokens: int, temperature: float = 0.0,
           top_k: int | None = None, seed: int = 0, stop: int | None = None) -> Iterator[int]:
    """Up to `tokens` ids that continue prompt int (T,); ends early after `stop`.

    Raises CheckError, at once: an empty prompt, ids outside the vocabulary, options out of range.
    """
    check_options(tokens, temperature, top_k, seed)
    check(len(prompt) > 0, "a prompt must have at least one token", len(prompt), "give some text")
    window = list(np.asarray(prompt).tolist())
    check(max(window) < model.cfg.vocab_size and min(window) >= 0,
          f"ids must lie in 0..{model.cfg.vocab_size - 1}",
          f"{min(window)}..{max(window)}", "use the model's own tokenizer")
    return _decoded(model, window, tokens, temperature, top_k, seed, stop)


def check_options(tokens: int, temperature: float, top_k: int | None, seed: int) -> None:
    """Raise CheckError naming the option that is out of range."""
    check(tokens >= 0, "tokens must not be negative", tokens, "use 0 or more")
    check(temperature >= 0, "temperature must not be negative", temperature, "use 0 (greedy) or more")
    check(top_k is None or top_k > 0, "top_k must be greater than 0", top_k, "use 1 (greedy) or more")
    check(0 <= seed < 1 << 64, "seed must lie in [0, 2^64)", seed, "choose another")


def _decoded(model: Transformer, prompt: list[int], tokens: int, temperature: float, top_k: int | None,
             seed: int, stop: int | None) -> Iterator[int]:
    keep = model.cfg.context
    window = prompt[-keep:]
    logits, state = model.prefill(np.array([window]))
    for n in range(tokens):
        require_finite(float(np.max(np.abs(logits))), f"the largest logit at token {len(prompt) + n}", model,
                       np.array([window]))
        token = sample(logits[0], temperature, top_k, seed, len(prompt) + n)
        yield token
        if token == stop or n + 1 == tokens:
            return
        if len(window) < keep:
            window.append(token)
            logits, state = model.decode_step(np.array([token]), state)
        else:
            window = [*window[keep // 2 + 1:], token]
            logits, state = model.prefill(np.array([window]))
