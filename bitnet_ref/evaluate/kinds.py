"""The kinds of evaluation that `python -m bitnet_ref.evaluate` knows: the options of each, what runs it.

A kind is chosen by its own flag (--tasks, --humaneval, --stride); perplexity needs none. Each returns an
Outcome: lines for a person, figures for --json, the record for --output. What a kind needs is imported when
it runs.
Read after: evaluate/slid. Read next: evaluate/__main__.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
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
    """`add` its options to the parser; `asked`: whether the command line has its flag; `run` it.

    `add` is given the type of a flag that takes a text; `run` what was parsed, and the arguments as they were
    typed, for the record.
    """

    add: Callable[[ArgumentParser, Any], None]
    asked: Callable[[Namespace], bool]
    run: Callable[[Namespace, list[str]], Outcome]


def _add_perplexity(parser: ArgumentParser, text: Any) -> None:
    group = parser.add_argument_group("perplexity (without the flags of another kind)")
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


def _add_sliding(parser: ArgumentParser, text: Any) -> None:
    group = parser.add_argument_group("perplexity by a window that slides over --corpus (docs/perplexity.md)")
    group.add_argument("--stride", type=int, metavar="N",
                       help="tokens from one window to the next (default: half the context)")
    group.add_argument("--context", type=int, metavar="N", help="tokens of a window (default: the model's)")


def _run_sliding(args: Namespace, argv: list[str]) -> Outcome:
    from bitnet_ref.evaluate.slid import evaluate

    return Outcome(*evaluate(args, argv))


def _add_code(parser: ArgumentParser, text: Any) -> None:
    group = parser.add_argument_group("code (docs/sandbox.md)")
    group.add_argument("--humaneval", type=text, metavar="FILE", help="the problems: HumanEval.jsonl.gz")
    group.add_argument("--run-programs", action="store_true",
                       help="run the programs that the model writes, each in a sandbox")
    group.add_argument("--judge", type=text, metavar="FILE|reference",
                       help="judge these samples instead of the model's, or the dataset's own solutions")
    group.add_argument("--samples", type=text, metavar="FILE",
                       help="keep the samples here, and their results in FILE_results.jsonl; an interrupted "
                            "evaluation goes on")
    group.add_argument("--per-problem", type=int, default=1, metavar="N",
                       help="samples of each problem (default: 1)")
    group.add_argument("--pass-at", type=int, action="append", metavar="K",
                       help="k of pass@k; may be given several times (default: 1)")
    group.add_argument("--problems", type=int, metavar="N", help="only the first N (default: all)")
    group.add_argument("--completion-tokens", type=int, default=300, metavar="N",
                       help="tokens of a completion at most (default: 300)")
    group.add_argument("--temperature", type=float, default=0.0, metavar="X", help="(default: 0, greedy)")
    group.add_argument("--top-p", type=float, default=1.0, metavar="P", help="(default: 1)")
    group.add_argument("--seed", type=int, default=0, help="of the samples (default: 0)")
    group.add_argument("--workers", type=int, metavar="N", help="programs at a time (default: processors)")


def _run_code(args: Namespace, argv: list[str]) -> Outcome:
    from bitnet_ref.evaluate.completions import evaluate

    return Outcome(*evaluate(args, argv))


def _add_choice(parser: ArgumentParser, text: Any) -> None:
    group = parser.add_argument_group("multiple choice, and what lm-evaluation-harness knows")
    group.add_argument("--tasks", type=text, metavar="TASK,...",
                       help="files of questions (.jsonl, .jsonl.gz), names of such in $BITNET_REF_DATA/arc, "
                            "and tasks of lm-evaluation-harness")
    group.add_argument("--task-folder", type=text, metavar="DIR",
                       help="a folder of task files (YAML) for the harness, which needs no network then")
    group.add_argument("--limit", type=int, metavar="N", help="the first N questions of each task")
    group.add_argument("--batch", type=int, default=16, help="contexts read side by side (default: 16)")
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


# The first whose flag is there runs; the last needs no flag.
KINDS: dict[str, Kind] = {
    "code": Kind(_add_code, lambda args: args.humaneval is not None, _run_code),
    "sliding": Kind(_add_sliding, lambda args: (args.stride, args.context) != (None, None), _run_sliding),
    "choice": Kind(_add_choice, lambda args: args.tasks is not None, _run_choice),
    "perplexity": Kind(_add_perplexity, lambda args: True, _run_perplexity),
}


def add_kinds(parser: ArgumentParser, text: Any) -> None:
    """The options of every kind, each in a group of its own. `text`: the type of a name or path, cli.text."""
    for kind in KINDS.values():
        kind.add(parser, text)


def run_kind(args: Namespace, argv: list[str]) -> Outcome:
    """Run the kind that the command line asks for. Only samples of others are judged without a model."""
    asked = [name for name, kind in KINDS.items() if kind.asked(args)]
    check(len(asked) <= 2, "an evaluation must be of one kind", " and ".join(asked[:-1]),
          "ask for one after the other")
    name = asked[0]
    check(args.model is not None or (name == "code" and args.judge is not None), "--model must be given",
          "nothing", "see python -m bitnet_ref.evaluate --help")
    return KINDS[name].run(args, argv)
