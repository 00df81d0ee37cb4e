"""What the benchmark prints, keeps and draws: text for the terminal, JSON, a page of the docs, a picture.

A record is the JSON of one part with the machine it was measured on. The page is written from records alone,
so parts may be measured at different times and no figure is typed by hand.
Read after: bench/startup. Read next: bench/interval.
"""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitnet_ref.bench.page import put
from bitnet_ref.bench.part import Claim, Measure, Part, Setup
from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import whole_file

Record = dict[str, Any]
RECORDS, PAGE, PICTURE = "benchmarks/cpu.json", "benchmarks/cpu.md", "pictures/cpu.png"     # below docs/
COMMAND = "bench"                                          # in the generated markers
HEADLINES = ("against llama.cpp", "against PyTorch", "M = 512, against", "nano (i2), time", "first token")
OURS, PEER = "#d1603d", "#3b6fb6"


def record(part: Part, setup: Setup) -> Record:
    """The part as JSON."""
    title = part.title + " (small shapes: a trial, not a measurement)" * setup.quick
    return {"title": title, "machine": dict(setup.machine), "rounds": setup.rounds, "notes": part.notes,
            "measures": [m._asdict() for m in part.measures],
            "claims": [{**c._asdict(), "verdict": c.verdict} for c in part.claims]}


def part_of(r: Record) -> Part:
    """And back. Raises CheckError for what is not a record."""
    try:
        claims = [Claim(**{k: v for k, v in c.items() if k != "verdict"}) for c in r["claims"]]
        return Part(r["title"], [Measure(**m) for m in r["measures"]], claims, r["notes"])
    except (KeyError, TypeError, AttributeError) as e:
        raise CheckError(f"{RECORDS} must hold what the benchmark wrote; got {e!r}; "
                         "delete it, measure again") from None


# ---- words ----

def figure(value: float | None, unit: str = "") -> str:
    """Three digits or all before the point, and the unit."""
    if value is None:
        return "-"
    if unit == "%":
        return f"{value:.0%}".replace("%", " %")
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    return f"{value:,.{digits}f} {unit}".rstrip()


def beside(m: Measure) -> str:
    """The share of the limit, in words."""
    return "" if m.share is None else f"{figure(m.share, '%')} of {m.limit}"


def bound(c: Claim, value: float | None) -> str:
    """A floor or an aim, with its direction."""
    return "" if value is None else f"{'<=' if c.most else '>='} {figure(value, c.unit)}"


def cells(c: Claim) -> tuple[str, str, str, str, str]:
    """A claim's row: name, measured, floor, aim, verdict."""
    return c.name, figure(c.value, c.unit), bound(c, c.floor), bound(c, c.aim), c.verdict


def machine_line(r: Record) -> str:
    """What the part was measured on."""
    m = r["machine"]
    reads, floats, blas, int8 = (f"{m[what] / 1e9:,.0f}" for what in ("bandwidth", "float32", "blas", "int8"))
    return (f"{m['cpu']}, instructions: {m['tier']}, threads: {m['threads']}; at its best it reads {reads} "
            f"GB/s and does {floats} Gop/s in float32 (BLAS {blas}), {int8} in int8 ({m['dot']}). Medians of "
            f"{r['rounds']} rounds. Python {m['python']}, NumPy {m['numpy']}, Numba {m['numba']}, "
            f"llvmlite {m['llvmlite']}.")


def text(r: Record) -> str:
    """A part for the terminal."""
    part = part_of(r)
    wide = max(map(len, [m.name for m in part.measures] + [c.name for c in part.claims]), default=0)
    lines = [f"{m.name:<{wide}}  {figure(m.value, m.unit):>16}  {beside(m)}" for m in part.measures]
    heads = ("what it must show", "measured", "floor", "aim", "")
    lines += ["", *(f"{name:<{wide}}  {value:>16}  {floor:>11}  {aim:>11}  {verdict}"
                    for name, value, floor, aim, verdict in (heads, *map(cells, part.claims)))]
    lines += [f"note: {note}" for note in part.notes]
    return "\n".join([f"{part.title}. {machine_line(r)}", "", *map(str.rstrip, lines), ""])


def table(r: Record) -> str:
    """A part for a page."""
    part = part_of(r)
    notes = "".join(f"\n- {note}" for note in part.notes)
    rows = [f"| {m.name} | {figure(m.value, m.unit)} | {beside(m)} |" for m in part.measures]
    return "\n".join([f"## {part.title}", "", machine_line(r), "", "| what | figure | share of the limit |",
                      "|---|---|---|", *rows, "", claims_table([r])]) + ("\n" + notes if notes else "")


