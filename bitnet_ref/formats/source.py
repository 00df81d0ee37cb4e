"""A model on disk, opened: what every reader of a format returns, and every writer takes.

When a Source exists its headers have been read and agreed with its config; tensors are read when asked for,
one by one, so a conversion holds the largest of them and not all. Names: model.params.param_specs.
Read after: formats/checkpoint. Read next: formats/safetensors_stream.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitnet_ref.chain.merge import checksum, with_chains
from bitnet_ref.chain.table import CHAINS, Table, read_table
from bitnet_ref.checks import check
from bitnet_ref.config import ModelConfig
from bitnet_ref.data.tokenizer import Tokenizer
from bitnet_ref.data.tokenizer import load as load_tokenizer
from bitnet_ref.formats.checkpoint import PARAM, TENSORS, latest, model_config, read_state, read_tensors
from bitnet_ref.formats.safetensors_stream import Stored, array, read_header
from bitnet_ref.model.params import Spec, param_specs
from bitnet_ref.model.weights import OnDisk, Trits, Weights
from bitnet_ref.quant import absmean_ternary

LARGEST_TEMPLATE = 1 << 20           # bytes; published ones have up to 2^14
MOST_EOS = 64                        # ids that end a text
RANGES: dict[str, tuple[type, float, float]] = {           # of what is kept in About.settings
    "temperature": (float, 0, 100), "top_k": (int, 0, 1 << 31), "top_p": (float, 0, 1),
    "min_p": (float, 0, 1), "repetition_penalty": (float, 1e-3, 1e3), "do_sample": (bool, 0, 1)}
CORRECT = "correct it, or restore the file from a copy"

Told = Callable[[str], None]         # of a writer: which tensor is done


class About(NamedTuple):
    """What a file says beside its tensors. `settings`: of generation_config.json (temperature, top_k)."""

    name: str = ""
    bos: int | None = None               # the id that begins a text
    eos: tuple[int, ...] = ()            # the ids that end one
    chat_template: str | None = None     # Jinja
    settings: dict[str, Any] = {}        # noqa: RUF012  (nobody changes it)


def checked_about(about: About, cfg: ModelConfig, where: str) -> About:
    """`about` as a stranger's file has it, of which any field may be anything; of settings those in RANGES.

    Raises CheckError, naming the field and `where`: another type, an id that the model has not, too many ends
    of text, a template too long, a setting out of its range.
    >>> about = About(bos=1, settings={"top_k": 40, "what": "is this"})
    >>> checked_about(about, ModelConfig(), "a file").settings
    {'top_k': 40}
    """
    check(isinstance(about.name, str), f"name in {where} must be a text", repr(about.name)[:50], CORRECT)
    eos: Any = about.eos
    check(isinstance(eos, tuple) and len(eos) <= MOST_EOS,
          f"eos in {where} must be a list of at most {MOST_EOS} ids", repr(eos)[:50], CORRECT)
    for i in eos if about.bos is None else (about.bos, *eos):
        check(type(i) is int and 0 <= i < cfg.vocab_size,
              f"bos and eos in {where} must be ids below {cfg.vocab_size}", repr(i)[:50], CORRECT)
    template = about.chat_template
    check(template is None or isinstance(template, str), f"chat_template in {where} must be a text or null",
          repr(template)[:50], CORRECT)
    size = len(template.encode("utf-8", "replace")) if template else 0
    check(size <= LARGEST_TEMPLATE, f"chat_template in {where} must have at most {LARGEST_TEMPLATE} bytes",
          f"{size:,}", "do not use this template")
    held: Any = about.settings
    check(isinstance(held, dict), f"settings in {where} must be a table", repr(held)[:50], CORRECT)
    return about._replace(settings=checked_settings(held, where))


def checked_settings(held: dict[str, Any], where: str) -> dict[str, Any]:
    """Those that sampling knows and that are not null. Raises CheckError where it would fail.
    >>> checked_settings({"temperature": 0.7, "top_p": None}, "a file")
    {'temperature': 0.7}
    """
    found = {name: held[name] for name in RANGES if held.get(name) is not None}
    for name, value in found.items():
        kind, low, high = RANGES[name]
        fits = type(value) is kind or (kind is float and type(value) is int)
        check(fits and low <= value <= high,               # NaN is not, and 10**400 has no float to ask of
              f"{name} in {where} must be {kind.__name__} in [{low:g}, {high:g}]", repr(value)[:50],
              "correct or remove it")
    return found


class Source(NamedTuple):
    """An opened model. `storage`: how its matrices are stored, in words."""

    path: Path
    kind: str                            # run, hf, bitnet, gguf or memory
    storage: str
    cfg: ModelConfig
    about: About
    tokenizer: str | None                # text of a tokenizer.json
    read: Callable[[str], Any]           # name -> Trits, or floats in the dtype they are stored in
    master: Callable[[str], np.ndarray] | None = None      # name -> latent floats of a matrix, if stored

    @property
    def specs(self) -> dict[str, Spec]:
        """The tensors, by name, in the order of the table."""
        return {s.name: s for s in param_specs(self.cfg)}


class Written(NamedTuple):
    """What a writer made: its files and bytes, and what the reader of a summary should know."""

    path: Path
    n_bytes: int
    n_tensors: int
    notes: tuple[str, ...] = ()
    n_moved: int = 0                     # trits that rounding the masters has moved


def tensors(source: Source) -> Iterator[tuple[Spec, Any]]:
    """(spec, Trits or floats) one by one, in the order of the table; nothing of the last is held.
    >>> from bitnet_ref.formats.example import model
    >>> [spec.name for spec, _ in tensors(model())][:3]
    ['embedding', 'layers.0.attn.wq', 'layers.0.attn.wk']
    """
    for spec in source.specs.values():
        yield spec, source.read(spec.name)


def weights(source: Source) -> Weights:
    """All of it, ready for Transformer(cfg, weights, ops); floats are float32 in memory.
    >>> from bitnet_ref.formats.example import model
    >>> table = weights(model())
    >>> table["layers.0.attn.wq"].w_q.shape, table["head"] is table["embedding"]
    ((8, 8), True)
    """
    table = Weights({spec.name: in_memory(t) for spec, t in tensors(source)})
    if source.cfg.tied_embeddings:
        head = np.asarray(table["embedding"])
        table["head"] = Trits(*absmean_ternary(head)) if source.cfg.head == "ternary" else head
    return table


def in_memory(t: Any) -> np.ndarray | Trits:
    """What a model runs on: Trits as they are, floats as float32.
    >>> in_memory(np.ones(2, np.float16)).dtype.name
    'float32'
    """
    return t if isinstance(t, Trits) else np.asarray(t, np.float32)


def of_weights(cfg: ModelConfig, held: Weights, name: str = "model", tokenizer: str | None = None) -> Source:
    """A model in memory as a Source, for the writers.
    >>> of_weights(ModelConfig(), Weights(final_norm=np.ones(256)), "mine").read("final_norm").shape
    (256,)
    """
    return Source(Path(name), "memory", "in memory", cfg, About(name), tokenizer, held.__getitem__)


def on_disk(source: Source) -> OnDisk:
    """Weights for a model that runs: each is read when the backend takes it into its own form, and let go.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     on_disk(open_run(run)).read("head").shape           # the embedding: they are tied
    (12, 8)
    """
    cfg = source.cfg

    def read(name: str) -> Any:
        if name == "head" and cfg.tied_embeddings:         # ternary then, or it would be the embedding
            return Trits(*absmean_ternary(np.asarray(source.read("embedding"), np.float32)))
        return source.read(name)

    return OnDisk(source.specs, read, cfg.tied_embeddings and cfg.head == "full")


def open_run(path: str | Path) -> Source:
    """A training run (its newest checkpoint), or one checkpoint. Its masters are read one by one.

    Raises CheckError: missing, damaged, another SHA-256 than stated, another tokenizer than the run's.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     source = open_run(run)
    ...     source.storage, source.read("layers.0.attn.wq").w_q.dtype.name
    ('float32 masters', 'int8')
    """
    checkpoint = latest(path)
    state = read_state(checkpoint)
    cfg = model_config(state)
    stored = _masters(checkpoint, state, cfg)
    ternary = {s.name for s in param_specs(cfg) if s.ternary}

    def master(name: str) -> np.ndarray:
        return array(stored[name])

    def read(name: str) -> Any:
        return Trits(*absmean_ternary(master(name))) if name in ternary else master(name)

    check(compression(state) != "super", "a model to convert must have a tokenizer that others know",
          f"super-tokens in {checkpoint.parent}", "convert a run that was trained without --compress super")
    tokenizer = run_tokenizer(checkpoint, state)
    about, text = About(checkpoint.parent.name), None
    if tokenizer is not None:                              # its EOS began and ended each text
        about, text = about._replace(bos=tokenizer.eos, eos=(tokenizer.eos,)), tokenizer.json
    return Source(checkpoint, "run", "float32 masters", cfg, about, text, read, master if ternary else None)


def _masters(checkpoint: Path, state: dict[str, Any], cfg: ModelConfig) -> dict[str, Stored]:
    """Where each parameter lies in the checkpoint, whose SHA-256 is verified and whose header is agreed."""
    read_tensors(checkpoint, state, [])
    file, again = checkpoint / TENSORS, "give another checkpoint of the run"
    held = read_header(file)
    check(cfg.n_layers <= len(held), f"{file} must hold every tensor of its config",
          f"{len(held)} tensors for n_layers = {cfg.n_layers}", again)
    found: dict[str, Stored] = {}
    for spec in param_specs(cfg):
        t = held.get(PARAM + spec.name)
        check(t is not None and (t.dtype, t.shape) == ("F32", spec.shape),
              f"{PARAM + spec.name} in {file} must be F32 {spec.shape}",
              "none" if t is None else f"{t.dtype} {t.shape}", again)
        found[spec.name] = held[PARAM + spec.name]
    return found


def run_tokenizer(checkpoint: Path, state: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer beside a run's checkpoints, if it is there: the one that the run was trained with, with
    super-tokens if it had them.

    Raises CheckError: damaged, of another size than the vocabulary, of another checksum than in `state`; as
    run_chains.
    >>> from bitnet_ref.data.tokenizer import from_json
    >>> from bitnet_ref.formats.example import model, written
    >>> tokenizer = from_json(str(model(vocab_size=257).tokenizer), "the example")
    >>> with written("run", vocab_size=257) as run:
    ...     print(run_tokenizer(latest(run), read_state(latest(run))))
    ...     _ = Path(run, "tokenizer.json").write_text(tokenizer.json)
    ...     state = read_state(latest(run)) | {"tokenizer": tokenizer.checksum}
    ...     run_tokenizer(latest(run), state).vocab_size
    None
    257
    """
    file = checkpoint.parent / "tokenizer.json"
    if not file.exists():
        return None
    plain, size = load_tokenizer(file), model_config(state).vocab_size
    table = run_chains(checkpoint, state, plain)
    tokenizer = with_chains(plain, table) if table and compression(state) == "super" else plain
    fix = f"put back the {file.name} that the run was trained with"
    check(tokenizer.vocab_size == size, f"{file} must have the model's {size} entries", tokenizer.vocab_size,
          fix)
    check(plain.checksum == state.get("tokenizer"),
          f"{file} must be the tokenizer that the model was trained with",
          f"checksum {plain.checksum[:12]}", fix)
    return tokenizer


