"""python -m bitnet_ref.info --preset 3b
python -m bitnet_ref.info nano.bitnet
python -m bitnet_ref.info --preset nano --n-layers 8 --json

Describe a preset, or a model of any format: parameters by kind, bytes, cache, training memory, operations per
token. Each figure is a formula of model/cost.py (docs/cost.md) or stands in the file's header; no model is
allocated, no matrix is read.
Read after: convert. Read next: generate.
"""

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, add_args, configs, run_command, text, typed
from bitnet_ref.config import PRESETS, ModelConfig
from bitnet_ref.formats import hf, hf_config
from bitnet_ref.formats.bitnet import read_opened
from bitnet_ref.formats.bitnet_header import file_bytes
from bitnet_ref.formats.checkpoint import latest, model_config, read_state
from bitnet_ref.formats.hf_about import read_about
from bitnet_ref.formats.hub import folder_of
from bitnet_ref.formats.opened import kind_of, open_model
from bitnet_ref.formats.source import Source, compression
from bitnet_ref.model import cost
from bitnet_ref.pack.rans import entropy


def describe(cfg: ModelConfig, batch: int) -> dict[str, Any]:
    """Every figure by name: counts, bytes, operations (see model/cost.py for the formulas).

    >>> describe(PRESETS["2b4t"].model, batch=1)["parameters"]["total"]
    2412820480
    """
    n = cost.count_params(cfg)
    return {
        "config": asdict(cfg),
        "parameters": {**n._asdict(), "total": n.total, "stored as trits": cost.ternary_params(cfg)},
        "model bytes (other parameters bfloat16)": {
            name: round(cost.inference_bytes(cfg, bits)) for name, bits in cost.BITS_PER_TRIT.items()},
        "trit bytes": {
            name: round(cost.ternary_params(cfg) * bits / 8) for name, bits in cost.BITS_PER_TRIT.items()},
        "KV cache bytes per token": {
            "float32": cost.kv_bytes_per_token(cfg, 4), "float16": cost.kv_bytes_per_token(cfg, 2)},
        "training memory, bytes": {
            "parameters, gradients, moments, trits": cost.state_bytes(cfg),
            f"activations of {batch} x {cfg.context} tokens":
                batch * cfg.context * cost.saved_bytes_per_token(cfg)},
        f"operations per token, context {cfg.context}": {
            "forward": cost.forward_ops_per_token(cfg, cfg.context),
            "training step": cost.train_ops_per_token(cfg, cfg.context)},
    }


def _opened(path: str, i2s: str | None = None) -> tuple[ModelConfig, dict[str, Any]]:
    """The config of a model of any format, and what its file says of itself. Raises CheckError for none."""
    place = folder_of(path)
    kind = kind_of(place)
    if kind == "run":
        state = read_state(latest(place))
        run = {"kind": kind, "step": state.get("step")}
        compress = compression(state)
        return model_config(state), run | ({"compress": compress} if compress != "off" else {})
    if kind == "hf":
        config = hf.read_config(place)
        cfg, storage, text = config.model, hf_config.STORAGES[config.storage], ""
        about = read_about(place, config)
    else:
        source = open_model(place, i2s)
        cfg, storage, about, text = source.cfg, source.storage, source.about, source.tokenizer or ""
    said: dict[str, Any] = {
        "kind": kind, "storage": storage, "name": about.name, "first id": about.bos,
        "last ids": list(about.eos), "chat template": about.chat_template is not None,
        "settings": about.settings,
        "bytes": sum(f.stat().st_size for f in (place, *place.glob("*")) if f.is_file())}
    if text:
        said["tokenizer bytes"] = len(text.encode())
    if kind == "bitnet":
        said |= _of_bitnet(place, source)
    return cfg, said


def _of_bitnet(path: Path, source: Source) -> dict[str, Any]:
    """Of a .bitnet: how likely each trit is, what that allows, and the size that the formula has from it."""
    head, text = read_opened(path), source.tokenizer or ""
    held, packing, floats = head.record.histograms, head.record.packing, head.held["embedding"].dtype

    def size(bits: float | None) -> dict[str, int]:
        return {"bytes by the formula": file_bytes(source.cfg, packing, bits, floats, source.about,
                                                   len(text.encode()))}

    if not held:
        return size(None)
    counts = [sum(h[i] for h in held.values()) for i in range(3)]
    shares = " ".join(f"{n / sum(counts):.2%}" for n in counts)
    bits = sum(sum(h) * entropy(h) for h in held.values()) / sum(counts)
    return {"trits -1, 0, +1": shares, "entropy, bits a trit": round(bits, 4),
            **size(bits if packing == "rans" else None)}


def _table(figures: dict[str, Any]) -> str:
    """The figures as aligned lines, in units a person reads."""
    lines = []
    for title, group in figures.items():
        lines.append(title)
        for name, value in group.items():
            number = isinstance(value, int) and not isinstance(value, bool)
            short = f"   ({_short(value)})" if number and title != "config" and value >= 10_000 else ""
            lines.append(f"    {name:<42} {f'{value:,}' if number else value!s:>18}{short}")
    return "\n".join(lines)


def _short(value: float) -> str:
    units = ["", "k", "M", "G", "T", "P", "E"]
    while value >= 999.5 and len(units) > 1:               # what rounds to 1000 has the next unit
        value /= 1000
        del units[0]
    return f"{value:.3g} {units[0]}"


def main(argv: list[str]) -> int:
    """Parse, describe, print.

    >>> import contextlib, io
    >>> with contextlib.redirect_stdout(io.StringIO()) as said:
    ...     code = main(["--preset", "nano", "--n-layers", "8", "--json"])
    >>> json.loads(said.getvalue())["parameters"]["total"]
    7876864
    """
    parser = Parser("python -m bitnet_ref.info", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", type=text, metavar="|".join(PRESETS), help="a named model (default: nano)")
    which.add_argument("--model", type=text, metavar="MODEL", help="the same as a flag")
    parser.add_argument("file", nargs="?", type=text, metavar="MODEL",
                        help="a run, a Hugging Face folder or name, a .bitnet or .gguf (ONNX is not read)")
    parser.add_argument("--i2s", type=text, metavar="128|64|4row", help="layout of the I2_S in a GGUF")
    parser.add_argument("--batch", type=int, default=8,
                        help="sequences per micro-batch, for the training memory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    check(args.batch > 0, "--batch must be greater than 0", args.batch, "use 1 or more")
    model = args.file or args.model
    check(args.file is None or args.model is args.preset is None, "one model is described", "two",
          "leave one out")
    stored, said = (configs(args)[1], {}) if model is None else _opened(model, args.i2s)
    cfg = replace(stored, **typed(args, ModelConfig))
    figures = {**({"file": said} if said else {}), **describe(cfg, args.batch)}
    print(json.dumps(figures, indent=1) if args.json else _table(figures))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
