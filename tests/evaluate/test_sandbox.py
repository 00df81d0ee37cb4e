"""evaluate/sandbox: what a hostile program tries fails, harms nothing, and is a wrong answer with its reason.

Every attempt here is harmless should a wall be missing: it is small, or aimed at files and processes of the
test's own. `proved` runs first, so that where nothing holds no other attempt is made.
"""

import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import tiny
from problems import walls  # noqa: F401

from bitnet_ref.evaluate import confine, sandbox
from bitnet_ref.evaluate.sandbox import Limits, Verdict, proved, run

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux"),
              pytest.mark.usefixtures("walls")]

CHECKS = "def check(candidate):\n    assert candidate(20) == 21\n"
QUICK = Limits(seconds=1, deadline=10.0, memory=1 << 28, output=1 << 16)
RIGHT = "def f(x):\n    return x + 1\n"


def judged(program, checks=CHECKS, limits=QUICK):
    return run(program, checks, "f", limits)


# --- right and wrong answers -------------------------------------------------------------------------------


def test_a_right_answer_passes():
    got = judged(RIGHT)
    assert (got.reason, got.detail, got.passed) == ("passed", "", True)


@pytest.mark.parametrize(("program", "detail"), [
    ("def f(x):\n    return x + 2\n", "AssertionError"),
    ("def f(x):\n    return\n", "AssertionError"),
    ("def f(x:\n", "RuntimeError: SyntaxError"),
    ("def g(x):\n    return x + 1\n", "RuntimeError: KeyError: 'f'"),
    ("def f(x):\n    return x + y\n", "RuntimeError: NameError: name 'y' is not defined"),
    ("", "RuntimeError: KeyError"),
    ("def f(x):\n    return 21\x00\n", "source code string cannot contain null bytes"),
    ("def f(x):\n    return '\ud800'\n", "lone surrogate"),
    ("def f(x):\n    return input()\n", "EOFError"),
    ("#" * (1 << 20) + "\n" + RIGHT, "bytes of at most"),
    ("def f(x):\n    return f(x)\n", "RecursionError"),
    ("def f(x):\n    l = []\n    l.append(l)\n    return l\n", "RecursionError"),
    ("def f(x):\n    raise KeyboardInterrupt\n", "KeyboardInterrupt"),
])
def test_a_wrong_answer_fails_and_says_why(program, detail):
    got = judged(program)
    assert got.reason == "failed"
    assert detail in got.detail


def test_programs_are_unicode():
    text = "def f(x):\n    ñ = '日本🙂'\n    return ñ + chr(x)\n"
    assert judged(text, "def check(c):\n    assert c(233) == '日本🙂é'\n").passed


@pytest.mark.parametrize("value", [
    "[1, (2, 3), [True, None]]", "{'a': {1: 2.5}, (1, 2): {3, 4}}", "10 ** 5000", "-7", "float('inf')",
    "0.1 + 0.2", "frozenset('ab')", "b'\\x00\\xff'", "1 - 2j", "'\\ud800'",
    "__import__('collections').Counter('aab')"])
def test_plain_values_come_back_as_they_were(value):
    checks = f"def check(c):\n    v = {value}\n    got = c(v)\n    assert got == v, got\n"
    assert judged("def f(x):\n    return x\n", checks).detail == ""


def test_not_a_number_and_the_kinds_of_sequences_are_kept():
    checks = "def check(c):\n    assert c((1,)) != [1]\n    v = c(float('nan'))\n    assert v != v\n"
    assert judged("def f(x):\n    return x\n", checks).passed


def test_an_object_is_no_answer_even_if_it_says_that_it_equals_all():
    program = ("class All:\n    def __eq__(self, other):\n        return True\n"
               "    def __bool__(self):\n        return True\ndef f(x):\n    return All()\n")
    assert judged(program).reason == "failed"
    assert judged("class Int(int):\n    def __eq__(self, other):\n        return True\n"
                  "def f(x):\n    return Int(3)\n").reason == "failed"


