"""Measurements: the commands behind every figure in the docs.

Read after: train. Read next: torch_peer.
"""
