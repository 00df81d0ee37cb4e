"""The whole-model path of the Numba backend: a token equals the full forward bit for bit.

Not the rows of the call, nor the batch, nor what is in the cache, nor the threads, nor the packing may move a
bit; and no thread may wait for one that does not come.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import weakref

import ml_dtypes
import numba
import numpy as np
import pytest
from derivative import array_error
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import NORMS, label, seeds, small_batch, small_config, small_params, variants

from bitnet_ref import kernels
from bitnet_ref.checks import CheckError
from bitnet_ref.kernels.numba_cpu import program
from bitnet_ref.kernels.numba_cpu.decode_step import ALONE, FIRST_ROOM, MOST_CALLS
from bitnet_ref.kernels.numba_cpu.linear import Table
from bitnet_ref.kernels.numba_cpu.whole import schedule
from bitnet_ref.model import Transformer
from bitnet_ref.model.weights import OnDisk, Trits, Weights, ternarise

OPS = kernels.load("numba")
PATH = sys.modules["bitnet_ref.kernels.numba_cpu.decode_step"]      # the package has a function of that name
KINDS = list(variants(norm=NORMS, glu=("swiglu", "relu2"), n_kv_heads=(4, 2, 1), linear=("ternary", "full"),
                      head=("full", "ternary")))
THREADS, OPS_THREADS = numba.config.NUMBA_NUM_THREADS, sys.modules["bitnet_ref.kernels.numba_cpu.threads"]


def small_model(seed=0, dtype=np.float32, int8_head=False, **given):
    cfg = small_config(**given)
    return Transformer(cfg, small_params(cfg, seed, dtype), OPS, int8_head)


def together(monkeypatch):
    """Small models run on all threads too."""
    monkeypatch.setattr(PATH, "ALONE", 0)


@pytest.fixture
def threads():
    """A setter of the number of threads, undone at the end."""
    yield OPS_THREADS.use
    OPS_THREADS.use(THREADS)


# --- bit for bit --------------------------------------------------------------------------------------------


INT8 = [{"int8_head": True, "vocab_size": size} for size in (32, 515)]
ODD = [{"linear": "full", "vocab_size": 53, "d_ff": 181}, {"int8_head": True, "vocab_size": 245}]


@pytest.mark.parametrize("kind", [*KINDS, *INT8], ids=label)
def test_decoding_with_a_cache_equals_the_full_forward_bit_for_bit(kind):
    model, (ids, _) = small_model(**kind), small_batch(small_config(), B=3, T=9)
    want, _ = model(ids)
    logits, state = model.prefill(ids[:, :4])
    for t in range(4, 9):
        np.testing.assert_array_equal(logits, want[:, t - 1])
        logits, state = model.decode_step(ids[:, t], state)
    np.testing.assert_array_equal(logits, want[:, -1])


@pytest.mark.parametrize("kind", ODD, ids=label)
def test_many_rows_of_odd_widths_equal_the_full_forward_bit_for_bit(kind):
    """A register tile of many rows ends in the middle of a panel."""
    model, (ids, _) = small_model(**kind), small_batch(small_config(), B=8, T=9)
    want, _ = model(ids)
    logits, state = model.prefill(ids[:, :8])
    np.testing.assert_array_equal(logits, want[:, 7])
    np.testing.assert_array_equal(model.decode_step(ids[:, 8], state)[0], want[:, 8])


@settings(max_examples=15)
@given(seed=seeds, lengths=st.tuples(st.integers(1, 20), st.integers(1, 20)), B=st.integers(1, 4))
def test_a_text_has_the_same_logits_however_it_was_cut(seed, lengths, B):
    """All at once, token by token, in two pieces, alone or among others."""
    model = small_model(seed % 3, n_kv_heads=2, context=64)
    ids, _ = small_batch(small_config(), seed, B, sum(lengths))
    want, _ = model.prefill(ids)
    logits, state = model.prefill(ids[:, :lengths[0]])
    for t in range(lengths[0], sum(lengths)):
        logits, state = model.decode_step(ids[:, t], state)
    np.testing.assert_array_equal(logits, want)
    for b in range(B):
        np.testing.assert_array_equal(model.prefill(ids[b:b + 1])[0][0], want[b])


def test_threads_change_no_bit(monkeypatch, threads):
    together(monkeypatch)
    results = []
    for n in range(1, THREADS + 1):
        threads(n)
        model = small_model(d_model=96, n_heads=4, n_kv_heads=2, d_ff=200, context=64)
        ids, _ = small_batch(small_config(), B=2, T=30)
        first, state = model.prefill(ids)
        results.append([first, model.decode_step(ids[:, 0], state)[0], model(ids)[0]])
    for other in results[1:]:
        for a, b in zip(other, results[0]):
            np.testing.assert_array_equal(a, b)


def test_packing_changes_no_bit():
    model, (ids, _) = small_model(context=64), small_batch(small_config(), B=1, T=20)
    want, _ = model.prefill(ids)
    for bits in ("i2", "b3"):
        model.ready.kept["program"] = program.build(model.plan, model.ready, bits)
        np.testing.assert_array_equal(model.prefill(ids)[0], want)


SETTINGS = {"i2": {"bits": "i2"}, "b3": {"bits": "b3"}, "int8 head": {"int8_head": True},
            "float16 cache": {"half_cache": True}, "full": {"linear": "full", "vocab_size": 245},
            "float16 head": {"dtype": np.float16}, "heads apart": {"n_kv_heads": 4},
            "heads together": {"n_kv_heads": 1}}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_a_few_tokens_at_once_are_the_same_bits_as_one_by_one(setting, monkeypatch):
    """k = 1 ... 9 tokens behind a text, as a draft is verified: logits after each, and what comes next."""
    given = {"vocab_size": 515, "n_kv_heads": 2, "d_model": 96, "d_ff": 200, "context": 64} | setting
    bits, half, dtype = (given.pop(name, None) for name in ("bits", "half_cache", "dtype"))
    int8_head = given.pop("int8_head", False)
    cfg = small_config(**given)
    model = Transformer(cfg, small_params(cfg, 0, np.float32), OPS, int8_head, half_cache=bool(half))
    if dtype:
        model.ready["head"] = model.ready["head"].astype(dtype)
    model.ready.kept["program"] = program.build(model.plan, model.ready, bits)
    ids, _ = small_batch(cfg, B=2, T=40)
    _, start = model.prefill(ids[:, :20])
    want, state = [], start
    for t in range(20, 30):
        logits, state = model.decode_step(ids[:, t], state)
        want.append(logits)
    for alone in (True, False):
        if not alone:
            together(monkeypatch)
        for k in range(1, 10):
            found, state = model.extend(ids[:, 20:20 + k], start)
            np.testing.assert_array_equal(found, np.stack(want[:k], 1))
            np.testing.assert_array_equal(model.decode_step(ids[:, 20 + k], state)[0], want[k])


def test_a_float16_head_is_read_as_it_is():
    cfg = small_config(tied_embeddings=False)
    params = small_params(cfg, 0, np.float32)
    params["head"][...] = params["head"].astype(np.float16)
    model, (ids, _) = Transformer(cfg, params, OPS), small_batch(cfg, B=2, T=9)
    want, _ = model.prefill(ids)
    model.ready["head"] = params["head"].astype(np.float16)
    model.ready.kept.clear()
    np.testing.assert_array_equal(model.prefill(ids)[0], want)
    assert program.FLOAT16 in model.ready.kept["program"].tables.table[:, :, program.KIND]


# --- twin ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in KINDS if k["linear"] == k["head"] == "full"], ids=label)
def test_the_full_precision_path_equals_the_reference(kind, tol):
    model, (ids, _) = small_model(**kind), small_batch(small_config(), B=2, T=9)
    want, _ = Transformer(model.cfg, model.params, kernels.load("numpy"))(ids)
    assert array_error(model.prefill(ids)[0], want[:, -1]) <= tol["float32_model"]


def test_float64_is_the_references():
    model, (ids, _) = small_model(dtype=np.float64), small_batch(small_config(), B=2, T=5)
    logits, state = model.prefill(ids)
    assert logits.dtype == np.float64
    want, _ = Transformer(model.cfg, model.params, kernels.load("numpy"))(np.hstack([ids, ids[:, :1]]))
    assert array_error(model.decode_step(ids[:, 0], state)[0], want[:, -1]) <= 1e-12


# --- the cache ----------------------------------------------------------------------------------------------


def test_an_earlier_state_takes_the_text_back_there():
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=8)
    _, early = model.prefill(ids[:, :4])
    first, _ = model.decode_step(ids[:, 4], early)
    again, late = model.decode_step(ids[:, 4], early)
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(model.decode_step(ids[:, 5], late)[0], model.prefill(ids[:, :6])[0])


def test_a_state_whose_tokens_were_overwritten_is_refused():
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=8)
    _, early = model.prefill(ids[:, :4])
    _, gone = model.decode_step(ids[:, 4], early)
    model.decode_step(ids[:, 5], early)
    with pytest.raises(CheckError, match=r"a state must stand in its cache; got .*; prefill the text again"):
        model.decode_step(ids[:, 5], gone)


@pytest.mark.parametrize("alone", [True, False])
def test_a_cache_grows_and_keeps_what_it_held(alone, monkeypatch):
    """On one thread a head is a task; on several its keys are chunks, and here there are two of them."""
    if not alone:
        together(monkeypatch)
    model, n = small_model(context=FIRST_ROOM + 40), FIRST_ROOM + 20
    ids, _ = small_batch(small_config(), B=1, T=n)
    want, _ = model.prefill(ids)
    logits, state = model.prefill(ids[:, :n - 30])
    for t in range(n - 30, n):
        logits, state = model.decode_step(ids[:, t], state)
    np.testing.assert_array_equal(logits, want)
    assert len(state.texts.cache.cos) >= n


def test_a_full_context_is_refused():
    model, (ids, _) = small_model(context=8), small_batch(small_config(), B=1, T=8)
    _, state = model.prefill(ids)
    with pytest.raises(CheckError, match="at most 8 tokens; got 9; drop the oldest"):
        model.decode_step(ids[:, 0], state)


def test_new_weights_are_packed_anew():
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=5)
    before, _ = model.prefill(ids)
    model.params.flat[:] = small_params(model.cfg, 7, np.float32).flat
    model.requantise()
    after, _ = model.prefill(ids)
    np.testing.assert_array_equal(after, model(ids)[0][:, -1])
    assert not np.array_equal(after, before)


# --- no thread waits for one that does not come -----------------------------------------------------------


@pytest.mark.parametrize("chunks", [0, 2])
@pytest.mark.parametrize("rows", [18, 2], ids=["prompt", "token"])
def test_every_task_is_done_once_and_waits_for_no_later_one(rows, chunks):
    model, (ids, _) = small_model(inner_gain=True, norm="inner"), small_batch(small_config(), B=2, T=9)
    model.prefill(ids)
    phases = schedule(model.ready.kept["program"].tables, rows, 2, 5, chunks)
    done = np.concatenate([[0], np.cumsum(phases[:, 1])])
    assert np.all(phases[:, 4] <= done[:-1])
    assert phases[-1, 4] == done[-1]


HANG = """
import sys, numpy as np, threading
sys.path.insert(0, {tests!r})
from strategies import small_batch, small_config, small_params
from bitnet_ref import kernels
from bitnet_ref.model import Transformer
ops = kernels.load("numba", {threads})
sys.modules["bitnet_ref.kernels.numba_cpu.decode_step"].ALONE = 0
model = Transformer(small_config(context=512), small_params(small_config(), 0, np.float32), ops)
ids, _ = small_batch(small_config(), B=1, T=5)
logits, state = model.prefill(ids)
for _ in range(300):
    model.decode_step(ids[:, 0], state)
