"""Ports with known faults: the reference run on the homework with some slots replaced.

A stand-in that shares the catalogue's code. The ports beside tests/conform are written apart from it.
"""

from functools import cache
from types import SimpleNamespace

import numpy as np

from bitnet_ref.conform.faults import catalogue
from bitnet_ref.conform.graph import REFERENCE, graph, leaves
from bitnet_ref.conform.homework import homework
from bitnet_ref.conform.judge import Judge
from bitnet_ref.conform.read import Dump
from bitnet_ref.conform.report import judge_dump

FAULTS = {f.name: f for f in catalogue()}
# The order that is right for a layout is no fault there; unpacked trits are not decoded at all.
RIGHT_ORDER = {"hf": "order_row_blocks", "128": "order_blocks_of_128", "64": "order_blocks_of_64",
               "4row": "order_four_rows"}


@cache
def given(seed=0, layout="hf"):
    """(nodes, leaves) of a homework."""
    return graph(layout), leaves(homework(seed), layout)


def dumped(*tables, seed=0, layout="hf", dtype=np.float32):
    """{name: tensor} of a port that computes in float64, dumps in `dtype`, and has these slots wrong."""
    nodes, leaf = given(seed, layout)
    slots = SimpleNamespace(**vars(REFERENCE))
    for table in tables:
        vars(slots).update(table)
    port, made = Judge(nodes, leaf, {}), {}
    for node in nodes:
        port.make(node.name, slots, made)
    return {n.name: np.asarray(made[n.name]).astype(dtype) for n in nodes}


def report(tensors, seed=0, layout="hf"):
    """What conform finds in these tensors, less those that the reader would refuse for their shape."""
    nodes, leaf = given(seed, layout)
    usable = {n: t for n, t in tensors.items() if t.shape == right_shapes(layout)[n]}
    return judge_dump(nodes, leaf, Dump(usable, [], 1))


@cache
def right_shapes(layout):
    """{name: shape} of the list that a homework gives."""
    return {n: t.shape for n, t in dumped(layout=layout).items()}
