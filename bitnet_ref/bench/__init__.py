"""Measurements: the commands behind every figure in the docs.

Read after: train/__main__. Read next: bench/child.
"""
