"""bitnet_ref: a reference implementation of BitNet b1.58, the LLM whose blocks' weights are -1, 0 or +1.

The map, in reading order (each name imports only from names before it):

    checks config          three-part errors; the two configs and the presets
    quant pack/            absmean ternary, absmax int8, the straight-through estimator; trits as bytes
    layers/                THE REFERENCE: every op forward and backward, NumPy only
    kernels/               backends: overlays on layers/, injected by load(name)
    model/                 parameters, blocks, the transformer, its cost formulas
    cli data/ chain/       a dataclass as a command line; corpora, tokenizer, shards, batches; frequent chains
    formats/ convert info  files on disk, from any format to any; the command that describes a model
    generate/ chat evaluate/   text from a model; perplexity and bits per byte
    train/ bench/          the trainer; measurements

Read after: README.md. Read next: checks.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet_ref.generate.language_model import LanguageModel

__version__ = "0.1.0"

# One letter, one meaning, everywhere: docstrings, parameter table, errors (docs/glossary.md).
DIMS = {
    "B": "batch", "T": "query time", "S": "key time", "D": "d_model", "F": "d_ff", "V": "vocabulary",
    "L": "layers", "H": "query heads", "KV": "key/value heads", "R": "H / KV", "Dh": "head_dim",
    "M": "rows of a product", "N": "outputs of a product", "K": "inputs of a product",
}


def load(path: str, backend: str = "numba", threads: int | None = None, int8_head: bool = False,
         half_cache: bool = False, i2s: str | None = None, chain: str = "auto") -> "LanguageModel":
    """The model in `path`: a run's folder, a Hugging Face folder or name, a .bitnet or a .gguf file.

    It is ready for `logits, loss = model(ids, targets)` and `model.generate("...")`. `int8_head` and
    `half_cache`: faster, a little rounded (docs/generation.md); `i2s`: the layout of a GGUF's I2_S; `chain`:
    who guesses tokens ahead (docs/speculative.md). Raises CheckError for what is missing, damaged or not
    supported.
    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet", vocab_size=257) as path:
    ...     model = load(path, "numpy")
    >>> logits, loss = model([[0, 65, 66]], [[65, 66, 67]])
    >>> logits.shape
    (1, 3, 257)
    """
    from bitnet_ref.generate.language_model import load

    return load(path, backend, threads, int8_head, half_cache, i2s, chain)
