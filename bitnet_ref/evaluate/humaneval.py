"""HumanEval (Chen et al. 2021): does the program that a model writes to a docstring pass its tests?

A problem is a prompt (a function's head and docstring), tests, and the name of the function. A sample is what
a model wrote after the prompt. Files are those of the dataset, so samples of others can be judged.
Port note: pass@k is estimated from n >= k samples, not by trying k: that has less variance, and no bias.
Read after: evaluate/journal. Read next: evaluate/completions.
"""

import hashlib
import math
import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import check
from bitnet_ref.data.atomic import held_in
from bitnet_ref.evaluate.journal import Journal, digest
from bitnet_ref.evaluate.lines import read_rows, rows_in, unpacked
from bitnet_ref.evaluate.sandbox import Limits, Verdict, proved, run

LARGEST = 1 << 26                                          # bytes of the problems, unpacked
RESULT = ("task_id", "completion", "passed", "result")     # as the dataset's own program calls them


class Problem(NamedTuple):
    """`test` defines check(candidate); `canonical_solution` continues the prompt as a sample does."""

    task_id: str
    prompt: str
    entry_point: str
    test: str
    canonical_solution: str = ""


class Sample(NamedTuple):
    """What a model wrote after the prompt of a problem."""

    task_id: str
    completion: str


def read_problems(path: str | Path) -> tuple[dict[str, Problem], str]:
    """({task_id: problem}, sha256 of the file) of .jsonl or .jsonl.gz. Raises CheckError naming the line.

    >>> import json, tempfile
    >>> line = {"task_id": "t/0", "prompt": "def f(x):\\n", "entry_point": "f", "test": "def check(f): pass"}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (path := Path(folder, "problems.jsonl")).write_text(json.dumps(line))
    ...     list(read_problems(path)[0])
    ['t/0']
    """
    held = held_in(path, LARGEST, "problems", "give the HumanEval.jsonl.gz of the dataset")
    found: dict[str, Problem] = {}
    for where, row in rows_in(unpacked(held, Path(path), LARGEST, "problems"), str(path)):
        problem = Problem(**_texts(row, Problem._fields, where, {"canonical_solution"}))
        check(problem.task_id not in found, f"{where} must be a new problem", problem.task_id, "remove one")
        check(problem.entry_point.isidentifier(), f"entry_point in {where} must be a name",
              repr(problem.entry_point)[:50], "correct the line")
        found[problem.task_id] = problem
    check(bool(found), "a file of problems must hold one", f"none in {path}", "give another")
    return found, hashlib.sha256(held).hexdigest()


def read_samples(path: str | Path, problems: dict[str, Problem],
                 wanted: Collection[str] | None = None) -> list[Sample]:
    """The samples in a .jsonl, in its order: of the problems `wanted` (all), at least one of each.

    Raises CheckError: one of none of the `problems`, or none of one that is wanted.

    >>> import json, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (path := Path(folder, "a.jsonl")).write_text('{"task_id": "t/0", "completion": "  return x"}')
    ...     read_samples(path, {"t/0": Problem("t/0", "def f(x):\\n", "f", "")})
    [Sample(task_id='t/0', completion='  return x')]
    """
    wanted = problems if wanted is None else wanted
    found = []
    for where, row in read_rows(Path(path)):
        sample = Sample(**_texts(row, Sample._fields, where))
        check(sample.task_id in problems, f"{where} must be of one of the {len(problems)} problems",
              repr(sample.task_id)[:50], "give the problems that the samples were made for")
        found += [sample] if sample.task_id in wanted else []
    left = sorted(set(wanted) - {s.task_id for s in found})
    check(not left, "each problem must have a sample", f"none of {left[0] if left else ''} and "
          f"{len(left) - 1} others in {path}", "complete the file, or ask for fewer problems with --problems")
    return found


def _texts(row: dict[str, Any], names: Sequence[str], where: str, optional: Any = ()) -> dict[str, str]:
    """The fields `names` of a row, each a text."""
    for name in names:
        check(isinstance(row.get(name), str) or (name in optional and name not in row),
              f"{where} must have a text under \"{name}\"", repr(row.get(name))[:50], "correct the line")
    return {name: row[name] for name in names if name in row}


# ---- judging ----

def program_of(problem: Problem, completion: str) -> str:
    """The program that is run: what the model saw, and what it wrote after it.

    >>> program_of(Problem("t/0", "def f(x):", "f", ""), " return x")
    'def f(x): return x\\n'
    """
    return problem.prompt + completion + "\n"


