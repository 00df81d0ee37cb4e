"""Faults of reading packed weights: code maps, orders of elements, scales.

An order that is the right one for the files at hand explains nothing there, so each is listed once, under
the name of the layout that the port believes in.
Read after: conform/faults. Read next: conform/faults/quantisers.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitnet_ref.conform import slots as op

Table = dict[str, Callable[..., Any]]


def code_map_zero_plus_minus() -> Table:
    """The 2-bit codes are read as 00 = 0, 01 = +1, 10 = -1.
    To do: subtract 1 from the code: 00 = -1, 01 = 0, 10 = +1.
    """
    return {"code_map": lambda codes: np.array([0, 1, -1, 0], np.int8)[codes]}


def code_map_twos_complement() -> Table:
    """The 2-bit codes are read as two's complement: 00 = 0, 01 = +1, 10 = -2, 11 = -1.
    To do: subtract 1 from the code: 00 = -1, 01 = 0, 10 = +1.
    """
    return {"code_map": lambda codes: np.array([0, 1, -2, -1], np.int8)[codes]}


def code_map_plus_two() -> Table:
    """2 is subtracted from the codes, as in Microsoft's GPU format.
    To do: subtract 1: these files store trit + 1.
    """
    return {"code_map": lambda codes: codes.astype(np.int8) - 2}


def order_row_blocks() -> list[Table]:
    """The four fields of a byte are taken as rows r, r + N/4, r + 2N/4, r + 3N/4, as Hugging Face packs.
    To do: read the layout of this file, given in homework.json.
    """
    return _order(op.row_blocks, op.LOW_FIRST)


def order_consecutive() -> Table:
    """The four fields of a byte are taken as four neighbours in a row.
    To do: read the layout of this file, given in homework.json (Hugging Face: rows r, r + N/4, ...).
    """
    return {"order": lambda name: op.consecutive}


def order_four_rows() -> list[Table]:
    """The four fields of a byte are taken as four consecutive rows.
    To do: read the layout of this file, given in homework.json (Hugging Face: rows r, r + N/4, ...).
    """
    return _order(op.four_rows, op.HIGH_FIRST)


def order_blocks_of_128() -> list[Table]:
    """The bytes are taken as I2_S blocks of 128 elements, as x86 builds of bitnet.cpp write them.
    To do: read the layout of this file, given in homework.json.
    """
    return _order(op.blocks_of_128, op.HIGH_FIRST)


def order_blocks_of_64() -> list[Table]:
    """The bytes are taken as I2_S blocks of 64 elements, as ARM builds of bitnet.cpp write them.
    To do: read the layout of this file, given in homework.json.
    """
    return _order(op.blocks_of_64, op.HIGH_FIRST)


def bit_fields_reversed() -> Table:
    """The four 2-bit fields of a byte are taken from the wrong end (high bits first, or low bits first).
    To do: Hugging Face: the first field is bits 0-1; I2_S: the first field is bits 6-7.
    """
    return {"bit_fields": lambda shifts: shifts[::-1]}


def transposed_weight() -> Table:
    """A matrix is taken as (in, out) although it is stored (out, in), row after row.
    To do: y = x @ w.T with w of shape (out, in).
    """
    return {"rows_first": lambda flat, shape: flat.reshape(shape[::-1]).T}


def weight_scale_inverted() -> list[Table]:
    """The weight scale is used the wrong way round: divided by instead of multiplied, or the reverse.
    To do: w = w_q * s. A file of linear_class "autobitlinear" stores s, one of "bitlinear" stores 1/s.
    """
    return [{"stored_scale": lambda stored, inverse: stored if inverse else 1 / stored},
            {"w_factor": lambda w_scale: 1 / w_scale}]


def weight_scale_dropped() -> list[Table]:
    """The weight scale is not applied.
    To do: multiply each product by its matrix's scale.
    """
    return [{"stored_scale": lambda stored, inverse: np.ones_like(stored)}, {"w_factor": np.ones_like}]


def _order(order: Callable[..., Any], shifts: tuple[int, ...]) -> list[Table]:
    """Another layout's order, with this file's bit ends or with its own."""
    return [{"order": lambda name: order}, {"order": lambda name: order, "bit_fields": lambda right: shifts}]
