"""python -m bitnet_ref.bench.scoring --task arc_easy.validation
python -m bitnet_ref.bench.scoring --task arc_easy.validation --rounds 3 --root . --threads 2

How long multiple choice takes, and what it saves that the choices of a question share its reading: the same
task both ways, by turns, processor time and the clock's. The model has random weights, as what it computes
does not depend on them; the scores must be the same. --root writes docs/evaluation.md of that clone.
Read after: bench/compression. Read next: bench/size.
"""

import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bitnet_ref import kernels
from bitnet_ref.bench.page import put
from bitnet_ref.bench.random_model import NANO, random_weights
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command, text
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.evaluate.provenance import machine
from bitnet_ref.evaluate.tasks import Task, local, read_task
from bitnet_ref.evaluate.zero_shot import score_task
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.model import Transformer

WAYS = {"shared": True, "each for itself": False}


class Times(NamedTuple):
    """Seconds of a way, of each round: by the clock, and of the processor."""

    clock: list[float]
    processor: list[float]


def model_for(task: Task, backend: str, threads: int | None) -> LanguageModel:
    """A model of nano's shape with a tokenizer of the task's own words."""
    tokenizer = train_bpe([q.context + c for q in task.questions for c in q.choices], NANO.vocab_size)
    cfg = replace(NANO, vocab_size=tokenizer.vocab_size)
    return LanguageModel(Transformer(cfg, random_weights(cfg), kernels.load(backend, threads)), tokenizer)


def measure(task: Task, model: LanguageModel, rounds: int) -> dict[str, Times]:
    """The times of both ways, by turns, after one of each that compiles. Raises CheckError where the scores
    are not the same."""
    scores = {way: score_task(model, task, shared=shared).found for way, shared in WAYS.items()}
    check(scores["shared"] == scores["each for itself"], "both ways must find the same scores", "others",
          "use a backend whose cached decode equals the full forward, as numba")
    times = {way: Times([], []) for way in WAYS}
    for _ in range(rounds):
        for way, shared in WAYS.items():
            began = time.perf_counter(), time.process_time()
            score_task(model, task, shared=shared)
            times[way].clock.append(time.perf_counter() - began[0])
            times[way].processor.append(time.process_time() - began[1])
    return times


def block(task: Task, model: LanguageModel, times: dict[str, Times], threads: int) -> str:
    """The figures as Markdown."""
    rows = [f"| {way} | {statistics.median(t.clock):.1f} | {statistics.median(t.processor):.1f} |"
            for way, t in times.items()]
    ratios = [b / a for a, b in zip(times["shared"].processor, times["each for itself"].processor)]
    return "\n".join([
        f"{task.file}, {len(task.questions):,} questions with "
        f"{sum(len(q.choices) for q in task.questions):,} choices; a model of nano's shape, vocabulary "
        f"{model.cfg.vocab_size:,}, on {threads} threads of "
        f"{machine()['cpu']}; medians of {len(ratios)} rounds.", "",
        "| the question is read | seconds | processor seconds |", "|---|---|---|", *rows, "",
        f"Sharing takes {statistics.median(ratios):.2f} times less of the processor (from {min(ratios):.2f} "
        f"to {max(ratios):.2f} in the rounds); the scores are the same bits."])


def main(argv: list[str]) -> int:
    """Parse, measure, print; write the page if asked."""
    parser = Parser("python -m bitnet_ref.bench.scoring", __doc__)
    parser.add_argument("--task", type=text, default="arc_easy.validation",
                        help="a file of questions, or the name of one in $BITNET_REF_DATA/arc")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, whose medians count (default: 5)")
    parser.add_argument("--backend", type=text, default="numba", help="implementation (default: numba)")
    parser.add_argument("--threads", type=int, help="threads to run with (default: all processors)")
    parser.add_argument("--root", type=text, metavar="DIR", help="write the figures into this clone's docs")
    args = parser.parse_args(argv)
    check(args.rounds > 0, "--rounds must be greater than 0", args.rounds, "use 1 or more")
    place = local(args.task)
    check(place is not None, "--task must be a file of questions", args.task, "give its path")
    assert place is not None
    task = read_task(place)
    model = model_for(task, args.backend, args.threads)
    found = block(task, model, measure(task, model, args.rounds), kernels.about(args.backend)["threads"])
    print(found)
    if args.root:
        put(Path(args.root) / "docs" / "evaluation.md", found, "bench.scoring")
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
