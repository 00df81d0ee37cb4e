"""What a run ends with: the final score beside two compressors, a sample, its speed, and what to try next.

The pictures are drawn here and go onto a page of their own, report.html.
Read after: train/report. Read next: train/__main__.
"""

import json
import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref import kernels
from bitnet_ref.chain.table import write_table
from bitnet_ref.checks import CheckError
from bitnet_ref.data.atomic import whole_file
from bitnet_ref.data.prepare import Dataset
from bitnet_ref.evaluate import provenance
from bitnet_ref.evaluate.compressors import compressed_bits_per_byte, tail
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.generate.spoken import SPOKEN, spoken
from bitnet_ref.train import compression, log, report
from bitnet_ref.train.checkpoint import Run
from bitnet_ref.train.ema import ema_score
from bitnet_ref.train.log import SUMMARY
from bitnet_ref.train.loop import final_score
from bitnet_ref.train.measures import speed
from bitnet_ref.train.plots import draw


def finish(run: Run, data: Dataset, prompt: str = "The ",
           peak: Callable[[int], float] | None = None) -> dict[str, Any]:
    """Score all of the validation text, sample, draw; write summary.json, report.html and the chains of what
    the model says; return the first.

    `peak`: measures the float32 operations per second of that many threads; without it none is given.
    >>> from bitnet_ref.train.small import small_run
    >>> run, data = small_run(); summary = finish(run, data, prompt="2 plus 2 is ")
    >>> summary["steps"], summary["sample"][:12], sorted(p.name for p in run.folder.glob("*.html"))
    (0, '2 plus 2 is ', ['report.html'])
    """
    result, averaged = final_score(run, data), ema_score(run, data)
    train_text, val_text = tail(data.train_text), data.val_text.read_bytes()
    model, about = LanguageModel(run.model.fetched(), data.tokenizer), kernels.about(run.cfg.backend)
    fast = speed(log.read(run.folder, "step"), run.model.cfg, peak(about["threads"]) if peak else None)
    events = [line["what"] for line in log.read(run.folder, "event")]
    summary: dict[str, Any] = {
        **compression.result(run, data, result),           # its verdict comes first
        "steps": run.step, "validation loss": result.loss, "bits per byte": result.bits_per_byte,
        "averaged weights": averaged and {"validation loss": averaged.loss,
                                          "bits per byte": averaged.bits_per_byte},
        "perplexity": result.perplexity, "validation tokens": result.tokens, "validation bytes": result.bytes,
        "others, bits per byte": compressed_bits_per_byte(train_text, val_text),
        "batches skipped": events.count("skip"), "rollbacks": events.count("rollback"),
        "sample": prompt + model.generate(prompt, tokens=120, temperature=0.5),
        "machine": {**machine(), **about}, "speed": fast._asdict() if fast else None,
    }
    try:
        _write(run, summary)
    except (OSError, CheckError) as e:
        raise CheckError(f"the summary and the pictures must be writable; got {e}; "
                         f"make room in {run.folder} and resume") from None
    if hasattr(run.model.plan.ops, "prefill"):             # a backend with a cache, where guesses pay
        table = spoken(model.transformer, data)
        if table.chains:                                   # else those of the corpus guess
            write_table(run.folder / SPOKEN, table)
    return summary


def _write(run: Run, summary: dict[str, Any]) -> None:
    """The pictures, the summary, which gets their names, and the page."""
    assert run.model.params is not None
    pictures = draw(run.folder, run.model.params.fetched(), run.model.cfg.linear == "ternary")
    summary["pictures"] = [str(run.folder / "pictures" / f"{name}.png") for name in (*pictures, "overview")]
    with whole_file(run.folder / SUMMARY) as f:
        f.write(json.dumps(summary, indent=1).encode())
    report.write(run.folder, pictures)


def machine() -> dict[str, Any]:
    """The processor, its cores and the versions that a timing depends on.
    >>> sorted(machine())
    ['cores', 'numpy', 'processor', 'python']
    """
    here = provenance.machine()
    return {"processor": here["cpu"], "cores": here["cores"], "python": platform.python_version(),
            "numpy": np.__version__}


def page(run: Run, summary: dict[str, Any]) -> str:
    """The summary as text for the terminal.
    >>> from bitnet_ref.train.small import small_run
    >>> known = {"sample": "The end.", "validation loss": 3.2, "validation tokens": 9, "validation bytes": 30,
    ...          "perplexity": 24.5, "bits per byte": 1.4, "batches skipped": 0, "rollbacks": 0}
    >>> known |= {"others, bits per byte": {"gzip -9": 3.1, "xz -9": 2.9}, "speed": None}
    >>> run, _ = small_run(); page(run, known).splitlines()[3:5]
    ['validation loss   3.2000 nats per token over 9 tokens, 30 bytes', 'perplexity        24.50']
    """
    others = summary["others, bits per byte"]
    perplexity, averaged = summary["perplexity"], summary.get("averaged weights")
    also = f" (with its averaged weights {averaged['bits per byte']:.3f})" if averaged else ""
    return f"""{_compressed(summary)}
{report.printable(summary["sample"])}

validation loss   {summary["validation loss"]:.4f} nats per token over \
{summary["validation tokens"]:,} tokens, {summary["validation bytes"]:,} bytes
perplexity        {"none: worse than guessing" if perplexity is None else f"{perplexity:.2f}"}
bits per byte     {summary["bits per byte"]:.3f}   this model{also}
                  {others["gzip -9"]:.3f}   gzip -9, given the training text first \
(it sees the last 32 KiB of it)
                  {others["xz -9"]:.3f}   xz -9, given the training text first (it sees all of it)
speed             {_speed(summary["speed"])}
guard             {summary["batches skipped"]} batches skipped, {summary["rollbacks"]} rollbacks
pictures          {run.folder / report.REPORT}

Try next:
    python -m bitnet_ref.generate --model {run.folder} --prompt "A module is"
    python -m bitnet_ref.evaluate --model {run.folder}
    python -m bitnet_ref.train --config {run.folder}/config.json --linear full   # its full-precision twin
    python -m bitnet_ref.info --model {run.folder}"""


def _compressed(summary: dict[str, Any]) -> str:
    """The verdict on a compressed run, and its figures on plain text."""
    if "compression" not in summary:
        return ""
    c = summary["compression"]
    return (f"{summary['verdict']}\n\ncompression       {c['kind']}: {c['tokens saved']:.1%} fewer training "
            f"tokens, {c['tokens']:,} of {c['plain tokens']:,}; perplexity per plain token "
            f"{c['perplexity per plain token']:.2f}; cut as plain tokens "
            f"{c['bits per byte as plain tokens']:.3f} bits per byte\n")


def _speed(speed: dict[str, Any] | None) -> str:
    if speed is None:
        return "not logged"
    said = f"{speed['tokens_per_second']:,.0f} tokens/s"
    if speed["peak"] is None:
        return said
    return (f"{said}: {speed['utilisation']:.1%} of the {speed['peak'] / 1e9:,.0f} Gop/s in float32 that "
            "this machine can do")
