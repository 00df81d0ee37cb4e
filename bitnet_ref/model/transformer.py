"""The transformer: embedding, blocks, final norm, head. Forward, backward, and the whole-model contracts.

`forward`, `prefill`, `decode_step` and `train_step` are the seam at which a backend may take over the whole
model; these are their references. Decoding here has no cache: it runs the full forward for every token, and
so it is the oracle for a cached one.
Read after: model/block. Read next: model/cost.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref import layers
from bitnet_ref.checks import CheckError, NonFiniteError, check, expect, shorter
from bitnet_ref.config import ModelConfig
from bitnet_ref.layers.rope import rope_table
from bitnet_ref.model.block import Plan, block, block_backward, build
from bitnet_ref.model.params import Params
from bitnet_ref.model.projection import project, project_backward
from bitnet_ref.model.saved import Saved
from bitnet_ref.model.weights import Trits, Weights, ternarise


def forward(plan: Plan, w: dict[str, Any], ids: np.ndarray,
            keep: bool = True) -> tuple[np.ndarray, Saved | None]:
    """ids int (B, T)  ->  logits (B, T, V), saved (None unless `keep`).
    >>> from bitnet_ref.model.params import init_params
    >>> cfg = ModelConfig(vocab_size=9, n_layers=1)
    >>> model = Transformer(cfg, init_params(cfg, seed=0), layers)
    >>> a, saved = forward(model.plan, model.ready, np.array([[1, 2, 3]]))
    >>> b, _ = forward(model.plan, model.ready, np.array([[1, 2, 7]]))
    >>> a.shape, np.allclose(a[:, :2], b[:, :2])       # only the last place sees the other token
    ((1, 3, 9), True)
    """
    x = plan.ops.embedding(ids, w["embedding"])                                             # (TR.1)
    table, blocks = _rope_table(plan, ids, x.dtype), []
    for l in range(plan.cfg.n_layers):
        x, saved = block(x, w, f"layers.{l}.", table, plan)                                 # (TR.2)
        if keep:
            blocks.append(saved)
    (logits,), in_head = project(x, plan.head_entry, w, "", plan.head, plan.cfg.norm_eps)   # (TR.3)
    return logits, Saved(blocks, x, in_head) if keep else None


def backward(plan: Plan, w: dict[str, Any], ids: np.ndarray, dlogits: np.ndarray, saved: Saved,
             grads: Params) -> None:
    """From dlogits (B, T, V), accumulates every parameter's gradient into `grads`.
    >>> from bitnet_ref.model.params import init_params
    >>> cfg, ids = ModelConfig(vocab_size=9, n_layers=1), np.array([[1, 2, 3]])
    >>> model = Transformer(cfg, params := init_params(cfg, seed=0), layers)
    >>> logits, saved = forward(model.plan, model.ready, ids)
    >>> backward(model.plan, model.ready, ids, logits, saved, grads := params.zeros_like())
    >>> all(np.any(g) for g in grads.view.values())    # no tensor was forgotten
    True
    """
    table = _rope_table(plan, ids, dlogits.dtype)
    head = grads["embedding" if plan.cfg.tied_embeddings else "head"]           # tied: one array, two sums
    dx = project_backward([dlogits], saved.x, saved.in_head, plan.head_entry, w, "", plan.head, plan.ops,
                          {**grads.view, "head": head})
    for l in reversed(range(plan.cfg.n_layers)):
        dx = block_backward(dx, saved.blocks[l], w, f"layers.{l}.", table, plan, grads)
    plan.ops.embedding_backward(dx, ids, grads["embedding"])


def _rope_table(plan: Plan, ids: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    dtype = np.zeros(0, dtype).real.dtype                  # angles are real, also under a complex step
    return rope_table(np.arange(ids.shape[1]), plan.cfg.head_dim, plan.cfg.rope_theta, dtype)


def train_step(plan: Plan, w: dict[str, Any], batches: Iterable[tuple[np.ndarray, np.ndarray]], share: float,
               grads: Params) -> float:
    """Loss in nats per token of one optimisation step: the mean over its micro-batches.

    Each batch is (ids, targets) int (B, T); `share` = 1 / their number. Accumulates the gradient of that mean
    into `grads`.
    >>> from bitnet_ref.model.params import init_params
    >>> cfg, ids = ModelConfig(vocab_size=9, n_layers=1), np.array([[1, 2, 3, 4]])
    >>> model = Transformer(cfg, params := init_params(cfg, seed=0), layers)
    >>> batch, grads = (ids[:, :-1], ids[:, 1:]), params.zeros_like()
    >>> losses = [train_step(model.plan, model.ready, [batch] * n, 1 / n, grads) for n in (1, 2)]
    >>> abs(losses[0] - losses[1]) < 1e-6              # the mean over micro-batches, not the sum
    True
    """
    total = 0.0
    for ids, targets in batches:
        logits, saved = forward(plan, w, ids)
        assert saved is not None
        rows, flat = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1)
        loss, lse = plan.ops.cross_entropy(rows, flat)                                      # (TR.4)
        dlogits = plan.ops.cross_entropy_backward(share, rows, flat, lse, out=rows)
        backward(plan, w, ids, dlogits.reshape(logits.shape), saved, grads)
        total += share * float(loss.real)
    return total


class Texts(NamedTuple):
    """The state that the reference passes on: ids int (B, T), of text b the first lengths[b]. No cache.

    `weights`: those that it was made with.
    """

    ids: np.ndarray
    lengths: np.ndarray
    weights: Any

    def back(self, lengths: Any) -> "Texts":
        """The state in which the texts had these lengths, int or (B,). Raises CheckError for longer ones."""
        return self._replace(lengths=np.array(shorter(lengths, self.lengths.tolist())))


def prefill(plan: Plan, w: dict[str, Any], ids: np.ndarray,
            lengths: np.ndarray | None = None) -> tuple[np.ndarray, Texts]:
    """ids int (B, T)  ->  logits (B, V) of the next token, state.   `lengths` (B,): what counts of each.
    >>> from bitnet_ref.model.params import init_params
    >>> cfg, ids = ModelConfig(vocab_size=9, n_layers=1), np.array([[1, 2, 3], [4, 0, 0]])
    >>> model = Transformer(cfg, init_params(cfg, seed=0), layers)
    >>> logits, state = prefill(model.plan, model.ready, ids, lengths=np.array([3, 1]))
    >>> logits.shape, state.lengths.tolist()           # of the second text, what follows the 4
    ((2, 9), [3, 1])
    """
    lengths = np.full(len(ids), ids.shape[1]) if lengths is None else lengths
    texts = Texts(np.array(ids), lengths, w)
    logits, _ = forward(plan, w, ids, keep=False)          # causal: what stands behind a text does not count
    return logits[np.arange(len(ids)), texts.lengths - 1], texts


def extend(plan: Plan, w: dict[str, Any], ids: np.ndarray, state: Texts, lengths: np.ndarray | None = None,
           every: bool = True) -> tuple[np.ndarray, Texts]:
    """ids int (B, T), state  ->  logits (B, T, V) after each new token, new state.   All of it again.

    `lengths` int (B,): how many of a row are new tokens, 0 too; logits after others are zeros. Not `every`:
    logits (B, V) after the last new token of each row.
    >>> from bitnet_ref.model.params import init_params
    >>> cfg = ModelConfig(vocab_size=9, n_layers=1)
    >>> model = Transformer(cfg, init_params(cfg, seed=0), layers)
    >>> _, state = prefill(model.plan, model.ready, np.array([[1, 2]]))
    >>> logits, state = extend(model.plan, model.ready, np.array([[3, 4, 5]]), state)
    >>> logits.shape, state.ids.tolist()
    ((1, 3, 9), [[1, 2, 3, 4, 5]])
    """
    check(isinstance(state, Texts) and state.weights is w, "a state must be of these weights",
          "one of others", "prefill the text with this model, and again after its weights have changed")
    B, T = ids.shape
    counts = np.full(B, T) if lengths is None else lengths
    ends = state.lengths + counts
    check(ends.max() <= plan.cfg.context, f"a sequence must have at most {plan.cfg.context} tokens",
          int(ends.max()), "drop the oldest tokens and prefill again")
    whole, new = np.zeros((B, ends.max()), np.int64), np.arange(T) < counts[:, None]
    for b in range(B):
        whole[b, :ends[b]] = np.concatenate([state.ids[b, :state.lengths[b]], ids[b, new[b]]])
    logits, _ = forward(plan, w, whole, keep=False)
    at = np.minimum(state.lengths[:, None] + np.arange(T), whole.shape[1] - 1)
    logits = logits[np.arange(B)[:, None], at] * new[:, :, None]
    return logits if every else logits[np.arange(B), counts - 1], Texts(whole, ends, w)


def decode_step(plan: Plan, w: dict[str, Any], token: np.ndarray,
                state: Texts) -> tuple[np.ndarray, Texts]:
    """token int (B,), state  ->  logits (B, V) of the next token, new state.
    >>> from bitnet_ref.model.params import init_params
    >>> cfg = ModelConfig(vocab_size=9, n_layers=1)
    >>> model = Transformer(cfg, init_params(cfg, seed=0), layers)
    >>> _, state = prefill(model.plan, model.ready, np.array([[1, 2]]))
    >>> logits, _ = decode_step(model.plan, model.ready, np.array([3]), state)
    >>> np.allclose(logits, prefill(model.plan, model.ready, np.array([[1, 2, 3]]))[0])
    True
    """
    return extend(plan, w, token[:, None], state, None, False)


class Transformer:
    """A model ready to run: config, weights, backend. With `params` it can also be trained.

    `logits, loss = model(ids, targets)`; after an update of the parameters call `requantise()`. To run only:
    `int8_head`, a full head in int8 rows; `half_cache`, a backend's cache of keys and values in float16.
    """

    def __init__(self, cfg: ModelConfig, params: Params | Weights, ops: Any, int8_head: bool = False,
                 half_cache: bool = False) -> None:
        self.cfg, self.plan, self.int8_head, self.half_cache = cfg, build(cfg, ops), int8_head, half_cache
        check(not half_cache or hasattr(ops, "prefill"), "half_cache needs a backend that keeps a cache",
              "one without", "use backend numba, or leave it out")
        self.params = params if isinstance(params, Params) else None
        self.use(ternarise(cfg, params, ops) if isinstance(params, Params) else params)

    def use(self, weights: Weights) -> None:
        """Run with these weights from now on."""
        self.weights, self.ready = weights, weights.ready(self.plan.ops, self.int8_head)
        self.ready.half_cache = self.half_cache

    def fetched(self) -> "Transformer":
        """The model as it is now, to run only, with weights that NumPy reads; itself where it reads these."""
        if self.params is None or self.params.fetched() is self.params:
            return self
        return Transformer(self.cfg, self.weights.fetched(self.plan.ops), self.plan.ops, self.int8_head,
                           self.half_cache)

    def requantise(self) -> None:
        """Ternarise the (changed) parameters anew."""
        assert self.params is not None
        self.use(ternarise(self.cfg, self.params, self.plan.ops))

    def __call__(self, ids: Any, targets: Any = None) -> tuple[np.ndarray, float | None]:
        """ids, targets int (B, T) or (T,)  ->  logits (B, T, V), mean loss in nats per token.

        The loss is None without targets. Raises CheckError for ids outside the vocabulary, too long a
        sequence, or a shape that does not fit.
        """
        ids = self._checked("ids", ids)
        logits = self._by("forward", lambda plan, w, ids: forward(plan, w, ids, keep=False)[0], ids)
        if targets is None:
            return logits, None
        targets = self._checked("targets", targets)
        expect("targets", targets, "B T", B=ids.shape[0], T=ids.shape[1])
        loss, _ = self.plan.ops.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))
        return logits, float(loss)

    def loss_and_grads(self, batches: list[tuple[np.ndarray, np.ndarray]], grads: Params,
                       share: float | None = None) -> float:
        """Mean loss of the micro-batches; `grads` is cleared and receives the gradient of that mean.

        `share`: the weight of each, where they are not all of the step (default: 1 / their number).
        Raises CheckError for ids or targets that are not tokens, or of different shapes.
        """
        check(not self.int8_head, "a model to train must have its full head", "one with an int8 head",
              "leave int8_head out")
        checked = [(self._checked("ids", ids), self._checked("targets", targets)) for ids, targets in batches]
        for ids, targets in checked:
            expect("targets", targets, "B T", B=ids.shape[0], T=ids.shape[1])
        self.plan.ops.store_(grads.flat, 0.0)
        return self._by("train_step", train_step, checked, share or 1 / len(checked), grads)

    def prefill(self, ids: np.ndarray, lengths: Any = None) -> tuple[np.ndarray, Any]:
        """ids int (B, T)  ->  logits (B, V) of the next token, the state for decode_step and extend.

        `lengths` int (B,), for texts of different lengths: what counts of each row; the rest must be ids but
        is not looked at. A state's `back(lengths)` is the state of before. Raises CheckError as calling the
        model does, and for lengths outside 1..T.
        """
        ids = self._checked("ids", ids)
        return self._by("prefill", prefill, ids, _counts(ids, lengths, 1))

    def extend(self, ids: np.ndarray, state: Any, lengths: Any = None,
               every: bool = True) -> tuple[np.ndarray, Any]:
        """ids int (B, T), state  ->  logits (B, T, V) after each of them, the new state.

        `lengths` int (B,): how many of each row are new tokens, perhaps 0; logits after the others are zeros.
        Not `every`: logits (B, V) after the last new token of each row, zeros where there is none.
        Raises CheckError as prefill, for another batch, and beyond the context.
        """
        ids = self._checked("ids", ids)
        _check_batch(ids, state)
        return self._by("extend", extend, ids, state, _counts(ids, lengths, 0), every)

    def decode_step(self, token: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """token int (B,), state  ->  logits (B, V) of the next token, the new state.

        Raises CheckError for what is no token, for another batch, and beyond the context.
        """
        token = _tokens(token)
        low, high = (token.min(), token.max()) if len(token) > 1 else (token[0], token[0])
        if not 0 <= low <= high < self.cfg.vocab_size:     # its words take time, and this is every token
            check(False, f"token must lie in 0..{self.cfg.vocab_size - 1}", f"{low}..{high}",
                  "use the tokenizer that the model was trained with")
        _check_batch(token, state)
        return self._by("decode_step", decode_step, token, state)

    def _by(self, path: str, reference: Callable[..., Any], *args: Any) -> Any:
        """The backend's own whole-model path, where it has one for such a model; else the reference's."""
        own = getattr(self.plan.ops, path, None)
        result = NotImplemented if own is None else own(self.plan, self.ready, *args)
        return reference(self.plan, self.ready, *args) if result is NotImplemented else result

    def _checked(self, name: str, ids: Any) -> np.ndarray:
        try:
            ids = np.atleast_2d(np.asarray(ids))
        except ValueError:
            raise CheckError(f"{name} must be integers of shape (B, T); got rows of different lengths; "
                             "pass sequences of one length") from None
        check(ids.dtype.kind in "iu" and ids.ndim == 2 and ids.size > 0,
              f"{name} must be integers of shape (B, T)", f"{ids.dtype} {ids.shape}", "pass token ids")
        check(0 <= ids.min() <= ids.max() < self.cfg.vocab_size,
              f"{name} must lie in 0..{self.cfg.vocab_size - 1}",
              f"{ids.min()}..{ids.max()}", "use the tokenizer that the model was trained with")
        check(ids.shape[1] <= self.cfg.context, f"a sequence must have at most {self.cfg.context} tokens",
              ids.shape[1], "pass a shorter one, or a model with a longer context")
        return ids


def _tokens(token: Any) -> np.ndarray:
    """`token` as an array of integers (B,). Raises CheckError."""
    try:
        token = np.asarray(token)
    except ValueError:
        token = np.zeros(0)                                # of lists of different lengths
    if token.dtype.kind not in "iu" or token.ndim != 1 or token.size == 0:
        check(False, "a step needs tokens, integers of shape (B,)", f"{token.dtype} {token.shape}",
              "pass token ids")
    return token


def _check_batch(ids: np.ndarray, state: Any) -> None:
    lengths = getattr(state, "lengths", None)
    check(lengths is not None, "a state must be of prefill, extend or decode_step", type(state).__name__,
          "pass what they returned")
    assert lengths is not None
    if len(ids) != len(lengths):
        check(False, f"a step must have a token for each of {len(lengths)} sequences", len(ids),
              "pass as many as were prefilled")


def _counts(ids: np.ndarray, lengths: Any, least: int) -> np.ndarray | None:
    """`lengths`, checked: int64 (B,), or None for all of each row."""
    if lengths is None:
        return None
    (B, T), given = ids.shape, lengths
    try:
        lengths = np.asarray(given)
    except ValueError:                                     # rows of different lengths
        lengths = np.zeros(0)
    check(lengths.dtype.kind in "iu" and lengths.shape == (B,) and lengths.max() > 0
          and least <= lengths.min() <= lengths.max() <= T,
          f"lengths must be {B} integers from {least} to {T}, not all 0", repr(given)[:100],
          "give the number of tokens that count of each row")
    return lengths.astype(np.int64)


def name_nonfinite(model: Transformer, ids: np.ndarray) -> str:
    """The first weight (in table order), else the first activation (in dataflow order), not all finite.
    >>> from bitnet_ref.model.params import init_params
    >>> params = init_params(cfg := ModelConfig(vocab_size=9, n_layers=1), seed=0)
    >>> params["layers.0.ffn_norm"][3] = np.inf
    >>> name_nonfinite(Transformer(cfg, params, layers), np.array([[1, 2]]))
    'the weight layers.0.ffn_norm'
    """
    if model.fetched() is not model:                       # its numbers lie elsewhere: a copy tells
        model = Transformer(model.cfg, model.weights.fetched(model.plan.ops), layers)
    for name, t in model.weights.items():
        if not np.all(np.isfinite(t.w_scale if isinstance(t, Trits) else t)):
            return f"the weight {name}"
    if hasattr(model.plan.ops, "forward"):
        return "an activation (which one, --backend numpy says)"
    _, saved = forward(model.plan, model.ready, ids)
    assert saved is not None
    for l, s in enumerate(saved.blocks):
        for name in ("x", "q", "k", "v", "o", "h", "gate", "up", "u"):
            if not np.all(np.isfinite(getattr(s, name))):
                return f"the activation {name} of layer {l}"
    return "the logits or the gradient" if np.all(np.isfinite(saved.x)) else "the final stream"


def require_finite(value: float, what: str, model: Transformer, ids: np.ndarray) -> None:
    """Raise NonFiniteError, naming the first bad tensor, unless `value` is finite.
    >>> from bitnet_ref.model.params import init_params
    >>> params = init_params(cfg := ModelConfig(vocab_size=9, n_layers=1), seed=0)
    >>> params["final_norm"][0] = np.nan
    >>> require_finite(np.nan, "the loss", Transformer(cfg, params, layers), np.array([[1, 2]]))
    Traceback (most recent call last):
    bitnet_ref.checks.NonFiniteError: the loss must be finite; got nan, first in the weight final_norm; lower
        the learning rate, or look at the data and weights there
    """
    if not np.isfinite(value):
        raise NonFiniteError(f"{what} must be finite; got {value}, first in {name_nonfinite(model, ids)}; "
                             "lower the learning rate, or look at the data and weights there")
