"""One name, several places: who knows the path of one thing knows the paths of all that belongs to it.

layers/<stem>.py  <->  docs/ops/<stem>.md  <->  tests/layers/test_<stem>.py  <->  kernels/<backend>/<stem>.py
A missing page or test is a red test, not an oversight; so is one whose subject is gone.
"""

import fnmatch
import importlib
from pathlib import Path

import pytest

from bitnet_ref.layers import ALL_OPS

ROOT = Path(__file__).resolve().parent.parent
TOP = {"pyproject.toml", "bitnet_ref", "notebooks", "tests", "golden", "docs", "README.md", "LICENSE",
       "CHANGELOG.md", "CITATION.cff"}                    # and dotfiles
REQUIRED = {"pyproject.toml", "bitnet_ref", "tests", "golden", "docs", "README.md", "LICENSE"}
BESIDE_THE_LAYERS = {"quant"}                             # ops that live one level up
# What a backend has besides ops: host features, device memory, and the whole-model paths.
BESIDE_THE_OPS = {"isa", "device", "memory", "workspace", "prefill", "decode_step", "train_step", "cache",
                  "bf16", "rans", "tiles", "vectors", "threads", "frame", "atomics", "program", "whole",
                  "driver", "launch", "asm", "precision", "sampling", "tensor", "gemm", "gemm_hopper", "gemv",
                  "hopper", "ternarise"}


def stems(folder, pattern="*.py"):
    return {p.stem for p in (ROOT / folder).glob(pattern) if not p.name.startswith("__")}


LAYERS = stems("bitnet_ref/layers")
OVERLAYS = [p.parent.name for p in ROOT.glob("bitnet_ref/kernels/*/__init__.py")
            if p.parent.name != "ptx"]                    # the interpreter is no backend, one runs on it


def test_there_are_layers():
    assert {"rmsnorm", "rope", "attention", "bitlinear", "adamw"} <= LAYERS


def test_each_layer_has_a_page_and_each_page_a_layer():
    assert stems("docs/ops", "*.md") == LAYERS | BESIDE_THE_LAYERS


def test_each_layer_has_tests_and_all_tests_a_layer():
    assert {s.removeprefix("test_") for s in stems("tests/layers", "test_*.py")} == LAYERS


def test_quant_has_tests():
    assert (ROOT / "tests/test_quant.py").is_file()


@pytest.mark.parametrize("name", ALL_OPS)
def test_each_op_is_defined_in_a_stem(name):
    package, _, stem = ALL_OPS[name].__module__.rpartition(".")
    assert stem in LAYERS | BESIDE_THE_LAYERS, f"{name} comes from {package}.{stem}"
    assert ALL_OPS[name].__name__ == name


def test_each_public_function_of_a_layer_is_an_op():
    """What a backend may replace is what the layers offer. The table of angles is not an op."""
    offered = set()
    for stem in LAYERS:
        module = importlib.import_module(f"bitnet_ref.layers.{stem}")
        offered |= {n for n, f in vars(module).items() if callable(f) and not isinstance(f, type)
                    and getattr(f, "__module__", "") == module.__name__ and not n.startswith("_")}
    assert offered - set(ALL_OPS) == {"rope_table"}


def test_forward_and_backward_come_in_pairs():
    backward = {n for n in ALL_OPS if n.endswith("_backward")}
    assert {n.removesuffix("_backward") for n in backward} <= set(ALL_OPS)
    # no derivative: quantisers (straight-through), the form of a weight, the update, fusions of pairs
    # and what is done to vectors
    without = {"absmean_ternary", "absmax_int8", "prepare", "prepare_rows", "prepare_table", "adamw_",
               "square_sum", "rmsnorm_int8", "linear_cross_entropy",
               "zeros", "part", "fetch", "store_", "scale_", "add_", "approach_", "total"}
    assert {n for n in ALL_OPS if n not in backward and f"{n}_backward" not in ALL_OPS} == without


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kernels_carry_the_stems_of_the_layers(overlay):
    found = {stem.removesuffix("_backward") for stem in stems(f"bitnet_ref/kernels/{overlay}")}
    extra = found - LAYERS - BESIDE_THE_LAYERS - BESIDE_THE_OPS
    assert extra == set(), f"kernels/{overlay} has stems that no layer has"


def test_tests_mirror_packages():
    folders = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and any(p.glob("test_*.py"))}
    assert folders <= {p.name for p in (ROOT / "bitnet_ref").iterdir() if p.is_dir()}


def test_each_layer_has_golden_tensors():
    beyond = {"model_pre", "model_sub", "model_inner", "train10", "rosetta"}    # of more than one op
    assert stems("golden", "*.safetensors") == LAYERS | BESIDE_THE_LAYERS | beyond


def test_the_top_level_is_fixed():
    ignored = [line.rstrip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    names = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    names = {n for n in names if not any(fnmatch.fnmatch(n, pattern) for pattern in ignored)}
    assert names <= TOP
    assert names >= REQUIRED
