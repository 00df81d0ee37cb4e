"""config: bad values end in three-part errors; the presets have the published shapes and parameter counts."""

import math
from dataclasses import fields, replace

import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.model.params import param_specs

# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "message"), [
    ({"d_model": 250}, r"d_model must be a multiple of 2 \* n_heads .*; got 250 and 8 heads; choose n_heads"),
    ({"d_model": 24, "n_heads": 8}, r"d_model must be a multiple of 2"),   # head_dim 3 has no pairs
    ({"n_heads": 8, "n_kv_heads": 3}, r"n_heads must be a multiple of n_kv_heads; got 8 and 3; choose"),
    ({"n_kv_heads": 16}, r"n_heads must be a multiple of n_kv_heads; got 8 and 16"),
    ({"norm": "post"}, r"norm must be one of pre, sub, inner; got 'post'; choose"),
    ({"glu": "gelu"}, r"glu must be one of swiglu, relu2; got 'gelu'"),
    ({"linear": "binary"}, r"linear must be one of ternary, full; got 'binary'"),
    ({"head": "int8"}, r"head must be one of full, ternary; got 'int8'"),
    ({"norm": "sub", "inner_gain": True}, r"inner_gain needs norm = inner; got norm = sub; use"),
    ({"norm": "pre", "inner_gain": True}, r"inner_gain needs norm = inner; got norm = pre"),
    ({"rope_theta": -1.0}, r"rope_theta must be greater than 0 and finite; got -1.0; give"),
    ({"norm_eps": 0.0}, r"norm_eps must be greater than 0"),
    ({"init_std": float("nan")}, r"init_std must be greater than 0 and finite; got nan"),
])
def test_a_bad_model_config_says_what_to_do(given, message):
    with pytest.raises(CheckError, match=message):
        ModelConfig(**given)


@pytest.mark.parametrize("name", ["vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff",
                                  "context"])
def test_every_size_of_a_model_is_positive(name):
    for value in (0, -1):
        with pytest.raises(CheckError, match=f"{name} must be greater than 0 and finite; got {value}"):
            ModelConfig(**{name: value})


@pytest.mark.parametrize("name", ["steps", "epochs", "batch", "accumulate", "lr", "lr_stage2", "adam_eps",
                                  "max_norm", "patience", "requantize_every", "eval_every", "eval_windows",
                                  "save_every", "keep", "log_every"])
def test_every_count_and_rate_of_a_run_is_positive(name):
    with pytest.raises(CheckError, match=f"{name} must be greater than 0 and finite; got 0"):
        TrainConfig(**{name: 0})


@pytest.mark.parametrize(("given", "message"), [
    ({"schedule": "step"}, r"schedule must be one of two-stage, linear, cosine, constant; got 'step'"),
    ({"ema": 1.0}, r"ema must lie in \[0, 1\); got 1.0; give"),
    ({"ema": -0.1}, r"ema must lie in \[0, 1\); got -0.1"),
    ({"decay_until": 1.1}, r"decay_until must lie in \[0, 1\]; got 1.1"),
    ({"decay_until": float("nan")}, r"decay_until must lie in \[0, 1\]; got nan"),
    ({"lr": float("inf")}, r"lr must be greater than 0 and finite; got inf"),
    ({"beta1": 1.5}, r"beta1 must lie in \[0, 1[\])]; got 1.5"),
    ({"beta2": -0.1}, r"beta2 must lie in \[0, 1[\])]; got -0.1"),
    ({"val_fraction": 2.0}, r"val_fraction must lie in .*; got 2.0"),
    ({"lr_end": 1.01}, r"lr_end must lie in \[0, 1\]; got 1.01"),
    ({"weight_decay": -0.1}, r"weight_decay must be finite and not negative; got -0.1"),
    ({"warmup": -1}, r"must not be negative"),
    ({"seed": -1}, r"seed must lie in \[0, 2\^64\); got -1"),
    ({"seed": 1 << 64}, r"seed must lie in \[0, 2\^64\)"),
    ({"weight_decay": float("nan")}, r"weight_decay must be finite and not negative; got nan"),
])
def test_a_bad_train_config_says_what_to_do(given, message):
    with pytest.raises(CheckError, match=message):
        TrainConfig(**given)


