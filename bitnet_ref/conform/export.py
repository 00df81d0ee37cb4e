"""`conform export DIR`: the homework as files that ports read in real life, and the list of what to dump.

hf: two Hugging Face folders (packed, bfloat16) and safetensors. i2s: raw files whose ternary matrices are
I2_S, bytes and tail as in a GGUF. npz, raw: trits and floats, unpacked, for ports that begin with the
arithmetic. docs/porting.md, which goes along, is enough to write the port from.
Read after: conform/picture. Read next: conform/verdict.
"""

import argparse
import hashlib
import json
import shutil
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.cli import DONE, Parser, text
from bitnet_ref.conform.graph import Node, graph, leaves
from bitnet_ref.conform.homework import INVERSE, MODELS, Homework, homework
from bitnet_ref.conform.judge import Judge
from bitnet_ref.conform.training_slots import Hyper
from bitnet_ref.data.atomic import unreadable, unwritable, whole_file
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.source import of_weights
from bitnet_ref.model.weights import Trits
from bitnet_ref.pack import rosetta

LIST, FORMAT, VERSION, DUMP = "homework.json", "bitnet_ref homework", 1, "dump"
FOR = ("hf", "i2s", "npz", "raw")
PAGES = ("porting.md", "faults.md")
LARGEST_LIST = 1 << 22                                     # bytes of a homework.json that we read


