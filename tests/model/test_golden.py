"""Whole models, ten training steps and a trained model against the golden tensors."""

import numpy as np
import pytest
from against_golden import golden_test

from bitnet_ref.bench import golden
from bitnet_ref.formats import hf
from bitnet_ref.generate.decode import decode
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer

test_pre = golden_test("model_pre", "float32_model")
test_sub = golden_test("model_sub", "float32_model")
test_inner = golden_test("model_inner", "float32_model")


def test_train10(backends, tol):
    """Ten steps of forward, backward, clipping, schedule and AdamW, in float64; parameters, moments."""
    found = golden.train10(backends)
    assert len(found) == 4 * 10 + 3 * (1 + 2 * 11 + 1)
    assert {name: e for name, e in found.items() if not e <= tol["float64"]} == {}


def test_train10_in_float32(backends, tol):
    """The same, in the precision that trains."""
    found = golden.train10(backends, "float32")
    assert {name: e for name, e in found.items() if not e <= tol["float32_train10"]} == {}


def test_all_the_layouts_are_there():
    seen = {e["case"] for e in golden.manifest() if e["file"].startswith("model_")}
    asked = {f"{norm}_{glu}_{tied}_gqa{r}" for norm in ("pre", "sub", "inner") for glu in ("swiglu", "relu2")
             for tied in ("tied", "untied") for r in (1, 2, 4)}
    assert asked <= seen


def test_float32_models_are_clear_of_ties():
    margins = [e["margin"] for e in golden.manifest() if e["file"].startswith("model_") and e["margin"]]
    assert len(margins) >= 36
    assert min(margins) >= 1e-3


def test_a_fault_in_the_reference_would_be_seen(monkeypatch):
    """The golden tensors bite: the gated unit of another model, and a rounding that differs at ties only."""
    ops = load("numpy")
    case = golden.cases("model_sub")["sub_relu2_tied_gqa2"]
    monkeypatch.setattr(ops, "relu2", ops.swiglu)
    assert golden.errors(case, "model_sub", "float64", ops)["out.logits"] > 1e-3
    monkeypatch.setattr(np, "rint", lambda x, out=None: np.floor(x + 0.5, out=out))
    ties = golden.cases("quant")["absmax_ties"]
    assert golden.errors(ties, "quant", "float32", load("numpy"))["out.x_q"] == np.inf


@pytest.mark.parametrize("through", ["folder", "transformer"])
def test_the_tiny_model_recites_its_text(through):
    """A committed model of the 2B4T shape, packed; its greedy text must be this text."""
    text = (golden.folder() / "greedy.txt").read_text(encoding="utf-8")
    assert text.startswith("A trit is a digit with three values: minus one, zero and plus one.")
    cfg, weights = hf.read(golden.folder() / "tiny")
    model = Transformer(cfg, weights, load("numpy"))
    if through == "folder":
        short = 60
        ids = np.array([ord(c) for c in text[:7]])
        made = [step.token for step in decode(model, ids, short)]
        assert "".join(map(chr, made)) == text[7:7 + short]
    else:                                                  # all positions at once: the same tokens
        ids = np.array([[ord(c) for c in text]])
        logits, _ = model(ids)
        assert "".join(map(chr, logits[0, 6:-1].argmax(axis=-1))) == text[7:]
