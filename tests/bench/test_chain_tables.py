"""bench/chain_tables: the tables that ship are made again from the same texts, and from no others."""

import hashlib
import json
import platform
import sysconfig
from pathlib import Path

import published
import pytest
import tiny
from tiny import own_cache, refusal  # noqa: F401

from bitnet_ref.bench import chain_tables
from bitnet_ref.chain.shipped import FOLDER
from bitnet_ref.chain.table import read_table, write_table
from bitnet_ref.cli import run_command
from bitnet_ref.data.tokenizer import train_bpe

MARKER = "<!-- generated: python -m bitnet_ref.bench.chain_tables -->\n"


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Arguments: small texts of the three kinds, two vocabularies, and a clone to write into."""
    articles = [tiny.text(60, seed) for seed in range(30)]
    stories = [tiny.text(30, 100 + seed) for seed in range(20)]
    (tmp_path / "wiki").write_text("".join(f'<doc id="{n}">\n{a}\n</doc>\n' for n, a in enumerate(articles)))
    (tmp_path / "stories").write_text("\n<|endoftext|>\n".join(stories))
    for n in range(40):
        (tmp_path / "lib" / f"m{n}").mkdir(parents=True)
        (tmp_path / "lib" / f"m{n}" / "x.py").write_text(f"def f{n}(self):\n    return self.g + {n}\n" * 20)
    names = {}
    for name, size in (("gpt2", 300), ("llama2", 320)):
        own = train_bpe([*articles, "def f(self):\n    return self"], size)
        own.save(tmp_path / name)
        names[own.vocabulary] = name
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "speculative.md").write_text(f"before\n{MARKER}old\n<!-- end -->\nafter\n")
    (tmp_path / "bitnet_ref" / "chain" / "tables").mkdir(parents=True)
    code = "\0".join(chain_tables.source(tmp_path / "lib"))
    monkeypatch.setattr(chain_tables, "SHIPPED", names)
    monkeypatch.setattr(chain_tables, "SHA256", {
        "wikipedia": hashlib.sha256((tmp_path / "wiki").read_bytes()).hexdigest(),
        "stories": hashlib.sha256((tmp_path / "stories").read_bytes()).hexdigest(),
        "python": hashlib.sha256(code.encode()).hexdigest()})
    monkeypatch.setattr(chain_tables, "part_documents", lambda corpus, part: [tiny.text(50, 7)])
    monkeypatch.setattr(chain_tables, "mining", lambda: {"tokens": 3000, "seconds": 1.5, "bytes": 3 << 20})
    return {"wikipedia": tmp_path / "wiki", "stories": tmp_path / "stories", "gpt2": tmp_path / "gpt2",
            "llama2": tmp_path / "llama2", "python": tmp_path / "lib", "root": tmp_path}


def run(given):
    return run_command(chain_tables.main, [str(a) for k, v in given.items() for a in (f"--{k}", v)])


def test_the_tables_and_the_page_are_written(given, capsys):
    assert run(given) == 0
    shown = capsys.readouterr().out
    page = (given["root"] / "docs" / "speculative.md").read_text()
    assert page == f"before\n{MARKER}{shown}<!-- end -->\nafter\n"
    assert "3,000 tokens" in page
    assert "1.5 s and at most 3 MiB" in page
    tables = sorted((given["root"] / "bitnet_ref" / "chain" / "tables").iterdir())
    assert [p.name for p in tables] == ["gpt2.json", "llama2.json"]
    texts = chain_tables.texts(*map(str, (given["wikipedia"], given["stories"], given["python"])))
    assert all(text.mined and text.held_out for text in texts.values())
    for path in tables:
        own = chain_tables.load(given[path.stem])
        table = read_table(path, own)
        assert table.corpus == chain_tables.CORPUS
        assert f"| {path.stem} | {path.stat().st_size:,} |" in page
        pieces = {b"".join(map(own.piece, chain.ids)) for chain in table.chains}
        assert any(b"self" in piece for piece in pieces)
        before = path.read_bytes()
        write_table(path, chain_tables.table_of(texts, own))
        assert path.read_bytes() == before


def test_other_texts_and_vocabularies_are_refused(given, tmp_path, capsys):
    (tmp_path / "other").write_text("x")
    for name in ("wikipedia", "stories"):
        assert run({**given, name: tmp_path / "other"}) == 2
        tiny.assert_three_parts(capsys.readouterr().err, tmp_path / "other", "sha256", name)
    (tmp_path / "none").mkdir()
    assert run({**given, "python": tmp_path / "none"}) == 2
    tiny.assert_three_parts(capsys.readouterr().err, "python", "sha256")
    assert run({**given, "gpt2": given["llama2"]}) == 2
    tiny.assert_three_parts(capsys.readouterr().err.splitlines()[-1], "--gpt2")
    assert list((given["root"] / "bitnet_ref" / "chain" / "tables").iterdir()) == []


def test_articles_are_the_longer_ones():
    long = "word " * 300
    marked = f'<doc id="1" title="a">\n{long}\n\n</doc>\n<doc id="2">\nshort\n</doc>\n'
    assert chain_tables.articles(marked) == [long.strip() + "\n"]


def test_source_that_differs_between_installations_is_left_out(tmp_path):
    for name in ("a.py", "b.py", "c.py", "encodings/d.py", "_sysconfigdata_x.py", "config-3/e.py", "site.py",
                 "sitecustomize.py", "test/f.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name + "x" * 99_999)
    found = chain_tables.source(tmp_path)
    assert [text[:4] for text in found] == ["a.py", "c.py"]
    assert {len(text) for text in found} == {chain_tables.LONGEST}


def test_a_stream_has_an_end_around_each_document():
    own = train_bpe(["abc"], 257)
    a, b = own.encode("ab").tolist()
    assert chain_tables.stream(["ab", "", "b"], own).tolist() == [0, a, b, 0, 0, b, 0]


@pytest.mark.data
@pytest.mark.slow
def test_what_mining_costs(monkeypatch):
    monkeypatch.setenv("BITNET_REF_DATA", published.REAL or published.folder())
    found = chain_tables.mining()
    assert found["tokens"] > 2_000_000
    assert found["seconds"] < 30
    assert found["bytes"] < 1 << 30


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama2", "llama3"])
def test_a_table_that_ships_is_made_again(name, tmp_path):
    """The same bytes, from the same texts."""
    if platform.python_version() != chain_tables.PYTHON:
        pytest.skip(f"needs the source of Python {chain_tables.PYTHON}")
    root = published.folder().parent
    found = chain_tables.texts(str(root / "websample" / "wiki.exllamav2.txt"),
                               str(root / "tinystories" / "tiny.exllamav2.txt"),
                               sysconfig.get_path("stdlib"))
    own = published.tokenizer({"gpt2": "gpt-2", "llama2": "tinyllama", "llama3": "llama-bpe"}[name])
    write_table(tmp_path / "t.json", chain_tables.table_of(found, own))
    assert json.loads((tmp_path / "t.json").read_text()) == json.loads((FOLDER / f"{name}.json").read_text())
    assert (tmp_path / "t.json").read_bytes() == Path(FOLDER / f"{name}.json").read_bytes()
