"""python -m bitnet_ref.bench.speculation --run RUN --run RUN --output DIR
python -m bitnet_ref.bench.speculation --run RUN --output DIR --root . --prompts 40

What guessing ahead brings: the cost of a call of k tokens against one, and for trained runs the speed, the
acceptance and the calls per token of every drafter on held-out prompts, by turns with plain decoding, whose
text must be the same. Ends with figures.json; --root writes docs/speculative.md of that clone.
Read after: bench/scaling. Read next: bench/chain_tables.
"""

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref import kernels
from bitnet_ref.bench import inference, timing
from bitnet_ref.bench.page import put
from bitnet_ref.bench.random_model import BLOCKS, NANO, QUICK
from bitnet_ref.chain.draft import REACH, Drafter, Lookup, Refreshed, chains, oracle
from bitnet_ref.chain.mine import mine_for
from bitnet_ref.chain.show import coverage
from bitnet_ref.chain.table import Table
from bitnet_ref.checks import check
from bitnet_ref.cli import DONE, Parser, run_command
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.dataset import Dataset
from bitnet_ref.data.prepare import prepare
from bitnet_ref.formats.checkpoint import latest, read_state
from bitnet_ref.generate.decode import decode
from bitnet_ref.generate.language_model import TOKENIZER, LanguageModel, load
from bitnet_ref.generate.sampling import GREEDY, Sampling
from bitnet_ref.generate.speculative import Pace, speculate
from bitnet_ref.generate.spoken import spoken
from bitnet_ref.generate.window import Window
from bitnet_ref.model import Transformer
from bitnet_ref.train.checkpoint import train_config
from bitnet_ref.train.summary import machine

PROMPT = 64                      # tokens of a held-out prompt
LOOPS = 0.5                      # share of distinct 4-grams below which a text does not count
WAYS = {"greedy": GREEDY, "temperature 0.8": Sampling(0.8)}
NAMES = ("table", "own words", "lookup", "refreshed", "refreshed, table", "refreshed, own words", "oracle")
SHAPES = {"nano": (NANO, ("i2", "b3")), "2B4T blocks": (BLOCKS, ("i2", "b3", inference.HEAD))}
LARGE = "2B4T blocks, i2"        # its cost of a call says what the same guesses would bring to a large model
COLUMNS = ("drafter", "tokens/s against plain", "by the formula", "at the cost of 2B4T, i2", "acceptance",
           "on people's text", "calls per token", "share guessed")


def costs(rounds: int, threads: int, quick: bool) -> dict[str, list[float]]:
    """{shape and packing: the `curve` of such a model}."""
    shapes = {"quick": (QUICK, ("b3",))} if quick else SHAPES
    return {f"{name}, {bits}": curve(inference.model(cfg, bits), rounds, threads)
            for name, (cfg, packings) in shapes.items() for bits in packings}


def curve(model: Transformer, rounds: int, threads: int) -> list[float]:
    """Seconds of a call of k = 1..8 tokens over that of one: the median over rounds."""
    read = min(PROMPT, model.cfg.context - REACH - 1)
    _, state = model.prefill(np.ones((1, read), np.int64))
    runs = {str(k): _call(model, state, k) for k in range(1, REACH + 2)}
    with timing.threads(threads):
        times = timing.alternate(runs, rounds)             # no rest: threads stay awake, as in a text
    return [statistics.median(a / b for a, b in zip(times[k], times["1"])) for k in runs]


def _call(model: Any, state: Any, k: int) -> Callable[[], object]:
    ids = np.ones((1, k), np.int64)
    return lambda: model.decode_step(ids[0], state) if k == 1 else model.extend(ids, state)


# ---- a run ----

class Tables(NamedTuple):
    """Of the corpus of a run, and of what its model says."""

    corpus: Table
    spoken: Table


def drafter(name: str, tables: Tables, text: Sequence[int]) -> Drafter:
    """One of NAMES, new. `text`: what an oracle knows."""
    made: dict[str, Callable[[], Drafter]] = {
        "table": lambda: chains(tables.corpus), "own words": lambda: chains(tables.spoken), "lookup": Lookup,
        "refreshed": Refreshed, "refreshed, table": lambda: Refreshed(tables.corpus),
        "refreshed, own words": lambda: Refreshed(tables.spoken), "oracle": lambda: oracle(text)}
    return made[name]()


