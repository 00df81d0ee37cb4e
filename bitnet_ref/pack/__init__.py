"""Trits as bytes: the two packings of this project, then the layouts of others.

i2 (2 bits a trit) and b3 (1.6 bits) are a function that packs, one that unpacks and BITS_PER_TRIT; each has
a page in docs/formats. They are for rest: a backend shuffles bytes for its kernels when it loads them.
Read after: quant. Read next: pack/i2.
"""
