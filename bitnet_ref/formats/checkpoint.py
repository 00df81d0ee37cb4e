"""A checkpoint: a folder `step-00000100` with tensors.safetensors, state.json and an empty file DONE.

It is whole or absent: everything is written to a hidden name, synced to the disk, and renamed in one step.
state.json holds the two configs, the counters and the SHA-256 of the tensors, which reading verifies. No
pickle, so a file from a stranger cannot run code.
Read after: formats. Read next: formats/source.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bitnet_ref.checks import CheckError, check
from bitnet_ref.config import ModelConfig, from_dict
from bitnet_ref.data.atomic import unreadable
from bitnet_ref.model.params import Params, param_specs

FORMAT, VERSION = "bitnet_ref checkpoint", 1
TENSORS, STATE, MARK = "tensors.safetensors", "state.json", "DONE"
PARAM, MOMENT1, MOMENT2 = "param.", "moment1.", "moment2."       # prefixes of the tensors' names
DTYPES = {"F64": "float64", "F32": "float32", "I8": "int8"}       # as the file's header spells them
RESTORE = "check its rights, or restore it from a copy"


def named(prefix: str, params: Params) -> dict[str, np.ndarray]:
    """The views of `params` under `prefix`, as they are named in the file."""
    return {prefix + name: view for name, view in params.view.items()}


def write_checkpoint(run: Path, step: int, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> Path:
    """Write a whole checkpoint or none. Returns its folder. Raises CheckError when the disk refuses."""
    final = run / f"step-{step:08d}"
    partial = run / f".{final.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        payload = save({name: np.ascontiguousarray(t) for name, t in tensors.items()}, {"format": FORMAT})
        state = {"format": FORMAT, "version": VERSION, "sha256": hashlib.sha256(payload).hexdigest(), **state}
        for name, data in ((TENSORS, payload), (STATE, json.dumps(state, indent=1).encode()), (MARK, b"")):
            with open(partial / name, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        _sync_folder(partial)
        if final.exists():                      # the same step again: equal by construction, this is whole
            remove(final)
        partial.rename(final)
        _sync_folder(run)
    except OSError as e:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckError(f"the run folder must be writable and have room for a checkpoint; got {e}; "
                         f"make room in {run} and resume: earlier checkpoints are untouched") from None
    return final


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint. It vanishes in one step: a kill leaves none with its DONE but without tensors."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.removed")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":                      # Windows cannot open folders; its rename is journaled
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    try:
        return sorted(p for p in run.glob("step-*") if (p / MARK).is_file())
    except OSError as e:
        raise unreadable(run, e) from None


def latest(run: str | Path) -> Path:
    """The newest complete checkpoint of a run folder (or the path itself, if it is one)."""
    path = Path(run)
    try:
        if (path / MARK).is_file():
            return path
        check(path.is_dir(), "a model must be the folder of a training run", path,
              "give the folder that training printed")
    except OSError as e:
        raise unreadable(path, e) from None
    found = checkpoints(path)
    check(bool(found), f"{path} must hold a complete checkpoint (step-*/{MARK})", "none",
          "train longer than save_every steps, or give another run")
    return found[-1]


def _damaged(checkpoint: Path, rule: str, got: object) -> CheckError:
    """What to raise about a damaged checkpoint: one before it is of use, if there is one."""
    before = any(c.name < checkpoint.name for c in checkpoints(checkpoint.parent))
    fix = (f"delete {checkpoint} to use the checkpoint before it" if before
           else "the run has no other checkpoint: restore it from a copy")
    return CheckError(f"{rule}; got {got}; {fix}")


def _check_whole(holds: bool, checkpoint: Path, rule: str, got: object) -> None:
    if not holds:
        raise _damaged(checkpoint, rule, got)


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json, checked to be one of ours and of a version that we read."""
    file = checkpoint / STATE
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise unreadable(file, e, RESTORE) from None
    except (ValueError, RecursionError) as e:
        raise _damaged(checkpoint, f"{file} must be readable JSON", e) from None
    check(isinstance(state, dict) and state.get("format") == FORMAT, f'{file} must say format = "{FORMAT}"',
          state.get("format") if isinstance(state, dict) else type(state).__name__,
          "give the folder of a bitnet_ref run")
    check(state.get("version") == VERSION, f"{file} must have version {VERSION}", state.get("version"),
          "use the release of bitnet_ref that wrote it")
    _check_whole(isinstance(state.get("model"), dict), checkpoint, f"{file} must hold a model config",
                 type(state.get("model")).__name__)
    return state


def model_config(state: dict[str, Any]) -> ModelConfig:
    """The ModelConfig in a state, validated like one that was typed."""
    return from_dict(ModelConfig, state["model"], "checkpoint.model")


def read_tensors(checkpoint: Path, state: dict[str, Any], names: list[str],
                 prefixes: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """The named tensors, and under each prefix every one of the model, after the SHA-256 has been verified.

    The header must agree with the config before anything of a size that the config claims is allocated.
    Raises CheckError for a damaged or foreign file.
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
        raise CheckError(f"{file} must be a readable safetensors file; got {e}; {RESTORE}") from None
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
    """Copy the tensors named prefix + name into `params`."""
    for name, view in params.view.items():
        t = tensors[prefix + name]
        assert t.shape == view.shape
        view[...] = t


def read_params(checkpoint: Path, state: dict[str, Any]) -> Params:
    """The training parameters of a checkpoint, float32."""
    tensors = read_tensors(checkpoint, state, [], (PARAM,))
    params = Params(param_specs(model_config(state)))
    fill(params, tensors, PARAM)
    return params
