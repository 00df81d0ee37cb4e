"""python -m bitnet_ref.convert runs/nano-001 nano.bitnet
python -m bitnet_ref.convert microsoft/bitnet-b1.58-2B-4T bitnet-2b.bitnet
python -m bitnet_ref.convert runs/nano-001 nano.gguf --type tq2_0
python -m bitnet_ref.convert nano.bitnet nano-hf --storage masters

Write a model in another format: Hugging Face (a folder), .bitnet, .gguf, .onnx. One tensor is in memory at a
time. What was written is read back and compared; a file that is not whole and right is not left behind.
Read after: formats/opened. Read next: info.
"""

import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, Parser, run_command, text

OPTIONS = {"bitnet": ("packing",), "gguf": ("type", "relu2"), "onnx": ("weights", "cache"),
           "hf": ("storage", "dtype", "shard")}
FLAGS: dict[str, dict[str, Any]] = {
    "packing": {"type": text, "metavar": "rans|i2|b3",
                "help": ".bitnet: how trits are stored (default: rans)"},
    "type": {"type": text, "metavar": "tq2_0|tq1_0|i2_s|f16|f32",
             "help": ".gguf: of the matrices (default: tq2_0)"},
    "relu2": {"action": "store_true", "default": None,
              "help": ".gguf: write a ReLU2 model for llama.cpp, which will run it with SiLU, that is wrong"},
    "weights": {"type": text, "metavar": "int8|2bit", "help": ".onnx: how trits are stored (default: int8)"},
    "cache": {"action": "store_true", "default": None,
              "help": ".onnx: keys and values come in and go out"},
    "storage": {"type": text, "metavar": "multiply|divide|masters|full",
                "help": "folder: how matrices are stored (default: multiply; full for one without trits)"},
    "dtype": {"type": text, "metavar": "bfloat16|float16|float32",
              "help": "folder: of all floats (default: bfloat16)"},
    "shard": {"type": float, "metavar": "GB", "help": "folder: most gigabytes of a file (default: 5)"},
}
ROUNDING = 2.0**-8                       # relative: what bfloat16 may change of a number


def target(path: str) -> str:
    """The format that a destination asks for: by its suffix; without one, a Hugging Face folder."""
    kind = {".bitnet": "bitnet", ".gguf": "gguf", ".onnx": "onnx"}.get(Path(path).suffix, "hf")
    check(kind != "hf" or Path(path).suffix in ("", Path(path).name) or not Path(path).suffix[1:].isalpha(),
          "a destination must end in .bitnet, .gguf or .onnx, or be a folder's name", path, "rename it")
    return kind


def writer(kind: str, given: dict[str, Any]) -> Callable[..., Any]:
    """The function that writes this kind, with the options that were given. Imports what it needs."""
    for name in given:
        check(name in OPTIONS[kind], f"--{name} must fit the destination", f"a {kind} destination",
              f"its options are {', '.join('--' + o for o in OPTIONS[kind])}")
    if kind == "bitnet":
        from bitnet_ref.formats.bitnet import write_bitnet

        return partial(write_bitnet, bits=given.get("packing", "rans"))
    if kind == "gguf":
        from bitnet_ref.formats.gguf_write import write_gguf

        return partial(write_gguf, kind=given.get("type", "tq2_0"), relu2=bool(given.get("relu2")))
    if kind == "onnx":
        from bitnet_ref.formats.onnx import write_onnx

        return partial(write_onnx, weights=given.get("weights", "int8"), cache=bool(given.get("cache")))
    from bitnet_ref.formats.hf_write import write_hf

    options: dict[str, Any] = {**given}
    if "shard" in given:
        options["shard_bytes"] = _bytes(options.pop("shard"))
    return partial(write_hf, **options)


def _bytes(gigabytes: float) -> int:
    check(1e-6 <= gigabytes <= 1e6, "--shard must be gigabytes, more than 0", gigabytes, "give 5, say")
    return int(gigabytes * 1e9)


