"""The command: what it prints, where, and how it fails.

Read after: bitnet_ref/data/__main__. Read next: tests/train.
"""

import gc
import subprocess
import sys

import pytest

from bitnet_ref.cli import BAD_ARGUMENTS, DONE, run_command
from bitnet_ref.data.__main__ import main
from bitnet_ref.data.atomic import unwritable
from bitnet_ref.data.dataset import open_dataset
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.tokenizer import train_bpe

from .conftest import files_below, story


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("\n<|endoftext|>\n".join(story(i) for i in range(60)))
    return str(path)


def run(*argv):
    return run_command(main, [str(a) for a in argv])


def test_writes_a_dataset_that_training_takes(tmp_path, text, capsys):
    assert run("--input", text, "--output", tmp_path / "out", "--vocab-size", 300,
               "--val-fraction", 0.1) == DONE
    out, err = capsys.readouterr()
    data = open_dataset(tmp_path / "out", verify=True)
    lines = out.splitlines()
    header = data.train.header
    assert lines[0].split() == ["train", f"{header.documents}", "documents", f"{header.text_bytes:,}",
                                "bytes", f"{header.tokens:,}", "tokens"]
    assert lines[1].startswith("val ")
    assert lines[2:] == ["removed 0 bytes of training text: repeats of validation text",
                         "tokenizer of 300 entries", str(tmp_path / "out")]
    assert "reading" in err
    assert "writing" in err
    assert prepare(str(tmp_path / "out")).train.header == data.train.header


def test_options(tmp_path, text, capsys):
    train_bpe([story(1)], 270).save(tmp_path / "t.json")
    assert run("--input", text, "--output", tmp_path / "out", "--tokenizer", tmp_path / "t.json", "--seed", 5,
               "--val-fraction", 0, "--no-progress") == DONE
    out, err = capsys.readouterr()
    assert err == ""
    assert "tokenizer of 270 entries" in out
    assert "val " not in out


@pytest.mark.parametrize(("argv", "message"), [
    (["--input", "missing.txt"], "a corpus must be one of python-docs, wikitext-2, tinystories, or a file"),
    (["--vocab-size", "10"], "vocab_size must lie in [257, 1048576]; got 10"),
    (["--val-fraction", "1"], "val_fraction must lie in [0, 1); got 1.0"),
    (["--seed", "-1"], "seed must lie in [0, 2^64); got -1"),
    (["--input", ""], "--input must not be empty; got ''; see python -m bitnet_ref.data --help"),
    (["--output", ""], "--output must not be empty; got ''"),
    (["--tokenizer", ""], "--tokenizer must not be empty; got ''"),
    (["--seed", "x"], "--seed must be an int; got 'x'"),
    (["--tokenizer", "missing.json"], "missing.json must be a readable file; got No such file"),
])
def test_errors_are_one_line_and_leave_nothing(tmp_path, text, capsys, argv, message):
    assert run("--input", text, "--output", tmp_path / "out", "--no-progress", *argv) == BAD_ARGUMENTS
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert files_below(tmp_path) == ["text.txt"]


def test_help_and_two_tokenizers(tmp_path, text, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    capsys.readouterr()
    both = run("--input", text, "--output", tmp_path, "--tokenizer", "t", "--vocab-size", "300")
    assert both == BAD_ARGUMENTS
    assert "--vocab-size must stand without --tokenizer; got both; see" in capsys.readouterr().err


def test_an_error_has_a_line_of_its_own_after_the_bar(tmp_path, text, capsys):
    """While reading a bad line comes, while writing the disk is full: the bar is closed, and stays so."""
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": "b"}\nno\n')
    assert run("--input", tmp_path / "bad.jsonl", "--output", tmp_path / "out") == BAD_ARGUMENTS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitnet_ref.data.dataset.write_shard", refuse)
        assert run("--input", text, "--output", tmp_path / "out", "--vocab-size", 300) == BAD_ARGUMENTS
    gc.collect()
    lines = capsys.readouterr().err.split("\n")
    assert lines[-1] == ""
    assert [line for line in lines if "error: " in line] == [
        f"error: a line of .jsonl must be valid JSON in UTF-8; got Expecting value: line 1 column 1 (char 0) "
        f"in line 3 of {tmp_path / 'bad.jsonl'}; correct or remove the line",
        f"error: {tmp_path / 'out' / 'train.bin'} must be writable; got disk full; "
        "free space or choose another place"]
    assert lines[-2].startswith("error: ")
    assert ".part" not in "".join(lines)


def refuse(path, documents, *args):
    """A `write_shard` whose disk is full after the first document."""
    next(documents)
    raise unwritable(path, OSError("disk full"))


def test_as_a_module(tmp_path, text):
    command = [sys.executable, "-m", "bitnet_ref.data", "--input", text, "--output", tmp_path / "out",
               "--vocab-size", "300", "--no-progress"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"{tmp_path / 'out'}\n")


def test_the_package_imports_nothing_heavy():
    code = "import sys, bitnet_ref.data; print(sorted({'numpy', 'tokenizers', 'tqdm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
