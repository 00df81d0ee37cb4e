"""What one evaluation found, as a file: the figures, their sizes and uncertainty, and what made them.

Reports and comparisons are written from these files alone, and from nothing typed by hand. The values of each
question or window are kept (`items`), so that two models on the same data can be compared in pairs.
A file may come from a stranger: its size and every field are checked before anything is made of it.
Read after: evaluate. Read next: evaluate/example.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import held_in, whole_file

SCHEMA = 1
LARGEST = 1 << 26                # bytes of a file
MOST = 10_000                    # samples of a problem, and k of pass@k
CODE_FIELDS = ["correct", "samples"]                       # the share of the samples, and how many
KINDS = ("perplexity", "choice", "code", "efficiency")
FIX = "make it again with python -m bitnet_ref.evaluate --output FILE"
Table = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A figure over `n` questions or windows. `chance`: what guessing would give."""

    value: float
    n: int
    stderr: float | None = None
    better: str = "higher"           # or "lower"
    chance: float | None = None


@dataclass(frozen=True)
class Model:
    """Which model. `path`: the last part, or RUN/STEP. `weights`: sha256 of the stored weights.

    `bytes`: as stored for inference, by the formula (MC.5). `vocabulary`: checksum of what each id stands
    for. `linear`: ternary or full.
    """

    path: str
    format: str
    weights: str
    linear: str
    parameters: int
    bytes: int
    vocabulary: str
    vocab_size: int
    context: int


@dataclass(frozen=True)
class Made:
    """How, when and where: `command` names files without their folders; `machine` and `versions` by name."""

    command: str
    date: str                        # ISO 8601
    seconds: float
    versions: Table
    machine: Table


@dataclass(frozen=True)
class Data:
    """What was scored: its name, sha256 of the file or text, how many questions or windows. `how`: options
    without which the figure is another, such as a window's length; figures of two ways are not compared."""

    name: str
    sha256: str
    items: int
    how: Table = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """One evaluation. `items`: for each question or window the values that `item_fields` name, or None."""

    kind: str
    task: str
    model: Model
    made: Made
    data: Data
    metrics: dict[str, Metric]
    items: list[list[float]] | None = None
    item_fields: list[str] | None = None


def save(path: str | Path, record: Record) -> None:
    """Write JSON, whole or not at all. Raises CheckError: a value that `load` would refuse, a full disk.

    >>> import tempfile
    >>> from bitnet_ref.evaluate.example import record
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(path := Path(folder, "arc.json"), record())
    ...     load(path) == record()
    True
    """
    table = {"schema": SCHEMA, **asdict(record)}
    from_table(table, "the record")
    head = {k: v for k, v in table.items() if k != "items"}
    text = json.dumps(head, indent=1, allow_nan=False)[:-2]
    rows = table["items"]
    shown = "null" if rows is None else (
        "[\n" + ",\n".join(json.dumps(row, separators=(",", ":"), allow_nan=False) for row in rows) + "\n ]")
    data = f'{text},\n "items": {shown}\n}}\n'.encode()
    check(len(data) <= LARGEST, f"a record must have at most {LARGEST} bytes", len(data),
          "evaluate fewer questions with --limit")
    with whole_file(path) as file:
        file.write(data)


def save_all(path: str | Path, made: Sequence[Record]) -> None:
    """One record to `path`; several, of as many tasks, beside it: out.json is out.TASK.json for each.

    >>> import tempfile
    >>> from bitnet_ref.evaluate.example import record
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_all(Path(folder, "out.json"), [record("arc"), record("piqa")])
    ...     sorted(path.name for path in Path(folder).iterdir())
    ['out.arc.json', 'out.piqa.json']
    """
    for record in made:
        save(path if len(made) == 1 else _place_of(path, record.task), record)


def _place_of(path: str | Path, task: str) -> Path:
    """Where the record of one of several tasks lies: a name that is no path."""
    name = re.sub(r"[^\w.-]", "_", task)
    return Path(path).with_name(f"{Path(path).stem}.{name}{Path(path).suffix or '.json'}")


def load(path: str | Path) -> Record:
    """The record in a file. Raises CheckError: no file, too large, not JSON, not of this schema, a field that
    is missing, of another type or out of range.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = (path := Path(folder, "a.json")).write_text("[]")
    ...     load(path)                                         # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: ...a.json must be of schema 1; got []; update bitnet_ref, or ...
    """
    return from_table(json_in(path, "a record", FIX), str(path))


