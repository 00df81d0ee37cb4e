"""An interpreter of PTX in NumPy: runs the very code that Numba makes for a card, where there is none.

faults: what may not be done; module: a text as data; values, memory, races: what it works on; scalar,
convert, access, warp, tensor, asynchronous: the instructions; counts, machine: the execution; driver:
NVIDIA's functions.
What it notices and what it cannot say: docs/ptx.md.
Read after: kernels/numba_cpu/decode_step. Read next: kernels/ptx/faults.
"""