def compression(state: dict[str, Any]) -> Any:
    """What --compress was in the run of this state; older ones had none.
    >>> compression({"train": {"compress": "super"}}), compression({})
    ('super', 'off')
    """
    how = state.get("train")
    return how.get("compress", "off") if isinstance(how, dict) else "off"


def run_chains(checkpoint: Path, state: dict[str, Any], tokenizer: Tokenizer) -> Table | None:
    """The table that a run with --compress was trained with; None of a run without.

    Raises CheckError: missing, damaged, of another tokenizer, other chains than the run's.
    >>> from tempfile import TemporaryDirectory
    >>> from bitnet_ref.chain.table import Chain, write_table
    >>> from bitnet_ref.data.tokenizer import from_json
    >>> from bitnet_ref.formats.example import model
    >>> tokenizer = from_json(str(model(vocab_size=257).tokenizer), "the example")
    >>> table = Table(tokenizer.vocabulary, 257, "a corpus", 50, (Chain((4, 5), 10, 10, (0.5,)),))
    >>> state = {"train": {"compress": "first"}, "chains": checksum(table)}
    >>> with TemporaryDirectory() as run:
    ...     write_table(Path(run, CHAINS), table)
    ...     run_chains(Path(run, "step-00000001"), state, tokenizer).chains[0].ids
    (4, 5)
    """
    if compression(state) == "off":
        return None
    file = checkpoint.parent / CHAINS
    table = read_table(file, tokenizer)
    check(checksum(table) == state.get("chains"),
          f"{file} must have the chains that the run was trained with", f"others, {checksum(table)[:12]}",
          f"put back the {CHAINS} that the run began with")
    return table
