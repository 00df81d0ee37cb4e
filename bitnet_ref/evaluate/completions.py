"""What a model writes after the prompts of HumanEval, and pass@k of it: the kind of evaluation "code".

Greedy, one sample of each problem, unless a temperature is asked for. A completion ends where the function
does: at the first of STOPS. Samples are kept as they come and judged behind the walls of `sandbox`.
Read after: evaluate/humaneval. Read next: evaluate/sliding.
"""

import time
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from bitnet_ref.checks import check
from bitnet_ref.evaluate.humaneval import (
    Problem,
    Sample,
    counts,
    estimate,
    judged,
    read_problems,
    read_samples,
    reference_samples,
)
from bitnet_ref.evaluate.journal import Journal, digest
from bitnet_ref.evaluate.provenance import made, model_facts
from bitnet_ref.evaluate.records import CODE_FIELDS, Data, Metric, Record
from bitnet_ref.evaluate.sandbox import Limits, Verdict, proved
from bitnet_ref.generate.language_model import LanguageModel, load
from bitnet_ref.generate.sampling import Sampling

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")     # those of the paper
TOGETHER = 8                                               # prompts that are continued side by side
REFERENCE = "reference"                                    # for --judge: the dataset's own solutions


def evaluate(args: Namespace, argv: list[str]) -> tuple[str, dict[str, Any], tuple[Record, ...]]:
    """(lines for a person, figures, records) of what the command line asks for. Raises CheckError.

    >>> evaluate(Namespace(run_programs=False, pass_at=None), [])
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: programs that a model wrote are run only where --run-programs says so; got
    none; read what the sandbox does not protect against in docs/sandbox.md, then add the flag
    """
    began, ks = time.monotonic(), sorted(set(args.pass_at or [1]))
    how = _checked(args, ks)
    every, sha = read_problems(args.humaneval)
    problems = dict(list(every.items())[:args.problems])
    walls = proved()
    model = None if args.model is None else load(args.model, args.backend, args.threads, args.int8_head)
    if args.judge == REFERENCE:
        samples = list(reference_samples(problems))
    elif args.judge is not None:
        samples = read_samples(args.judge, every, problems)
    else:
        assert model is not None
        facts = digest(model_facts(model, args.model).weights, sha)
        samples = completions(model, problems, args.per_problem, args.completion_tokens, how, args.samples,
                              facts)
    kept = args.samples or (None if args.judge in (None, REFERENCE) else args.judge)
    part = "" if args.problems is None else f"_first{args.problems}"
    verdicts = judged(problems, samples, Limits(), args.workers, kept and f"{kept}{part}_results.jsonl",
                      progress=True)
    found = counts(problems, samples, verdicts)
    metrics = {f"pass@{k}": _metric(found, k) for k in ks}
    records: tuple[Record, ...] = ()
    if model is not None:
        about = made("evaluate", argv, time.monotonic() - began, args.backend)
        items = [[passed / n, float(n)] for n, passed in found]
        records = (Record("code", "humaneval", model_facts(model, args.model), about,
                          Data("HumanEval", sha, len(problems), _way(how, args.completion_tokens)),
                          metrics, items, CODE_FIELDS),)
    return _lines(metrics, verdicts, len(problems), walls), _figures(metrics, verdicts), records


def _way(how: Sampling, tokens: int) -> dict[str, Any]:
    """What pass@k depends on beside model and problems; not the seed, which is to be varied."""
    return {"temperature": how.temperature, "top_p": how.top_p, "completion_tokens": tokens}


def _checked(args: Namespace, ks: list[int]) -> Sampling:
    """How to draw. Raises CheckError for options that are out of range, alone or together."""
    check(args.run_programs, "programs that a model wrote are run only where --run-programs says so", "none",
          "read what the sandbox does not protect against in docs/sandbox.md, then add the flag")
    check(args.judge is None or args.model is None, "--judge must stand without --model: a record would call "
          "the samples of others the model's", "both", "leave one out")
    check(args.judge is None or args.samples is None, "--samples must stand without --judge", "both",
          "leave one out")
    for name in ("per_problem", "problems", "completion_tokens", "workers"):
        value = getattr(args, name)
        check(value is None or value > 0, f"--{name.replace('_', '-')} must be greater than 0", value,
              "leave it out, or use 1 or more")
    how = Sampling(temperature=args.temperature, top_k=None, top_p=args.top_p, seed=args.seed)
    check(how.temperature > 0 or args.per_problem == 1, "several samples of one problem must be drawn",
          f"--per-problem {args.per_problem} at temperature 0", "add --temperature 0.8")
    check(args.judge is not None or 1 <= ks[0] <= ks[-1] <= args.per_problem,
          "pass@k must be of 1 to --per-problem samples", f"{ks} of {args.per_problem}",
          "make more samples with --per-problem, or ask for another k")
    return how


def completions(model: LanguageModel, problems: dict[str, Problem], n: int, tokens: int,
                how: Sampling, path: str | None = None, facts: str = "",
                progress: bool = True) -> list[Sample]:
    """`n` samples of each problem; those that `path` holds are not made again. Raises CheckError.

    `facts`: what of model and problems the samples depend on. A prompt that is longer than the model's
    context is shortened, as everywhere in `generate`.

    >>> from bitnet_ref.generate.example import speaker
    >>> problem = Problem("t/0", "def f(x):", "f", "")
    >>> completions(speaker(), {"t/0": problem}, 1, 4, Sampling(temperature=0), progress=False)
    [Sample(task_id='t/0', completion='::::')]
    """
    drawn = (how.temperature, how.top_p, how.seed, tokens, STOPS)
    journal = Journal(path, digest(facts, drawn))
    held = {(row.get("task_id"), row.get("sequence")) for row in journal.rows}
    left = [(s, p) for s in range(n) for p in problems.values() if (p.task_id, s) not in held]
    with tqdm(total=len(left), desc="writing programs", disable=None if progress else True) as bar:
        for s in range(n):
            todo = [p for at, p in left if at == s]
            for group in [todo[i:i + TOGETHER] for i in range(0, len(todo), TOGETHER)]:
                texts = model.generate_all([p.prompt for p in group], tokens, how.temperature, None, how.seed,
                                           stop=STOPS, top_p=how.top_p, min_p=0.0, repetition_penalty=1.0,
                                           sequence=s)
                for problem, text in zip(group, texts):
                    journal.add({"task_id": problem.task_id, "completion": text, "sequence": s})
                bar.update(len(group))
    return [Sample(row["task_id"], row["completion"]) for row in journal.rows if row["task_id"] in problems]


# ---- what is said ----

def _metric(found: Sequence[tuple[int, int]], k: int) -> Metric:
    value, stderr, n = estimate(found, k)
    return Metric(value, n, stderr)


def _figures(metrics: dict[str, Metric], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    figures: dict[str, Any] = {name: metric.value for name, metric in metrics.items()}
    figures |= {f"{name} standard error": metric.stderr for name, metric in metrics.items()}
    return figures | {"samples": len(verdicts), **Counter(v.reason for v in verdicts)}


def _lines(metrics: dict[str, Metric], verdicts: Sequence[Verdict], problems: int,
           walls: Sequence[str]) -> str:
    ends = ", ".join(f"{n} {reason}" for reason, n in Counter(v.reason for v in verdicts).most_common())
    lines = [f"{name:<15} {m.value:.4f}" + (
        f" (standard error {m.stderr:.4f})" if m.stderr is not None else "") for name, m in metrics.items()]
    return "\n".join([*lines, f"counted         {problems} problems, {len(verdicts)} samples: {ends}",
                      f"contained by    {', '.join(walls)}"])