def test_the_checks_see_the_names_they_define():
    checks = "def twice(x):\n    return 2 * x\ndef check(c):\n    assert c(1) == twice(f(0)) == 2\n"
    assert judged(RIGHT, checks).passed


def test_a_program_without_checks_must_reach_its_end():
    assert run("x = 1").passed
    assert run("x = 1 / 0").reason == "failed"


def test_the_standard_library_is_there():
    names = ("math re collections itertools functools heapq bisect string random datetime decimal copy array "
             "fractions statistics typing hashlib json operator struct zlib unicodedata textwrap dataclasses")
    program = "".join([f"import {n}\n" for n in names.split()]) + (
        "def f(x):\n    return hashlib.md5(b'x').hexdigest()[:2] + str(random.Random(1).random())[:1]\n")
    assert judged(program, "def check(c):\n    assert c(1) == '9d0'\n").detail == ""


def test_a_program_starts_with_nothing(monkeypatch, request):
    """Neither the environment nor what its parent could read."""
    monkeypatch.setenv("A_SECRET", "xyzzy")
    before, (read, write) = os.dup(0), os.pipe()
    os.write(write, b"a secret")
    os.close(write)
    os.dup2(read, 0)
    request.addfinalizer(lambda: (os.dup2(before, 0), os.close(before), os.close(read)))
    program = ("import os, sys\ndef f(x):\n    return dict(os.environ), os.listdir('.') if x else [], "
               "[p for p in sys.path if 'site-packages' in p or not p], sys.stdin.read()\n")
    checks = ("def check(c):\n    env, _, path, text = c(0)\n"
              "    assert set(env) <= {'PYTHONHASHSEED', 'LC_CTYPE'}, env\n"
              "    assert (path, text) == ([], '')\n")
    assert judged(program, checks).detail == ""


def test_it_runs_from_threads_too():
    got = []
    threads = [threading.Thread(target=lambda: got.append(judged(RIGHT).reason)) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert got == ["passed"] * 3


# --- hostile programs --------------------------------------------------------------------------------------

def tries(statement):
    """A program that does it, swallows what goes wrong, says whether it worked on stdout, and answers 0."""
    body = "\n".join(["        " + line for line in statement.splitlines()])
    return (f"import os, sys\ndef f(x):\n    try:\n{body}\n        return 'DONE'\n"
            "    except BaseException as e:\n        return type(e).__name__\n")


FORBIDDEN = {
    "fork bomb": "for _ in range(4):\n    os.fork() or os._exit(0)",
    "thread bomb": "import threading\nfor _ in range(4):\n    threading.Thread(target=int).start()",
    "daemon": "if os.fork() == 0:\n    os.setsid()\n    os.fork() and os._exit(0)\n    os._exit(0)",
    "subprocess": "import subprocess\nsubprocess.run(['true'])",
    "system": "assert os.system('true') == 0",
    "exec": "os.execv('/bin/true', ['true'])",
    "leaving the session": "os.setsid()",
    "tcp socket": "import socket\nsocket.socket()",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX)",
    "name lookup": "import socket\nsocket.getaddrinfo('localhost', 80)",
    "http": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:9/')",
    "killing the parent": "import signal\nos.kill(os.getppid(), signal.SIGTERM)",
    "killing everybody": "os.killpg(0, 0)",
    "reading the home folder": "os.listdir(os.path.expanduser('~'))",
    "reading the password file": "open('/etc/passwd').read()",
    "reading other processes": "open('/proc/self/environ').read()",
    "reading the judge": "open('/proc/%d/mem' % os.getppid(), 'rb').read(1)",
    "reading the temporary folder": "os.listdir('/tmp')",
    "listing the root": "os.listdir('/')",
    "writing a file": "open('file', 'w').write('x')",
    "making a folder": "os.mkdir('folder')",
    "a special file": "os.mkfifo('fifo')",
    "memory files": "os.memfd_create('x')",
    "device": "open('/dev/tty', 'rb+')",
    "ptrace": "import ctypes\nassert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    "raising limits": "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    "mount": "import ctypes\nassert ctypes.CDLL(None).mount(b'a', b'/', b'tmpfs', 0, None) == 0",
    "namespaces": "import ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "becoming another user": "os.setuid(65534)",
    "alarm": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 9)",
    "shared memory": "import multiprocessing.shared_memory as m\nm.SharedMemory(create=True, size=9)",
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_is_forbidden_fails(name):
    """The checks ask for the very word: an attempt that worked would pass, here."""
    got = judged(tries(FORBIDDEN[name]), "def check(c):\n    got = c(0)\n    assert got == 'DONE', got\n")
    assert got.reason == "failed"
    allowed = ("PermissionError", "OSError", "RuntimeError", "AssertionError", "gaierror", "URLError",
               "FileNotFoundError", "itimer_error", "error", "ValueError", "ModuleNotFoundError")
    assert got.detail.startswith("AssertionError: ")
    assert got.detail.removeprefix("AssertionError: ") in allowed, got


