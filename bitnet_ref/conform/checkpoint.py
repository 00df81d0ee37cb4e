"""python -m bitnet_ref.conform hf PATH

Check a downloaded checkpoint before anyone runs it, for a wrong or half one gives text, only worse: config,
names, shapes, sizes, checksums, then each tensor, a few MiB at a time. BAD: it cannot be right. odd: it may
be, and the line says why it is unusual. docs/formats/hf.md explains each line.
Read after: conform/verdict. Read next: conform/dump.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import CheckError, check
from bitnet_ref.cli import CHECK_FAILED, DONE, text
from bitnet_ref.conform.report import plain
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.formats.census import Census, Tick, of_floats, of_packed, shares_of_masters
from bitnet_ref.formats.hf import DERIVED, PACKED, SCALE, disagreements, file_name
from bitnet_ref.formats.hf_config import STORAGES, HfConfig, read_config
from bitnet_ref.formats.safetensors_stream import FLOATS, Stored, read_header, rows, shards
from bitnet_ref.model.params import Spec, param_specs
from bitnet_ref.quant import FLOOR

OK, ODD, BAD = "ok", "odd", "BAD"
SUMS = "SHA256SUMS"
SHOWN = 12                           # lines of one kind that are printed
CHUNK = 1 << 22
USUAL_SCALE = 1e-3, 20.0             # mean|W| of trained models: 0.01 to 10 have been seen
USUAL_ZEROS = 0.15, 0.70             # share of zero trits: 0.3 to 0.51 have been seen
UNBALANCED, LARGE = 0.1, 4096        # share of +1 less that of -1, in a matrix of so many trits
ZERO_ROWS = 0.1                      # share of an embedding's rows above which it is a hole, not padding


class Line(NamedTuple):
    """One finding. `level`: ok, odd or BAD."""

    level: str
    what: str
    detail: str


class Report(NamedTuple):
    """`lines` in the order of the checks; `tensors`: figures of each tensor by its name in the file."""

    path: str
    lines: list[Line]
    tensors: dict[str, dict[str, Any]]

    @property
    def sound(self) -> bool:
        """Nothing is BAD."""
        return all(line.level != BAD for line in self.lines)

    def add(self, level: str, what: str, detail: str) -> None:
        """One more finding."""
        self.lines.append(Line(level, what, detail))


class Seen(NamedTuple):
    """A tensor of the model: what the table of parameters and the file say of it, and what is in it."""

    spec: Spec
    name: str
    stored: Stored
    census: Census


def check_checkpoint(path: str | Path, progress: bool = False) -> Report:
    """Look at every part of a Hugging Face folder.   Raises CheckError if `path` is none.

    What is damaged becomes a line of the report, and the rest is still judged.
    """
    folder = Path(path)
    check(folder.is_dir(), "PATH must be a folder with config.json and safetensors", path, "give one")
    report = Report(str(path), [], {})
    config: HfConfig | None = _attempt(report, "config.json", lambda: read_config(folder))
    if config is not None:
        report.add(OK, "config.json", _summary(config))
    files = _files(report, folder)
    held = {name: t for file in files for name, t in _header(report, file, files[file]).items()}
    wanted = _names(report, config, held) if config else []
    work = sum(f.stat().st_size for f in files) + sum(t.end - t.begin for _, t in wanted)
    with tqdm(total=work, unit="B", unit_scale=True, desc="checking", disable=not progress) as bar:
        for line in _checksums(folder, list(files), bar.update):
            report.lines.append(line)
        if config:
            _contents(report, config, held, wanted, bar.update)
    return report


def _attempt(report: Report, what: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; a CheckError becomes a BAD line and None."""
    try:
        return work()
    except CheckError as e:
        report.add(BAD, what, str(e))
        return None


def _summary(config: HfConfig) -> str:
    c = config.model
    tied = "tied" if c.tied_embeddings else "untied"
    return (f"{c.n_layers} layers of {c.d_model}, {c.n_heads} heads on {c.n_kv_heads}, d_ff {c.d_ff}, "
            f"{c.glu}, norms {c.norm}, {tied}; projections: {STORAGES[config.storage]}")