def opened(run: str, threads: int | None) -> tuple[LanguageModel, Dataset]:
    """The run's model and the corpus that it was trained on. Raises CheckError where nothing was held out,
    and for a run with super-tokens: tables of its corpus are of the plain ones."""
    checkpoint = latest(run)
    cfg = train_config(read_state(checkpoint))
    check(cfg.compress != "super", "a run to measure must have plain tokens", f"--compress super of {run}",
          "train another")
    model = load(run, threads=threads)
    data = prepare(cfg.corpus, str(checkpoint.parent / TOKENIZER), model.cfg.vocab_size, cfg.val_fraction,
                   val=cfg.val)
    check(data.val is not None, "a run to measure must have held-out text", f"none of {run}", "train another")
    return model, data


def measured(model: LanguageModel, data: Dataset, cost: list[float], prompts: int,
             tokens: int) -> dict[str, Any]:
    """All that is said of a run: {way of drawing: {drafter: figures}}, and of its tables and its texts.

    `cost`: the `curve` of its model.
    """
    tables = Tables(mine_for(data), spoken(model.transformer, data))
    assert data.val is not None
    held_out = np.asarray(data.val.tokens, np.int64)
    starts = np.linspace(0, max(0, len(held_out) - PROMPT - tokens), prompts).astype(int)
    people = [held_out[s:s + PROMPT + tokens].tolist() for s in starts]
    given = [text[:PROMPT] for text in people]
    human = {name: alone(name, tables, people) for name in NAMES if name != "oracle"}
    found: dict[str, Any] = {"corpus": Path(data.report["corpus"]).name, "cost": cost,
                             "coverage": coverage(tables.corpus)[-1], "ways": {}}
    for way, how in WAYS.items():
        texts, rows = _by_turns(model, tables, given, tokens, how, way)
        figures = {name: _figures(row, cost, human.get(name)) for name, row in rows.items()}
        found["ways"][way] = {"texts": texts, "drafters": figures}
    return found


