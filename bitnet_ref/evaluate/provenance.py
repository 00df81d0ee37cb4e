"""Where a figure comes from: which model, by checksums; which machine, versions and command, without paths.

A record leaves this machine, so it names no folder of it: of a path the last part (of a checkpoint its run's
too), of a command's arguments the last part of each.
Read after: evaluate/example. Read next: evaluate/perplexity.
"""

import hashlib
import os
import platform
import re
import shlex
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bitnet_ref import __version__, kernels
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.evaluate.records import Made, Model
from bitnet_ref.formats import hub
from bitnet_ref.formats.checkpoint import NAME, TENSORS, is_best, latest
from bitnet_ref.formats.opened import kind_of
from bitnet_ref.formats.safetensors_stream import shards
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.model import cost
from bitnet_ref.pack import i2

LIBRARIES = ("numpy", "numba", "llvmlite", "tokenizers")


def model_facts(model: LanguageModel, path: str) -> Model:
    """Which model was scored: what a record says of the one that `load(path)` gave.

    >>> from bitnet_ref.generate.language_model import load
    >>> from bitnet_ref.formats.example import written
    >>> with written("bitnet", vocab_size=257) as path:
    ...     facts = model_facts(load(path, "numpy"), str(path))
    >>> facts.path, facts.format, facts.linear
    ('model.bitnet', 'bitnet', 'ternary')
    """
    place, cfg = hub.folder_of(path), model.cfg
    kind = kind_of(place)
    return Model(called(path, place), kind, weights_sha256(place, kind), cfg.linear,
                 cost.count_params(cfg).total, round(cost.inference_bytes(cfg, i2.BITS_PER_TRIT)),
                 model.tokenizer.vocabulary, cfg.vocab_size, cfg.context)


def called(path: str, place: Path) -> str:
    """A model's name: as it is on a hub, or the last part of its path; of a checkpoint in a run RUN/STEP.

    >>> called("texts/more/nano.gguf", Path("texts/more/nano.gguf"))
    'nano.gguf'
    """
    if hub.is_name(path):
        return path
    parts = place.absolute().parts
    inside = is_best(place) or NAME.fullmatch(parts[-1]) is not None
    return "/".join(parts[-2:] if inside else parts[-1:])


def weights_sha256(place: Path, kind: str) -> str:
    """Hex sha256 of the files that hold the weights, one after the other by name.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     weights_sha256(Path(file.name), "gguf")[:16]       # of no bytes at all
    'e3b0c44298fc1c14'
    """
    files = [latest(place) / TENSORS] if kind == "run" else sorted(shards(place)) if kind == "hf" else [place]
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as f:
                while piece := f.read(1 << 20):
                    digest.update(piece)
        except OSError as e:
            raise unreadable(file, e) from None
    return digest.hexdigest()


def made(command: str, argv: list[str], seconds: float, backend: str,
         libraries: tuple[str, ...] = ()) -> Made:
    """How a record came about: of `python -m bitnet_ref.<command> argv`, now. `libraries`: others used.

    >>> made("evaluate", ["--model", "/data/nano.gguf"], 1.5, "numpy").command
    'python -m bitnet_ref.evaluate --model nano.gguf'
    """
    versions = {"python": platform.python_version(), "bitnet_ref": __version__}
    for name in (*LIBRARIES, *libraries):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    about = {**machine(), **kernels.about(backend)}
    words = ["python", "-m", f"bitnet_ref.{command}", *map(short, argv)]
    return Made(shlex.join(words), datetime.now(UTC).isoformat(timespec="seconds"), round(seconds, 3),
                versions, about)


def machine() -> dict[str, Any]:
    """The processor and its cores.

    >>> sorted(machine())
    ['cores', 'cpu']
    """
    cpu, info = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), cpu)
    return {"cpu": cpu, "cores": os.cpu_count()}


def short(argument: str) -> str:
    """An argument without the folders of this machine: of each path the last part, behind `--flag=` too.

    >>> short("--corpus=/data/texts,/data/more")
    '--corpus=texts,more'
    """
    flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return flag + equals + ",".join(re.split(r"[/\\]", v.rstrip("/\\") or v)[-1] or v
                                    for v in value.split(","))
