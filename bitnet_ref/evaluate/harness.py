"""Our models in lm-evaluation-harness (library lm_eval, extra `eval`): its tasks, prompts and metrics.

The library asks for log-likelihoods and texts; what answers is `Answers`, which becomes one of its models
when the library is there. Task files are YAML and may name Python code, which the library runs: use those of
people whom you trust. With a folder of such files nothing is fetched.
Read after: evaluate/zero_shot. Read next: evaluate/choice.
"""

import hashlib
import math
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.checks import CheckError, check
from bitnet_ref.evaluate.kept import score_requests
from bitnet_ref.evaluate.likelihood import Likelihood, Request, encode_pairs
from bitnet_ref.evaluate.provenance import made
from bitnet_ref.evaluate.records import Data, Metric, Model, Record
from bitnet_ref.evaluate.zero_shot import count_cut
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.generate.sampling import Sampling
from bitnet_ref.generate.together import together

INSTALL = 'in a clone, pip install ".[eval]"'
MOST_TOKENS = 256                # of a text, where the task does not say
ITEM_NAMES = {"acc": "correct", "acc_norm": "correct_norm"}


def library() -> Any:
    """lm_eval. Raises CheckError where it is missing.

    >>> library().__name__                                       # needs lm_eval
    'lm_eval'
    """
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as e:
        raise CheckError("tasks that are no local files must be scored by lm-evaluation-harness; got no "
                         f"library lm_eval ({e}); {INSTALL}, or give files of questions") from None
    return lm_eval


