"""From records to a report: which contests there are, what came of them, what is weak or was not measured.

A report is one JSON object; the pages are written from it alone. BitNet is always "ours": a win is its win.
Deficiencies are part of the report, not of its small print: every loss, every flag, every kind of evaluation
that nobody ran.
Read after: bench/chains. Read next: bench/evaluation_pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bitnet_ref.bench import chains, efficiency, engines, rivals
from bitnet_ref.bench.contest import LOSS, REFUSED, UNKNOWN, WIN, Row, contest, own_interval
from bitnet_ref.bench.interval import around
from bitnet_ref.evaluate.records import Made, Record

SCHEMA = 1
ENOUGH = 20                      # tokens for each parameter
QUALITY = ("bits per byte", "perplexity", "word perplexity")
SPEED = (*efficiency.METRICS, "model bytes")
# What is the same by construction: the narrower twin has as many bytes; the twin of other steps is as fast as
# the first, and to time it again would count a win or a loss twice.
SAME = {rivals.SMALL: ("model bytes",), rivals.LONG: SPEED}
NO_ENGINES = tuple(SAME)         # nor are these timed in other engines
AGAIN = "perplexity", "word perplexity", "acc_norm", "acc_uncond", "first token ms"
COMPARED = ("bits per byte", "perplexity", "word perplexity", "acc", "acc_norm", "acc_uncond")
# What the mission asks for, by how the task of a record begins; what none has is said to be missing.
ASKED = {"arc": "reasoning: ARC", "hellaswag": "reasoning: HellaSwag", "piqa": "reasoning: PIQA",
         "winogrande": "reasoning: WinoGrande", "boolq": "reasoning: BoolQ", "humaneval": "code: HumanEval"}


@dataclass(frozen=True)
class Contestant:
    """A model of the report. `contest`: what it is BitNet's rival in; `records`: of the test text, by seed;
    `runs`: of those trained here; `tasks`: records of multiple choice by task, each by seed."""

    name: str
    contest: str
    records: Sequence[Record]
    path: Path
    runs: Sequence[dict[str, Any]] = field(default_factory=list)
    tasks: Mapping[str, Sequence[Record]] = field(default_factory=dict)


def assembled(contestants: Mapping[str, Contestant], speed: Mapping[str, Record], others: Sequence[Record],
              spoken: dict[str, Any], notes: Sequence[str], made: Made) -> dict[str, Any]:
    """The report. `others`: records made by hand, `spoken`: of bench/chains. Its machine is that of the
    timings, which knows the threads of the processes that were timed."""
    ours, timed = contestants[rivals.BITNET], speed[rivals.BITNET]
    rows: list[Row] = []
    for who, rival in contestants.items():
        if who == rivals.BITNET:
            continue
        names = ours.name, rival.name
        rows += [contest(rival.contest, ours.records, rival.records, metric, names)
                 for metric in QUALITY if any(metric in r.metrics for r in (*ours.records, *rival.records))]
        rows += [contest(rival.contest, ours.tasks[task], rival.tasks[task], metric, names)
                 for task in ours.tasks if task in rival.tasks for metric in ours.tasks[task][0].metrics
                 if metric in COMPARED]
        theirs = speed[who]
        rows += [contest(rival.contest, [timed], [theirs], metric, names) for metric in SPEED
                 if metric in timed.metrics and metric in theirs.metrics and metric not in SAME.get(who, ())]
    rows += in_engines(contestants, speed) + joined(others)
    others = [*others, *(r for c in contestants.values() for each in c.tasks.values() for r in each)]
    rows += chains.rows(spoken, ours.name, made.command)
    models = [described(who, c, speed[who]) for who, c in contestants.items()]
    report: dict[str, Any] = {
        "schema": SCHEMA, "kind": "report", "made": asdict(made) | {"machine": timed.made.machine},
        "rows": [row.table() for row in rows], "models": models, "chains": spoken, "notes": list(notes),
        "engines": ran_in(contestants, speed)}
    weak = [*brief(models), *deficiencies(rows, others, notes)]
    return report | {"summary": tally(rows), "deficiencies": weak,
                     "data": data_used([*(r for c in contestants.values() for r in c.records), *others])}


def in_engines(contestants: Mapping[str, Contestant], speed: Mapping[str, Record]) -> list[Row]:
    """Of models that were timed in another engine too: ours against that."""
    return [contest(engines.CONTEST, [speed[who]], [speed[name]], metric,
                    (f"{contestants[who].name}, bitnet_ref", f"{contestants[who].name}, {engine}"))
            for name, who, engine in _elsewhere(contestants, speed) for metric in efficiency.METRICS
            if metric in speed[who].metrics and metric in speed[name].metrics]


def _elsewhere(contestants: Mapping[str, Contestant], speed: Mapping[str, Record]) -> list[list[str]]:
    """["who in engine", who, engine] of each that ran in another engine."""
    return [[name, *name.rsplit(engines.IN, 1)] for name in speed if name not in contestants]


def ran_in(contestants: Mapping[str, Contestant], speed: Mapping[str, Record]) -> list[dict[str, Any]]:
    """Of each that ran in another engine what that is, and how far its logits are from ours."""
    return [{"name": f"{contestants[who].name}, {engine}", "engine": speed[name].made.versions.get("engine"),
             "apart": speed[name].metrics[efficiency.APART].value}
            for name, who, engine in _elsewhere(contestants, speed)]


def joined(others: Sequence[Record]) -> list[Row]:
    """Of records made by hand: each ternary model against each full-precision one, over the same task."""
    ternary = [r for r in others if r.model.linear == "ternary"]
    full = [r for r in others if r.model.linear == "full"]
    return [contest(r.kind, [o], [r], metric, (o.model.path, r.model.path)) for o in ternary for r in full
            if (o.kind, o.task) == (r.kind, r.task)
            for metric in o.metrics if metric in r.metrics and (metric in COMPARED or metric[:5] == "pass@")]


def described(who: str, c: Contestant, speed: Record) -> dict[str, Any]:
    """A model as the report's tables and pictures have it."""
    first = c.records[0]
    values = [r.metrics["bits per byte"].value for r in c.records]
    own = around(values) if len(values) > 1 else own_interval(first, "bits per byte")
    found = {"who": who, "name": c.name, "contest": c.contest, "seeds": [run["seed"] for run in c.runs],
             "linear": first.model.linear, "parameters": first.model.parameters, "bytes": first.model.bytes,
             "bits per byte": sum(values) / len(values), "values": values,
             "low": own.low if own else None, "high": own.high if own else None,
             "decode tokens/s": speed.metrics["decode tokens/s"].value, "weights": [
                 r.model.weights for r in c.records]}
    if c.runs:
        run = c.runs[0]
        found |= {"steps": run["steps"], "tokens": run["tokens"], "lr": run["lr"], "width": run["d_model"],
                  "seconds per step": sum(r["seconds per step"] for r in c.runs) / len(c.runs),
                  "curves": [r["curve"] for r in c.runs]}
    return found


