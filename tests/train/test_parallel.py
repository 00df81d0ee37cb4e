"""train/parallel: the number of ranks changes no bit, and a job begins, stops and fails as one.

The sums are tested with ranks that are threads and messages that are queues; the command with a real mpiexec.
"""

import functools
import operator
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import own_cache  # noqa: F401

from bitnet_ref.config import ModelConfig
from bitnet_ref.formats.checkpoint import checkpoints, latest, read_state
from bitnet_ref.model import scaling
from bitnet_ref.train import gradient, log, parallel
from bitnet_ref.train.checkpoint import new_run
from bitnet_ref.train.parallel import World, tree_sum

# --- ranks as threads --------------------------------------------------------------------------------------


class Threads:
    """What World asks of a communicator, for one of `size` threads of this process."""

    def __init__(self, rank, shared):
        self.rank, self.shared, self.sent = rank, shared, 0

    def Get_rank(self):
        return self.rank

    def Get_size(self):
        return self.shared["size"]

    def Send(self, a, to):
        self.sent += a.nbytes
        self.shared["mail"][self.rank, to].put(a.copy())

    def Recv(self, a, source):
        came = self.shared["mail"][source, self.rank].get(timeout=20)
        assert came.shape == a.shape
        a[:] = came

    def Sendrecv(self, a, to, recvbuf, source):
        self.Send(a, to)
        self.Recv(recvbuf, source)

    def everyones(self, value):
        """The values of all ranks, in their order."""
        self.shared["values"][self.rank] = value
        self.shared["barrier"].wait(20)
        values = list(self.shared["values"])
        self.shared["barrier"].wait(20)
        return values

    def Allreduce(self, mine, total):
        total[:] = np.sum(self.everyones(mine.copy()), axis=0)

    def Bcast(self, a):
        a[:] = self.everyones(a.copy())[0]

    def bcast(self, value):
        return self.everyones(value)[0]

    def allgather(self, value):
        return self.everyones(value)

    def Ibarrier(self):
        self.everyones(None)
        return self

    def Test(self):
        return True


def ranks(size, work):
    """[work(world) of each of `size` ranks], or the first exception that one of them raised."""
    shared = {"size": size, "values": [None] * size, "barrier": threading.Barrier(size),
              "mail": {(a, b): queue.Queue() for a in range(size) for b in range(size)}}
    results, errors = [None] * size, []

    def run(rank):
        try:
            results[rank] = work(World(Threads(rank, shared)))
        except BaseException as e:
            errors.append(e)
            shared["barrier"].abort()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(30)
    if errors:
        raise errors[0]
    return results


# --- the sum -----------------------------------------------------------------------------------------------


def by_definition(vectors):
    """The tree as the docs draw it: those with an even number, plus those with an odd one, each likewise."""
    return vectors[0] if len(vectors) == 1 else by_definition(vectors[::2]) + by_definition(vectors[1::2])


def summed(vectors, world):
    """(the sum that a rank ends with, which vectors it made, how many buffers it needed)"""
    buffers, made = [], []

    def buffer(i):
        while len(buffers) <= i:
            buffers.append(np.full_like(vectors[0], np.nan))
        return buffers[i]

    def fill(m, i):
        made.append(m)
        buffer(i)[:] = vectors[m]

    tree_sum(len(vectors), fill, buffer, world)
    return buffers[0], made, len(buffers)


def vectors_of(n, length, seed=0):
    """Numbers of very different sizes: any other order of additions has other last bits."""
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=length) * 10.0 ** rng.integers(-6, 6, length)).astype(np.float32)
            for _ in range(n)]


@given(n=st.integers(1, 40), size=st.integers(1, 9), length=st.integers(1, 23), seed=st.integers(0, 99))
def test_any_number_of_ranks_gives_the_same_bits(n, size, length, seed):
    size, vectors = min(n, size), vectors_of(n, length, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parallel, "PIECE", 4)                # so that messages of several pieces come up
        results = ranks(size, functools.partial(summed, vectors))
    for rank, (total, made, _) in enumerate(results):
        assert total.tobytes() == by_definition(vectors).tobytes()
        assert sorted(made) == list(range(rank, n, size))


