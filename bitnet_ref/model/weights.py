"""Inference weights: trits and scales instead of float matrices, in a table apart from the training Params.

Training makes one from its Params every step (ternarise once, not per micro-batch); a model file holds one.
`ready(ops)` turns it into what forward reads: the backend's prepared matrices beside plain arrays.
Read after: model/params. Read next: model/projection.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.config import ModelConfig
from bitnet_ref.model.params import Params


class Trits(NamedTuple):
    """A ternary matrix: w_q int8 (N, K) in {-1, 0, +1} and the scale that multiplies it."""

    w_q: np.ndarray
    w_scale: Any


class Ready(dict[str, Any]):
    """What forward reads, by name. `kept`: what a backend has made of it for its whole-model paths.

    `half_cache`: that keys and values be kept in float16 between tokens, where they are kept.
    """

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__(table)
        self.kept: dict[str, Any] = {}
        self.half_cache = False


class Weights(dict[str, "np.ndarray | Trits"]):
    """name -> array, or Trits for a ternary matrix. "head" is always there, also when it is the embedding."""

    def read(self, name: str) -> Any:
        """Array or Trits."""
        return self[name]

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding itself."""
        return self.get("head") is self.get("embedding")

    def ready(self, ops: Any, int8_head: bool = False) -> Ready:
        """The working form of backend `ops`: what `ops.prepare` makes of Trits; of a table in 16 bits,
        `ops.prepare_table`; other arrays as they are.

        `int8_head`: a full head as int8 rows. The embedding stays as it is, also where the two are one.
        """
        made = Ready({})
        for name in self:
            if name == "head" and self.tied and not int8_head:
                made[name] = made["embedding"]
            else:
                t = self.read(name)
                rows = int8_head and name == "head" and isinstance(t, np.ndarray)
                made[name] = _in_rows(t, ops) if rows else self._prepared(t, ops)
        return made

    def _prepared(self, t: Any, ops: Any) -> Any:
        if isinstance(t, Trits):
            return ops.prepare(*t)
        if t.dtype.itemsize > 2:
            return t
        return ops.prepare_table(t) if t.ndim == 2 else t.astype(np.float32)

    def fetched(self, ops: Any) -> "Weights":
        """These where NumPy reads them."""
        read = {id(t): Trits(*map(ops.fetch, t)) if isinstance(t, Trits) else ops.fetch(t)
                for t in self.values()}
        return Weights({name: read[id(t)] for name, t in self.items()})

    def trits(self) -> dict[str, Trits]:
        """The ternary matrices alone."""
        return {name: t for name, t in self.items() if isinstance(t, Trits)}


class OnDisk(Weights):
    """Weights read anew whenever they are asked for: a model that runs holds its working form alone."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Any], tied: bool) -> None:
        super().__init__(dict.fromkeys([*names, "head"]))  # type: ignore[arg-type]
        self._read, self._tied = read, tied

    def read(self, name: str) -> Any:
        """From the file. `head` is the embedding where they are tied."""
        return self._read("embedding" if name == "head" and self._tied else name)

    __getitem__ = read

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding itself."""
        return self._tied

    def items(self) -> Any:
        """(name, array or Trits), one after the other."""
        return ((name, self.read(name)) for name in self)

    def values(self) -> Any:
        """Arrays and Trits, one after the other."""
        return (self.read(name) for name in self)

    def get(self, name: str, default: Any = None) -> Any:
        """Array or Trits, or what else was asked for."""
        return self.read(name) if name in self else default

    def _prepared(self, t: Any, ops: Any) -> Any:
        return ops.prepare(*t, keep=False) if isinstance(t, Trits) else super()._prepared(t, ops)


def _in_rows(head: np.ndarray, ops: Any) -> Any:
    wide = head.astype(np.promote_types(head.dtype, np.float32), copy=False)
    return ops.prepare_rows(*ops.absmax_int8(wide))


def ternarise(cfg: ModelConfig, params: Params, ops: Any) -> Weights:
    """The inference weights of training parameters. Arrays are shared with `params`, not copied.
    >>> from bitnet_ref import layers
    >>> from bitnet_ref.model.params import init_params
    >>> cfg = ModelConfig(n_layers=1)
    >>> weights = ternarise(cfg, init_params(cfg, seed=0), layers)
    >>> np.unique(weights["layers.0.attn.wq"].w_q).tolist(), weights["head"] is weights["embedding"]
    ([-1, 0, 1], True)
    """
    weights = Weights({s.name: Trits(*ops.absmean_ternary(params[s.name])) if s.ternary else params[s.name]
                       for s in params.specs})
    if cfg.tied_embeddings:
        table = params["embedding"]
        weights["head"] = Trits(*ops.absmean_ternary(table)) if cfg.head == "ternary" else table
    return weights
