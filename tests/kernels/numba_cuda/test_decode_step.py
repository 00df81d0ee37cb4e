"""Whole models on the device: the reference's logits; a cached token is the full forward bit for bit."""

import gc

import ml_dtypes
import numpy as np
import pytest
import tiny
from derivative import array_error
from strategies import NORMS, label, small_batch, small_config, small_params, variants

from bitnet_ref.bench import golden
from bitnet_ref.checks import CheckError
from bitnet_ref.formats import hf
from bitnet_ref.generate.decode import decode
from bitnet_ref.kernels import load
from bitnet_ref.layers import ALL_OPS
from bitnet_ref.model import Transformer
from bitnet_ref.model.weights import OnDisk, Trits, Weights, ternarise

# Every value of every axis, in few models; all of them are nightly.
FEW = [{**NORMS["sub"], "glu": "relu2", "n_layers": 2}, {**NORMS["inner_gain"], "n_kv_heads": 1},
       {**NORMS["pre"], "head": "ternary"},
       {**NORMS["inner"], "n_kv_heads": 4, "tied_embeddings": False}, {"linear": "full", "glu": "relu2"}]
ALL = list(variants(norm=NORMS, glu=("swiglu", "relu2"), n_kv_heads=(4, 2, 1), linear=("ternary", "full"),
                    head=("full", "ternary")))
LOGITS = 1e-2                # docs/numerics.md: where the last bit of a scale has moved a code


def models(ops, seed=0, int8_head=False, half_cache=False, **given):
    """The same model on the device and in NumPy; of one block, where nothing else is said."""
    cfg = small_config(**{"n_layers": 1, **given})
    params = small_params(cfg, seed, np.float32)
    reference = Transformer(cfg, params, load("numpy"), int8_head)
    return Transformer(cfg, params, ops, int8_head, half_cache), reference


def check_whole(ops, given):
    model, reference = models(ops, **given)
    ids, _ = small_batch(model.cfg, B=2, T=11)
    want = model(ids)[0]
    assert array_error(want, reference(ids)[0]) <= LOGITS
    logits, state = model.prefill(ids[:, :9])               # a tile
    np.testing.assert_array_equal(logits, want[:, 8])
    for t in (9, 10):                                       # launch by launch; a graph
        logits, state = model.decode_step(ids[:, t], state)
        np.testing.assert_array_equal(logits, want[:, t])


@pytest.mark.parametrize("given", FEW, ids=label)
def test_whole_models(ops, given):
    check_whole(ops, given)


@pytest.mark.nightly
@pytest.mark.parametrize("given", ALL, ids=label)
def test_all_whole_models(ops, given):
    check_whole(ops, given)


def test_int8_rows_of_the_head(ops):
    model, reference = models(ops, int8_head=True)
    ids, _ = small_batch(model.cfg, B=1, T=3)
    assert array_error(model.prefill(ids)[0], reference.prefill(ids)[0]) <= LOGITS


def test_texts_of_different_lengths_extended_and_taken_back(ops):
    """Each is, bit for bit, as if alone; what was not asked for is zeros."""
    model, rng = models(ops)[0], np.random.default_rng(0)
    lengths, counts = np.array([3, 10, 1]), np.array([2, 0, 1])
    ids, more = rng.integers(0, 13, (3, 10)), rng.integers(0, 13, (3, 2))
    logits, state = model.prefill(ids, lengths)
    new, after = model.extend(more, state, counts)
    token, back = rng.integers(0, 13, 3), [4, 8, 2]
    last, _ = model.decode_step(token, after.back(back))
    for b, (n, c) in enumerate(zip(lengths, counts)):
        text = np.concatenate([ids[b, :n], more[b, :c]])
        alone = model(text)[0][0]
        np.testing.assert_array_equal(logits[b], alone[n - 1])
        np.testing.assert_array_equal(new[b, :c], alone[n:])
        assert not new[b, c:].any()
        np.testing.assert_array_equal(last[b], model(np.append(text[:back[b]], token[b]))[0][0, -1])
    with pytest.raises(CheckError, match="a state must stand in its cache"):
        model.decode_step(token, after)


