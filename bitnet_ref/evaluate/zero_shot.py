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
from bitnet_ref.evaluate.likelihood import Request, encode_pair
from bitnet_ref.evaluate.records import Metric
from bitnet_ref.evaluate.tasks import Question, Task
from bitnet_ref.generate.language_model import LanguageModel

FIELDS = ["correct", "correct_norm", "correct_uncond"]
METRICS = ["acc", "acc_norm", "acc_uncond"]


class Scored(NamedTuple):
    """For each question the log-probabilities of its choices; then, where the task has it, without it.

    `cut`: how many contexts did not fit into the model's. `changed`: how many texts do not come back from the
    tokenizer as they were.
    """

    found: list[list[float]]
    cut: int
    changed: int


def score_task(model: LanguageModel, task: Task, batch: int = 16, first: bool = True,
               kept: Path | None = None, shared: bool = True) -> Scored:
    """Score every choice. `first`: texts begin with the model's first id. The rest: as score_requests.

    Raises CheckError as encode_pair does, before anything is scored, and as likelihoods.
    """
    begin = model.first if first else None
    asked = [_encoded(model, q, begin) for q in task.questions]
    requests = [r for rs in asked for r in rs]
    found = [value.logprob for value in score_requests(model.transformer, requests, task.name, batch, kept,
                                                       shared)]
    ends = np.cumsum([0] + [len(rs) for rs in asked]).tolist()
    return Scored([found[a:b] for a, b in pairwise(ends)], count_cut(requests, model.cfg.context),
                  sum(_changed(model, q) for q in task.questions))


def count_cut(requests: Sequence[Request], context: int) -> int:
    """How many of them lose the begin of their context."""
    return sum(len(r.context) + len(r.continuation) > context + 1 for r in requests)


def _encoded(model: LanguageModel, q: Question, begin: int | None) -> list[Request]:
    """The choices after the question, then without it."""
    return [encode_pair(model.tokenizer, context, choice, begin)
            for context in (q.context, q.without) if context is not None for choice in q.choices]


def _changed(model: LanguageModel, q: Question) -> int:
    """How many of the question's texts are others after encoding and decoding."""
    texts = [q.context + choice for choice in q.choices]
    return sum(model.tokenizer.decode(ids) != text
               for ids, text in zip(model.tokenizer.encode_batch(texts), texts))


def correct(q: Question, found: Sequence[float]) -> list[float]:
    """Whether the answer wins: by sum, by characters, and without the question if it was so scored."""
    p = np.array(found[:len(q.choices)])
    ways = [p, p / np.array(q.sizes)]                                           # (LL.2)
    if q.without is not None:
        ways.append(p - np.array(found[len(q.choices):]))                       # (LL.3)
    return [float(np.argmax(way) == q.answer) for way in ways]


def metrics(task: Task, scored: Scored) -> tuple[dict[str, Metric], list[list[float]], list[str]]:
    """{name: figure}, the values of each question, and their names: acc, acc_norm, perhaps acc_uncond."""
    rows = [correct(q, found) for q, found in zip(task.questions, scored.found)]
    width = min(map(len, rows))
    rows = [row[:width] for row in rows]
    found = {name: figure([row[i] for row in rows], task.chance) for i, name in enumerate(METRICS[:width])}
    for name, n in (("contexts cut", scored.cut), ("texts changed by the tokenizer", scored.changed)):
        if n:
            found[name] = Metric(n, sum(len(q.choices) for q in task.questions), better="lower")
    return found, rows, FIELDS[:width]


def figure(values: Sequence[float], chance: float | None) -> Metric:
    """A mean of values, and the standard error of that mean."""
    n, mean = len(values), float(np.mean(values))
    stderr = math.sqrt(float(np.var(values, ddof=1)) / n) if n > 1 else None    # (LL.4)
    return Metric(mean, n, stderr, "higher", chance)
