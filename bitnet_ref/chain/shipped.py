"""Tables that come with the library, for vocabularies that many models share: GPT-2's, Llama 2's, Llama 3's.

Which is which is known here by its checksum, so that one file is read, and none where no table fits. They are
mined by bench/chain_tables from openly licensed text; docs/speculative.md says which.
Read after: chain/show. Read next: chain/draft.
"""

from functools import cache
from pathlib import Path

from bitnet_ref.chain.table import Table, read_table
from bitnet_ref.data.tokenizer import Tokenizer

FOLDER = Path(__file__).with_name("tables")
SHIPPED = {                          # Tokenizer.vocabulary -> the table's name
    "b91f3c8b678e78163bcd3d79e0a3ff685a414fe810e36c4d308255dc030e95db": "gpt2",
    "4f48ad89adfbb899790cd51269032fc446feec6f95370f325f15a9a015df652d": "llama2",
    "a0353bd671a1cf77b3ada7f3ec0f4b776eab285567f32db10965b0b73f41f21d": "llama3",
}


def shipped(tokenizer: Tokenizer) -> Table | None:
    """The table for the vocabulary of `tokenizer`, or None.
    >>> from bitnet_ref.data.tokenizer import train_bpe
    >>> shipped(train_bpe(["a vocabulary of one's own"], 257)) is None
    True
    """
    name = SHIPPED.get(tokenizer.vocabulary)
    return None if name is None else _read(name)


@cache
def _read(name: str) -> Table:
    return read_table(FOLDER / f"{name}.json")
