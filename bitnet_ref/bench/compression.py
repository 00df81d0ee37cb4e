"""python -m bitnet_ref.bench.compression --output runs/compression
python -m bitnet_ref.bench.compression --output runs/compression --root . --preset nano --seeds 3

What --compress is worth: runs with and without, at equal epochs and at equal time, judged on plain text; what
tables save, and whether one must be mined again. Runs are ordinary folders; what is done is not run again.
Only the seconds of a step, taken by turns, depend on the machine. --root writes docs/compression.md.
Read after: bench/chain_tables. Read next: bench/scoring.
"""

import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from tqdm import tqdm

from bitnet_ref import kernels
from bitnet_ref.bench import timing
from bitnet_ref.bench.cells import T95, Cell, run_cells, spread
from bitnet_ref.bench.page import put
from bitnet_ref.chain import mine
from bitnet_ref.chain.compress import compressed, saved
from bitnet_ref.chain.merge import ids_of, merged
from bitnet_ref.chain.table import MOST, Table
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, add_args, configs, run_command
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.dataset import Dataset
from bitnet_ref.data.feed import open_feed
from bitnet_ref.data.prepare import prepare
from bitnet_ref.evaluate.perplexity import score
from bitnet_ref.generate.language_model import load
from bitnet_ref.train import loop, start
from bitnet_ref.train.compression import table_of
from bitnet_ref.train.summary import machine

KINDS = ("off", "first", "super")
EPOCHS, TIME = "equal epochs", "equal time"
AIM = 0.25                       # of the tokens, to be saved with a perplexity no worse at equal time
VOCABULARIES = (512, 1024, 4096, 16384)
QUARTERS = 4


# ---- tables ----

def share(tokens: np.ndarray, table: Table, eos: int) -> float:
    """Of the tokens, those that compression by `table` saves."""
    return 1 - len(merged(tokens, ids_of(table), eos, None)) / max(1, len(tokens))


def part(data: Dataset, tokens: np.ndarray) -> Dataset:
    """The dataset with these training tokens."""
    return data._replace(train=data.train._replace(tokens=tokens))


def again(data: Dataset) -> list[dict[str, float]]:
    """For each quarter of the training side but the first: what tables of the quarter before, of the whole,
    and of the quarter itself save there."""
    eos, whole = data.train.header.eos, mine.mine_for(data)
    quarters = np.array_split(data.train.tokens, QUARTERS)
    tables = [mine.mine_for(part(data, tokens)) for tokens in quarters]
    return [{"before": share(tokens, tables[q], eos), "whole": share(tokens, whole, eos),
             "itself": share(tokens, tables[q + 1], eos)} for q, tokens in enumerate(quarters[1:])]


def once(data: Dataset) -> dict[str, float]:
    """Seconds before the first run: mining the table, and merging its chains."""
    began = perf_counter()
    table = mine.mine_for(data)
    mined = perf_counter()
    merged(data.train.tokens, ids_of(table), data.train.header.eos, None)
    return {"mining": mined - began, "merging": perf_counter() - mined}


def for_length(data: Dataset) -> Table:
    """A table chosen for the tokens that it saves and for nothing else: every token after a chain's first
    counts, however likely it was."""
    tokens, eos = data.train.tokens, data.train.header.eos
    with tqdm(disable=True) as bar:
        likely = mine.candidates(tokens, mine.tallies(tokens, eos, bar))
        counts, places = mine.recount(tokens, eos, likely, bar)
    weighed = [mine.Candidate(ids, 1, 1.0, places[ids]) for ids in likely]
    return table_of(data)._replace(chains=mine.choose(weighed, counts, MOST, min(len(tokens), mine.CHOICE)))


def savings(corpus: str, vocabulary: int) -> dict[str, float]:
    """What is saved of a corpus's tokens: by a run's table, by one chosen for that alone, and by a tokenizer
    with as many more entries in place of a table."""
    data, larger = (prepare(corpus, vocab_size=size) for size in (vocabulary, vocabulary + MOST))
    tokens, eos = data.train.tokens, data.train.header.eos
    return {"vocabulary": data.tokenizer.vocab_size, "table": share(tokens, table_of(data), eos),
            "for length": share(tokens, for_length(data), eos),
            "tokenizer": 1 - len(larger.train.tokens) / len(tokens)}


# ---- runs ----

