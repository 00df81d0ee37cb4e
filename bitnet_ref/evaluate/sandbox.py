"""Run a program that nobody has read: in its own processes, behind walls, for a while, and hear its verdict.

What the walls are stands in `confine`, who judges in `cell`; here the processes are started, watched, ended.
What hostile programs try ends as a wrong answer with its reason. What this does not protect against:
docs/sandbox.md.
Read after: evaluate/cell. Read next: evaluate/journal.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from bitnet_ref.checks import check, shown

ROOT = str(Path(__file__).resolve().parents[2])
START = (f"import sys; sys.path.insert(0, {ROOT!r}); from bitnet_ref.evaluate.cell import _main; _main()")
PYTHON = ("-s", "-S", "-P", "-B", "-X", "utf8")            # no user's packages, no site, no folder of its own
LARGEST = 1 << 20                                          # bytes of a program, and of its checks
SAID = 1 << 14                                             # bytes of what the judge may say
FIX = "run them in a virtual machine with a Linux kernel of 5.13 or later that has Landlock and seccomp"


@dataclass(frozen=True)
class Limits:
    """What a program may use. Raises CheckError for a limit that is none."""

    seconds: int = 5                                       # of processor time
    deadline: float = 20.0                                 # seconds by the clock
    memory: int = 1 << 29                                  # bytes of address space
    output: int = 1 << 20                                  # bytes printed

    def __post_init__(self) -> None:
        for name in ("seconds", "deadline", "memory", "output"):
            value = getattr(self, name)
            check(0 < value < 1 << 40, f"the limit {name} must be above 0 and finite", value, "correct it")


class Verdict(NamedTuple):
    """passed, failed (a wrong answer, an error, an early end), timeout, killed or output; and what happened.

    `walls`: the mechanisms that stood around it.
    """

    reason: str
    detail: str
    seconds: float
    walls: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the program ran and every check held."""
        return self.reason == "passed"


def run(program: str, checks: str = "", entry: str = "", limits: Limits | None = None) -> Verdict:
    """What becomes of `program`, whose function `entry` the function `check(candidate)` in `checks` judges.

    Without checks: whether it runs to its end. Both are Python, in two processes that share plain values
    alone. Raises CheckError where this machine cannot contain a program; nothing has run then.

    >>> run("import os; os.listdir('/')").detail
    "RuntimeError: PermissionError: [Errno 13] Permission denied: '/'"
    >>> run("def f(x): return x + 1", "def check(candidate): assert candidate(1) == 2", "f").passed
    True
    """
    limits = limits or Limits()
    check(sys.platform == "linux", "programs of a model are run on Linux only, where Landlock and seccomp "
          "contain them", sys.platform, FIX)
    for what, text in (("a program", program), ("its checks", checks)):
        try:
            size = len(text.encode("utf-8"))
        except UnicodeEncodeError as e:
            return Verdict("failed", f"{what} holds a lone surrogate: {e.reason}", 0.0)
        if size > LARGEST:
            return Verdict("failed", f"{what} has {size} bytes of at most {LARGEST}", 0.0)
    with tempfile.TemporaryDirectory(prefix="cell-") as folder, \
            tempfile.TemporaryFile() as mine, tempfile.TemporaryFile() as judges:
        for file, text in ((mine, program), (judges, checks)):
            file.write(text.encode("utf-8"))
            file.seek(0)
        return _watched(folder, mine, judges, entry, limits)


def _watched(folder: str, program: BinaryIO, checks: BinaryIO, entry: str, limits: Limits) -> Verdict:
    """Start the cell, read what it says until its verdict, its end or the deadline, and end all of it."""
    verdict, verdict_in = os.pipe()
    output, output_in = os.pipe()
    began = time.monotonic()
    try:
        job = {"root": ROOT, "verdict": verdict_in, "output": output_in, "program": program.fileno(),
               "checks": checks.fileno(), "entry": entry, "seconds": limits.seconds, "memory": limits.memory}
        cell = subprocess.Popen(
            [sys.executable, *PYTHON, "-c", START, json.dumps(job)], cwd=folder, start_new_session=True,
            env={"PYTHONHASHSEED": "0"}, stdin=subprocess.DEVNULL, stdout=output_in, stderr=output_in,
            pass_fds=(verdict_in, output_in, program.fileno(), checks.fileno()))
        for fd in (verdict_in, output_in):
            os.close(fd)
        try:
            said, printed, ended = _listen(verdict, output, began + limits.deadline, limits.output)
        finally:
            with suppress(ProcessLookupError):             # nobody in there could leave the group
                os.killpg(cell.pid, signal.SIGKILL)
            cell.wait()
    finally:
        os.close(verdict)
        os.close(output)
    return _verdict(said, printed, ended, limits, time.monotonic() - began)


