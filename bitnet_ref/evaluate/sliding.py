"""Perplexity of whole texts by a window that slides: every token counted once, after enough of its past.

Windows of `context` tokens begin `stride` tokens apart, and each counts what no window before it did: all
tokens but the first windows' have at least context - stride + 1 tokens before them. stride = context is the
plain cut of `perplexity.score`; a smaller one costs more and is nearer to what a long text is like to read.
Port note: Hugging Face's loop of this kind drops the prediction after a window's last token: its max_length
is our context + 1.
Read after: evaluate/completions. Read next: evaluate/slid.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.checks import check
from bitnet_ref.data.corpus import corpus_files, jsonl_documents, text_chunks
from bitnet_ref.data.download import NAMED, named_files
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.evaluate.journal import Journal
from bitnet_ref.evaluate.perplexity import Score
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import require_finite

LOGITS = 1 << 26                                           # numbers of logits that a batch may have
ROWS = 256                                                 # of logits that are float64 at once
FIELDS = ("nats", "tokens", "bytes", "words")              # of a window
BLOCKS = 50                                                # of neighbours, each left out once


@dataclass(frozen=True)
class Text:
    """Tokens int (n,), the first of which stands before the text; ends of each token and word in bytes.

    `ends` int (n,): how many bytes of the text lie before the end of each token. `words`: where each word
    (what white space parts) ends, ascending.
    """

    tokens: np.ndarray
    ends: np.ndarray
    words: np.ndarray


class Sliding(NamedTuple):
    """`rows`: of each window FIELDS, in order. `score`: their sums, with the figures made of them."""

    rows: list[list[float]]
    score: Score
    words: int

    @property
    def word_perplexity(self) -> float:
        """exp(nats per word): for texts whose words count, such as WikiText's."""
        return math.exp(min(self.score.nats / self.words, 700.0)) if self.words else math.inf    # (SW.2)


def standard_error(rows: Sequence[Sequence[float]], figure: Callable[[np.ndarray], float],
                   blocks: int = BLOCKS) -> float | None:
    """Of a figure of the sums over windows, by a jackknife of blocks of neighbours; None of one window.

    Windows that follow each other in a text are alike, so each by itself would say too little.   rows (n, k)

    >>> standard_error([[2.0, 1.0], [4.0, 1.0], [6.0, 1.0], [8.0, 1.0]], lambda sums: sums[0] / sums[1])
    1.2909944487358056
    """
    held = np.array_split(np.array(rows, float), min(blocks, len(rows)))
    parts = np.array([part.sum(axis=0) for part in held])
    if len(parts) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        away = np.array([figure(sums) for sums in parts.sum(axis=0) - parts])
        error = float(np.sqrt((len(parts) - 1) * np.var(away)))                 # (SW.3)
    return error if math.isfinite(error) else None


def texts_of(corpus: str) -> tuple[list[str], str]:
    """(the texts, sha256 of them) of a name's test part, or of files: a .txt is one text, a .jsonl many.

    Raises CheckError: no such corpus, not UTF-8, nothing but white space.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "two.jsonl")
    >>> _ = path.write_text('{"text": "One."}\\n{"text": "Two."}\\n')
    >>> texts_of(str(path))[0]
    ['One.', 'Two.']
    """
    texts: list[str] = []
    for path in named_files(corpus, "test") if "test" in NAMED.get(corpus, ()) else corpus_files(corpus):
        texts += jsonl_documents(path) if path.suffix == ".jsonl" else ["".join(text_chunks(path))]
    check(any(text.strip() for text in texts), "a corpus must hold text", f"none in {corpus}",
          "give files with text in them")
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8")
        digest.update(len(data).to_bytes(8, "little") + data)
    return [text for text in texts if text.strip()], digest.hexdigest()


def tokenised(text: str, tokenizer: Tokenizer, first: int) -> Text:
    """The tokens of `text` behind `first`. Raises CheckError unless they are the text again: figures per byte
    or word would be of another text.

    >>> from bitnet_ref.data.tokenizer import train_bpe
    >>> text = tokenised("a bee", train_bpe(["a bee"], 257), first=0)
    >>> len(text.tokens), text.ends.tolist(), text.words.tolist()
    (6, [0, 1, 2, 3, 4, 5], [1, 5])
    """
    ids = tokenizer.encode(text)
    back = tokenizer.decode(ids)
    same = next((i for i, (a, b) in enumerate(zip(text, back)) if a != b), min(len(text), len(back)))
    check(back == text, "a text must come back from its tokens as it was, or bits per byte would mislead",
          f"{back[same:same + 20]!r} for {text[same:same + 20]!r} at character {same}",
          "use a tokenizer that loses nothing, or take out of the text what it loses")
    size = len(text.encode("utf-8"))
    ends = np.concatenate([[0], np.cumsum(tokenizer.token_bytes[ids])])
    spare = int(ends[-1]) - size                           # a space that SentencePiece puts before a text
    check(spare in (0, 1), "the tokens of a text must have its bytes", f"{ends[-1]} for {size}",
          "use a tokenizer whose tokens are pieces of text")
    return Text(np.concatenate([[first], ids]).astype(np.int64), np.maximum(ends - spare, 0), word_ends(text))


def word_ends(text: str) -> np.ndarray:
    """Where each word of `text` ends, in bytes of UTF-8.   ->  int64 (words,)

    >>> word_ends("né dans").tolist()
    [3, 8]
    """
    at, ends = 0, []
    sizes = [0, *accumulate(len(c.encode("utf-8")) for c in text)] if not text.isascii() else None
    for word in text.split():
        at = text.index(word, at) + len(word)
        ends.append(sizes[at] if sizes else at)
    return np.array(ends, np.int64)


