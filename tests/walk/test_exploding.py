"""The stand-in for the port that failed: its decode is wrong as reported, and everything else is right."""

import numpy as np

from bitnet_ref.conform.faults.files import code_map_zero_plus_minus
from bitnet_ref.conform.slots import consecutive
from bitnet_ref.pack.rosetta import pack_hf
from bitnet_ref.walk import exploding


def test_the_decode_is_the_fault_of_the_catalogue():
    rng = np.random.default_rng(0)
    packed = pack_hf(rng.integers(-1, 2, (16, 8)).astype(np.int8))
    codes = consecutive(np.stack([packed.ravel() >> shift & 3 for shift in (0, 2, 4, 6)]), (16, 8))
    port = code_map_zero_plus_minus()["code_map"](codes).reshape(16, 8)
    assert np.array_equal(exploding.misread(packed), port)


def test_a_right_reader_has_what_was_written_and_the_port_has_not():
    file = exploding.weights()
    right, port = (exploding.loaded(file, wrong) for wrong in (False, True))
    ids = np.arange(4)[None]
    for name, t in file.trits().items():
        assert np.array_equal(right.weights[name].w_q, t.w_q)
        same = np.mean(port.weights[name].w_q == t.w_q)
        assert 0.2 < same < 0.5, f"{name}: {same}"
    assert exploding.norms(right, ids)[0] == exploding.norms(port, ids)[0]
    for model in (right, port):
        norms = exploding.norms(model, ids)
        assert len(norms) == 31
        assert np.isfinite(norms).all()
        assert norms[-1] > 100 * norms[0]
