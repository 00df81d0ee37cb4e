"""python -m bitnet_ref.bench.onnx_peer
python -m bitnet_ref.bench.onnx_peer --threads 1 --rounds 15

Time onnxruntime on our ONNX files of a random nano beside the numba backend: a prompt of 128 tokens, and 64
greedy tokens after it, with a cache, once both have made the same. They take turns; medians. Needs
onnxruntime, which nothing else does.
Read after: bench/llama_peer. Read next: bench/part.
"""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.bench.random_model import NANO, random_weights
from bitnet_ref.bench.timing import alternate, median
from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.formats.onnx import WEIGHTS, write_onnx
from bitnet_ref.formats.source import About, Source
from bitnet_ref.model import Transformer

PROMPT, TOKENS = 128, 64


def main(argv: list[str]) -> int:
    """Write, load, time, print a table."""
    parser = Parser("python -m bitnet_ref.bench.onnx_peer", __doc__)
    parser.add_argument("--threads", type=int, default=1, help="threads of both (default: 1)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    args = parser.parse_args(argv)
    weights = random_weights(NANO, np.float32)
    source = Source(Path("nano"), "run", "random", NANO, About(), None, lambda name: weights[name])
    model = Transformer(NANO, weights, kernels.load("numba", args.threads))
    engines: dict[str, Callable[[int], Any]] = {"bitnet_ref, numba": partial(ours, model)}
    with tempfile.TemporaryDirectory() as folder:
        for kind in WEIGHTS:
            written = write_onnx(Path(folder) / f"{kind}.onnx", source, kind, cache=True)
            engines[f"onnxruntime, {kind}"] = partial(theirs, session(written.path, args.threads))
        check_same({name: run(TOKENS) for name, run in engines.items()})
    runs = {f"{name}/{n}": partial(run, n) for name, run in engines.items() for n in (0, TOKENS)}
    seconds = median(alternate(runs, args.rounds, rest=0.05))
    print("| tokens/s of nano | prefill | decode |\n|---|---|---|")
    for name in engines:
        start, both = seconds[f"{name}/0"], seconds[f"{name}/{TOKENS}"]
        print(f"| {name} | {PROMPT / start:,.0f} | {TOKENS / (both - start):,.0f} |")
    return DONE


def check_same(made: dict[str, list[int]]) -> None:
    """Raise CheckError unless every engine has made the same tokens: speed at another task says nothing."""
    first, *others = made.items()
    for name, tokens in others:
        n = next((i for i, (a, b) in enumerate(zip(first[1], tokens)) if a != b), None)
        check(tokens == first[1], f"{name} must make the tokens of {first[0]}",
              f"others from token {n} on", "look at both before timing either")


def prompt() -> np.ndarray:
    """ids int64 (1, PROMPT)."""
    return np.random.default_rng(0).integers(0, NANO.vocab_size, (1, PROMPT))


def ours(model: Transformer, tokens: int) -> list[int]:
    """The greedy tokens after the prompt."""
    made = []
    logits, state = model.prefill(prompt())
    for _ in range(tokens):
        token = logits.argmax(axis=-1)
        made.append(int(token[0]))
        logits, state = model.decode_step(token, state)
    return made


def session(path: Path, threads: int) -> Any:
    """An ONNX file, loaded. Raises CheckError where onnxruntime is not installed."""
    try:
        import onnxruntime
    except ImportError as e:
        raise CheckError(f"this benchmark needs onnxruntime; got {e}; pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def theirs(opened: Any, tokens: int) -> list[int]:
    """The same from onnxruntime."""
    past = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), np.float32) for i in opened.get_inputs()[1:]}
    made = []
    logits, *present = opened.run(None, {"ids": prompt(), **past})
    for _ in range(tokens):
        made.append(int(logits[0, -1].argmax()))
        past = dict(zip(past, present))
        logits, *present = opened.run(None, {"ids": np.array([made[-1:]], np.int64), **past})
    return made


if __name__ == "__main__":
    sys.exit(run_command(main))
