"""python -m bitnet_ref.bench cuda [--json FILE] [--root .]
BITNET_REF_CUDA=interpreter python -m bitnet_ref.bench cuda --quick

The CUDA backend on a card: every kernel against NumPy first, then its times beside copying memory and beside
torch, within ten minutes. Each stage is a process of its own, whose rows are on the disk as soon as they are
known: none loses what another found. With the interpreter the whole program is rehearsed, and no time counts.
Read after: bench/cuda_stages. Read next: bench/cuda_report.
"""

import datetime
import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bitnet_ref.bench import cuda_report
from bitnet_ref.bench.cuda_stages import CARD, QUICK, STAGES, Row
from bitnet_ref.checks import CheckError, check, lookup
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, run_command, text
from bitnet_ref.data.atomic import whole_file

INTERPRETER = "BITNET_REF_CUDA=interpreter"


def main(argv: list[str]) -> int:
    """Parse, run stage after stage, print; exit 1 if a kernel is wrong or a stage failed."""
    args = parsed(argv)
    from bitnet_ref.bench import card
    from bitnet_ref.bench.examples import kernels
    kernels()                                              # says what is missing before a driver is asked for
    from bitnet_ref.kernels.numba_cuda.memory import device
    here = device()
    rehearsed = card.is_interpreter(here)
    check(args.quick or not rehearsed, f"{INTERPRETER} is for --quick alone: true sizes would take it days",
          "no --quick", "add it, or unset BITNET_REF_CUDA to use the GPU")
    if args.stage:
        for row in lookup(STAGES, args.stage, "stage")[0](here, *_asked(args)):
            print(json.dumps(row), flush=True)
        return DONE
    record: dict[str, Any] = {"about": card.about(here), "rehearsed": rehearsed, "quick": args.quick,
                              "rows": [], "failed": {}}
    usual = "" if rehearsed else f"cuda-{datetime.date.today().isoformat()}.json"
    for name in STAGES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows = STAGES[name][0](here, QUICK) if rehearsed else in_processes(name, args.quick)
        gather(record, name, rows, args.json or usual)
    print(cuda_report.text(record))
    if args.root:
        cuda_report.keep(Path(args.root), record)
    return CHECK_FAILED if record["failed"] or cuda_report.wrong_kernels(record) else DONE


def parsed(argv: list[str]) -> Any:
    """The arguments. Raises CheckError for those without a meaning."""
    parser = Parser("python -m bitnet_ref.bench cuda", __doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--json", type=text, metavar="FILE",
                        help="where rows go (default: cuda-DATE.json; none for a rehearsal)")
    parser.add_argument("--root", type=text, metavar="DIR",
                        help="also keep the record and the tables in the docs of the clone in this folder")
    parser.add_argument("--stage", type=text, metavar="NAME", help="one stage alone; prints its rows as JSON")
    parser.add_argument("--done", type=text, nargs="+", default=[], metavar="KERNEL",
                        help="with --stage right: these had their turn")
    args = parser.parse_args(argv)
    check(not (args.quick and args.root), "the docs need true figures", "--quick", "leave it out")
    check(not args.root or cuda_report.page(Path(args.root)).is_file(), "--root must be a clone",
          f"no {cuda_report.page(Path(args.root or ''))}", "name one")
    return args


def _asked(args: Any) -> tuple[Any, ...]:
    """What a stage is told beside the device."""
    size = QUICK if args.quick else CARD
    return (size, frozenset(args.done)) if args.stage == "right" else (size,)


def gather(record: dict[str, Any], name: str, rows: Iterator[Row], place: str) -> None:
    """Add the rows of a stage to the record, and write it after each. What ends the stage is written too."""
    try:
        for row in rows:
            record["rows"] = [r for r in record["rows"] if row.get("kernel") is None or r.get("kernel") !=
                              row["kernel"]] + [{"stage": name, **row}]
            write(record, place)
    except Exception as e:                                 # another stage may do better
        record["failed"][name] = str(e) if isinstance(e, CheckError) else f"{type(e).__name__}: {e}"
    write(record, place)


def write(record: dict[str, Any], place: str) -> None:
    """The record as JSON, unless `place` is empty. Raises CheckError where it cannot be written."""
    if place:
        with whole_file(place) as file:
            file.write((json.dumps(record, indent=1) + "\n").encode())


class LateError(CheckError):
    """A stage that did not end within its time."""


def in_processes(name: str, quick: bool) -> Iterator[Row]:
    """The rows of a stage that runs elsewhere. A kernel that kills its process costs only its own turn."""
    begun: list[str] = []
    while True:
        before = len(begun)
        try:
            for row in in_a_process(name, quick, begun):
                if "kernel" in row:
                    begun.append(row["kernel"])
                yield row
            return
        except CheckError as e:
            if isinstance(e, LateError) or len(begun) == before:         # not even one more kernel
                raise


def in_a_process(name: str, quick: bool, done: list[str]) -> Iterator[Row]:
    """The rows of a stage. Raises CheckError if its process fails, or has not ended within its time."""
    command = [sys.executable, "-m", "bitnet_ref.bench.cuda", "--stage", name]
    command += (["--quick"] if quick else []) + (["--done", *done] if done else [])
    late: list[bool] = []
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)

        def end() -> None:
            late.append(True)
            process.kill()

        timer = threading.Timer(STAGES[name][1], end)
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        said.seek(0)
        words = said.read().decode(errors="replace").strip().splitlines()
    if late:
        raise LateError(f"stage {name} must end within {STAGES[name][1]:.0f} seconds; got no end; "
                        "see what it found")
    check(process.returncode == 0, f"stage {name} must succeed", (words or ["no word"])[-1][:300],
          f"run it alone: {' '.join(command[1:])}")


if __name__ == "__main__":
    sys.exit(run_command(main))
