"""train/board: TensorBoard's events are the log, also after a stop, and a full disk does not hang the run."""

import builtins
import errno
import os
import struct
import sys

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.train import board, log, start


def records(folder):
    """The records of the one event file in `folder`, framed by lengths and two checksums of four bytes."""
    (file,) = (folder / board.FOLDER).iterdir()
    data, at = file.read_bytes(), 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield data[at + 12:at + 12 + length]
        at += length + 16
    assert at == len(data)


def points(folder):
    """([(step, {tag: value})], what stands before them) of the event file."""
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    version, begin, *events = [Event.FromString(r) for r in records(folder)]
    assert version.file_version == "brain.Event:2"
    assert (begin.step, begin.session_log.status) == (0, SessionLog.START)
    return [(e.step, {v.tag: v.simple_value for v in e.summary.value}) for e in events]


def as_events(folder):
    """What the file must hold, from the log, float32 as in the file."""
    return [(line["cursor"], {tag: struct.unpack("f", struct.pack("f", v))[0]
                              for tag, v in board.scalars(line).items()})
            for line in log.read(folder) if line["kind"] != "final"]


def test_the_tags_are_the_names_of_the_log():
    step = {"kind": "step", "step": 3, "cursor": 4, "loss": 2.0, "tokens": 10, "seconds": 0.5}
    assert board.scalars(step) == {"step/loss": 2.0, "step/tokens": 10.0, "step/seconds": 0.5,
                                   "step/tokens_per_second": 20.0}
    layers = {"kind": "layers", "step": 3, "cursor": 4, "layers": {"layers.0.attn.wq": {"zero": 0.25}}}
    assert board.scalars(layers) == {"zero/layers.0.attn.wq": 0.25}
    event = {"kind": "event", "step": 3, "cursor": 4, "what": "skip", "why": "loud", "norm": 9.0}
    assert board.scalars(event) == {"event/norm": 9.0}


def test_a_run_writes_its_log_as_events(tmp_path):
    pytest.importorskip("tensorboardX")
    run = tiny.train(tmp_path / "run", tensorboard=True, steps=6)
    found = points(run.folder)
    assert found == as_events(run.folder)
    assert {"step/loss", "step/lr", "eval/loss", "near/layers.0.attn.wq"} <= {t for _, v in found for t in v}


def test_a_resumed_run_has_no_step_twice(tmp_path, monkeypatch):
    """Stopped at 7, with lines after its checkpoint as a crash would leave them."""
    pytest.importorskip("tensorboardX")
    folder = tmp_path / "run"
    tiny.interrupt(folder, 7, monkeypatch, tensorboard=True, steps=10)
    log.append(folder, "step", 8, 8, loss=9.0, decay=0.0)
    first = list((folder / board.FOLDER).iterdir())
    run = tiny.resume(folder)
    assert run.cfg.tensorboard
    assert not first[0].exists()
    found = points(folder)
    assert found == as_events(folder)
    steps = [step for step, values in found if "step/loss" in values]
    assert steps == list(range(1, 11))


def test_events_come_while_the_run_goes_on(tmp_path):
    pytest.importorskip("tensorboardX")
    with board.following(tmp_path, True) as follow:
        log.append(tmp_path, "eval", 0, 0, loss=1.0)
        follow()
        assert points(tmp_path) == [(0, {"eval/loss": 1.0})]
        log.append(tmp_path, "eval", 5, 6, loss=0.5)
        follow()
        follow()
        assert [step for step, _ in points(tmp_path)] == [0, 6]


def test_nothing_is_written_unless_it_is_wanted(tmp_path):
    with board.following(tmp_path, False) as follow:
        follow()
    assert list(tmp_path.iterdir()) == []


def test_without_the_library_a_run_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with tiny.refusal("tensorboardX", "pip install", ".[tensorboard]"):
        tiny.begin(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
    run = tiny.copy(tiny.trained(), tmp_path / "other")
    with tiny.refusal(".[tensorboard]"):
        start.resume(str(run), {"tensorboard": True})


def test_a_full_disk_is_a_refusal_and_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    import tensorboardX
    with pytest.raises(OSError, match="mine"), board.following(tmp_path, True):
        raise OSError("mine")

    def no_space(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with board.following(tmp_path, True) as follow:
        monkeypatch.setattr(tensorboardX.RecordWriter, "write", no_space)
        log.append(tmp_path, "eval", 0, 0, loss=1.0)
        with tiny.refusal("tensorboard must be writable", "No space left"):
            follow()
    with monkeypatch.context() as patch, tiny.refusal("must be writable", "No space left"):
        patch.setattr(builtins, "open", no_space)
        with board.following(tmp_path, True):
            pass
