"""python -m bitnet_ref.evaluate --model RUN
python -m bitnet_ref.evaluate --model MODEL --tasks questions.jsonl,piqa --output FILE
python -m bitnet_ref.evaluate report                # or compare; each has its own --help

How good a model is (docs/evaluation.md): its perplexity and bits per byte, on the run's own validation text
or on another corpus; with --tasks its accuracy on multiple choice. Exit code 1 if the model is worse than
guessing: no perplexity is printed then.
Read after: evaluate/kinds. Read next: train.
"""

import json
import sys
from importlib import import_module

from bitnet_ref.checks import check
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, add_backend, add_int8_head, run_command, text
from bitnet_ref.evaluate.kinds import add_kinds, run_kind
from bitnet_ref.evaluate.records import save_all

COMMANDS = {"report": "evaluation", "compare": "compare"}  # they train and time, as bench does


def main(argv: list[str]) -> int:
    """Parse, run the kind that is asked for, print, keep the record.

    >>> import contextlib, io
    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet", vocab_size=257) as path, contextlib.redirect_stdout(io.StringIO()) as said:
    ...     _ = (path.parent / "a.txt").write_bytes(b"AAAAAAAA")
    ...     code = main(f"--model {path} --corpus {path.parent}/a.txt --backend numpy".split())
    >>> said.getvalue().splitlines()[-1]
    'counted         9 tokens, 8 bytes'
    """
    if argv and argv[0] in COMMANDS:
        return int(import_module(f"bitnet_ref.bench.{COMMANDS[argv[0]]}").main(argv[1:]))
    parser = Parser("python -m bitnet_ref.evaluate", __doc__)
    parser.add_argument("command", nargs="?", choices=tuple(COMMANDS), help="has a --help of its own")
    parser.add_argument("--model", type=text, metavar="MODEL",
                        help="a run, a Hugging Face folder or name, a .bitnet or .gguf file")
    add_kinds(parser, text)
    parser.add_argument("--output", type=text, metavar="FILE",
                        help="keep the record as JSON, for reports; of several tasks as FILE.TASK.json")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_backend(parser)
    add_int8_head(parser)
    args = parser.parse_args(argv)
    check(args.command is None, "a command must stand first", args.command, "put it before the flags")
    result = run_kind(args, argv)
    print(json.dumps(result.figures) if args.json else result.lines, flush=True)
    if args.output is not None:                            # after the figures: a disk may be full
        save_all(args.output, result.records)
        for part in result.kept:
            part.unlink(missing_ok=True)
    return DONE if result.good else CHECK_FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
