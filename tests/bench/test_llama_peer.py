"""bench/llama_peer: llama.cpp runs our model. bench/child: a peer answers, fails or is missing."""

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import tiny

from bitnet_ref import kernels
from bitnet_ref.bench import llama_peer
from bitnet_ref.bench.child import Child
from bitnet_ref.bench.random_model import BLOCKS, QUICK, random_weights
from bitnet_ref.checks import CheckError
from bitnet_ref.cli import run_command
from bitnet_ref.model.transformer import Transformer
from bitnet_ref.model.weights import Trits

IDS = [3, 1, 4, 1, 5, 9, 2, 6, 100, 200]
PEER = "bitnet_ref.bench.llama_peer"


@pytest.fixture(scope="module")
def llama():
    """Start the peer with a small model in a format: here, or in the interpreter that the variable names."""
    python = os.environ.get("BITNET_REF_LLAMA_PYTHON", sys.executable)
    has = subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True)
    if has.returncode:
        pytest.skip("llama-cpp-python and gguf are not installed")
    return lambda kind: Child(python, PEER, "--quick", "--format", kind)


def our_logits(linear):
    cfg = replace(QUICK, linear=linear)
    model = Transformer(cfg, random_weights(cfg, np.float32), kernels.load("numpy"))
    return model.prefill(np.array([IDS]))[0][0]


@pytest.mark.parametrize(("kind", "linear", "tolerance"), [
    ("F16", "full", 1e-3),                   # no activation is quantised: equal up to the rounding of float16
    ("TQ2_0", "ternary", 2e-2), ("TQ1_0", "ternary", 2e-2)])       # activations by blocks of 256, not by rows
def test_its_logits_are_ours(llama, kind, linear, tolerance):
    with llama(kind) as child:
        theirs = np.array(child.ask("logits", ids=IDS)["logits"])
        again = np.array(child.ask("logits", ids=IDS)["logits"])
    ours = our_logits(linear)
    assert np.abs(theirs - ours).max() < tolerance * np.abs(ours).max()
    assert np.array_equal(theirs, again)


def test_it_times_prompts_and_tokens(llama):
    with llama("TQ2_0") as child:
        assert child.about["about"].startswith("llama-cpp-python")
        assert child.ask("prefill", tokens=8)["seconds"] > 0
        assert child.ask("decode", context=8, tokens=2)["seconds"] > 0


@pytest.mark.parametrize("given", [{"norm": "pre"}, {"tied_embeddings": False}, {"d_model": 64}])
def test_what_its_arch_does_not_know_is_refused(given, tmp_path, monkeypatch):
    monkeypatch.setattr(llama_peer, "modules", lambda: (None, None))
    with pytest.raises(CheckError) as refused:
        llama_peer.write_gguf(tmp_path / "x.gguf", replace(QUICK, **given), "TQ2_0")
    tiny.assert_three_parts(str(refused.value), "; got ")


def test_without_it_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(CheckError, match=r"pip install llama-cpp-python gguf"):
        llama_peer.modules()


def test_its_bytes_are_those_of_its_blocks():
    """2.0625 bits a weight, 1.6875, 16: and the head in float16."""
    n = 8 * (2 * 2560 * 2560 + 2 * 640 * 2560 + 3 * 2560 * 6912)
    for kind, bits in (("TQ2_0", 2.0625), ("TQ1_0", 1.6875), ("F16", 16)):
        assert llama_peer.bytes_per_token(BLOCKS, kind) == n * bits / 8 + 2 * 32000 * 2560


def test_random_weights_are_shared_by_blocks_and_twins():
    ternary, full = (random_weights(replace(QUICK, linear=kind), np.float32) for kind in ("ternary", "full"))
    assert ternary["layers.0.attn.wq"] is ternary["layers.1.attn.wq"]
    for name, t in ternary.items():
        if isinstance(t, Trits):
            assert np.array_equal(t.w_q * t.w_scale, full[name]), name
        else:
            assert np.array_equal(t, full[name]), name


# ---- children ----

def test_a_child_that_cannot_start():
    with pytest.raises(CheckError) as refused:
        Child("/no/such/python", PEER)
    tiny.assert_three_parts(str(refused.value), "must be a Python interpreter")


def test_a_child_that_ends_says_why():
    with pytest.raises(CheckError, match=r"exit code 1, .*No module named"):
        Child(sys.executable, "bitnet_ref.bench.no_such_module")


def test_a_refusal_is_an_answer(capsys):
    """The peer's own words, whether it is installed or not."""
    with pytest.raises(CheckError) as refused:
        Child(sys.executable, "bitnet_ref.bench.torch_peer", "--serve", "--norm", "inner")
    assert "the peer knows norm = pre, sub" in str(refused.value)
    assert run_command(llama_peer.main, ["--format", "Q4_0"]) == 2
    tiny.assert_three_parts(capsys.readouterr().err, "--format")