print("done", int(logits.argmax()))
"""


def run(code, **env):
    return subprocess.run([sys.executable, "-c", code], env={**os.environ, **env}, capture_output=True,
                          text=True, timeout=240)


@pytest.mark.parametrize("layer", ["omp", "workqueue"])
def test_more_threads_than_processors_do_not_hang(layer):
    code = HANG.format(tests=os.path.dirname(os.path.dirname(__file__)), threads=8)
    done = run(code, NUMBA_NUM_THREADS="8", NUMBA_THREADING_LAYER=layer)
    if "No threading layer could be loaded" in done.stderr:
        pytest.skip(f"this machine has no {layer}")
    assert done.stdout.startswith("done"), done.stderr


def test_two_threads_of_python_take_turns(monkeypatch):
    together(monkeypatch)
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=9)
    want, found = model.prefill(ids)[0], []

    def work():
        found.extend(model.prefill(ids)[0] for _ in range(20))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert len(found) == 80
    for logits in found:
        np.testing.assert_array_equal(logits, want)


def test_two_threads_of_python_may_go_on_from_one_state(monkeypatch):
    """Each gets the logits of its own token, or is told that the other was there first; nobody hangs."""
    together(monkeypatch)
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=9)
    _, state = model.prefill(ids)
    tokens = [np.array([1]), np.array([2])]
    want, wrong = [model.decode_step(token, state)[0] for token in tokens], []

    def work(token, logits):
        for _ in range(200):
            wrong.append(not np.array_equal(model.decode_step(token, state)[0], logits))

    workers = [threading.Thread(target=work, args=pair, daemon=True) for pair in zip(tokens, want)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
    assert len(wrong) == 400
    assert not any(wrong)


@pytest.mark.parametrize("on_disk", [False, True])
def test_threads_that_come_first_at_once_share_one_program(on_disk):
    """The panels are made once; a table moves into them while another thread reads it."""
    cfg = small_config(vocab_size=500)
    held = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    stored = {n: w if isinstance(w, Trits) else w.astype(np.float16) for n, w in held.items() if n != "head"}
    ids, _ = small_batch(small_config(), B=1, T=9)
    for _ in range(8):
        weights = OnDisk(stored, stored.__getitem__, True) if on_disk else held
        model, gate, wrong = Transformer(cfg, weights, OPS), threading.Barrier(4), []

        def work(n, model=model, gate=gate, wrong=wrong):
            gate.wait(60)
            try:
                _, state = (model(ids), None) if n == 3 else model.prefill(ids)
                if state:
                    model.decode_step(ids[:, 0], state)
            except Exception as e:
                wrong.append(e)

        workers = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for w in workers:
            w.start()
        for w in workers:
            w.join(60)
        assert wrong == []


def test_threads_of_python_keep_to_the_count(threads):
    """Numba keeps a count for each of them."""
    threads(1)
    seen = []
    worker = threading.Thread(target=lambda: seen.append(kernels.about("numba")["threads"]))
    worker.start()
    worker.join()
    assert seen == [1]


FORK = """
import os, sys
import numpy as np
from bitnet_ref import kernels
from bitnet_ref.checks import CheckError
ops = kernels.load("numba", {threads})
pid = os.fork()
if pid == 0:
    try:
        ops.linear(np.ones((3, 4), np.float32), np.ones((5, 4), np.float32))
        print("ran", flush=True)
    except CheckError as e:
        print(e, flush=True)
    os._exit(0)