class Answers:
    """What lm_eval asks of a model. `first`: texts begin with the model's first id. `kept`: the folder and
    name of the record, beside which what is scored is kept."""

    tokenizer = None                 # of transformers, for its templates: none

    def __init__(self, model: LanguageModel, batch: int = 16, first: bool = True,
                 kept: Any = None) -> None:
        super().__init__()
        self.model, self.batch, self.first, self.kept = model, batch, first, kept
        self.cut = 0                 # contexts that did not fit
        self.files: list[Path] = []

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.model.tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """The id that stands where a context is empty."""
        return self.model.first

    @property
    def max_length(self) -> int:
        """Tokens of the model's context."""
        return self.model.cfg.context

    @property
    def tokenizer_name(self) -> str:
        """What tells its vocabulary from others."""
        return self.model.tokenizer.vocabulary

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """The ids of a text, behind the first id unless that is not wanted."""
        begin = [self.model.first] if self.first and add_special_tokens is not False else []
        return [*begin, *self.model.tokenizer.encode(string).tolist()]

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log p, greedy) of each (context, continuation)."""
        pairs, first = [r.args for r in requests], self.model.first
        asked = encode_pairs(self.model.tokenizer, pairs, first)
        if not self.first:                                 # where it has to stand for an empty context alone
            asked = [r._replace(context=r.context[1:] or r.context) for r in asked]
        self.cut += count_cut(asked, self.max_length)
        return [(value.logprob, value.greedy) for value in self._scored(asked, "loglikelihood")]

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        asked = [Request(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        return [(value.logprob, value.greedy) for value in self._scored(asked, "loglikelihood")]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows that do not overlap but for what they see."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        asked, ends = [], [0]
        for r in requests:
            ids = self.model.tokenizer.encode(r.args[0]).tolist()
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            asked += [Request(tuple(context), tuple(new))
                      for context, new in map(make_disjoint_window, windows)]
            ends.append(len(asked))
        found = [value.logprob for value in self._scored(asked, "loglikelihood_rolling")]
        return [math.fsum(found[a:b]) for a, b in pairwise(ends)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The text after each context, up to one of its stops: some at once of those that want the same."""
        alike: dict[str, list[int]] = {}
        for i, r in enumerate(requests):
            alike.setdefault(repr(sorted(r.args[1].items())), []).append(i)
        texts = [""] * len(requests)
        for same in alike.values():
            for part in (same[i:i + self.batch] for i in range(0, len(same), self.batch)):
                for i, text in zip(part, self._texts([requests[i].args[0] for i in part],
                                                     requests[part[0]].args[1])):
                    texts[i] = text
        return texts

    def _texts(self, contexts: list[str], how: dict[str, Any]) -> list[str]:
        stops = how.get("until") or []
        most = next((how[k] for k in ("max_gen_toks", "max_new_tokens", "max_tokens") if how.get(k)),
                    MOST_TOKENS)
        most = max(1, min(most, self.max_length // 2))     # a question must be seen, whatever may follow
        asked = [self.tok_encode(c) or [self.prefix_token_id] for c in contexts]
        room = max(1, self.max_length - most)              # of a context the newest tokens, as the library
        self.cut += sum(len(ids) > room for ids in asked)
        warm = how.get("temperature", 1.0) if how.get("do_sample") else 0.0
        return together(self.model.transformer, self.model.tokenizer,
                        [ids[-room:] for ids in asked], most, Sampling(temperature=warm), self.model.ends,
                        [stops] if isinstance(stops, str) else [s for s in stops if s])

    def _scored(self, asked: list[Request], name: str) -> list[Likelihood]:
        kept = self.kept(hashlib.sha256(repr(asked).encode()).hexdigest()) if self.kept else None
        self.files += [kept] if kept else []
        return score_requests(self.model.transformer, asked, name, self.batch, kept)


def adapted(model: LanguageModel, batch: int = 16, first: bool = True, kept: Any = None) -> Any:
    """`model` as a model of lm_eval, for its simple_evaluate. Raises CheckError without the library.

    `kept`: from what is asked, in hex, the file in which what is scored is kept; or None.

    >>> from bitnet_ref.generate.example import speaker
    >>> it = adapted(speaker())                                  # needs lm_eval
    >>> it.tok_encode("ABC"), it.eot_token_id
    ([0, 33, 34, 35], 0)
    """
    library()
    from lm_eval.api.model import TemplateLM

    return type("BitnetRef", (Answers, TemplateLM), {})(model, batch, first, kept)


def known_tasks(tasks: list[str], folder: str | None) -> Any:
    """What knows the tasks of lm_eval, or those in `folder`, and all of `tasks`. Raises CheckError.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:                     # needs lm_eval
    ...     _ = Path(folder, "mine.yaml").write_text("task: mine\\ndataset_path: json")
    ...     known_tasks(["mine"], folder).all_tasks
    ['mine']
    >>> known_tasks(["piqa"], "no/folder")
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: --task-folder must be a folder; got no/folder; give one that holds
    YAML files of tasks
    """
    check(folder is None or Path(folder).is_dir(), "--task-folder must be a folder", folder,
          "give one that holds YAML files of tasks")
    lm_eval = library()
    try:
        known = lm_eval.tasks.TaskManager(include_path=folder, include_defaults=folder is None)
    except Exception as e:                                 # of the library, of YAML
        raise CheckError(f"lm-evaluation-harness must be able to read the tasks of {folder or 'its own'}; "
                         f"got {type(e).__name__}: {str(e)[:300]}; correct or remove the file") from e
    missing = [t for t in tasks if t not in known.all_tasks]
    check(not missing, "--tasks must be files, or tasks that lm-evaluation-harness knows",
          ", ".join(missing), f"correct it; known are {len(known.all_tasks):,} names"
          if folder is None else f"{folder} has {' '.join(known.all_tasks)[:200]}")
    return known


def run(answers: Any, facts: Model, tasks: list[str], known: Any, args: Namespace,
        argv: list[str]) -> list[Record]:
    """A record for each task of lm_eval (of a group: for each of its tasks), scored by `answers`.

    `known`: of known_tasks. Raises CheckError: a task that the library cannot load.

    >>> from unittest import mock
    >>> with mock.patch.dict("sys.modules", {"lm_eval": None}):
    ...     run(None, None, ["piqa"], None, None, [])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: tasks that are no local files must be scored by lm-evaluation-harness; ...
    """
    lm_eval, began = library(), time.monotonic()
    try:
        found = lm_eval.simple_evaluate(model=answers, tasks=tasks, task_manager=known, limit=args.limit,
                                        log_samples=True, bootstrap_iters=1000)
    except (KeyboardInterrupt, CheckError):
        raise
    except Exception as e:                                 # of the library, of datasets, of a task's own code
        raise CheckError(f"lm-evaluation-harness must be able to run {', '.join(tasks)}; got "
                         f"{type(e).__name__}: {str(e)[:300]}; see the task's file, and whether its data are "
                         "here or may be fetched") from e
    if answers.cut:
        print(f"note: {answers.cut:,} contexts were longer than the model's and lost their begin",
              file=sys.stderr)
    about = made("evaluate", argv, time.monotonic() - began, args.backend, ("lm_eval",))
    return [_record(task, samples, found, facts, about, args.first)
            for task, samples in found["samples"].items()]


def _record(task: str, samples: list[dict[str, Any]], found: Any, facts: Model, about: Any,
            first: bool) -> Record:
    """What the library found of one task; of several filters the first."""
    samples = [s for s in samples if s["filter"] == samples[0]["filter"]]
    n, values = len(samples), found["results"][task]
    kind = found["configs"][task].get("output_type", "")
    chance = float(np.mean([1 / len(s["filtered_resps"]) for s in samples])) if (
        kind == "multiple_choice") else None
    figures, rows = {}, []
    for key, value in values.items():
        name, _, way = key.partition(",")
        if way != samples[0]["filter"] or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = values.get(f"{name}_stderr,{way}")
        higher = found["higher_is_better"][task].get(name, True)
        figures[name] = Metric(float(value), n, float(stderr) if isinstance(stderr, int | float) else None,
                               "higher" if higher else "lower", chance if name in ITEM_NAMES else None)
        if all(isinstance(s.get(name), int | float) for s in samples):
            rows.append((ITEM_NAMES.get(name, name), [float(s[name]) for s in samples]))
    asked = hashlib.sha256("".join(s["doc_hash"] + s["prompt_hash"] for s in samples).encode())
    return Record("perplexity" if kind == "loglikelihood_rolling" else "choice", task, facts, about,
                  Data(f"lm_eval {task}", asked.hexdigest(), n, {"first": first}), figures,
                  [list(row) for row in zip(*(v for _, v in rows))] if rows else None,
                  [name for name, _ in rows] if rows else None)
