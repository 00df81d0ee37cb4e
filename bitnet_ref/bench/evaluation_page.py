"""The report as files: report.json, and from it report.md and report.html, one page that asks no host.

A minute's reading comes first: how many wins, losses and unknowns, and the one figure of each contest that
counts. Each row has its size, its interval and the number of the command that made it.
Read after: bench/evaluation_pictures. Read next: bench/evaluation.
"""

import json
import re
from pathlib import Path
from typing import Any

from bitnet_ref.bench import chains, engines, evaluation_pictures
from bitnet_ref.bench.contest import LOSS, REFUSED, UNKNOWN, WIN
from bitnet_ref.bench.page import put
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.train.report import rendered

REPORT = "report"
PAGE = Path("docs", "benchmarks", "evaluation.md")
TEMPLATE = Path(__file__).with_name("evaluation.html.jinja")
CATEGORIES = {"quality": ("bits per byte", "perplexity", "word perplexity", "acc", "acc_norm"),
              "efficiency": ("prefill tokens/s", "decode tokens/s", "first token ms", "peak MiB",
                             "model bytes", "joules per token", "tokens/s against plain")}
VERDICTS = {WIN: "wins", LOSS: "losses", UNKNOWN: "unknown", REFUSED: "refused"}
MEANING = {
    "equal parameters": "the same shape with matrices in floats, the same steps",
    "equal bytes": "a narrower float model that takes as many bytes in float16, the same steps",
    "equal time": "the float twin trained for as many seconds as BitNet, in steps of its own",
    engines.CONTEST: "the same model in another engine: the same prompt, tokens and threads; ours is "
                     "whichever model in bitnet_ref, and positive is better for bitnet_ref",
    "chain buckets": "guessing ahead by chains of tokens against plain decoding: the same text, sooner"}


def write(folder: Path, report: dict[str, Any], suffixes: tuple[str, ...] = ("json", "md", "html")) -> None:
    """Write the files. Raises CheckError where the disk refuses."""
    texts = {"json": json.dumps(report, indent=1, allow_nan=False) + "\n", "md": markdown(report),
             "html": rendered(TEMPLATE, content(report), evaluation_pictures.draw(report))}
    for suffix in suffixes:
        with whole_file(folder / f"{REPORT}.{suffix}") as file:
            file.write(texts[suffix].encode("utf-8", "replace"))


def publish(root: Path, report: dict[str, Any]) -> None:
    """Write the report into a clone's docs: the files, and the text into the page that leads to them.

    Raises CheckError: no such page, no markers in it, a disk that refuses.
    """
    page = root / PAGE
    (page.parent / page.stem).mkdir(exist_ok=True)
    write(page.parent / page.stem, report, ("json", "html"))
    put(page, block(report), "evaluate report")


def block(report: dict[str, Any]) -> str:
    """What stands on the page: the text without its title."""
    return markdown(report).partition("\n\n")[2].rstrip()


# ---- words ----

def number(value: float | None) -> str:
    """Four digits that count."""
    if value is None:
        return "-"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{max(0, 4 - len(str(int(abs(value)))))}f}"


def headline(row: dict[str, Any]) -> str:
    """A delta with its interval."""
    if row["delta"] is None:
        return "-"
    ends = "" if row["low"] is None else f" [{row['low']:+.1f}, {row['high']:+.1f}]"
    return f"{row['delta']:+.1f} %{ends}"


