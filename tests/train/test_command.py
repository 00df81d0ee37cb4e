"""python -m bitnet_ref.train: bad input is one line that names it; results on stdout, progress on stderr."""

import errno
import json
import os
import re

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.cli import run_command
from bitnet_ref.formats import checkpoint as files
from bitnet_ref.train import __main__ as command
from bitnet_ref.train import log, loop, start, summary


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command in this process: (exit code, stdout, stderr). Pictures have their own tests."""
    monkeypatch.setattr(summary, "draw", lambda *args: {})

    def run(*arguments):
        code = run_command(command.main, [str(a) for a in arguments])
        return (code, *capsys.readouterr())

    return run


def refused(result, *words):
    code, out, err = result
    assert code == 2
    assert out == ""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in err
    tiny.assert_three_parts(errors[0], *words)


# --- what works --------------------------------------------------------------------------------------------


def test_a_run_prints_its_page_to_stdout_and_its_progress_to_stderr(run, tmp_path):
    code, out, err = run("--output", tmp_path / "run", *tiny.flags(steps=6))
    assert code == 0
    assert re.match(r"\nThe ", out)
    assert "validation loss" in out
    assert "Try next:" in out
    assert "step      0   validation loss" in err
    assert "step      5   validation loss" in err
    assert "step      0" not in out
    n = tiny.begin_at_end(tmp_path / "run").model.params.flat.size
    assert f"{tmp_path / 'run'}: {n:,} parameters, 6 steps from 0" in err
    assert json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["steps"] == 6


def test_resuming_by_command_equals_one_run(run, tmp_path, monkeypatch):
    tiny.interrupt(tmp_path / "run", 7, monkeypatch)
    code, out, err = run("--resume", tmp_path / "run", "--keep", 1, "--lr", 0.01)
    assert code == 0
    assert "20 steps from 7" in err
    assert "bits per byte" in out
    assert tiny.lines(tmp_path / "run") == tiny.lines(tiny.trained())


def test_the_echo_of_a_run_repeats_it(run, tmp_path):
    echo = tiny.trained() / "config.json"
    assert run("--config", echo, "--output", tmp_path / "again")[0] == 0
    assert tiny.lines(tmp_path / "again") == tiny.lines(tiny.trained())


# --- bad arguments -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "words"), [
    (["--preset", "huge"], ["preset must be one of tiny, nano", "'huge'"]),
    (["--norm", "post"], ["norm must be one of pre, sub, inner", "'post'"]),
    (["--schedule", "steep"], ["schedule must be one of two-stage, ", "'steep'"]),
    (["--backend", "abacus"], ["backend must be one of numpy", "'abacus'"]),
    (["--n-heads", "5"], ["d_model must be a multiple", "32 and 5 heads"]),
    (["--n-kv-heads", "3"], ["n_heads must be a multiple of n_kv_heads", "got 4 and 3"]),
    (["--steps", "0"], ["steps must be greater than 0", "got 0"]),
    (["--lr", "nan"], ["lr must be greater than 0", "got nan"]),
    (["--lr-end", "2"], ["lr_end must lie in [0, 1]", "got 2.0"]),
    (["--vocab-size", "100"], ["vocab_size", "100"]),
    (["--val-fraction", "1"], ["val_fraction", "1.0"]),
    (["--context", "1000000"], ["1000001 tokens", "shorter context"]),
    (["--corpus", "nowhere.txt"], ["a corpus must be one of", "'nowhere.txt'"]),
    (["--tokenizer", "nowhere.json"], ["nowhere.json", "No such file"]),
    (["--config", "nowhere.toml"], ["--config must name a file", "nowhere.toml"]),
    (["--resume", "nowhere"], ["--resume takes its config from the run", "--output", "leave them out"]),
])
def test_a_bad_value_is_refused_by_name(arguments, words, run, tmp_path):
    refused(run("--output", tmp_path / "run", *tiny.flags(), *arguments), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [["--steps", "many"], ["--d-modle", "64"], ["text.txt"], ["--steps"]])
def test_what_is_no_option_is_refused_in_three_parts(arguments, run):
    refused(run(*arguments), "see python -m bitnet_ref.train --help")


@pytest.mark.parametrize(("content", "words"), [(b"", ["a corpus must hold text"]), (b"\x00\x01", ["NUL"])])
def test_a_corpus_without_text_is_refused(content, words, run, tmp_path):
    (tmp_path / "text.txt").write_bytes(content)
    refused(run("--output", tmp_path / "run", *tiny.flags(corpus=tmp_path / "text.txt")), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("arguments", "words"), [
    (["--d-model", "128"], ["d_model: 32 -> 128"]), (["--lr", "1"], ["lr: 0.01 -> 1.0"]),
    (["--inner-gain"], ["inner_gain: False -> True"]),
    (["--corpus", str(tiny.ROOT / "LICENSE")], ["two different"]),
])
def test_resuming_with_another_config_is_refused_by_field_and_values(arguments, words, run):
    refused(run("--resume", tiny.trained(), *arguments), *words)


def test_a_folder_in_use_and_a_file_in_its_place_are_refused(run, tmp_path):
    refused(run("--output", tiny.trained(), *tiny.flags()), "a new run needs a new or empty folder",
            f"--resume {tiny.trained()}")
    (tmp_path / "file").write_text("mine")
    refused(run("--output", tmp_path / "file", *tiny.flags()), str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("sizes", [["--batch", 10**20], ["--n-layers", 10**9], ["--d-model", 10**8]])
def test_what_the_memory_cannot_hold_is_refused_with_the_numbers(sizes, run, tmp_path):
    result = run("--output", tmp_path / "run", *tiny.flags(), *sizes)
    refused(result, "must fit in memory", "GB of", "--batch")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_there_cannot_be_resumed(run):
    refused(run("--resume", "nowhere"), "must be the folder of a training run", "nowhere")


def test_a_broken_rule_is_one_line_for_a_process_too():
    tiny.assert_refused(tiny.command("train", "--n-heads", 7), "d_model must be a multiple")


# --- what goes wrong on the way ----------------------------------------------------------------------------


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_fills_up_loses_no_checkpoint(run, tmp_path, monkeypatch):
    """Full from step 8 on: what was saved at 5 stays, and with room again the run goes on and ends equal."""
    real = loop.save
    monkeypatch.setattr(loop, "save", lambda r, *given: real(r, *given) if r.step < 8 else full(r))

    def full(r):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_space)
            return real(r)

    refused(run("--output", tmp_path / "run", *tiny.flags()), "the log must be writable", "No space left")
    assert [p.name for p in files.checkpoints(tmp_path / "run")] == ["step-00000000", "step-00000005"]
    assert [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")] == [".lock"]
    monkeypatch.setattr(loop, "save", real)
    assert run("--resume", tmp_path / "run")[0] == 0
    assert tiny.lines(tmp_path / "run") == tiny.lines(tiny.trained())


def test_a_log_that_cannot_be_written_ends_the_run(run, tmp_path, monkeypatch):
    monkeypatch.setattr(log, "open", no_space, raising=False)
    refused(run("--output", tmp_path / "run", *tiny.flags()), "the log must be writable", "No space left")


def test_an_exploding_run_is_refused_with_step_and_tensor(run, tmp_path):
    result = run("--output", tmp_path / "run", *tiny.flags(lr=1e9, eval_every=50))
    refused(result, "of step ", "must be finite", "rollbacks that did not help")


def test_a_weight_that_is_no_number_is_refused_by_name(run, tmp_path, monkeypatch):
    real = start.start

    def poisoned(*args):
        run, data = real(*args)
        run.model.params["layers.1.attn.wv"][0, 0] = float("nan")
        run.model.requantise()
        return run, data

    monkeypatch.setattr(start, "start", poisoned)
    result = run("--output", tmp_path / "run", *tiny.flags())
    refused(result, "a rollback needs a checkpoint", "the weight layers.1.attn.wv")


def test_control_c_is_code_130_with_the_command_to_go_on(run, tmp_path, monkeypatch):
    def interrupted(run, data):
        raise loop.Interrupted("go on with: X")

    monkeypatch.setattr(loop, "train", interrupted)
    code, out, err = run("--output", tmp_path / "run", *tiny.flags())
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "go on with: X"