# ---- files -----------------------------------------------------------------------------------------------


def _files(report: Report, folder: Path) -> dict[Path, list[str] | None]:
    """The weight files; where the index is damaged, those that lie in the folder."""
    found = _attempt(report, "files", lambda: shards(folder))
    if found is None:
        return {f: None for f in sorted(folder.glob("*.safetensors")) if f.is_file() and not f.is_symlink()}
    return found


def _header(report: Report, file: Path, promised: list[str] | None) -> dict[str, Stored]:
    """The tensors of a file, as far as its header can be read and as far as the file goes."""
    held = _attempt(report, file.name, lambda: read_header(file, whole=False))
    if held is None:
        return {}
    size, end = file.stat().st_size, max((t.end for t in held.values()), default=0)
    whole = size == end
    cut = sum(not t.here for t in held.values())
    report.add(OK if whole else BAD, file.name, f"{size:,} bytes, {len(held)} tensors" if whole else
               f"{size:,} bytes where the header declares {end:,}: {cut} of {len(held)} tensors are cut off")
    if promised is not None and set(promised) != set(held):
        wrong = sorted(set(promised) ^ set(held))
        report.add(BAD, file.name,
                   f"{len(wrong)} tensors are not where the index says: {', '.join(wrong[:3])}"[:300])
    return held


def _checksums(folder: Path, files: list[Path], tick: Tick) -> Iterator[Line]:
    """The SHA-256 of each file, compared with SHA256SUMS beside it, if there is one."""
    try:
        known = _recorded(folder / SUMS)
        for file in files:
            digest = hashlib.sha256()
            with open(file, "rb") as f:
                while chunk := f.read(CHUNK):
                    digest.update(chunk)
                    tick(len(chunk))
            got, want = digest.hexdigest(), known.get(file.name)
            said = f"compare it: no {SUMS} has it"
            if want is not None:
                said = "as recorded" if want == got else f"not {want}, as recorded"
            yield Line(OK if want in (None, got) else BAD, f"sha256 {file.name}", f"{got} ({said})")
    except OSError as e:
        yield Line(BAD, "sha256", str(unreadable(folder, e)))


def _recorded(sums: Path) -> dict[str, str]:
    """name -> hex digest of a SHA256SUMS file (`sha256sum` writes it); {} if there is none."""
    if not sums.is_file() or sums.stat().st_size > CHUNK:
        return {}
    lines = (line.split(maxsplit=1) for line in sums.read_text("utf-8", errors="replace").splitlines())
    return {p[1].strip().lstrip("*").rpartition("/")[2]: p[0].lower() for p in lines if len(p) == 2}


# ---- names -----------------------------------------------------------------------------------------------


def _names(report: Report, config: HfConfig, held: dict[str, Stored]) -> list[tuple[Spec, Stored]]:
    """Report what the config and the headers disagree on. Returns the tensors that can be looked into."""
    wrong = list(disagreements(config, held))
    for d in wrong[:SHOWN]:
        report.add(BAD, d.name, f"{d.rule}; got {d.got}")
    if len(wrong) > SHOWN:
        report.add(BAD, "names", f"{len(wrong) - SHOWN} more disagreements of this kind")
    if not wrong:
        report.add(OK, "names", f"{len(held)} tensors: names, shapes and dtypes are what the config demands")
    if config.model.tied_embeddings and "lm_head.weight" in held:
        report.add(ODD, "lm_head.weight", "there, though the config ties the head to the embedding: ignored")
    derived = sum(bool(DERIVED.fullmatch(name)) for name in held)
    if derived:
        report.add(ODD, "rotary_emb", f"{derived} tables of an old export, ignored: rope_theta decides")
    if config.model.n_layers > len(held):
        return []
    named = {d.name for d in wrong}
    pairs = ((s, file_name(s, held)) for s in param_specs(config.model))
    return [(s, held[name]) for s, name in pairs if name in held and name not in named and held[name].here]


# ---- contents --------------------------------------------------------------------------------------------


