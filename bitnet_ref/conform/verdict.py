"""`conform DIR`: reads a homework and a port's dump, judges, reports.

Exit codes: 0 all that was dumped is right, 1 something is wrong, 2 nothing could be judged.
Read after: conform/export. Read next: conform/checkpoint.
"""

import argparse
import json
import sys
from pathlib import Path

from bitnet_ref.checks import check
from bitnet_ref.cli import BAD_ARGUMENTS, CHECK_FAILED, DONE, Parser, text
from bitnet_ref.conform import report
from bitnet_ref.conform.export import DUMP, read_list, shapes
from bitnet_ref.conform.graph import graph, leaves
from bitnet_ref.conform.homework import homework
from bitnet_ref.conform.picture import draw
from bitnet_ref.conform.read import read_dump


def add_arguments(parser: Parser) -> None:
    """Of `conform DIR`."""
    parser.add_argument("folder", type=text, metavar="DIR", help="the folder that `conform export` wrote")
    parser.add_argument("--dump", type=text, metavar="FOLDER",
                        help=f"the port's tensors (default: DIR/{DUMP})")
    parser.add_argument("--all", action="store_true", help="fail unless every tensor of the list was dumped")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--picture", type=text, metavar="PNG", help="also draw the error by layer and stage")


def run(args: argparse.Namespace) -> int:
    """Judge a dump, print the report."""
    folder = Path(args.folder)
    seed, layout = read_list(folder)
    work, nodes = homework(seed), graph(layout)
    wanted = dict(zip((n.name for n in nodes), shapes(nodes, work, layout)))
    dump = read_dump(Path(args.dump) if args.dump else folder / DUMP, wanted)
    check(bool(dump.tensors or dump.problems), "the dump must hold a tensor of the homework", "none",
          "homework.json lists them")
    found = report.judge_dump(nodes, leaves(work, layout), dump)
    print(json.dumps(report.as_dict(found), indent=1) if args.json else report.text(found))
    if args.picture:
        draw(found.verdicts, Path(args.picture))
    if not found.count("ok") and not found.count("BAD"):
        print("nothing could be judged", file=sys.stderr)
        return BAD_ARGUMENTS
    missing = found.count("absent") if args.all else 0
    if missing and not args.json:
        print(f"--all: {missing} tensors of the list were not dumped")
    return DONE if found.conforms and not missing else CHECK_FAILED