def test_files_of_others_stay(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    ways = ["os.unlink(p)", "os.truncate(p, 0)", "open(p, 'w').close()", "os.rename(p, p + '2')",
            "os.chmod(p, 0)", "os.utime(p, (0, 0))", "os.link(p, 'x')", "os.symlink(p, 'x')",
            "__import__('shutil').rmtree(os.path.dirname(p))", "open(p).read()",
            "os.rmdir(os.path.dirname(p))"]
    before = mine.stat()
    for way in ways:
        got = judged(tries(f"p = {str(mine)!r}\n{way}"), "def check(c):\n    assert c(0) == 'DONE'\n")
        assert got.reason == "failed", way
    assert mine.read_text() == "mine"
    for name in ("st_mode", "st_mtime_ns", "st_nlink"):
        assert getattr(mine.stat(), name) == getattr(before, name)


LOOPS = {
    "endless loop": """
while True:
    pass""",
    "loop without signals": """
import signal
for s in {*range(1, 32)} - {9, 19}:
    signal.signal(s, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    pass""",
    "loop that catches all": """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass""",
    "endless power": "10 ** 10 ** 8",
    "regular expression": "import re; re.match('(a+)+$', 'a' * 64 + 'b')",
}


@pytest.mark.parametrize("name", LOOPS)
def test_what_never_ends_is_ended(name):
    program = "def f(x):\n" + "".join([f"    {line}\n" for line in LOOPS[name].splitlines()])
    got = judged(program)
    assert (got.reason, got.detail) == ("timeout", "1 s of processor time")
    assert got.seconds < 9


def test_what_sleeps_is_ended_at_the_deadline():
    got = judged("import time\ndef f(x):\n    time.sleep(99)\n", limits=Limits(deadline=1.0))
    assert (got.reason, got.detail) == ("timeout", "1 s")
    assert got.seconds < 5


MEMORY = {
    "list": "[0] * 10 ** 10", "growing": "a = [0]\n    while True:\n        a += a",
    "bytes": "bytearray(1 << 40)",
    "decompression bomb": ("import zlib\n    one = zlib.compress(bytes(1 << 24))\n"
                           "    d = zlib.decompressobj()\n    held = []\n"
                           "    while True:\n        held.append(zlib.decompress(one))"),
    "shared map": "import mmap\n    mmap.mmap(-1, 1 << 32)",
}


@pytest.mark.parametrize("name", MEMORY)
def test_memory_ends_at_its_limit(name):
    got = judged(f"def f(x):\n    {MEMORY[name]}\n    return 21\n", limits=Limits(seconds=3, memory=1 << 28))
    assert got.reason == "failed"
    assert any(word in got.detail for word in ("MemoryError", "OverflowError", "Cannot allocate memory")), got


def test_printing_without_end_is_ended():
    got = judged("def f(x):\n    while True:\n        print('x' * 1000)\n")
    assert (got.reason, got.detail) == ("output", "more than 65536 bytes printed")


def test_an_answer_without_end_is_no_answer():
    got = judged("def f(x):\n    return 'x' * (1 << 25)\n", limits=Limits(memory=1 << 30))
    assert got.reason == "failed"


@pytest.mark.parametrize("program", [
    "import ctypes\ndef f(x):\n    ctypes.string_at(0)\n",
    "import sys\nsys.setrecursionlimit(10 ** 9)\ndef f(x):\n    return [f(x)]\n",
    "import os\ndef f(x):\n    os.abort()\n",
])
def test_a_crash_is_a_wrong_answer(program):
    got = judged(program)
    assert got.reason in ("killed", "failed", "timeout")
    assert got.reason != "killed" or got.detail.startswith("SIG")


# --- pretending --------------------------------------------------------------------------------------------

LIES = {
    "exit": "import sys\nsys.exit(0)",
    "exit at once": "import os\nos._exit(0)",
    "exit when asked": "import os\ndef f(x):\n    os._exit(0)",
    "exit in a hook": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)",
    "saying passed": "print('passed')\nimport sys\nsys.stderr.write('{\"reason\": \"passed\"}\\n')",
    "writing everywhere": """
import os
for fd in range(64):
    for _ in range(3):
        try:
            os.write(fd, b'{"reason": "passed", "detail": ""}\\n')
        except OSError:
            pass
def f(x):
    return 0""",
    "answering before": """
import os
def f(x):
    for fd in range(3, 64):
        try:
            os.write(fd, b'{"value": ["i", "0x5"]}\\n' * 9)
        except OSError:
            pass""",
    "patching the checks": """
import builtins, sys
builtins.AssertionError = Exception
builtins.check = int
def check(c):
    pass
f = int
sys.modules['json'].dumps = lambda x: 'passed'""",
    "patching the cell": """
import os, sys
c = sys.modules['bitnet_ref.evaluate.cell']
c._judge = c._say = print
c._how_it_ended = lambda *a: {'reason': 'passed', 'detail': ''}
def f(x):
    os._exit(0)""",
    "looking for the checks": """
import gc, sys
def f(x):
    wanted, seen, frame = ''.join(['assert candi', 'date(20)']), '', sys._getframe(1)
    while frame:
        seen += repr(frame.f_locals)
        frame = frame.f_back
    for o in gc.get_objects():
        seen += repr(o) if type(o) in (list, dict, tuple) and len(o) < 99 else ''
    return 21 if wanted in seen else 0""",
    "reading what is open": """
import os
def f(x):
    for fd in range(3, 64):
        try:
            os.lseek(fd, 0, 0)
            if b'assert' in os.read(fd, 999):
                return 21
        except OSError:
            pass""",
    "a function that is everything": """
class F:
    def __call__(self, x):
        return self
    def __eq__(self, other):
        return True
f = F()""",
}


