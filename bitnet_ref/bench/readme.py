"""python -m bitnet_ref.bench.readme --root .

Write the README's table of what the project does, measured: from the figures that the other commands have
left in docs/. Nothing is measured here and no figure is typed, so the table is stale only where it differs
from what this prints, and a test can say so.
Read after: bench/page. Read next: bench/rans.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bitnet_ref.bench.page import marked, put
from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import DONE, Parser, run_command

COMMAND = "bench.readme"
FIX = "make that page again"


def block(page: Path, command: str) -> str:
    """What stands between the markers of `page` that name bitnet_ref.`command`.

    >>> block(Path("README.md"), "bench.nothing")
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: README.md must hold a block of bench.nothing; got none; make that page again
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    found = marked(command).search(text)
    check(found is not None, f"{page} must hold a block of {command}", "none", FIX)
    assert found is not None
    return found[2]


def cells(text: str, name: str) -> list[str]:
    """The cells after the first of the row of a Markdown table that begins with `name`.

    >>> cells("| file | bytes |\\n| --- | --- |\\n| i2 | 24 |", "i2")
    ['24']
    """
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    found = next((row[1:] for row in rows if row[0] == name), None)
    check(found is not None, "a table must have its row", f"none that begins with {name}", FIX)
    assert found is not None
    return found


def _training(docs: Path) -> str:
    f = json.loads((docs / "benchmarks" / "figures.json").read_text(encoding="utf-8"))
    run, minutes = f["run"], f["run"]["train seconds"] / 60
    return (f"{run['bits per byte']:.3f} bits per byte after {run['steps']} steps, {minutes:.1f} minutes; "
            f"the same in PyTorch: {f['peer']['bits per byte']:.3f}")


def _twin(docs: Path) -> str:
    f = json.loads((docs / "benchmarks" / "figures.json").read_text(encoding="utf-8"))["twins"]
    gap = f["gap"]["spread"]["percent"]
    side = "below" if gap["mean"] < 0 else "above"
    return (f"perplexity {abs(gap['mean']):.1f} % ± {gap['half']:.1f} {side} its twin's after {f['steps']} "
            f"steps, {len(f['gap']['seeds'])} seeds: both small, and early")


def _claims(part: str, what: str, *peers: str) -> Callable[[Path], str]:
    def said(docs: Path) -> str:
        kept = json.loads((docs / "benchmarks" / "cpu.json").read_text(encoding="utf-8"))
        values = {c["name"]: c["value"] for c in kept[part]["claims"]}
        names = {peer: f"{what}, against {peer}" for peer in peers}
        for name in names.values():
            check(name in values, f"cpu.json must have {name}", "no such claim", "measure it with bench all")
        return ", ".join(f"{values[name]:.2f} x as fast as {peer}" for peer, name in names.items())

    return said


def _full_size(docs: Path) -> str:
    """All files: a text is as fast from each, so where their speeds differ it is the machine that did."""
    held = block(docs / "formats" / "bitnet.md", "bench.full_size")
    rows = [cells(held, name) for name in ("Hugging Face, packed", ".bitnet, b3", ".bitnet, rans")]
    first, speed, share, memory = (_range([row[i] for row in rows]) for i in (1, 2, 3, 4))
    return (f"{speed} tokens/s, {share} of what reading allows; {memory}; first token after {first}; "
            "one run of each of 3 files")


def _range(values: list[str]) -> str:
    """From the least to the most of figures with a unit.

    >>> _range(["9.1 s", "10.1 s", "8.1 s"])
    '8.1 to 10.1 s'
    """
    low, *_, high = sorted(values, key=lambda text: float(re.split("[ %]", text)[0]))
    return low if low == high else f"{re.split('[ %]', low)[0]} to {high}"


def _golden(docs: Path) -> str:
    rows = [line.strip("|").split("|") for line in block(docs / "golden.md", "bench.golden").splitlines()
            if re.match(r"\| \w+ \| \d", line)]
    cases, second = (sum(int(row[i]) for row in rows) for i in (1, 2))
    worst = max(float(row[3]) for row in rows)
    return f"{cases} cases, {second} of them from a second oracle too; worst error in float64 {worst:.1e}"


def _conform(docs: Path) -> str:
    """Of the second port alone: the first has taught the catalogue some forms of its faults."""
    held = block(docs / "benchmarks" / "conform.md", "bench.conform")
    _, _, second = held.partition("- The second port.")
    one = re.search(r"named first in (\d+) of (\d+) trials", second)
    two = re.search(r"both named in (\d+) of (\d+) random pairs", second)
    check(one is not None and two is not None, "conform.md must say what was named in the second port",
          "nothing", FIX)
    assert one is not None
    assert two is not None
    return (f"in a port by other hands a planted fault is named first in {one[1]} of {one[2]} trials, "
            f"two at once both in {two[1]} of {two[2]}; a first port, from which its catalogue learnt, "
            "is not counted")


def _ranks(docs: Path) -> str:
    rows = json.loads((docs / "benchmarks" / "scaling.json").read_text(encoding="utf-8"))["rows"]
    seconds = {row["ranks"]: row["measured"] for row in rows}
    return (f"2 processes of one thread {seconds[1] / seconds[2]:.2f} x as fast as one of one thread, "
            "the same parameters to the last bit")


ROWS: tuple[tuple[str, Callable[[Path], str], str], ...] = (
    ("Trains a BitNet, every derivative by hand", _training, "benchmarks/training.md"),
    ("Holds it against its full-precision twin", _twin, "benchmarks/training.md"),
    ("Agrees with oracles that share no code with it", _golden, "golden.md"),
    ("Trains on a CPU", _claims(
        "train", "train nano", "PyTorch eager float32", "PyTorch's best mode (bf16 compile)"),
     "benchmarks/cpu.md"),
    ("Decodes from packed trits, random weights", _claims(
        "decode", "decode (b3, float16 head)", "llama.cpp TQ2_0"), "benchmarks/cpu.md"),
    ("Runs a model of 2B4T's size, random weights, from a file", _full_size, "formats/bitnet.md"),
    ("Names the wrong line of a port", _conform, "benchmarks/conform.md"),
    ("Trains in several processes", _ranks, "scaling.md"),
)


def table(root: Path) -> str:
    """What the project does, what was measured of it, and the page that says how.

    >>> table(Path("nowhere"))                               # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: the figures must be readable; got ...; run this in a clone
    """
    return "\n".join(["| what it does | measured | where |", "|---|---|---|", *_rows(root / "docs")])


def _rows(docs: Path) -> Iterator[str]:
    try:
        for what, said, page in ROWS:
            yield f"| {what} | {said(docs)} | [{Path(page).stem}](docs/{page}) |"
    except CheckError:
        raise
    except (OSError, KeyError, ValueError) as e:
        raise CheckError(f"the figures must be readable; got {e!r}; run this in a clone") from None


def main(argv: list[str]) -> int:
    """Parse, collect, write.

    >>> main(["--root", "nowhere"])                          # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: the figures must be readable; got ...; run this in a clone
    """
    parser = Parser("python -m bitnet_ref.bench.readme", __doc__)
    parser.add_argument("--root", default=".", metavar="DIR", help="the clone to write into (default: here)")
    root = Path(parser.parse_args(argv).root)
    put(root / "README.md", table(root), COMMAND)
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