def test_another_order_would_have_other_bits():
    """Else the test above could not fail."""
    vectors = vectors_of(16, 100)
    one_by_one = functools.reduce(operator.add, vectors)
    assert np.mean(one_by_one != by_definition(vectors)) > 0.3


@pytest.mark.parametrize(("n", "size", "most"),
                         [(1, 1, 1), (2, 1, 2), (5, 1, 3), (64, 1, 7), (64, 8, 4), (64, 64, 1), (64, 3, 4)])
def test_a_rank_holds_one_buffer_for_each_level(n, size, most):
    assert max(needed for *_, needed in ranks(size, functools.partial(summed, vectors_of(n, 3)))) == most


@pytest.mark.parametrize("size", [2, 4, 8])
def test_a_power_of_two_of_ranks_sends_no_more_than_a_ring(size):
    def work(world):
        parallel.butterfly(np.zeros(4096, np.float32), world)
        return world.comm.sent

    cfg = ModelConfig(**tiny.MODEL)
    sent = scaling.sent_bytes(cfg, size) * 4096 * 4 / scaling.gradient_bytes(cfg)
    assert set(ranks(size, work)) == {2 * 4096 * 4 * (size - 1) // size} == {sent}


def test_the_cost_model_counts_what_is_done():
    """Messages, bytes, buffers and shares: those of model/scaling are those of the sum."""
    assert scaling.PIECE == 4 * parallel.PIECE
    for n, size in ((8, 1), (8, 2), (64, 8), (11, 4)):
        results = ranks(size, functools.partial(summed, vectors_of(n, 8)))
        job = scaling.Job(None, 1, n, size)
        assert max(len(made) for _, made, _ in results) == scaling.most_micro_batches(job)
        assert max(needed for *_, needed in results) == scaling.buffers(job)


# --- a step ------------------------------------------------------------------------------------------------


def replica(run, world):
    """The same run, as another rank of a job has it."""
    own = new_run(run.folder, run.model.cfg, run.cfg, run.data, run.model.plan.ops)
    own.model.params.flat[:], own.world = run.model.params.flat, world
    own.model.requantise()
    return own


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_rank_has_the_gradient_and_the_report_of_one_alone(size, tmp_path):
    alone, data = tiny.begin(tmp_path / "run", accumulate=4, steps=2, backend="numpy")
    report = gradient.gradient(alone, data)

    def work(world):
        run = replica(alone, world)
        return gradient.gradient(run, data), run.grads.flat.tobytes()

    assert ranks(size, work) == [(report, alone.grads.flat.tobytes())] * size


def test_a_loss_that_is_not_finite_is_named_by_every_rank(tmp_path):
    alone, data = tiny.begin(tmp_path / "run", accumulate=4, steps=2, backend="numpy")
    alone.model.params["layers.1.ffn_norm"][3] = np.nan
    said = ranks(2, lambda world: gradient.gradient(replica(alone, world), data).bad)
    assert said == ["the loss of step 0 must be finite; got nan, first in the weight layers.1.ffn_norm"] * 2


# --- what ranks tell each other ----------------------------------------------------------------------------


def test_what_holds_on_one_rank_holds_for_all():
    assert ranks(3, lambda world: world.any(world.rank == 1)) == [True] * 3
    assert ranks(3, lambda world: world.any(False)) == [False] * 3


def test_what_the_first_rank_does_is_done_once_and_told():
    done = []
    assert ranks(3, lambda world: world.told(lambda: done.append(world.rank) or "a name")) == ["a name"] * 3
    assert done == [0]


def test_the_first_rank_writes_and_then_the_others_read():
    done = []

    def write_or_read(rank):
        time.sleep(0.05 * (rank == 0))                     # the others would be quicker
        done.append(rank)

    ranks(3, lambda world: world.in_turn(lambda: write_or_read(world.rank)))
    assert done[0] == 0
    assert sorted(done) == [0, 1, 2]


def test_replicas_that_came_apart_are_refused_on_every_rank():
    def work(world):
        flat = np.zeros(9, np.float32)
        world.require_equal("parameters", flat)
        flat[4] = 1e-30 * (world.rank == 2)
        with tiny.refusal("all ranks must hold the same parameters", "on rank 2 than on rank 0"):
            world.require_equal("parameters", flat)
        return True

    assert ranks(3, work) == [True] * 3


def test_a_rank_of_one_asks_nobody():
    """comm None would raise."""
    world = World()
    values = np.array([1.0])
    world.require_equal("parameters", values)
    assert world.added(values) is values
    assert (world.any(True), world.any(False), world.threads(None)) == (True, False, None)
    assert (world.told(lambda: 7), world.in_turn(lambda: 8)) == (7, 8)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="processors of a process: Linux alone tells")
