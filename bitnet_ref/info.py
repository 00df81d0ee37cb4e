"""python -m bitnet_ref.info --preset 3b
python -m bitnet_ref.info --model RUN
python -m bitnet_ref.info --preset nano --n-layers 8 --json

Describe a preset, or the model of a run or of a Hugging Face folder: parameters by kind, bytes, cache,
training memory, operations per token. Each figure is a formula of model/cost.py (docs/cost.md); no model is
allocated, no tensor is read.
Read after: convert. Read next: generate.
"""

import json
import sys
from dataclasses import asdict, replace
from typing import Any

from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, add_args, configs, run_command, text, typed
from bitnet_ref.config import PRESETS, ModelConfig
from bitnet_ref.formats import hf
from bitnet_ref.formats.checkpoint import latest, model_config, read_state
from bitnet_ref.model import cost


def describe(cfg: ModelConfig, batch: int) -> dict[str, Any]:
    """Every figure by name: counts, bytes, operations (see model/cost.py for the formulas)."""
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


def config_of(path: str) -> ModelConfig:
    """The config of a run or of a Hugging Face folder. Raises CheckError for neither."""
    return hf.read_config(path).model if hf.is_folder(path) else model_config(read_state(latest(path)))


def table(figures: dict[str, Any]) -> str:
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
    """Parse, describe, print."""
    parser = Parser("python -m bitnet_ref.info", __doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--preset", type=text, metavar="|".join(PRESETS), help="a named model (default: nano)")
    which.add_argument("--model", type=text, metavar="RUN",
                       help="the folder of a training run, or a Hugging Face folder, instead of a preset")
    parser.add_argument("--batch", type=int, default=8,
                        help="sequences per micro-batch, for the training memory")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    check(args.batch > 0, "--batch must be greater than 0", args.batch, "use 1 or more")
    stored = configs(args)[1] if args.model is None else config_of(args.model)
    cfg = replace(stored, **typed(args, ModelConfig))
    figures = describe(cfg, args.batch)
    print(json.dumps(figures, indent=1) if args.json else table(figures))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