@pytest.mark.parametrize("name", ["beta1", "beta2"])
def test_a_beta_of_one_is_refused(name):
    with pytest.raises(CheckError, match=f"{name} must"):
        TrainConfig(**{name: 1.0})


def test_none_means_off():
    cfg = TrainConfig(epochs=None, patience=None, tokenizer=None)
    assert (cfg.epochs, cfg.patience, cfg.tokenizer) == (None, None, None)


def test_configs_are_frozen_and_documented():
    for config in (ModelConfig, TrainConfig):
        assert all(f.metadata["help"] for f in fields(config))
        with pytest.raises(AttributeError):
            setattr(config(), fields(config)[0].name, 1)


def test_a_copy_is_checked_too():
    with pytest.raises(CheckError, match="multiple of n_kv_heads"):
        replace(ModelConfig(), n_kv_heads=5)


def test_head_dim_divides_the_width():
    assert ModelConfig(d_model=96, n_heads=6, n_kv_heads=2).head_dim == 16


# --- presets ------------------------------------------------------------------------------------------------


def count(cfg, wanted=lambda spec: True):
    return sum(math.prod(s.shape) for s in param_specs(cfg) if wanted(s))


def test_2b4t_has_the_published_parameters():
    """facts of the checkpoint: 328,335,360 embedding + 2,084,044,800 ternary + 440,320 norm."""
    cfg = PRESETS["2b4t"].model
    assert count(cfg, lambda s: s.name == "embedding") == 328_335_360
    assert count(cfg, lambda s: s.ternary) == 2_084_044_800
    assert count(cfg, lambda s: not s.decay) == 440_320
    assert count(cfg) == 2_412_820_480
    assert (cfg.head_dim, cfg.n_heads // cfg.n_kv_heads) == (128, 4)
    assert (cfg.norm, cfg.glu, cfg.rope_theta, cfg.norm_eps) == ("sub", "relu2", 500000.0, 1e-5)
    assert cfg.tied_embeddings


@pytest.mark.parametrize(("name", "shape"), [      # BitNet FAQ, Table 1: hidden, GLU size, heads, layers
    ("700m", (1536, 4096, 24, 24)), ("1.3b", (2048, 5460, 32, 24)),
    ("3b", (3200, 8640, 32, 26)), ("3.9b", (3200, 12800, 32, 26))])
def test_the_papers_models_have_the_faqs_shapes(name, shape):
    cfg = PRESETS[name].model
    assert (cfg.d_model, cfg.d_ff, cfg.n_heads, cfg.n_layers) == shape
    assert (cfg.norm, cfg.inner_gain, cfg.glu, cfg.n_kv_heads) == ("inner", False, "swiglu", cfg.n_heads)
    train = PRESETS[name].train
    assert train.batch * train.accumulate * cfg.context == 2**20          # 1 M tokens a step
    assert train.steps * 2**20 == pytest.approx(100e9, rel=0.05)          # 100 B tokens
    assert (train.lr, train.warmup) == (1.5e-3 if name == "700m" else 1.2e-3, 375)
    assert (train.beta1, train.beta2, train.weight_decay) == (0.9, 0.95, 0.1)


@pytest.mark.parametrize("name", ["125m", "350m", "700m", "1.3b", "3b", "3.9b"])
def test_a_preset_has_about_the_parameters_of_its_name(name):
    """Tied embedding, blocks of 4 D*D + 3 D*F, final norm, no other gain; the name is at most 15 % off."""
    cfg = PRESETS[name].model
    D, F = cfg.d_model, cfg.d_ff
    assert count(cfg) == 32000 * D + cfg.n_layers * (4 * D * D + 3 * D * F) + D
    said = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
    assert abs(count(cfg) / said - 1) < 0.15


def test_nano_and_tiny():
    nano = PRESETS["nano"].model
    assert nano == ModelConfig()
    assert (nano.n_layers, nano.d_model, nano.n_heads, nano.n_kv_heads, nano.d_ff) == (4, 256, 8, 8, 768)
    assert all(side % 256 == 0 for s in param_specs(nano) if s.ternary for side in s.shape)
    assert count(PRESETS["tiny"].model) == 1024 * 64 + 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 192
                                                            + 64 * 3 + 192) + 64