def json_in(path: str | Path, what: str, fix: str) -> Any:
    """The JSON in a file of `what`. Raises CheckError: no file, too large, not JSON; `fix`: what to do.

    >>> import os, tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "found.json")
    >>> with open(path, "w") as file:
    ...     _ = file.write('{"kind": "choice"}')
    >>> json_in(path, "a record", "make it again")
    {'kind': 'choice'}
    """
    held = held_in(path, LARGEST, what, fix, fix)
    try:
        return json.loads(held.decode("utf-8"))
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{path} must be {what} as JSON; got {str(e)[:100]}; {fix}") from None


def from_table(table: Any, where: str) -> Record:
    """The record that a JSON object says; `where` names it in errors. Raises CheckError as `load`.

    >>> from bitnet_ref.evaluate.example import record
    >>> from_table({"schema": SCHEMA, **asdict(record())}, "a table") == record()
    True
    """
    schema = table.get("schema") if isinstance(table, dict) else table
    check(isinstance(table, dict) and schema == SCHEMA, f"{where} must be of schema {SCHEMA}",
          repr(schema)[:50], f"update bitnet_ref, or {FIX}")
    parts = {name: _part(kind, table.get(name), f"{name} of {where}")
             for name, kind in (("model", Model), ("made", Made), ("data", Data))}
    held = table.get("metrics")
    check(isinstance(held, dict) and len(held) > 0, f"{where} must have metrics", repr(held)[:50], FIX)
    metrics = {name: _metric(m, f"{name} of {where}") for name, m in (held or {}).items()}
    for name in ("kind", "task"):
        check(isinstance(table.get(name), str), f"{name} of {where} must be a text",
              repr(table.get(name))[:50], FIX)
    check(table["kind"] in KINDS, f"kind of {where} must be one of {', '.join(KINDS)}", table["kind"], FIX)
    rows, names = table.get("items"), table.get("item_fields")
    _check_items(rows, names, parts["data"].items, where)
    _check_code([name for name in metrics if name.startswith("pass@")], rows, names, where)
    return Record(table["kind"], table["task"], parts["model"], parts["made"], parts["data"], metrics, rows,
                  names)


def _part(kind: type, held: Any, where: str) -> Any:
    """A dataclass of `kind` from a JSON object that has each of its fields, of its type."""
    check(isinstance(held, dict), f"{where} must be a table", repr(held)[:50], FIX)
    hints = get_type_hints(kind)
    for name, wanted in hints.items():
        value = held.get(name)
        if wanted in (float, float | None):
            fits = _number(value) or (value is None and wanted is not float)
        else:
            fits = type(value) is (get_origin(wanted) or wanted) and (wanted is not int or value >= 0)
        check(fits, f"{name} in {where} must be {getattr(wanted, '__name__', wanted)}", repr(value)[:50], FIX)
    return kind(**{name: held.get(name) for name in hints})


def _metric(held: Any, where: str) -> Metric:
    found = _part(Metric, held, where)
    check(found.better in ("higher", "lower"), f"better in {where} must be higher or lower", found.better,
          FIX)
    check(found.stderr is None or found.stderr >= 0, f"stderr in {where} must not be negative", found.stderr,
          FIX)
    return found


def _check_items(rows: Any, names: Any, n: int, where: str) -> None:
    if rows is None and names is None:
        return
    check(isinstance(names, list) and all(isinstance(f, str) for f in names),
          f"item_fields of {where} must be a list of names", repr(names)[:50], FIX)
    check(isinstance(rows, list) and len(rows) == n, f"items of {where} must be {n} rows",
          len(rows) if isinstance(rows, list) else repr(rows)[:50], FIX)
    for i, row in enumerate(rows):
        check(isinstance(row, list) and len(row) == len(names) and all(map(_number, row)),
              f"items of {where} must be rows of {len(names)} numbers", f"{row!r:.50} in row {i}", FIX)


def _check_code(found: list[str], rows: Any, names: Any, where: str) -> None:
    """pass@k is computed again from its rows, sample by sample: both must be what it can be computed from."""
    for name in found:
        check(re.fullmatch(r"pass@([1-9]\d{0,3}|10000)", name, re.ASCII) is not None,
              f"a metric of {where} must be pass@1 to pass@{MOST}", repr(name)[:50], FIX)
    if found and rows is not None:
        check(names == CODE_FIELDS, f"item_fields of {where} must be {', '.join(CODE_FIELDS)}",
              ", ".join(names)[:50], FIX)
        for i, (share, n) in enumerate(rows):
            check(0 <= share <= 1, f"correct of {where} must be 0 to 1", f"{share!r:.50} in row {i}", FIX)
            check(1 <= n <= MOST and n == int(n), f"samples of {where} must be 1 to {MOST}",
                  f"{n!r:.50} in row {i}", FIX)


def _number(value: Any) -> bool:
    """A finite number that JSON spells; true and false are none."""
    return type(value) in (int, float) and abs(value) < 1e300     # no NaN either, nor what no float holds
