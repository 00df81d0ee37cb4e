"""model/weights: trits and scales beside shared float arrays; the head is always there."""

import ml_dtypes
import numpy as np
import pytest
from strategies import label, small_config, small_params, variants

from bitnet_ref import layers
from bitnet_ref.kernels import load
from bitnet_ref.layers.bitlinear import Prepared
from bitnet_ref.model.weights import OnDisk, Trits, Weights, ternarise
from bitnet_ref.quant import absmean_ternary

OPS = load("numpy")
HEADS = list(variants(tied_embeddings=(True, False), head=("full", "ternary"), linear=("ternary", "full")))


@pytest.mark.parametrize("given", HEADS, ids=label)
def test_ternary_matrices_become_trits_and_the_rest_is_shared(given):
    cfg = small_config(**given)
    params = small_params(cfg)
    weights = ternarise(cfg, params, OPS)
    assert weights.keys() == {s.name for s in params.specs} | {"head"}
    for s in params.specs:
        if s.ternary:
            w_q, w_scale = absmean_ternary(params[s.name])
            np.testing.assert_array_equal(weights[s.name].w_q, w_q)
            assert weights[s.name].w_scale == w_scale
        else:
            assert np.shares_memory(weights[s.name], params.flat)
            np.testing.assert_array_equal(weights[s.name], params[s.name])


@pytest.mark.parametrize("given", HEADS, ids=label)
def test_the_head_is_the_embedding_if_tied(given):
    cfg = small_config(**given)
    params = small_params(cfg)
    weights, source = ternarise(cfg, params, OPS), "embedding" if cfg.tied_embeddings else "head"
    head = weights["head"]
    assert isinstance(head, Trits) == (cfg.head == "ternary")
    if cfg.head == "ternary":
        np.testing.assert_array_equal(head.w_q, absmean_ternary(params[source])[0])
    else:
        assert np.shares_memory(head, params[source])
    assert isinstance(weights["embedding"], np.ndarray)             # its rows stay full precision


def test_trits_are_the_ternary_matrices_alone():
    cfg = small_config(tied_embeddings=True, head="ternary")
    weights = ternarise(cfg, small_params(cfg), OPS)
    assert len(weights.trits()) == 2 * 7 + 1
    assert all(isinstance(t, Trits) and t.w_q.dtype == np.int8 for t in weights.trits().values())


def test_ready_prepares_trits_and_passes_arrays():
    gain = np.ones(3)
    trits = Trits(np.ones((2, 3), np.int8), np.float32(0.5))
    ready = Weights({"gain": gain, "w": trits}).ready(OPS)
    assert ready["gain"] is gain
    assert ready["w"] == Prepared(trits.w_q, trits.w_scale)


def test_ready_uses_the_backends_own_form():
    class Ops:
        prepare = staticmethod(lambda w_q, w_scale: ("packed", w_q.shape, w_scale))

    weights = Weights({"w": Trits(np.ones((2, 3), np.int8), 0.5)})
    assert weights.ready(Ops) == {"w": ("packed", (2, 3), 0.5)}


class HalfOps:
    """A backend that shows what it was given."""

    prepare = staticmethod(lambda w_q, w_scale, keep=True: ("trits", w_q.shape, keep))
    prepare_table = staticmethod(lambda w: ("table", w.shape))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_tables_in_16_bits_are_the_backends_and_gains_are_widened(dtype):
    table, gain = np.ones((4, 2), dtype), np.ones(2, dtype)
    weights = Weights({"embedding": table, "gain": gain, "head": table})
    ready = weights.ready(HalfOps)
    assert ready["embedding"] == ("table", (4, 2))
    assert ready["head"] is ready["embedding"]
    assert ready["gain"].dtype == np.float32


def test_weights_on_disk_are_read_when_asked_for_and_not_kept():
    held = {"embedding": np.ones((4, 2), np.float32), "w": Trits(np.ones((2, 3), np.int8), 0.5)}
    asked = []

    def read(name):
        asked.append(name)
        return held[name]

    weights = OnDisk(held, read, tied=True)
    assert asked == []
    ready = weights.ready(HalfOps)
    assert asked == ["embedding", "w"]
    assert ready["w"] == ("trits", (2, 3), False)                   # nobody else holds them
    assert ready["head"] is ready["embedding"]
    assert weights["head"] is held["embedding"]
    assert dict(weights.items()).keys() == {"embedding", "w", "head"}
    assert list(weights.trits()) == ["w"]
    assert [v is held.get(n) for n, v in zip(weights, weights.values())] == [True, True, False]
    assert (weights.get("w"), weights.get("none"), weights.get("none", 1)) == (held["w"], None, 1)


def test_twin(backends):
    """Trits agree exactly, scales to the last digits of a sum."""
    cfg = small_config()
    params = small_params(cfg, dtype=np.float32)
    got, want = (ternarise(cfg, params, ops).trits() for ops in (backends, layers))
    for name, trits in want.items():
        np.testing.assert_array_equal(got[name].w_q, trits.w_q)
        assert got[name].w_scale == pytest.approx(trits.w_scale, rel=1e-6)
