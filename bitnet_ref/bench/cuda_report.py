"""What `bench cuda` found, as text: which kernels are right, which aims are met, all times.

Also where it is kept: the record, a file for each day, and the tables of docs/benchmarks/cuda.md. What was
not run is said to be so, and never guessed.
Read after: bench/cuda. Read next: bench/ladders/vector_cuda.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.bench.ladders import duration, figure
from bitnet_ref.bench.page import put
from bitnet_ref.data.atomic import whole_file

COMMAND = "bench cuda"
FOLDER, PAGE = Path("docs/benchmarks"), "cuda.md"
NOT_RUN: dict[str, Any] = {"about": None, "rehearsed": False, "quick": False, "rows": [], "failed": {}}
Rows = list[dict[str, Any]]


class Aim(NamedTuple):
    """A figure that is aimed at. `value(rows)`: None where it was not measured; `most`: less is better."""

    name: str
    aim: float
    unit: str
    value: Callable[[Rows], float | None]
    most: bool = False

    def line(self, rows: Rows) -> str:
        """Of the table."""
        value = self.value(rows)
        bound = f"{'at most ' if self.most else ''}{_with_unit(self.aim, self.unit)}"
        if value is None:
            return f"| {self.name} | {bound} | not run | |"
        met = value <= self.aim if self.most else value >= self.aim
        return f"| {self.name} | {bound} | {_with_unit(value, self.unit)} | {'met' if met else 'missed'} |"


def _with_unit(value: float, unit: str) -> str:
    if unit == "%":
        return f"{value:.0%}"
    return f"{value:,.0f} {unit}" if unit == "tok/s" else f"{value:.2f}{unit}"


# ---- figures ----

def _time(rows: Rows, what: str, **row: Any) -> float | None:
    """Seconds of the row that has all these values."""
    wanted = {"what": what, **row}
    return next((r["seconds"] for r in rows if "seconds" in r and wanted.items() <= r.items()), None)


def _over(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a / b


def _of_copy(rows: Rows, what: str, **row: Any) -> float | None:
    """Bytes per second of that row, over those of copying memory."""
    found = next((r for r in rows if {"what": what, **row}.items() <= r.items() and "seconds" in r), None)
    copied = next((r["rate"] for r in rows if r.get("what") == "copy"), None)
    return None if found is None else _over(found["bytes"] / found["seconds"], copied)


def _times_torch(kind: str, **shape: int) -> Callable[[Rows], float | None]:
    return lambda rows: _over(_time(rows, "torch", kind=kind, **shape),
                              _time(rows, "product", kind="i2", **shape))


LARGE, WIDE, SQUARE = {"N": 8192, "K": 28672}, {"N": 13824, "K": 2560}, {"N": 8192, "K": 8192}
AIMS = (
    Aim("batch 1, 8192 x 28672: packed bytes/s, of copy bandwidth", 0.9, "%",
        lambda rows: _of_copy(rows, "product", kind="i2", M=1, **LARGE)),
    Aim("batch 1, 8192 x 28672: against torch bf16", 7.5, "x", _times_torch("bf16", M=1, **LARGE)),
    Aim("batch 1, 13824 x 2560: against torch bf16", 6, "x", _times_torch("bf16", M=1, **WIDE)),
    Aim("batch 8 against batch 1, 8192 x 28672: time", 1.1, "x",
        lambda rows: _over(_time(rows, "product", kind="i2", M=8, **LARGE),
                           _time(rows, "product", kind="i2", M=1, **LARGE)), most=True),
    Aim("batch 4096, 8192 x 8192: against torch bf16", 1.5, "x", _times_torch("bf16", M=4096, **SQUARE)),
    Aim("batch 4096, 8192 x 8192: of torch._int_mm", 0.9, "x", _times_torch("int8", M=4096, **SQUARE)),
    Aim("RMSNorm and quantisation, 4096 x 2560: of copy bandwidth", 0.85, "%",
        lambda rows: _of_copy(rows, "norm", M=4096, K=2560)),
    Aim("2B4T decode, batch 1, random weights", 2000, "tok/s",
        lambda rows: _over(1.0, _time(rows, "decode", model="2b4t"))))


def wrong_kernels(record: dict[str, Any]) -> list[str]:
    """The kernels whose results are not NumPy's, and products that are not, in words."""
    return [f"{r.get('kernel', r.get('what'))}: {r['said']}" for r in record["rows"] if r.get("said")]


