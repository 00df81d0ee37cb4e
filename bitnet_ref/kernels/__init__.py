"""Backends: overlays on the reference, injected into the model, never asked about.

`load("numpy")` is the reference itself. A faster backend is a package beside this file that lists what it
provides; its names replace the reference's. The model receives the namespace and never imports this package.
Read after: layers/adamw. Read next: model.
"""

from importlib import import_module
from types import SimpleNamespace

from bitnet_ref.checks import lookup
from bitnet_ref.layers import ALL_OPS

BACKENDS: dict[str, tuple[str, ...]] = {"numpy": (), "numba": ("numba_cpu",)}   # overlays, applied in order


def load(name: str = "numpy") -> SimpleNamespace:
    """The namespace of ops of backend `name`. Raises CheckError (listing the backends) for an unknown one."""
    table = dict(ALL_OPS)
    for folder in lookup(BACKENDS, name, "backend"):
        overlay = import_module(f"bitnet_ref.kernels.{folder}")
        table.update({op: getattr(overlay, op) for op in overlay.PROVIDES})
    return SimpleNamespace(**table)
