"""python -m bitnet_ref.conform export DIR [--for hf|i2s|npz|raw]
python -m bitnet_ref.conform DIR
python -m bitnet_ref.conform dump --model PATH --ids 1,2,3 --layers 0,1 --output DIR
python -m bitnet_ref.conform hf PATH

`export` a homework, run a port on it, and be told which line is wrong, and why (docs/porting.md). Verbs:
  {export,dump,hf}   each has its own --help; `dump` writes our tensors of a checkpoint, `hf` checks one
Read after: conform/dump. Read next: bench/conform.
"""

import sys
from importlib import import_module

from bitnet_ref.cli import Parser, run_command

VERBS = {"": "verdict", "export": "export", "dump": "dump", "hf": "checkpoint"}    # -> its module


def main(argv: list[str]) -> int:
    """`export`, `dump` or `hf`; anything else is a folder to judge."""
    verb = argv[0] if argv and argv[0] in VERBS else ""
    module = import_module(f"bitnet_ref.conform.{VERBS[verb]}")
    parser = Parser(f"python -m bitnet_ref.conform {verb}".rstrip(), module.__doc__ if verb else __doc__)
    module.add_arguments(parser)
    return module.run(parser.parse_args(argv[1:] if verb else argv))


if __name__ == "__main__":
    sys.exit(run_command(main))
