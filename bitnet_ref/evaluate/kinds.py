"""The kinds of evaluation that `python -m bitnet_ref.evaluate` knows: the options of each, what runs it.

A kind is chosen by its own flag (--tasks, --humaneval, --stride); perplexity needs none. Each returns an
Outcome: lines for a person, figures for --json, the record for --output. What a kind needs is imported when
it runs. A flag of another kind is refused: it would say nothing.
Read after: evaluate/slid. Read next: evaluate/__main__.
"""

from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_ref.checks import check
from bitnet_ref.evaluate.records import Record


class Outcome(NamedTuple):
    """What an evaluation found, a record for each task. `good`: worth a figure (else the exit code is 1).

    `kept`: files that go once the records are written.
    """

    lines: str
    figures: dict[str, Any]
    records: tuple[Record, ...] = ()
    good: bool = True
    kept: tuple[Path, ...] = ()


class Kind(NamedTuple):
    """`chosen_by` some of its `options`, of which each has its value here for where it is not typed.

    `title` of its options in the help; `add` them to that group, given the type of a flag that takes a text;
    `run` what was parsed, and the arguments as they were typed, for the record. `also`: options of others
    that it takes. `keeps`: whether --output has a record to keep.
    """

    chosen_by: tuple[str, ...]
    title: str
    options: dict[str, Any]
    add: Callable[[Any, Any], None]
    run: Callable[[Namespace, list[str]], Outcome]
    also: Collection[str] = ()
    keeps: Callable[[Namespace], bool] = lambda args: True


def _add_perplexity(group: Any, text: Any) -> None:
    group.add_argument("--corpus", type=text, help="a named corpus, or a file, folder or glob "
                                                   "(default: the run's validation text)")
    group.add_argument("--windows", type=int,
                       help="score at most this many windows, evenly spaced (default: all)")


def _run_perplexity(args: Namespace, argv: list[str]) -> Outcome:
    from bitnet_ref.evaluate.corpus import score_corpus

    result = score_corpus(args.model, args.corpus, args.windows, args.backend, args.threads, args.int8_head)
    figures = {"loss": result.loss, "perplexity": result.perplexity, "bits per byte": result.bits_per_byte,
               "tokens": result.tokens, "bytes": result.bytes}
    perplexity = f"{result.perplexity:.3f}" if result.perplexity is not None else (
        f"none: a loss above log({result.vocab_size}) means worse than guessing; "
        "is this the right tokenizer and model?")
    lines = (f"perplexity      {perplexity}\nbits per byte   {result.bits_per_byte:.4f}\n"
             f"loss            {result.loss:.4f} nats per token\n"
             f"counted         {result.tokens:,} tokens, {result.bytes:,} bytes")
    return Outcome(lines, figures, (), result.perplexity is not None)


def _add_sliding(group: Any, text: Any) -> None:
    group.add_argument("--stride", type=int, metavar="N",
                       help="tokens from one window to the next (default: half the context)")
    group.add_argument("--context", type=int, metavar="N", help="tokens of a window (default: the model's)")


def _run_sliding(args: Namespace, argv: list[str]) -> Outcome:
    from bitnet_ref.evaluate.slid import evaluate

    return Outcome(*evaluate(args, argv))


def _add_code(group: Any, text: Any) -> None:
    group.add_argument("--humaneval", type=text, metavar="FILE", help="the problems: HumanEval.jsonl.gz")
    group.add_argument("--run-programs", action="store_true",
                       help="run the programs that the model writes, each in a sandbox")
    group.add_argument("--judge", type=text, metavar="FILE|reference",
                       help="judge these samples instead of the model's, or the dataset's own solutions")
    group.add_argument("--samples", type=text, metavar="FILE",
                       help="keep the samples here, and their results in FILE_results.jsonl; an interrupted "
                            "evaluation goes on")
    group.add_argument("--per-problem", type=int, metavar="N",
                       help="samples of each problem (default: 1)")
    group.add_argument("--pass-at", type=int, action="append", metavar="K",
                       help="k of pass@k; may be given several times (default: 1)")
    group.add_argument("--problems", type=int, metavar="N", help="only the first N, with their results "
                       "in FILE_firstN_results.jsonl (default: all)")
    group.add_argument("--completion-tokens", type=int, metavar="N",
                       help="tokens of a completion at most (default: 300)")
    group.add_argument("--temperature", type=float, metavar="X", help="(default: 0, greedy)")
    group.add_argument("--top-p", type=float, metavar="P", help="(default: 1)")
    group.add_argument("--seed", type=int, help="of the samples (default: 0)")
    group.add_argument("--workers", type=int, metavar="N", help="programs at a time (default: processors)")


def _run_code(args: Namespace, argv: list[str]) -> Outcome:
    from bitnet_ref.evaluate.completions import evaluate

    return Outcome(*evaluate(args, argv))


