"""Who wins, from records of the same task: a win, a loss, or unknown, and what must not be compared at all.

A delta inside its own uncertainty is unknown, however it looks. What would flatter is refused: a perplexity
worse than guessing, perplexities per token of two vocabularies, figures over different texts. What is weak is
flagged: a set below its stated minimum, a score that guessing explains, one seed, a single measurement.
Read after: bench/interval. Read next: bench/efficiency.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench import interval
from bitnet_ref.bench.cells import T95
from bitnet_ref.bench.interval import Figure, Interval
from bitnet_ref.checks import check
from bitnet_ref.evaluate.humaneval import pass_at_k
from bitnet_ref.evaluate.records import Metric, Record
from bitnet_ref.evaluate.slid import OF_QUOTIENT, QUOTIENT

WIN, LOSS, UNKNOWN, REFUSED = "win", "loss", "unknown", "refused"
TIMED = ("efficiency",)
NOTHING_VARIES = ("model bytes",)        # counted by formula: a difference of one is a difference


class Minimum(NamedTuple):
    """The least that a task must be scored on before its figure is one. `field`: of what; None: items."""

    least: int
    unit: str
    field: str | None = None


# 250 questions leave an accuracy a standard error of up to 3.2 points, 100,000 bytes bits per byte of about
# 1 %; of programs there are 164 in all; five rounds is what Student's table here goes up to, three its use.
MINIMUM = {"perplexity": Minimum(100_000, "bytes", "bytes"), "choice": Minimum(250, "questions"),
           "code": Minimum(164, "problems"), "efficiency": Minimum(3, "rounds"),
           "speculation": Minimum(8, "prompts")}
GUESSED = "perplexity", "word perplexity"    # not kept of a model that is worse than guessing
COLUMN = {"acc": "correct", "acc_norm": "correct_norm", "acc_uncond": "correct_uncond"}


@dataclass(frozen=True)
class Row:
    """A line of the report. `value`: ours, the mean of `values` over seeds or rounds, which lies between
    `own_low` and `own_high`; `low` and `high`: the ends of the delta, %."""

    contest: str
    task: str
    metric: str
    better: str
    ours: str
    theirs: str
    value: float | None
    other: float | None
    values: list[float]
    others: list[float]
    delta: float | None
    low: float | None
    high: float | None
    verdict: str
    n: int
    unit: str
    own_low: float | None = None
    own_high: float | None = None
    flags: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    data: str = ""                       # sha256 of what ours was scored on
    how: dict[str, Any] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def contest(name: str, ours: Sequence[Record], theirs: Sequence[Record], metric: str,
            names: tuple[str, str]) -> Row:
    """One metric of two models, each with a record for every seed, in the same order of seeds; a model that
    was not trained here has one, which is held against each of the other's. Raises CheckError: no metric."""
    mine, other = (_found(records, metric) for records in (ours, theirs))
    first, unit = ours[0], MINIMUM[ours[0].kind].unit
    commands = list(dict.fromkeys(r.made.command for r in (*ours, *theirs)))
    about: dict[str, Any] = {
        "contest": name, "task": first.task, "metric": metric, "ours": names[0], "theirs": names[1],
        "better": (mine + other)[0].better if mine + other else "lower", "n": size(first), "unit": unit,
        "commands": commands, "values": values_of(ours, metric), "others": values_of(theirs, metric),
        "data": first.data.sha256, "how": first.data.how}
    why = next((w for o in ours for t in theirs if (w := refusal(o, t, metric))), None)
    if why:
        return Row(**about, value=None, other=None, delta=None, low=None, high=None, verdict=REFUSED,
                   flags=[why])
    found = between(ours, theirs, metric)
    said = flags(ours, theirs, metric)
    if found is None and first.items is not None and first.kind not in TIMED:
        said.append("too few items or right answers for an interval")
    verdict = judged(found) if found else UNKNOWN
    if verdict != UNKNOWN and all(at_chance(r, metric) for r in (ours[0], theirs[0])):
        verdict = UNKNOWN
    own = interval.around(about["values"]) if len(about["values"]) in T95 else own_interval(first, metric)
    return Row(**about, value=_mean(mine), other=_mean(other), verdict=verdict, flags=said,
               own_low=own.low if own else None, own_high=own.high if own else None,
               delta=found.value if found else _delta(mine, other),
               **({"low": found.low, "high": found.high} if found else {"low": None, "high": None}))


def judged(found: Interval) -> str:
    """A win or a loss where zero lies outside the interval."""
    return (WIN if found.value > 0 else LOSS) if found.decided else UNKNOWN


# ---- what must not be, and what is weak ----

