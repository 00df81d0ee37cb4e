"""The log of a run as TensorBoard's event files, while it is written: --tensorboard.

The events are a copy of log.jsonl and nothing else. Every start writes them anew from the log as it was cut,
so a resumed run shows no step twice. Their step is the cursor, which no rollback takes back. The file is
written in the training thread, not by one behind it: a full disk is then a refusal, not a run that hangs.
Read after: train/log. Read next: train/computed.
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError
from bitnet_ref.data.atomic import unwritable
from bitnet_ref.train.log import LOG

FOLDER, PREFIX = "tensorboard", "events.out.tfevents."
OFTEN = "step"               # the kind of line after which the disk is left alone


def require(wanted: bool) -> None:
    """Raise CheckError if event files are `wanted` and the library that writes them is missing.
    >>> import sys; from unittest.mock import patch
    >>> with patch.dict(sys.modules, tensorboardX=None): require(wanted=True)        # as if it were missing
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: --tensorboard needs the library tensorboardX; got an environment without it;
        in a clone, pip install ".[tensorboard]", or leave the flag out: log.jsonl holds the same figures
    """
    if wanted:
        try:
            import tensorboardX  # noqa: F401
        except ImportError:
            raise CheckError("--tensorboard needs the library tensorboardX; got an environment without it; "
                             'in a clone, pip install ".[tensorboard]", or leave the flag out: log.jsonl '
                             "holds the same figures") from None


@contextmanager
def following(run: Path, wanted: bool) -> Iterator[Callable[[], None]]:
    """Yields a function that copies what the log has and the events have not; unless `wanted`, one that does
    nothing.

    Event files of an earlier start are removed. Raises CheckError where the disk refuses.
    >>> with following(Path("run"), wanted=False) as follow:
    ...     follow() is None                        # without --tensorboard nothing is read or written
    True
    """
    if not wanted:
        yield lambda: None
        return
    folder = run / FOLDER
    with _refusals(folder):
        (run / LOG).touch()
        writer = _new_file(folder)
        log = open(run / LOG, encoding="utf-8")  # noqa: SIM115 (closed below)

    def follow() -> None:
        with _refusals(folder):
            for line in log:                 # begins where the call before ended
                _copy(json.loads(line), writer)

    with closing(writer), log:
        follow()
        yield follow
        follow()


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise unwritable(folder, e) from None


def _new_file(folder: Path) -> Any:
    """A writer into a new event file, the only one in `folder`, that begins by saying: forget what was."""
    from tensorboardX import RecordWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    folder.mkdir(exist_ok=True)
    for old in folder.glob(PREFIX + "*"):
        old.unlink()
    now = time.time_ns()
    writer = RecordWriter(str(folder / f"{PREFIX}{now}.bitnet_ref"))
    for event in (Event(wall_time=now / 1e9, file_version="brain.Event:2"),
                  Event(wall_time=now / 1e9, step=0, session_log=SessionLog(status=SessionLog.START))):
        writer.write(event.SerializeToString())
    return writer


def _copy(line: dict[str, Any], writer: Any) -> None:
    """Write one line of the log as one event."""
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(line).items()]
    event = Event(wall_time=time.time(), step=line["cursor"], summary=Summary(value=values))
    writer.write(event.SerializeToString())
    if line["kind"] != OFTEN:
        writer.flush()


def scalars(line: dict[str, Any]) -> dict[str, float]:
    """{tag: number} of a line of the log: step/loss, eval/loss, ...; of its layers zero/layers.0.attn.wq.
    >>> scalars({"kind": "step", "step": 7, "cursor": 7, "loss": 2.5, "tokens": 64, "seconds": 0.5})
    {'step/loss': 2.5, 'step/tokens': 64.0, 'step/seconds': 0.5, 'step/tokens_per_second': 128.0}
    """
    kind = line["kind"]
    found = {f"{kind}/{name}": float(value) for name, value in line.items()
             if name not in ("kind", "step", "cursor") and type(value) in (int, float)}
    if kind == "step" and line.get("seconds"):
        found["step/tokens_per_second"] = line["tokens"] / line["seconds"]
    return found | {f"{measure}/{matrix}": float(value) for matrix, measures in line.get("layers", {}).items()
                    for measure, value in measures.items()}
