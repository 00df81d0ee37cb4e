"""python -m bitnet_ref.chain: a table from text, and a table as text and picture."""

import os

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.chain import __main__ as command
from bitnet_ref.chain import show
from bitnet_ref.chain.table import Chain, Table, read_table
from bitnet_ref.cli import run_command
from bitnet_ref.data.tokenizer import load, train_bpe


def run(*arguments):
    return run_command(command.main, [str(a) for a in arguments])


def test_mined_and_shown(tmp_path, capsys):
    table, own = tmp_path / "t.json", tmp_path / "tokenizer.json"
    train_bpe([tiny.text()], 300).save(own)
    assert run("mine", "--corpus", tiny.corpus(), "--output", table, "--tokenizer", own, "--size", 7) == 0
    said = capsys.readouterr().out
    assert "7 chains" in said
    assert load(said.rpartition(", in ")[2].strip()) == load(own)
    assert len(read_table(table).chains) == 7
    assert run("show", "--table", table, "--corpus", tiny.corpus(), "--picture", tmp_path / "p.png") == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 7 + 7
    assert out[2].split()[-4:] == ["1", "2", "4", "7"]
    known, held_out = (float(line.split()[-1].rstrip("%")) for line in out[3:5])
    assert out[3].startswith("the corpus ")
    assert out[4].startswith(f"held out of {tiny.corpus()} ")
    assert 0.5 * known < held_out < 1.5 * known            # text of the same kind
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_says_what_each_chain_says():
    own = train_bpe(["a"], 257)
    ids = tuple(own.encode("ab\n").tolist())
    page = show.page(Table(own.vocabulary, 257, "c", 200, (Chain(ids, 9, 20, (0.5, 1.0)),
                                                         Chain(ids[:2], 4, 10, (0.5,)))), own)
    assert "cover 15.0% of 200 tokens" in page
    assert page.splitlines()[2:4] == ["covered by chains       1      2", "the corpus          10.0%  15.0%"]
    assert page.splitlines()[6].split() == ["0", "9", "10.00%", "ab\\n", "a", "50%", "b", "100%", "\\n"]
    assert show.coverage(Table("", 1, "", 0, ())) == [0.0]
    assert "0 chains" in show.page(Table("", 1, "c", 0, ()), own)


@pytest.mark.parametrize(("piece", "seen"), [
    (b" the", "·the"), (b"\n\t", "\\n\\t"), ("é日".encode(), "é日"), (b"\xe2\x80", "\\xe2\\x80"),
    (b"\x1b[2J", "\\x1b[2J"), ("\u202e".encode(), "\\u202e"), (b"", "")])
def test_all_of_a_piece_is_seen(piece, seen):
    assert show.visible(piece) == seen


def test_a_picture_needs_chains_and_takes_any_name(tmp_path):
    with tiny.refusal("must have chains"):
        show.draw(Table("", 1, "c", 0, ()), tmp_path / "p.png")
    named = Table("", 9, "$_{" + "long " * 30, 9, (Chain((1, 2), 3, 2, (0.5,)),))
    show.draw(named, tmp_path / "p.png", {"other $": [0.0, 0.1]})
    assert (tmp_path / "p.png").stat().st_size > 10_000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_what_does_not_end_is_not_read(tmp_path, capsys):
    own = tmp_path / "tokenizer.json"
    train_bpe(["a"], 257).save(own)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, "/dev/zero", "/dev/null", "nowhere", "x" * 5000):
        assert run("show", "--table", path, "--tokenizer", own) == 2
        tiny.assert_three_parts(capsys.readouterr().err, "must be a readable file")


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["mine|show must be given"]),
    (["mine"], ["--corpus, --output must be given"]),
    (["mine", "--corpus", "x", "--output", "y"], ["a corpus must be"]),
    (["show", "--table", "nowhere/t.json"], ["nowhere must be a readable file", "a tokenizer's file"]),
])
def test_what_is_wrong_is_refused(arguments, words, capsys):
    assert run(*arguments) == 2
    tiny.assert_three_parts(capsys.readouterr().err, *words)


def test_sizes_out_of_range_are_refused_and_nothing_is_written(tmp_path, capsys):
    arguments = ["mine", "--corpus", tiny.corpus(), "--output", tmp_path / "t.json", "--vocab-size", 300]
    assert run(*arguments, "--size", 257) == 2
    tiny.assert_three_parts(capsys.readouterr().err.splitlines()[-1], "1 to 256 chains")
    assert list(tmp_path.iterdir()) == []
