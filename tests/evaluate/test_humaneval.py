"""evaluate/humaneval: the dataset's files, what is run, and an estimator that is unbiased."""

import gzip
import itertools
import json
import math
import os
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from problems import ADD, PROBLEMS, put, walls  # noqa: F401

from bitnet_ref.evaluate import humaneval
from bitnet_ref.evaluate.humaneval import (
    Sample,
    counts,
    estimate,
    judged,
    pass_at_k,
    read_problems,
    read_samples,
    reference_samples,
)
from bitnet_ref.evaluate.sandbox import Limits, Verdict

LIMITS = Limits(seconds=1, deadline=15.0)


@pytest.fixture(scope="session")
def dataset():
    if not os.environ.get("BITNET_REF_DATA"):
        pytest.skip("set BITNET_REF_DATA to a folder of corpora (docs/data.md)")
    return Path(os.environ["BITNET_REF_DATA"]) / "humaneval"


# --- pass@k ------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 9), data=st.data())
def test_pass_at_k_is_the_share_of_all_draws_that_hit(n, data):
    """Counted: every set of k of n samples of which c pass."""
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    hits = [any(i < c for i in drawn) for drawn in itertools.combinations(range(n), k)]
    assert pass_at_k(n, c, k) == pytest.approx(sum(hits) / len(hits), rel=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(200, 3, 100), (10_000, 17, 500), (10 ** 6, 1, 10 ** 5),
                                           (200, 199, 1)])
def test_pass_at_k_is_stable_where_binomials_are_astronomical(n, c, k):
    if n <= 10_000:
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    else:
        exact = Fraction(k, n)                             # one of them passes: it is drawn or not
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-9)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)])
def test_pass_at_k_of_too_few_samples_is_refused(n, c, k):
    with tiny.refusal("pass@k must be of k samples or more", f"k = {k}, n = {n}, c = {c}"):
        pass_at_k(n, c, k)


def test_the_estimate_is_a_mean_with_its_standard_error():
    got = estimate([(4, 4), (4, 2), (4, 0), (4, 0)], 1)
    assert got.value == 0.375
    values = [1, 0.5, 0, 0]
    spread = sum((v - 0.375) ** 2 for v in values) / 3
    assert got.stderr == pytest.approx(math.sqrt(spread / 4))
    assert got.problems == 4
    assert estimate([(2, 1)], 2) == (1.0, None, 1)


@given(shares=st.lists(st.integers(0, 6), min_size=1, max_size=6), k=st.integers(1, 6))
def test_more_tries_never_hurt(shares, k):
    found = [(6, c) for c in shares]
    assert estimate(found, k).value >= estimate(found, 1).value - 1e-12
    assert estimate(found, 1).value == pytest.approx(sum(shares) / 6 / len(shares))


def test_samples_are_counted_by_problem():
    samples = [Sample("t/1", ""), Sample("t/0", ""), Sample("t/1", "")]
    verdicts = [Verdict(r, "", 0.0) for r in ("passed", "timeout", "failed")]
    assert counts(PROBLEMS, samples, verdicts) == [(1, 0), (2, 1)]


# --- files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_problems_are_read(name, tmp_path):
    got, sha = read_problems(put(tmp_path / name, [{**p._asdict(), "more": 1} for p in PROBLEMS.values()]))
    assert got == PROBLEMS
    assert len(sha) == 64


GOOD = ADD._asdict()


@pytest.mark.parametrize(("rows", "words"), [
    ([GOOD, {**GOOD, "task_id": "t/2", "test": None}], ["line 2 of", "a text under \"test\"", "None"]),
    ([{k: v for k, v in GOOD.items() if k != "prompt"}], ["line 1 of", "\"prompt\""]),
    ([GOOD, GOOD], ["line 2 of", "new problem", "t/0"]),
    ([{**GOOD, "entry_point": "a b"}], ["entry_point in line 1", "'a b'"]),
    ([[1]], ["line 1 of", "JSON object"]),
    ([{**GOOD, "canonical_solution": 3}], ["\"canonical_solution\""]),
    ([], ["must hold one"]),
])
def test_problems_that_are_none_are_refused_by_their_line(rows, words, tmp_path):
    with tiny.refusal(*words):
        read_problems(put(tmp_path / "p.jsonl", rows))


def test_damaged_files_are_refused(tmp_path, monkeypatch):
    whole = put(tmp_path / "p.jsonl.gz", [GOOD] * 50).read_bytes()
    for damaged in (whole[:-9], whole[:30], whole[:40] + b"\xff" * 20 + whole[60:]):
        (tmp_path / "p.jsonl.gz").write_bytes(damaged)
        with tiny.refusal("must be"):
            read_problems(tmp_path / "p.jsonl.gz")
    with tiny.refusal("must be a readable file"):
        read_problems(tmp_path / "nothing")
    if hasattr(os, "mkfifo"):                              # would be waited for
        os.mkfifo(tmp_path / "pipe")
        with tiny.refusal("must be a readable file", "pipe"):
            read_problems(tmp_path / "pipe")
    monkeypatch.setattr(humaneval, "LARGEST", 5000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(bytes(10 ** 6)))
    with tiny.refusal("at most 5000 bytes", "bomb.gz"):
        read_problems(tmp_path / "bomb.gz")


