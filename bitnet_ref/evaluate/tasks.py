"""Multiple-choice questions from local files: JSON lines of ARC, PIQA and HellaSwag, and files of requests.

The texts that a model sees are those of lm-evaluation-harness: "Question: ...\\nAnswer:" and " choice". What
a line must have is checked before anything is scored, and an error names file and line.
A file of requests has a line for each choice, as OLMo-in-loop-evals writes them; its second half asks for the
same choices after "Answer:" alone.
Read after: evaluate/lines. Read next: evaluate/kept.
"""

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.checks import check
from bitnet_ref.data.atomic import held_in
from bitnet_ref.data.download import DATA
from bitnet_ref.evaluate.lines import FIX, LARGEST, Row, rows_in, unpacked

MOST = 26                        # choices: as many as there are letters
WITHOUT = 1_000_000              # doc_id of a question's choices after no question, less its own
SUFFIXES = (".jsonl", ".jsonl.gz")


class Question(NamedTuple):
    """`choices`: texts after `context`, with the space before them. `answer`: which is right.

    `without`: a context that asks nothing, where the task has one.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    without: str | None = None

    @property
    def sizes(self) -> list[int]:
        """Characters of each choice, without the space before it."""
        return [len(c.removeprefix(" ")) for c in self.choices]


class Task(NamedTuple):
    """`name`: of the file, without suffixes; `sha256`: of the file as it lies there."""

    name: str
    file: str
    sha256: str
    questions: list[Question]

    @property
    def chance(self) -> float:
        """The share that guessing gets right."""
        return sum(1 / len(q.choices) for q in self.questions) / len(self.questions)


def local(task: str) -> Path | None:
    """The file that `task` names: a path, or a name in $BITNET_REF_DATA/arc; None for neither.

    >>> str(local("questions.jsonl"))
    'questions.jsonl'
    >>> print(local("piqa"))
    None
    """
    if Path(task).is_file() or task.endswith(SUFFIXES):
        return Path(task)
    root = os.environ.get(DATA)
    places = [Path(root, "arc", task + suffix) for suffix in SUFFIXES] if root and "/" not in task else []
    return next((p for p in places if p.is_file()), None)


def read_task(path: str | Path) -> Task:
    """The questions of a file. Raises CheckError: unreadable, too large, a line that is no question.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "mine.jsonl")
    >>> _ = path.write_text('{"goal": "Boil water.", "sol1": "a kettle", "sol2": "a hat", "label": 0}')
    >>> task = read_task(path)
    >>> task.questions[0].context, task.questions[0].choices, task.chance
    ('Question: Boil water.\\nAnswer:', (' a kettle', ' a hat'), 0.5)
    """
    path = Path(path)
    data = held_in(path, LARGEST, "a task", "give a smaller part")
    rows = list(rows_in(unpacked(data, path, LARGEST, "a task"), path.name))
    check(len(rows) > 0, f"{path.name} must hold questions", "none", "give a file of JSON lines")
    first = rows[0][1]
    if "request_type" in first:
        questions = _requests(rows)
    else:
        kind = next((read for keys, read in KINDS if keys <= first.keys()), None)
        check(kind is not None, f"line 1 of {path.name} must have the keys of a known task: "
              + ", or ".join(" ".join(sorted(keys)) for keys, _ in KINDS), " ".join(map(str, first))[:100],
              "use lm-evaluation-harness for others, with --task-folder")
        assert kind is not None
        questions = [_checked(kind(row, where), where) for where, row in rows]
    name = re.sub(r"\.jsonl(\.gz)?$", "", path.name)
    return Task(name, path.name, hashlib.sha256(data).hexdigest(), questions)


def _checked(question: Question, where: str) -> Question:
    n = len(question.choices)
    check(2 <= n <= MOST, f"{where} must have 2 to {MOST} choices", n, FIX)
    for i, choice in enumerate(question.choices):
        check(choice.strip() != "", f"choice {i + 1} of {where} must not be empty", repr(choice), FIX)
    check(0 <= question.answer < n, f"the answer of {where} must be one of its {n} choices", question.answer,
          FIX)
    return question


def _text(row: Row, key: str, where: str) -> str:
    value = row.get(key)
    check(isinstance(value, str) and value.strip() != "", f"{key} of {where} must be a text",
          "nothing" if key not in row else repr(value)[:50], FIX)
    assert isinstance(value, str)
    return value


def _texts(row: Row, key: str, where: str) -> list[str]:
    value = row.get(key)
    check(isinstance(value, list) and all(isinstance(v, str) for v in value),
          f"{key} of {where} must be a list of texts", repr(value)[:50], FIX)
    assert isinstance(value, list)
    return value


def _number(row: Row, key: str, where: str) -> int:
    """An integer, or a text that spells one, as some files have it."""
    value = row.get(key)
    fits = type(value) is int or (isinstance(value, str) and re.fullmatch(r"\d{1,9}", value, re.ASCII))
    check(bool(fits), f"{key} of {where} must be the number of the answer", repr(value)[:50], FIX)
    assert value is not None
    return int(value)


def _arc(row: Row, where: str) -> Question:
    held: Any = row["choices"] if isinstance(row.get("choices"), dict) else {}
    texts, labels = _texts(held, "text", where), _texts(held, "label", where)
    check(len(texts) == len(labels) == len(set(labels)), f"{where} must have a label of its own for each "
          "choice", f"{len(texts)} choices, labels {' '.join(labels)}"[:80], FIX)
    key = _text(row, "answerKey", where)
    check(key in labels, f"answerKey of {where} must be one of {' '.join(labels)}"[:200], repr(key)[:50], FIX)
    return Question(f"Question: {_text(row, 'question', where)}\nAnswer:", tuple(f" {t}" for t in texts),
                    labels.index(key))


def _piqa(row: Row, where: str) -> Question:
    choices = tuple(" " + _text(row, key, where) for key in ("sol1", "sol2"))
    return Question(f"Question: {_text(row, 'goal', where)}\nAnswer:", choices, _number(row, "label", where))


def _hellaswag(row: Row, where: str) -> Question:
    begin, end = _text(row, "ctx_a", where), row.get("ctx_b")
    check(isinstance(end, str), f"ctx_b of {where} must be a text", repr(end)[:50], FIX)
    context = f"{_text(row, 'activity_label', where)}: {begin} {str(end).capitalize()}"
    return Question(_plain(context), tuple(f" {_plain(t)}" for t in _texts(row, "endings", where)),
                    _number(row, "label", where))


def _plain(text: str) -> str:
    """Without the marks that the source of HellaSwag has left in it, as the harness removes them."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _requests(rows: list[tuple[str, Row]]) -> list[Question]:
    """The requests of each doc_id, in the order of idx, are a question's choices."""
    groups: dict[int, list[tuple[str, Row]]] = {}
    for where, row in rows:
        held: Any = row.get("request")
        fits = row.get("request_type") == "loglikelihood" and isinstance(held, dict)
        check(fits, f"{where} must be a request for a loglikelihood", repr(row.get("request_type"))[:50], FIX)
        group = groups.setdefault(_number(row, "doc_id", where), [])
        check(row.get("idx") == len(group), f"idx of {where} must count the choices of its doc_id",
              repr(row.get("idx"))[:50], FIX)
        group.append((where, row))
    found = {}
    for doc, group in groups.items():
        where, row = group[0]
        contexts = {_text(r["request"], "context", w) for w, r in group}
        labels = {_number(r, "label", w) for w, r in group}
        check(len(contexts) == len(labels) == 1, f"the requests of doc_id {doc}, from {where} on, must have "
              "one context and one label", f"{len(contexts)} and {len(labels)}", FIX)
        choices = tuple(_text(r["request"], "continuation", w) for w, r in group)
        found[doc] = _checked(Question(contexts.pop(), choices, labels.pop()), where)
    return [q._replace(without=_without(found.get(doc + WITHOUT), q)) for doc, q in found.items()
            if doc - WITHOUT not in found]


def _without(other: Question | None, question: Question) -> str | None:
    return other.context if other is not None and other.choices == question.choices else None


KINDS: tuple[tuple[set[str], Callable[[Row, str], Question]], ...] = (
    ({"question", "choices", "answerKey"}, _arc),
    ({"goal", "sol1", "sol2", "label"}, _piqa),
    ({"activity_label", "ctx_a", "ctx_b", "endings", "label"}, _hellaswag),
)