# ---- text ----

def text(record: dict[str, Any]) -> str:
    """All of it, in Markdown."""
    rows, about = record["rows"], record["about"]
    checked = [r for r in rows if "kernel" in r]
    lines = ["Not run: there is no record of a card yet." if not about else
             f"{about['date']}: {about['card']}, compute capability {about['compute capability']}, driver "
             f"{about['nvidia-smi'].get('driver_version', 'not known')}, numba-cuda {about['numba-cuda']}, "
             f"torch {about['torch']}."]
    if record["rehearsed"]:
        lines.append("A rehearsal on the interpreter: what is right is right, but times mean nothing.")
    if checked:
        right = sum(not r["said"] for r in checked)
        lines.append(f"{right} of {len(checked)} kernels agree with NumPy.")
    lines += [f"WRONG: {each}." for each in wrong_kernels(record)]
    lines += [f"Failed: {name}: {said}" for name, said in record["failed"].items()]
    lines.append("\n".join(["| | aim | found | |", "|---|---|---|---|", *(aim.line(rows) for aim in AIMS)]))
    if record["rehearsed"]:
        lines.append("Ran: " + "; ".join(_name(r) for r in rows if "seconds" in r or "rate" in r) + ".")
    elif any("seconds" in r for r in rows):
        lines.append(times(rows))
    lines += [r["table"] for r in rows if r.get("what") == "ladder"]
    return "\n\n".join(lines)


def times(rows: Rows) -> str:
    """Every time, with its rate."""
    lines = ["| what | time | rate | of copy bandwidth |", "|---|---|---|---|"]
    for r in rows:
        if r.get("what") == "copy":
            lines.append(f"| copying memory | | {figure(r['rate'] / 1e9)} GB/s | 100% |")
        if "seconds" not in r:
            continue
        copied = [c for c in rows if c.get("what") == "copy"]
        share = _of_copy([r, *copied], r["what"]) if "bytes" in r else None
        said = "" if share is None else f"{share:.0%}"
        lines.append(f"| {_name(r)} | {duration(r['seconds'])} | {_rate(r)} | {said} |")
    return "\n".join(lines)


def _name(r: dict[str, Any]) -> str:
    return (" ".join(str(r[key]) for key in ("what", "kind", "model") if key in r)
            + "".join(f", {key} = {r[key]}" for key in ("N", "K", "M") if key in r))


def _rate(r: dict[str, Any]) -> str:
    if r["what"] == "decode":
        return f"{1 / r['seconds']:,.0f} tok/s"
    if r.get("M", 1) > 8 and "N" in r:
        return f"{figure(2 * r['N'] * r['K'] * r['M'] / r['seconds'] / 1e12)} Top/s"
    return f"{figure(r['bytes'] / r['seconds'] / 1e9)} GB/s" if "bytes" in r else ""


# ---- kept ----

def page(root: Path) -> Path:
    """The page of a clone."""
    return root / FOLDER / PAGE


def keep(root: Path, record: dict[str, Any]) -> None:
    """The record under its date, and its text in the page."""
    with whole_file(root / FOLDER / f"cuda-{record['about']['date']}.json") as file:
        file.write((json.dumps(record, indent=1) + "\n").encode())
    put(page(root), text(record), COMMAND)


def kept(root: Path) -> dict[str, Any]:
    """The newest record of a clone; NOT_RUN where there is none."""
    found = sorted((root / FOLDER).glob("cuda-*.json"))
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else NOT_RUN