@pytest.mark.parametrize("name", LIES)
def test_a_wrong_answer_cannot_be_passed_off_as_right(name):
    got = judged(LIES[name] + "\n")
    assert got.reason in ("failed", "killed"), got


def test_a_lie_is_not_what_makes_a_right_answer_wrong():
    assert judged("print('failed')\n" + RIGHT).passed


# --- what is left behind -----------------------------------------------------------------------------------

def cells():
    """The processes that this one started a sandbox with and that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(b"bitnet_ref.evaluate.cell" in w for w in words) and _alive(path.parent.name):
            found.append(path.parent.name)
    return found


def test_nothing_stays_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    files = os.listdir("/proc/self/fd")
    program = "import time, sys\nsys.stdout.close()\ndef f(x):\n    time.sleep(88)\n"
    assert judged(program, limits=Limits(deadline=0.7)).reason == "timeout"
    assert judged(RIGHT).passed
    assert len(os.listdir("/proc/self/fd")) == len(files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("namespaces", [True, False])
def test_the_cell_ends_when_the_one_who_asked_is_killed(namespaces, tmp_path):
    program = "import time\ndef f(x):\n    time.sleep(77)\n"
    start = sandbox.START if namespaces else begun_with("c.NAMESPACES = -1")
    ask = ("from bitnet_ref.evaluate import sandbox\nprint('on', flush=True)\n"
           f"sandbox.START = {start!r}\nlimits = sandbox.Limits(deadline=70)\n"
           f"sandbox.run({program!r}, {CHECKS!r}, 'f', limits)")
    its_own = {**tiny.environment(), "TMPDIR": str(tmp_path)}     # who is killed removes no folder
    asker = subprocess.Popen([sys.executable, "-c", ask], env=its_own, stdout=subprocess.PIPE)
    asker.stdout.readline()
    tiny.wait_for(lambda: _below(asker.pid), asker)
    below = _below(asker.pid)
    time.sleep(0.5)                                       # asleep by then; before, its pipe would end it
    asker.kill()
    asker.wait()
    asker.stdout.close()
    end = time.monotonic() + 20
    while any(_alive(pid) for pid in below):
        assert time.monotonic() < end, "still there"
        time.sleep(0.02)


def _below(pid):
    """All processes below `pid` once there are three: the cell, the judge, the program."""
    found, todo = [], [str(pid)]
    while todo:
        me = todo.pop()
        try:
            children = Path(f"/proc/{me}/task/{me}/children").read_text().split()
        except OSError:
            continue
        found += children
        todo += children
    return found if len(found) >= 3 else []


def _alive(pid):
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


# --- where it cannot hold ----------------------------------------------------------------------------------

def test_elsewhere_nothing_is_run(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with tiny.refusal("Linux only", "got darwin", "virtual machine"):
        judged(RIGHT)


@pytest.mark.parametrize("name", ["Landlock", "seccomp"])
def test_without_a_wall_nothing_is_run(name, monkeypatch):
    """The cell is told to ask for a mechanism that no kernel has."""
    without(monkeypatch, {"Landlock": "c.RULESET = 9999", "seccomp": "c.FILTER = 99"}[name])
    with tiny.refusal("behind Landlock and seccomp only", f"got a system without {name}", "virtual machine"):
        judged(RIGHT)


def test_a_python_that_cannot_start_is_named(monkeypatch):
    monkeypatch.setattr(sandbox, "START", "raise SystemExit('no such thing')")
    with tiny.refusal("the sandbox must start", "no such thing"):
        judged(RIGHT)


@pytest.mark.parametrize("limit", [{"seconds": 0}, {"deadline": float("inf")}, {"memory": -1},
                                   {"deadline": float("nan")}, {"output": 0}])
def test_limits_are_limits(limit):
    with tiny.refusal(f"the limit {next(iter(limit))} must be above 0 and finite"):
        Limits(**limit)


def test_a_verdict_says_what_it_is():
    assert not Verdict("failed", "", 0.0).passed
    assert Verdict("passed", "", 0.0).passed


# --- each wall by itself -----------------------------------------------------------------------------------

def begun_with(change):
    """How a cell starts with a line of Python that changes its walls, `c`."""
    return sandbox.START.replace("; from", f"; import bitnet_ref.evaluate.confine as c; {change}; from", 1)


def without(monkeypatch, change):
    """The cell's next starts are with `change`."""
    monkeypatch.setattr(sandbox, "START", begun_with(change))


