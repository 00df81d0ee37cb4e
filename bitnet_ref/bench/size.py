"""python -m bitnet_ref.bench.size

Lines of every module, and of what a reader of the reference reads: quant, layers/, model/, and the trainer's
loop, optimiser and schedules. Comments and blank lines count: they are read too. Examples in docstrings do
not: one is run, not read through, where the text above it leaves a question.
Read after: bench/scoring. Read next: bench/layout_pictures.
"""

import ast
import doctest
import sys
from pathlib import Path

from bitnet_ref.cli import DONE, Parser, run_command

PACKAGE = Path(__file__).parent.parent
READING = ("quant.py", "layers/*.py", "model/*.py", "train/loop.py", "train/optim.py", "train/schedule.py")
BUDGET = 1950                # lines: an afternoon


def lines(path: Path) -> int:
    """Lines of a text file."""
    return len(path.read_text(encoding="utf-8").splitlines())


def reading() -> int:
    """Lines of the files in READING, without those of examples."""
    return sum(lines(p) - example_lines(p) for pattern in READING for p in PACKAGE.glob(pattern))


def example_lines(path: Path) -> int:
    """Lines of the examples in a module's docstrings, with what they print."""
    texts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)]
    found = [e for text in texts for e in doctest.DocTestParser().get_examples(text)]
    return sum(e.source.count("\n") + (e.want or e.exc_msg or "").count("\n") for e in found)


def main(argv: list[str]) -> int:
    """Print the table."""
    Parser("python -m bitnet_ref.bench.size", __doc__).parse_args(argv)
    table = {p.relative_to(PACKAGE).as_posix(): lines(p) for p in sorted(PACKAGE.rglob("*.py"))}
    for name, n in table.items():
        print(f"{n:5}  {name}")
    print(f"{sum(table.values()):5}  all\n{reading():5}  the reading: {', '.join(READING)} (budget {BUDGET})")
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
