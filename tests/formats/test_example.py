"""The model of the examples: what it is written as is found again, and its files go when the block ends.

Read after: bitnet_ref/formats/example. Read next: tests/formats.
"""

import numpy as np
import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.data.tokenizer import from_json
from bitnet_ref.formats.example import model, written
from bitnet_ref.formats.opened import kind_of, open_model
from bitnet_ref.model.weights import Trits

KINDS = ("hf", "bitnet", "run")


def assert_equal(a, b):
    assert isinstance(a, Trits) == isinstance(b, Trits)
    (a, scale), (b, other) = ((t.w_q, t.w_scale) if isinstance(t, Trits) else (t, 1) for t in (a, b))
    np.testing.assert_array_equal(a, b)
    assert scale == pytest.approx(other, rel=2**-8)        # bfloat16 in a Hugging Face folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("linear", ["ternary", "full"])
def test_each_kind_opens_as_the_same_model(kind, linear):
    wanted = model(linear=linear)
    with written(kind, linear=linear) as path:
        found = open_model(path)
        assert (kind_of(path), found.kind, found.cfg) == (kind, kind, wanted.cfg)
        for name, spec in wanted.specs.items():
            if spec.ternary or kind != "hf":
                assert_equal(found.read(name), wanted.read(name))
            else:
                np.testing.assert_allclose(found.read(name).astype(np.float32), wanted.read(name), rtol=2**-8)
    assert not path.parent.exists()


def test_it_is_the_same_each_time():
    for name in model().specs:
        assert_equal(model().read(name), model().read(name))


def test_a_block_that_fails_leaves_nothing():
    with pytest.raises(ZeroDivisionError), written("bitnet") as path:
        raise ZeroDivisionError
    assert not path.parent.exists()


def test_an_unknown_kind_is_refused():
    with pytest.raises(CheckError, match="kind"), written("pickle"):
        pass


def test_its_words_are_bytes_if_there_are_257():
    assert model().tokenizer is None
    tokenizer = from_json(str(model(vocab_size=257).tokenizer), "the example")
    assert tokenizer.decode(tokenizer.encode("as it was \u00e9")) == "as it was \u00e9"
