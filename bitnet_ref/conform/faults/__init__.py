"""The catalogue of known faults: each is one function whose name is the cause that conform names.

Its docstring says what is wrong, then what to do; it returns the slots (conform/slots) that such a port gets
wrong, or a list of tables where the same mistake has several forms. docs/faults.md has an entry for each. To
add a fault: write the function in one of the four modules and its entry on that page; nothing else lists it.
Read after: conform/graph. Read next: conform/faults/files.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from bitnet_ref.conform.faults import files, forward, quantisers, training

PAGE = "docs/faults.md"


class Fault(NamedTuple):
    """A known fault. `says`: what is wrong; `fix`: what to change; `variants`: tables of slots."""

    name: str
    says: str
    fix: str
    variants: tuple[dict[str, Callable[..., Any]], ...]

    @property
    def page(self) -> str:
        """Where the fault is explained."""
        return f"{PAGE}#{self.name}"

    @property
    def slots(self) -> set[str]:
        """Every slot that some form of the fault replaces."""
        return set().union(*self.variants)


def catalogue() -> tuple[Fault, ...]:
    """All of them, in the order of the modules."""
    return tuple(_fault(f) for module in (files, quantisers, forward, training) for f in _public(module))


def _public(module: ModuleType) -> list[Callable[[], Any]]:
    return [f for name, f in vars(module).items()
            if callable(f) and getattr(f, "__module__", "") == module.__name__ and name[0] != "_"]


def _fault(f: Callable[[], Any]) -> Fault:
    says, _, fix = " ".join((f.__doc__ or "").split()).partition(" To do: ")
    found = f()
    return Fault(f.__name__, says, fix, tuple(found) if isinstance(found, list) else (found,))
