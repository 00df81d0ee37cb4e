"""The kind of evaluation "sliding": perplexity of a corpus by `sliding`, as lines, figures and a record.

Finished windows lie in FILE.partial beside the record that --output names until it is complete, so that an
interrupted evaluation of the same weights and text goes on.
Read after: evaluate/sliding. Read next: evaluate/kinds.
"""

import math
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import check
from bitnet_ref.evaluate.journal import digest
from bitnet_ref.evaluate.provenance import made, model_facts
from bitnet_ref.evaluate.records import Data, Metric, Record
from bitnet_ref.evaluate.sliding import (
    FIELDS,
    Sliding,
    check_window,
    slide,
    standard_error,
    texts_of,
    tokenised,
)
from bitnet_ref.generate.language_model import load

# The figures: of which two of FIELDS a quotient is taken, and what is made of it.
QUOTIENT = {"bits per byte": ("nats", "bytes"), "perplexity": ("nats", "tokens"),
            "word perplexity": ("nats", "words")}
OF_QUOTIENT: dict[str, Callable[[Any], Any]] = {
    "bits per byte": lambda nats: nats / math.log(2), "perplexity": np.exp, "word perplexity": np.exp}


def evaluate(args: Namespace, argv: list[str]
             ) -> tuple[str, dict[str, Any], tuple[Record, ...], bool, tuple[Path, ...]]:
    """(lines for a person, figures, the record, whether the model is better than guessing, the partial file).

    Raises CheckError for options out of range, a text that its tokens lose, a partial file of something else.

    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet", vocab_size=257) as path:
    ...     _ = (file := path.with_name("a.txt")).write_text("Once upon a time.")
    ...     args = Namespace(corpus=str(file), model=str(path), backend="numpy", threads=None,
    ...                      int8_head=False, context=8, stride=8, batch=1, output=None)
    ...     figures = evaluate(args, [])[1]
    >>> figures["tokens"], figures["words"], figures["context"]
    (17, 4, 8)
    >>> evaluate(Namespace(corpus=None), [])
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: a window slides over a text; got none; name one with --corpus PATH
    """
    began = time.monotonic()
    check(args.corpus is not None, "a window slides over a text", "none", "name one with --corpus PATH")
    texts, sha = texts_of(args.corpus)
    model = load(args.model, args.backend, args.threads, args.int8_head)
    context = model.cfg.context if args.context is None else args.context
    stride = max(1, context // 2) if args.stride is None else args.stride
    check_window(context, stride, model.cfg.context)
    ready = [tokenised(text, model.tokenizer, model.first)
             for text in tqdm(texts, "tokens", delay=2, disable=None)]
    facts = model_facts(model, args.model)
    under = digest(facts.weights, facts.vocabulary, sha, context, stride, args.backend, args.int8_head)
    part = None if args.output is None else Path(f"{args.output}.partial")
    found = slide(model.transformer, ready, context, stride, args.batch, (part, under), progress=True)
    metrics = _metrics(found)
    record = Record("perplexity", Path(args.corpus).stem, facts,
                    made("evaluate", argv, time.monotonic() - began, args.backend),
                    Data(Path(args.corpus).name, sha, len(found.rows),
                         {"context": context, "stride": stride}),
                    metrics, found.rows, list(FIELDS))
    figures = _figures(metrics) | {
        "loss": found.score.loss, "tokens": found.score.tokens, "bytes": found.score.bytes,
        "words": found.words, "context": context, "stride": stride}
    good = found.score.perplexity is not None
    return _lines(found, metrics, context, stride), figures, (record,), good, () if part is None else (part,)


def of_sums(name: str) -> Callable[[np.ndarray], Any]:
    """The figure `name` of the sums of FIELDS.

    >>> round(float(of_sums("bits per byte")(np.array([math.log(2) * 6, 1, 4, 1]))), 9)
    1.5
    """
    top, bottom = map(FIELDS.index, QUOTIENT[name])
    return lambda sums: OF_QUOTIENT[name](sums[top] / sums[bottom])


def _metrics(found: Sliding) -> dict[str, Metric]:
    """Those that mean something: no perplexity of a model that is worse than guessing."""
    score = found.score
    values = {"bits per byte": score.bits_per_byte}
    if score.perplexity is not None:
        values |= {"perplexity": score.perplexity, "word perplexity": found.word_perplexity}
    return {name: Metric(value, len(found.rows), standard_error(found.rows, of_sums(name)), "lower")
            for name, value in values.items()}


def _figures(metrics: dict[str, Metric]) -> dict[str, Any]:
    return {name: m.value for name, m in metrics.items()} | {
        f"{name} standard error": m.stderr for name, m in metrics.items()}


def _lines(found: Sliding, metrics: dict[str, Metric], context: int, stride: int) -> str:
    def said(name: str, digits: int) -> str:
        m = metrics[name]
        return f"{m.value:.{digits}f}" + (
            f" (standard error {m.stderr:.{digits}f})" if m.stderr is not None else "")

    score = found.score
    perplexity = "none: worse than guessing" if score.perplexity is None else (
        f"{said('perplexity', 3)} per token, {said('word perplexity', 3)} per word")
    return (f"perplexity      {perplexity}\nbits per byte   {said('bits per byte', 4)}\n"
            f"loss            {score.loss:.4f} nats per token\n"
            f"counted         {score.tokens:,} tokens, {score.bytes:,} bytes, {found.words:,} words\n"
            f"by              {len(found.rows):,} windows of {context} tokens, {stride} apart")
