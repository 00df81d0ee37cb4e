"""The kinds of evaluation that `python -m bitnet_ref.evaluate` knows: the options of each, what runs it.

A kind is chosen by its own flag (--tasks); perplexity needs none. Each returns an Outcome: lines for a
person, figures for --json, the record for --output. What a kind needs is imported when it runs.
Read after: evaluate/corpus. Read next: evaluate/__main__.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

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
    group = parser.add_argument_group("perplexity (without --tasks)")
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
    "choice": Kind(_add_choice, lambda args: args.tasks is not None, _run_choice),
    "perplexity": Kind(_add_perplexity, lambda args: True, _run_perplexity),
}


def add_kinds(parser: ArgumentParser, text: Any) -> None:
    """The options of every kind, each in a group of its own. `text`: the type of a name or path, cli.text."""
    for kind in KINDS.values():
        kind.add(parser, text)


def run_kind(args: Namespace, argv: list[str]) -> Outcome:
    """Run the kind that the command line asks for."""
    return next(kind for kind in KINDS.values() if kind.asked(args)).run(args, argv)
