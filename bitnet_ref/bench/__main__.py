"""python -m bitnet_ref.bench all        # or cuda, gate, ptx; each has its own --help
python -m bitnet_ref.bench kernels --m 512 --n 2560 --k 2560
python -m bitnet_ref.bench decode --json decode.json --picture decode.png

How fast this machine runs bitnet_ref, beside its limits and the peers that it has, all in the same rounds.
Read after: bench/compare. Read next: bench/golden.
"""

import sys
from importlib import import_module
from typing import Any

from bitnet_ref.checks import check
from bitnet_ref.cli import CHECK_FAILED, DONE, Parser, run_command, text

PARTS = {"kernels": ("kernels", "part"), "decode": ("inference", "decode"),
         "prefill": ("inference", "prefill"), "train": ("training", "part"), "startup": ("startup", "part")}
CARD = ("cuda", "gate", "ptx")      # commands of their own


def main(argv: list[str]) -> int:
    """Parse, measure part by part, print each at once; write what is asked for."""
    if argv and argv[0] in CARD:
        return int(import_module(f"bitnet_ref.bench.{argv[0]}").main(argv[1:]))
    args = parsed(argv)
    from bitnet_ref.bench import limits, report  # not before --help has answered
    report.check_places(args.json, args.picture, args.root)
    pythons = {"llama": args.llama_python, "torch": args.torch_python}
    setup = limits.set_up(args.threads, args.rounds, args.quick, (args.m, args.n, args.k), pythons)
    chosen = {name: PARTS[name] for name in (PARTS if args.part == "all" else (args.part,))}
    parts = {name: getattr(import_module(f"bitnet_ref.bench.{at}"), f) for name, (at, f) in chosen.items()}
    return DONE if report.measured(parts, setup, print, args.json, args.picture, args.root) else CHECK_FAILED


def parsed(argv: list[str]) -> Any:
    """The arguments. Raises CheckError for those without a meaning."""
    parser = Parser("python -m bitnet_ref.bench", __doc__)
    parser.add_argument("part", choices=(*PARTS, "all", *CARD), help="what to measure")
    for name, what in (("m", "kernels: rows of the product"), ("n", "kernels: its outputs"),
                       ("k", "kernels: its inputs"), ("threads", "of all engines (default: all processors)")):
        parser.add_argument(f"--{name}", type=int, help=what)
    parser.add_argument("--rounds", type=int, default=7, help="rounds, whose medians count (default: 7)")
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it works")
    for name, what in (("json", "write the figures"), ("picture", "draw the shares of the limits (PNG)"),
                       ("root", "write the figures into the docs of the clone in this folder")):
        parser.add_argument(f"--{name}", type=text, metavar="PATH", help=what)
    for name in ("llama-python", "torch-python"):
        what = "interpreter that has this peer (default: this one)"
        parser.add_argument(f"--{name}", type=text, default=sys.executable, metavar="PYTHON", help=what)
    args = parser.parse_args(argv)
    for name, value in vars(args).items():
        check(type(value) is not int or value > 0, f"--{name} must be greater than 0", value, "use 1 or more")
    check(not (args.quick and args.root), "the docs need true figures", "--quick", "leave it out")
    check(args.m is args.n is args.k is None or args.part in ("kernels", "all"),
          "--m, --n and --k are of the part kernels", args.part, "leave them out")
    return args


if __name__ == "__main__":
    sys.exit(run_command(main))
