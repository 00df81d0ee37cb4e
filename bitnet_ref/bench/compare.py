"""python -m bitnet_ref.evaluate compare OLD NEW
python -m bitnet_ref.evaluate compare old/report.json new/report.json

Has anything become worse? Two records of one evaluation, or two reports. Of records with their values by item
the interval is of pairs; of reports each row brings its own spread over seeds, rounds or prompts.
Exit code 0: nothing is worse beyond its uncertainty. 1: something is. 2: the two cannot be compared.
Read after: bench/evaluation. Read next: bench/__main__.
"""

import sys
from pathlib import Path
from typing import Any

from bitnet_ref.bench.contest import (
    LOSS,
    MINIMUM,
    NOTHING_VARIES,
    REFUSED,
    UNKNOWN,
    WIN,
    Row,
    contest,
    has_column,
)
from bitnet_ref.bench.interval import Interval, difference
from bitnet_ref.checks import check, shown
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, run_command, text
from bitnet_ref.evaluate import records

TIMED = MINIMUM["efficiency"].unit, MINIMUM["speculation"].unit
KEY = "contest", "task", "metric", "ours", "theirs"
FIX = "give the report.json that python -m bitnet_ref.evaluate report wrote"
WORDS = {WIN: "better", LOSS: "WORSE", UNKNOWN: "within its uncertainty", REFUSED: "refused"}


def main(argv: list[str]) -> int:
    """Parse, read, compare, print."""
    parser = Parser("python -m bitnet_ref.evaluate compare", __doc__)
    for name in ("old", "new"):
        parser.add_argument(name, type=text, metavar=name.upper(), help="a record or a report, JSON")
    args = parser.parse_args(argv)
    rows = compared(Path(args.old), Path(args.new))
    for label, verdict, figures in rows:
        print(f"{shown(label):<60} {shown(figures):<28} {WORDS[verdict]}")
    worse = sum(verdict == LOSS for _, verdict, _ in rows)
    print(f"{len(rows)} figures compared, {worse} worse beyond uncertainty")
    return CHECK_FAILED if worse else DONE


def compared(old: Path, new: Path) -> list[tuple[str, str, str]]:
    """(what, verdict of the new, its delta in words), figure by figure. Raises CheckError: files that are
    neither, one of each, or with nothing in common."""
    held = [opened(path) for path in (old, new)]
    kinds = [isinstance(h, records.Record) for h in held]
    check(kinds[0] == kinds[1], "two records or two reports must be compared", "one of each",
          "give two alike")
    return of_records(*held) if kinds[0] else of_reports(*held)


def opened(path: Path) -> Any:
    """A record, or the rows of a report by their KEY. Raises CheckError for anything else."""
    table = records.json_in(path, "a record or a report", FIX)
    if not (isinstance(table, dict) and table.get("kind") == "report"):
        return records.from_table(table, str(path))
    return _rows(table, path)


def _rows(table: dict[str, Any], path: Path) -> dict[tuple[str, ...], dict[str, Any]]:
    rows = table.get("rows")
    good = isinstance(rows, list) and all(_is_row(row) for row in rows)
    check(good, f"{path} must have rows as a report has them", "others", FIX)
    made = table.get("made")
    machine = made.get("machine") if isinstance(made, dict) else None
    return {tuple(row[name] for name in KEY): {**row, "machine": machine} for row in rows or []}


def _is_row(row: Any) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in KEY):
        return False
    values = row.get("values")
    ends = [v for v in (row.get("own_low"), row.get("own_high")) if v is not None]
    return (row.get("better") in ("higher", "lower") and isinstance(values, list)
            and all(type(v) in (int, float) and abs(v) < 1e300 for v in (*values, *ends)))


# ---- what came of them ----

def of_records(old: records.Record, new: records.Record) -> list[tuple[str, str, str]]:
    """Each metric that both have. Raises CheckError where none may be compared."""
    names = [name for name in new.metrics if name in old.metrics
             and has_column(new, name) and has_column(old, name)]
    check(len(names) > 0, "two records must have a metric in common", "none", "compare two of one kind")
    rows = [contest("compare", [new], [old], name, ("new", "old")) for name in names]
    why, _, fix = (rows[0].flags or [""])[0].rpartition("; ")
    check(any(row.verdict != REFUSED for row in rows), "two records must be comparable", why, fix)
    return [(f"{row.task} {row.metric}", row.verdict, _said(row)) for row in rows]


def _said(row: Row) -> str:
    if row.delta is None or row.low is None or row.high is None:
        return row.flags[0] if row.flags else "-"
    return f"{row.delta:+.2f} % [{row.low:+.2f}, {row.high:+.2f}]"


def of_reports(old: dict[tuple[str, ...], dict[str, Any]],
               new: dict[tuple[str, ...], dict[str, Any]]) -> list[tuple[str, str, str]]:
    """Ours of each row that both have, by its own values."""
    both = [key for key in new if key in old and old[key]["values"] and new[key]["values"]]
    check(len(both) > 0, "two reports must have rows in common", "none", "compare reports of the same models")
    found = []
    seen: set[tuple[str, ...]] = set()
    for key in both:
        _, task, metric, ours, _ = key
        about = (task, metric, ours)
        if about in seen:                                  # BitNet's figure stands in several contests
            continue
        seen.add(about)
        if why := _apart(old[key], new[key]):
            found.append((f"{ours}, {task} {metric}", REFUSED, why))
            continue
        change = _change(old[key], new[key])
        verdict = (WIN if change.value > 0 else LOSS) if change.decided else UNKNOWN
        said = f"{change.value:+.2f} % [{change.low:+.2f}, {change.high:+.2f}]"
        found.append((f"{ours}, {task} {metric}", verdict, said))
    check(any(verdict != REFUSED for _, verdict, _ in found), "two reports must be comparable", found[0][2],
          "make both on one machine, of the same data")
    return found


def _apart(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Why two rows of a name may not be compared, or nothing."""
    if any(old.get(name) != new.get(name) for name in ("data", "how")):
        return "of other data, or scored otherwise"
    timed = new.get("unit") in TIMED and new["metric"] not in NOTHING_VARIES
    return "timed on another machine" if timed and old["machine"] != new["machine"] else ""


def _change(old: dict[str, Any], new: dict[str, Any]) -> Interval:
    """Equal values have not changed; else the spread of each side counts, and what was counted has none."""
    if old["values"] == new["values"]:
        return Interval(0.0, 0.0, 0.0)
    sides = [_spread(row) for row in (old, new)]
    check(sides[0].value != 0, f"{old['metric']} of the old report must not be 0", 0, "make it again")
    return difference(sides[0], sides[1], new["better"])


def _spread(row: dict[str, Any]) -> Interval:
    """The mean of a row's values between the ends that the row brings, or else of itself alone."""
    mean = sum(row["values"]) / len(row["values"])
    low, high = row.get("own_low"), row.get("own_high")
    return Interval(mean, mean if low is None else low, mean if high is None else high)


if __name__ == "__main__":
    sys.exit(run_command(main))