def key_rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each contest the row that counts most: bits per byte, or the best drafter of those that count."""
    first: dict[str, dict[str, Any]] = {}
    for row in report["rows"]:
        if row["metric"] in ("bits per byte", "acc", "pass@1"):
            first.setdefault(f"{row['contest']} {row['task']}", row)
    spoken = [r for r in report["rows"] if r["metric"] == chains.METRIC and chains.TOO_EASY not in r["flags"]]
    return [*first.values(), *sorted(spoken, key=lambda r: -(r["delta"] or 0))[:1]]


def sentence(row: dict[str, Any]) -> str:
    """A row in words."""
    inside = row["low"] is not None and row["low"] <= 0 <= row["high"]
    why = "within its uncertainty" if inside else (row["flags"] or ["nothing says how sure it is"])[0]
    verdict = {WIN: "better", LOSS: "worse", UNKNOWN: f"unknown: {why}", REFUSED: "refused"}[row["verdict"]]
    return f"{row['contest']}, {row['metric']} ({row['task']}): {headline(row)}, {verdict}"


def summary(report: dict[str, Any]) -> str:
    """What the command prints."""
    counts = ", ".join(f"{n} {VERDICTS[v]}" for v, n in report["summary"]["all"].items())
    return "\n".join([counts, *(sentence(row) for row in key_rows(report))])


def commands(report: dict[str, Any]) -> dict[str, int]:
    """{command: its number in the tables}"""
    found = dict.fromkeys(c for row in report["rows"] for c in row["commands"])
    return {command: n for n, command in enumerate(found, 1)}


def tables(report: dict[str, Any]) -> list[dict[str, Any]]:
    """[{title, about, categories: {category: rows}}] of the contests, rows with their words."""
    numbers, found = commands(report), dict[str, dict[str, Any]]()
    for row in report["rows"]:
        category = next((c for c, names in CATEGORIES.items() if row["metric"] in names), "tasks")
        shown = {**row, "mine": number(row["value"]), "other text": number(row["other"]),
                 "text": headline(row), "made by": [numbers[c] for c in row["commands"]],
                 "bar": bar(row)}
        table = found.setdefault(row["contest"], {"title": row["contest"], "categories": {},
                                                  "about": about(row["contest"], report)})
        table["categories"].setdefault(category, []).append(shown)
    return list(found.values())


def about(contest: str, report: dict[str, Any]) -> str:
    """What a contest holds equal; of engines also which they were, and how far from ours."""
    ran = report.get("engines", []) if contest == engines.CONTEST else []
    return "; ".join([MEANING.get(contest, ""), *(
        f"{each['name']}: {each['engine']}, logits {each['apart']:.1%} of the largest from ours"
        for each in ran)])


def bar(row: dict[str, Any], reach: float = 50.0) -> dict[str, Any] | None:
    """Where a row's interval lies on a line from -reach to +reach percent, as percents of its length, and
    `beyond`: the ends of the line, "<" and ">", over which something lies."""
    if row["delta"] is None:
        return None
    ends = {"at": row["delta"], "from": row["low"] if row["low"] is not None else row["delta"],
            "to": row["high"] if row["high"] is not None else row["delta"]}
    beyond = "<" * (min(ends.values()) < -reach) + ">" * (max(ends.values()) > reach)
    places = {name: round(50 + 50 * max(-1.0, min(1.0, value / reach)), 2) for name, value in ends.items()}
    return {**places, "beyond": beyond}


def content(report: dict[str, Any]) -> dict[str, Any]:
    """The names that evaluation.html.jinja uses."""
    return {**report, "tables": tables(report),
            "keys": [(sentence(row), row["verdict"]) for row in key_rows(report)],
            "verdicts": [(VERDICTS[v], v, n) for v, n in report["summary"]["all"].items()],
            "numbered": commands(report), "number": number, "percent": lambda share: f"{share:.1%}"}


def plain(words: object) -> str:
    """A stranger's words as one line of text: no cell of a table, no HTML, no second line begins in them."""
    return re.sub(r"([\\|<>`])", r"\\\1", " ".join(str(words).split()))


def markdown(report: dict[str, Any]) -> str:
    """The same as text."""
    counts = ", ".join(f"**{n}** {VERDICTS[v]}" for v, n in report["summary"]["all"].items())
    lines = ["# BitNet b1.58, held against full precision", "",
             f"{counts}. 0 % is parity, positive is better for BitNet, negative worse; in brackets 95 %.", "",
             *(f"- {plain(sentence(row))}" for row in key_rows(report)), "", "## Deficiencies", "",
             *(f"- {plain(words)}" for words in report["deficiencies"])]
    for table in tables(report):
        lines += ["", f"## {plain(table['title'].capitalize())}", "", plain(table["about"]), "",
                  "| task, metric | ours | theirs | delta | verdict | size | made by |", "|" + "---|" * 7]
        for rows in table["categories"].values():
            lines += [_line(r) for r in rows]
    lines += ["", "## Made by", "", *(f"{n}. {_code(command)}" for command, n in commands(report).items()),
              "",
              *(f"- {plain(name)}: {plain(value)}" for name, value in
                {**report["made"]["machine"], **report["made"]["versions"]}.items()), "",
              *(f"- {plain(d['name'])}: {d['items']:,} items, sha256 {_code(d['sha256'])}"
                for d in report["data"])]
    return "\n".join(lines) + "\n"


def _line(r: dict[str, Any]) -> str:
    flagged = "".join(f" ({words})" for words in r["flags"])
    cells = (f"{r['task']}, {r['metric']}", f"{r['ours']}: {r['mine']}", f"{r['theirs']}: {r['other text']}",
             r["text"], f"{r['verdict']}{flagged}", f"{r['n']:,} {r['unit']}")
    return f"| {' | '.join(map(plain, cells))} | {' '.join(f'[{n}]' for n in r['made by'])} |"


def _code(words: str) -> str:
    """In a line as code, where nothing is escaped: no back quote may end it."""
    return f"`{' '.join(words.replace('`', chr(39)).split())}`"
