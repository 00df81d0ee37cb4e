"""python -m bitnet_ref.convert runs/nano-001 nano.bitnet
python -m bitnet_ref.convert microsoft/bitnet-b1.58-2B-4T bitnet-2b.bitnet
python -m bitnet_ref.convert runs/nano-001 nano.gguf --type tq2_0
python -m bitnet_ref.convert nano.bitnet nano-hf --storage masters

Write a model in another format: Hugging Face (a folder), .bitnet, .gguf, .onnx, tensor by tensor. It is read
back and compared, save ONNX, which is not read; a file that is not whole and right is not left behind.
Read after: formats/example. Read next: info.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.cli import DONE, Parser, run_command, text

OPTIONS = {"bitnet": ("packing",), "gguf": ("type", "relu2"), "onnx": ("weights", "cache"),
           "hf": ("storage", "dtype", "shard")}
FLAGS: dict[str, dict[str, Any]] = {
    "packing": {"type": text, "metavar": "rans|i2|b3",
                "help": ".bitnet: how trits are stored (default: rans)"},
    "type": {"type": text, "metavar": "tq2_0|tq1_0|i2_s|f16|f32",
             "help": ".gguf: of the matrices (default: tq2_0; f16 for a model without trits)"},
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
SHARE = 1 << 20                      # entries compared at a time
NO_TOKENIZER = "no tokenizer: the file runs on token ids alone"


def _target(path: str) -> str:
    """The format that a destination asks for: by its suffix; without one, a Hugging Face folder."""
    kind = {".bitnet": "bitnet", ".gguf": "gguf", ".onnx": "onnx"}.get(Path(path).suffix, "hf")
    check(kind != "hf" or Path(path).suffix in ("", Path(path).name) or not Path(path).suffix[1:].isalpha(),
          "a destination must end in .bitnet, .gguf or .onnx, or be a folder's name", path, "rename it")
    return kind


def _writer(kind: str, given: dict[str, Any], full: bool = False) -> Callable[..., Any]:
    """The function that writes this kind with these options; `full`: for a model without trits.

    Imports what it needs. Raises CheckError, in the words of the command line, for an option or a value that
    this kind has not.
    """
    for name, value in given.items():
        check(name in OPTIONS[kind], f"--{name} must fit the destination", f"a {kind} destination",
              f"its options are {', '.join('--' + o for o in OPTIONS[kind])}")
        if values := FLAGS[name].get("metavar", "").split("|")[1:]:
            lookup([FLAGS[name]["metavar"].split("|")[0], *values], value, f"--{name}")
    if kind == "bitnet":
        from bitnet_ref.formats.bitnet import write_bitnet

        return partial(write_bitnet, bits=given.get("packing", "rans"))
    if kind == "gguf":
        from bitnet_ref.formats.gguf_write import write_gguf

        usual = "f16" if full else "tq2_0"
        return partial(write_gguf, kind=given.get("type", usual), relu2=bool(given.get("relu2")))
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

    >>> from bitnet_ref.formats.example import model, written
    >>> with written("bitnet") as path:
    ...     lines = convert(model(), f"{path.parent}/hf", {"storage": "masters"}, False)
    >>> lines[1]
    'tensors       13'
    """
    from tqdm import tqdm

    kind = _target(path)
    write = _writer(kind, dict(given), source.cfg.linear == "full")
    for place in [path] * (kind != "hf") + [path + ".data"] * (kind == "onnx"):    # ONNX: two files
        check(not Path(place).exists(), "the destination must be new", f"{place}, which exists",
              "give another name, or delete it")
    _check_tokenizer(source)
    with tqdm(total=len(source.specs), unit="tensor", desc="write", disable=not progress) as bar:
        written = write(path, source, told=lambda name: bar.update())
    notes = [*written.notes, *([] if source.tokenizer else [NO_TOKENIZER])]
    try:
        back = _compared(source, written, given, progress, notes) if kind != "onnx" else _unread(written)
    except BaseException:
        _remove(written.path)
        raise
    return [f"{source.path} ({source.kind}, {source.storage}) -> {path} ({kind})",
            f"tensors       {written.n_tensors}", *_sizes(source, written.n_bytes), f"read back     {back}",
            *(f"note          {note}" for note in dict.fromkeys(notes))]


