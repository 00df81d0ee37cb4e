"""The two configs, the table of presets, and the folder for what can be made again.

Small frozen dataclasses: the field's metadata carries the symbol, the help text and the valid choices, so
the command line, the error messages and the docs cannot drift from them. Variants (norm, glu, linear, head)
are data; the model turns them into functions once, when it is built.
Read after: checks. Read next: quant.
"""

import math
import os
import sys
import types
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.checks import check, lookup


def _opt(default: Any, help: str, sym: str | None = None, choices: tuple[str, ...] = (),
         free: bool = False) -> Any:
    """A config field. `free`: may differ between a run and its resumption."""
    return field(default=default, metadata={"help": help, "sym": sym, "choices": choices, "free": free})


def _check_choices(cfg: Any) -> None:
    for f in fields(cfg):
        if f.metadata["choices"]:
            lookup(f.metadata["choices"], getattr(cfg, f.name), f.name)


def _check_positive(cfg: Any, *names: str) -> None:
    for name in names:
        value = getattr(cfg, name)
        check(value is None or 0 < value < math.inf, f"{name} must be greater than 0 and finite", value,
              f"give {name} a positive value")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model. The defaults are the preset `nano`."""

    vocab_size: int = _opt(4096, "entries of the tokenizer", "V")
    d_model: int = _opt(256, "width of the residual stream", "D")
    n_layers: int = _opt(4, "blocks", "L")
    n_heads: int = _opt(8, "query heads", "H")
    n_kv_heads: int = _opt(8, "key/value heads (GQA)", "KV")
    d_ff: int = _opt(768, "width of the gated unit", "F")
    context: int = _opt(256, "longest sequence, in tokens; also the length of a training window", "T")
    norm: str = _opt("sub", "where the RMSNorms sit (docs/model.md)", choices=("pre", "sub", "inner"))
    inner_gain: bool = _opt(False, "norm = inner only: a gain per projection (BitNet embeddings) instead of "
                                   "none (FAQ)")
    glu: str = _opt("swiglu", "gated unit", choices=("swiglu", "relu2"))
    linear: str = _opt("ternary", "projections: BitNet b1.58, or the full-precision LLaMA twin",
                       choices=("ternary", "full"))
    head: str = _opt("full", "the output projection", choices=("full", "ternary"))
    tied_embeddings: bool = _opt(True, "the output projection uses the embedding matrix")
    rope_theta: float = _opt(10000.0, "base of the rotary frequencies")
    norm_eps: float = _opt(1e-5, "added to the mean square in every RMSNorm")
    init_std: float = _opt(0.1, "standard deviation of the initial matrices")

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_positive(self, "vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "context",
                        "rope_theta", "norm_eps", "init_std")
        check(self.d_model % (2 * self.n_heads) == 0,
              "d_model must be a multiple of 2 * n_heads (RoPE turns pairs)",
              f"{self.d_model} and {self.n_heads} heads", "choose n_heads so that d_model / n_heads is even")
        check(self.n_heads % self.n_kv_heads == 0, "n_heads must be a multiple of n_kv_heads",
              f"{self.n_heads} and {self.n_kv_heads}", "choose n_kv_heads that divides n_heads")
        check(not self.inner_gain or self.norm == "inner", "inner_gain needs norm = inner",
              f"norm = {self.norm}", "use --norm inner or leave inner_gain off")

    @property
    def head_dim(self) -> int:
        """Dh, the width of one head."""
        return self.d_model // self.n_heads


@dataclass(frozen=True)
class TrainConfig:
    """How a run goes. The rates follow the two-stage recipe of the BitNet FAQ.

    Source: the FAQ is the follow-up of arXiv 2402.17764; its Table 2.
    """

    corpus: str = _opt("python-docs", "a named corpus, or a file, folder or glob of .txt / .jsonl; several: "
                                      "NAME=WEIGHT,NAME=WEIGHT", free=True)
    packing: str = _opt("stream", "order of the documents: as they stand in the corpus, or one that cuts "
                                  "fewer of them at the ends of windows",
                        choices=("stream", "documents"))
    compress: str = _opt("off", "an experiment: a frequent chain of tokens is trained on as its first token, "
                                "or as a token of its own (docs/compression.md)",
                         choices=("off", "first", "super"))
    baseline: str | None = _opt(None, "with --compress: a finished run on the same corpus without, whose "
                                      "bits per byte the run is held against", free=True)
    tokenizer: str | None = _opt(None, "tokenizer.json to use instead of training one on the corpus")
    seed: int = _opt(0, "of the initial weights and of the order of the batches")
    steps: int = _opt(600, "optimiser steps")
    epochs: float | None = _opt(None, "passes over the training text; sets the steps")
    batch: int = _opt(8, "sequences per micro-batch", "B")
    accumulate: int = _opt(1, "micro-batches per optimiser step")
    lr: float = _opt(1e-2, "peak learning rate of stage 1 (or of the only stage)")
    lr_stage2: float = _opt(2 / 3, "two-stage: peak of the second line, as a fraction of lr "
                                   "(FAQ: 1.5e-3 -> 1e-3)")
    lr_end: float = _opt(1 / 50, "learning rate a step past the end, a fraction of lr (FAQ: 3e-5 of 1.5e-3)")
    schedule: str = _opt("two-stage", "of the learning rate and the weight decay",
                         choices=("two-stage", "linear", "cosine", "constant"))
    warmup: int = _opt(20, "steps of linear warm-up")
    weight_decay: float = _opt(0.1, "decay of the matrices")
    decay_until: float | None = _opt(None, "fraction of the run after which the decay is 0 "
                                           "(without: two-stage 0.5, others 1)")
    beta1: float = _opt(0.9, "AdamW: decay of the first moment")
    beta2: float = _opt(0.95, "AdamW: decay of the second moment")
    adam_eps: float = _opt(1e-8, "AdamW: added to the root of the second moment")
    max_norm: float = _opt(1.0, "gradient norm above which the gradient is scaled down")
    requantize_every: int = _opt(1, "steps between ternarisations of the weights; above 1 is an experiment")
    ema: float | None = _opt(None, "keep an exponential average of the parameters too, with this decay, "
                                   "as in 0.99, and score it at the end")
    patience: int | None = _opt(None, "stop after this many validations without improvement")
    guard: bool = _opt(True, "skip bad batches, go back when the model is damaged (docs/stability.md)")
    inject: str | None = _opt(None, "laboratory: trouble (nan, spike, lr, flip) at the batch of that number, "
                                      "as in spike@200,nan@350 (docs/stability.md)")
    val_fraction: float = _opt(0.05, "share of the documents held out for validation")
    val: str | None = _opt(None, "a text or a named corpus to validate on, instead of documents held out",
                           free=True)
    eval_every: int = _opt(50, "steps between validations")
    eval_windows: int = _opt(64, "windows used by a validation within the run (the final one uses all)")
    save_every: int = _opt(100, "steps between checkpoints", free=True)
    keep: int = _opt(2, "checkpoints kept", free=True)
    log_every: int = _opt(10, "steps between lines of the log that carry the measures by layer", free=True)
    tensorboard: bool = _opt(False, "also write the log as TensorBoard's event files (extra `tensorboard`)",
                             free=True)
    backend: str = _opt("numba", "implementation of the ops", free=True)
    backward: str = _opt("float32", "arithmetic of the backward products; bf16 needs AVX512-BF16", free=True,
                         choices=("float32", "bf16"))
    threads: int | None = _opt(None, "threads to run with (default: all processors)", free=True)

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_positive(self, "steps", "epochs", "batch", "accumulate", "lr", "lr_stage2", "max_norm",
                        "patience", "requantize_every", "eval_every", "eval_windows", "save_every", "keep",
                        "log_every", "adam_eps", "threads")
        check(self.steps < 1 << 53, "steps must be below 2^53", self.steps, "give fewer steps or epochs")
        for name in ("beta1", "beta2", "val_fraction"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{name} must lie in [0, 1)", value, f"give {name} such a value")
        check(self.ema is None or 0 <= self.ema < 1, "ema must lie in [0, 1)", self.ema,
              "give 0.99, or leave it out")
        check(self.decay_until is None or 0 <= self.decay_until <= 1, "decay_until must lie in [0, 1]",
              self.decay_until, "it is a fraction of the run")
        check(0 <= self.lr_end <= 1, "lr_end must lie in [0, 1]", self.lr_end, "it is a fraction of lr")
        check(0 <= self.weight_decay < math.inf, "weight_decay must be finite and not negative",
              self.weight_decay, "use 0 or more")
        check(self.warmup >= 0, "warmup must not be negative", self.warmup, "use 0 or more")
        check(0 <= self.seed < 1 << 64, "seed must lie in [0, 2^64)", self.seed, "choose another")
        injections(self.inject)
        check(self.baseline is None or self.compress != "off", "a baseline is for a run with --compress",
              f"{self.baseline} for one without", "leave it out, or give --compress first or super")


TROUBLE = "nan", "spike", "lr", "flip"                   # what --inject knows (train/inject.py)


def injections(text: str | None) -> list[tuple[str, int]]:
    """[(kind, batch)] of "spike@200,nan@350". Raises CheckError for anything else.

    >>> injections("spike@200,nan@350")
    [('spike', 200), ('nan', 350)]
    """
    parts = [part.strip().partition("@") for part in text.split(",")] if text is not None else []
    for kind, _, at in parts:
        check(kind in TROUBLE and at.isascii() and at.isdigit() and len(at) < 16,
              f"inject must be a list of {'@N, '.join(TROUBLE)}@N, with N the number of a batch", repr(text),
              "write, for example, --inject spike@200,nan@350")
    return [(kind, int(at)) for kind, _, at in parts]


def value_type(annotation: Any) -> type:
    """`int | None` -> int, `int` -> int.

    >>> value_type(int | None)
    <class 'int'>
    """
    if isinstance(annotation, types.UnionType):
        return next(t for t in typing.get_args(annotation) if t is not types.NoneType)
    return annotation


def check_types(config: type, values: Any, where: str) -> None:
    """Raise CheckError unless `values`, read from a file, holds fields of `config`, of their types, alone.

    An integer may stand for a float, None where the annotation allows it. `where` is the table's name.

    >>> check_types(ModelConfig, {"n_layers": 6, "norm": "inner"}, "model")
    >>> check_types(ModelConfig, {"n_layers": "six"}, "model")
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: model.n_layers must be int; got 'six'; correct the value
    """
    check(isinstance(values, dict), f"[{where}] must be a table", repr(values), "give it names and values")
    annotations = {f.name: f.type for f in fields(config)}
    for name, value in values.items():
        check(name in annotations, f"a name in [{where}] must be one of {', '.join(annotations)}", repr(name),
              "correct it, or use the release of bitnet_ref that wrote the file")
        kind = value_type(annotations[name])
        fits = (isinstance(annotations[name], types.UnionType) if value is None
                else type(value) is kind or (kind is float and type(value) is int))
        check(fits, f"{where}.{name} must be {kind.__name__}", repr(value), "correct the value")
        check(type(value) is not int or abs(value) < 1 << 64, f"{where}.{name} must be below 2^64", value,
              "correct the value")


def from_dict(config: type, values: Any, where: str) -> Any:
    """The `config` of a table read from a file, checked like one that was typed; absent fields: default.

    >>> from_dict(ModelConfig, {"n_layers": 6}, "model").n_layers
    6
    """
    check_types(config, values, where)
    return config(**values)


class Preset(NamedTuple):
    """A named model and, where it is meant to be trained as it is, how."""

    model: ModelConfig
    train: TrainConfig


def _paper(d_model: int, d_ff: int, n_heads: int, n_layers: int, lr: float) -> Preset:
    """A model of the BitNet b1.58 FAQ, Tables 1 and 2.

    The norm is inside BitLinear, the tokenizer is LLaMA's, a step has 1 M tokens.
    """
    return Preset(
        ModelConfig(vocab_size=32000, d_model=d_model, d_ff=d_ff, n_heads=n_heads, n_kv_heads=n_heads,
                    n_layers=n_layers, context=2048, norm="inner", init_std=0.02),
        TrainConfig(lr=lr, batch=8, accumulate=64, steps=100_000, warmup=375,
                    eval_every=1000, save_every=1000))


PRESETS = {
    "tiny": Preset(
        ModelConfig(vocab_size=1024, d_model=64, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=192,
                    context=128),
        TrainConfig(steps=1000, lr=1e-2, batch=8, eval_every=100, save_every=500, log_every=20)),
    "nano": Preset(ModelConfig(), TrainConfig()),
    # 125m and 350m: width, heads and depth of GPT-3 small and medium (arXiv 2005.14165, Table 2.1);
    # d_ff = 8/3 D, the width at which a gated unit has the parameters of the plain 4 D one.
    "125m": _paper(768, 2048, 12, 12, 1.5e-3),
    "350m": _paper(1024, 2730, 16, 24, 1.5e-3),
    "700m": _paper(1536, 4096, 24, 24, 1.5e-3),
    "1.3b": _paper(2048, 5460, 32, 24, 1.2e-3),
    "3b": _paper(3200, 8640, 32, 26, 1.2e-3),
    "3.9b": _paper(3200, 12800, 32, 26, 1.2e-3),
    # config.json of microsoft/bitnet-b1.58-2B-4T; its learning rates are not published (arXiv 2504.12285).
    "2b4t": Preset(
        ModelConfig(vocab_size=128256, d_model=2560, d_ff=6912, n_heads=20, n_kv_heads=5, n_layers=30,
                    context=4096, norm="sub", glu="relu2", rope_theta=500000.0, init_std=0.02),
        TrainConfig(lr=1.2e-3, batch=8, accumulate=64, steps=100_000, warmup=375,
                    eval_every=1000, save_every=1000)),
}


CACHE = "BITNET_REF_CACHE"


def cache_dir() -> Path:
    """$BITNET_REF_CACHE, else bitnet_ref in the platform's folder for caches. Not created here.

    Downloads, prepared corpora and compiled code are kept there.

    >>> isinstance(cache_dir(), Path)
    True
    """
    if chosen := os.environ.get(CACHE):
        return Path(chosen)
    places = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("XDG_CACHE_HOME", "Library/Caches")}
    variable, default = places.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
    return Path(os.environ.get(variable) or Path.home() / default) / "bitnet_ref"
