"""python -m bitnet_ref.generate: the prompt and its continuation on stdout, one line for what is wrong."""

import io
import json
import sys
from types import SimpleNamespace

import pytest
import tiny
from tiny import own_cache  # noqa: F401

import bitnet_ref as br
from bitnet_ref.cli import run_command
from bitnet_ref.generate import __main__ as command


@pytest.fixture
def run(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    return tiny.commanded(command.main, capsys)


def text(prompt, *given):
    return prompt + br.load(tiny.trained()).generate(prompt, *given) + "\n"


def test_the_prompt_is_continued(run):
    assert run("--prompt", "Ba né") == (0, text("Ba né"), "")
    assert run() == (0, text(""), "")
    options = ("--tokens", 7, "--temperature", 1.5, "--top-k", 9, "--seed", 4)
    assert run("--prompt", "Ba", *options) == (0, text("Ba", 7, 1.5, 9, 4), "")
    assert run("--prompt", "Ba", "--tokens", 0) == (0, "Ba\n", "")


def test_stop_ids_and_no_ends(run):
    """Of a greedy text, its third id; the record says which came."""
    options = ("--prompt", "Ba", "--tokens", 9, "--temperature", 0, "--json", "--no-ends")
    ids = json.loads(run(*options)[1])["ids"]
    assert len(ids) == 9
    made = json.loads(run(*options, "--stop-id", 299, "--stop-id", ids[2])[1])
    assert made["ids"] == ids[:ids.index(ids[2])]
    assert made["stop"] == {"reason": "end of text", "id": ids[2], "string": None}


def test_a_head_of_int8_rows(run):
    want = br.load(tiny.trained(), int8_head=True).generate("Ba", 9, 0.0)
    assert run("--prompt", "Ba", "--int8-head", "--tokens", 9, "--temperature", 0) == (0, f"Ba{want}\n", "")


def test_the_prompt_may_come_from_a_file_or_from_stdin(run, tmp_path, monkeypatch):
    (tmp_path / "prompt.txt").write_bytes("Bà\n".encode())
    want = text("Bà\n", 5, 0)
    assert run("--prompt-file", tmp_path / "prompt.txt", "--tokens", 5, "--temperature", 0)[1] == want
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO("Bà\n".encode())))
    assert run("--prompt-file", "-", "--tokens", 5, "--temperature", 0)[1] == want


def test_a_process_reads_stdin_and_prints_utf8():
    arguments = ("--model", tiny.trained(), "--prompt-file", "-", "--tokens", 3)
    result = tiny.command("generate", *arguments, input="日本 🙂")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == text("日本 🙂", 3)


@pytest.mark.parametrize(("arguments", "words"), [
    (["--tokens", -1], ["tokens must not be negative; got -1"]),
    (["--temperature", -1], ["temperature must not be negative; got -1.0"]),
    (["--stop-id", -1], ["a stop id must lie in 0..", "got -1"]),
    (["--stop-id", "x"], ["--stop-id must be an int; got 'x'"]),
    (["--stop-id", 300], ["a stop id must lie in 0..299; got 300"]),
    (["--temperature", "inf"], ["temperature must be finite; got inf"]),
    (["--top-k", 0], ["top_k must be greater than 0; got 0"]),
    (["--seed", -1], ["seed must lie in [0, 2^64); got -1"]),
    (["--tokens", "x"], ["--tokens must be an int; got 'x'", "see python -m bitnet_ref.generate --help"]),
    (["--prompt", "a", "--prompt-file", "b"], ["--prompt-file must stand without --prompt; got both"]),
    (["--none"], ["every flag must be known; got --none"]),
    (["--model", ""], ["--model must not be empty"]), (["--prompt-file", ""], ["must not be empty"]),
    (["--prompt", "a\ud800"], ["Unicode"]),
    (["--backend", "abacus"], ["backend must be one of"]),
    (["--model", "nowhere"], ["a model must be a run's folder", "nowhere"]),
    (["--prompt-file", "nowhere.txt"], ["the prompt file must be readable", "nowhere.txt"]),
    (["--prompt-file", "."], ["the prompt file must be readable"]),
])
def test_what_is_wrong_is_refused_by_name(arguments, words, run):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    tiny.assert_three_parts(err, *words)


def test_a_prompt_that_is_no_text_is_refused(run, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    code, _, err = run("--prompt-file", tmp_path / "bytes")
    assert code == 2
    tiny.assert_three_parts(err, "the prompt file must be readable UTF-8 text", "0xff")


def test_without_a_model_nothing_runs(capsys):
    assert run_command(command.main, []) == 2
    tiny.assert_three_parts(capsys.readouterr().err, "--model must be given; got nothing")


def test_help_is_for_users(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    out = capsys.readouterr().out
    assert "Continue a text with a model." in out
    assert "Read after" not in out