def _unread(written: Any) -> str:
    """Of an ONNX file: it is looked at by the library, and that is all."""
    from bitnet_ref.formats.onnx import check_file

    check_file(written.path)
    return "no: ONNX is not read; onnx.checker has no complaint"


def _check_tokenizer(source: Any) -> None:
    """Raise CheckError where it has more entries than the model, or is none."""
    if not source.tokenizer:
        return
    import tokenizers

    try:
        held = tokenizers.Tokenizer.from_str(source.tokenizer).get_vocab(with_added_tokens=True)
    except Exception as e:                                 # the library raises nothing more specific
        raise CheckError(f"the tokenizer of {source.path} must be a tokenizer.json; got {str(e)[:200]}; "
                         "put back the one that belongs to the model") from None
    n, size = max(held.values(), default=-1) + 1, source.cfg.vocab_size
    check(n <= size, f"the tokenizer of {source.path} must have at most the model's {size} entries", n,
          "put back the one that belongs to the model")


def _sizes(source: Any, n_bytes: int) -> list[str]:
    from bitnet_ref.model.cost import count_params

    n = count_params(source.cfg).total
    return [f"parameters    {n:,}", f"bytes         {n_bytes:,}, {8 * n_bytes / n:.2f} bits a parameter"]


def _compared(source: Any, written: Any, given: dict[str, Any], progress: bool, notes: list[str]) -> str:
    """What reading back showed; `notes` gets what a GGUF could not carry.

    Raises CheckError where it is another model: each float must be the source's in the dtype that is stored.
    """
    from tqdm import tqdm

    from bitnet_ref.formats.opened import open_model

    path, kind = written.path, _target(str(written.path))
    again = open_model(path, "128" if kind == "gguf" else None)
    other = [name for name, value in asdict(source.cfg).items() if not _alike(name, value, again.cfg)]
    check(not other, f"{path} must have the model's config", f"another {', '.join(other)}", "report this")
    lost = _lost(source, again, kind)
    check(not lost or kind == "gguf", f"{path} must say what the model's source says", f"another {lost}",
          "report this")
    if lost:
        notes.append(f"read back, these are others: {lost}")
    moved, exact = 0, True
    for spec in tqdm(source.specs.values(), unit="tensor", desc="check", disable=not progress):
        n, same = _tensor_compared(spec, source, again, _stored_scale(kind, given))
        moved, exact = moved + n, exact and same
    check(moved == written.n_moved, f"{path} must hold the model's trits",
          f"{moved:,} others, where the writer moved {written.n_moved:,}", "report this")
    trits = f"{moved:,} trits moved" if moved else "trits equal"
    return f"{trits}, floats {'equal' if exact else 'equal but for the rounding to their dtype'}"


def _lost(source: Any, again: Any, kind: str) -> str:
    """What is said beside the tensors and reads otherwise; a folder is called by its own name."""
    a, b = source.about._asdict(), again.about._asdict()
    names = [name for name in a if a[name] != b[name] and (name != "name" or kind == "bitnet")]
    return ", ".join([*names, *(["tokenizer"] if (source.tokenizer or None) != again.tokenizer else [])])


def _tensor_compared(spec: Any, source: Any, again: Any, stored_scale: Any) -> tuple[int, bool]:
    """(trits that are others, whether all floats are equal to the bit) of one tensor. Raises CheckError."""
    import numpy as np

    wanted, found = source.read(spec.name), again.read(spec.name)
    if not spec.ternary:
        return 0, _check_floats(spec.name, again.path, wanted, found)
    moved = sum(int(np.count_nonzero(a != b)) for a, b in _blocks(wanted.w_q, found.w_q))
    if source.master and again.master:                     # whose scale follows from rounded masters
        return moved, _check_floats(spec.name, again.path, source.master(spec.name), again.master(spec.name))
    if again.master:                                       # made of trits: mean|w| is the scale to rounding
        right = abs(found.w_scale - wanted.w_scale) <= wanted.w_scale / 128
    else:
        right = found.w_scale == stored_scale(np.float32(wanted.w_scale))
    check(bool(right) or not wanted.w_q.any(),
          f"the scale of {spec.name} in {again.path} must be the model's",
          f"{found.w_scale!r} for {wanted.w_scale!r}", "report this")
    return moved, bool(found.w_scale == wanted.w_scale)


