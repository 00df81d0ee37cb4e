"""bench/torch_peer: the official pseudo-code under autograd, from our start on our batches: our losses."""

import json
import sys

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import torch_peer
from bitnet_ref.cli import run_command
from bitnet_ref.train import log

oracle = pytest.mark.oracle
FEW = {"steps": 5, "eval_every": 5, "save_every": 5}


@pytest.fixture
def torch():
    module = pytest.importorskip("torch", reason="torch is not installed (extra `oracle`)")
    threads = module.get_num_threads()
    module.set_num_threads(1)                # at this size threads only wait for each other
    yield module
    module.set_num_threads(threads)


def losses_of_both(path, **given):
    """(ours, the peer's) of the same five steps, and the figures of the peer."""
    run = tiny.train(path, **{**FEW, **given})
    cfg, how = tiny.configs(**{**FEW, **given})
    data = torch_peer.prepare(how.corpus, how.tokenizer, cfg.vocab_size, how.val_fraction, how.seed)
    figures = torch_peer.train_peer(run.model.cfg, how, data)
    return [line["loss"] for line in log.read(run.folder, "step")], figures["losses"], figures


@oracle
@pytest.mark.parametrize("given", [
    {}, {"norm": "pre"}, {"glu": "relu2", "tied_embeddings": False}, {"accumulate": 2, "n_kv_heads": 1},
    {"schedule": "cosine", "weight_decay": 0.3, "max_norm": 0.3, "warmup": 0}], ids=str)
def test_the_first_losses_are_ours(given, torch, tmp_path):
    """Ternary: a difference in the last bit may flip a code, which moves the loss. The twin has no codes."""
    ours, theirs, _ = losses_of_both(tmp_path / "ternary", **given)
    assert theirs == pytest.approx(ours, abs=1e-3)
    ours, theirs, _ = losses_of_both(tmp_path / "full", linear="full", **given)
    assert theirs == pytest.approx(ours, abs=1e-5)


@oracle
def test_the_final_score_is_of_the_same_text(torch, tmp_path):
    from bitnet_ref.evaluate.corpus import score_corpus
    *_, figures = losses_of_both(tmp_path / "run", linear="full")
    ours = score_corpus(str(tmp_path / "run"), None)
    assert figures["bits per byte"] == pytest.approx(ours.bits_per_byte, abs=1e-4)
    assert (figures["mode"], figures["steps"], len(figures["losses"])) == ("float32", 5, 5)
    assert figures["median seconds per step"] > 0


@oracle
def test_the_command_writes_its_figures(torch, tmp_path, capsys):
    arguments = ["--output", str(tmp_path / "peer.json"), *tiny.flags(**FEW)]
    assert run_command(torch_peer.main, arguments) == 0
    figures = json.loads((tmp_path / "peer.json").read_text(encoding="utf-8"))
    assert f"{figures['bits per byte']:.4f} bits per byte after 5 steps" in capsys.readouterr().out


@oracle
def test_half_precision_is_near(torch, tmp_path):
    run = tiny.train(tmp_path / "run", **FEW)
    cfg, how = tiny.configs(**FEW)
    data = torch_peer.prepare(how.corpus, how.tokenizer, cfg.vocab_size, how.val_fraction, how.seed)
    theirs = torch_peer.train_peer(cfg, how, data, "bf16")["losses"]
    assert theirs == pytest.approx([line["loss"] for line in log.read(run.folder, "step")], abs=0.1)


@pytest.mark.parametrize("given", [{"norm": "inner"}, {"head": "ternary"}])
def test_what_the_peer_does_not_know_is_refused(given, capsys):
    assert run_command(torch_peer.main, tiny.flags(**given)) == 2
    tiny.assert_three_parts(capsys.readouterr().err, "the peer knows norm = pre, sub and head = full")


def test_without_torch_one_line_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run_command(torch_peer.main, tiny.flags(**FEW)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    tiny.assert_three_parts(last, "torch must be installed", "pip install")
