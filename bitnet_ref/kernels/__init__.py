"""Backends: overlays on the reference, injected into the model, never asked about.

`load("numpy")` is the reference itself. A faster backend is a package beside this file that lists what it
provides; its names replace the reference's. Beside ops it may provide the whole-model paths PATHS, whose
references are in model/transformer.py. The model receives the namespace and never imports this package.
Read after: layers/adamw. Read next: kernels/state.
"""

import os
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from bitnet_ref.checks import check, lookup
from bitnet_ref.layers import ALL_OPS

BACKENDS: dict[str, tuple[str, ...]] = {                 # overlays, applied in order
    "numpy": (), "numba": ("numba_cpu",), "cuda": ("numba_cuda",)}
PATHS = ("forward", "prefill", "extend", "decode_step", "train_step")


def load(name: str = "numpy", threads: int | None = None, backward: str = "float32") -> SimpleNamespace:
    """The namespace of ops of backend `name`, to run with that many threads (default: as it is).

    `backward`: float32, or bf16 for the backward products of training, where backend and processor can.

    Raises CheckError (listing the backends) for an unknown one, for more threads than processors, and where
    what a backend needs (CUDA: libraries, driver, card) is missing.
    >>> load("numpy").rmsnorm.__module__               # the reference; load("numba") has its own
    'bitnet_ref.layers.rmsnorm'
    >>> load("fast")
    Traceback (most recent call last):
    bitnet_ref.checks.CheckError: backend must be one of numpy, numba, cuda; got 'fast'; choose one of these
    """
    overlays = [import_module(f"bitnet_ref.kernels.{folder}") for folder in lookup(BACKENDS, name, "backend")]
    table = dict(ALL_OPS)
    for overlay in overlays:
        getattr(overlay, "require", lambda: None)()
        table.update(overlay.PROVIDES)
    if lookup(("float32", "bf16"), backward, "backward") == "bf16":
        check(any(hasattr(overlay, "bf16_train_step") for overlay in overlays),
              "--backward bf16 needs a backend that has it", name, "use --backend numba")
        table["train_step"] = overlays[-1].bf16_train_step()
    if threads is not None:
        _use(threads, overlays)
    return SimpleNamespace(**table)


def about(name: str) -> dict[str, Any]:
    """What a result of backend `name` was computed with: its instructions (if it chooses) and its threads.
    >>> sorted(about("numpy"))
    ['backend', 'threads']
    """
    from threadpoolctl import threadpool_info

    blas = max((pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"), default=1)
    found = {"backend": name, "threads": blas}
    for overlay in BACKENDS[name]:
        found |= import_module(f"bitnet_ref.kernels.{overlay}").about()
    return found


def _use(threads: int, overlays: list) -> None:
    """BLAS and the overlays on the same number of threads: never more together than one of them alone."""
    from threadpoolctl import threadpool_limits

    most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    check(threads >= 1, "threads must be at least 1", threads, "leave --threads out to use all processors")
    if not overlays:                                       # they know how many they have
        check(threads <= most, f"threads must lie in 1..{most} (the processors of this process)", threads,
              "choose fewer")
    for overlay in overlays:
        overlay.use(threads)
    threadpool_limits(threads)
