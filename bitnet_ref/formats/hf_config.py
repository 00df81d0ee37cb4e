"""config.json of Hugging Face, read into a ModelConfig and written from one. A stranger's: all is checked.

Besides the shape it says how the projections are stored, in words that do not say it: see STORAGES. What this
project has no equivalent for (scaled RoPE, biases, other architectures) is refused by name, for a model that
runs wrong is worse than one that does not run. Defaults for absent fields are those of transformers.
Read after: formats/census. Read next: formats/hf_about.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.config import ModelConfig, from_dict
from bitnet_ref.formats.safetensors_stream import read_json, there
from bitnet_ref.formats.source import MOST_EOS

STORAGES = {
    "full": "floats, multiplied as they are (a LLaMA)",
    "masters": "float masters, ternarised by absmean when read",
    "multiply": "trits in bytes; weight_scale is the multiplier, mean|W| (autobitlinear)",
    "divide": "trits in bytes; weight_scale is 1 / multiplier (bitlinear)",
}


class Architecture(NamedTuple):
    """What a name in `architectures` implies. The rest: values of absent fields."""

    norm: str
    hidden_act: str
    rms_norm_eps: float
    rope_theta: float


ARCHITECTURES = {
    "BitNetForCausalLM": Architecture("sub", "relu2", 1e-5, 500000.0),          # 2B4T, in transformers
    "BitnetForCausalLM": Architecture("sub", "silu", 1e-6, 10000.0),            # 1bitLLM, code of its own
    "LlamaForCausalLM": Architecture("pre", "silu", 1e-6, 10000.0),
}
GLU = {"silu": "swiglu", "relu2": "relu2"}
PLAIN = "full_precision"             # our word for a BitNet's twin, whose matrices are meant as they are
THEIRS = {"d_model": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
          "d_ff": "intermediate_size", "context": "max_position_embeddings", "glu": "hidden_act",
          "tied_embeddings": "tie_word_embeddings", "norm_eps": "rms_norm_eps",
          "init_std": "initializer_range", "n_kv_heads": "num_key_value_heads"}
WORD = re.compile(rf"\b({'|'.join(THEIRS)})\b")
REFUSED = "use a checkpoint of the LLaMA / BitNet family without it"


class HfConfig(NamedTuple):
    """The model, how its projections are stored (one of STORAGES), the ids that begin and end a text."""

    model: ModelConfig
    storage: str
    bos: int | None
    eos: tuple[int, ...] = ()


def read_config(folder: str | Path) -> HfConfig:
    """The config.json of a folder. Raises CheckError for what is damaged, absurd or not supported.
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as folder:
    ...     read_config(folder).storage
    'multiply'
    """
    file = there(Path(folder), "config.json") or Path(folder) / "config.json"
    record = read_json(file)
    check(isinstance(record, dict), f"{file} must hold a table", type(record).__name__,
          "give a model's folder")
    try:
        return parse_config(record)
    except CheckError as e:
        raise CheckError(f"{file}: {e}") from None


def parse_config(c: dict[str, Any]) -> HfConfig:
    """The same of the table itself.
    >>> parse_config(config_record(ModelConfig(n_layers=2), "masters")).model.n_layers
    2
    """
    names: Any = c.get("architectures")
    check(isinstance(names, list) and len(names) == 1 and isinstance(names[0], str),
          "config.json must name one architecture", repr(names)[:100], "give a model's config.json")
    arch = lookup(ARCHITECTURES, names[0], "architectures in config.json")
    _refuse_unknown_parts(c)
    act: Any = c.get("hidden_act", arch.hidden_act)
    check(isinstance(act, str), "hidden_act must be a name", repr(act)[:50], "correct config.json")
    storage = _storage(c, names[0])
    values = {
        "vocab_size": _required(c, "vocab_size"), "d_model": _required(c, "hidden_size"),
        "n_layers": _required(c, "num_hidden_layers"), "n_heads": _required(c, "num_attention_heads"),
        "d_ff": _required(c, "intermediate_size"), "context": c.get("max_position_embeddings", 2048),
        "norm": arch.norm, "glu": lookup(GLU, act, "hidden_act in config.json"),
        "linear": "full" if storage == "full" else "ternary",
        "tied_embeddings": c.get("tie_word_embeddings", False), "rope_theta": _rope_theta(c, arch.rope_theta),
        "norm_eps": c.get("rms_norm_eps", arch.rms_norm_eps), "init_std": c.get("initializer_range", 0.02),
    }
    kv = c.get("num_key_value_heads")
    values["n_kv_heads"] = values["n_heads"] if kv is None else kv
    cfg = _config(values)
    check(c.get("head_dim") in (None, cfg.head_dim), "head_dim must be hidden_size / num_attention_heads",
          f"{c.get('head_dim')!r}, not {cfg.head_dim}", REFUSED)
    return HfConfig(cfg, storage, bos_id(c, cfg), eos_ids(c, cfg))


def _config(values: dict[str, Any]) -> ModelConfig:
    """The ModelConfig; what it refuses is said in the words of config.json, to one who has not written it."""
    try:
        return from_dict(ModelConfig, values, "config.json")
    except CheckError as e:
        said = str(e).rpartition("; ")[0].replace("config.json.", "")
        said = WORD.sub(lambda m: THEIRS[m[0]], said)
        raise CheckError(f"{said}; correct the file, or use another checkpoint") from None


def _required(c: dict[str, Any], name: str) -> Any:
    check(name in c, f"config.json must have {name}", "none", "restore the field")
    return c[name]


def _refuse_unknown_parts(c: dict[str, Any]) -> None:
    """What would change the numbers and has no equivalent here."""
    for name in ("attention_bias", "mlp_bias", "use_bias", "qk_norm", "sliding_window", "use_qk_norm"):
        check(not c.get(name), f"{name} must be off", repr(c.get(name))[:50], REFUSED)
    for name, only in (("partial_rotary_factor", 1), ("weight_bits", 1), ("input_bits", 8)):
        check(c.get(name) in (None, only), f"{name} must be {only}", repr(c.get(name))[:50], REFUSED)


def _rope_theta(c: dict[str, Any], default: float) -> Any:
    """The base, from either place in which transformers writes it; every kind of scaling is refused."""
    theta = c.get("rope_theta", default)
    for name in ("rope_scaling", "rope_parameters"):
        rope = c.get(name)
        if rope is None:
            continue
        check(isinstance(rope, dict), f"{name} must be a table or null", repr(rope)[:50],
              "correct config.json")
        kind = rope.get("rope_type", rope.get("type", "default"))
        extra = sorted(set(map(str, rope)) - {"rope_type", "type", "rope_theta"})
        check(kind == "default" and not extra, f"{name} must not scale the positions",
              f"{kind!r} {', '.join(extra)}"[:100], REFUSED)
        theta = rope.get("rope_theta", theta)
    return theta


def _storage(c: dict[str, Any], architecture: str) -> str:
    """One of STORAGES."""
    q = c.get("quantization_config")
    if q is None:
        # transformers would multiply by the masters of a BitNet as they are: fluent-looking wrong text
        if c.get(PLAIN) is True:
            return "full"
        check(architecture != "BitNetForCausalLM", "a BitNetForCausalLM must have a quantization_config",
              "none", 'restore it; for masters {"quant_method": "bitnet", "linear_class": "autobitlinear", '
              '"quantization_mode": "online"}')
        return "masters" if architecture == "BitnetForCausalLM" else "full"
    check(isinstance(q, dict) and q.get("quant_method") == "bitnet",
          "quantization_config must have quant_method bitnet", repr(q)[:100], REFUSED)
    check(not q.get("use_rms_norm"), "use_rms_norm must be off", q.get("use_rms_norm"), REFUSED)
    kept = q.get("modules_to_not_convert")
    check(kept is None or kept == ["lm_head"], 'modules_to_not_convert must be null or ["lm_head"]',
          repr(kept)[:100], REFUSED)
    linear_class, mode = q.get("linear_class", "bitlinear"), q.get("quantization_mode", "offline")
    check(linear_class in ("bitlinear", "autobitlinear"), "linear_class must be bitlinear or autobitlinear",
          repr(linear_class)[:50], REFUSED)
    check(mode in ("offline", "online"), "quantization_mode must be offline or online", repr(mode)[:50],
          REFUSED)
    if linear_class == "bitlinear":
        return "divide"                                    # this class has no online mode
    return "masters" if mode == "online" else "multiply"


def bos_id(c: dict[str, Any], cfg: ModelConfig) -> int | None:
    """bos_token_id of config.json or generation_config.json. Raises CheckError: not an id.
    >>> bos_id({"bos_token_id": 1}, ModelConfig())
    1
    """
    bos = c.get("bos_token_id")
    check(bos is None or _is_id(bos, cfg), f"bos_token_id must be null or an id below {cfg.vocab_size}",
          repr(bos)[:50], "correct the file")
    return bos


def eos_ids(c: dict[str, Any], cfg: ModelConfig) -> tuple[int, ...]:
    """eos_token_id of the same: null, an id, or a list of ids. Raises CheckError for anything else.
    >>> eos_ids({"eos_token_id": 2}, ModelConfig()), eos_ids({"eos_token_id": [2, 3]}, ModelConfig())
    ((2,), (2, 3))
    """
    eos = c.get("eos_token_id")
    ids = [] if eos is None else eos if isinstance(eos, list) else [eos]
    check(len(ids) <= MOST_EOS and all(_is_id(i, cfg) for i in ids),
          f"eos_token_id must be null, or up to {MOST_EOS} ids below {cfg.vocab_size}", repr(eos)[:50],
          "correct the file")
    return tuple(ids)


def _is_id(value: Any, cfg: ModelConfig) -> bool:
    return type(value) is int and 0 <= value < cfg.vocab_size


def config_record(cfg: ModelConfig, storage: str = "multiply", dtype: str = "bfloat16") -> dict[str, Any]:
    """The config.json of `cfg`, stored as one of STORAGES. Raises CheckError for what has no class there.
    >>> config_record(ModelConfig())["quantization_config"]
    {'quant_method': 'bitnet', 'linear_class': 'autobitlinear', 'quantization_mode': 'offline'}
    """
    lookup(STORAGES, storage, "storage")
    check(cfg.head == "full" and cfg.norm in ("pre", "sub"),
          "a Hugging Face folder must be of a model with head = full, norm = pre or sub",
          f"{cfg.head}, {cfg.norm}", "Hugging Face has no class for others")
    check((storage == "full") == (cfg.linear == "full"),
          "storage must be full for linear = full, and multiply, divide or masters for linear = ternary",
          f"{storage} for {cfg.linear}", "trits as dense floats would run without quantised activations: "
          "another model" if storage == "full" else "use full")
    sub = cfg.norm == "sub"
    record = {
        "architectures": ["BitNetForCausalLM" if sub else "LlamaForCausalLM"],
        "model_type": "bitnet" if sub else "llama",
        "vocab_size": cfg.vocab_size, "hidden_size": cfg.d_model, "intermediate_size": cfg.d_ff,
        "num_hidden_layers": cfg.n_layers, "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads, "max_position_embeddings": cfg.context,
        "hidden_act": next(act for act, glu in GLU.items() if glu == cfg.glu),
        "rms_norm_eps": cfg.norm_eps, "rope_theta": cfg.rope_theta, "initializer_range": cfg.init_std,
        "tie_word_embeddings": cfg.tied_embeddings, "torch_dtype": dtype,
        "bos_token_id": None, "eos_token_id": None,
    }
    if storage == "full":
        return record | ({PLAIN: True} if sub else {})
    return record | {"quantization_config": {
        "quant_method": "bitnet", "linear_class": "bitlinear" if storage == "divide" else "autobitlinear",
        "quantization_mode": "online" if storage == "masters" else "offline"}}
