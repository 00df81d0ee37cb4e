"""A peer in a process of its own: a JSON object a line goes in, one comes out.

PyTorch and llama.cpp bring threads of their own, and perhaps live in another interpreter. In a child they
wait, asleep, while ours run, so both may take turns within one round. A peer that is not installed is a line
that says how to get it, never a failure.
Read after: bench. Read next: bench/torch_peer.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check

PACKAGE = Path(__file__).resolve().parents[1]
Answer = Callable[..., dict[str, Any]]
PATIENCE = 900.0              # seconds for one answer; torch.compile takes minutes


class Child:
    """`python -m module arguments`, started and greeted; then `ask`. Ends with its `with` block.

    `ours`: of this interpreter, with its libraries and its compiled code, which is kept by the file's place.
    Raises CheckError if it cannot start, or lacks what it needs: its own words.
    """

    def __init__(self, python: str, module: str, *arguments: str, ours: bool = False) -> None:
        self.place = tempfile.TemporaryDirectory(prefix="bitnet_ref-")
        first = str(PACKAGE.parent) if ours else alone_in(self.place.name)
        path = os.pathsep.join(p for p in (first, os.environ.get("PYTHONPATH", "")) if p)
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  stderr, for libraries talk; closed in close()
        try:
            self.process = subprocess.Popen(
                [python, "-m", module, *arguments], text=True, stdin=subprocess.PIPE, stderr=self.said,
                stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path})
        except OSError as e:
            self.said.close()
            self.place.cleanup()
            raise CheckError(f"{python} must be a Python interpreter; got {e.strerror or e}; "
                             "give the path of one") from None
        self.about = self._answer()
        if "error" in self.about:
            self.close()
            raise CheckError(self.about["error"])

    def ask(self, what: str, **given: Any) -> dict[str, Any]:
        """What it answers. Raises CheckError for what it refuses, and if it ended or kept silent."""
        assert self.process.stdin is not None
        check(not self.process.stdin.closed, "a peer must be there to be asked", "one that ended before",
              "see what it said then")
        with suppress(BrokenPipeError):                    # why it ended is read below
            self.process.stdin.write(json.dumps({"what": what, **given}) + "\n")
            self.process.stdin.flush()
        answer = self._answer()
        if "error" in answer:                              # of this; it may be asked for something else
            raise CheckError(answer["error"])
        return answer

    def _answer(self) -> dict[str, Any]:
        silence = threading.Timer(PATIENCE, self.process.kill)
        silence.start()
        try:
            return self._line()
        except BaseException:
            self.close()
            raise
        finally:
            silence.cancel()

    def _line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.said.seek(0)
            last = self.said.read().decode(errors="replace").strip().splitlines()[-1:]
            raise CheckError(f"a peer must answer; got exit code {self.process.returncode}, "
                             f"{last[0] if last else 'no word'}; see whether it runs by itself")
        try:
            return dict(json.loads(line))
        except (ValueError, TypeError):
            raise CheckError(f"a peer must answer in JSON; got {line.strip()[:80]!r}; "
                             "see what prints when its interpreter starts") from None

    def close(self) -> None:
        """End it: no more input is its sign to go."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None and not pipe.closed:
                with suppress(BrokenPipeError):            # it left first
                    pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.said.close()
        self.place.cleanup()

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def alone_in(folder: str) -> str:
    """A folder of imports that has this package and not its neighbours: the peer's NumPy must be its own."""
    try:
        (Path(folder) / PACKAGE.name).symlink_to(PACKAGE, target_is_directory=True)
    except OSError:                                        # a system without links: then with them
        return str(PACKAGE.parent)
    return folder


def serve(start: Callable[[], tuple[dict[str, Any], Mapping[str, Answer]]]) -> None:
    """The child's side. `start()` gives the greeting and {request: function that answers it}.

    A CheckError is an answer too. Whatever libraries print to stdout goes to stderr.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(words: dict[str, Any]) -> None:
        answers.write(json.dumps(words) + "\n")
        answers.flush()

    try:
        greeting, able = start()
    except CheckError as e:
        return say({"error": str(e)})
    say(greeting)
    for line in sys.stdin:
        request = json.loads(line)
        what = request.pop("what")
        check(what in able, "a request must be known", what, f"ask for {', '.join(able)}")
        try:
            say(able[what](**request))
        except CheckError as e:
            say({"error": str(e)})
    return None


def peak() -> int:
    """The most bytes that this process has held in memory; of a system that does not tell, 0.

    Of it alone: what a parent reads by getrusage of its children begins with what the parent held itself.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
