"""Notebook 10: models, a text and questions for a comparison that one can wait for; the notebook's questions.

All that scores is the evaluation's and all that judges the report's (bench/interval, bench/contest). Here is
what they are fed with: small models of three seeds, a short text, questions that are made by a rule.
Read after: walk/gpu_kernels. Read next: walk/pictures.
"""

import hashlib
import math
import time
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench import rivals
from bitnet_ref.bench.contest import Row
from bitnet_ref.bench.interval import around, delta
from bitnet_ref.config import ModelConfig, TrainConfig
from bitnet_ref.data.dataset import Dataset
from bitnet_ref.evaluate.perplexity import Score
from bitnet_ref.evaluate.provenance import made
from bitnet_ref.evaluate.records import Data, Metric, Model, Record
from bitnet_ref.evaluate.sliding import FIELDS, slide, tokenised
from bitnet_ref.evaluate.tasks import Question as Asked
from bitnet_ref.evaluate.tasks import Task
from bitnet_ref.evaluate.zero_shot import figure, metrics, score_task
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.model import Transformer
from bitnet_ref.model.cost import count_params
from bitnet_ref.walk import twin
from bitnet_ref.walk.puzzle import Question, choice, number, works_like

STEPS, SEEDS = 300, range(3)
TEXT_BYTES, ASKED = 20_000, 60
STEM, CHOICES, LONGEST = 6, 4, 12                          # words of a context; choices; letters of a word
Records = list[Record]


class Side(NamedTuple):
    """Of one shape a model for each seed, what they scored, and processor seconds of an update."""

    models: list[Transformer]
    texts: Records
    choices: Records
    seconds: float


def shapes() -> dict[str, ModelConfig]:
    """BitNet; its twin of as many parameters; a narrower float model of as many bytes.

    >>> {who: round(rivals.stored_bytes(shape) / 1000) for who, shape in shapes().items()}
    {'bitnet': 45, 'twin': 133, 'small-twin': 44}
    """
    small = twin.SMALL
    return {rivals.BITNET: small, rivals.TWIN: replace(small, linear="full"),
            rivals.SMALL: rivals.narrower(small)}


def side(name: str, shape: ModelConfig, data: Dataset, text: str, task: Task, steps: int = STEPS) -> Side:
    """Train a model of `shape` for each seed, at the rate of its kind in the report, and score it.

    >>> data = twin.text()
    >>> found = side("bitnet", twin.SMALL, data, "A short text.", asked("one two " * 20, 2), 1)
    >>> len(found.models), len(found.texts), len(found.choices)
    (3, 3, 3)
    """
    how = TrainConfig(steps=steps, batch=4, lr=rivals.RATES[shape.linear])
    began = time.process_time()
    models = [twin.trained(shape.linear, data, how, seed, shape) for seed in SEEDS]
    seconds = (time.process_time() - began) / (steps * len(models))
    return Side(models, [on_text(name, model, text, data) for model in models],
                [on_task(name, model, task, data) for model in models], seconds)


# ---- what is scored ----

def held_out(data: Dataset, n: int = TEXT_BYTES) -> str:
    """Whole lines of the held-out text, at most `n` bytes from its begin.

    >>> len(held_out(twin.text(), 500).encode()) <= 500
    True
    """
    text = data.val_text.read_bytes()[:n].decode("utf-8", "ignore")
    return text[:text.rindex("\n") + 1]


