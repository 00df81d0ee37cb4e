"""Ports with known faults: the reference run on the homework with some slots replaced.

A stand-in that shares the catalogue's code. The ports beside tests/conform are written apart from it.
"""

from functools import cache

import numpy as np

from bitnet_ref.conform import planted
from bitnet_ref.conform.faults import catalogue
from bitnet_ref.conform.graph import graph, leaves
from bitnet_ref.conform.homework import homework
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
    return planted.dumped(*given(seed, layout), *tables, dtype=dtype)


def report(tensors, seed=0, layout="hf"):
    """What conform finds in these tensors, less those that the reader would refuse for their shape."""
    nodes, leaf = given(seed, layout)
    usable = {n: t for n, t in tensors.items() if t.shape == right_shapes(layout)[n]}
    return judge_dump(nodes, leaf, Dump(usable, [], 1))


@cache
def right_shapes(layout):
    """{name: shape} of the list that a homework gives."""
    return {n: t.shape for n, t in dumped(layout=layout).items()}