def step_seconds(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, rounds: int
                 ) -> dict[str, list[float]]:
    """{kind: seconds of a step, one for each round}, by turns. A step of "first" is a plain one: the same
    shapes, other tokens."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {kind: start.start(preset, model_cfg, replace(cfg, compress=kind, guard=False),
                                  str(Path(folder) / kind)) for kind in ("off", "super")}
        times = timing.alternate({kind: partial(loop.optimise, *pair) for kind, pair in runs.items()}, rounds)
        return {"off": times["off"], "first": times["off"], "super": times["super"]}


def plan(windows: dict[str, int], ratio: dict[str, float], steps: int) -> dict[tuple[str, str], int]:
    """{(kind, what is equal): steps}. ratio: seconds of a plain step over those of one of the kind."""
    by = {EPOCHS: {kind: n / windows["off"] for kind, n in windows.items()}, TIME: ratio}
    return {("off", EPOCHS): steps,
            **{(kind, what): max(1, round(steps * by[what][kind])) for kind in KINDS[1:] for what in by}}


def cells(steps: dict[tuple[str, str], int], model_cfg: ModelConfig, cfg: TrainConfig,
          seeds: int) -> list[Cell]:
    """A run for each plan and seed."""
    return [Cell(f"{kind}-{what.replace(' ', '-')}-seed-{cfg.seed + s}", model_cfg,
                 replace(cfg, compress=kind, steps=n, epochs=None, seed=cfg.seed + s))
            for (kind, what), n in steps.items() for s in range(seeds)]


def rows(steps: dict[tuple[str, str], int], runs: list[dict[str, Any]], data: Dataset, folder: Path,
         seeds: int) -> list[dict[str, Any]]:
    """The figures of each plan: lists by seed."""
    assert data.val is not None
    n_bytes = int(data.tokenizer.token_bytes[data.val.tokens].sum())
    per_token = n_bytes / (len(data.val.tokens) - 1)
    found = []
    for i, ((kind, what), n) in enumerate(steps.items()):
        of_it = runs[i * seeds:(i + 1) * seeds]
        check(all(r["loss"] is not None for r in of_it), "every run must train",
              f"one of {kind} that diverged", "give a lower --lr")
        bits = [r["bits per byte"] for r in of_it]
        found.append({"kind": kind, "equal": what, "steps": n, "bits per byte": bits,
                      "perplexity": [2 ** (b * per_token) for b in bits],
                      "as plain tokens": [_plainly(folder / r["name"], data) for r in of_it]
                      if kind == "super" else bits})
    return found


def _plainly(run: Path, data: Dataset) -> float:
    """Bits per byte of a run with super-tokens on text that has none."""
    assert data.val is not None
    model = load(run)
    return score(model.transformer, data.val.tokens, model.tokenizer.token_bytes).bits_per_byte


def measured(preset: str, model_cfg: ModelConfig, cfg: TrainConfig, folder: Path, seeds: int, rounds: int,
             jobs: int) -> dict[str, Any]:
    """All figures. The seconds of a step are measured once and kept in the folder, as steps follow from them.
    """
    data = prepare(cfg.corpus, cfg.tokenizer, model_cfg.vocab_size, cfg.val_fraction, val=cfg.val)
    sides = {kind: compressed(data, table_of(data), kind) for kind in KINDS}
    windows = {kind: open_feed(side.train, side.report, model_cfg.context, cfg.seed, cfg.packing).windows
               for kind, side in sides.items()}
    times = folder / "seconds.json"
    if not times.exists():
        taken = {"once": once(data), "steps": step_seconds(preset, model_cfg, cfg, rounds)}
        with whole_file(times) as file:
            file.write(json.dumps(taken).encode())
    kept = json.loads(times.read_text(encoding="utf-8"))
    seconds: dict[str, list[float]] = kept["steps"]
    ratio = {kind: statistics.median(a / b for a, b in zip(seconds["off"], seconds[kind])) for kind in KINDS}
    steps = plan(windows, ratio, cfg.steps)
    runs = run_cells(preset, cells(steps, model_cfg, cfg, seeds), folder, jobs,
                     cfg.threads or max(1, timing.available() // jobs))
    per_epoch = {kind: n / (cfg.batch * cfg.accumulate) for kind, n in windows.items()}
    return {"machine": {**machine(), **kernels.about(cfg.backend)}, "preset": preset, "corpus": cfg.corpus,
            "seeds": seeds, "chains": len(table_of(data).chains),
            "tokens": {kind: len(side.train.tokens) for kind, side in sides.items()},
            "saved": {kind: saved(side) if kind != "off" else 0.0
                      for kind, side in sides.items()},
            "step seconds": timing.median(seconds),
            "epoch seconds": {kind: per_epoch[kind] * statistics.median(seconds[kind]) for kind in KINDS},
            "rows": rows(steps, runs, data, folder, seeds), "again": again(data), "once": kept["once"]}


# ---- words ----

def _over(values: Sequence[float], digits: int) -> str:
    """Mean and 95 % interval over seeds; of one seed its figure."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    found = spread(list(values))
    return f"{found.mean:.{digits}f} ± {found.half:.{digits}f}"


def against_plain(f: dict[str, Any], row: dict[str, Any]) -> list[float]:
    """By how many percent a row's perplexity is above that of the plain run of the same seed."""
    return [100 * (b / a - 1) for a, b in zip(f["rows"][0]["perplexity"], row["perplexity"])]


