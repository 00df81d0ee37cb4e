"""A checkpoint: a folder `step-00000100` with tensors.safetensors, state.json and DONE.

It is whole or absent: everything is written to a hidden name, synced to the disk, and renamed in one step.
DONE holds the SHA-256 of state.json, which holds that of the tensors beside the two configs and the counters;
reading verifies both. (Version 1 had an empty DONE.) No pickle, so a stranger's file cannot run code.
Read after: formats. Read next: formats/source.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig, from_dict
from bitnet_ref.data.atomic import unreadable, whole_file
from bitnet_ref.model.params import Params, param_specs

FORMAT, VERSION = "bitnet_ref checkpoint", 2
TENSORS, STATE, MARK = "tensors.safetensors", "state.json", "DONE"
BEST, BEST_FILE = "best", "best.json"       # RUN/best names the checkpoint whose step stands in RUN/best.json
NAME = re.compile(r"step-(\d{8,16})")
LEFTOVER = re.compile(r"\.step-\d{8,16}\.(partial|removed|replaced)|\..+\.[0-9a-f]{8}\.part")
PARAM, MOMENT1, MOMENT2 = "param.", "moment1.", "moment2."       # prefixes of the tensors' names
DTYPES = {"F64": "float64", "F32": "float32", "I8": "int8"}       # as the file's header spells them
RESTORE = "check its rights, or restore it from a copy"


class DamagedError(CheckError):
    """A checkpoint is not as it was written: cut, changed, or without one of its files."""


def named(prefix: str, params: Params) -> dict[str, np.ndarray]:
    """The views of `params` under `prefix`, as they are named in the file.
    >>> list(named(PARAM, Params(param_specs(ModelConfig(n_layers=1))[:2])))
    ['param.embedding', 'param.layers.0.attn.wq']
    """
    return {prefix + name: view for name, view in params.view.items()}


def write_checkpoint(run: Path, step: int, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> Path:
    """Write a whole checkpoint or none. Returns its folder. Raises CheckError when the disk refuses.
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as d:
    ...     place = write_checkpoint(Path(d), 100, {"x": np.ones(3)}, {"model": {}})
    ...     place.name, sorted(file.name for file in place.iterdir())
    ('step-00000100', ['DONE', 'state.json', 'tensors.safetensors'])
    """
    final = run / f"step-{step:08d}"
    partial, replaced = _hidden(final, "partial"), _hidden(final, "replaced")
    try:
        tidy(run)
        partial.mkdir(parents=True)
        payload = save({name: np.ascontiguousarray(t) for name, t in tensors.items()}, {"format": FORMAT})
        state = {"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(payload).hexdigest(), **state}
        about = json.dumps(state, indent=1).encode()
        mark = hashlib.sha256(about).hexdigest().encode()
        for name, data in ((TENSORS, payload), (STATE, about), (MARK, mark)):
            with open(partial / name, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        _sync_folder(partial)
        if final.exists():                      # the same step again: `tidy` brings it back after a kill here
            final.rename(replaced)
        partial.rename(final)
        _sync_folder(run)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as e:
        with suppress(OSError):
            tidy(run)
        raise CheckError(f"the run folder must be writable and have room for a checkpoint; got {e}; "
                         f"make room in {run} and resume: earlier checkpoints are untouched") from None
    return final


def _hidden(checkpoint: Path, why: str) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.{why}")


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint. It vanishes in one step: a kill leaves none with its DONE but without tensors.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     remove(run / "step-00000001")
    ...     checkpoints(run)
    []
    """
    hidden = _hidden(checkpoint, "removed")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged checkpoint to damaged-step-... (and a number, if that is taken). Returns its place.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     set_aside(run / "step-00000001").name
    'damaged-step-00000001'
    """
    goal, n = checkpoint.with_name(f"damaged-{checkpoint.name}"), 1
    while goal.exists():
        goal, n = checkpoint.with_name(f"damaged-{checkpoint.name}-{n + 1}"), n + 1
    checkpoint.rename(goal)
    return goal


def tidy(run: Path) -> None:
    """Clear away what a killed trainer left half done. Nobody may be training in `run`.

    A checkpoint that was about to be replaced by another of its step comes back, if the other is not there.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     (run / ".step-00000002.partial").mkdir()            # as a kill leaves it
    ...     tidy(run)
    ...     os.listdir(run)
    ['step-00000001']
    """
    for hidden in run.glob(".step-*.replaced"):
        final = run / hidden.name[1:].removesuffix(".replaced")
        if not final.exists():
            hidden.rename(final)
    for left in [p for p in (*run.glob(".*"), *run.glob("*/.*")) if LEFTOVER.fullmatch(p.name)]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":                      # Windows cannot open folders; its rename is journaled
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 for any other name.
    >>> step_of(Path("run/step-00000100")), step_of(Path("run/best"))
    (100, -1)
    """
    found = NAME.fullmatch(checkpoint.name)
    return int(found[1]) if found else -1


