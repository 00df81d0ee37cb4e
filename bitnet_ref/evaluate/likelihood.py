"""How likely a model finds a continuation after a context: the sum of log-probabilities of its tokens.

The continuations of one context share its computation: it is read once, then each continues from that state.
A backend whose cached decode equals the full forward gives the same bits either way (decision 17). Requests
are taken longest first, so that too large a batch fails at once.
Port note: a continuation of n tokens needs n rows of logits: the context's last, and those of all but its own
last token.
Read after: evaluate/perplexity. Read next: evaluate/tasks.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.checks import check
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.model import Transformer
from bitnet_ref.model.transformer import require_finite

TOGETHER = 8                 # continuations of one context that share a reading of it
ROWS = 2048                  # tokens of contexts in a batch, beside the limit on their number
LOGITS = 1 << 25             # numbers of logits held at once


class Request(NamedTuple):
    """Token ids, of each at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Likelihood(NamedTuple):
    """log p(continuation | context) in nats; whether each token is the likeliest where it stands."""

    logprob: float
    greedy: bool


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str, first: int | None) -> Request:
    """The ids of both, as lm-evaluation-harness cuts them: the two are encoded as one text, and what the
    context alone does not cover is the continuation; spaces at the context's end are the continuation's.

    `first`: the id that begins every text, or None. Raises CheckError where nothing is left to score.
    """
    kept = context.rstrip()
    whole, alone = tokenizer.encode_batch([context + continuation, kept])
    begin = [] if first is None else [first]
    check(len(continuation) > 0, "a continuation must not be empty", f"none after {context[-40:]!r}",
          "give every choice a text")
    check(len(whole) > len(alone), "a continuation must have a token of its own",
          f"{continuation!r}, which the tokenizer joins to {kept[-20:]!r}", "begin it with a space")
    request = Request((*begin, *alone.tolist()), tuple(whole[len(alone):].tolist()))
    check(len(request.context) > 0, "a context must have a token", "an empty one, and no first id",
          "leave --no-first out")
    return request


def fitted(request: Request, context: int) -> Request:
    """The request as a model of this context can read it: of its context the newest tokens.

    Raises CheckError for a continuation that is longer than the model's context itself.
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
    contexts, lengths = _rows([wanted[g[0]].context for g in groups])
    after, state = model.prefill(contexts, lengths)
    for k in range(max(map(len, groups))):
        texts = [list(wanted[g[k]].continuation) if k < len(g) else [] for g in groups]
        found = {b: [_token(after[b], text[0])] for b, text in enumerate(texts) if text}
        _read_on(model, state, texts, found)
        for b, parts in found.items():
            logprob = float(sum(p for p, _ in parts))
            require_finite(logprob, "the log-likelihood of a continuation", model, contexts[b:b + 1])
            yield groups[b][k], Likelihood(logprob, all(best for _, best in parts))


def _read_on(model: Transformer, state: Any, texts: list[list[int]],
             found: dict[int, list[tuple[float, bool]]]) -> None:
    """From `state` on: to found[b] goes what each token of texts[b] but the first has, in pieces that leave
    room for their logits."""
    step, at = max(1, LOGITS // (len(texts) * model.cfg.vocab_size)), 0
    while any(len(t) > at + 1 for t in texts):
        rows, lengths = _rows([t[at:-1][:step] for t in texts])
        logits, state = model.extend(rows, state, lengths)
        for b, n in enumerate(lengths.tolist()):
            found_here = [_token(logits[b, i], texts[b][at + i + 1]) for i in range(n)]
            if n:
                found[b] += found_here
        at += step


def _token(logits: np.ndarray, token: int) -> tuple[float, bool]:
    """logits (V,)  ->  log p(token) in float64, whether no other is likelier."""
    x = logits.astype(np.float64)
    top = x.max()
    return x[token] - top - np.log(np.sum(np.exp(x - top))), bool(np.argmax(logits) == token)    # (LL.1)


def _rows(texts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """int (B, T), zeros behind the shorter ones, and their lengths (B,)."""
    lengths = np.array([len(t) for t in texts])
    rows = np.zeros((len(texts), lengths.max()), np.int64)
    for row, text in zip(rows, texts):
        row[:len(text)] = text
    return rows, lengths
