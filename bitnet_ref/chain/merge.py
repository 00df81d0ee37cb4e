"""A token stream with chains merged: what `--compress` makes of a text, and the tokenizer that says it back.

`first`: a chain becomes its first token. `super`: it becomes a token of its own, id V + its number in the
table; nothing is lost, and the text comes back. Chains are taken from the left, of several at one place the
longest, none across two documents.
Read after: chain/draft. Read next: chain/compress.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from bitnet_ref.chain.count import blocks, key_of, keys_of
from bitnet_ref.chain.table import LONGEST, Table
from bitnet_ref.checks import check
from bitnet_ref.data.tokenizer import Tokenizer

Gram = tuple[int, ...]


class Pattern(NamedTuple):
    """The chains of one length: keys uint64 (N,), ascending; their ids int64 (N, n); their numbers (N,)."""

    keys: np.ndarray
    grams: np.ndarray
    numbers: np.ndarray


@lru_cache(16)
def patterns(chains: tuple[Gram, ...]) -> dict[int, Pattern]:
    """{length: the chains of that length}, to be looked for.
    >>> found = patterns(((5, 6), (7, 8, 9), (6, 5)))
    >>> {n: sorted(p.grams.tolist()) for n, p in found.items()}
    {2: [[5, 6], [6, 5]], 3: [[7, 8, 9]]}
    """
    found = {}
    for n in sorted({len(ids) for ids in chains}):
        numbers = np.array([j for j, ids in enumerate(chains) if len(ids) == n])
        grams = np.array([ids for ids in chains if len(ids) == n], np.int64)
        keys = key_of(grams)
        order = np.argsort(keys, kind="stable")
        found[n] = Pattern(keys[order], grams[order], numbers[order])
    return found


def stream(tokens: np.ndarray, chains: tuple[Gram, ...], eos: int, supers: int | None,
           bar: tqdm) -> Iterator[np.ndarray]:
    """tokens (n,)  ->  blocks int64 of the compressed stream, in order; memory does not grow with n.

    supers: the id of the first chain; None: a chain becomes its first token. As next-token prediction goes,
    the target of that position is then the token after the chain, and the tokens inside it are neither
    inputs nor targets: they carry no loss, for they are not there.
    >>> tokens, chain = np.array([0, 5, 6, 7, 0, 5, 6, 0]), (5, 6)
    >>> with tqdm(disable=True) as bar: parts = list(stream(tokens, (chain,), eos=0, supers=None, bar=bar))
    >>> np.concatenate(parts).tolist()                 # each 5 6 became a 5
    [0, 5, 7, 0, 5, 0]
    """
    wanted, free = patterns(chains), 0                     # free: where the last chain taken ended
    for at, ids in blocks(tokens, eos, bar):
        starts, lengths, numbers = _matches(ids, eos, wanted)
        taken, end = _from_the_left(starts, lengths, free - at)
        starts, lengths, numbers = starts[taken], lengths[taken], numbers[taken]
        size = len(ids) - LONGEST + 1
        inner = starts[:, None] + np.arange(1, LONGEST)
        inner = inner[np.arange(1, LONGEST) < lengths[:, None]]
        keep = np.ones(size, bool)
        keep[:max(0, free - at)] = False
        keep[inner[inner < size]] = False
        if supers is not None:
            ids[starts] = supers + numbers
        free = at + end
        yield ids[:size][keep]


def _matches(ids: np.ndarray, eos: int,
             wanted: dict[int, Pattern]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where chains begin in a block, ascending; how long the longest of each place is; its number."""
    size = len(ids) - LONGEST + 1
    length, number = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for n, key, whole in keys_of(ids, eos):
        if n not in wanted:
            continue
        keys, grams, numbers = wanted[n]
        near = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        at = np.flatnonzero(whole & (keys[near] == key))
        near = near[at]
        same = np.all(ids[at[:, None] + np.arange(n)] == grams[near], axis=1)    # a hash alone may be wrong
        length[at[same]], number[at[same]] = n, numbers[near[same]]
    starts = np.flatnonzero(length)
    return starts, length[starts], number[starts]


