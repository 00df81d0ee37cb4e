"""tests/fuzz: valid inputs are read whole, and what a fuzzer once found is refused, not more."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import loaders  # noqa: E402

KEPT = [(p.parent.name, p) for p in sorted((HERE / "seeds").glob("*/*"))]


@pytest.mark.parametrize("target", loaders.TARGETS)
def test_seeds_are_valid(target, tmp_path):
    """A fuzzer that begins with garbage learns little. (An index alone has no tensors to read.)"""
    if target == "gguf":
        pytest.importorskip("gguf")
    (tmp_path / "made").mkdir()
    found = list(loaders.seeds(target, tmp_path / "made"))
    assert found
    for n, data in enumerate(found):
        loaders.attempt(target, data)
        if target not in ("index", "sentencepiece"):
            (tmp_path / str(n)).mkdir()
            loaders.TARGETS[target](data, tmp_path / str(n))


@pytest.mark.parametrize(("target", "path"), KEPT, ids=lambda x: getattr(x, "name", x))
def test_what_was_found_is_refused_or_read(target, path):
    loaders.attempt(target, path.read_bytes())


def test_another_exception_is_a_finding(monkeypatch):
    monkeypatch.setitem(loaders.TARGETS, "gguf", lambda data, folder: {}["missing"])
    with pytest.raises(KeyError):
        loaders.attempt("gguf", b"")
