"""Drafters: from the text so far to a guess of the tokens that come next, each with its chance to be right.

A drafter is a function of the ids so far. What it says can be wrong without harm: generate/speculative has
the model confirm it. So there may be many: the chains of a table, what followed the same words earlier in
this text (prompt lookup), both together, and for measurements one that knows the text already.
Read after: chain/shipped. Read next: chain/merge.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

from bitnet_ref.chain.table import LONGEST, Table

REACH = LONGEST - 1              # tokens of a draft at most: a call of eight, with the one before them
LOOKED_FOR = 3                   # tokens at the end of a text that prompt lookup looks for
SURE = (0.35, 0.6, 0.8)          # chance that what followed 1, 2, 3 of them follows again, to begin with


class Draft(NamedTuple):
    """Tokens that may come next. `chances`: of each, to be right if those before it are."""

    tokens: tuple[int, ...]
    chances: tuple[float, ...]

    @property
    def worth(self) -> float:
        """Tokens of it that will be right, on average."""
        sure, total = 1.0, 0.0
        for chance in self.chances:
            sure *= chance
            total += sure
        return total


NOTHING = Draft((), ())
NEVER = (0, 0, 0)
Drafter = Callable[[Sequence[int]], Draft]


def chains(table: Table) -> Drafter:
    """The rest of the chain of which the most tokens stand at the text's end; of several, the worthiest.
    >>> from bitnet_ref.chain.table import Chain
    >>> table = Table("", 99, "", 0, (Chain((4, 5, 6), 10, 20, (0.5, 0.9)),))
    >>> guess = chains(table); guess([1, 2, 4]), guess([1, 2, 3])
    (Draft(tokens=(5, 6), chances=(0.5, 0.9)), Draft(tokens=(), chances=()))
    """
    rest = beginnings(table)
    longest = max(map(len, rest), default=0)

    def draft(text: Sequence[int]) -> Draft:
        end = tuple(text[-longest:]) if longest else ()
        return next((found for n in range(len(end)) if (found := rest.get(end[n:]))), NOTHING)

    return draft


@lru_cache(maxsize=8)
def beginnings(table: Table) -> dict[tuple[int, ...], Draft]:
    """{the first tokens of a chain: the best of its drafts}, of each proper beginning of each chain.
    >>> from bitnet_ref.chain.table import Chain
    >>> table = Table("", 99, "", 0, (Chain((4, 5, 6), 10, 20, (0.5, 0.9)),))
    >>> beginnings(table)
    {(4,): Draft(tokens=(5, 6), chances=(0.5, 0.9)), (4, 5): Draft(tokens=(6,), chances=(0.9,))}
    """
    rest: dict[tuple[int, ...], Draft] = {}
    for ids, _, _, sure in table.chains:
        for n in range(1, len(ids)):
            draft = Draft(ids[n:], sure[n - 1:])
            if draft.worth > rest.get(ids[:n], NOTHING).worth:
                rest[ids[:n]] = draft
    return rest


class Lookup:
    """Prompt lookup: what followed when the text's last tokens, 3 at most, stood in it before, most recently.

    Remembers what it has read; a text that does not go on from there is read anew.
    Source: the idea is Saxena's (prompt lookup decoding, 2023).
    """

    def __init__(self) -> None:
        self.text: list[int] = []
        self.ends: dict[tuple[int, ...], int] = {}         # of n-grams: where the one before the newest ended

    def __call__(self, text: Sequence[int]) -> Draft:
        if not goes_on(text, self.text):
            self.text, self.ends = [], {}
        found = NOTHING
        for at in range(len(self.text) + 1, len(text) + 1):
            self.text.append(text[at - 1])
            for n in range(min(LOOKED_FOR, at), 0, -1):
                gram = tuple(self.text[at - n:])
                before = self.ends.get(gram)
                if at == len(text) and before is not None and not found.tokens:
                    tokens = tuple(text[before:before + REACH])
                    found = Draft(tokens, (SURE[n - 1],) + (SURE[-1],) * (len(tokens) - 1))
                self.ends[gram] = at
        return found


class Refreshed:
    """Buckets that the text itself fills: what followed the last 3, 2 or 1 tokens most often so far, and on
    from there, as long as it did so twice; where the text has not said yet, the table's chains (if any)."""

    def __init__(self, table: Table | None = None) -> None:
        self.of_table = chains(table) if table else lambda text: NOTHING
        self.text: list[int] = []
        self.times: dict[tuple[tuple[int, ...], int], int] = {}      # that a token followed a gram
        self.most: dict[tuple[int, ...], tuple[int, int, int]] = {}  # which did most, how often, of how many

    def __call__(self, text: Sequence[int]) -> Draft:
        self._read(text)
        end, tokens, chances = tuple(text[-LOOKED_FOR:]), list[int](), list[float]()
        while len(tokens) < REACH:
            found = (self.most.get(end[n:], NEVER) for n in range(len(end)))
            best, times, of = next((f for f in found if f[1] > 1), NEVER)
            if not times:
                break
            tokens.append(best)
            chances.append(times / (of + 1))
            end = (*end, best)[-LOOKED_FOR:]
        return max(Draft(tuple(tokens), tuple(chances)), self.of_table(text), key=lambda found: found.worth)

    def _read(self, text: Sequence[int]) -> None:
        if not goes_on(text, self.text):
            self.text, self.times, self.most = [], {}, {}
        for token in text[len(self.text):]:
            for n in range(1, min(LOOKED_FOR, len(self.text)) + 1):
                gram = tuple(self.text[-n:])
                times = self.times[gram, token] = self.times.get((gram, token), 0) + 1
                best, most, of = self.most.get(gram, NEVER)
                self.most[gram] = (token, times, of + 1) if times > most else (best, most, of + 1)
            self.text.append(token)


def goes_on(text: Sequence[int], known: Sequence[int]) -> bool:
    """Whether `text` may be `known` and more: by length and last token, as all of it would take time.
    >>> goes_on([1, 2, 3], known=[1, 2]), goes_on([1, 9], known=[1, 2])
    (True, False)
    """
    return len(text) >= len(known) and (not known or text[len(known) - 1] == known[-1])


def oracle(text: Sequence[int]) -> Drafter:
    """One that knows the whole `text`, and is sure of it: the most that any drafter could bring.
    >>> oracle("to be or not to be".split())("to be or not".split())
    Draft(tokens=('to', 'be'), chances=(1.0, 1.0))
    """
    known = tuple(text)

    def draft(so_far: Sequence[int]) -> Draft:
        tokens = known[len(so_far):len(so_far) + REACH]
        return Draft(tokens, (1.0,) * len(tokens))

    return draft