def test_samples_of_others_are_read(tmp_path):
    wanted = [("t/1", "a"), ("t/0", "b"), ("t/1", "")]
    rows = [{"task_id": t, "completion": c, "model": "x"} for t, c in wanted]
    assert read_samples(put(tmp_path / "s", rows), PROBLEMS) == wanted
    assert read_samples(tmp_path / "s", PROBLEMS, ["t/0"]) == [("t/0", "b")]


@pytest.mark.parametrize(("rows", "words"), [
    ([{"task_id": "t/9", "completion": ""}], ["line 1 of", "one of the 2 problems", "t/9"]),
    ([{"task_id": "t/0", "completion": ""}], ["each problem must have a sample", "t/1", "with --problems"]),
    ([{"task_id": "t/0"}], ["line 1 of", "\"completion\""]),
    ([{"task_id": "t/0", "completion": ["x"]}], ["line 1 of", "\"completion\""]),
    ([], ["each problem must have a sample"]),
])
def test_samples_that_do_not_fit_are_refused(rows, words, tmp_path):
    with tiny.refusal(*words):
        read_samples(put(tmp_path / "s", rows), PROBLEMS)


# --- judging -----------------------------------------------------------------------------------------------

SAMPLES = [Sample("t/0", "    return x + y\n"), Sample("t/0", "    return x - y\n"),
           Sample("t/1", "    return x * 2"), Sample("t/1", "    while True: pass"),
           Sample("t/0", "    import os; os._exit(0)")]


@pytest.mark.usefixtures("walls")
def test_samples_are_judged_in_order():
    got = judged(PROBLEMS, SAMPLES, LIMITS, workers=2)
    assert [v.reason for v in got] == ["passed", "failed", "passed", "timeout", "failed"]
    assert estimate(counts(PROBLEMS, SAMPLES, got), 1).value == pytest.approx((1 / 3 + 1 / 2) / 2)


@pytest.mark.usefixtures("walls")
def test_results_are_kept_and_not_made_again(tmp_path, monkeypatch):
    path = tmp_path / "s_results.jsonl"
    first = judged(PROBLEMS, SAMPLES[:3], LIMITS, results=path)
    asked = []
    monkeypatch.setattr(humaneval, "run",
                        lambda program, *more: asked.append(program) or Verdict("failed", "x: y", 1.0))
    got = judged(PROBLEMS, SAMPLES, LIMITS, results=path, workers=1)
    assert [v.reason for v in got] == [v.reason for v in first] + ["failed"] * 2
    assert got[-1].detail == "x: y"
    assert asked == [PROBLEMS[s.task_id].prompt + s.completion + "\n" for s in SAMPLES[3:]]
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["passed"] for row in rows] == [True, False, True, False, False]
    assert [(row["task_id"], row["completion"]) for row in rows] == SAMPLES
    with tiny.refusal("must hold results of these samples"):
        judged(PROBLEMS, SAMPLES[1:], LIMITS, results=path)
    with tiny.refusal("same model, data and options"):
        judged(PROBLEMS, SAMPLES, Limits(seconds=1), results=path)


@pytest.mark.usefixtures("walls")
def test_the_reference_is_the_canonical_solution():
    assert all(v.passed for v in judged(PROBLEMS, list(reference_samples(PROBLEMS)), LIMITS))


# --- the dataset -------------------------------------------------------------------------------------------

linux = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is made of Linux")


@pytest.mark.data
def test_the_dataset_is_read(dataset):
    problems, sha = read_problems(dataset / "HumanEval.jsonl.gz")
    assert sha == "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
    assert list(problems) == [f"HumanEval/{n}" for n in range(164)]
    for problem in problems.values():
        compile(humaneval.checks_of(problem), "checks", "exec")


@linux
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.usefixtures("walls")
def test_all_164_reference_solutions_pass(dataset):
    problems, _ = read_problems(dataset / "HumanEval.jsonl.gz")
    samples = list(reference_samples(problems))
    got = judged(problems, samples, Limits())
    assert [(s.task_id, v) for s, v in zip(samples, got) if not v.passed] == []
    assert len(got) == 164


@linux
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["    return None\n", "    pass\n", "    import sys; sys.exit(0)\n",
                                   "    class E:\n        __eq__ = lambda s, o: True\n    return E()\n"])
@pytest.mark.usefixtures("walls")
def test_a_program_that_does_nothing_passes_no_problem(wrong, dataset):
    problems, _ = read_problems(dataset / "HumanEval.jsonl.gz")
    got = judged(problems, [Sample(t, wrong) for t in problems], Limits())
    assert [t for t, v in zip(problems, got) if v.passed] == []


@linux
@pytest.mark.data
@pytest.mark.usefixtures("walls")
def test_the_datasets_own_examples_are_judged_as_its_program_judges_them(dataset):
    """1 / 2, as its README has it: of six samples those that return 1, however indented, pass."""
    problems, _ = read_problems(dataset / "example_problem.jsonl")
    samples = read_samples(dataset / "example_samples.jsonl", problems)
    got = judged(problems, samples, Limits(seconds=2, deadline=3.0))
    assert [v.reason for v in got] == ["failed", "timeout", "failed", "passed", "passed", "passed"]
    assert estimate(counts(problems, samples, got), 1).value == pytest.approx(0.5)
