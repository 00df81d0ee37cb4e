"""What chain buckets bring to the report: acceptance, tokens per second against plain decoding, compression.

The figures are those of bench/speculation, whose every text with guesses is the plain text, token for token;
here with the spread over prompts. Compression is the share of training tokens that chains would save, and
how much of held-out text they cover: what it does to a model is another experiment (docs/compression.md).
Read after: bench/rivals. Read next: bench/evaluation_report.
"""

from pathlib import Path
from typing import Any

import numpy as np

from bitnet_ref.bench import speculation
from bitnet_ref.bench.contest import MINIMUM, UNKNOWN, Row, judged
from bitnet_ref.bench.interval import Interval, bootstrap
from bitnet_ref.chain.compress import compressed, saved
from bitnet_ref.chain.mine import covered
from bitnet_ref.chain.show import coverage
from bitnet_ref.train.compression import table_of

METRIC, CONTEST = "tokens/s against plain", "chain buckets"
TOO_EASY = "the texts loop: guesses are too easy, it does not count"


def measure(run: Path, prompts: int, tokens: int, threads: int | None) -> dict[str, Any]:
    """The figures of bench.speculation for a run, and what its corpus' chains save."""
    model, data = speculation.opened(str(run), threads)
    room = model.cfg.context - speculation.PROMPT - speculation.REACH
    cost = speculation.curve(model.transformer, 3, threads or speculation.timing.available())
    found = speculation.measured(model, data, cost, prompts, max(1, min(tokens, room)))
    table = table_of(data)
    assert data.val is not None
    return {**found, "compression": {
        "chains": len(table.chains), "covered": coverage(table)[-1],
        "held out": covered(table, data.val.tokens, data.val.header.eos)[-1],
        "saved": saved(compressed(data, table, "first")) if table.chains else 0.0}}


def rows(found: dict[str, Any], who: str, command: str) -> list[Row]:
    """A line for each way of drawing and each drafter but the oracle, which knows the text."""
    return [_row(way, name, drafter, figures["texts"], who, command)
            for way, figures in found["ways"].items() for name, drafter in figures["drafters"].items()
            if name != "oracle"]


def _row(way: str, name: str, drafter: dict[str, Any], texts: dict[str, Any], who: str,
         command: str) -> Row:
    ratios = np.array(drafter["ratios"], float)
    items = np.stack([ratios - 1, np.ones(len(ratios))], axis=1)
    value, unit, least = float(ratios.mean()), MINIMUM["speculation"].unit, MINIMUM["speculation"].least
    gain: Interval | None = None
    if len(ratios) > 1:
        gain = bootstrap(items, lambda sums: 100 * sums[..., 0] / sums[..., 1])
    flags = [f"below the minimum: {len(ratios)} {unit} of {least}"] if len(ratios) < least else []
    if texts["distinct 4-grams"] < speculation.LOOPS:
        flags.append(TOO_EASY)
    verdict = UNKNOWN if gain is None or texts["distinct 4-grams"] < speculation.LOOPS else judged(gain)
    return Row(contest=CONTEST, task=way, metric=METRIC, better="higher", ours=f"{who}, guesses by {name}",
               theirs=f"{who}, plain", value=value, other=1.0, values=ratios.tolist(), others=[1.0],
               delta=gain.value if gain else 100 * (value - 1), low=gain.low if gain else None,
               high=gain.high if gain else None,
               own_low=1 + gain.low / 100 if gain else None, own_high=1 + gain.high / 100 if gain else None,
               verdict=verdict, n=len(ratios), unit=unit, flags=flags,
               commands=[command])
