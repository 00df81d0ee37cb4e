"""Accuracy on multiple choice: the answer is the choice that the model finds likeliest after the question.

acc takes the sum of log-probabilities; acc_norm divides it by the choice's characters, since a long text is
less likely than a short one; acc_uncond, where the file has it, by what the choice has without the question.
Read after: evaluate/kept. Read next: evaluate/harness.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitnet_ref.evaluate.kept import score_requests
from bitnet_ref.evaluate.likelihood import Request, encode_pairs
from bitnet_ref.evaluate.records import Metric
from bitnet_ref.evaluate.tasks import Question, Task
from bitnet_ref.generate.language_model import LanguageModel

FIELDS = ["correct", "correct_norm", "correct_uncond"]
METRICS = ["acc", "acc_norm", "acc_uncond"]


class Scored(NamedTuple):
    """For each question the log-probabilities of its choices; then, where the task has it, without it.

    `cut`: how many contexts did not fit into the model's. `changed`: of how many texts the ids that are
    scored spell another.
    """

    found: list[list[float]]
    cut: int
    changed: int


def score_task(model: LanguageModel, task: Task, batch: int = 16, first: bool = True,
               kept: Path | None = None, shared: bool = True) -> Scored:
    """Score every choice. `first`: texts begin with the model's first id. The rest: as score_requests.

    Raises CheckError as encode_pairs does, before anything is scored, and as likelihoods.

    >>> from bitnet_ref.generate.example import speaker
    >>> task = Task("bread", "bread.jsonl", "", [Question("Bread is", (" made", " sung"), answer=0)])
    >>> [len(choices) for choices in score_task(speaker(), task).found]
    [2]
    """
    pairs = [_pairs(q) for q in task.questions]
    texts = [pair for of_one in pairs for pair in of_one]
    requests = encode_pairs(model.tokenizer, texts, model.first if first else None)
    found = [value.logprob for value in score_requests(model.transformer, requests, task.name, batch, kept,
                                                       shared)]
    ends = np.cumsum([0] + [len(of_one) for of_one in pairs]).tolist()
    changed = sum(model.tokenizer.decode([*r.context[first:], *r.continuation]) != context + choice
                  for r, (context, choice) in zip(requests, texts))
    return Scored([found[a:b] for a, b in pairwise(ends)], count_cut(requests, model.cfg.context), changed)


def _pairs(q: Question) -> list[tuple[str, str]]:
    """The choices after the question, then without it."""
    return [(context, choice) for context in (q.context, q.without) if context is not None
            for choice in q.choices]


def count_cut(requests: Sequence[Request], context: int) -> int:
    """How many of them lose the begin of their context.

    >>> count_cut([Request((1, 2, 3), (4,)), Request((1,), (4,))], context=2)
    1
    """
    return sum(len(r.context) + len(r.continuation) > context + 1 for r in requests)


def correct(q: Question, found: Sequence[float]) -> list[float]:
    """Whether the answer wins: by sum, by characters, and without the question if it was so scored.

    >>> correct(Question("Bread is", (" made", " sung by choirs"), answer=1), [-3.0, -4.0])  # sum, per letter
    [0.0, 1.0]
    """
    p = np.array(found[:len(q.choices)])
    ways = [p, p / np.array(q.sizes)]                                           # (ZS.1)
    if q.without is not None:
        ways.append(p - np.array(found[len(q.choices):]))                       # (ZS.2)
    return [float(np.argmax(way) == q.answer) for way in ways]


def metrics(task: Task, scored: Scored) -> tuple[dict[str, Metric], list[list[float]], list[str]]:
    """{name: figure}, the values of each question, and their names: acc, acc_norm, perhaps acc_uncond.

    >>> task = Task("bread", "bread.jsonl", "", [Question("Bread is", (" made", " sung"), answer=0)])
    >>> figures, rows, names = metrics(task, Scored([[-1.0, -2.0]], cut=0, changed=0))
    >>> figures["acc"].value, figures["acc"].chance, rows, names
    (1.0, 0.5, [[1.0, 1.0]], ['correct', 'correct_norm'])
    """
    rows = [correct(q, found) for q, found in zip(task.questions, scored.found)]
    width = min(map(len, rows))
    rows = [row[:width] for row in rows]
    found = {name: figure([row[i] for row in rows], task.chance) for i, name in enumerate(METRICS[:width])}
    for name, n in (("contexts cut", scored.cut), ("texts changed by the tokenizer", scored.changed)):
        if n:
            found[name] = Metric(n, sum(map(len, scored.found)), better="lower")
    return found, rows, FIELDS[:width]


def figure(values: Sequence[float], chance: float | None) -> Metric:
    """A mean of values, and the standard error of that mean.

    >>> figure([1.0, 0.0, 1.0, 0.0], chance=0.25).stderr.__round__(4)
    0.2887
    """
    n, mean = len(values), float(np.mean(values))
    stderr = math.sqrt(float(np.var(values, ddof=1)) / n) if n > 1 else None    # (ZS.3)
    return Metric(mean, n, stderr, "higher", chance)