print("ended", os.waitpid(pid, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(("threads", "words"), [(1, "threads must be used in the process"), (None, "ran")])
def test_a_fork_before_the_first_product(threads, words):
    """With a number of threads the pool has begun, and cannot be used; without, it begins in the child."""
    done = run(FORK.format(threads=threads))
    assert words in done.stdout, done.stderr
    assert "ended 0" in done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_decodes_alone_or_says_why_not(monkeypatch):
    """The pool's threads stay behind in a fork; OpenMP would end the process without a word of ours."""
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=9)
    want = model.prefill(ids)[0]
    model(ids)                                              # the pool has run here

    def child(queue):
        queue.put(model.prefill(ids)[0])
        try:
            model(ids)
        except CheckError as e:
            queue.put(str(e))

    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    process = fork.Process(target=child, args=(queue,))
    process.start()
    np.testing.assert_array_equal(queue.get(timeout=60), want)
    assert queue.get(timeout=60).startswith("threads must be used in the process that started them; got")
    process.join(60)
    assert process.exitcode == 0


def test_ctrl_c_between_tokens_leaves_a_working_model(monkeypatch):
    together(monkeypatch)
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=9)
    want, state = model.prefill(ids)
    def interrupted(arrays):
        raise KeyboardInterrupt

    monkeypatch.setattr(PATH, "frame", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.decode_step(ids[:, 0], state)
    monkeypatch.undo()
    np.testing.assert_array_equal(model.prefill(ids)[0], want)


CTRL_C = """
import sys
import numpy as np
sys.path.insert(0, {tests!r})
from strategies import small_batch, small_config, small_params
from bitnet_ref import kernels
from bitnet_ref.model import Transformer
ops = kernels.load("numba")
sys.modules["bitnet_ref.kernels.numba_cpu.decode_step"].ALONE = 0
model = Transformer(small_config(context=512), small_params(small_config(), 0, np.float32), ops)
ids, _ = small_batch(small_config(), B=1, T=5)
want = model.prefill(ids)[0]
interrupts = 0
while interrupts < 5:
    try:
        _, state = model.prefill(ids)
        print("ready", flush=True)
        while True:
            logits, state = model.decode_step(ids[:, 0], state)
            state = model.prefill(ids)[1]
    except KeyboardInterrupt:
        interrupts += 1
print("same", np.array_equal(model.prefill(ids)[0], want), flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="sends a signal as a terminal does")
def test_ctrl_c_at_any_moment_leaves_a_working_model(rng):
    code = CTRL_C.format(tests=os.path.dirname(os.path.dirname(__file__)))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        silence = threading.Timer(120, process.kill)
        silence.start()
        line = ""
        for line in process.stdout:
            if line != "ready\n":
                break
            time.sleep(rng.uniform(0, 0.05))
            process.send_signal(signal.SIGINT)
        silence.cancel()
    assert line == "same True\n"
    assert process.returncode == 0


def test_small_models_do_not_start_threads(monkeypatch):
    """nano has 4.4 million multiply-adds a token, and this one fewer."""
    assert ALONE > 5_000_000
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=9)
    called = []
    monkeypatch.setattr(PATH, "on_threads", lambda *args: called.append(args))
    model.prefill(ids)
    assert called == []
    together(monkeypatch)
    model.prefill(ids)
    assert len(called) == (THREADS > 1)


# --- texts of different lengths -----------------------------------------------------------------------------


SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 7)), min_size=1, max_size=4)


@given(seeds, SIZES, st.booleans())
@settings(max_examples=40)
def test_each_text_of_a_batch_is_as_if_alone(seed, sizes, apart):
    """Bit for bit, whatever its neighbours: prefilled, extended, taken back."""
    with pytest.MonkeyPatch.context() as patch:
        if apart:
            together(patch)
        model, rng = small_model(seed, context=40), np.random.default_rng(seed)
        lengths, counts = np.array(sizes).T
        counts[0] += not counts.any()
        ids, more = (rng.integers(0, 13, (len(sizes), n)) for n in (lengths.max(), counts.max()))
        logits, state = model.prefill(ids, lengths)
        new, after = model.extend(more, state, counts)
        back = [rng.integers(1, n + c + 1) for n, c in zip(lengths, counts)]
        token = rng.integers(0, 13, len(sizes))
        last, _ = model.decode_step(token, after.back(back))
        for b, (n, c) in enumerate(zip(lengths, counts)):
            text = np.concatenate([ids[b, :n], more[b, :c]])
            want = model(text)[0][0]
            np.testing.assert_array_equal(logits[b], want[n - 1])
            np.testing.assert_array_equal(new[b, :c], want[n:])
            assert not new[b, c:].any()
            np.testing.assert_array_equal(last[b], model(np.append(text[:back[b]], token[b]))[0][0, -1])


@given(seeds, st.sampled_from([{}, {"d_model": 40, "n_heads": 2, "n_kv_heads": 1}]), st.booleans())
@settings(max_examples=20)
def test_a_cache_in_float16_rounds_keys_and_values_and_nothing_else(seed, shape, apart):
    """So a token at a time is what a prompt at once is, and both are near the float32 cache."""
    with pytest.MonkeyPatch.context() as patch:
        if apart:
            together(patch)
        cfg = small_config(context=FIRST_ROOM + 40, **shape)
        params, rng = small_params(cfg, seed, np.float32), np.random.default_rng(seed)
        model, exact = (Transformer(cfg, params, OPS, half_cache=half) for half in (True, False))
        ids = rng.integers(0, 13, (2, FIRST_ROOM + 12))     # it grows
        want, state = model.prefill(ids)
        assert state.texts.cache.keys.nbytes * 2 == exact.prefill(ids)[1].texts.cache.keys.nbytes
        _, state = model.prefill(ids[:, :FIRST_ROOM - 8])
        logits, _ = model.extend(ids[:, FIRST_ROOM - 8:], state)
        np.testing.assert_array_equal(logits[:, -1], want)
        for t in range(FIRST_ROOM - 8, FIRST_ROOM + 12):
            last, state = model.decode_step(ids[:, t], state)
        np.testing.assert_array_equal(last, want)
        apart_by = np.abs(want - exact.prefill(ids)[0]).max() / np.abs(want).max()
        assert 0 < apart_by < 0.05


def test_a_number_too_large_for_float16_becomes_the_largest():
    cfg = small_config()
    params = small_params(cfg, 0, np.float32)
    params["layers.0.attn.wk"][:] *= 1e6
    model = Transformer(cfg, params, OPS, half_cache=True)
    ids, _ = small_batch(cfg, B=1, T=9)
    logits, state = model.prefill(ids)
    assert np.isfinite(logits).all()
    assert np.abs(state.texts.cache.keys.view(np.float16)).max() == 65504


def test_a_state_that_was_written_over_is_refused():
    model, (ids, _) = small_model(), small_batch(small_config(), B=2, T=9)
    _, state = model.prefill(ids[:, :5])
    _, longer = model.extend(ids[:, 5:8], state)
    model.decode_step(ids[:, 0], longer.back([6, 8]))
    with pytest.raises(CheckError, match="a state must stand in its cache"):
        model.decode_step(ids[:, 0], longer)
    with pytest.raises(CheckError, match="a state must stand in its cache"):
        longer.back([6, 8])
    model.decode_step(ids[:, 0], state.back(3))             # what was before still stands


def test_buffers_of_prompts_are_not_kept():
    model, (ids, _) = small_model(context=400), small_batch(small_config(), B=1, T=9)
    ids = np.tile(ids, 12)
    _, state = model.prefill(ids)
    assert state.texts.buffers == {}
    for n in [*range(1, MOST_CALLS + 1), 1, 1]:
        _, state = model.extend(ids[:, :n], state)
    assert len(state.texts.buffers) == MOST_CALLS
    _, state = model.extend(ids[:, :MOST_CALLS + 2], state)
    assert {sum(counts) for counts, *_ in state.texts.buffers} == set(range(1, MOST_CALLS + 1))


def test_nothing_holds_a_cache_that_was_outgrown():
    model, (ids, _) = small_model(context=2 * FIRST_ROOM + 40), small_batch(small_config(), B=1, T=9)
    _, state = model.prefill(np.tile(ids, 25))
    _, state = model.extend(ids, state)
    old = weakref.ref(state.texts.cache.keys)
    for _ in range(5):
        _, state = model.extend(ids, state)
    assert old() is None


# --- weights that stay where they are -----------------------------------------------------------------------


STORED_AS = [{}, {"tied_embeddings": False}, {"linear": "full"}, {"norm": "inner"}]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("given", STORED_AS, ids=label)
@pytest.mark.parametrize("int8_head", [False, True])
def test_a_model_on_disk_is_that_in_memory(dtype, given, int8_head):
    """Tables keep their 16 bits, trits are kept packed alone, and every logit is the same."""
    cfg = small_config(**given)
    held = ternarise(cfg, small_params(cfg, 0, np.float32), OPS)
    stored = {n: w if isinstance(w, Trits) else w.astype(dtype) for n, w in held.items() if n != "head"}
    if not cfg.tied_embeddings:
        stored["head"] = held["head"].astype(dtype)
    wide = Weights({n: w if isinstance(w, Trits) else w.astype(np.float32) for n, w in stored.items()})
    wide.setdefault("head", wide["embedding"])
    want = Transformer(cfg, wide, OPS, int8_head)
    model = Transformer(cfg, OnDisk(stored, stored.__getitem__, cfg.tied_embeddings), OPS, int8_head)
    ids, _ = small_batch(cfg, B=2, T=9)
    for _ in range(2):                                      # before the panels are made, and from them
        np.testing.assert_array_equal(model(ids)[0], want(ids)[0])
        np.testing.assert_array_equal(model.prefill(ids)[0], want.prefill(ids)[0])
    for name, matrix in model.ready.items():
        if isinstance(held[name], Trits):
            assert matrix.only_packed
            np.testing.assert_array_equal(matrix.w_q, held[name].w_q)
            assert np.shares_memory(matrix.packed, model.ready.kept["program"].tables.arena)


def test_a_table_in_panels_gives_its_rows(rng):
    w = rng.normal(size=(37, 20)).astype(np.float16)
    table, ids = Table(w), rng.integers(0, 37, (2, 5))
    panels = np.zeros((3, 20, 16), np.uint16)
    for n, row in enumerate(w.view(np.uint16)):
        panels[n // 16, :, n % 16] = row
    want = w[ids].astype(np.float32)
    np.testing.assert_array_equal(table[ids], want)
    table.live_in(panels)
    np.testing.assert_array_equal(table[ids], want)
    np.testing.assert_array_equal(table.whole(), w)
    assert (len(table), table.shape, table.dtype) == (37, (37, 20), np.float16)


# --- what is asked for wrongly ------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "words"), [
    ([0, 1], "a token for each of 1 sequences; got 2"), ([-1], r"token must lie in 0..\d+; got -1"),
    ([10**6], "token must lie in"), ([0.5], "integers of shape"), ([[1]], "integers of shape"),
    (np.zeros(0, int), "integers of shape")])
def test_a_wrong_step_is_refused(step, words):
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=5)
    _, state = model.prefill(ids)
    with pytest.raises(CheckError, match=words):
        model.decode_step(step, state)


@pytest.mark.parametrize("ids", [np.zeros((1, 0), int), [[-1]], [[10**6]], [[0.5]]], ids=str)
def test_a_wrong_prompt_is_refused(ids):
    with pytest.raises(CheckError, match="ids must"):
        small_model().prefill(ids)


def test_a_state_of_other_weights_is_refused():
    model, (ids, _) = small_model(), small_batch(small_config(), B=1, T=5)
    _, state = model.prefill(ids)
    model.requantise()
    with pytest.raises(CheckError, match="a state must be of these weights; got one of others; prefill"):
        model.decode_step(ids[:, 0], state)
    model.prefill(ids)
    with pytest.raises(CheckError, match="a state must be of these weights"):
        model.decode_step(ids[:, 0], state)


# --- threads, asked for wrongly ---------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, -1])
def test_too_few_threads(threads):
    with pytest.raises(CheckError, match="threads must be at least 1"):
        kernels.load("numba", threads)


def test_too_many_threads():
    with pytest.raises(CheckError, match=rf"threads must lie in 1..{THREADS} .*; got {THREADS + 1}; choose"):
        kernels.load("numba", THREADS + 1)
