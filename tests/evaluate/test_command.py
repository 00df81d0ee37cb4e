"""python -m bitnet_ref.evaluate: the run's own validation text or another, and what is counted."""

import json
import math

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file
from tiny import own_cache  # noqa: F401

from bitnet_ref.cli import run_command
from bitnet_ref.data.prepare import prepare
from bitnet_ref.evaluate import __main__ as command
from bitnet_ref.evaluate import corpus
from bitnet_ref.evaluate.corpus import score_corpus
from bitnet_ref.evaluate.perplexity import score
from bitnet_ref.formats.checkpoint import STATE, TENSORS, latest, read_state, write_checkpoint
from bitnet_ref.generate.language_model import load
from bitnet_ref.kernels import BACKENDS
from bitnet_ref.train.checkpoint import save


@pytest.fixture
def run(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    tiny.trained()
    capsys.readouterr()

    def run(*arguments, model=None):
        code = run_command(command.main, ["--model", str(model or tiny.trained()), *map(str, arguments)])
        return (code, *capsys.readouterr())

    return run


def own_score(windows=None):
    data = prepare(str(tiny.corpus()), None, 300, 0.1, 0, progress=False)
    return score(load(tiny.trained()).transformer, data.val.tokens, data.tokenizer.token_bytes, windows)


def test_the_runs_own_validation_text_is_scored(run):
    want = own_score()
    code, out, _ = run("--json")
    assert code == 0
    assert json.loads(out) == {"loss": want.loss, "perplexity": want.perplexity, "tokens": want.tokens,
                               "bits per byte": want.bits_per_byte, "bytes": want.bytes}


@pytest.mark.parametrize("how", ["val", "mixture"])
def test_the_validation_text_of_a_run_is_found_however_it_was_named(how, tmp_path):
    (tmp_path / "val.txt").write_text(tiny.text(100, 7), encoding="utf-8")
    given = ({"val": str(tmp_path / "val.txt")} if how == "val"
             else {"corpus": f"{tiny.corpus()}=2,{tiny.corpus(seed=3)}=1"})
    run, data = tiny.begin(tmp_path / "run", **given)
    save(run)
    assert score_corpus(str(run.folder), None, backend="numpy").tokens == len(data.val.tokens) - 1


def test_the_figures_are_printed_for_a_person(run):
    want = own_score()
    _, out, _ = run()
    assert out == (f"perplexity      {want.perplexity:.3f}\nbits per byte   {want.bits_per_byte:.4f}\n"
                   f"loss            {want.loss:.4f} nats per token\n"
                   f"counted         {want.tokens:,} tokens, {want.bytes:,} bytes\n")


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "cuda"])
def test_a_head_of_int8_rows_costs_less_than_a_thousandth(run, backend):
    whole, rounded = (json.loads(run("--json", "--backend", backend, *how)[1])["perplexity"]
                      for how in ((), ("--int8-head",)))
    assert 0 < abs(rounded / whole - 1) < 1e-3


def test_a_limit_of_windows(run):
    want = own_score(3)
    assert json.loads(run("--json", "--windows", 3)[1])["loss"] == want.loss
    assert want.tokens == 3 * 32


