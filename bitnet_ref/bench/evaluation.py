"""python -m bitnet_ref.evaluate report --output DIR
python -m bitnet_ref.evaluate report --output DIR --steps 30 --seeds 2 --rounds 2 --prompts 3
python -m bitnet_ref.evaluate report --output DIR --baseline llama/ --records records/ --peer llama.cpp

Train BitNet and its full-precision twins, score them on WikiText-2's test text, time them, and write where
BitNet wins and where it loses: report.html, report.json, report.md. What is done is not done again.
Read after: bench/evaluation_page. Read next: bench/compare.
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.bench import chains, efficiency, engines, evaluation_page, evaluation_report, rivals
from bitnet_ref.bench.cells import FIGURES, T95
from bitnet_ref.bench.child import PACKAGE
from bitnet_ref.bench.evaluation_report import Contestant
from bitnet_ref.checks import check, lookup
from bitnet_ref.cli import DONE, Parser, run_command, text
from bitnet_ref.config import PRESETS
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.download import DATA
from bitnet_ref.evaluate import harness, records
from bitnet_ref.evaluate.provenance import machine, made, weights_sha256
from bitnet_ref.evaluate.records import Data, Metric, Record
from bitnet_ref.evaluate.sliding import texts_of
from bitnet_ref.evaluate.tasks import local, read_task
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.opened import kind_of, open_model
from bitnet_ref.formats.source import open_run

CHAINS, NOTES = "chains.json", "efficiency-notes.json"
CORPUS = "wikitext-2"            # train, valid and test are official parts of it


class Job(NamedTuple):
    """One report: where, how to say what made it, and with what."""

    place: Path
    argv: list[str]
    threads: int | None
    rounds: int
    prompts: int
    context: int                 # tokens of a window of the test text, of all models
    peers: Mapping[str, str] = {}    # other engines, each with the interpreter that has it

    def record(self, name: str) -> Path:
        """The file of one evaluation."""
        return self.place / "records" / f"{name.replace(' ', '-')}.json"

    def made(self, began: float) -> records.Made:
        """By this command, since then."""
        return made("evaluate", ["report", *self.argv], time.perf_counter() - began, "numba")

    def timing(self) -> dict[str, Any]:
        """What timings depend on beside the models."""
        return {"threads": self.threads, "machine": machine()}


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


def evaluated(job: Job, name: str, path: Path, task: str, *flags: str, sha: str | None = None) -> Record:
    """The record of `python -m bitnet_ref.evaluate --model path flags`, a process of its own, so that the
    command in the record is one that can be typed. If there is one of these weights, this command and data of
    checksum `sha` (None: not known before), that one."""
    file = job.record(f"{name}.{task}")
    threads = ("--threads", str(job.threads)) if job.threads else ()
    argv = ["--model", str(path), *flags, *threads, "--output", str(file)]
    if file.exists():
        found = records.load(file)
        same = (found.made.command == made("evaluate", argv, 0.0, "numba").command
                and sha in (None, found.data.sha256))
        if same and found.model.weights == weights_sha256(path, kind_of(path)):
            return found
        file.unlink()
    say(f"{name}: {task}")
    words = [sys.executable, "-m", "bitnet_ref.evaluate", *argv]
    place = os.pathsep.join(p for p in (str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if p)
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": place}, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, encoding="utf-8", errors="replace", check=False)
    last = (done.stderr.strip().splitlines() or ["no word"])[-1]
    check(file.exists(), f"{name} must be evaluated on {task}", f"exit code {done.returncode}: {last}",
          "see what it says when it is run by itself")
    return records.load(file)


def tested(job: Job, name: str, path: Path) -> Record:
    """Of the test text, in windows that do not overlap."""
    length = str(job.context)
    return evaluated(job, name, path, CORPUS, "--corpus", CORPUS, "--context", length, "--stride", length,
                     sha=texts_of(CORPUS)[1])


def timed(job: Job, models: dict[str, Contestant]) -> tuple[dict[str, Record], list[str]]:
    """{who: efficiency} of all, and {"who in engine": ...} of peers, measured by turns; and what could not be
    measured."""
    about = {who: c.records[0].model for who, c in models.items()}
    wanted = {"rounds": job.rounds, **job.timing(), **({"peers": list(job.peers)} if job.peers else {})}
    if kept := _kept_timings(job, about, wanted):
        return kept
    began = time.perf_counter()
    given = {who: str(c.path) for who, c in models.items()}
    same = {who: path for who, path in given.items() if who not in evaluation_report.SAME}
    peers, left = engines.peers(job.peers, same, job.threads or os.cpu_count() or 1, job.place / "engines")
    rounds, said, kernels, others = efficiency.measured(given, job.rounds, job.threads, say, peers)
    made_by = job.made(began)
    made_by = replace(made_by, machine={**made_by.machine, **kernels})
    found = {}
    for who, rows in rounds.items():
        engine = replace(made_by, versions={**made_by.versions, **others.get(who, {})})
        found[who] = _efficiency(about[peers[who].like if who in peers else who], rows, engine)
        records.save(job.record(f"{who}.efficiency"), found[who])
    with whole_file(job.place / NOTES) as file:
        file.write(json.dumps({"asked": wanted, "notes": left + said,
                               "engines": [who for who in found if who in peers]}).encode())
    return found, left + said


def _kept_timings(job: Job, about: dict[str, records.Model],
                  wanted: dict[str, Any]) -> tuple[dict[str, Record], list[str]] | None:
    """What `timed` gave, if it was asked for the same of the same models."""
    notes = job.place / NOTES
    kept = json.loads(notes.read_text(encoding="utf-8")) if notes.exists() else {}
    files = {who: job.record(f"{who}.efficiency") for who in (*about, *kept.get("engines", ()))}
    if not (_was_asked(kept, wanted) and all(f.exists() for f in files.values())):
        return None
    found = {who: records.load(file) for who, file in files.items()}
    same = all(found[who].model.weights == model.weights for who, model in about.items())
    return (found, list(kept["notes"])) if same else None


def _was_asked(kept: Any, wanted: dict[str, Any]) -> bool:
    """Whether what a file keeps was made for the same wishes."""
    return isinstance(kept, dict) and kept.get("asked") == wanted


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
    file, wanted = job.place / CHAINS, {"weights": weights, "prompts": job.prompts, **job.timing()}
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))
        if _was_asked(kept, wanted):
            return dict(kept)
    say("chain buckets")
    found = {**chains.measure(run, job.prompts, 100, job.threads), "asked": wanted}
    with whole_file(file) as f:
        f.write(json.dumps(found).encode())
    return found


# ---- the command ----

def main(argv: list[str]) -> int:
    """Parse, train, measure, write, print the summary."""
    args = parsed(argv)
    plan = plan_of(args)
    job = Job(Path(args.output), argv, args.threads, args.rounds, args.prompts, plan.model.context,
              pythons_of(args))
    began, runs = time.perf_counter(), Path(args.runs or job.place / "runs")
    models = contestants(job, rivals.train_all(plan, runs), runs, [Path(path) for path in args.baseline])
    others = [records.load(file) for folder in args.records for file in sorted(Path(folder).glob("*.json"))]
    models = {who: replace(c, tasks=asked(job, who, c, args.task)) for who, c in models.items()}
    speed, notes = timed(job, models)
    first = models[rivals.BITNET]
    found = spoken(job, runs / first.runs[0]["name"], first.records[0].model.weights)
    report = evaluation_report.assembled(models, speed, others, found, notes, job.made(began))
    evaluation_page.write(job.place, report)
    if args.root:
        evaluation_page.publish(Path(args.root), report)
    print(evaluation_page.summary(report))
    return DONE


def contestants(job: Job, trained: dict[str, list[dict[str, Any]]], runs: Path,
                baselines: list[Path]) -> dict[str, Contestant]:
    """Everybody, scored on the test text."""
    found: dict[str, Contestant] = {}
    for who, each in trained.items():
        paths = [stored(runs / run["name"], job.place / "models" / run["name"]) for run in each]
        scored = [tested(job, run["name"], path) for run, path in zip(each, paths)]
        found[who] = Contestant(rivals.NAMES[who], rivals.CONTESTS.get(who, ""), scored, paths[0], each)
    for path in baselines:
        name = path.resolve().name
        found[name] = Contestant(name, f"baseline {name}", [tested(job, f"baseline-{name}", path)], path)
    return found


def asked(job: Job, who: str, c: Contestant, tasks: list[str]) -> dict[str, list[Record]]:
    """{task: its records, by seed} of multiple choice, but for the narrower twin and that of equal time."""
    if who in (rivals.SMALL, rivals.LONG):
        return {}
    paths = {run["name"]: job.place / "models" / run["name"] for run in c.runs} or {f"baseline-{who}": c.path}
    return {task: [evaluated(job, name, path, Path(task).name, "--tasks", task, sha=_questions(task))
                   for name, path in paths.items()] for task in tasks}


def _questions(task: str) -> str | None:
    """Checksum of a local file of questions; None for a task of lm-evaluation-harness, which must know it."""
    place = local(task)
    if place is None:
        harness.known_tasks([task], None)
        return None
    return read_task(place).sha256


def pythons_of(args: Any) -> dict[str, str]:
    """{engine: its interpreter} of --peer."""
    own = {"transformers": args.torch_python, "llama.cpp": args.llama_python}
    return {name: own[name] for name in dict.fromkeys(args.peer)}


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
    parser.add_argument("--task", type=text, action="append", default=[], metavar="TASK",
                        help="multiple choice to score too, as evaluate --tasks; may be given several times")
    parser.add_argument("--peer", action="append", default=[], choices=tuple(engines.ENGINES),
                        help="time the same models in another engine too; may be given several times")
    for name in ("llama-python", "torch-python"):
        parser.add_argument(f"--{name}", type=text, default=sys.executable, metavar="PYTHON",
                            help="interpreter that has this peer (default: this one)")
    parser.add_argument("--runs", type=text, metavar="DIR", help="where the runs are (default: DIR/runs)")
    parser.add_argument("--root", type=text, metavar="DIR", help="write it into the docs of this clone too")
    parser.add_argument("--preset", type=text, default="nano", help="BitNet's shape (default: nano)")
    for name, default, what in (("steps", 300, "of training"), ("seeds", 3, "of each trained model"),
                                ("jobs", 1, "runs at a time"), ("rounds", 5, "of timing"),
                                ("prompts", 12, "of chain buckets, the first a warm-up"),
                                ("threads", None, "to run with")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default or 'all'})")
    args = parser.parse_args(argv)
    if args.data:
        os.environ[DATA] = args.data
    check_args(args)
    check_inputs(args)
    return args


def check_args(args: Any) -> None:
    """Raise CheckError for what has no meaning, before hours are spent."""
    for name in ("steps", "jobs", "prompts", "threads"):
        value = getattr(args, name)
        check(value is None or value > 0, f"--{name} must be greater than 0", value, "use 1 or more")
    for name, least in (("seeds", 1), ("rounds", 2)):
        check(least <= getattr(args, name) <= max(T95), f"--{name} must be {least} to {max(T95)}",
              getattr(args, name), "use 3")
    check(not args.root or Path(args.root, evaluation_page.PAGE).is_file(), "--root must be a clone",
          args.root, "name the folder that holds docs/")
    for path in args.baseline:
        check(Path(path).exists(), "a baseline must exist", path, "check the path")
    for path in args.records:
        check(Path(path).is_dir(), "--records must be a folder", path, "check the path")
    names = [*rivals.NAMES, *(Path(path).resolve().name for path in args.baseline)]
    check(len(set(names)) == len(names), "baselines must have names of their own", ", ".join(names),
          "rename the folder")
    tasks = [Path(task).name for task in args.task]
    check(len(set(tasks)) == len(tasks), "tasks must have names of their own", ", ".join(tasks),
          "rename a file, or leave out what is there twice")
    check("," not in "".join(args.task), "--task must be one task", ", ".join(args.task),
          "give it several times")


def check_inputs(args: Any) -> None:
    """Raise CheckError for files that would be refused after the training."""
    for folder in args.records:
        for file in Path(folder).glob("*.json"):
            records.load(file)
    for task in args.task:
        _questions(task)
    for engine, python in pythons_of(args).items():
        say(f"peer: {engines.greeted(engine, python)}")
    context = lookup(PRESETS, args.preset, "preset").model.context
    for path in args.baseline:
        most = open_model(path).cfg.context
        check(most >= context, f"a baseline must read {context} tokens at once, as {args.preset} does",
              f"{most} of {path}", "give another baseline or --preset")


if __name__ == "__main__":
    sys.exit(run_command(main))