def _from_the_left(starts: np.ndarray, lengths: np.ndarray, free: int) -> tuple[list[int], int]:
    """Which matches are taken, each the first to begin where those before it have ended; the last's end."""
    taken = []
    for i, (start, length) in enumerate(zip(starts.tolist(), lengths.tolist())):
        if start >= free:
            taken.append(i)
            free = start + length
    return taken, free


def merged(tokens: np.ndarray, chains: tuple[Gram, ...], eos: int, supers: int | None) -> np.ndarray:
    """The whole compressed stream of tokens (n,), int64: where it fits into memory.
    >>> tokens, first = np.array([5, 6, 7, 5, 6, 6]), None
    >>> [merged(tokens, ((5, 6),), eos=0, supers=supers).tolist() for supers in (first, 8)]
    [[5, 7, 5, 6], [8, 7, 8, 6]]
    """
    with tqdm(disable=True) as bar:
        return np.concatenate([np.zeros(0, np.int64), *stream(tokens, chains, eos, supers, bar)])


def expanded(ids: np.ndarray, chains: tuple[Gram, ...], supers: int) -> np.ndarray:
    """ids (n,) of V + chains entries  ->  int64 (m,), each super-token as the tokens of its chain.
    >>> expanded(np.array([8, 7, 9]), chains=((5, 6), (5, 5, 5)), supers=8).tolist()
    [5, 6, 7, 5, 5, 5]
    """
    spelled = np.zeros((len(chains) + 1, LONGEST), np.int64)
    sizes = np.ones(len(chains) + 1, np.int64)             # the last: of a token that is none
    for j, chain in enumerate(chains):
        spelled[j, :len(chain)], sizes[j] = chain, len(chain)
    ids = np.asarray(ids, np.int64)
    size = sizes[np.where(ids < supers, len(chains), ids - supers)]
    out = np.repeat(ids, size)
    place = np.arange(len(out)) - np.repeat(np.cumsum(size) - size, size)
    inside = out >= supers
    out[inside] = spelled[out[inside] - supers, place[inside]]
    return out


# ---- the tokenizer ----

@dataclass(frozen=True)
class ChainTokenizer(Tokenizer):
    """The tokenizer `json` with a super-token for each of `chains`, after its own ids.

    What `save` writes is the plain one: no other program has such a tokenizer. The chains lie beside it.
    """

    chains: tuple[Gram, ...] = ()

    @cached_property
    def plain(self) -> Tokenizer:
        """The one without chains."""
        return Tokenizer(self.json)

    @cached_property
    def _bpe(self) -> Any:
        return self.plain._bpe

    @cached_property
    def vocab_size(self) -> int:
        """Entries of the plain one, and chains."""
        return self.plain.vocab_size + len(self.chains)

    @cached_property
    def checksum(self) -> str:
        """Hex sha256 of the plain one's and the chains."""
        return hashlib.sha256(f"{self.plain.checksum} {self.chains}".encode()).hexdigest()

    @cached_property
    def vocabulary(self) -> str:
        """Hex sha256 of the plain one's and the chains: a table of plain ids is of another vocabulary."""
        return hashlib.sha256(f"{self.plain.vocabulary} {self.chains}".encode()).hexdigest()

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int64 (V + chains,): a chain has the bytes of its tokens."""
        plain = self.plain.token_bytes
        return np.concatenate([plain, [plain[list(ids)].sum() for ids in self.chains]]).astype(np.int64)

    def piece(self, i: int) -> bytes:
        """The bytes that id `i` adds to a text. Raises CheckError: an unknown id."""
        j = i - self.plain.vocab_size
        if 0 <= j < len(self.chains):
            return b"".join(map(self.plain.piece, self.chains[j]))
        return super().piece(i)

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Each text -> int32 (T,), its chains merged. Raises as `encode`."""
        return [merged(ids, self.chains, self.eos, self.plain.vocab_size).astype(np.int32)
                for ids in super().encode_batch(texts)]

    def decode(self, ids: Any) -> str:
        """ids (T,) -> text. Raises CheckError: an unknown id."""
        ids = np.asarray(ids, np.int64).reshape(-1)
        known = ids[(ids >= 0) & (ids < self.vocab_size)]
        return super().decode(ids if len(known) < len(ids) else self.expanded(ids))

    def expanded(self, ids: np.ndarray) -> np.ndarray:
        """ids (n,) -> int64 (m,), those of the plain tokenizer for the same text."""
        return expanded(ids, self.chains, self.plain.vocab_size)


