"""python -m bitnet_ref.bench.layout_pictures --root .

Draw which trit is in which bits of which byte, for every layout of pack.rosetta, and write the table of
docs/formats/rosetta.md. Nothing is drawn by hand: one trit after the other is set and packed, and what
changes in the bytes is its place, so pictures and table cannot say other than the code does.
Read after: bench/size. Read next: bench/svg.
"""

import math
import sys
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.bench.page import put
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.pack.rosetta import LAYOUTS, pack

COMMAND = "bench.layout_pictures"
PAGE, PICTURES = "formats/rosetta.md", "pictures"          # below docs/
# The matrix that is drawn, and how many bytes stand in a line.
SHAPES = {"i2": ((2, 16), 8), "b3": ((2, 15), 8), "hf": ((8, 8), 16), "i2s_128": ((1, 128), 32),
          "i2s_64": ((1, 128), 32), "i2s_4row": ((8, 16), 32), "gpu": ((16, 32), 32), "torchao": ((2, 16), 8),
          "tq1_0": ((1, 256), 32), "tq2_0": ((1, 256), 32), "q2_0": ((1, 64), 32), "pq2_0": ((1, 128), 34),
          "ptq1_0": ((1, 128), 28), "base3": ((2, 7), 8), "keras": ((3, 10), 8)}
CELL, LEFT, GREY = (0.31, 0.2), 1.5, "#dcdcdc"             # inches, cells; what holds no trit


class Place(NamedTuple):
    """Where a trit is: the byte, and its slot there, 0 for the most significant."""

    byte: int
    slot: int


def slots(layout: str) -> tuple[str, ...]:
    """The names of the parts of a byte, the most significant first: bits, or the worth of a digit."""
    return ("81", "27", "9", "3", "1") if is_base_3(layout) else ("7 6", "5 4", "3 2", "1 0")


def is_base_3(layout: str) -> bool:
    """Whether a byte is a number of digits rather than fields of bits."""
    return LAYOUTS[layout].codes.startswith("digits")


def places(layout: str, shape: tuple[int, int]) -> dict[tuple[int, int], Place]:
    """{(row, column): place}, found by setting that trit alone."""
    w_q, found = np.zeros(shape, np.int8), {}
    zeros = pack(layout, w_q)
    for at in np.ndindex(shape):
        w_q[at] = 1
        plus = pack(layout, w_q)
        w_q[at] = -1
        minus = pack(layout, w_q)
        w_q[at] = 0
        changed = np.flatnonzero((plus != zeros) | (minus != zeros))
        check(len(changed) == 1, f"a trit of {layout} must be in one byte", changed, "mend pack/rosetta")
        byte = int(changed[0])
        if is_base_3(layout):
            slot = 4 - round(math.log(int(plus[byte]) - int(zeros[byte]), 3))
        else:
            bits = int((plus[byte] ^ zeros[byte]) | (minus[byte] ^ zeros[byte]))
            slot = 3 - (bits.bit_length() - 1) // 2
        found[at[0], at[1]] = Place(byte, slot)
    return found


def scale_bytes(layout: str, shape: tuple[int, int]) -> set[int]:
    """The bytes that hold a scale: those that another scale changes."""
    if LAYOUTS[layout].scales == "none":
        return set()
    w_q, whole = np.zeros(shape, np.int8), "float32" in LAYOUTS[layout].scales
    other = np.float32(np.pi) if whole else np.float16(np.pi)       # differs from 1 in every byte
    return {int(i) for i in np.flatnonzero(pack(layout, w_q, other) != pack(layout, w_q))}


