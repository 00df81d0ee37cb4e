"""The golden folder itself: checksums, budget, nothing unused, and the generator's own check."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bitnet_ref.bench import golden
from bitnet_ref.kernels import load
from bitnet_ref.layers import ALL_OPS

FOLDER = golden.folder()


def test_checksums():
    lines = (FOLDER / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    assert {n for n in listed if hashlib.sha256((FOLDER / n).read_bytes()).hexdigest() != listed[n]} == set()
    held = {p.relative_to(FOLDER).as_posix() for p in FOLDER.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert held - set(listed) - {"README.md", "SHA256SUMS"} == {p for p in held if p.endswith(".py")}


def test_budget():
    assert sum(p.stat().st_size for p in FOLDER.rglob("*.safetensors")) <= 5 << 20


def test_every_tensor_of_every_case_is_compared():
    """`errors` asks for the tensors that the file holds; here: no tensor belongs to no case."""
    for stem in golden.STEMS:
        held = set(golden.read(f"{stem}.safetensors"))
        claimed = {f"{name}/{t}" for name, case in golden.cases(stem).items() for t in case.tensors}
        assert held == claimed
    others = {"train10.safetensors", "rosetta.safetensors", "tiny/model.safetensors"}
    assert {e["file"] for e in golden.manifest()} == {f"{s}.safetensors" for s in golden.STEMS} | others


def test_every_op_has_golden_cases():
    """Each op of the contract is called by some golden case."""
    called = set()
    reference = load("numpy")

    class Watch:
        def __getattr__(self, op):
            called.add(op)
            return getattr(reference, op)

    for stem in golden.STEMS:
        for case in golden.cases(stem).values():
            golden.errors(case, stem, "float64", Watch())
    of_others = {"square_sum", "linear_cross_entropy", "prepare_rows", "prepare_table",   # see tests/layers
                 "zeros", "part", "fetch", "store_", "scale_", "add_", "approach_", "total"}
    assert called >= set(ALL_OPS) - of_others


def test_each_entry_is_complete():
    for e in golden.manifest():
        where = f"{e['file']} {e['case']}"
        assert len(e["about"]) > 3, where
        assert bool(e["second oracle"]) == bool(e["agreed to"]), where
        assert e["second oracle"] or e["why not"], where
        assert "or" not in (e["second oracle"] or "").split(), f"{where}: whose code, by name"
        for dtype, agreed in e["agreed to"].items():
            assert agreed == "equal" or agreed <= e["tolerance"][dtype], where


def test_metadata_in_each_file():
    for stem in (*golden.STEMS, "train10", "rosetta"):
        with open(FOLDER / f"{stem}.safetensors", "rb") as f:
            header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        assert {"torch", "transformers", "tags", "tolerance", "cases", "seeds"} <= set(header["__metadata__"])


def test_the_index_has_every_case():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    for e in golden.manifest():
        assert f"| {e['file']} | {e['case']} |" in index


@pytest.mark.parametrize(("ours", "error"), [
    ([1.0, 2.0], 0.0), ([1.0, 2.2], pytest.approx(0.1)), ([1.0], np.inf), ([[1.0, 2.0]], np.inf)])
def test_error(ours, error):
    assert golden.error(np.array(ours), np.array([1.0, 2.0])) == error


def test_integers_are_equal_or_infinitely_wrong():
    assert golden.error(np.int8([1, 2]), np.int8([1, 2])) == 0
    assert golden.error(np.int8([1, 3]), np.int8([1, 2])) == np.inf


@pytest.mark.oracle
def test_the_oracles_still_say_the_same():
    """golden/make.py --check: everything regenerated, both oracles, the stored files, the greedy text."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    make = Path(golden.folder()) / "make.py"
    done = subprocess.run([sys.executable, str(make), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "109 cases regenerated, 100 confirmed" in done.stdout