FILES = {"writing": "open('x', 'w')", "removing": "os.unlink('/nowhere/at/all')", "making": "os.mkdir('d')"}


@pytest.mark.parametrize("change", ["c._landlock = lambda *a: None", "c.close_calls = lambda: None"])
@pytest.mark.parametrize("name", FILES)
def test_either_wall_alone_keeps_files_from_being_changed(name, change, monkeypatch):
    """EPERM and EACCES, not ENOENT nor EFBIG: it is the wall that refuses."""
    without(monkeypatch, change)
    got = judged(tries(FILES[name]), "def check(c):\n    got = c(0)\n    assert got == 'DONE', got\n")
    wanted = "FileNotFoundError" if (name, change[2:7]) == ("removing", "close") else "PermissionError"
    assert got.detail == f"AssertionError: {wanted}"


def test_without_landlock_files_can_be_read_and_the_proof_says_so(monkeypatch):
    """The proof can fail; and it is Landlock that keeps files from being read."""
    without(monkeypatch, "c._landlock = lambda *a: None")
    with tiny.refusal("the sandbox must contain processes", "reading, reading", "virtual machine"):
        proved.__wrapped__()


def test_it_holds_where_namespaces_are_forbidden(monkeypatch):
    """As in most containers: proved anew, nothing stays behind, and the judge cannot be reached."""
    without(monkeypatch, "c.NAMESPACES = -1")
    assert proved.__wrapped__() == ("Landlock", "seccomp", "resource limits")
    got = judged("import time\ndef f(x):\n    time.sleep(66)\n", limits=Limits(deadline=0.7))
    assert got.reason == "timeout"
    got = judged("import os\ndef f(x):\n    for n in range(1, 65):\n        os.kill(os.getppid(), n)\n")
    assert (got.reason, "PermissionError" in got.detail) == ("failed", True)
    end = time.monotonic() + 5
    while cells():
        assert time.monotonic() < end, cells()
        time.sleep(0.02)


