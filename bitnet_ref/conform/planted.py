"""A port with known faults, to learn from: the reference run on the homework with some slots replaced.

It shares the catalogue's code, so it says nothing of whether `conform` finds the faults of others; for that
there are ports written apart from it (tests/conform).
Read after: conform/report. Read next: conform/picture.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from bitnet_ref.conform.graph import REFERENCE, Node
from bitnet_ref.conform.judge import Judge

Table = dict[str, Callable[..., Any]]


def dumped(nodes: list[Node], given: dict[str, Any], *tables: Table,
           dtype: type = np.float32) -> dict[str, np.ndarray]:
    """{name: tensor} of a port that computes in float64, dumps in `dtype`, and has these slots wrong."""
    slots = SimpleNamespace(**vars(REFERENCE))
    for table in tables:
        vars(slots).update(table)
    port, made = Judge(nodes, given, {}), dict[str, Any]()
    for node in nodes:
        port.make(node.name, slots, made)
    return {n.name: np.asarray(made[n.name]).astype(dtype) for n in nodes}