def _stored_scale(kind: str, given: dict[str, Any]) -> Callable[[Any], Any]:
    """What a scale becomes in such a file."""
    import numpy as np

    from bitnet_ref.formats.hf_write import FLOAT_TYPES

    word = given.get("dtype", "bfloat16") if kind == "hf" else "float16" if given.get("type") == "f16" \
        else "float32"
    dtype = FLOAT_TYPES[word][1]
    if given.get("storage") == "divide":
        return lambda s: 1 / np.float32(dtype(1 / s))
    return lambda s: np.float32(dtype(s))


def _check_floats(name: str, path: Path, wanted: Any, found: Any) -> bool:
    """Whether they are equal. Raises CheckError unless they are so in the dtype of `found`."""
    import numpy as np

    same = True
    for a, b in _blocks(wanted, found):
        same = same and bool(np.array_equal(a, b))
        rounded = (a.astype(b.dtype), a.astype(np.float32).astype(b.dtype))     # float64: two ways
        check(same or any(np.array_equal(x, b) for x in rounded),
              f"{name} in {path} must be the model's in {b.dtype}", "other numbers", "report this")
    return same


def _blocks(a: Any, b: Any) -> Iterator[tuple[Any, Any]]:
    """Two arrays of one shape side by side, SHARE entries at a time."""
    check(a.shape == b.shape, "a tensor read back must have the model's shape", f"{b.shape}, not {a.shape}",
          "report this")
    a, b = a.reshape(-1), b.reshape(-1)
    for begin in range(0, a.size, SHARE):
        yield a[begin:begin + SHARE], b[begin:begin + SHARE]


def _alike(name: str, value: Any, cfg: Any) -> bool:
    """Whether a field is that of `cfg`; a file may keep floats in 32 bits, and need not keep init_std."""
    if name == "init_std" or not isinstance(value, float):
        return name == "init_std" or value == getattr(cfg, name)
    return abs(value - getattr(cfg, name)) <= 1e-6 * abs(value)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        for file in (path, path.with_name(path.name + ".data")) if path.suffix == ".onnx" else (path,):
            file.unlink(missing_ok=True)


def main(argv: list[str]) -> int:
    """Parse, open, write, say.

    >>> import contextlib, io
    >>> from bitnet_ref.formats.example import written
    >>> with written("hf") as path, contextlib.redirect_stdout(io.StringIO()) as said:
    ...     code = main([str(path), f"{path.parent}/again.bitnet", "--packing", "i2"])
    >>> "trits equal, floats equal" in said.getvalue()
    True
    """
    parser = Parser("python -m bitnet_ref.convert", __doc__)
    parser.add_argument("source", type=text, metavar="SRC", help="a model of any format, or a name on a hub")
    parser.add_argument("path", type=text, metavar="DST", help="*.bitnet, *.gguf, *.onnx, or a new folder")
    for name, how in FLAGS.items():
        parser.add_argument(f"--{name}", **how)
    parser.add_argument("--i2s", type=text, metavar="128|64|4row",
                        help="layout of the I2_S in a .gguf source, which no such file says")
    args = parser.parse_args(argv)
    given = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    _writer(_target(args.path), dict(given))               # what is asked for wrongly is said at once
    from bitnet_ref.formats.opened import open_model

    try:
        print("\n".join(convert(open_model(args.source, args.i2s), args.path, given, sys.stderr.isatty())))
    except MemoryError:
        raise CheckError("the largest tensor must fit into memory; got no room for it; "
                         "close other programs") from None
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