def test_a_cache_in_float16_rounds_keys_and_values_alone(ops):
    """So a token at a time is what a prompt at once is, and both are near the float32 cache."""
    (model, _), (exact, _) = models(ops, half_cache=True), models(ops)
    ids, _ = small_batch(model.cfg, B=1, T=10)
    want, state = model.prefill(ids)
    assert state.texts.keys.nbytes * 2 == exact.prefill(ids)[1].texts.keys.nbytes
    logits, _ = model.extend(ids[:, 8:], model.prefill(ids[:, :8])[1], every=False)
    np.testing.assert_array_equal(logits, want)
    assert 0 < array_error(want, exact.prefill(ids)[0]) < 0.05


def test_a_cache_that_grows_is_recorded_anew(ops, monkeypatch):
    module = __import__("bitnet_ref.kernels.numba_cuda.decode_step", fromlist=["FIRST_ROOM"])
    monkeypatch.setattr(module, "FIRST_ROOM", 4)
    model = models(ops)[0]
    ids, _ = small_batch(model.cfg, B=2, T=7)
    want = model(ids)[0]
    logits, state = model.prefill(ids[:, :2])
    rooms = set()
    for t in range(2, 7):
        logits, state = model.decode_step(ids[:, t], state)
        np.testing.assert_array_equal(logits, want[:, t])
        rooms.add((state.texts.room, len(state.texts.graphs)))
    assert rooms == {(4, 1), (8, 1)} | {(4, 0)}


def test_a_text_that_is_gone_leaves_its_memory(ops):
    model = models(ops)[0]
    ids, _ = small_batch(model.cfg, B=1, T=3)

    def use():
        _, state = model.prefill(ids)
        for _ in range(2):
            _, state = model.decode_step(ids[:, 0], state)
        device = state.texts.program.device
        del state
        gc.collect()
        return device.free()[0]

    assert use() == use()


