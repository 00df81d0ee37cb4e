"""python -m bitnet_ref.evaluate report --output DIR
python -m bitnet_ref.evaluate report --output DIR --steps 30 --seeds 2 --rounds 2 --prompts 3
python -m bitnet_ref.evaluate report --output DIR --baseline llama/ --records records/

Train BitNet and its full-precision twins, score them on WikiText-2's test text, time them, and write where
BitNet wins and where it loses: report.html, report.json, report.md. What is done is not done again.
Read after: bench/evaluation_page. Read next: bench/compare.
"""

import hashlib
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench import chains, efficiency, evaluation_page, evaluation_report, rivals
from bitnet_ref.bench.cells import FIGURES, T95
from bitnet_ref.bench.evaluation_report import Contestant
from bitnet_ref.checks import check, lookup
from bitnet_ref.cli import DONE, Parser, run_command, text
from bitnet_ref.config import PRESETS
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.batches import sequential
from bitnet_ref.data.corpus import part_documents
from bitnet_ref.data.download import DATA
from bitnet_ref.evaluate import records
from bitnet_ref.evaluate.provenance import made, model_facts
from bitnet_ref.evaluate.records import Data, Metric, Record
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.source import open_run
from bitnet_ref.generate.language_model import load

COMMAND = "evaluate report"
CHAINS = "chains.json"
CORPUS = "wikitext-2"            # train, valid and test are official parts of it


class Job(NamedTuple):
    """One report: where, how to say what made it, and with what."""

    place: Path
    argv: list[str]
    threads: int | None
    rounds: int
    prompts: int

    def record(self, name: str) -> Path:
        """The file of one evaluation."""
        return self.place / "records" / f"{name}.json"

    def made(self, began: float) -> records.Made:
        """By this command, since then."""
        return made(COMMAND, self.argv, time.perf_counter() - began, "numba")


def say(what: str) -> None:
    """Progress."""
    print(what, file=sys.stderr)


# ---- what is measured ----

def stored(run: Path, folder: Path) -> Path:
    """The run's model as one would ship it: trits in 2 bits, floats in float16; made again after training."""
    if folder.is_dir() and folder.stat().st_mtime >= (run / FIGURES).stat().st_mtime:
        return folder
    check(not folder.exists(), f"{folder} must be of the run as it is", "an older one", "delete it")
    write_hf(folder, open_run(run), dtype="float16")
    return folder


def once(file: Path, model: records.Model, make: Callable[[], Record]) -> Record:
    """The record in `file` if it is of these weights; else a new one, written there."""
    if file.exists():
        found = records.load(file)
        if found.model.weights == model.weights:
            return found
    record = make()
    records.save(file, record)
    return record


def tested(job: Job, name: str, path: Path) -> Record:
    """Bits per byte on the test text, window by window."""
    model = load(path, threads=job.threads)
    about = model_facts(model, str(path))

    def make() -> Record:
        began, docs = time.perf_counter(), list(part_documents(CORPUS, "test"))
        say(f"{name}: the test text of {CORPUS}")
        eos = np.array([model.tokenizer.eos], np.int32)
        tokens = np.concatenate([eos, *(part for ids in model.tokenizer.encode_batch(docs)
                                        for part in (ids, eos))])
        rows = []
        for ids, targets in sequential(tokens, model.cfg.context, 1):
            loss = model(ids, targets)[1]
            assert loss is not None
            rows.append([float(loss) * targets.size, targets.size,
                         int(model.tokenizer.token_bytes[targets].sum())])
        nats, count, size = (float(total) for total in np.sum(rows, axis=0))
        metrics = {"bits per byte": Metric(nats / math.log(2) / size, len(rows), None, "lower"),
                   "perplexity": Metric(math.exp(nats / count), len(rows), None, "lower")}
        digest = hashlib.sha256("".join(docs).encode()).hexdigest()
        return Record("perplexity", CORPUS, about, job.made(began), Data(f"{CORPUS}, test", digest, len(rows)),
                      metrics, rows, ["nats", "tokens", "bytes"])

    return once(job.record(f"{name}.{CORPUS}"), about, make)


def timed(job: Job, paths: dict[str, Path]) -> tuple[dict[str, Record], list[str]]:
    """{who: efficiency} of all, measured by turns; and what could not be measured."""
    about = {who: model_facts(load(path), str(path)) for who, path in paths.items()}
    files = {who: job.record(f"{who}.efficiency") for who in paths}
    notes = job.record("efficiency-notes")
    if all(f.exists() for f in (*files.values(), notes)):
        found = {who: records.load(file) for who, file in files.items()}
        if all(found[who].model.weights == about[who].weights for who in paths):
            return found, json.loads(notes.read_text(encoding="utf-8"))
    began = time.perf_counter()
    given = {who: str(path) for who, path in paths.items()}
    rounds, said = efficiency.measured(given, job.rounds, job.threads, say)
    made_by = job.made(began)
    found = {who: _efficiency(about[who], rows, made_by) for who, rows in rounds.items()}
    for who, record in found.items():
        records.save(files[who], record)
    with whole_file(notes) as file:
        file.write(json.dumps(said).encode())
    return found, said