@pytest.mark.parametrize(("sets", "given", "threads"), [
    ([range(8)] * 4, None, [2, 2, 2, 2]), ([range(8)] * 3, None, [2, 2, 2]), ([range(1)] * 2, None, [1, 1]),
    ([range(4), range(4, 8)], None, [4, 4]), ([range(8)] * 2, 3, [3, 3]),
])
def test_ranks_share_the_processors_that_they_have_in_common(sets, given, threads, monkeypatch):
    """Each set is asked for by the rank that it belongs to: by its thread."""
    mine = threading.local()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(mine.processors))

    def work(world):
        mine.processors = sets[world.rank]
        return world.threads(given)

    assert ranks(len(sets), work) == threads


# --- who we are --------------------------------------------------------------------------------------------


@pytest.fixture
def who(monkeypatch):
    """parallel.here() of a process with this environment and no other of its kind."""
    def ask(**environment):
        for name in (*parallel.SIZES, *parallel.RANKS):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return parallel.here.__wrapped__()
    return ask


@pytest.mark.parametrize("environment", [{}, {"OMPI_COMM_WORLD_SIZE": "1", "PMIX_RANK": "0"},
                                         {"PMI_SIZE": "1"}], ids=str)
def test_a_process_alone_imports_no_mpi(environment, who, monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert who(**environment).size == 1


@pytest.mark.parametrize("environment", [{"OMPI_COMM_WORLD_SIZE": "2"}, {"PMI_SIZE": "4"},
                                         {"PMIX_RANK": "0"}], ids=str)
def test_one_of_several_that_cannot_speak_is_refused(environment, who, monkeypatch):
    """Else each would train a model of its own, in silence."""
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with tiny.refusal("needs mpi4py", ".[mpi]"):
        who(**environment)


def test_an_mpi4py_of_another_mpi_is_refused(who, monkeypatch):
    """It starts as a job of its own, of one rank."""
    alone = ranks(1, lambda world: world)[0]
    monkeypatch.setitem(sys.modules, "mpi4py", SimpleNamespace(MPI=SimpleNamespace(COMM_WORLD=alone.comm)))
    with tiny.refusal("must be built for the MPI", "1 rank where mpiexec started 2"):
        who(OMPI_COMM_WORLD_SIZE="2")


def test_more_ranks_than_micro_batches_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "here", lambda: SimpleNamespace(size=3))
    with tiny.refusal("every rank must have a micro-batch", "3 ranks and --accumulate 2"):
        tiny.begin(tmp_path / "run", accumulate=2)
    assert not (tmp_path / "run").exists()


# --- a job -------------------------------------------------------------------------------------------------

JOB = {"steps": 50, "batch": 2, "accumulate": 4, "save_every": 7, "keep": 20, "eval_every": 20, "warmup": 3}


def mpiexec():
    """The mpiexec of this environment; skips where there is none that belongs to mpi4py."""
    pytest.importorskip("mpi4py")
    found = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return found or pytest.skip("no mpiexec: pip install .[mpi]")


def job(size, *words):
    """A job of `size` ranks on however many cores, started."""
    allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
               "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    return subprocess.Popen(
        [mpiexec(), "-n", str(size), sys.executable, "-m", "bitnet_ref.train", *map(str, words)],
        env={**tiny.environment(), **allowed, "NUMBA_NUM_THREADS": "1"}, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finished(process, code=0):
    """(stdout, stderr) of a job that ends with this exit code."""
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == code, stderr
    return stdout, stderr


@functools.cache
def whole():
    """The run that every job below must equal, by one process that knows nothing of jobs."""
    return tiny.trained(**JOB)


def assert_same(folder, other):
    """The same last checkpoint, and the same log."""
    a, b = (read_state(latest(run)) for run in (folder, other))
    assert (a["step"], a["cursor"], a["sha256"]) == (b["step"], b["cursor"], b["sha256"])
    assert tiny.lines(folder) == tiny.lines(other)