def with_chains(tokenizer: Tokenizer, table: Table) -> ChainTokenizer:
    """`tokenizer` with the super-tokens of `table`. Raises CheckError for chains of ids that it has not.
    >>> from bitnet_ref.chain.table import Chain; from bitnet_ref.data.tokenizer import train_bpe
    >>> plain = train_bpe(["letters alone"], 257); the = tuple(plain.encode("the").tolist())
    >>> own = with_chains(plain, Table("", 257, "", 0, (Chain(the, 9, 18, (0.5, 0.5)),)))
    >>> len(plain.encode("the end")), len(own.encode("the end")), own.decode(own.encode("the end"))
    (7, 5, 'the end')
    """
    chains = ids_of(table)
    check(all(0 <= i < tokenizer.vocab_size for ids in chains for i in ids),
          f"chains must have ids below {tokenizer.vocab_size}", "others", "use the table of this tokenizer")
    return ChainTokenizer(tokenizer.json, chains)


def plain_of(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer without super-tokens.
    >>> from bitnet_ref.data.tokenizer import train_bpe
    >>> plain = train_bpe(["letters alone"], 257)
    >>> own = with_chains(plain, Table("", 257, "", 0, ()))
    >>> plain_of(own) == plain, plain_of(plain) is plain
    (True, True)
    """
    return tokenizer.plain if isinstance(tokenizer, ChainTokenizer) else tokenizer


def segmented(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """tokens (n,) of the plain tokenizer as `tokenizer` cuts the text: with its super-tokens, if it has any.
    >>> from bitnet_ref.chain.table import Chain; from bitnet_ref.data.tokenizer import train_bpe
    >>> own = with_chains(train_bpe(["letters"], 257), Table("", 257, "", 0, (Chain((5, 6), 1, 1, (0.5,)),)))
    >>> tokens = np.array([5, 6, 7])
    >>> segmented(tokens, own).tolist(), segmented(tokens, plain_of(own)).tolist()
    ([257, 7], [5, 6, 7])
    """
    if not isinstance(tokenizer, ChainTokenizer):
        return tokens
    return merged(tokens, tokenizer.chains, tokenizer.eos, tokenizer.plain.vocab_size)


def ids_of(table: Table) -> tuple[Gram, ...]:
    """The chains alone: all of a table that compression depends on.
    >>> from bitnet_ref.chain.table import Chain
    >>> ids_of(Table("", 99, "", 0, (Chain((4, 5), 10, 10, (0.5,)), Chain((6, 7, 8), 3, 6, (1.0, 1.0)))))
    ((4, 5), (6, 7, 8))
    """
    return tuple(tuple(c.ids) for c in table.chains)


def checksum(table: Table) -> str:
    """Hex sha256 of the chains, in their order.
    >>> from bitnet_ref.chain.table import Chain
    >>> table = Table("", 99, "", 0, (Chain((4, 5), 10, 10, (0.5,)),))
    >>> checksum(table) == checksum(table._replace(corpus="another")), len(checksum(table))
    (True, 64)
    """
    return hashlib.sha256(json.dumps(ids_of(table)).encode("ascii")).hexdigest()
