"""The tasks of a command line, scored: each a local file of questions, or one of lm-evaluation-harness.

What the two have in common is the record. A task that is none is refused before a model is loaded.
Read after: evaluate/harness. Read next: evaluate/compressors.
"""

import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

from bitnet_ref.checks import check
from bitnet_ref.evaluate import harness
from bitnet_ref.evaluate.kept import kept_file
from bitnet_ref.evaluate.provenance import made, model_facts
from bitnet_ref.evaluate.records import Data, Record
from bitnet_ref.evaluate.tasks import Task, local, read_task
from bitnet_ref.evaluate.zero_shot import metrics, score_task
from bitnet_ref.generate.language_model import load

VERSION = "1"                    # of what is kept of an interrupted scoring


def run_tasks(args: Namespace, argv: list[str]) -> tuple[list[Record], tuple[Path, ...]]:
    """A record for each of --tasks, and the files in which scored choices were kept.

    Raises CheckError for a task that is none, before a model is loaded; as score_task and load.

    >>> run_tasks(Namespace(tasks=","), [])
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: --tasks must name tasks; got ,; give files or names, with commas between
    """
    tasks, others, known = _asked(args)
    model = load(args.model, args.backend, args.threads, args.int8_head)
    facts = model_facts(model, args.model)
    identity = [VERSION, facts.weights, facts.vocabulary, f"{args.backend} {args.int8_head} {args.first}"]
    keep = partial(kept_file, args.output, *identity) if args.output else None
    records, files = [], []
    for task in tasks:
        began, kept = time.monotonic(), keep(task.sha256) if keep else None
        figures, items, fields = metrics(task, score_task(model, task, args.batch, args.first, kept))
        records.append(Record("choice", task.name, facts,
                              made("evaluate", argv, time.monotonic() - began, args.backend),
                              Data(task.file, task.sha256, len(task.questions), {"first": args.first}),
                              figures, items, fields))
        files += [kept] if kept else []
    if others:
        answers = harness.adapted(model, args.batch, args.first, keep)
        records += harness.run(answers, facts, others, known, args, argv)
        files += answers.files
    return records, tuple(files)


def _asked(args: Namespace) -> tuple[list[Task], list[str], Any]:
    """The tasks from local files, no longer than --limit; the names of the others, and what knows those."""
    names = [name for name in args.tasks.split(",") if name]
    check(len(names) > 0, "--tasks must name tasks", args.tasks, "give files or names, with commas between")
    for flag in ("limit", "batch"):
        value = getattr(args, flag)
        check(value is None or value > 0, f"--{flag} must be greater than 0", value, "use 1 or more")
    places = {name: local(name) for name in names}
    tasks = [read_task(place) for place in places.values() if place is not None]
    others = [name for name, place in places.items() if place is None]
    check(len({t.name for t in tasks} | set(others)) == len(names), "--tasks must have names of their own",
          args.tasks, "leave out what is there twice, or rename a file")
    known = harness.known_tasks(others, args.task_folder) if others else None
    return [t._replace(questions=t.questions[:args.limit]) for t in tasks], others, known