def headers(path, prefix="__NR_"):
    """{name: number} of the system calls in a header of this machine."""
    if not Path(path).is_file():
        pytest.skip(f"{path} is not installed")
    text = Path(path).read_text().splitlines()
    words = [line.split() for line in text if line.startswith("#define " + prefix)]
    return {w[1].removeprefix(prefix): int(w[2]) for w in words if len(w) > 2 and w[2].isdigit()}


@pytest.mark.parametrize(("column", "path"), [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
                                              (1, "/usr/include/asm-generic/unistd.h")])
def test_the_numbers_of_calls_are_those_of_the_kernel(column, path):
    numbers = headers(path)
    numbers = headers(path, "__NR3264_") | numbers         # as the generic header calls them on 64 bits
    ours = {name: pair[column] for name, pair in confine.CALLS.items() if pair[column] is not None}
    ours |= {"openat": confine.OPENAT[column], "fcntl": confine.FCNTL[column]}
    assert {name: numbers.get(name, n) for name, n in ours.items()} == ours
    assert len(set(ours) & set(numbers)) > 50


def interpreted(code, number, arch, *arguments):
    """What classic BPF makes of a call: a plain machine of six instructions."""
    data = struct.pack("=IIQ6Q", number, arch, 0, *arguments, *[0] * (6 - len(arguments)))
    at, held = 0, 0
    while True:
        op, true, false, k = code[at]
        at += 1
        if op == confine.RETURN:
            return k
        if op == confine.LOAD:
            held = struct.unpack_from("=I", data, k)[0]
            continue
        holds = {confine.EQUAL: held == k, confine.ABOVE: held > k, confine.ANY: bool(held & k)}[op]
        at += true if holds else false


@pytest.mark.parametrize("machine", confine.ARCHITECTURES)
def test_the_filter_allows_the_list_and_nothing_else(machine):
    column, arch = confine.ARCHITECTURES[machine]
    code = confine.filter_code(column, arch)
    assert len(code) < 255
    listed = {pair[column] for pair in confine.CALLS.values()} - {None}
    openat, fcntl = confine.OPENAT[column], confine.FCNTL[column]
    for number in range(600):
        want = confine.ALLOW if number in listed or number in (openat, fcntl) else confine.REFUSE
        assert interpreted(code, number, arch) == want, number
        assert interpreted(code, number, arch ^ 1) == confine.KILL
        assert interpreted(code, number | 0x40000000, arch) == confine.REFUSE       # the x32 calls
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND, os.O_TMPFILE | os.O_RDWR, 3):
        assert interpreted(code, openat, arch, 0, 0, flags) == confine.REFUSE
    assert interpreted(code, openat, arch, 0, 0, os.O_CLOEXEC | os.O_DIRECTORY) == confine.ALLOW
    commands = [n for n in range(2000) if interpreted(code, fcntl, arch, 0, n) == confine.ALLOW]
    assert commands == [0, 1, 2, 3, 4, 1030]
