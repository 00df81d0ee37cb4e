"""Trits as bytes. Today: the layouts of other projects.

Read after: quant. Read next: pack/rosetta.
"""