def refusal(ours: Record, theirs: Record, metric: str) -> str | None:
    """Why these two may not be compared on `metric`, with what to do; None if they may."""
    if (ours.kind, ours.task) != (theirs.kind, theirs.task):
        return f"another task: {ours.task} and {theirs.task}; compare records of one"
    if ours.data.sha256 != theirs.data.sha256:
        return (f"other data: checksums {ours.data.sha256[:8]} and {theirs.data.sha256[:8]}; "
                "score both on the same file")
    if ours.data.how != theirs.data.how:
        return f"scored otherwise: {ours.data.how} and {theirs.data.how}; score both with the same options"
    windows = ours.kind == "perplexity" and ours.model.vocabulary != theirs.model.vocabulary
    if ours.data.items != theirs.data.items and ours.kind not in TIMED and not windows:
        return f"another part: {ours.data.items:,} and {theirs.data.items:,} items; score both on as many"
    if metric == "perplexity" and ours.model.vocabulary != theirs.model.vocabulary:
        return "perplexity per token of two vocabularies means nothing; compare bits per byte"
    if ours.kind in TIMED and metric not in NOTHING_VARIES and _machine(ours) != _machine(theirs):
        return f"timings of two machines, {_machine(ours)} and {_machine(theirs)}; time both on one"
    for record in (ours, theirs):
        if _guesses(record, metric):
            return (f"no {metric} of {record.model.path}: worse than guessing; check model and tokenizer")
        if metric == "perplexity" and record.metrics[metric].value > record.model.vocab_size:
            return (f"perplexity {record.metrics[metric].value:,.0f} is above the vocabulary of "
                    f"{record.model.vocab_size:,}: worse than guessing; check model and tokenizer")
    return None


def _guesses(record: Record, metric: str) -> bool:
    """Whether the metric was left out of a record because its model is worse than guessing."""
    return record.kind == "perplexity" and metric in GUESSED and "perplexity" not in record.metrics


def flags(ours: Sequence[Record], theirs: Sequence[Record], metric: str) -> list[str]:
    """What weakens a row, in words."""
    said = []
    least = MINIMUM[ours[0].kind]
    n = min(size(ours[0]), size(theirs[0]))
    if n < least.least and metric not in NOTHING_VARIES:
        said.append(f"below the minimum: {n:,} {least.unit} of {least.least:,}")
    for who, record in (("ours", ours[0]), ("theirs", theirs[0])):
        if at_chance(record, metric):
            said.append(f"{who} is at chance: guessing explains it")
    fewest, most = sorted((len(ours), len(theirs)))
    if fewest == 1 and ours[0].kind in ("perplexity", "choice", "code"):
        said.append("one seed: the interval is of the test set alone, not of training again" if most == 1 else
                    "one side has one seed: the interval does not know of training that one again")
    if ours[0].items is None and metric not in NOTHING_VARIES:
        said.append("no values by item were kept: no interval")
    return said


def size(record: Record) -> int:
    """What a record's figures are over, in the unit of MINIMUM."""
    name = MINIMUM[record.kind].field
    if name and record.items is not None and name in (record.item_fields or []):
        return int(sum(row[(record.item_fields or []).index(name)] for row in record.items))
    return record.data.items


def at_chance(record: Record, metric: str) -> bool:
    """Whether what guessing would give lies in the metric's own interval, or above it."""
    found = record.metrics[metric]
    if found.chance is None:
        return False
    own = own_interval(record, metric)
    sign = 1 if found.better == "higher" else -1
    return sign * found.value <= sign * found.chance or (own is not None and own.holds(found.chance))


# ---- intervals ----

def between(ours: Sequence[Record], theirs: Sequence[Record], metric: str) -> Interval | None:
    """The delta of the metric and its interval; None where nothing says how sure it is.

    Of a test set: by its items, and of several seeds by those too: the outer ends of both.
    """
    better = ours[0].metrics[metric].better
    ours, theirs = _matched(ours, theirs), _matched(theirs, ours)
    mine, other = ([r.metrics[metric].value for r in records] for records in (ours, theirs))
    if metric in NOTHING_VARIES and other[0] > 0:
        value = interval.delta(mine[0], other[0], better)
        return Interval(value, value, value)
    if min(mine + other) == max(mine + other) and ours[0].items == theirs[0].items:
        return Interval(0.0, 0.0, 0.0)
    if min(other) <= 0 or ours[0].items is None or theirs[0].items is None:
        return None
    if ours[0].kind in TIMED:
        return by_rounds(ours[0], theirs[0], metric, better)
    if min(len(r.items or []) for r in (*ours, *theirs)) < 2:
        return None
    found = by_items(ours, theirs, metric, better)
    if len(ours) in T95:
        found = interval.hull(interval.over_seeds(mine, other, better), found)
    return found if found.known else None


