"""python -m bitnet_ref.chain mine --corpus CORPUS --output chains.json --tokenizer FILE
python -m bitnet_ref.chain show --table chains.json --tokenizer FILE --picture coverage.png

Mine the frequent chains of tokens of a corpus, or show a table of them. generate --chain FILE uses one; a run
of train has its own (docs/speculative.md). Memory stays flat whatever the size of the corpus.
Read after: chain/compress. Read next: formats.
"""

import sys
from pathlib import Path
from typing import Any

from bitnet_ref.chain import show
from bitnet_ref.chain.mine import check_size, mine_for
from bitnet_ref.chain.table import MOST, read_table, write_table
from bitnet_ref.cli import DONE, Parser, run_command, text
from bitnet_ref.data.prepare import prepare
from bitnet_ref.data.tokenizer_files import load


def main(argv: list[str]) -> int:
    """Parse, mine or read, print."""
    args = parsed(argv)
    if args.what == "mine":
        check_size(args.size)
        data = prepare(args.corpus, args.tokenizer, args.vocab_size, args.val_fraction)
        write_table(args.output, table := mine_for(data, args.size, progress=True))
        print(f"{args.output}: {show.summary(table)}, in {data.folder / 'tokenizer.json'}")
        return DONE
    own = args.tokenizer or str(Path(args.table).parent)
    tokenizer = load(own)
    table = read_table(args.table, tokenizer)
    others = {f"held out of {args.corpus}": show.held_out(table, args.corpus, own)} if args.corpus else {}
    print(show.page(table, tokenizer, others))
    if args.picture:
        show.draw(table, args.picture, others)
    return DONE


def parsed(argv: list[str]) -> Any:
    """The arguments of either command."""
    parser = Parser("python -m bitnet_ref.chain", __doc__)
    commands = parser.add_subparsers(dest="what", required=True, metavar="mine|show")
    mine = commands.add_parser("mine", description="Write the table of a corpus.")
    mine.add_argument("--corpus", type=text, required=True, help="as for train: a name, file, folder or glob")
    mine.add_argument("--output", type=text, required=True, metavar="FILE", help="the table, JSON")
    mine.add_argument("--tokenizer", type=text, metavar="FILE", help="default: one trained on the corpus")
    mine.add_argument("--vocab-size", type=int, default=4096, metavar="N", help="of such a one (4096)")
    mine.add_argument("--val-fraction", type=float, default=0.05, metavar="P", help="held out (0.05)")
    mine.add_argument("--size", type=int, default=MOST, metavar="N", help=f"chains at most ({MOST})")
    shown = commands.add_parser("show", description="Print a table, and draw what it covers.")
    shown.add_argument("--table", type=text, required=True, metavar="FILE", help="a table of chains")
    shown.add_argument("--tokenizer", type=text, metavar="FILE", help="its tokenizer (default: beside it)")
    shown.add_argument("--corpus", type=text, help="also what it covers of this corpus's held-out text")
    shown.add_argument("--picture", type=text, metavar="FILE", help="draw the coverage (PNG)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_command(main))