def _efficiency(about: records.Model, rows: list[efficiency.Round], made_by: records.Made) -> Record:
    known = [name for name in efficiency.METRICS if all(row[name] is not None for row in rows)]
    items = [[float(row[name] or 0) for name in known] for row in rows]
    n = len(rows)
    metrics = {name: Metric(statistics.mean(values), n, statistics.stdev(values) / n ** 0.5,
                            efficiency.METRICS[name]) for name, values in zip(known, zip(*items))}
    metrics["model bytes"] = Metric(about.bytes, 1, None, "lower")
    what = f"{efficiency.PROMPT} tokens read, {efficiency.TOKENS} written"
    return Record("efficiency", "generation", about, made_by,
                  Data(what, hashlib.sha256(what.encode()).hexdigest(), n), metrics, items, known)


def spoken(job: Job, run: Path, weights: str) -> dict[str, Any]:
    """The figures of chain buckets, of these weights."""
    file = job.place / CHAINS
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept.get("weights") == weights:
            return dict(kept)
    say("chain buckets")
    found = {**chains.measure(run, job.prompts, 100, job.threads), "weights": weights}
    with whole_file(file) as f:
        f.write(json.dumps(found).encode())
    return found


# ---- the command ----

def main(argv: list[str]) -> int:
    """Parse, train, measure, write, print the summary."""
    args = parsed(argv)
    job = Job(Path(args.output), ["report", *argv][1:], args.threads, args.rounds, args.prompts)
    plan = plan_of(args)
    runs = Path(args.runs or job.place / "runs")
    trained = rivals.train_all(plan, runs)
    contestants: dict[str, Contestant] = {}
    for who, each in trained.items():
        paths = [stored(runs / run["name"], job.place / "models" / run["name"]) for run in each]
        scored = [tested(job, run["name"], path) for run, path in zip(each, paths)]
        contestants[who] = Contestant(rivals.NAMES[who], rivals.CONTESTS.get(who, ""), scored, paths[0], each)
    for path in map(Path, args.baseline):
        name = path.resolve().name
        contestants[name] = Contestant(name, f"baseline {name}", [tested(job, f"baseline-{name}", path)], path)
    speed, notes = timed(job, {who: c.path for who, c in contestants.items()})
    others = [records.load(file) for folder in args.records for file in sorted(Path(folder).glob("*.json"))]
    first = contestants[rivals.BITNET]
    found = spoken(job, runs / first.runs[0]["name"], first.records[0].model.weights)
    report = evaluation_report.assembled(contestants, speed, others, found, notes, job.made(time.perf_counter()))
    evaluation_page.write(job.place, report)
    print(evaluation_page.summary(report))
    return DONE


def plan_of(args: Any) -> rivals.Plan:
    """What the command line asks to be trained."""
    preset = lookup(PRESETS, args.preset, "preset")
    train = replace(preset.train, corpus=CORPUS, steps=args.steps, threads=args.threads, eval_windows=16)
    return rivals.Plan(args.preset, preset.model, train, args.seeds, args.jobs)


def parsed(argv: list[str]) -> Any:
    """The arguments. Raises CheckError for those without a meaning."""
    parser = Parser("python -m bitnet_ref.evaluate report", __doc__)
    parser.add_argument("--output", type=text, required=True, metavar="DIR", help="folder of the report")
    parser.add_argument("--data", type=text, metavar="DIR", help=f"folder of corpora (default: ${DATA})")
    parser.add_argument("--baseline", type=text, action="append", default=[], metavar="PATH",
                        help="a model to be held against, of any format; may be given several times")
    parser.add_argument("--records", type=text, action="append", default=[], metavar="DIR",
                        help="results of evaluate --output, to join the tables")
    parser.add_argument("--runs", type=text, metavar="DIR", help="where the runs are (default: DIR/runs)")
    parser.add_argument("--preset", type=text, default="nano", help="BitNet's shape (default: nano)")
    for name, default, what in (("steps", 300, "of training"), ("seeds", 3, "of each trained model"),
                                ("jobs", 1, "runs at a time"), ("rounds", 5, "of timing"),
                                ("prompts", 12, "of chain buckets, the first a warm-up"),
                                ("threads", None, "to run with")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default or 'all'})")
    args = parser.parse_args(argv)
    for name in ("steps", "jobs", "prompts", "threads"):
        value = getattr(args, name)
        check(value is None or value > 0, f"--{name} must be greater than 0", value, "use 1 or more")
    for name, least in (("seeds", 1), ("rounds", 2)):
        check(least <= getattr(args, name) <= max(T95), f"--{name} must be {least} to {max(T95)}",
              getattr(args, name), "use 3")
    for path in (*args.baseline, *args.records):
        check(Path(path).exists(), "a baseline or a folder of records must exist", path, "check the path")
    if args.data:
        os.environ[DATA] = args.data
    return args


if __name__ == "__main__":
    sys.exit(run_command(main))