def test_the_device_chooses_what_the_host_would(ops):
    model, _ = models(ops)
    ids, _ = small_batch(model.cfg, B=2, T=3)
    logits, state = model.prefill(ids)
    first = logits.argmax(axis=-1)
    module = __import__("bitnet_ref.kernels.numba_cuda.decode_step", fromlist=["greedy"])
    found, after = module.greedy(model.plan, model.ready, first, state, 3)
    token, s = first, state.back(3)
    for n in range(3):
        logits, s = model.decode_step(token, s)
        token = logits.argmax(axis=-1)
        np.testing.assert_array_equal(found[:, n], token)
    assert after.lengths == s.lengths == (6, 6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_tables_stay_in_sixteen_bits(ops, dtype):
    cfg = small_config(tied_embeddings=False)
    held = ternarise(cfg, small_params(cfg, 0, np.float32), load("numpy"))
    stored = Weights({n: w if isinstance(w, Trits) else w.astype(dtype) for n, w in held.items()})
    model, reference = (Transformer(cfg, stored, o) for o in (ops, load("numpy")))
    ids, _ = small_batch(cfg, B=1, T=4)
    assert array_error(model.prefill(ids)[0], reference.prefill(ids)[0]) <= LOGITS
    assert model.ready.kept["program"].embedding.numbers.nbytes == 2 * stored["embedding"].size


# --- the golden model ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_tiny_model_recites_its_text(ops):
    """All positions at once; and a token at a time."""
    text = (golden.folder() / "greedy.txt").read_text(encoding="utf-8")
    cfg, weights = hf.read(golden.folder() / "tiny")
    model = Transformer(cfg, weights, ops)
    ids = np.array([ord(c) for c in text])
    assert "".join(map(chr, model(ids)[0][0, 6:-1].argmax(axis=-1))) == text[7:]
    made = [step.token for step in decode(model, ids[:7], 40)]
    assert "".join(map(chr, made)) == text[7:47]


@pytest.mark.parametrize("given", [{"d_ff": 48, "n_kv_heads": 4}, {"d_ff": 37, "n_kv_heads": 1}], ids=label)
def test_a_model_on_disk_waits_packed_and_is_that_in_memory(ops, given):
    """Whole strips of sixteen rows are stacked as they were packed, others packed again."""
    cfg = small_config(n_layers=1, **given)
    held = ternarise(cfg, small_params(cfg, 0, np.float32), load("numpy"))
    model = Transformer(cfg, OnDisk(held, held.__getitem__, held.tied), ops)
    trits = {name: model.ready[name] for name in held.trits()}
    assert all(matrix.w_q is None and matrix.words is not None for matrix in trits.values())
    assert (given["d_ff"] == 48) == all(matrix.shape[0] % 16 == 0 for matrix in trits.values())
    ids, _ = small_batch(cfg, B=2, T=9)
    np.testing.assert_array_equal(model(ids)[0], Transformer(cfg, held, ops)(ids)[0])
    assert all(matrix.words is None for matrix in trits.values())


def test_memory_that_runs_out_leaves_the_model_and_its_texts(ops, monkeypatch):
    model, _ = models(ops)
    ids, _ = small_batch(model.cfg, B=1, T=12)
    want = model(ids)[0]
    _, state = model.prefill(ids[:, :5])
    gc.collect()
    memory = state.texts.program.device.driver.memory
    with monkeypatch.context() as patch:
        patch.setattr(memory, "total", memory.used + 100)
        with tiny.refusal("cuMemAlloc", "CUDA_ERROR_OUT_OF_MEMORY", "free the card's memory"):
            model.extend(ids[:, 5:], state)
        with tiny.refusal("GB of cache for 1 texts"):
            model.prefill(ids)
    np.testing.assert_array_equal(model.extend(ids[:, 5:], state)[0], want[:, 5:])


# --- what is refused ----------------------------------------------------------------------------------------


def test_the_namespace_has_every_op_and_refuses_those_of_its_own(ops):
    assert vars(ops).keys() == {*ALL_OPS, "forward", "prefill", "extend", "decode_step", "train_step"}
    with tiny.refusal("whole models", "the op linear alone", "numba"):
        ops.linear(np.ones((1, 4)), np.ones((2, 4)))


@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
def test_wider_models_are_refused(ops, dtype):
    cfg = small_config()
    model = Transformer(cfg, small_params(cfg, 0, np.float64), ops)
    model.ready["embedding"] = model.ready["embedding"].astype(dtype)
    for call in (model, model.prefill):
        with tiny.refusal("float32", np.dtype(dtype).name, "numpy"):
            call(np.array([[1, 2]]))


def test_a_state_of_another_backend_or_of_other_weights_is_refused(ops):
    model, reference = models(ops)
    ids = np.array([[1, 2]])
    with tiny.refusal("a state must be of this backend"):
        model.decode_step(ids[:, 0], reference.prefill(ids)[1])
    _, state = model.prefill(ids)
    model.requantise()
    model.prefill(ids)
    with tiny.refusal("a state must be of these weights"):
        model.decode_step(ids[:, 0], state)


def test_beyond_the_context(ops):
    model, _ = models(ops, context=4)
    _, state = model.prefill(np.array([[1, 2, 3, 4]]))
    with tiny.refusal("at most 4 tokens", "5"):
        model.decode_step(np.array([1]), state)


def test_what_is_not_finite_reaches_the_logits(ops):
    cfg = small_config()
    params = small_params(cfg, 0, np.float32)
    params["layers.0.attn.wk"][0, 0] = np.nan
    model = Transformer(cfg, params, ops)
    assert np.isnan(model.prefill(np.array([[1, 2]]))[0]).all()
