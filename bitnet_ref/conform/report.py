"""What `conform DIR` says: a line for every tensor, then the causes, as text, as JSON, and as a picture.

Read after: conform/read. Read next: conform/planted.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.conform.blame import Cause, causes
from bitnet_ref.conform.graph import Node
from bitnet_ref.conform.judge import ABSENT, BAD, OK, UNJUDGED, Judge, Verdict
from bitnet_ref.conform.read import Dump


class Report(NamedTuple):
    """`unexplained`: wrong tensors that no known fault explains, and a hint about each. `values`: what the
    port has, and should have, at the first wrong index.
    """

    verdicts: list[Verdict]
    causes: list[Cause]
    unexplained: dict[str, str]
    problems: list[tuple[str, str]]
    values: dict[str, tuple[float, float]]

    @property
    def conforms(self) -> bool:
        """Every tensor that was dumped is right, and could be used."""
        return not self.problems and all(v.status in (OK, ABSENT) for v in self.verdicts)

    def count(self, status: str) -> int:
        """Tensors of a status."""
        return sum(v.status == status for v in self.verdicts)


def judge_dump(nodes: list[Node], given: dict[str, Any], dump: Dump) -> Report:
    """Judge every tensor, find the causes."""
    judge = Judge(nodes, given, dump.tensors)
    verdicts = judge.verdicts()
    found, left = causes(judge, verdicts)
    values = {v.name: (float(dump.tensors[v.name][v.first]), float(judge.make(v.name)[v.first]))
              for v in verdicts if v.status == BAD}
    return Report(verdicts, found, {n: hint(judge, n) for n in left}, dump.problems, values)


def hint(judge: Judge, name: str) -> str:
    """What may be said of a tensor that no known fault explains: what it is, and a constant ratio."""
    about = f"it should be {judge.nodes[name].about}"
    right, got = (np.asarray(t, np.float64).reshape(-1) for t in (judge.make(name), judge.seen[name]))
    some = np.isfinite(got) & (right != 0)
    ratio = got[some] / right[some]
    if some.any() and np.ptp(ratio) <= 1e-4 * np.abs(ratio).max():
        about += f"; every value is {np.median(ratio):.6g} times the right one"
    return about


def text(report: Report) -> str:
    """The table, then what is wrong and what to do."""
    lines = [_line(v, report) for v in report.verdicts if v.status != ABSENT]
    lines += [f"??   {message}" for _, message in report.problems]
    lines.append(f"\n{report.count(OK)} ok, {report.count(BAD)} BAD, {report.count(UNJUDGED)} unjudged, "
                 f"{report.count(ABSENT)} not dumped, {len(report.problems)} unusable")
    if report.count(ABSENT):
        lines.append(f"not dumped: {_groups(v.name for v in report.verdicts if v.status == ABSENT)}")
    for i, cause in enumerate(report.causes, 1):
        lines += ["", *_paragraph(i, cause)]
    if report.unexplained:
        lines += ["", "No known fault explains these; compare their formulas with porting.md:"]
        lines += [f"   {name}: {about}" for name, about in report.unexplained.items()]
    if report.conforms:
        lines.append("conforms: every tensor that was dumped is right")
    return "\n".join(lines)


def _line(v: Verdict, report: Report) -> str:
    share = f"{100 * v.share:.1f} % of" if v.share <= 1 else f"{v.share:.3g} x"
    line = f"{v.status:<4} {v.name:<38} max|err| {v.error:8.1e}  {share:>11} tolerance"
    if v.status == BAD:
        got, right = report.values[v.name]
        line += f"  first at {list(v.first)}: {got:.6g}, not {right:.6g}; {v.wrong} of {v.size} wrong"
    return line + (f"  ({v.note})" if v.note else "")


def _paragraph(i: int, cause: Cause) -> list[str]:
    others = ", ".join(f"{name} {_percent(share)}" for name, share in cause.next) or "nothing"
    names = list(cause.explains)
    lines = [f"{i}. {cause.suspect.name} explains {_percent(cause.share)} of the difference in "
             f"{_list(names)}; next: {others}."]
    if cause.like:
        lines.append(f"   These tensors cannot tell it from: {', '.join(cause.like)}.")
    for fault in cause.suspect.faults:
        lines += [f"   {fault.says}", f"   To do: {fault.fix}", f"   See {fault.page}"]
    if cause.spared:
        lines.append(f"   It would also have changed {_list(list(cause.spared))}, which is right: the fault "
                     "is in some places only.")
    return lines


def _groups(names: Iterable[str]) -> str:
    """Counts by the first part of the name: quant.* 8, bitnet.* 102"""
    count = Counter(name.split(".")[0] for name in names)
    return ", ".join(f"{group}.* {n}" for group, n in count.items())


def _percent(share: float) -> str:
    """99.996 % is not 100 %."""
    return "100 %" if share == 1 else f"{100 * min(share, 0.9999):.2f} %"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def as_dict(report: Report) -> dict[str, Any]:
    """For --json: only plain values."""
    return {
        "conforms": report.conforms,
        "tensors": [{**v._asdict(), "first": list(v.first), "error": plain(v.error),
                     "share": plain(v.share), **_values(report, v.name)} for v in report.verdicts],
        "causes": [{"cause": c.suspect.name, "explains": c.share, "tensors": list(c.explains),
                    "like": list(c.like), "next": [list(n) for n in c.next], "spared": list(c.spared),
                    "faults": [{"name": f.name, "says": f.says, "to do": f.fix, "page": f.page}
                               for f in c.suspect.faults]} for c in report.causes],
        "unexplained": [{"name": name, "about": about} for name, about in report.unexplained.items()],
        "problems": [{"name": name, "message": message} for name, message in report.problems],
    }


def _values(report: Report, name: str) -> dict[str, Any]:
    """The port's value and the right one at the first wrong index."""
    if name not in report.values:
        return {}
    got, right = report.values[name]
    return {"got": plain(float(got)), "right": plain(float(right))}


def plain(x: float) -> float | str:
    """What JSON can hold: infinities and NaN as words."""
    return x if np.isfinite(x) else str(x)