def spans(n: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(begin, end, counted from): the window reads tokens [begin, end) and counts what it says of the tokens
    after the ones at [counted from, end).

    >>> list(spans(11, 4, 2))
    [(0, 4, 0), (2, 6, 4), (4, 8, 6), (6, 10, 8)]
    """
    begin, done = 0, 0
    while done < n - 1:
        end = min(begin + context, n - 1)
        yield begin, end, done                                                  # (SW.1)
        begin, done = begin + stride, end


def check_window(context: int, stride: int, most: int) -> None:
    """Raise CheckError unless a model of context `most` can be slid so.

    >>> check_window(context=8, stride=4, most=8)
    >>> check_window(context=8, stride=9, most=8)
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: --stride must be from 1 to the context of 8; got 9; tokens between two
    windows would not be counted
    """
    check(0 < context <= most, f"--context must be from 1 to the model's {most}", context,
          "the model knows no places beyond; use a shorter one")
    check(0 < stride <= context, f"--stride must be from 1 to the context of {context}", stride,
          "tokens between two windows would not be counted")


def slide(model: Transformer, texts: Sequence[Text], context: int, stride: int, batch: int = 8,
          kept: tuple[str | Path | None, str] = (None, ""), progress: bool = False) -> Sliding:
    """The sums over `texts`, `batch` windows of equal length at a time. Raises CheckError, NonFiniteError.

    `kept`: a file where finished windows are kept, and a checksum of what they depend on.

    >>> from bitnet_ref import kernels
    >>> from bitnet_ref.config import ModelConfig
    >>> from bitnet_ref.model.params import init_params
    >>> cfg = ModelConfig(vocab_size=16, d_model=32, n_layers=1, n_heads=2, n_kv_heads=2, d_ff=32, context=8)
    >>> model = Transformer(cfg, init_params(cfg, 0), kernels.load("numpy"))
    >>> text = Text(np.arange(12), np.arange(12), np.array([5, 11]))
    >>> found = slide(model, [text], context=8, stride=4)
    >>> len(found.rows), found.score.tokens, found.score.bytes, found.words
    (2, 11, 11, 2)
    """
    check_window(context, stride, model.cfg.context)
    check(batch > 0, "--batch must be greater than 0", batch, "use 1 or more")
    windows = [(t, *span) for t, text in enumerate(texts)
               for span in spans(len(text.tokens), context, stride)]
    check(bool(windows), "there must be a token to score", "none", "give more text")
    journal = Journal(*kept)
    rows = _kept(journal, windows)
    batch = max(1, min(batch, LOGITS // (context * model.cfg.vocab_size)))
    with tqdm(total=len(windows), initial=len(rows), desc="sliding",
              disable=None if progress else True) as bar:
        while len(rows) < len(windows):
            group = list(_alike(windows[len(rows):len(rows) + batch]))
            new = _of_windows(model, texts, group)
            journal.add({"rows": new})
            rows += new
            bar.update(len(new))
    nats, tokens, size, words = (math.fsum(row[i] for row in rows) for i in range(4))
    return Sliding(rows, Score(nats, int(tokens), int(size), model.cfg.vocab_size), int(words))


def _kept(journal: Journal, windows: Sequence[tuple[int, int, int, int]]) -> list[list[float]]:
    """The rows of the first windows that a journal holds."""
    rows: list[Any] = [row for held in journal.rows for row in held.get("rows", [None])]
    check(len(rows) <= len(windows) and all(
        isinstance(row, list) and len(row) == len(FIELDS) and all(type(x) is float for x in row)
        and math.isfinite(row[0]) and row[1] == end - done for row, (_, _, end, done) in zip(rows, windows)),
        f"{journal.path} must hold windows of this text", "others", "delete it")
    return rows


def _alike(windows: Sequence[tuple[int, int, int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """The first windows, as far as they have one length."""
    first = windows[0]
    return takewhile(lambda w: w[2] - w[1] == first[2] - first[1], windows)


def _of_windows(model: Transformer, texts: Sequence[Text],
                group: Sequence[tuple[int, int, int, int]]) -> list[list[float]]:
    """FIELDS of windows of one length."""
    ids = np.stack([texts[t].tokens[begin:end] for t, begin, end, _ in group])
    logits, _ = model(ids)
    rows = []
    for b, (t, begin, end, done) in enumerate(group):
        text = texts[t]
        nats = -_logprobs(logits[b, done - begin:], text.tokens[done + 1:end + 1])
        require_finite(nats, "the loss of the text", model, ids[b:b + 1])
        low, high = int(text.ends[done]), int(text.ends[end])
        words = np.searchsorted(text.words, [low, high], side="right")
        rows.append([nats, float(end - done), float(high - low), float(words[1] - words[0])])
    return rows


def _logprobs(logits: np.ndarray, targets: np.ndarray) -> float:
    """logits (T, V), targets (T,)  ->  the sum of log p(target), in float64."""
    total = 0.0
    for i in range(0, len(targets), ROWS):
        x = logits[i:i + ROWS].astype(np.float64)
        x -= x.max(axis=-1, keepdims=True)
        held = x[np.arange(len(x)), targets[i:i + ROWS]]
        total += float(np.sum(held - np.log(np.sum(np.exp(x), axis=-1))))
    return total
