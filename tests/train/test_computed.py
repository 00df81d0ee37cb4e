"""train/computed: a checkpoint says what it was computed with, and a run that goes on otherwise is told."""

import json

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.formats.checkpoint import latest, read_state
from bitnet_ref.train import computed, start
from bitnet_ref.train.computed import changes, computed_with, sources


def test_it_is_json_with_code_libraries_and_processor():
    found = computed_with("numpy")
    assert json.loads(json.dumps(found)) == found
    assert {"bitnet_ref", "sources", "python", "numpy", "numba", "blas", "backend", "threads"} <= set(found)
    assert "instructions" in computed_with("numba")
    assert len(sources()) == 16


def test_the_digest_changes_with_the_code_that_computes_and_no_other(tmp_path, monkeypatch):
    def digest_of(**changed):
        for name in ("__init__.py", "quant.py", "chat.py", "model/block.py", "data/batches.py"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(changed.get(name.split("/")[-1][:-3], b"a = 1\n"))
        sources.cache_clear()
        return sources()

    monkeypatch.setattr(computed, "ROOT", tmp_path)
    try:
        plain = digest_of()
        assert digest_of(chat=b"b") == digest_of(quant=b"a = 1\r\n") == plain
        assert len({plain, digest_of(quant=b"b"), digest_of(block=b"b"), digest_of(batches=b"b")}) == 4
    finally:
        sources.cache_clear()


@pytest.mark.parametrize(("was", "told"), [
    ({}, ""), (None, ""), ("x", ""), ({"numpy": "2.1"}, "numpy 2.1 -> 2.2"), ({"threads": 7}, ""),
    ({"numpy": "2.2", "sources": "a"}, ""), ({"sources": "0"}, "code of bitnet_ref 0 -> a"),
    ({"blas": "x", "numpy": "1", "sources": "b"}, "numpy 1 -> 2.2, blas x -> y, code of bitnet_ref b -> a"),
])
def test_changes_are_told_by_name(was, told):
    assert changes(was, {"numpy": "2.2", "blas": "y", "threads": 2, "sources": "a"}) == told


def test_a_run_that_goes_on_as_it_was_is_told_nothing(tmp_path, capsys):
    run = tiny.copy(tiny.trained(), tmp_path / "run")
    start.resume(str(run), {})
    assert "goes on with" not in capsys.readouterr().err


@pytest.mark.parametrize(("change", "words"), [
    ({"numpy": "1.0.0"}, "numpy 1.0.0 -> "), ({"sources": "0123"}, "code of bitnet_ref 0123 -> ")])
def test_a_run_that_goes_on_with_something_else_is_told_what(change, words, tmp_path, capsys):
    path = latest(tiny.copy(tiny.trained(), tmp_path / "run"))
    state = read_state(path)
    tiny.put_state(path, {**state, "computed with": {**state["computed with"], **change}})
    run, _ = start.resume(str(tmp_path / "run"), {})
    err = capsys.readouterr().err
    assert words in err
    assert "may differ from an uninterrupted run in the last digits; for the same bits, resume with" in err
    assert run.step == 20


def test_another_backend_is_told(tmp_path, monkeypatch, capsys):
    tiny.interrupt(tmp_path / "run", 3, monkeypatch)
    start.resume(str(tmp_path / "run"), {"backend": "numpy"})
    assert "backend numba -> numpy" in capsys.readouterr().err
    monkeypatch.setattr(computed, "sources", lambda: "other")
    start.resume(str(tmp_path / "run"), {})
    assert "code of bitnet_ref " in capsys.readouterr().err
