"""What a run writes down: log.jsonl, one JSON object a line, and a progress bar.

Kinds of line: "step" (loss, norm, rates), "layers" (the measures of every matrix), "event" (what the guard
did), "eval", "final" (all of the validation text), "final ema" (the same by the averaged parameters). Only
`seconds` differs between two runs of one seed. On resume, lines after the checkpoint's step are cut: the log
then equals that of an uninterrupted run.
Read after: train/measures. Read next: train/board.
"""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable, whole_file

LOG, SUMMARY = "log.jsonl", "summary.json"
LARGEST = 1 << 24            # bytes of summary.json and config.json that are read
NUMBERS = {"step": ("loss", "decay"), "eval": ("loss",), "final": ("loss",)}      # what the pictures need
IF_THERE = {"step": ("norm", "lr", "tokens", "seconds")}                           # and what they may lack
EVENTS = {"skip": (), "rollback": ("from", "to")}         # what the guard did, and the steps that it names
ENDS = "final", "final ema"
FIX = "correct or delete that line, or restore the log from a copy"


def append(run: Path, kind: str, step: int, cursor: int, **values: Any) -> None:
    """Add one line to the run's log. Raises CheckError when the disk refuses.
    >>> import tempfile; folder = tempfile.TemporaryDirectory()
    >>> append(Path(folder.name), "step", 1, 1, loss=5.5, decay=0.1)
    >>> json.loads((Path(folder.name) / LOG).read_text())
    {'kind': 'step', 'step': 1, 'cursor': 1, 'loss': 5.5, 'decay': 0.1}
    """
    try:
        with open(run / LOG, "a", encoding="utf-8") as f:
            f.write(json.dumps({"kind": kind, "step": step, "cursor": cursor, **values}) + "\n")
    except OSError as e:
        raise CheckError(f"the log must be writable; got {e}; make room in {run} and resume") from None


def sync(run: Path) -> None:
    """Wait until the log is on the disk. Raises CheckError when the disk refuses.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     sync(Path(folder))                              # no log yet, nothing to wait for
    ...     Path(folder, LOG).mkdir()
    ...     sync(Path(folder))                              # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: the log must be writable; got ...; make room in ... and resume
    """
    try:
        with suppress(FileNotFoundError), open(run / LOG, "r+b") as f:
            os.fsync(f.fileno())
    except OSError as e:
        raise CheckError(f"the log must be writable; got {e}; make room in {run} and resume") from None


def read(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log (of one kind), in order. A last line cut short by a crash is left out.

    Raises CheckError, naming the line, for anything else that is not a line of a log.
    >>> import tempfile; folder = tempfile.TemporaryDirectory(); run = Path(folder.name)
    >>> append(run, "eval", 50, 50, loss=3.2); append(run, "event", 51, 52, what="skip")
    >>> read(run, "eval"), len(read(run))
    ([{'kind': 'eval', 'step': 50, 'cursor': 50, 'loss': 3.2}], 2)
    """
    file = run / LOG
    try:
        *texts, last = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as e:
        raise unreadable(file, e) from None
    if _is_whole(last):
        texts.append(last)
    lines = [_line(text, f"line {n} of {file}") for n, text in enumerate(texts, 1)]
    return [line for line in lines if kind in (None, line["kind"])]


def _is_whole(last: bytes) -> bool:
    """Whether the text after the last newline is more than the beginning of a line (ours are ASCII)."""
    try:
        json.loads(str(last, "utf-8"))
    except json.JSONDecodeError:
        return False
    except (ValueError, RecursionError):
        pass                                 # no crash makes these: to be refused
    return True


def _line(text: bytes, where: str) -> dict[str, Any]:
    """One line as a dict, checked as far as resuming and the pictures need it."""
    try:
        line = json.loads(str(text, "utf-8"))
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{where} must be JSON; got {e}; {FIX}") from None
    check(isinstance(line, dict) and isinstance(line.get("kind"), str) and type(line.get("step")) is int,
          f"{where} must be an object with a kind and an integer step", text[:60], FIX)
    check(type(line.setdefault("cursor", line["step"])) is int, f"{where} must have an integer cursor",
          text[:60], FIX)
    there = [name for name in IF_THERE.get(line["kind"], ()) if name in line]
    for name in (*NUMBERS.get(line["kind"], ()), *there):
        check(_is_number(line.get(name)), f"{where} must have a number as {name}", repr(line.get(name)), FIX)
    if line["kind"] == "event":
        names = EVENTS.get(line.get("what") if isinstance(line.get("what"), str) else "")
        check(names is not None and all(type(line.get(name)) is int for name in names),
              f"{where} must say what happened ({', '.join(EVENTS)}) and between which steps", text[:60], FIX)
    if line["kind"] == "layers":
        layers = line.get("layers")
        check(isinstance(layers, dict) and all(isinstance(m, dict) and all(map(_is_number, m.values()))
                                               for m in layers.values()),
              f"{where} must have numbers by matrix as layers", text[:60], FIX)
    return line


def _is_number(value: Any) -> bool:
    """Finite, or NaN."""
    return type(value) in (int, float) and not abs(value) > sys.float_info.max


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file; {} if there is no file.
    >>> import tempfile; folder = tempfile.TemporaryDirectory()
    >>> _ = (Path(folder.name) / SUMMARY).write_text('{"steps": 600}')
    >>> read_object(Path(folder.name) / SUMMARY), read_object(Path(folder.name) / "none.json")
    ({'steps': 600}, {})
    """
    fix = "restore it from a copy, or delete it"
    try:
        size = file.stat().st_size
        check(size <= LARGEST, f"{file} must have at most {LARGEST} bytes", size, fix)
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as e:
        raise unreadable(file, e) from None
    except (ValueError, RecursionError) as e:
        if isinstance(e, CheckError):
            raise
        raise CheckError(f"{file} must be JSON; got {e}; {fix}") from None
    check(isinstance(found, dict), f"{file} must hold an object", type(found).__name__, fix)
    return found


def cut_after(run: Path, cursor: int, validated: int) -> None:
    """Drop what a run resumed at `cursor` writes again: lines of later batches, the final score, and
    validations of steps after `validated`.
    >>> import tempfile; folder = tempfile.TemporaryDirectory(); run = Path(folder.name)
    >>> for step in (1, 2, 3): append(run, "eval", step, step, loss=3.0)
    >>> cut_after(run, cursor=2, validated=2); [line["step"] for line in read(run)]
    [1, 2]
    """
    kept = [line for line in read(run) if line["cursor"] <= cursor and line["kind"] not in ENDS
            and not (line["kind"] == "eval" and line["cursor"] == cursor and line["step"] > validated)]
    try:
        with whole_file(run / LOG) as f:
            f.write("".join(json.dumps(line) + "\n" for line in kept).encode())
    except CheckError as e:
        raise CheckError(f"the log must be writable; got {e.__cause__}; "
                         f"make room in {run} and resume") from None