def tally(rows: Sequence[Row]) -> dict[str, Any]:
    """How many of each verdict, by contest, and in all against full precision: chain buckets are held against
    plain decoding of the same model, engines against each other. Perplexities say again what bits per byte
    say, acc_norm what acc says, the first token what reading the prompt says: they are shown, not counted."""
    by: dict[str, dict[str, int]] = {}
    for row in rows:
        if row.metric in AGAIN:
            continue
        counts = by.setdefault(row.contest, dict.fromkeys((WIN, LOSS, UNKNOWN, REFUSED), 0))
        counts[row.verdict] += 1
    held = [counts for contest, counts in by.items() if contest not in (chains.CONTEST, engines.CONTEST)]
    whole = {verdict: sum(c[verdict] for c in held) for verdict in (WIN, LOSS, UNKNOWN, REFUSED)}
    return {"all": whole, "by contest": by}


def deficiencies(rows: Sequence[Row], others: Sequence[Record], notes: Sequence[str]) -> list[str]:
    """What a reader must know before believing anything: losses, refusals, weak rows, what was not run."""
    said = [f"{row.ours} loses to {row.theirs} in {row.metric} ({row.contest}): {percent(row)}"
            for row in rows if row.verdict == LOSS and row.metric not in AGAIN]
    said += [f"{row.metric}, {row.ours} against {row.theirs}: refused: {row.flags[0]}"
             for row in rows if row.verdict == REFUSED]
    weak: dict[str, list[str]] = {}
    for row in rows:
        for words in row.flags if row.verdict != REFUSED else ():
            weak.setdefault(words, []).append(f"{row.contest}, {row.task}, {row.metric}")
    said += [f"{words}: {where[0]}" + (f" and {len(where) - 1} more" if len(where) > 1 else "")
             for words, where in weak.items()]
    there = [record.task.lower() for record in others]
    said += [f"not measured here: {what}" for task, what in ASKED.items()
             if not any(name.startswith(task) for name in there)]
    return said + list(notes)


def brief(models: Sequence[dict[str, Any]]) -> list[str]:
    """That models were trained on little, where they were. Source of ENOUGH: Hoffmann et al., arXiv
    2203.15556, whose models of best use of arithmetic saw about so many tokens for each parameter."""
    few = [m for m in models if "tokens" in m and m["tokens"] < ENOUGH * m["parameters"]]
    if not few:
        return []
    tokens, each = few[0]["tokens"], few[0]["tokens"] / few[0]["parameters"]
    return [f"trained briefly: {few[0]['name']} on {tokens:,} tokens, {each:.2g} for each parameter, where "
            f"{ENOUGH} are usual: who is ahead so early need not stay ahead"]


def data_used(used: Sequence[Record]) -> list[dict[str, Any]]:
    """Each text or set of questions once, with its checksum."""
    return list({r.data.sha256: {"task": r.task, **asdict(r.data)} for r in used}.values())


def percent(row: Row) -> str:
    """A row's delta with its interval."""
    if row.delta is None:
        return "-"
    if row.low is None or row.high is None:
        return f"{row.delta:+.1f} %"
    return f"{row.delta:+.1f} % [{row.low:+.1f}, {row.high:+.1f}]"