def add_arguments(parser: Parser) -> None:
    """Of `conform export`."""
    parser.add_argument("folder", type=text, metavar="DIR", help="a new or empty folder")
    parser.add_argument("--for", dest="kind", type=text, default="hf", metavar="|".join(FOR),
                        help="how the weights are stored (default: hf)")
    parser.add_argument("--layout", type=text, default="128", metavar="|".join(rosetta.I2S),
                        help="of --for i2s: x86's blocks of 128, ARM's of 64, four rows (default: 128)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other numbers (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Write the homework, say where."""
    made = export(Path(args.folder), args.kind, args.layout, args.seed)
    print(f"{len(made)} files in {args.folder}. Read {PAGES[0]} there; write your tensors to "
          f"{args.folder}/{DUMP}, then: python -m bitnet_ref.conform {args.folder}")
    return DONE


def layout_of(kind: str, i2s: str) -> str:
    """The layout of the stored trits: "hf", an I2_S layout, or "plain"."""
    return {"hf": "hf", "i2s": i2s}.get(kind, "plain")


def export(folder: Path, kind: str = "hf", i2s: str = "128", seed: int = 0) -> list[Path]:
    """Write the homework into a new or empty folder. Returns its files.

    Raises CheckError: an unknown kind or layout, a folder with something in it, a disk that refuses.
    """
    lookup(FOR, kind, "--for")
    lookup(rosetta.I2S, i2s, "--layout")
    check(0 <= seed < 1 << 63, "--seed must lie in [0, 2^63)", seed, "choose another")
    try:
        check(not folder.exists() or (folder.is_dir() and not any(folder.iterdir())),
              "the homework must go into a new or empty folder", folder,
              "choose another, or remove what is there")
        (folder / DUMP).mkdir(parents=True, exist_ok=True)
        work = homework(seed)
        {"hf": _hf, "npz": _npz, "raw": _raw, "i2s": _raw}[kind](folder, work, layout_of(kind, i2s))
        for name in PAGES:
            shutil.copyfile(page(name), folder / name)
    except OSError as e:
        raise unwritable(folder, e) from None
    _write(folder / LIST, a_line_each(contents(work, kind, i2s)).encode())
    return sorted(p for p in folder.rglob("*") if p.is_file())


def contents(work: Homework, kind: str, i2s: str) -> dict[str, Any]:
    """homework.json: how the files are laid out, configs, token ids, and the tensors to dump, in order."""
    layout = layout_of(kind, i2s)
    nodes = graph(layout)
    return {
        "format": FORMAT, "version": VERSION, "seed": work.seed, "for": kind, "layout": layout,
        "fingerprint": fingerprint(work, layout),
        "models": {m: {"folder": m, "ids": work.ids[m].tolist(),
                       "weight_scale": "inverse: w = w_q / weight_scale" if INVERSE[m] and kind == "hf"
                       else "multiplier: w = w_q * scale", "config": _shape(m)} for m in MODELS},
        "adamw": Hyper()._asdict(),
        "dump": [{"name": n.name, "shape": list(shape), "dtype": "int8" if n.codes else "float32",
                  "about": n.about, "from": list(n.inputs)}
                 for n, shape in zip(nodes, shapes(nodes, work, layout))],
    }


def fingerprint(work: Homework, layout: str) -> str:
    """SHA-256 of everything that is given: a judge of another release would draw other numbers."""
    digest = hashlib.sha256(repr(Hyper()).encode())
    for name, t in sorted(leaves(work, layout).items()):
        digest.update(f"{name} {np.shape(t)}".encode() + np.asarray(t, order="C").tobytes())
    return digest.hexdigest()


def a_line_each(found: dict[str, Any]) -> str:
    """JSON for people: one line for a model, one for a tensor."""
    def lines(value: Any) -> str:
        if isinstance(value, dict) and "bitnet" in value:
            return "{\n  " + ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[\n  " + ",\n  ".join(json.dumps(v) for v in value) + "]"
        return json.dumps(value)

    return "{\n" + ",\n".join(f" {json.dumps(k)}: {lines(v)}" for k, v in found.items()) + "\n}\n"


def _shape(model: str) -> dict[str, Any]:
    kept = ("vocab_size", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "norm", "glu",
            "tied_embeddings", "rope_theta", "norm_eps")
    return {name: value for name, value in asdict(MODELS[model]).items() if name in kept}


def shapes(nodes: list[Node], work: Homework, layout: str) -> list[tuple[int, ...]]:
    """The shape of every node: that of what the reference makes of it."""
    judge = Judge(nodes, leaves(work, layout), {})
    return [np.shape(judge.make(n.name)) for n in nodes]


def read_list(folder: Path) -> tuple[int, str]:
    """(seed, layout) of an exported homework. Raises CheckError: not one, damaged, or of another release."""
    file = folder / LIST
    check(file.is_file(), f"{folder} must hold {LIST}", "none", "give the folder that `conform export` wrote")
    try:
        check(file.stat().st_size <= LARGEST_LIST, f"{file} must have at most {LARGEST_LIST} bytes",
              file.stat().st_size, "export the homework again")
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise unreadable(file, e) from None
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{file} must be JSON; got {e}; export the homework again") from None
    ours = isinstance(found, dict) and found.get("format") == FORMAT
    check(ours, f'{file} must say format = "{FORMAT}"', type(found).__name__, "export the homework again")
    check(found.get("version") == VERSION, f"{file} must have version {VERSION}", found.get("version"),
          "export it with this release of bitnet_ref")
    seed, layout = found.get("seed"), found.get("layout")
    check(type(seed) is int and 0 <= seed < 1 << 63, f"{file} must have a seed", repr(seed),
          "export it again")
    lookup(("plain", "hf", *rosetta.I2S), str(layout), f"the layout in {file}")
    check(found.get("fingerprint") == fingerprint(homework(seed), layout),
          f"{file} must be of this release's homework", f"fingerprint {str(found.get('fingerprint'))[:12]}",
          "export it again; another release drew other numbers")
    return seed, layout


def page(name: str) -> Path:
    """A page of docs/ that the wheel carries: beside this module when installed, in docs/ in a clone."""
    inside = Path(str(files("bitnet_ref.conform"))) / name
    return inside if inside.is_file() else Path(__file__).resolve().parents[2] / "docs" / name


def tensors(work: Homework, model: str) -> dict[str, np.ndarray]:
    """The unpacked weights of a model: trits int8, `<name>.scale` their multiplier, floats float32."""
    found = {}
    for name, t in work.weights[model].items():
        if isinstance(t, Trits):
            found[name], found[f"{name}.scale"] = t.w_q, np.asarray(t.w_scale)
        elif name != "head" or not MODELS[model].tied_embeddings:
            found[f"{name}.gain" if t.ndim == 1 else name] = t
    return found


def _hf(folder: Path, work: Homework, layout: str) -> None:
    from safetensors.numpy import save

    for model, cfg in MODELS.items():
        write_hf(folder / model, of_weights(cfg, work.weights[model]),
                 "divide" if INVERSE[model] else "multiply")
    _write(folder / "probes.safetensors", save({n: np.asarray(t, order="C") for n, t in work.probes.items()}))


def _npz(folder: Path, work: Homework, layout: str) -> None:
    for name, held in {**{m: tensors(work, m) for m in MODELS}, "probes": work.probes}.items():
        with whole_file(folder / f"{name}.npz") as file:
            np.savez(file, **held)                         # type: ignore[arg-type]


def _raw(folder: Path, work: Homework, layout: str) -> None:
    """A folder each: one .bin a tensor, little-endian, and an index.json. I2_S: data and 32-byte tail."""
    for name, held in {**{m: tensors(work, m) for m in MODELS}, "probes": work.probes}.items():
        index = {}
        for tensor, t in held.items():
            dtype, data = str(t.dtype), np.asarray(t, order="C")
            if layout != "plain" and f"{tensor}.scale" in held:
                dtype, data = "i2_s", rosetta.pack_i2s(t, held[f"{tensor}.scale"], layout)
            index[tensor] = {"file": f"{tensor}.bin", "dtype": dtype, "shape": list(t.shape)}
            _write(folder / name / f"{tensor}.bin", data.astype(data.dtype.newbyteorder("<")).tobytes())
        _write(folder / name / "index.json", json.dumps(index, indent=1).encode())


def _write(path: Path, data: bytes) -> None:
    with whole_file(path) as file:
        file.write(data)
