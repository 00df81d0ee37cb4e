"""tests/fuzz.py: valid inputs are read whole, and what a fuzzer once found is refused, not more."""

import fuzz
import pytest

KEPT = [(p.parent.name, p) for p in sorted(fuzz.SEEDS.glob("*/*"))]


@pytest.mark.parametrize("target", fuzz.TARGETS)
def test_seeds_are_valid(target, tmp_path):
    """A fuzzer that begins with garbage learns little. (An index alone has no tensors to read.)"""
    if target == "gguf":
        pytest.importorskip("gguf")
    (tmp_path / "made").mkdir()
    found = list(fuzz.seeds(target, tmp_path / "made"))
    assert found
    for n, data in enumerate(found):
        fuzz.attempt(target, data)
        if target not in ("index", "sentencepiece"):
            (tmp_path / str(n)).mkdir()
            fuzz.TARGETS[target](data, tmp_path / str(n))


@pytest.mark.parametrize(("target", "path"), KEPT, ids=lambda x: getattr(x, "name", x))
def test_what_was_found_is_refused_or_read(target, path):
    fuzz.attempt(target, path.read_bytes())


def test_another_exception_is_a_finding(monkeypatch):
    monkeypatch.setitem(fuzz.TARGETS, "gguf", lambda data, folder: {}["missing"])
    with pytest.raises(KeyError):
        fuzz.attempt("gguf", b"")
