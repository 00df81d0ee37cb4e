"""python -m bitnet_ref.data --input CORPUS --output SHARDS [--vocab-size N | --tokenizer FILE]

Text -> token shards, for `python -m bitnet_ref.train --corpus SHARDS`. Streams: memory stays flat whatever
the size of the input. Progress goes to stderr, the summary to stdout.
Read after: data/prepare. Read next: chain.
"""

import sys
from argparse import BooleanOptionalAction

from bitnet_ref.cli import DONE, Parser, run_command, text
from bitnet_ref.data.dataset import Recipe, summary, write_dataset
from bitnet_ref.data.tokenizer import load


def _parser() -> Parser:
    """The flags; their defaults are those of `Recipe`."""
    p = Parser("python -m bitnet_ref.data", __doc__)
    default = Recipe._field_defaults
    p.add_argument("--input", type=text, required=True, metavar="CORPUS",
                   help="a file, folder or glob of .txt / .jsonl, a name or a mixture (docs/data.md)")
    p.add_argument("--output", type=text, required=True, metavar="SHARDS", help="a new or empty folder")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--vocab-size", type=int, default=default["vocab_size"], metavar="N",
                       help="entries of the tokenizer trained on the training side (default: %(default)s)")
    which.add_argument("--tokenizer", type=text, metavar="FILE", help="a tokenizer.json to use instead")
    p.add_argument("--val-fraction", type=float, default=default["val_fraction"], metavar="F",
                   help="share of the documents held out for validation (default: %(default)s)")
    p.add_argument("--val", type=text, metavar="CORPUS",
                   help="a text or a named corpus to validate on, instead of documents held out")
    p.add_argument("--seed", type=int, default=default["seed"], metavar="N",
                   help="which documents are held out (default: %(default)s)")
    p.add_argument("--progress", action=BooleanOptionalAction, default=True, help="bars on stderr")
    return p


def main(argv: list[str]) -> int:
    """Parse, write, print the summary.
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:                         # doctest: +ELLIPSIS
    ...     n = Path(d, "a.txt").write_text("text")
    ...     main(["--input", f"{d}/a.txt", "--output", f"{d}/set", "--val-fraction", "0", "--no-progress"])
    train           1 documents             4 bytes             3 tokens
    ...
    0
    """
    args = _parser().parse_args(argv)
    own = None if args.tokenizer is None else load(args.tokenizer)
    recipe = Recipe(args.input, own, args.vocab_size, args.val_fraction, args.seed, args.val)
    print(summary(write_dataset(args.output, recipe, args.progress)))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
