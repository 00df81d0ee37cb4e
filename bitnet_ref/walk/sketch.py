"""A model that nobody trained, over bytes, and what is made with one: for the examples in docstrings.

Its weights are random, so that what it says means nothing; but it says it as any other does, and is there at
once, on every machine, without a corpus.
Read after: walk/twin. Read next: walk/ternary.
"""

from pathlib import Path

from bitnet_ref import kernels
from bitnet_ref.bench.random_model import random_weights
from bitnet_ref.config import ModelConfig
from bitnet_ref.data.tokenizer import SMALLEST, train_bpe
from bitnet_ref.evaluate.records import Data, Made, Metric, Model, Record
from bitnet_ref.formats.bitnet import write_bitnet
from bitnet_ref.formats.source import Source, of_weights, on_disk
from bitnet_ref.generate.conversation import Conversation
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.generate.sampling import GREEDY
from bitnet_ref.generate.template import BUILT_IN
from bitnet_ref.model import Transformer

CFG = ModelConfig(vocab_size=SMALLEST, d_model=32, n_layers=1, n_heads=2, n_kv_heads=1, d_ff=32, context=32)


def sketch(backend: str = "numpy") -> LanguageModel:
    """The model, ready to be called.

    >>> sketch().cfg.vocab_size                              # 256 bytes, and the end of a text
    257
    """
    source = _source()
    tokenizer = train_bpe([], SMALLEST)
    return LanguageModel(Transformer(CFG, on_disk(source), kernels.load(backend)), tokenizer)


def chat(tokens: int) -> Conversation:
    """A greedy chat with it, of replies of so many tokens.

    >>> "".join(chat(tokens=2).say("Hi"))
    '::'
    """
    return Conversation(sketch(), BUILT_IN["plain"], GREEDY, tokens)


def sketch_file(folder: str | Path) -> str:
    """The same as sketch.bitnet in `folder`; its path.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(sketch_file(folder)).name
    'sketch.bitnet'
    """
    path = Path(folder) / "sketch.bitnet"
    write_bitnet(path, _source(), "i2")                    # the packing that needs nothing compiled
    return str(path)


def record(task: str = "arc") -> Record:
    """What an evaluation of it would be kept as: one question, answered.

    >>> record().metrics["acc"].value
    1.0
    """
    of = Model("sketch.bitnet", "bitnet", "", CFG.linear, 0, 0, "", CFG.vocab_size, CFG.context)
    return Record("choice", task, of, Made("", "", 0.0, {}, {}), Data(task, "", 1), {"acc": Metric(1.0, 1)})


def _source() -> Source:
    return of_weights(CFG, random_weights(CFG), "sketch", train_bpe([], SMALLEST).json)
