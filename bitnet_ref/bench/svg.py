"""Boxes, arrows and words as an SVG: what the diagrams of bench/diagrams are drawn with.

A picture is narrow and long, with its own light ground: a phone shows it without zooming, and a page in the
dark can have it. Words stay text. No letter is smaller than SMALLEST, and a line that would leave its box is
refused, by widths that no usual font exceeds.
Read after: bench/layout_pictures. Read next: bench/diagrams_model.
"""

from html import escape
from typing import NamedTuple

from bitnet_ref.checks import check

WIDTH, MARGIN = 400, 14
SMALLEST, SIZE, LINE = 13, 15, 20          # of letters; from one line to the next
GROUND, INK, SOFT = "#fbfaf6", "#1d2733", "#5a6672"
FILLS = {"float": "#dbe9f8", "int8": "#fbe3c4", "trit": "#d3eed8", "plain": "#eceae4", "new": "#f6d5dc"}
EDGES = {"float": "#3b6fb6", "int8": "#b8721c", "trit": "#2f8a4b", "plain": "#8b8b84", "new": "#b0405c"}
FACES = {"sans": ("system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif", 0.57),
         "mono": ("ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace", 0.61)}


class Box(NamedTuple):
    """A rectangle of the picture."""

    x: float
    y: float
    w: float
    h: float

    @property
    def top(self) -> tuple[float, float]:
        """The middle of the upper edge."""
        return self.x + self.w / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        """The middle of the lower edge."""
        return self.x + self.w / 2, self.y + self.h

    @property
    def left(self) -> tuple[float, float]:
        """The middle of the left edge."""
        return self.x, self.y + self.h / 2

    @property
    def right(self) -> tuple[float, float]:
        """The middle of the right edge."""
        return self.x + self.w, self.y + self.h / 2


class Picture:
    """Drawn from the top; `save` measures how tall it has become."""

    def __init__(self, title: str, description: str) -> None:
        self.title, self.description = title, description
        self.parts: list[str] = []
        self.boxes: list[Box] = []
        self.end = 0.0

    def box(self, x: float, y: float, w: float, lines: list[str], kind: str = "plain", h: float | None = None,
            align: str = "middle") -> Box:
        """A box with lines; those that begin with ` are code, those with * are bold."""
        tall = h or LINE * len(lines) + 14
        box = Box(x, y, w, tall)
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{tall:g}" rx="7" '
                          f'fill="{FILLS[kind]}" stroke="{EDGES[kind]}" stroke-width="1.5"/>')
        first = y + tall / 2 - LINE * (len(lines) - 1) / 2 + 5
        for i, line in enumerate(lines):
            at = x + w / 2 if align == "middle" else x + 10
            self.text(at, first + LINE * i, line, align, room=w - 8)
        self.boxes.append(box)
        self._reach(y + tall)
        return box

    def text(self, x: float, y: float, said: str, align: str = "start", color: str = INK,
             room: float | None = None, size: float = SIZE) -> None:
        """One line, its base at y. Raises CheckError where it may be wider than its room."""
        face = "mono" if said.startswith("`") else "sans"
        bold = ' font-weight="700"' if said.startswith("*") else ""
        said = said.lstrip("`*")
        size = size - 1.5 if face == "mono" else size
        wide = len(said) * size * FACES[face][1] * (1.08 if bold else 1)
        begin = {"start": x, "middle": x - wide / 2, "end": x - wide}[align]
        check(size >= SMALLEST, "letters must not be too small", size, f"use {SMALLEST} or more")
        check(wide <= (room or WIDTH), "a line must fit into its box", f"{said!r}: {wide:.0f}", "shorten it")
        check(begin >= 0 and begin + wide <= WIDTH, "a line must stay inside", repr(said), "move it")
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" class="{face}" fill="{color}" '
                          f'text-anchor="{align}" xml:space="preserve"{bold}>{escape(said)}</text>')
        self._reach(y + 6)

    def arrow(self, *points: tuple[float, float], color: str = INK, dashed: bool = False,
              head: bool = True) -> None:
        """A line through the points, with a head at the last."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"'
                          + (' stroke-dasharray="5 4"' if dashed else "")
                          + (' marker-end="url(#head)"' if head else "") + "/>")
        self._reach(max(y for _, y in points))

    def grid(self, x: float, y: float, cells: list[list[str]], kind: str, w: float, h: float = 28) -> Box:
        """Rows of small boxes that touch."""
        for r, row in enumerate(cells):
            for c, said in enumerate(row):
                self.box(x + c * w, y + r * h, w, [said], kind, h)
        return Box(x, y, w * len(cells[0]), h * len(cells))

    def frame(self, around: list[Box]) -> Box:
        """A dashed line around boxes: what an arrow to it says of them all."""
        x, y = min(b.x for b in around) - 7, min(b.y for b in around) - 7
        w, h = max(b.x + b.w for b in around) + 7 - x, max(b.y + b.h for b in around) + 7 - y
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="10" fill="none" '
                          f'stroke="{SOFT}" stroke-dasharray="4 4"/>')
        self._reach(y + h)
        return Box(x, y, w, h)

    def below(self, upper: Box, lower: Box) -> None:
        """An arrow straight down, from the one box to the other."""
        x = min(max(upper.bottom[0], lower.x + 8), lower.x + lower.w - 8)
        self.arrow((x, upper.y + upper.h), (x, lower.y - 2))

    def plus(self, x: float, y: float) -> None:
        """Where two streams are added."""
        self.parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="11" fill="{FILLS["float"]}" '
                          f'stroke="{EDGES["float"]}" stroke-width="1.5"/>')
        self.text(x, y + 5.5, "+", "middle", size=18)

    def legend(self, y: float, **kinds: str) -> float:
        """Squares with what their colours mean, in a row. Returns where the picture goes on."""
        x: float = MARGIN
        for kind, said in kinds.items():
            self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="14" height="14" rx="3" fill="{FILLS[kind]}" '
                              f'stroke="{EDGES[kind]}"/>')
            self.text(x + 20, y + 12, said, color=SOFT, size=14)
            x += 34 + len(said) * 8
        return y + 30

    def svg(self) -> str:
        """The whole picture."""
        styles = "".join(f".{name}{{font-family:{family}}}" for name, (family, _) in FACES.items())
        tall = round(self.end + MARGIN)
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {tall}" width="{WIDTH * 1.25:g}" '
            f'height="{tall * 1.25:g}" role="img" aria-labelledby="t d">',
            f'<title id="t">{escape(self.title)}</title>', f'<desc id="d">{escape(self.description)}</desc>',
            f"<style>{styles}</style>",
            '<defs><marker id="head" viewBox="0 0 10 10" refX="8" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{INK}"/></marker></defs>',
            f'<rect width="{WIDTH}" height="{tall}" rx="10" fill="{GROUND}"/>', *self.parts, "</svg>", ""])

    def _reach(self, y: float) -> None:
        self.end = max(self.end, y)
