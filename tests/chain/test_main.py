"""python -m bitnet_ref.chain: a table from text, and a table as text and picture."""

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.chain import __main__ as command
from bitnet_ref.chain import show
from bitnet_ref.chain.table import Chain, Table, read_table
from bitnet_ref.cli import run_command
from bitnet_ref.data.tokenizer import train_bpe


def run(*arguments):
    return run_command(command.main, [str(a) for a in arguments])


def test_mined_and_shown(tmp_path, capsys):
    table, own = tmp_path / "t.json", tmp_path / "tokenizer.json"
    train_bpe([tiny.text()], 300).save(own)
    assert run("mine", "--corpus", tiny.corpus(), "--output", table, "--tokenizer", own, "--size", 7) == 0
    assert "7 chains" in capsys.readouterr().out
    assert len(read_table(table).chains) == 7
    assert run("show", "--table", table, "--picture", tmp_path / "p.png") == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 3 + 7
    assert (tmp_path / "p.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_page_says_what_each_chain_says():
    own = train_bpe(["a"], 257)
    ids = tuple(own.encode("ab\n").tolist())
    page = show.page(Table(own.checksum, 257, "c", 200, (Chain(ids, 9, 20, (0.5, 1.0)),
                                                         Chain(ids[:2], 4, 10, (0.5,)))), own)
    assert "cover 15.0% of 200 tokens" in page
    assert "a |50%| b |100%| \\n" in page
    assert page.splitlines()[3].split()[:3] == ["0", "9", "10.00%"]
    assert show.coverage(Table("", 1, "", 0, ())) == [0.0]


@pytest.mark.parametrize(("arguments", "words"), [
    ([], ["mine|show must be given"]),
    (["mine"], ["--corpus, --output must be given"]),
    (["mine", "--corpus", "x", "--output", "y"], ["a corpus must be"]),
    (["show", "--table", "nowhere/t.json"], ["tokenizer.json", "readable"]),
])
def test_what_is_wrong_is_refused(arguments, words, capsys):
    assert run(*arguments) == 2
    tiny.assert_three_parts(capsys.readouterr().err, *words)


def test_sizes_out_of_range_are_refused_and_nothing_is_written(tmp_path, capsys):
    arguments = ["mine", "--corpus", tiny.corpus(), "--output", tmp_path / "t.json", "--vocab-size", 300]
    assert run(*arguments, "--size", 257) == 2
    tiny.assert_three_parts(capsys.readouterr().err.splitlines()[-1], "1 to 256 chains")
    assert list(tmp_path.iterdir()) == []
