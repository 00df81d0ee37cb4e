"""The default corpus: real English, stable, parsed and never imported.

Read after: bitnet_ref/data/python_docs. Read next: tests/data/test_corpus.
"""

import builtins
import hashlib
import subprocess
import sys

from bitnet_ref.data import python_docs as module
from bitnet_ref.data.python_docs import docstrings, python_docs, sources, topics

LONG = "A sentence of some words. " * 20


def test_it_is_english_of_more_than_a_megabyte():
    texts = python_docs()
    assert sum(len(t.encode()) for t in texts) > 1_000_000
    assert len(set(texts)) == len(texts)
    assert sum(" the " in t for t in texts) > len(texts) / 2
    assert all(len(t) > module.SHORTEST for t in texts[len(list(topics())):])


def test_the_order_is_the_same_in_another_process():
    code = ("import hashlib; from bitnet_ref.data.python_docs import python_docs; "
            "print(hashlib.sha256('\\0'.join(python_docs()).encode()).hexdigest())")
    own = hashlib.sha256("\0".join(python_docs()).encode()).hexdigest()
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == own


def test_docstrings_of_everything_long_enough(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(f'"""{LONG}"""\nraise SystemExit("never run")\nclass C:\n    """{LONG}c"""\n'
                    f'    def f(self):\n        """short"""\n    async def g(self):\n        """{LONG}g"""\n')
    assert list(docstrings(path)) == [LONG, LONG + "c", LONG + "g"]


def test_what_cannot_be_parsed_is_skipped(tmp_path):
    for name, data in {"syntax": b"def (", "nul": b"x = 1\0", "latin": b"# coding: utf-8\n'\xff'",
                       "deep": b"(" * 100_000}.items():
        (tmp_path / name).write_bytes(data)
        assert list(docstrings(tmp_path / name)) == []
    assert list(docstrings(tmp_path / "missing")) == []


def test_warnings_of_other_peoples_code_stay_silent(tmp_path, recwarn):
    (tmp_path / "m.py").write_text(f'"""{LONG}\\d"""\n')
    assert len(list(docstrings(tmp_path / "m.py"))) == 1
    assert len(recwarn) == 0


def test_sources_leave_out_tests_and_packages_of_others(tmp_path):
    for name in ("b.py", "a/c.py", "a/test/d.py", "site-packages/e.py", "a/f.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert [p.relative_to(tmp_path).as_posix() for p in sources(tmp_path)] == ["a/c.py", "b.py"]


def test_a_python_without_topics(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "pydoc_data.topics":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert list(topics()) == []


def test_lone_surrogates_are_no_text():
    assert module._is_unicode("a\U0001f600é")
    assert not module._is_unicode("a\ud800")