def _listen(verdict: int, output: int, end: float, most: int) -> tuple[bytes, bytes, str]:
    """(what the judge said, the end of what was printed, why we stopped: "", timeout or output)."""
    said, printed, count = b"", b"", 0
    with selectors.DefaultSelector() as ready:
        ready.register(verdict, selectors.EVENT_READ)
        ready.register(output, selectors.EVENT_READ)
        while True:
            events = ready.select(max(0.0, end - time.monotonic()))
            if not events:
                return said, printed, "timeout"
            for key, _ in events:
                chunk = os.read(key.fd, 1 << 16)
                if key.fd == output:
                    count, printed = count + len(chunk), (printed + chunk)[-2000:]
                    if not chunk:
                        ready.unregister(output)
                    if count > most:
                        return said, printed, "output"
                    continue
                said += chunk
                if not chunk or said.count(b"\n") == 2 or len(said) > SAID:
                    return said, printed, ""


def _verdict(said: bytes, printed: bytes, ended: str, limits: Limits, seconds: float) -> Verdict:
    """The verdict in three words. Raises CheckError where the walls did not stand."""
    words: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines(keepends=True)
                                   if line.endswith(b"\n")]
    for word in words:
        check("lacks" not in word, "programs of a model are run behind Landlock and seccomp only",
              f"a system without {shown(word.get('lacks'))}", FIX)
    check(bool(words), "the sandbox must start",
          printed.decode("utf-8", "replace")[-300:] or ended or "nothing",
          f"see whether {Path(sys.executable).name} starts at all")
    walls = tuple(words[0]["walls"])
    if ended:
        how = f"{limits.deadline:g} s" if ended == "timeout" else f"more than {limits.output} bytes printed"
        return Verdict(ended, how, seconds, walls)
    if len(words) < 2:
        return Verdict("killed", "the judge ended without a verdict", seconds, walls)
    return Verdict(words[1]["reason"], shown(words[1]["detail"], 300), seconds, walls)


# ---- whether it holds ----

TRIES = '''
import os, sys
def attempts(outside):
    def attempt(name, *arguments):
        module = __import__(name.partition(".")[0])
        getattr(module, name.partition(".")[2])(*arguments)
    tries = {"processes": [("os.fork",)], "threads": [("_thread.start_new_thread", int, ())],
             "network": [("_socket.socket",)], "reading": [("os.listdir", "/"), ("os.open", outside, 0)],
             "writing": [("os.mkdir", "new"), ("os.open", "new", 65), ("os.unlink", outside)],
             "signals": [("os.kill", os.getppid(), 0)], "executing": [("os.execv", sys.executable, ["x"])]}
    free = []
    for threat, ways in tries.items():
        for way in ways:
            try:
                attempt(*way)
                free.append(threat)
            except (OSError, RuntimeError):
                pass
    return free
'''


@cache
def proved() -> tuple[str, ...]:
    """The mechanisms that contain a program here, after one has tried, harmlessly, what must fail.

    Raises CheckError where anything succeeds.

    >>> "Landlock" in proved()
    True
    """
    with tempfile.NamedTemporaryFile() as outside:
        tests = (f"def check(candidate):\n    free = candidate({outside.name!r})\n"
                 "    assert free == [], ', '.join(free)\n")
        verdict = run(TRIES, tests, "attempts")
        check(verdict.passed and os.path.exists(outside.name), "the sandbox must contain processes, threads, "
              "network, files and signals", f"{verdict.reason}: {verdict.detail}", FIX)
    return verdict.walls