def checkpoints(run: Path, marked: bool = True) -> list[Path]:
    """The complete checkpoints of a run, oldest first by their steps. `marked`: not those without a DONE.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     [place.name for place in checkpoints(run)]
    ['step-00000001']
    """
    try:
        steps = {p: step for p in run.glob("step-*") if (step := step_of(p)) >= 0 and p.is_dir()}
        return sorted((p for p in steps if not marked or (p / MARK).is_file()), key=lambda p: steps[p])
    except OSError as e:
        raise unreadable(run, e) from None


def latest(run: str | Path) -> Path:
    """The newest complete checkpoint of a run folder (or the path itself, if it is one; or RUN/best).
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     latest(run).name
    'step-00000001'
    """
    path = Path(run)
    try:
        if (path / MARK).is_file():
            return path
        if is_best(path):
            return best(path.parent)
        check(path.is_dir(), "a model must be the folder of a training run", path,
              "give the folder that training printed")
    except OSError as e:
        raise unreadable(path, e) from None
    found = checkpoints(path)
    check(bool(found), f"{path} must hold a complete checkpoint (step-*/{MARK})", "none",
          "start it again, or give another run")
    return found[-1]


def is_best(path: Path) -> bool:
    """Whether `path` is RUN/best, a name for one of the run's checkpoints.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     note_best(run, step=1)
    ...     is_best(run / "best"), is_best(run)
    (True, False)
    """
    return path.name == BEST and not path.exists() and (path.parent / BEST_FILE).is_file()


def note_best(run: Path, step: int | None, loss: float = 0.0) -> None:
    """Write best.json: of the checkpoints kept, that of `step` had the lowest validation loss. None: none.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     note_best(run, step=1, loss=2.5)
    ...     (run / BEST_FILE).read_text()
    '{"step": 1, "loss": 2.5}'
    """
    if step is None:
        (run / BEST_FILE).unlink(missing_ok=True)
        return
    with whole_file(run / BEST_FILE) as f:
        f.write(json.dumps({"step": step, "loss": loss}).encode())


def best(run: Path) -> Path:
    """The checkpoint that best.json names. Raises CheckError for a damaged file or one that is gone.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     note_best(run, step=1)
    ...     best(run).name
    'step-00000001'
    """
    file, again = run / BEST_FILE, "give another checkpoint of the run; resuming writes the file anew"
    try:
        told = json.loads(file.read_bytes()[:1000])
    except OSError as e:
        raise unreadable(file, e) from None
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{file} must be JSON; got {e}; {again}") from None
    step = told.get("step") if isinstance(told, dict) else None
    place = run / f"step-{step:08d}" if type(step) is int else run / STATE
    check(place in checkpoints(run), f"{file} must name the step of a checkpoint", repr(step), again)
    return place


def _damaged(checkpoint: Path, rule: str, got: object) -> DamagedError:
    """What to raise about a damaged checkpoint: one before it is of use, if there is one."""
    found = checkpoints(checkpoint.parent)
    before = checkpoint in found and found[0] != checkpoint
    fix = (f"delete {checkpoint} to use the checkpoint before it" if before
           else "the run has no other checkpoint: restore it from a copy")
    return DamagedError(f"{rule}; got {got}; {fix}")


def _check_whole(holds: bool, checkpoint: Path, rule: str, got: object) -> None:
    if not holds:
        raise _damaged(checkpoint, rule, got)


