"""bench/onnx_peer: both engines make the same tokens, so what is timed is the same work."""

import sys

import pytest
from tiny import refusal

from bitnet_ref.bench import onnx_peer

pytest.importorskip("onnx")


def test_the_table_has_a_row_for_each_engine(capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    made = {}
    for name in ("ours", "theirs"):
        run = getattr(onnx_peer, name)

        def kept(engine, tokens, run=run):
            text = run(engine, tokens)
            made.setdefault(tokens, set()).add(tuple(text))
            return text

        monkeypatch.setattr(onnx_peer, name, kept)
    monkeypatch.setattr(onnx_peer, "TOKENS", 4)
    assert onnx_peer.main(["--rounds", "1", "--threads", "1"]) == 0
    assert capsys.readouterr().out.count("\n| ") == 3
    assert {len(texts) for texts in made.values()} == {1}


def test_engines_that_make_other_tokens_are_not_timed():
    onnx_peer.check_same({"a": [1, 2], "b": [1, 2]})
    with refusal("b must make the tokens of a", "token 1 on"):
        onnx_peer.check_same({"a": [1, 2], "b": [1, 3]})


def test_a_missing_onnxruntime_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with refusal("onnxruntime", "pip install"):
        onnx_peer.session(tmp_path / "m.onnx", 1)
