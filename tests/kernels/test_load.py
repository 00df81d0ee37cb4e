"""kernels: a backend is the reference with some names replaced, and imports nothing it does not use."""

import subprocess
import sys
from types import ModuleType

import numba
import pytest

from bitnet_ref import kernels
from bitnet_ref.checks import CheckError
from bitnet_ref.kernels.numba_cpu import isa
from bitnet_ref.layers import ALL_OPS


def test_numpy_is_the_reference_itself():
    assert vars(kernels.load("numpy")) == ALL_OPS
    assert vars(kernels.load()) == ALL_OPS


def test_every_backend_has_every_op(backends):
    assert vars(backends).keys() - kernels.PATHS == ALL_OPS.keys()


def test_every_forward_has_its_backward():
    pairs = {name.removesuffix("_backward") for name in ALL_OPS if name.endswith("_backward")}
    assert pairs <= ALL_OPS.keys()
    assert ALL_OPS.keys() - pairs - {f"{name}_backward" for name in pairs} == {
        "absmean_ternary", "absmax_int8", "rmsnorm_int8", "prepare", "prepare_rows", "prepare_table",
        "adamw_", "square_sum", "zeros", "part", "fetch", "store_", "scale_", "add_", "approach_", "total",
        "linear_cross_entropy"}


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(CheckError, match=r"backend must be one of numpy.*; got 'abacus'"):
        kernels.load("abacus")


def test_overlays_replace_what_they_provide_in_order(monkeypatch):
    for folder, ops in (("first", {"linear": 1, "rope": 1}), ("second", {"rope": 2})):
        overlay = ModuleType(folder)
        vars(overlay).update(ops, PROVIDES=dict(ops), swiglu="not provided, so not taken")
        monkeypatch.setitem(sys.modules, f"bitnet_ref.kernels.{folder}", overlay)
    monkeypatch.setitem(kernels.BACKENDS, "both", ("first", "second"))
    assert vars(kernels.load("both")) == {**ALL_OPS, "linear": 1, "rope": 2}
    assert vars(kernels.load("numpy")) == ALL_OPS


def test_what_a_backend_computes_with():
    assert kernels.about("numpy").keys() == {"backend", "threads"}
    about = kernels.about("numba")
    assert (about["backend"], about["threads"]) == ("numba", numba.get_num_threads())
    assert about["instructions"] in isa.TIERS


def test_a_namespace_is_the_callers_own():
    kernels.load("numpy").linear = None
    assert kernels.load("numpy").linear is ALL_OPS["linear"]


def test_the_reference_imports_numpy_alone():
    code = ("import sys; from bitnet_ref.kernels import load; load('numpy'); "
            "print(*sorted({'numba', 'torch', 'matplotlib', 'tokenizers', 'scipy'} & set(sys.modules)))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