def _not_given(file: Path, e: OSError) -> CheckError:
    """What to raise when the system does not give a file: damage only where it is gone or cannot be read."""
    gone = isinstance(e, FileNotFoundError | IsADirectoryError | NotADirectoryError) or e.errno == errno.EIO
    return (DamagedError if gone else CheckError)(str(unreadable(file, e, RESTORE)))


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json, checked to be as it was written, one of ours and of a version that we read.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     read_state(latest(run))["model"]["n_layers"]
    1
    """
    file = checkpoint / STATE
    try:
        text = file.read_bytes()
        with open(checkpoint / MARK, "rb") as f:
            mark = f.read(65)
    except OSError as e:
        raise _not_given(file if e.filename is None else Path(e.filename), e) from None
    digest = hashlib.sha256(text).hexdigest()
    _check_whole(mark in (b"", digest.encode()), checkpoint, f"{file} must have the SHA-256 in {MARK}",
                 f"{digest[:12]}...")
    try:
        state = json.loads(str(text, "utf-8"))
    except (ValueError, RecursionError) as e:
        raise _damaged(checkpoint, f"{file} must be readable JSON", e) from None
    check(isinstance(state, dict) and state.get("format") == FORMAT, f'{file} must say format = "{FORMAT}"',
          state.get("format") if isinstance(state, dict) else type(state).__name__,
          "give the folder of a bitnet_ref run")
    version = state.get("version")
    check(version in range(1, VERSION + 1), f"{file} must have version {VERSION} or an earlier one", version,
          "use the release of bitnet_ref that wrote it")
    _check_whole(mark != b"" or version == 1, checkpoint, f"{MARK} beside {file} must hold its SHA-256",
                 "an empty file")
    _check_whole(isinstance(state.get("model"), dict), checkpoint, f"{file} must hold a model config",
                 type(state.get("model")).__name__)
    return state


def verified(checkpoint: Path) -> dict[str, Any]:
    """Its state, when both checksums are right. Raises DamagedError where they are not, or a file is gone.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     sorted(verified(latest(run)))
    ['format', 'model', 'sha256', 'version']
    """
    state = read_state(checkpoint)
    read_tensors(checkpoint, state, [])
    return state


def model_config(state: dict[str, Any]) -> ModelConfig:
    """The ModelConfig in a state, validated like one that was typed.
    >>> model_config({"model": {"n_layers": 2}}).n_layers
    2
    """
    return from_dict(ModelConfig, state["model"], "checkpoint.model")


def read_tensors(checkpoint: Path, state: dict[str, Any], names: list[str],
                 prefixes: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named tensors, and under each prefix every one of the model, after the SHA-256 has been verified.

    The header must agree with the config before anything of a size that the config claims is allocated.
    Raises CheckError for a damaged or foreign file.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     read_tensors(latest(run), read_state(latest(run)), ["param.embedding"])["param.embedding"].shape
    (12, 8)
    """
    file = checkpoint / TENSORS
    try:
        with open(file, "rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
        _check_whole(digest == state.get("sha256"), checkpoint, f"{file} must have the SHA-256 in {STATE}",
                     f"{digest[:12]}...")
        with safe_open(file, framework="numpy") as f:
            if prefixes:
                names = names + _agreed(f, checkpoint, model_config(state), prefixes)
            _check_held(f, checkpoint, names)
            return {name: f.get_tensor(name) for name in names}
    except OSError as e:
        raise _not_given(file, e) from None
    except (SafetensorError, TypeError, AttributeError) as e:     # the last two: a dtype that NumPy has not
        raise _damaged(checkpoint, f"{file} must be a readable safetensors file", e) from None


def _agreed(f: Any, checkpoint: Path, cfg: ModelConfig, prefixes: tuple[str, ...]) -> list[str]:
    """The names of the model's tensors under `prefixes`, whose shapes in the header are those of `cfg`."""
    n_held = len(f.keys())
    _check_whole(cfg.n_layers <= n_held, checkpoint,
                 f"{checkpoint / TENSORS} must hold every tensor of its config",
                 f"{n_held} tensors for n_layers = {cfg.n_layers}")
    wanted = {prefix + s.name: s.shape for prefix in prefixes for s in param_specs(cfg)}
    _check_held(f, checkpoint, list(wanted))
    for name, shape in wanted.items():
        header = f.get_slice(name)
        dtype, got = header.get_dtype(), tuple(header.get_shape())
        dtype = DTYPES.get(dtype, dtype)
        check(dtype == "float32" and got == shape, f"{name} must be float32 {shape}", f"{dtype} {got}",
              "use a checkpoint of the same model")
    return list(wanted)


def _check_held(f: Any, checkpoint: Path, names: list[str]) -> None:
    missing = sorted(set(names) - set(f.keys()))
    _check_whole(not missing, checkpoint, f"{checkpoint / TENSORS} must hold every tensor of its config",
                 f"no {', '.join(missing[:3])}")


def fill(params: Params, tensors: dict[str, np.ndarray], prefix: str) -> None:
    """Copy the tensors named prefix + name into `params`.
    >>> params = Params(param_specs(ModelConfig())[-1:])
    >>> fill(params, {"moment1.final_norm": np.full(256, 0.5)}, MOMENT1)
    >>> params["final_norm"].mean().item()
    0.5
    """
    for name, view in params.view.items():
        t = tensors[prefix + name]
        assert t.shape == view.shape
        view[...] = t


def read_params(checkpoint: Path, state: dict[str, Any]) -> Params:
    """The training parameters of a checkpoint, float32.
    >>> from bitnet_ref.formats.example import written
    >>> with written("run") as run:
    ...     read_params(latest(run), read_state(latest(run)))["embedding"].shape
    (12, 8)
    """
    tensors = read_tensors(checkpoint, state, [], (PARAM,))
    params = Params(param_specs(model_config(state)))
    fill(params, tensors, PARAM)
    return params