def asked(text: str, n: int = ASKED, seed: int = 0) -> Task:
    """Questions by a rule: some words of the text, and which words follow. Wrong choices follow elsewhere.

    Each choice has two to five words. Words of more than LONGEST letters are left out of the text, so that
    all fit into the models' context.

    >>> task = asked(" ".join(map(str, range(100))), 4)
    >>> len(task.questions), task.chance
    (4, 0.25)
    """
    rng, words = np.random.default_rng(seed), [w for w in text.split() if len(w) <= LONGEST]
    places = rng.permutation(len(words) // (2 * STEM) - 1)[:n] * 2 * STEM
    questions = []
    for at in places.tolist():
        others = rng.choice(places[places != at], CHOICES - 1, replace=len(places) <= CHOICES)
        ends = [" " + " ".join(words[s + STEM:s + STEM + k])
                for s, k in zip([at, *others.tolist()], rng.integers(2, 6, CHOICES).tolist())]
        order = rng.permutation(CHOICES).tolist()
        questions.append(Asked(" ".join(words[at:at + STEM]), tuple(ends[i] for i in order), order.index(0)))
    return Task("what follows", "made by a rule", _sha(repr(questions)), questions)


def on_text(name: str, model: Transformer, text: str, data: Dataset) -> Record:
    """The record of a model on a text, in windows of its context that do not overlap.

    >>> data = twin.text()
    >>> model = twin.trained("full", data, TrainConfig(steps=1, batch=1, warmup=0))
    >>> on_text("new", model, "A short text.", data).item_fields
    ['nats', 'tokens', 'bytes', 'words']
    """
    began, length = time.monotonic(), model.cfg.context
    found = slide(model, [tokenised(text, data.tokenizer, data.tokenizer.eos)], length, length)
    values = {"bits per byte": found.score.bits_per_byte, "perplexity": found.score.perplexity}
    return Record("perplexity", "held-out text", _facts(name, model, data), _made(began),
                  Data("held-out text", _sha(text), len(found.rows), {"context": length, "stride": length}),
                  {k: Metric(v, len(found.rows), better="lower") for k, v in values.items() if v is not None},
                  found.rows, list(FIELDS))


def on_task(name: str, model: Transformer, task: Task, data: Dataset) -> Record:
    """The record of a model on a task.

    >>> data = twin.text()
    >>> model = twin.trained("full", data, TrainConfig(steps=1, batch=1, warmup=0))
    >>> list(on_task("new", model, asked("one two three " * 20, 3), data).metrics)
    ['acc', 'acc_norm']
    """
    began = time.monotonic()
    figures, rows, names = metrics(task, score_task(LanguageModel(model, data.tokenizer), task))
    return Record("choice", task.name, _facts(name, model, data), _made(began),
                  Data(task.file, task.sha256, len(task.questions), {"first": True}), figures, rows, names)


def _facts(name: str, model: Transformer, data: Dataset) -> Model:
    assert model.params is not None
    weights = hashlib.sha256(model.params.flat.tobytes()).hexdigest()
    return Model(name, "notebook", weights, model.cfg.linear, count_params(model.cfg).total,
                 round(rivals.stored_bytes(model.cfg)), data.tokenizer.vocabulary, model.cfg.vocab_size,
                 model.cfg.context)


def _made(began: float) -> Any:
    return made("walk", [], time.monotonic() - began, "numpy")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def line(row: Row) -> str:
    """A row of a report: what and the verdict; the delta and its interval; what weakens it.

    >>> print(line(Row("equal bytes", "text", "acc", "higher", "a", "b", 0.4, 0.5, [0.4], [0.5], -20.0, -30.0,
    ...                -9.0, "loss", 250, "questions")))
    equal bytes, acc: loss
        -20.0 % [-30.0, -9.0]
    """
    ends = "" if row.low is None or row.high is None else f" [{row.low:+.1f}, {row.high:+.1f}]"
    found = [] if row.delta is None else [f"{row.delta:+.1f} %{ends}"]
    return "\n    ".join([f"{row.contest}, {row.metric}: {row.verdict}", *found, *row.flags])


# ---- the questions ----

def _bits(nats: float, n_bytes: int) -> float:
    return Score(nats, 1, n_bytes, 2).bits_per_byte


def _pick(logprobs: np.ndarray, sizes: np.ndarray) -> int:
    return int(np.argmax(logprobs / sizes))


def _stderr(p: float, n: int) -> float:
    found = figure([1.0] * round(p * n) + [0.0] * (n - round(p * n)), None).stderr
    assert found is not None
    return found


def _delta(ours: float, theirs: float) -> float:
    return float(delta(ours, theirs, "lower"))


QUESTIONS = [
    Question("Write `bits(nats, n_bytes)`: bits per byte (PP.1) of a text of so many bytes, on which the "
             "loss sums up to so many nats.", works_like(_bits, (700.0, 400), (1.0, 1)),
             "a nat is 1 / ln 2 bits", lambda nats, n_bytes: nats / n_bytes / math.log(2)),
    Question("One text: to model A it is 1,000 tokens at 3.0 nats each, to model B 1,500 tokens at 2.2 nats "
             "each. Which predicts the text better, \"A\" or \"B\"?",
             choice("A" if 1000 * 3.0 < 1500 * 2.2 else "B",
                    {"B": "Its perplexity per token is lower, but it has more tokens to predict"}),
             "sum the nats that each spends on the whole text", "A"),
    Question("Write `pick(logprobs, sizes)`: which choice acc_norm takes, by (ZS.1), from the "
             "log-probability of each and its characters.",
             works_like(_pick, (np.array([-9.0, -10.0, -30.0]), np.array([3, 5, 20])),
                        (np.array([-4.0, -9.0]), np.array([4, 8]))),
             "the largest log-probability of a character, not the largest sum",
             lambda logprobs, sizes: np.argmax(np.array(logprobs) / sizes)),
    Question("Write `stderr(p, n)`: the standard error (ZS.3) of a share p of n questions that are right.",
             works_like(_stderr, (0.25, 100), (0.5, 4)),
             "values of 0 and 1 with mean p have the variance p (1 - p) n / (n - 1); that of their mean is "
             "one n-th of it", lambda p, n: math.sqrt(p * (1 - p) / (n - 1))),
    Question("Write `by(ours, theirs)`: by how many percent our bits per byte are better than theirs (EV.2).",
             works_like(_delta, (1.9, 2.0), (2.2, 2.0)),
             "fewer is better: positive if ours are fewer, as a share of theirs",
             lambda ours, theirs: 100 * (theirs - ours) / theirs),
    Question("Three seeds give deltas of 1, 2 and 3 %. Where does the 95 % interval of their mean begin?",
             number(around([1.0, 2.0, 3.0]).low, 0.01),
             "mean less 4.303 standard errors: Student's t with 2 degrees of freedom; their standard "
             "deviation, with n - 1, is 1", 2 - 4.303 / math.sqrt(3)),
    Question("A delta of +2 % has the interval [-1, +5] %. What is that: \"a win\", \"equal\" or "
             "\"unknown\"?",
             choice("unknown", {"a win": "Zero lies inside: it might as well be a loss",
                                "equal": "It might be 5 % better"}),
             "does the interval hold zero, and what else does it hold?", "unknown"),
]