def table() -> str:
    """All layouts; what the first byte holds is found as the pictures are."""
    lines = ["| layout | bits per weight | codes of −1, 0, +1 | first byte, from the high end "
             "| sizes | scale | written by |", "|---|---|---|---|---|---|---|"]
    for name, layout in LAYOUTS.items():
        shape, _ = SHAPES[name]
        found = places(name, shape)
        first = found[0, 0].byte
        held = sorted((place.slot, at) for at, place in found.items() if place.byte == first)
        trits = ", ".join(f"({at[0]}, {at[1]})" for _, at in held)
        lines.append(f"| `{name}` | {layout.bits:g} | {layout.codes} | {trits} | {layout.sizes} | "
                     f"{layout.scales} | {layout.source} |")
    return "\n".join(lines)


def draw(layout: str, path: Path) -> None:
    """Write the picture of one layout: bytes from left to right, the most significant part on top."""
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib.figure import Figure
    from PIL import Image  # matplotlib's own dependency

    shape, width = SHAPES[layout]
    n_bytes, parts = LAYOUTS[layout].n_bytes(shape), slots(layout)
    width = min(width, n_bytes)
    lines = -(-n_bytes // width)
    height = len(parts) + 1.6                              # of a line, its heading included
    figure = Figure(figsize=((width + LEFT + 0.2) * CELL[0], lines * height * CELL[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(-LEFT, width + 0.2), ylim=(lines * height, 0))
    axes.axis("off")
    for line in range(lines):
        top = line * height + 1
        axes.text(-0.25, top - 0.1, "byte", ha="right", va="bottom", fontsize=6)
        for slot, part in enumerate(parts):
            axes.text(-0.25, top + slot + 0.5, part, ha="right", va="center", fontsize=6)
        for byte in range(line * width, min((line + 1) * width, n_bytes)):
            axes.text(byte - line * width + 0.5, top - 0.1, str(byte), ha="center", va="bottom", fontsize=6)
    _cells(axes, layout, shape, width, height)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    with whole_file(path) as file:                         # 64 colours: a third of the bytes
        Image.open(picture).convert("RGB").quantize(64).save(file, format="png", optimize=True)


def _cells(axes: Any, layout: str, shape: tuple[int, int], width: int, height: float) -> None:
    """A grey column for every byte, and in it a coloured square for every trit."""
    import matplotlib
    from matplotlib.patches import Rectangle

    def box(x: float, y: float, tall: int, colour: Any) -> None:
        axes.add_patch(Rectangle((x, y), 1, tall, facecolor=colour, edgecolor="white", lw=0.6))

    found, parts, scales = places(layout, shape), len(slots(layout)), scale_bytes(layout, shape)
    for byte in range(LAYOUTS[layout].n_bytes(shape)):
        x, y = byte % width, byte // width * height + 1
        box(x, y, parts, GREY)
        if byte not in {place.byte for place in found.values()}:
            said = ("scale", 90) if byte in scales else ("0", 0)
            axes.text(x + 0.5, y + parts / 2, said[0], ha="center", va="center", fontsize=6, rotation=said[1])
    for (row, column), place in found.items():
        x, y = place.byte % width, place.byte // width * height + 1 + place.slot
        share = row / (shape[0] - 1) if shape[0] > 1 else column / (shape[1] - 1)
        box(x, y, 1, matplotlib.colormaps["viridis"](0.2 + 0.8 * share))
        label = str(column) if shape[0] == 1 else f"{row},{column}"
        axes.text(x + 0.5, y + 0.52, label, ha="center", va="center", fontsize=5.6,
                  color="white" if share < 0.5 else "black")


def main(argv: list[str]) -> int:
    """Parse, draw, write."""
    parser = Parser(f"python -m bitnet_ref.{COMMAND}", __doc__)
    parser.add_argument("--root", default=".", metavar="DIR", help="the clone to write into (default: here)")
    docs = Path(parser.parse_args(argv).root) / "docs"
    check((docs / PAGE).is_file(), "--root must be a clone", docs.parent, "name the folder that holds docs/")
    (docs / PICTURES).mkdir(exist_ok=True)
    for layout in LAYOUTS:
        draw(layout, docs / PICTURES / f"rosetta-{layout}.png")
    put(docs / PAGE, table(), COMMAND)
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