def _contents(report: Report, config: HfConfig, held: dict[str, Stored], wanted: list[tuple[Spec, Stored]],
              tick: Tick) -> None:
    """One pass over each tensor, then what the figures say."""
    packed, seen = config.storage in PACKED, []
    for spec, t in wanted:
        census = of_packed(t, tick) if packed and spec.ternary else of_floats(t, tick)
        if spec.ternary and config.storage == "masters":
            census = census._replace(shares=shares_of_masters(t, max(census.mean, FLOOR), lambda n: None))
        seen.append(Seen(spec, file_name(spec, held), t, census))
    for s in seen:
        report.tensors[s.name] = _figures(s)
        _finite(report, s, packed)
    _scales(report, config, held)
    _shares(report, seen)
    _dead(report, config, {s.spec.name: s.census for s in seen})
    for s in seen:
        if s.spec.name in ("embedding", "head"):
            _table(report, s)


def _figures(s: Seen) -> dict[str, Any]:
    c = s.census
    figures = {"dtype": s.stored.dtype, "shape": list(s.stored.shape), "bad": c.bad,
               "largest": plain(c.largest), "mean": plain(c.mean),
               "dead rows": int(c.dead_rows.sum()), "dead columns": int(c.dead_columns.sum())}
    return figures | ({"-1, 0, +1": list(c.shares)} if c.shares else {})


def _finite(report: Report, s: Seen, packed: bool) -> None:
    """NaN, infinities, codes 3, and tensors that are nothing but zero."""
    c = s.census
    if packed and s.spec.ternary:
        if c.bad:
            unused = c.shares is not None and c.shares[0] == 0
            hint = "; code 0 is not used: does this file store value + 2?" if unused else ""
            report.add(BAD, s.name, f"code 3, which stands for no trit, occurs {c.bad:,} times{hint}")
    elif c.bad:
        report.add(BAD, s.name, f"{c.bad:,} of {c.size:,} values are NaN or infinite")
    elif c.largest == 0:
        report.add(BAD, s.name, "all values are 0: a hole in a download?")


def _scales(report: Report, config: HfConfig, held: dict[str, Stored]) -> None:
    """The stored weight_scale of each packed matrix, and whether they look like what the config declares."""
    if config.storage not in PACKED or config.model.n_layers > len(held):
        return
    names = [file_name(s, held) + SCALE for s in param_specs(config.model) if s.ternary]
    there = {n: held[n] for n in names if n in held and held[n].here}
    stored = {n: float(rows(t).reshape(-1)[0]) for n, t in there.items()
              if t.dtype in FLOATS and t.shape in ((), (1,))}
    good = {n: v for n, v in stored.items() if np.isfinite(v) and v > 0}
    for n in [n for n in stored if n not in good][:SHOWN]:
        report.add(BAD, n, f"{stored[n]}: a scale must be positive and finite")
    if good:
        level, detail = judge_scales(list(good.values()), config.storage)
        report.add(level, "weight_scale", detail)


def judge_scales(stored: list[float], storage: str) -> tuple[str, str]:
    """(level, detail): do the values look like the multipliers, or the reciprocals, that the config declares?

    Only far from 1 can this be told: mean|W| of published models is 0.01 to 10, so 2.2 and 1/2.2 both occur.
    """
    low, high = USUAL_SCALE
    middle = float(np.median(stored))
    meant, other = (middle, 1 / middle) if storage == "multiply" else (1 / middle, middle)
    text = (f"{len(stored)} values, {min(stored):.4g} to {max(stored):.4g}, median {middle:.4g}; the config "
            f"declares that they {storage}, so mean|W| would be {meant:.4g}: ")
    if len(set(stored)) == 1 and stored[0] == 1:
        return ODD, text + "all are 1, the value of a buffer that was never filled"
    if low <= meant <= high:
        both = low <= other <= high
        return OK, text + ("plausible, but " + (
            f"so would {other:.4g} be: the values cannot tell which is meant" if both
            else f"the reciprocal, {other:.4g}, would not be"))
    if low <= other <= high:
        return ODD, text + f"unusual, while {other:.4g} would be usual: is linear_class right?"
    return ODD, text + "unusual, and so is its reciprocal"