def convert(source: Any, path: str, given: dict[str, Any], progress: bool = True) -> list[str]:
    """Write `source` to `path`, read it back, and say what was done, in lines.

    Raises CheckError: whatever the writer refuses; a destination that exists; another model read back.
    """
    from tqdm import tqdm

    kind = target(path)
    write = writer(kind, dict(given))
    check(not Path(path).exists() or kind == "hf", "the destination must be new", f"{path}, which exists",
          "give another name, or delete it")
    with tqdm(total=len(source.specs), unit="tensor", desc="write", disable=not progress) as bar:
        written = write(path, source, told=lambda name: bar.update())
    lines = ["", f"tensors       {written.n_tensors}", *_sizes(source, written.n_bytes)]
    if kind != "onnx":
        try:
            lines.append(f"read back     {compared(source, path, progress)}")
        except BaseException:
            _remove(Path(path))
            raise
    lines[0] = f"{source.path} ({source.kind}, {source.storage}) -> {path} ({kind})"
    return [*lines, *(f"note          {note}" for note in written.notes)]


def _sizes(source: Any, n_bytes: int) -> list[str]:
    from bitnet_ref.model.cost import count_params

    n = count_params(source.cfg).total
    return [f"parameters    {n:,}", f"bytes         {n_bytes:,}, {8 * n_bytes / n:.2f} bits a parameter"]


def compared(source: Any, path: str, progress: bool = True) -> str:
    """What reading `path` back showed. Raises CheckError where it is another model."""
    import numpy as np
    from tqdm import tqdm

    from bitnet_ref.formats.opened import open_model
    from bitnet_ref.model.weights import Trits

    again = open_model(path, "128" if Path(path).suffix == ".gguf" else None)
    other = [name for name, value in asdict(source.cfg).items() if not _alike(name, value, again.cfg)]
    check(not other, f"{path} must have the model's config", f"another {', '.join(other)}", "report this")
    moved, furthest = 0, 0.0
    for name, spec in tqdm(source.specs.items(), unit="tensor", desc="check", disable=not progress):
        wanted, found = source.read(name), again.read(name)
        if spec.ternary:
            assert isinstance(wanted, Trits)
            moved += int(np.count_nonzero(wanted.w_q != found.w_q))
            wanted, found = wanted.w_scale, found.w_scale
        apart = _apart(np.asarray(wanted), np.asarray(found))
        check(apart <= ROUNDING, f"{name} in {path} must be the model's, rounded",  # NaN is none either
              f"{apart:.1e} apart", "report this")
        furthest = max(furthest, apart)
    lossy = again.master is not None                       # masters in 16 bits: the writer counts what moves
    check(lossy or moved == 0, f"{path} must hold the model's trits", f"{moved:,} others", "report this")
    trits = f"{moved:,} trits moved" if moved else "trits equal"
    return f"{trits}, floats {f'within {furthest:.1e}' if furthest else 'equal'}"


def _alike(name: str, value: Any, cfg: Any) -> bool:
    """Whether a field is that of `cfg`; a file may keep floats in 32 bits, and need not keep init_std."""
    if name == "init_std" or not isinstance(value, float):
        return name == "init_std" or value == getattr(cfg, name)
    return abs(value - getattr(cfg, name)) <= 1e-6 * abs(value)


def _apart(a: Any, b: Any) -> float:
    """The largest difference of floats, of the largest of them."""
    import numpy as np

    a, b = a.astype(np.float32), b.astype(np.float32)
    top = float(np.abs(a).max())
    return float(np.abs(a - b).max()) / top if top else float(np.abs(b).max())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    """Parse, open, write, say."""
    parser = Parser("python -m bitnet_ref.convert", __doc__)
    parser.add_argument("source", type=text, metavar="SRC", help="a model of any format, or a name on a hub")
    parser.add_argument("path", type=text, metavar="DST", help="*.bitnet, *.gguf, *.onnx, or a new folder")
    for name, how in FLAGS.items():
        parser.add_argument(f"--{name}", **how)
    parser.add_argument("--i2s", type=text, metavar="128|64|4row",
                        help="layout of the I2_S in a .gguf source, which no such file says")
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    writer(target(args.path), dict(given))                 # what is asked for wrongly is said at once
    from bitnet_ref.formats.opened import open_model

    try:
        print("\n".join(convert(open_model(args.source, args.i2s), args.path, given, sys.stderr.isatty())))
    except MemoryError:
        raise CheckError("the largest tensor must fit into memory; got no room for it; "
                         "close other programs") from None
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
