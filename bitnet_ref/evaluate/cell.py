"""The inside of the sandbox: two processes, of which one runs the program and the other judges it.

They share two pipes, over which plain values pass as JSON: arguments one way, what the program's function
returned the other way. So the program never shares a process with its tests, nor holds the pipe on which the
verdict goes out: what it prints, patches, or ends with cannot make a wrong answer right.
Read after: evaluate/confine. Read next: evaluate/sandbox.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from bitnet_ref.evaluate.confine import close_calls, close_walls, end_with_parent

LONGEST = 1 << 24                                          # bytes of an answer
SAID = 300                                                 # characters of an error that are passed on
KINDS = {"l": list, "t": tuple, "s": set, "z": frozenset}


class Ended(Exception):
    """The program's process gave no answer."""


def _main() -> NoReturn:
    """Close the walls, part into judge and program, wait for the judge. Never returns."""
    job = json.loads(sys.argv[1])
    sys.path[:] = [p for p in sys.path if p != job["root"]]
    end_with_parent()
    try:
        walls = close_walls(job["seconds"], job["memory"])
    except OSError as e:
        _say(job["verdict"], {"lacks": e.strerror})
        os._exit(0)
    _say(job["verdict"], {"walls": walls})
    asked, answered = os.pipe(), os.pipe()
    judge = os.fork()
    if judge == 0:
        end_with_parent()                                  # process 1 of its namespace, if there is one:
        program = os.fork()                                # when it ends, all in there ends
        if program == 0:
            _closed(job["verdict"], job["checks"], asked[1], answered[0])
            _program(job, os.fdopen(asked[0], "rb"), os.fdopen(answered[1], "wb"))
        _closed(job["program"], job["output"], 1, 2, asked[0], answered[1])
        _judge(job, program, os.fdopen(asked[1], "wb"), os.fdopen(answered[0], "rb"))
    _closed(job["verdict"], job["output"], 1, 2, *asked, *answered)
    os.waitpid(judge, 0)
    os._exit(0)


# ---- the program ----

def _program(job: dict[str, Any], asked: BinaryIO, answered: BinaryIO) -> NoReturn:
    """Run the program, then answer calls of its function until nobody asks. SystemExit is an error too."""
    end_with_parent()
    text = _text(job["program"])
    close_calls()
    space: dict[str, Any] = {"__name__": "program"}
    answer: dict[str, Any] = {"ready": True}
    question: Any = b"first"
    while question:
        try:
            if question == b"first":
                exec(compile(text, "<program>", "exec"), space)
            else:
                arguments, named = decoded(json.loads(question))
                answer = {"value": encoded(space[job["entry"]](*arguments, **named))}
        except BaseException as e:
            answer = {"raised": _named(e)}
        answered.write(json.dumps(answer).encode("ascii") + b"\n")
        answered.flush()
        question = asked.readline()
    os._exit(0)


# ---- the judge ----

def _judge(job: dict[str, Any], program: int, ask: BinaryIO, answers: BinaryIO) -> NoReturn:
    """Define the checks, call them on a stand-in for the program's function, send out the verdict."""
    sys.stdout = sys.stderr = None                         # type: ignore[assignment]
    text = _text(job["checks"])
    try:
        close_calls()                                      # the program's process has come as far, or ended
    except OSError as e:
        _say(job["verdict"], {"lacks": e.strerror})
        os._exit(0)
    try:
        space: dict[str, Any] = {"__name__": "checks"}
        exec(compile(text, "<checks>", "exec"), space)
        _answer(answers)
        stand_in = _stand_in(ask, answers)
        if "check" in space:
            space[job["entry"]] = stand_in
            space["check"](stand_in)
        verdict = {"reason": "passed", "detail": ""}
    except Ended:
        verdict = _how_it_ended(program, job["seconds"])
    except BaseException as e:
        verdict = {"reason": "failed", "detail": _named(e)}
    _say(job["verdict"], verdict)
    os._exit(0)


def _stand_in(ask: BinaryIO, answers: BinaryIO) -> Callable[..., Any]:
    """The function of the program, as the checks see it: it gets copies, and gives copies of plain values."""
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            ask.write(json.dumps(encoded((arguments, named))).encode("ascii") + b"\n")
            ask.flush()
        except BrokenPipeError:
            raise Ended from None
        return decoded(_answer(answers)["value"])

    return call


def _answer(answers: BinaryIO) -> dict[str, Any]:
    line = answers.readline(LONGEST)
    if not line:
        raise Ended
    answer = json.loads(line)
    if "raised" in answer:
        raise RuntimeError(answer["raised"])
    return answer


def _how_it_ended(program: int, seconds: int) -> dict[str, str]:
    """Why the program's process gave no answer. Who ignores SIGXCPU is known by the time it took."""
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and used.ru_utime + used.ru_stime >= seconds):
        return {"reason": "timeout", "detail": f"{seconds} s of processor time"}
    if code < 0:
        return {"reason": "killed", "detail": signal.Signals(-code).name}
    return {"reason": "failed", "detail": f"the program ended with exit code {code}"}


# ---- plain values ----

def encoded(x: Any) -> Any:
    """`x` as JSON that `decoded` makes equal again: numbers exact, kinds of collections kept. What is no
    plain value (a generator, an object) is one that equals nothing.

    >>> encoded((1, 0.5))
    ['t', [['i', '0x1'], ['f', '0x1.0000000000000p-1']]]
    """
    if x is None or isinstance(x, bool | str):
        return x
    if isinstance(x, int):
        return ["i", hex(x)]
    if isinstance(x, float):
        return ["f", x.hex()]
    if isinstance(x, complex):
        return ["c", x.real.hex(), x.imag.hex()]
    if isinstance(x, bytes | bytearray):
        return ["b", x.hex()]
    if isinstance(x, dict):
        return ["d", [[encoded(k), encoded(v)] for k, v in x.items()]]
    kind = next((name for name, kind in KINDS.items() if isinstance(x, kind)), None)
    return ["o"] if kind is None else [kind, [encoded(v) for v in x]]


def decoded(x: Any) -> Any:
    """The value that `encoded` wrote down.

    >>> decoded(encoded({"trits": [-1, 0, 1]}))
    {'trits': [-1, 0, 1]}
    """
    if not isinstance(x, list):
        return x
    kind, *given = x
    if kind in KINDS:
        return KINDS[kind](map(decoded, given[0]))
    make: dict[str, Callable[..., Any]] = {
        "i": lambda n: int(n, 16), "f": float.fromhex, "b": bytes.fromhex, "o": object,
        "c": lambda re, im: complex(float.fromhex(re), float.fromhex(im)),
        "d": lambda items: {decoded(k): decoded(v) for k, v in items}}
    return make[kind](*given)


# ---- files ----

def _text(fd: int) -> str:
    with open(fd, encoding="utf-8") as f:
        return f.read()


def _say(fd: int, verdict: dict[str, Any]) -> None:
    os.write(fd, json.dumps(verdict).encode("ascii") + b"\n")


def _closed(*fds: int) -> None:
    for fd in set(fds):
        os.close(fd)


def _named(e: BaseException) -> str:
    return f"{type(e).__name__}: {str(e)[:SAID]}"