def _shares(report: Report, seen: list[Seen]) -> None:
    """The histogram of each ternary matrix."""
    known = [(s, s.census.shares) for s in seen if s.census.shares]
    if not known:
        return
    for s, (minus, zero, plus) in known:
        detail = f"-1, 0, +1: {minus:.1%}, {zero:.1%}, {plus:.1%}"
        if max(minus, zero, plus) == 1:
            hole = ", as of bytes that are 0: a hole in a download?" if minus == 1 else ""
            report.add(BAD, s.name, f"{detail}: one value only{hole}")
        elif not USUAL_ZEROS[0] <= zero <= USUAL_ZEROS[1] or (
                abs(minus - plus) > UNBALANCED and s.census.size >= LARGE):
            report.add(ODD, s.name, f"{detail}: trained ones are balanced, a third to a half of them zeros")
    table = np.array([shares for _, shares in known])
    minus, zero, plus = table.mean(axis=0)
    report.add(OK, "codes", f"{len(known)} ternary matrices, -1, 0, +1: {minus:.1%}, {zero:.1%}, {plus:.1%} "
               f"on average, zeros {table[:, 1].min():.1%} to {table[:, 1].max():.1%}")


def _dead(report: Report, config: HfConfig, census: dict[str, Census]) -> None:
    """Neurons of the gated unit that cannot speak. 2B4T has some in layers 1 to 3, so they are no fault."""
    n = 0
    for l in range(config.model.n_layers):
        at = f"layers.{l}."
        masks = {name: mask for name, mask in (
            ("gate", _rows(census, at + "ffn.w_gate")), ("up", _rows(census, at + "ffn.w_up")),
            ("down", census[at + "ffn.w_down"].dead_columns if at + "ffn.w_down" in census else None),
            ("sub-norm", _rows(census, at + "ffn_sub_norm"))) if mask is not None}
        dead = np.logical_or.reduce(list(masks.values())) if masks else np.zeros(1, bool)
        if dead.any():
            n += 1
            parts = ", ".join(f"{name} {int(mask.sum())}" for name, mask in masks.items())
            level = BAD if dead.all() else ODD
            report.add(level, f"layer {l}", f"{int(dead.sum())} of {dead.size} neurons are dead ({parts}); "
                       "the real 2B4T has such in layers 1 to 3")
    if not n:
        report.add(OK, "dead neurons", "none")


def _rows(census: dict[str, Census], name: str) -> np.ndarray | None:
    return census[name].dead_rows if name in census else None


def _table(report: Report, s: Seen) -> None:
    """The embedding or the head: a download that broke off, or was sparse, leaves most of its rows zero."""
    dead = s.census.dead_rows
    live = np.flatnonzero(~dead)
    share, last = dead.mean(), int(live[-1]) + 1 if live.size else 0
    level = OK if not dead.any() else BAD if share > ZERO_ROWS else ODD
    tail = f", all from row {last} on" if level != OK and last < dead.size else ""
    hint = "; a download that broke off looks like this" if level == BAD else ""
    report.add(level, s.name,
               f"{s.stored.dtype}; {int(dead.sum()):,} of {dead.size:,} rows are zero{tail}{hint}")


# ---- the command -----------------------------------------------------------------------------------------


def table(report: Report) -> str:
    """The report as text, one line a finding."""
    n = {level: sum(line.level == level for line in report.lines) for level in (OK, ODD, BAD)}
    lines = [f"{line.level:<4}{line.what:<28} {line.detail}" for line in report.lines]
    verdict = "nothing is BAD" if report.sound else "explain the BAD lines before you run this checkpoint"
    return "\n".join([*lines, f"{n[OK]} ok, {n[ODD]} odd, {n[BAD]} BAD: {verdict}"])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `conform hf`."""
    parser.add_argument("path", type=text, metavar="PATH", help="a folder with config.json and safetensors")
    parser.add_argument("--json", action="store_true", help="print JSON, with the figures of every tensor")


def run(args: argparse.Namespace) -> int:
    """Check, print. 0: nothing is BAD; 1: something is."""
    report = check_checkpoint(args.path, progress=True)
    print(json.dumps({**report._asdict(), "sound": report.sound}, indent=1) if args.json else table(report))
    return DONE if report.sound else CHECK_FAILED
