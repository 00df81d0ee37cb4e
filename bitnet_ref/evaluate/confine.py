"""The walls around a program that nobody has read: what a process gives up before it runs one. Linux only.

Two kernel mechanisms do the work and need no rights: Landlock (which files may be read: Python's own, nothing
else; none written, none executed) and seccomp (which system calls exist: those of a calculation). Resource
limits bound what is left; namespaces, where allowed, are a second wall. Standard library alone, by `ctypes`.
Port note: a call that is not in CALLS fails with EPERM, so a list too short is an error, never a hole.
Read after: evaluate/corpus. Read next: evaluate/cell.
"""

import ctypes
import errno
import os
import resource
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress

# Numbers of (x86_64, aarch64); None: the architecture has no such call. docs/sandbox.md says what is missing.
CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93),
    "wait4": (61, 260), "uname": (63, 160), "getcwd": (79, 17), "readlink": (89, None),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179),
    "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132), "gettid": (186, 178),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "getdents64": (217, 61),
    "restart_syscall": (219, 128), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "newfstatat": (262, 79), "readlinkat": (267, 78),
    "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73), "getrandom": (318, 278),
    "membarrier": (324, 283), "statx": (332, 291), "faccessat2": (439, 439)}
OPENAT, FCNTL = (257, 56), (72, 25)                        # allowed by their arguments
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}      # column of CALLS, audit's name

LOAD, EQUAL, ABOVE, ANY, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06               # of classic BPF
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050001, 0x80000000                     # REFUSE: errno is EPERM
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
DUP_CLOEXEC = 1030                                         # of fcntl; 0 to 4 copy and describe a file

NO_NEW_PRIVS, SECCOMP, FILTER, DEATH_SIGNAL, DUMPABLE = 38, 22, 2, 1, 4      # of prctl
RULESET, RULE, RESTRICT = 444, 445, 446                    # Landlock's calls, on every architecture
READ_FILE, READ_DIR, PATH_BENEATH = 1 << 2, 1 << 3, 1
NAMESPACES = 0x10000000 | 0x20000000 | 0x40000000 | 0x08000000               # user, pid, net, ipc


def close_walls(seconds: int, memory: int) -> list[str]:
    """Give up files, capabilities and all beyond the limits, for this process and those it will start.

    Returns the mechanisms that hold. Raises OSError naming the one that this system lacks: nothing may run.

    >>> from multiprocessing import get_context                # in a process of its own: nothing opens them
    >>> ask = lambda: sys.exit(40 + ("seccomp" in close_walls(5, 1 << 40)))
    >>> child = get_context("fork").Process(target=ask)
    >>> child.start(), child.join(), child.exitcode
    (None, None, 41)
    """
    machine = os.uname().machine
    if machine not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"seccomp: a list of calls for {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as f:
        f.write("1000")                                    # short of memory, the kernel ends these first
    _limit(seconds, memory)
    _call("no_new_privs", libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0))
    apart = libc.unshare(NAMESPACES) == 0                  # forbidden in many containers: not relied on
    _landlock(libc, _readable())
    _call("capset", libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)))
    return ["Landlock", "seccomp", "resource limits", *(["namespaces"] if apart else [])]


def _limit(seconds: int, memory: int) -> None:
    """Resource limits: seconds of processor, bytes of address space; no file grows, no core is written."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))          # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    for name in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_MEMLOCK,
                 resource.RLIMIT_MSGQUEUE):
        resource.setrlimit(name, (0, 0))


def _readable() -> list[str]:
    """What a program may read: the standard library and the shared libraries that its modules need."""
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache",
                 os.path.join(sys.base_prefix, "lib")]
    return [*sys.path, *libraries]                         # the path is Python's own: no site, no folder


def _landlock(libc: ctypes.CDLL, paths: Iterable[str]) -> None:
    """From now on nothing but reading below `paths`: no writing, making, removing, executing, connecting."""
    version = _call("Landlock", libc.syscall(RULESET, None, 0, 1))
    fs = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1            # rights that it knows of
    ruleset = struct.pack("QQQ", fs, 3, 3)[:8 if version < 4 else 16 if version < 6 else 24]
    fd = _call("Landlock", libc.syscall(RULESET, ruleset, len(ruleset), 0))
    for path in filter(os.path.exists, paths):
        rights = READ_FILE | (READ_DIR if os.path.isdir(path) else 0)
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _call("Landlock", libc.syscall(RULE, fd, PATH_BENEATH, struct.pack("=Qi", rights, place), 0))
        os.close(place)
    _call("Landlock", libc.syscall(RESTRICT, fd, 0))
    os.close(fd)


def close_calls() -> None:
    """From now on the system calls of CALLS alone, for this process. The last thing before foreign code.

    >>> from multiprocessing import get_context
    >>> ask = lambda: sys.exit(40 + (close_calls() or ctypes.CDLL(None).getsid(0)))    # not one of CALLS
    >>> child = get_context("fork").Process(target=ask)
    >>> child.start(), child.join(), child.exitcode            # it was refused: -1
    (None, None, 39)
    """
    libc = ctypes.CDLL(None, use_errno=True)
    column, arch = ARCHITECTURES[os.uname().machine]
    code = b"".join([struct.pack("=HBBI", *line) for line in filter_code(column, arch)])
    held = ctypes.create_string_buffer(code)
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(held))
    _call("prctl", libc.prctl(DUMPABLE, 0, 0, 0, 0))       # nobody looks into it, and it leaves no core
    _call("seccomp", libc.prctl(SECCOMP, FILTER, program, 0, 0))


def filter_code(column: int, arch: int) -> list[tuple[int, int, int, int]]:
    """(operation, jump if true, jump if false, number): BPF over number, architecture, arguments.

    Jumps count from the next line. A file may be opened if no flag asks to write.

    >>> column, arch = ARCHITECTURES["x86_64"]
    >>> filter_code(column, arch)[1] == (EQUAL, 1, 0, arch)    # others number their calls otherwise
    True
    """
    numbers = [number for pair in CALLS.values() if (number := pair[column]) is not None]
    n = len(numbers)
    lines = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    lines += [(EQUAL, 0, 3, OPENAT[column]), (LOAD, 0, 0, 32), (ANY, n + 6, 0, WRITING),
              (RETURN, 0, 0, ALLOW)]
    lines += [(EQUAL, 0, 4, FCNTL[column]), (LOAD, 0, 0, 24), (EQUAL, 1, 0, DUP_CLOEXEC),
              (ABOVE, n + 1, 0, 4), (RETURN, 0, 0, ALLOW)]
    lines += [(EQUAL, n - i, 0, number) for i, number in enumerate(numbers)]
    return [*lines, (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]


def end_with_parent() -> None:
    """This process is killed when the one that made it ends.

    >>> from multiprocessing import get_context
    >>> child = get_context("fork").Process(target=lambda: end_with_parent())
    >>> child.start(), child.join(), child.exitcode            # it could end by itself before
    (None, None, 0)
    """
    ctypes.CDLL(None).prctl(DEATH_SIGNAL, 9, 0, 0, 0)


def _call(name: str, result: int) -> int:
    """The result of a call, or OSError naming the mechanism that this system lacks."""
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")
    return result