def _by_turns(model: LanguageModel, tables: Tables, given: list[list[int]], tokens: int, how: Sampling,
              way: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Each prompt is continued plainly, then with each drafter; each drafter's first prompt is a warm-up."""
    paces: dict[str, Pace] = {name: Pace() for name in NAMES}
    ratios: dict[str, list[float]] = {name: [] for name in NAMES}
    equal, distinct, plain_seconds = 0, list[float](), list[float]()
    for n, prompt in enumerate(tqdm(given, way)):
        window = Window(model.transformer)
        began = perf_counter()
        plain = [s.token for s in decode(model.transformer, prompt, tokens, how, window=window)]
        spent = perf_counter() - began
        for name in NAMES[n % len(NAMES):] + NAMES[:n % len(NAMES)]:
            guess = drafter(name, tables, [*prompt, *plain])
            window = Window(model.transformer)
            began = perf_counter()
            made = [s.token for s in speculate(window, prompt, tokens, guess, how, pace=paces[name])]
            seconds = perf_counter() - began
            check(made == plain, "a text with guesses must be the plain text", f"another with {name}",
                  "report it: this is a bug")
            equal += len(made)
            if n > 0 or len(given) == 1:
                ratios[name].append(spent / seconds)
        distinct.append(distinct_share(plain))
        plain_seconds.append(spent / tokens)
    texts = {"prompts": len(given), "tokens": tokens, "equal tokens": equal,
             "distinct 4-grams": statistics.median(distinct),
             "plain tokens per second": 1 / statistics.median(plain_seconds)}
    return texts, {name: {**asdict(paces[name].counts), "ratio": statistics.median(ratios[name]),
                          "ratios": ratios[name]} for name in NAMES}


def _figures(row: dict[str, Any], costs: list[float], human: float | None) -> dict[str, Any]:
    """A drafter's figures; the speed-up by the `formula` is that of calls of their mean length."""
    calls = max(1, row["calls"])
    length = 1 + row["drafted"] / calls
    return {"speed-up": row["ratio"], "ratios": row.get("ratios", []), "length": length,
            "formula": formula(row["made"] / calls, length, costs),
            "acceptance": row["accepted"] / row["drafted"] if row["drafted"] else None, "human": human,
            "calls per token": calls / max(1, row["made"]), "share": row["accepted"] / max(1, row["made"])}


def formula(made: float, length: float, costs: list[float]) -> float:
    """(SP.3) of calls of so many tokens, 1 to 8, that make so many."""
    return made / float(np.interp(length, range(1, len(costs) + 1), costs))


def alone(name: str, tables: Tables, texts: Sequence[Sequence[int]]) -> float | None:
    """Acceptance of a drafter on texts that people wrote: it guesses, and what is right is passed over."""
    right, said = 0, 0
    for text in texts:
        guess, at = drafter(name, tables, ()), PROMPT
        while at < len(text):
            tokens = guess(text[:at]).tokens[:len(text) - at]
            same = next((n for n, t in enumerate(tokens) if t != text[at + n]), len(tokens))
            right, said, at = right + same, said + len(tokens), at + same + 1
    return right / said if said else None


def distinct_share(ids: Sequence[int]) -> float:
    """Different 4-grams over all: near 1 in text, near 0 in a loop."""
    grams = [tuple(ids[n:n + 4]) for n in range(len(ids) - 3)]
    return len(set(grams)) / max(1, len(grams))


# ---- words ----

def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def block(f: dict[str, Any]) -> str:
    """The tables of docs/speculative.md."""
    m = f["machine"]
    lines = [f"{m['cores']} cores of {m['processor']}, threads {m['threads']}, instructions "
             f"{m['instructions']}, Python {m['python']}, NumPy {m['numpy']}.", "",
             "| a call of k tokens, against one | " + " | ".join(map(str, range(1, REACH + 2))) + " |",
             "|---|" + "---|" * (REACH + 1)]
    lines += [f"| {name} | {' | '.join(f'{c:.2f}' for c in curve)} |" for name, curve in f["costs"].items()]
    return "\n".join(lines + [line for run in f["runs"] for way in run["ways"]
                              for line in _table(run, way, f["costs"].get(LARGE, run["cost"]))])


def _table(run: dict[str, Any], way: str, large: list[float]) -> list[str]:
    """What was measured of a run in one way of drawing. `large`: the cost of calls of a large model."""
    t, drafters = run["ways"][way]["texts"], run["ways"][way]["drafters"]
    loops = ": **it loops, so it does not count**" if t["distinct 4-grams"] < LOOPS else ""
    return ["", f"**{run['corpus']}, {way}**: {t['prompts']} held-out prompts, {t['tokens']} tokens each; "
            f"plain {t['plain tokens per second']:,.0f} tokens/s; {t['equal tokens']:,} tokens are the same; "
            f"distinct 4-grams {t['distinct 4-grams']:.2f}{loops}; the table covers {run['coverage']:.1%} "
            "of the corpus.", "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS),
            *(f"| {name} | {d['speed-up']:.2f} x | {d['formula']:.2f} x | "
              f"{formula(1 / d['calls per token'], d['length'], large):.2f} x | {_share(d['acceptance'])} | "
              f"{_share(d['human'])} | {d['calls per token']:.2f} | {_share(d['share'])} |"
              for name, d in drafters.items())]


def main(argv: list[str]) -> int:
    """Parse, measure, write, print."""
    parser = Parser("python -m bitnet_ref.bench.speculation", __doc__)
    parser.add_argument("--run", action="append", default=[], metavar="RUN", help="a trained run")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder for figures.json")
    parser.add_argument("--root", metavar="DIR", help="write the docs of the clone in this folder")
    for name, default, what in (("prompts", 20, "held-out prompts of each run"), ("tokens", 180, "of a text"),
                                ("rounds", 7, "of the cost of a call"), ("threads", None, "to run with")):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} ({default or 'all'})")
    parser.add_argument("--quick", action="store_true", help="a small shape, to see that it works")
    args = parser.parse_args(argv)
    for name in ("prompts", "tokens", "rounds"):
        value = getattr(args, name)
        check(value > 0, f"--{name} must be greater than 0", value, "use 1 or more")
    threads = args.threads or timing.available()
    curves = costs(args.rounds, threads, args.quick)
    runs = []
    for run in args.run:
        model, data = opened(run, threads)
        runs.append(measured(model, data, curve(model.transformer, args.rounds, threads), args.prompts,
                             args.tokens))
    found = {"machine": {**machine(), **kernels.about("numba")}, "costs": curves, "runs": runs}
    with whole_file(Path(args.output) / "figures.json") as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())
    if args.root:
        put(Path(args.root) / "docs" / "speculative.md", block(found), "bench.speculation")
    print(block(found))
    return DONE


if __name__ == "__main__":
    sys.exit(run_command(main))