def claims_table(records: list[Record]) -> str:
    """What the figures must show, of several parts."""
    lines = ["| what it must show | measured | floor | aim | |", "|---|---|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(cells(c))} |" for r in records for c in part_of(r).claims])


def headlines(records: list[Record]) -> str:
    """The few of them that the README shows."""
    rows = [f"| {c.name} | {figure(c.value, c.unit)} |" for r in records for c in part_of(r).claims
            if c.value is not None and any(words in c.name for words in HEADLINES)]
    return "\n".join(["| speed | measured |", "|---|---|", *rows]) + f"\n\n{machine_line(records[0])}"


# ---- files ----

def measured(parts: Mapping[str, Callable[[Setup], Part]], setup: Setup, show: Callable[[str], None],
             figures: str | None, picture: str | None, root: str | None) -> bool:
    """Measure part by part; show and write each at once. Whether all went well: one may fail alone."""
    records: dict[str, Record] = {}
    for name, measure in parts.items():
        try:
            records[name] = record(measure(setup), setup)
        except CheckError as e:                            # a peer that died, say
            print(f"{name}: {e}", file=sys.stderr)
            continue
        show(text(records[name]))
        write(records, figures, picture, root)
    return len(records) == len(parts)


def check_places(figures: str | None, picture: str | None, root: str | None) -> None:
    """Raise CheckError, before anything is measured, where it could not be written afterwards."""
    for place in filter(None, (figures, picture)):
        check(Path(place).absolute().parent.is_dir(), "a file must have a folder", place, "make it first")
    check(root is None or (Path(root) / "docs" / PAGE).is_file(), "--root must be a clone", root,
          "name the folder that holds docs/")


def write(records: dict[str, Record], figures: str | None, picture: str | None, root: str | None) -> None:
    """To the files that were asked for."""
    if figures:
        write_json(figures, records)
    if picture:
        draw(records, picture)
    if root:
        write_page(Path(root), records)


def write_json(path: str | Path, records: dict[str, Record]) -> None:
    """{name of the part: record}."""
    with whole_file(path) as f:
        f.write((json.dumps(records, indent=1) + "\n").encode())


def draw(records: dict[str, Record], path: str | Path) -> None:
    """One panel for each part: the share of the limit, ours and the peers'."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {r["title"]: shown for r in records.values()
              if (shown := [(m, 100 * m.share) for m in part_of(r).measures if m.share is not None])}
    heights = [len(shown) + 2 for shown in panels.values()] or [1]
    fig, axes = plt.subplots(len(heights), 1, figsize=(9, 0.26 * sum(heights) + 0.6), layout="constrained",
                             squeeze=False, height_ratios=heights)
    for ax, (title, shown) in zip(axes[:, 0], panels.items()):
        bars = ax.barh([m.name for m, _ in shown], [share for _, share in shown],
                       color=[PEER if m.peer else OURS for m, _ in shown])
        ax.bar_label(bars, [figure(m.value, m.unit) for m, _ in shown], padding=3, fontsize=7)
        ax.axvline(100, color="black", lw=0.8)
        ax.set(title=title, xlim=(0, max(120.0, *(1.15 * share for _, share in shown))))
        ax.invert_yaxis()
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel("% of the machine's limit (orange: bitnet_ref, blue: peers)")
    fig.savefig(path, dpi=110)
    plt.close(fig)


def page_block(kept: dict[str, Any]) -> str:
    """The page's text, of the records by name: the picture, then a table for each."""
    return "\n\n".join(["![Shares of the machine's limits](../pictures/cpu.png)", *map(table, kept.values())])


def write_page(root: Path, records: dict[str, Record]) -> None:
    """Put the parts into the docs of the clone `root`; parts that were not measured anew stay as they were.

    Raises CheckError where the page has no markers. The README gets its table where it has markers for it.
    """
    docs, kept = root / "docs", {}
    try:
        if (docs / RECORDS).exists():
            kept = json.loads((docs / RECORDS).read_text(encoding="utf-8"))
    except ValueError as e:
        raise CheckError(f"{docs / RECORDS} must be JSON; got {e}; delete it, measure again") from None
    kept = {**kept, **records}
    write_json(docs / RECORDS, kept)
    (docs / PICTURE).parent.mkdir(exist_ok=True)
    put(docs / PAGE, page_block(kept), COMMAND)
    draw(kept, docs / PICTURE)
    readme, marker = root / "README.md", f"generated: python -m bitnet_ref.{COMMAND} -->"
    if readme.is_file() and marker in readme.read_text(encoding="utf-8"):
        put(readme, headlines(list(kept.values())), COMMAND)
