"""A model that speaks, there at once: that of formats/example over bytes, for the examples in docstrings.

Nobody trained it, and it says the last byte again; but it says it as any other model does, on every machine,
without a corpus and without a file.
Read after: generate/repl. Read next: chat.
"""

from bitnet_ref import kernels
from bitnet_ref.data.tokenizer import SMALLEST, from_json
from bitnet_ref.formats.example import model
from bitnet_ref.formats.source import on_disk
from bitnet_ref.generate.conversation import Conversation
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.generate.sampling import GREEDY
from bitnet_ref.generate.template import BUILT_IN
from bitnet_ref.model import Transformer


def speaker(backend: str = "numpy") -> LanguageModel:
    """The model, ready to be called.

    >>> speaker().generate("A", tokens=3, temperature=0)
    'AAA'
    """
    source = model(vocab_size=SMALLEST)
    transformer = Transformer(source.cfg, on_disk(source), kernels.load(backend))
    return LanguageModel(transformer, from_json(str(source.tokenizer), "the example"))


def chat(tokens: int) -> Conversation:
    """A greedy chat with it, of replies of so many tokens.

    >>> "".join(chat(tokens=2).say("Hi"))
    '::'
    """
    return Conversation(speaker(), BUILT_IN["plain"], GREEDY, tokens)