def checks_of(problem: Problem) -> str:
    """The tests, below the prompt: some use a function that it defines.

    >>> print(checks_of(Problem("t/0", "def f(x):", "f", "def check(f): assert f(1) == 1")), end="")
    def f(x):
        pass
    def check(f): assert f(1) == 1
    """
    return f"{problem.prompt}\n    pass\n{problem.test}\n"


def judged(problems: dict[str, Problem], samples: Sequence[Sample], limits: Limits,
           workers: int | None = None, results: str | Path | None = None,
           progress: bool = False) -> list[Verdict]:
    """The verdict on each sample, in order. Programs run, in the sandbox, `workers` at a time.

    `results`: a .jsonl that is written line by line; lines that it has already are not made again. Raises
    CheckError where the sandbox cannot hold, or for results of other samples.

    >>> add = Problem("t/0", "def add(x, y):\\n", "add", "def check(f): assert f(2, 3) == 5")
    >>> samples = [Sample("t/0", "    return x + y"), Sample("t/0", "    return x")]
    >>> [verdict.reason for verdict in judged({"t/0": add}, samples, Limits())]
    ['passed', 'failed']
    """
    proved()
    journal = Journal(results, digest([p._asdict() for p in problems.values()], asdict(limits)))
    check(len(journal.rows) <= len(samples) and all(
        (row.get("task_id"), row.get("completion")) == s for row, s in zip(journal.rows, samples)),
        f"{results} must hold results of these samples", "others", "give another file, or delete it")
    pool = ThreadPoolExecutor(workers or os.cpu_count() or 1)

    def judge(sample: Sample) -> Verdict:
        problem = problems[sample.task_id]
        return run(program_of(problem, sample.completion), checks_of(problem), problem.entry_point, limits)

    try:
        todo = samples[len(journal.rows):]
        for sample, verdict in zip(todo, tqdm(pool.map(judge, todo), desc="running programs", total=len(todo),
                                              disable=None if progress else True)):
            said = verdict.reason + (f": {verdict.detail}" if verdict.detail else "")
            journal.add(dict(zip(RESULT, (*sample, verdict.passed, said))) | {"seconds": verdict.seconds})
    finally:
        pool.shutdown(cancel_futures=True)
    return [_verdict(row) for row in journal.rows]


def _verdict(row: dict[str, Any]) -> Verdict:
    reason, _, detail = str(row.get("result")).partition(": ")
    return Verdict(reason, detail, float(row.get("seconds", 0.0)))


# ---- pass@k ----

def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k samples, drawn from n of which c pass, passes: 1 - C(n - c, k) / C(n, k).

    As a product: no binomial overflows, and where n - c < k a factor is zero. Raises CheckError unless
    0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=4, c=2, k=1), round(pass_at_k(n=4, c=2, k=2), 4)
    (0.5, 0.8333)
    """
    check(0 <= c <= n and 1 <= k <= n, "pass@k must be of k samples or more", f"k = {k}, n = {n}, c = {c}",
          "make more samples, or ask for a smaller k")
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))        # (HE.1)


class Estimate(NamedTuple):
    """pass@k over the problems, and its standard error."""

    value: float
    stderr: float | None
    problems: int


def estimate(counts: Sequence[tuple[int, int]], k: int) -> Estimate:
    """pass@k of [(samples, passed) of each problem]: the mean, and its standard error over problems.

    >>> estimate([(4, 4), (4, 0)], k=1)
    Estimate(value=0.5, stderr=0.5, problems=2)
    """
    values = np.array([pass_at_k(n, c, k) for n, c in counts])
    stderr = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None    # (HE.2)
    return Estimate(float(values.mean()), stderr, len(values))


def counts(problems: dict[str, Problem], samples: Sequence[Sample],
           verdicts: Sequence[Verdict]) -> list[tuple[int, int]]:
    """(samples, passed) of each problem, in the order of the problems.

    >>> problems = {"t/0": Problem("t/0", "def f(x):", "f", "")}
    >>> counts(problems, [Sample("t/0", "")] * 2, [Verdict("passed", "", 0.1), Verdict("failed", "", 0.1)])
    [(2, 1)]
    """
    made, passed = dict.fromkeys(problems, 0), dict.fromkeys(problems, 0)
    for sample, verdict in zip(samples, verdicts):
        made[sample.task_id] += 1
        passed[sample.task_id] += verdict.passed
    return [(made[t], passed[t]) for t in problems]


def reference_samples(problems: dict[str, Problem]) -> Iterator[Sample]:
    """The dataset's own solutions, which must pass: a check of the machinery.

    >>> list(reference_samples({"t/0": Problem("t/0", "def f(x):", "f", "", " return x")}))
    [Sample(task_id='t/0', completion=' return x')]
    """
    for problem in problems.values():
        yield Sample(problem.task_id, problem.canonical_solution)