def _matched(records: Sequence[Record], others: Sequence[Record]) -> Sequence[Record]:
    """As many as the others: one is held against each of them."""
    check(len(records) == len(others) or 1 in (len(records), len(others)),
          "both sides must have as many seeds",
          f"{len(records)} and {len(others)}", "train as often on both sides, or give one record")
    return list(records) * len(others) if len(records) == 1 else records


def by_items(ours: Sequence[Record], theirs: Sequence[Record], metric: str, better: str) -> Interval:
    """By drawing questions or windows again; in pairs where both models have the same ones."""
    figure, _ = figure_of(ours[0], metric)
    mine, other = ([figure_of(r, metric)[1] for r in records] for records in (ours, theirs))
    same = ours[0].model.vocabulary == theirs[0].model.vocabulary or ours[0].kind != "perplexity"
    if same and len({a.shape for a in (*mine, *other)}) == 1:
        return interval.paired(mine, other, figure, better)
    return interval.apart(mine, other, figure, better)


def by_rounds(ours: Record, theirs: Record, metric: str, better: str) -> Interval | None:
    """By Student over rounds in which both took turns; of more than his table has by drawing them again."""
    figure, mine = figure_of(ours, metric)
    _, other = figure_of(theirs, metric)
    if ours.kind == "efficiency" and len(mine) == len(other) and len(mine) in T95:
        if min(mine[:, 0].min(), other[:, 0].min()) <= 0:  # no time, no rate
            return None
        return interval.over_rounds(mine[:, 0].tolist(), other[:, 0].tolist(), better)
    return interval.paired([mine], [other], figure, better) if len(mine) == len(other) > 1 else None


def values_of(records: Sequence[Record], metric: str) -> list[float]:
    """One for each seed; of timings one for each round."""
    first = records[0]
    if first.kind in TIMED and first.items and metric in (first.item_fields or []):
        return [row[(first.item_fields or []).index(metric)] for row in first.items]
    return [record.metrics[metric].value for record in records if metric in record.metrics]


def own_interval(record: Record, metric: str) -> Interval | None:
    """Of the metric itself, over its items."""
    if record.items is None or len(record.items) < 2 or metric in NOTHING_VARIES:
        return None
    figure, items = figure_of(record, metric)
    found = interval.bootstrap(items, figure)
    return found if found.known else None


def has_column(record: Record, metric: str) -> bool:
    """Whether the metric is made of the record's items: what only counts something is not to be judged."""
    needed = {"correct", "samples"} if metric.startswith("pass@") else {
        *QUOTIENT.get(metric, (COLUMN.get(metric, metric),))}
    return record.items is None or metric in NOTHING_VARIES or needed <= set(record.item_fields or [])


def figure_of(record: Record, metric: str) -> tuple[Figure, np.ndarray]:
    """How the metric is made of sums over items, and those items (n, 2): numerator and denominator."""
    names = record.item_fields or []
    items = np.array(record.items, float)
    if metric.startswith("pass@"):
        values = [pass_at_k(int(n), round(share * n), int(metric[5:])) for share, n in items]
        return _figure(metric), np.stack([values, np.ones(len(items))], axis=1)
    top, bottom = QUOTIENT.get(metric, (COLUMN.get(metric, metric), None))
    for name in (top, bottom):
        check(name is None or name in names, f"the items of a record must have {name} for {metric}",
              ", ".join(names) or "none", "make the record again")
    under = np.ones(len(items)) if bottom is None else items[:, names.index(bottom)]
    return _figure(metric), np.stack([items[:, names.index(top)], under], axis=1)


def _figure(metric: str) -> Callable[[Any], Any]:
    made = OF_QUOTIENT.get(metric, lambda quotient: quotient)
    return lambda sums: made(sums[..., 0] / sums[..., 1])


def _machine(record: Record) -> str:
    return f"{record.made.machine.get('cpu')}, {record.made.machine.get('threads')} threads"


def _found(records: Sequence[Record], metric: str) -> list[Metric]:
    for record in records:
        check(metric in record.metrics or _guesses(record, metric),
              f"a record of {record.task} must have {metric}", ", ".join(record.metrics),
              "make it again with this version")
    return [record.metrics[metric] for record in records if metric in record.metrics]


def _mean(metrics: Sequence[Metric]) -> float:
    return sum(m.value for m in metrics) / len(metrics)


def _delta(mine: Sequence[Metric], other: Sequence[Metric]) -> float | None:
    base = _mean(other)
    return float(interval.delta(_mean(mine), base, mine[0].better)) if base else None