def _add_choice(group: Any, text: Any) -> None:
    group.add_argument("--tasks", type=text, metavar="TASK,...",
                       help="files of questions (.jsonl, .jsonl.gz), names of such in $BITNET_REF_DATA/arc, "
                            "and tasks of lm-evaluation-harness")
    group.add_argument("--task-folder", type=text, metavar="DIR",
                       help="a folder of task files (YAML) for the harness, which needs no network then")
    group.add_argument("--limit", type=int, metavar="N", help="the first N questions of each task")
    group.add_argument("--batch", type=int, help="contexts read side by side (default: 16)")
    group.add_argument("--no-first", dest="first", action="store_false",
                       help="begin no text with the model's first id (as its training texts began)")


def _run_choice(args: Namespace, argv: list[str]) -> Outcome:
    from bitnet_ref.evaluate.choice import run_tasks

    records, kept = run_tasks(args, argv)
    rows = [(r.task, name, m) for r in records for name, m in r.metrics.items()]
    lines = [f"{'task':<28} {'figure':<12} {'value':>8} {'stderr':>8} {'chance':>8} {'n':>7}"]
    lines += [f"{task:<28} {name:<12} {m.value:>8.4f} {_or_dash(m.stderr)} {_or_dash(m.chance)} {m.n:>7,}"
              for task, name, m in rows]
    figures = {r.task: {name: asdict(m) for name, m in r.metrics.items()} for r in records}
    return Outcome("\n".join(lines), figures, tuple(records), kept=kept)


def _or_dash(value: float | None) -> str:
    return f"{'-':>8}" if value is None else f"{value:>8.4f}"


KINDS: dict[str, Kind] = {
    "code": Kind(("humaneval",), "code (docs/sandbox.md)", {
        "humaneval": None, "run_programs": False, "judge": None, "samples": None, "per_problem": 1,
        "pass_at": None, "problems": None, "completion_tokens": 300, "temperature": 0.0, "top_p": 1.0,
        "seed": 0, "workers": None}, _add_code, _run_code, keeps=lambda args: args.judge is None),
    "sliding": Kind(
        ("stride", "context"), "perplexity by a window that slides over --corpus (docs/perplexity.md)",
        {"stride": None, "context": None}, _add_sliding, _run_sliding, also=("corpus", "batch")),
    "choice": Kind(("tasks",), "multiple choice, and what lm-evaluation-harness knows", {
        "tasks": None, "task_folder": None, "limit": None, "batch": 16, "first": True},
        _add_choice, _run_choice),
    "perplexity": Kind((), "perplexity (without the flags of another kind)", {
        "corpus": None, "windows": None}, _add_perplexity, _run_perplexity, keeps=lambda args: False),
}


def add_kinds(parser: ArgumentParser, text: Any) -> None:
    """The options of every kind, each in a group of its own. `text`: the type of a name or path, cli.text.

    What is not typed leaves no attribute behind, so that `run_kind` knows what was.

    >>> parser = ArgumentParser()
    >>> add_kinds(parser, str)
    >>> parser.parse_args(["--tasks", "arc.jsonl", "--limit", "5"])
    Namespace(tasks='arc.jsonl', limit=5)
    """
    for kind in KINDS.values():
        kind.add(parser.add_argument_group(kind.title, argument_default=SUPPRESS), text)


def run_kind(args: Namespace, argv: list[str]) -> Outcome:
    """Run the kind that the command line asks for. Only samples of others are judged without a model.

    Raises CheckError, before anything is run: two kinds, an option of another, --output without a record.

    >>> run_kind(Namespace(model="nano.bitnet", output=None, tasks="arc.jsonl", stride=8), [])
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: an evaluation must be of one kind; got sliding and choice; ask for one after
    the other
    """
    typed = vars(args)
    chosen = [name for name, kind in KINDS.items() if any(option in typed for option in kind.chosen_by)]
    check(len(chosen) <= 1, "an evaluation must be of one kind", " and ".join(chosen),
          "ask for one after the other")
    name = chosen[0] if chosen else "perplexity"
    kind = KINDS[name]
    for other in KINDS.values():
        for option in sorted(other.options.keys() & typed.keys()):
            flag = "--no-first" if option == "first" else f"--{option.replace('_', '-')}"
            check(option in kind.options or option in kind.also,
                  f"{flag} must be of the evaluation asked for", f"one of kind {name}",
                  f"leave it out{_or_add(other)}")
    usual = {option: value for k in KINDS.values() for option, value in k.options.items()}
    args = Namespace(**{**usual, **typed})
    check(args.model is not None or (name == "code" and args.judge is not None), "--model must be given",
          "nothing", "see python -m bitnet_ref.evaluate --help")
    check(args.output is None or kind.keeps(args), "--output must be of an evaluation that keeps a record",
          args.output, "leave it out, and use --json; of a corpus, add --stride")
    return kind.run(args, argv)


def _or_add(kind: Kind) -> str:
    return f", or add --{kind.chosen_by[0]}" if kind.chosen_by else ""