@pytest.mark.parametrize("also", [{}, pytest.param({"compress": "super"}, marks=pytest.mark.slow)], ids=str)
def test_two_ranks_equal_one(also, tmp_path):
    """One number for all that a run is: the checksum of parameters and moments."""
    given = {"steps": 3, "batch": 2, "accumulate": 2, "eval_every": 2, "eval_windows": 2, **also}
    stdout, stderr = finished(job(2, "--output", tmp_path / "run", *tiny.flags(**given)))
    assert "threads 1 in each of 2 ranks" in stderr
    assert stdout.count("\nbits per byte") == 1            # one rank speaks
    assert_same(tmp_path / "run", tiny.trained(**given))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_any_number_of_ranks_equals_one_process_after_50_steps(size, tmp_path):
    finished(job(size, "--output", tmp_path / "run", *tiny.flags(**JOB)))
    assert_same(tmp_path / "run", whole())


def stopped(process, folder, after, number):
    """The job, sent signal `number` when it has made so many steps, and ended."""
    tiny.wait_for(lambda: len(log.read(folder, "step")) >= after, process)
    process.send_signal(number)
    return process.communicate(timeout=60)


@pytest.mark.slow
def test_a_run_may_go_on_with_fewer_ranks(tmp_path):
    """SIGUSR1 to mpiexec reaches all ranks, who save at the end of the same step."""
    run = tmp_path / "run"
    first = stopped(job(4, "--output", run, *tiny.flags(**JOB)), run, 10, signal.SIGUSR1)
    step = read_state(latest(run))["step"]
    assert 10 <= step < 50
    assert f"interrupted at step {step}; saved; go on with" in first[1]
    second = stopped(job(2, "--resume", run), run, step + 10, signal.SIGUSR1)
    again = read_state(latest(run))["step"]
    assert step + 10 <= again < 50
    assert f"interrupted at step {again}; saved" in second[1]
    result = tiny.command("train", "--resume", run)
    assert result.returncode == 0, result.stderr
    assert_same(run, whole())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc says which processes mpiexec started")
def test_a_rank_that_dies_ends_the_job_and_the_run_goes_on(tmp_path):
    run = tmp_path / "run"
    process = job(2, "--output", run, *tiny.flags(**JOB))
    tiny.wait_for(lambda: len(log.read(run, "step")) >= 17, process)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.communicate(timeout=60)
    assert process.returncode != 0
    assert 14 <= read_state(latest(run))["step"] < 50
    finished(job(2, "--resume", run))
    assert_same(run, whole())


def children(pid):
    """The processes that `pid` started."""
    return [int(n) for task in Path(f"/proc/{pid}/task").glob("*/children") for n in task.read_text().split()]


@pytest.mark.slow
def test_control_c_ends_the_job_and_loses_no_checkpoint(tmp_path):
    """Open MPI's mpiexec gives its ranks half a second: a step of this size ends in it, not any step."""
    run = tmp_path / "run"
    stopped(job(2, "--output", run, *tiny.flags(**JOB)), run, 17, signal.SIGINT)
    assert checkpoints(run)
    assert read_state(latest(run))["step"] >= 14
    finished(job(2, "--resume", run))
    assert_same(run, whole())


@pytest.mark.slow
def test_what_is_wrong_for_all_is_said_once(tmp_path):
    _, stderr = finished(job(3, "--output", tmp_path / "run", *tiny.flags(accumulate=2)), 2)
    tiny.assert_three_parts(next(line for line in stderr.splitlines() if line.startswith("error: ")),
                            "every rank must have a micro-batch", "--accumulate 3")
    assert stderr.count("every rank must have") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("other", "words"), [
    (["--nonsense"], "rank 1: error: every flag must be known; got --nonsense"),
    (["--lr", "0.5"], "error: all ranks must hold the same config and data; got another checksum on rank 1"),
], ids=str)
def test_what_is_wrong_with_one_rank_ends_all(other, words, tmp_path):
    flags = ["--output", tmp_path / "run", *tiny.flags(**JOB)]
    second = (":", "-n", 1, sys.executable, "-m", "bitnet_ref.train", *flags, *other)
    _, stderr = finished(job(1, *flags, *second), 2)
    assert words in stderr
    assert "Traceback" not in stderr
