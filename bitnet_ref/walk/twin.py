"""A small BitNet and its full-precision twin, trained by the reference while a reader waits.

Not a run: no folder, log or guard, and nothing compiled. The data, the batches, the update, the schedule
and the score are those of the trainer. `rounded` ternarises a trained twin after the fact, which the BitNet
papers say does not work; `by_pairs` is the least that a language model must beat.
Read after: walk/frozen. Read next: walk/ternary.
"""

import math
from dataclasses import replace

import numpy as np

from bitnet_ref import layers
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.data.dataset import Dataset
from bitnet_ref.data.feed import micro_batch, open_feed
from bitnet_ref.data.prepare import prepare
from bitnet_ref.evaluate.perplexity import score
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer
from bitnet_ref.model.params import Params, init_params, param_specs
from bitnet_ref.train.optim import Adam, clip_, update_
from bitnet_ref.train.schedule import lr_at, wd_at

SMALL = ModelConfig(vocab_size=320, d_model=48, d_ff=128, n_heads=4, n_kv_heads=2, n_layers=2, context=48)
RECIPE = TrainConfig(steps=1600, batch=4, lr=1e-2)


def text() -> Dataset:
    """The English documentation that every Python carries, in a vocabulary of little more than letters.
    >>> data = text()
    >>> data.tokenizer.vocab_size, data.report["corpus"]
    (320, 'python-docs')
    """
    return prepare("python-docs", vocab_size=SMALL.vocab_size, progress=False)


def trained(linear: str, data: Dataset, recipe: TrainConfig = RECIPE, seed: int = 0,
            shape: ModelConfig = SMALL) -> Transformer:
    """A model after `recipe.steps` updates. linear: "ternary", a BitNet, or "full", its twin.
    >>> from bitnet_ref.train.small import small_run
    >>> _, data = small_run()
    >>> model = trained("ternary", data, TrainConfig(steps=10, batch=2))
    >>> loss(model, data, windows=2) < guessing(data)
    True
    """
    cfg = replace(shape, linear=linear, vocab_size=data.tokenizer.vocab_size)
    ops, feed = load("numpy"), open_feed(data.train, data.report, cfg.context, seed)
    params = init_params(cfg, seed)
    model, grads = Transformer(cfg, params, ops), params.zeros_like()
    adam = Adam(params.zeros_like(), params.zeros_like())
    for step in range(recipe.steps):
        model.loss_and_grads([micro_batch(feed, step, recipe.batch)], grads)
        clip_(grads.flat, recipe.max_norm)
        update_(params, grads, adam, step + 1, lr_at(step, recipe), wd_at(step, recipe), recipe, ops)
        model.requantise()
    return model


def rounded(twin: Transformer) -> Transformer:
    """The same weights in ternary projections, and int8 activations: quantised after training.
    >>> from bitnet_ref.train.small import small_run
    >>> _, data = small_run(); twin = trained("full", data, TrainConfig(steps=1, batch=1))
    >>> rounded(twin).cfg.linear, np.array_equal(rounded(twin).params.flat, twin.params.flat)
    ('ternary', True)
    """
    assert twin.params is not None
    cfg = replace(twin.cfg, linear="ternary")
    return Transformer(cfg, Params(param_specs(cfg), flat=twin.params.flat.copy()), twin.plan.ops)


def loss(model: Transformer, data: Dataset, windows: int = 128) -> float:
    """Nats per token on the held-out text.
    >>> from bitnet_ref.train.small import small_run
    >>> _, data = small_run(); twin = trained("full", data, TrainConfig(steps=1, batch=1))
    >>> 0 < loss(twin, data, windows=2) < 2 * guessing(data)
    True
    """
    assert data.val is not None
    return score(model, data.val.tokens, data.tokenizer.token_bytes, windows).loss


def by_pairs(data: Dataset, tokens: np.ndarray | None = None) -> float:
    """The same loss of a table that counts which token follows which, with one added to each count.

    tokens (n,): another text to be scored, from its second token on.
    >>> from bitnet_ref.train.small import small_run
    >>> _, data = small_run()
    >>> 0 < by_pairs(data) < guessing(data)
    True
    """
    if tokens is None:
        assert data.val is not None
        tokens = data.val.tokens
    V = data.tokenizer.vocab_size
    count = np.ones((V, V))
    np.add.at(count, (data.train.tokens[:-1], data.train.tokens[1:]), 1)
    p = count / count.sum(axis=1, keepdims=True)
    return float(-np.mean(np.log(p[tokens[:-1], tokens[1:]])))


def guessing(data: Dataset) -> float:
    """The loss of a model that knows nothing: every token equally likely.
    >>> from bitnet_ref.train.small import small_run
    >>> _, data = small_run()
    >>> round(guessing(data), 3), data.tokenizer.vocab_size
    (5.635, 280)
    """
    return math.log(data.tokenizer.vocab_size)


def best_guesses(model: Transformer, data: Dataset, windows: int = 64) -> np.ndarray:
    """The most likely next token at every place of some windows of held-out text.   ->  int (B, T)
    >>> from bitnet_ref.train.small import small_run
    >>> _, data = small_run(); twin = trained("full", data, TrainConfig(steps=1, batch=1))
    >>> best_guesses(twin, data, windows=2).shape
    (2, 48)
    """
    assert data.val is not None
    rows = np.asarray(data.val.tokens[:windows * model.cfg.context], np.int64)
    return model(rows.reshape(windows, -1))[0].argmax(axis=-1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two arrays of one shape, as vectors (n,).
    >>> round(cosine(np.array([1.0, 0.0]), np.array([1.0, 1.0])), 4)
    0.7071
    """
    return float(np.vdot(a, b) / (layers.square_sum(a.ravel()) * layers.square_sum(b.ravel())) ** 0.5)