def verdict(f: dict[str, Any], kind: str) -> str:
    """Whether the aim is met: so many tokens saved, and a perplexity no worse at equal time."""
    row = next(r for r in f["rows"] if (r["kind"], r["equal"]) == (kind, TIME))
    away, fewer = statistics.mean(against_plain(f, row)), f["saved"][kind]
    met = fewer >= AIM and away <= 0
    return (f"**`{kind}`: the aim of {AIM:.0%} fewer tokens with a perplexity no worse at equal time is "
            f"{'met' if met else 'not met'}**: {fewer:.1%} fewer, perplexity {away:+.1f} %.")


def block(f: dict[str, Any]) -> str:
    """The tables of docs/compression.md."""
    m = f["machine"]
    lines = [f"`{f['preset']}` on {Path(f['corpus']).name}, seeds: {f['seeds']} (mean and 95 % interval), "
             f"{f['chains']} chains; {m['cores']} cores of {m['processor']}, threads {m['threads']}, "
             f"Python {m['python']}, NumPy {m['numpy']}. Perplexity is per plain token.", "",
             "| `--compress` | tokens of an epoch | saved | ms per step | seconds per epoch |",
             "|---|---|---|---|---|"]
    lines += [f"| {kind} | {f['tokens'][kind]:,} | {f['saved'][kind]:.1%} | "
              f"{1e3 * f['step seconds'][kind]:.0f} | {f['epoch seconds'][kind]:.1f} |" for kind in KINDS]
    lines += ["", f"Once for a corpus, and in none of these figures: mining {f['once']['mining']:.1f} s, "
              f"merging {f['once']['merging']:.1f} s.", "",
              "| `--compress` | with plain | steps | bits per byte | perplexity | against plain, % | "
              "bits per byte, cut as plain tokens |", "|---|---|---|---|---|---|---|"]
    lines += [f"| {r['kind']} | {r['equal'] if r['kind'] != 'off' else ''} | {r['steps']:,} | "
              f"{_over(r['bits per byte'], 4)} | {_over(r['perplexity'], 2)} | "
              f"{_over(against_plain(f, r), 2) if r['kind'] != 'off' else ''} | "
              f"{_over(r['as plain tokens'], 4)} |" for r in f["rows"]]
    lines += ["", *(line for kind in KINDS[1:] for line in (verdict(f, kind), ""))]
    return "\n".join(lines + _of_tables(f))


def _of_tables(f: dict[str, Any]) -> list[str]:
    lines = ["What is saved, by the entries of the tokenizer that the chains are of:", "",
             f"| entries | by the run's table | by {MOST} chains chosen for length alone | by a tokenizer "
             f"with {MOST} more entries |", "|---|---|---|---|"]
    lines += [f"| {s['vocabulary']:,} | {s['table']:.1%} | {s['for length']:.1%} | {s['tokenizer']:.1%} |"
              for s in f["savings"]]
    return [*lines, "", "What is saved of a quarter of the corpus, by the table of the quarter before it, of "
            "the whole, and of the quarter itself: " + "; ".join(
                f"{q['before']:.1%}, {q['whole']:.1%}, {q['itself']:.1%}" for q in f["again"]) + "."]


def main(argv: list[str]) -> int:
    """Parse, measure, write, print."""
    parser = Parser("python -m bitnet_ref.bench.compression", __doc__)
    parser.add_argument("--preset", metavar="|".join(PRESETS), help="a named model and its rates (nano)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--root", metavar="DIR", help="write the docs of the clone in this folder")
    for name, default, what in (("seeds", 3, "from --seed on"), ("rounds", 30, "of the seconds of a step"),
                                ("jobs", 1, "runs at a time")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default: {default})")
    add_args(parser, TrainConfig, "training")
    add_args(parser, ModelConfig, "model")
    args = parser.parse_args(argv)
    check(args.seeds in (1, *T95), f"--seeds must be 1 to {max(T95)}", args.seeds, "use 3")
    check(args.rounds > 0 and args.jobs > 0, "--rounds and --jobs must be greater than 0",
          f"{args.rounds} and {args.jobs}", "leave them out")
    preset, model_cfg, cfg = configs(args)
    check((cfg.compress, cfg.epochs) == ("off", None), "the bench chooses --compress and the steps of a run",
          "--compress or --epochs", "leave them out; give --steps")
    folder = Path(args.output)
    f = measured(preset, model_cfg, cfg, folder, args.seeds, args.rounds, args.jobs)
    f["savings"] = [savings(cfg.corpus, size) for size in VOCABULARIES]
    with whole_file(folder / "figures.json") as file:
        file.write((json.dumps(f, indent=1) + "\n").encode())
    if args.root:
        put(Path(args.root) / "docs" / "compression.md", block(f), "bench.compression")
    print(block(f))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
