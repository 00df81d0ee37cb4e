"""How likely a model finds a continuation after a context: the sum of log-probabilities of its tokens.

The continuations of one context share its computation: it is read once, then each continues from that state.
A backend whose cached decode equals the full forward gives the same bits either way (decision 17). Requests
are taken longest first, so that too large a batch fails at once.
Port note: a continuation of n tokens needs n rows of logits: the context's last, and those of all but its own
last token.
Read after: evaluate/perplexity. Read next: evaluate/lines.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.generate.together import rows_of
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import require_finite

TOGETHER = 8                 # continuations of one context that share a reading of it
ROWS = 2048                  # tokens of contexts in a batch, beside the limit on their number
LOGITS = 1 << 23             # numbers of logits held at once


class Request(NamedTuple):
    """Token ids, of each at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    """log p(continuation | context) in nats; whether each token is the likeliest where it stands."""

    logprob: float
    greedy: bool


def encode_pairs(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]], first: int | None) -> list[Request]:
    """The ids of (context, continuation), as lm-evaluation-harness cuts them: the two are encoded as one
    text, and what the context alone does not cover is the continuation; spaces at the context's end are the
    continuation's.

    `first`: the id that begins every text, or None. Raises CheckError where nothing is left to score.

    >>> from bitnet_ref.generate.example import speaker
    >>> request, = encode_pairs(tokenizer := speaker().tokenizer, [("A ", "B")], first=0)
    >>> len(request.context), tokenizer.decode(request.continuation)    # the first id, A; the rest
    (2, ' B')
    """
    contexts = list(dict.fromkeys(context.rstrip() for context, _ in pairs))
    alone = dict(zip(contexts, tokenizer.encode_batch(contexts)))
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in pairs])
    begin, found = (() if first is None else (first,)), []
    for (context, continuation), whole in zip(pairs, wholes):
        kept = context.rstrip()
        ids = alone[kept]
        check(len(continuation) > 0, "a continuation must not be empty", f"none after {context[-40:]!r}",
              "give every choice a text")
        check(len(whole) > len(ids), "a continuation must have a token of its own",
              f"{continuation!r}, which the tokenizer joins to {kept[-20:]!r}", "begin it with a space")
        check(len(begin) + len(ids) > 0, "a context must have a token", "an empty one, and no first id",
              "leave --no-first out")
        found.append(Request((*begin, *ids.tolist()), tuple(whole[len(ids):].tolist())))
    return found


def fitted(request: Request, context: int) -> Request:
    """The request as a model of this context can read it: of its context the newest tokens.

    Raises CheckError for a continuation that is longer than the model's context itself.

    >>> fitted(Request((1, 2, 3, 4), (5, 6)), context=4)
    Request(context=(2, 3, 4), continuation=(5, 6))
    """
    room = context + 1 - len(request.continuation)         # its last token is predicted, not read
    check(room > 0, f"a continuation must have at most the model's {context} tokens",
          len(request.continuation), "give shorter choices, or a model with a longer context")
    return request._replace(context=request.context[-room:])


def likelihoods(model: Transformer, requests: Sequence[Request], batch: int = 16,
                shared: bool = True) -> Iterator[tuple[int, Likelihood]]:
    """(index of the request, its likelihood), longest first; all of one context come close together.

    `batch`: contexts read side by side. Not `shared`: each request reads its context for itself. Raises
    CheckError as `fitted`, for ids outside the vocabulary and for logits that are not finite.

    >>> from bitnet_ref.generate.example import speaker
    >>> found = dict(likelihoods(speaker().transformer, [Request((0, 65), (65,)), Request((0, 65), (66,))]))
    >>> found[0].logprob > found[1].logprob, found[0].greedy
    (True, True)
    """
    check(batch > 0, "--batch must be greater than 0", batch, "use 1 or more")
    wanted = [fitted(r, model.cfg.context) for r in requests]
    groups: dict[Any, list[int]] = {}
    seen: dict[tuple[int, ...], int] = {}
    for i, request in enumerate(wanted):
        n = seen[request.context] = seen.get(request.context, -1) + 1
        groups.setdefault((request.context, n // TOGETHER if shared else i), []).append(i)
    order = sorted(groups.values(), key=lambda g: -max(len(wanted[i].context) + len(wanted[i].continuation)
                                                       for i in g))
    while order:
        taken, rows = 1, len(wanted[order[0][0]].context)
        while taken < min(batch, len(order)) and rows + len(wanted[order[taken][0]].context) <= ROWS:
            rows += len(wanted[order[taken][0]].context)
            taken += 1
        yield from _of_groups(model, wanted, order[:taken])
        del order[:taken]


def _of_groups(model: Transformer, wanted: list[Request],
               groups: list[list[int]]) -> Iterator[tuple[int, Likelihood]]:
    """Each group's context is read once; the first continuations of all groups go on from there side by
    side, then the second ones."""
    contexts, lengths = rows_of([wanted[g[0]].context for g in groups])
    after, state = model.prefill(contexts, lengths)
    for k in range(max(map(len, groups))):
        texts = [list(wanted[g[k]].continuation) if k < len(g) else [] for g in groups]
        there = np.array([b for b, text in enumerate(texts) if text])
        logprob, greedy = np.zeros(len(texts)), np.ones(len(texts), bool)
        _add(after[there], np.array([texts[b][0] for b in there]), there, logprob, greedy)
        _read_on(model, state, texts, logprob, greedy)
        for b in there.tolist():
            require_finite(logprob[b], "the log-likelihood of a continuation", model, contexts[b:b + 1])
            yield groups[b][k], Likelihood(float(logprob[b]), bool(greedy[b]))


def _read_on(model: Transformer, state: Any, texts: list[list[int]], logprob: np.ndarray,
             greedy: np.ndarray) -> None:
    """From `state` on, what each token of `texts` but the first has, in pieces that leave room for logits."""
    step, at = max(1, LOGITS // (len(texts) * model.cfg.vocab_size)), 0
    while any(len(t) > at + 1 for t in texts):
        pieces = [t[at:-1][:step] for t in texts]
        rows, lengths = rows_of(pieces)
        logits, state = model.extend(rows, state, lengths)
        targets = [t for text, piece in zip(texts, pieces) for t in text[at + 1:at + 1 + len(piece)]]
        _add(logits[np.arange(rows.shape[1]) < lengths[:, None]], np.array(targets),
             np.repeat(np.arange(len(texts)), lengths), logprob, greedy)
        at += step


def _add(logits: np.ndarray, tokens: np.ndarray, texts: np.ndarray, logprob: np.ndarray,
         greedy: np.ndarray) -> None:
    """logits (n, V), after each of which a token (n,) of the text (n,) comes: adds log p(token) to logprob
    (B,), in the order of the tokens; greedy (B,) ends where another is likelier."""
    x, row = logits.astype(np.float64), np.arange(len(tokens))
    top = x.max(axis=1)
    x -= top[:, None]
    at = x[row, tokens]
    np.add.at(logprob, texts, at - np.log(np.exp(x, out=x).sum(axis=1)))                         # (LL.1)
    np.logical_and.at(greedy, texts, logits.argmax(axis=1) == tokens)