def test_another_text_is_scored_from_end_to_end(run, tmp_path):
    """Two documents: EOS a EOS b EOS. Every byte of both is predicted, and so is each end."""
    documents = ["Ba né 日本.", "Ce di 🙂 fo gu."]
    lines = [json.dumps({"text": text}) for text in documents]
    (tmp_path / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
    figures = json.loads(run("--json", "--corpus", tmp_path / "text.jsonl")[1])
    model = load(tiny.trained())
    tok = model.tokenizer
    ids = [tok.eos]
    for text in documents:
        ids += [*tok.encode(text).tolist(), tok.eos]
    assert figures["bytes"] == sum(len(text.encode("utf-8")) for text in documents)
    assert figures["tokens"] == len(ids) - 1
    want = score(model.transformer, np.array(ids), tok.token_bytes)
    assert (figures["loss"], figures["bits per byte"]) == (want.loss, want.bits_per_byte)


def test_a_prepared_run_is_scored_from_its_dataset(tmp_path):
    """A run whose corpus is a dataset finds its validation side there."""
    data = prepare(str(tiny.corpus()), None, 300, 0.1, 0, progress=False)
    run = tiny.train(tmp_path / "run", corpus=str(data.folder), steps=2)
    assert score_corpus(str(run.folder), None).tokens == len(data.val.tokens) - 1


def test_a_model_worse_than_guessing_gets_no_perplexity_and_exit_code_1(run, tmp_path):
    """The embedding a hundred times as large: sure of itself, and wrong."""
    bad = tiny.copy(tiny.trained(), tmp_path / "run")
    tensors, state = load_file(latest(bad) / TENSORS), read_state(latest(bad))
    tensors["param.embedding"] = tensors["param.embedding"] * np.float32(-100)
    write_checkpoint(bad, 20, tensors, {k: v for k, v in state.items() if k != "sha256"})
    code, out, _ = run(model=bad)
    assert code == 1
    assert "perplexity      none: a loss above log(300) means worse than guessing; is this the right" in out
    code, out, _ = run("--json", model=bad)
    figures = json.loads(out)
    assert code == 1
    assert figures["perplexity"] is None
    assert figures["loss"] > math.log(300)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--model", "nowhere", "--windows", 0], ["--windows must be greater than 0", "got 0"]),
    (["--windows", 0], ["--windows must be greater than 0", "got 0"]),
    (["--windows", -3], ["--windows must be greater than 0", "got -3"]),
    (["--corpus", "nowhere.txt"], ["a corpus must be one of", "'nowhere.txt'"]),
    (["--model", "nowhere"], ["a model must be a run's folder"]),
    (["--backend", "abacus"], ["backend must be one of"]),
    (["--model", ""], ["--model must not be empty"]),
    (["--corpus", ""], ["--corpus must not be empty"]),
    (["--output", "r.json"], ["--output must be of an evaluation that keeps a record", "--stride"]),
    (["--run-programs"], ["--run-programs must be of the evaluation", "perplexity", "add --humaneval"]),
    (["--batch", 16], ["--batch must be of the evaluation", "add --tasks"]),
    (["--tasks", "x", "--temperature", 0.0], ["--temperature must be of the", "one of kind choice"]),
    (["--stride", 3, "--windows", 2], ["--windows must be of the evaluation", "one of kind sliding"]),
    (["--windows", "x"], ["--windows must be an int; got 'x'", "see python -m bitnet_ref.evaluate --help"]),
])
def test_what_is_wrong_is_refused_by_name(arguments, words, run):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    tiny.assert_three_parts(err, *words)


def test_a_model_alone_is_refused_before_it_is_loaded(run, tmp_path, monkeypatch):
    """Its name is looked up once: on a hub that is a download."""
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + b"damaged")
    asked, real = [], corpus.folder_of
    monkeypatch.setattr(corpus, "folder_of", lambda path: asked.append(path) or real(path))
    code, _, err = run(model=tmp_path / "a.gguf")
    assert code == 2
    tiny.assert_three_parts(err, "a model alone has no validation text", "a.gguf", "--corpus PATH")
    assert asked == [str(tmp_path / "a.gguf")]


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\x00\x01", b"\xff\xfe"])
def test_a_text_that_is_none_is_refused(content, run, tmp_path):
    (tmp_path / "text.txt").write_bytes(content)
    code, _, err = run("--corpus", tmp_path / "text.txt")
    assert code == 2
    tiny.assert_three_parts(err, "a corpus must")


def test_the_validation_text_must_be_the_one_of_the_run(run, tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_bytes(tiny.corpus().read_bytes())
    tiny.train(tmp_path / "run", corpus=str(corpus), steps=2)
    corpus.write_text(tiny.text(seed=5), encoding="utf-8")
    code, _, err = run(model=tmp_path / "run")
    assert code == 2
    tiny.assert_three_parts(err.splitlines()[-1], "the validation text must be the one", "text.txt")


def test_a_corpus_that_is_gone_is_named_with_the_way_out(run, tmp_path):
    corpus = tmp_path / "text.txt"
    corpus.write_bytes(tiny.corpus().read_bytes())
    tiny.train(tmp_path / "run", corpus=str(corpus), steps=2)
    corpus.unlink()
    code, out, err = run(model=tmp_path / "run")
    assert (code, out) == (2, "")
    tiny.assert_three_parts(err.splitlines()[-1], "text.txt", "or name a text with --corpus PATH")


@pytest.mark.parametrize("train", [None, {"lr": 1.0}])
def test_a_model_that_does_not_say_what_it_was_trained_on_needs_a_corpus(train, run, tmp_path):
    path = tiny.copy(tiny.trained(), tmp_path / "run")
    state = json.loads((latest(path) / STATE).read_text(encoding="utf-8"))
    tiny.put_state(latest(path), {**state, "train": train})
    code, _, err = run(model=path)
    assert code == 2
    tiny.assert_three_parts(err, "must say what the run was trained on", "--corpus PATH")
    assert run("--corpus", tiny.corpus(40), model=path)[0] == 0
