"""python -m bitnet_ref.bench.full_size
python -m bitnet_ref.bench.full_size --root . --folder /big/disk

The full shape of 2B4T, random weights, from a file to 32 tokens of text: seconds to the first token, tokens
per second beside what reading the weights allows, and the most memory the process ever held. Each format in a
process of its own, which opens the file anew.
Read after: bench/rans. Read next: bench/timing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from bitnet_ref.bench.child import peak
from bitnet_ref.bench.page import put
from bitnet_ref.bench.roofline import bandwidth
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command, text
from bitnet_ref.config import PRESETS, ModelConfig
from bitnet_ref.convert import convert
from bitnet_ref.data.python_docs import python_docs
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.formats.source import About, Source
from bitnet_ref.model.cost import count_params, ternary_params
from bitnet_ref.model.params import param_specs
from bitnet_ref.model.weights import Trits
from bitnet_ref.train.summary import machine

PAGE, COMMAND = "docs/formats/bitnet.md", "bench.full_size"
ZEROS = 0.42                 # share of trits in 2B4T that are 0
TOKENS, PROMPT = 32, "The name of the"
FILES = {"Hugging Face, packed": ("hf", {}), ".bitnet, b3": ("b3.bitnet", {"packing": "b3"}),
         ".bitnet, rans": ("rans.bitnet", {"packing": "rans"})}


def random_source(cfg: ModelConfig, tokenizer: str) -> Source:
    """A model of `cfg` whose tensors are drawn when they are asked for: trits, the rest in bfloat16."""
    specs = {s.name: (i, s) for i, s in enumerate(param_specs(cfg))}

    def read(name: str) -> Any:
        number, spec = specs[name]
        rng = np.random.Generator(np.random.Philox(key=[0, number]))
        if len(spec.shape) == 1:
            return np.ones(spec.shape, ml_dtypes.bfloat16)
        if spec.ternary:
            drawn = rng.integers(0, 256, spec.shape, np.uint8)
            edge = int(256 * (1 - ZEROS) / 2)
            trits = (drawn < np.uint8(edge)).astype(np.int8) - (drawn >= np.uint8(256 - edge))
            return Trits(trits, np.float32(2.0**-5))
        out = np.empty(spec.shape, ml_dtypes.bfloat16)
        for n in range(0, len(out), 4096):
            out[n:n + 4096] = rng.standard_normal(out[n:n + 4096].shape, np.float32) / 32
        return out

    return Source(Path("random"), "memory", "drawn", cfg, About("random", 0, (0,)), tokenizer, read)


def child(path: str) -> dict[str, Any]:
    """What a process that generates from `path` sees of itself."""
    began = time.perf_counter()
    from bitnet_ref.generate.language_model import load

    model = load(path)
    made = model.continuation(PROMPT, TOKENS)
    next(made)
    first = time.perf_counter() - began
    print("".join(made), file=sys.stderr)
    record = made.record()
    return {"first": first, "decode": record["decode"]["tokens_per_second"], "peak": peak(),
            "tokens": len(made.ids)}


def measured(path: Path) -> dict[str, Any]:
    """The same, from here: twice, for the first call may compile and fills the system's file cache."""
    package = str(Path(__file__).resolve().parents[2])
    places = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p)
    for _ in range(2):
        done = subprocess.run([sys.executable, "-m", "bitnet_ref.bench.full_size", "--child", str(path)],
                              capture_output=True, text=True, env={**os.environ, "PYTHONPATH": places})
        check(done.returncode == 0, "a model must generate", done.stderr.strip()[-300:], "see why")
    size = sum(f.stat().st_size for f in (path, *path.glob("*")) if f.is_file())
    return {**json.loads(done.stdout), "bytes": size}


def table(cfg: ModelConfig, rows: dict[str, dict[str, Any]], read: float) -> str:
    """Markdown. A token reads every packed trit and the head."""
    n = count_params(cfg)
    weights = ternary_params(cfg) * 1.6 / 8 + 2 * cfg.vocab_size * cfg.d_model
    lines = ["| file | bytes | to the first token | tokens/s | of what reading allows | most memory |",
             "|---|---|---|---|---|---|"]
    lines += [f"| {name} | {r['bytes']:,} | {r['first']:.1f} s | {r['decode']:.1f} | "
              f"{r['decode'] * weights / read:.0%} | {r['peak'] / 1e9:.2f} GB |" for name, r in rows.items()]
    m = machine()
    return "\n".join([*lines, "", f"{n.total:,} parameters. {m['cores']} cores of {m['processor']} read "
                      f"{read / 1e9:.0f} GB/s, and a token reads {weights / 1e9:.2f} GB of weights."])


def main(argv: list[str]) -> int:
    """Make the files, run each, print."""
    parser = Parser("python -m bitnet_ref.bench.full_size", __doc__)
    parser.add_argument("--folder", type=text, metavar="DIR", help="with room for 4 GB (default: temporary)")
    parser.add_argument("--layers", type=int, default=30, help="of the 30, to try it (default: 30)")
    parser.add_argument("--root", type=text, metavar="DIR", help="write the table into this clone's docs")
    parser.add_argument("--child", type=text, metavar="FILE", help="be the process that is measured")
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(args.child)))
        return DONE
    check(args.root is None or args.layers == 30, "the docs need all layers", args.layers, "leave it out")
    cfg = replace(PRESETS["2b4t"].model, n_layers=args.layers)
    source, rows = random_source(cfg, train_bpe(python_docs(), 4096).json), {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, (file, options) in FILES.items():
            convert(source, str(Path(folder) / file), options, sys.stderr.isatty())
            rows[name] = measured(Path(folder) / file)
    block = table(cfg, rows, bandwidth(os.cpu_count() or 1))
    print(block)
    if args.root:
        put(Path(args.root) / PAGE, block, COMMAND)
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
