"""bench/full_size: a drawn model, written and generated from, in small."""

import numpy as np
import pytest
from strategies import small_config
from tiny import assert_three_parts, own_cache  # noqa: F401

from bitnet_ref.bench import full_size
from bitnet_ref.cli import run_command
from bitnet_ref.convert import convert
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.model.weights import Trits


@pytest.mark.slow                                          # two processes, and what they compile
def test_a_drawn_model_generates_from_its_file(tmp_path, capsys):
    cfg = small_config(vocab_size=300, context=64)
    source = full_size.random_source(cfg, train_bpe(["a b"], 257).json)
    w = source.read("layers.0.attn.wq")
    assert isinstance(w, Trits)
    assert set(np.unique(w.w_q)) == {-1, 0, 1}
    np.testing.assert_array_equal(source.read("layers.0.attn.wq").w_q, w.w_q)
    convert(source, str(tmp_path / "a.bitnet"), {}, False)
    row = full_size.child(str(tmp_path / "a.bitnet"))
    assert row["first"] > 0
    assert row["peak"] >= 0
    block = full_size.table(cfg, {"this": {**row, "decode": 5.0, "bytes": 1234}}, 1e9)
    assert "| this | 1,234 |" in block


def test_the_docs_need_all_layers(capsys):
    assert run_command(full_size.main, ["--layers", "2", "--root", "."]) == 2
    assert_three_parts(capsys.readouterr().err, "the docs need all layers")
