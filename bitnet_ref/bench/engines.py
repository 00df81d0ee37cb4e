"""The same model in another engine, to be timed beside ours: transformers and llama.cpp, where installed.

Each is a child of bench/efficiency, in the interpreter that has it, with the prompt, tokens and threads of
ours. transformers reads the very folder, in float32; llama.cpp a GGUF of it, trits as TQ2_0, floats as F16.
What an engine would not run rightly is left out with the reason, and so is one whose logits are not ours.
Read after: bench/efficiency. Read next: bench/rivals.
"""

import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitnet_ref.bench.child import Child, serve
from bitnet_ref.bench.efficiency import Ran, measure
from bitnet_ref.checks import CheckError, check

MODULE, CONTEST = "bitnet_ref.bench.engines", "engines"
IN = " in "                      # "bitnet in llama.cpp"


def greeted(engine: str, python: str) -> str:
    """What `engine` says of itself in the interpreter `python`, and what this one needs to give it a model.
    Raises CheckError, which names both: something is not installed."""
    try:
        with Child(python, MODULE, engine) as child:
            said = child.about.get("about")
        check(isinstance(said, str), "a peer must greet", repr(child.about)[:80],
              "see what it prints when it starts")
        return ", ".join([str(said), *(f"{name} {_version(name, engine)}" for name in HERE[engine])])
    except CheckError as e:
        raise CheckError(f"{engine} of {python}: {e}") from None


def _version(library: str, engine: str) -> str:
    """Of a library of this interpreter. Raises CheckError: it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        raise CheckError(f"{library} must be installed for {engine}; got none in {sys.executable}; "
                         f"pip install {library}") from None


def peers(pythons: Mapping[str, str], models: Mapping[str, str], threads: int,
          place: Path) -> tuple[dict[str, Ran], list[str]]:
    """({"who in engine": how it is run}, why others are not) of models by path; `place`: for GGUF files."""
    found, notes = {}, []
    for engine, python in pythons.items():
        for who, path in models.items():
            try:
                file, cfg = FILES[engine](path, place / f"{who}.gguf")
            except CheckError as e:
                notes.append(f"{who}{IN}{engine}: left out: {e}")
                continue
            words = (engine, str(file), str(threads), str(cfg.context), str(cfg.vocab_size))
            found[f"{who}{IN}{engine}"] = Ran(python, MODULE, words, who)
    return found, notes


def _folder(path: str, gguf: Path) -> tuple[Path, Any]:
    from bitnet_ref.formats.opened import kind_of, open_model

    kind = kind_of(Path(path))
    check(kind == "hf", "transformers must be given a Hugging Face folder", kind,
          "make one with python -m bitnet_ref.convert")
    return Path(path), open_model(path).cfg


def _gguf(path: str, gguf: Path) -> tuple[Path, Any]:
    from bitnet_ref.formats.gguf_write import write_gguf
    from bitnet_ref.formats.opened import open_model

    source = open_model(path)
    gguf.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(gguf, source, "tq2_0" if source.cfg.linear == "ternary" else "f16")
    return gguf, source.cfg


FILES: dict[str, Callable[[str, Path], tuple[Path, Any]]] = {"transformers": _folder, "llama.cpp": _gguf}
HERE: dict[str, tuple[str, ...]] = {"transformers": (), "llama.cpp": ("gguf",)}    # libraries for its FILES


# ---- in the child ----

class Transformers:
    """A folder in transformers, with what `measure` asks of a Transformer of ours."""

    def __init__(self, folder: str, threads: int, cfg: Any) -> None:
        self.torch, library = _libraries()
        self.torch.set_num_threads(threads)
        try:
            self.model = library.AutoModelForCausalLM.from_pretrained(folder, dtype=self.torch.float32)
        except (ImportError, OSError, ValueError) as e:
            raise CheckError(f"transformers must load {Path(folder).name}; got {str(e)[:200]!r}; "
                             "see whether it does so by itself") from None
        self.torch.nn.Module.float(self.model.eval())      # norms and embedding stay in their file's type
        for module in self.model.modules():
            if type(module).__name__ == "BitLinear":
                module.dtype = self.torch.float32
        self.cfg = cfg

    def prefill(self, ids: np.ndarray) -> tuple[np.ndarray, Any]:
        """ids (1, T)  ->  logits (1, V) of the last, state"""
        return self._read(ids, None)

    def decode_step(self, token: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """token (1,)  ->  logits (1, V), state"""
        return self._read(token[None], state)

    def _read(self, ids: np.ndarray, past: Any) -> tuple[np.ndarray, Any]:
        with self.torch.inference_mode():
            said = self.model(self.torch.from_numpy(ids), past_key_values=past, use_cache=True,
                              logits_to_keep=1)
        return said.logits[:, -1].numpy(), said.past_key_values


class LlamaCpp:
    """A GGUF in llama.cpp, likewise; its state is the newest."""

    def __init__(self, path: str, threads: int, cfg: Any) -> None:
        from bitnet_ref.bench.llama_peer import BATCH, Engine

        self.engine, self.batch, self.cfg = Engine(Path(path), threads, cfg.context), BATCH, cfg

    def prefill(self, ids: np.ndarray) -> tuple[np.ndarray, Any]:
        """ids (1, T)  ->  logits (1, V) of the last, None"""
        self.engine.rewind(0)
        parts = [ids[0, at:at + self.batch].tolist() for at in range(0, ids.shape[1], self.batch)]
        return [self.engine.advance(part, self.cfg.vocab_size) for part in parts][-1][None], None

    def decode_step(self, token: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        """token (1,)  ->  logits (1, V), None"""
        return self.engine.advance(token.tolist(), self.cfg.vocab_size)[None], None


def _libraries() -> tuple[Any, Any]:
    """(torch, transformers). Raises CheckError where one is missing."""
    try:
        import torch
        import transformers
    except ImportError as e:
        raise CheckError(f"transformers must be installed to time it as a peer; got {e}; in a clone, "
                         "pip install '.[oracle]', or name an interpreter that has it with --torch-python"
                         ) from None
    return torch, transformers


def _transformers_about() -> str:
    torch, transformers = _libraries()
    quantisers = _version("accelerate", "transformers")    # which load a ternary model with it
    return f"transformers {transformers.__version__}, torch {torch.__version__}, accelerate {quantisers}"


def _llama_about() -> str:
    from bitnet_ref.bench.llama_peer import modules

    return f"llama-cpp-python {modules()[0].__version__}"


ENGINES: dict[str, tuple[Any, Callable[[], str]]] = {
    "transformers": (Transformers, _transformers_about), "llama.cpp": (LlamaCpp, _llama_about)}


def start() -> tuple[dict[str, Any], Mapping[str, Callable[..., dict[str, Any]]]]:
    """Load the model of the command line, if it names one; what it can be asked."""
    engine, *given = sys.argv[1:]
    make, about = ENGINES[engine]
    said = {"about": about(), "kernels": None}
    if not given:
        return said, {}
    path, threads, context, vocab_size = given
    model = make(path, int(threads), SimpleNamespace(context=int(context), vocab_size=int(vocab_size)))
    return said, {"measure": lambda: measure(model)}


if __name__ == "__main__":
    serve(start)
