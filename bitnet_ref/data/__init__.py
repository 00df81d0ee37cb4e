"""Text to training batches: corpora, tokenizer, token shards, batches as pure functions of their index.

    atomic       a file that appears whole or not at all
    download     the named corpora: local folder, cache, or the network, always checked
    python_docs  the default corpus: the English that every Python carries
    corpus       documents from a name or a path, as a stream
    split        training and validation side, with nothing in common
    tokenizer    byte-level BPE (library `tokenizers`)
    shards       memory-mapped tokens behind a header that describes them
    batches      batch number i; validation windows
    packing, mixture, feed   documents in another order; several corpora; batch number i of all that
    dataset      both sides of a corpus on the disk, in one folder
    prepare      corpus -> dataset, made once; __main__ makes one where you want it

This file imports none of them. Read after: cli. Read next: data/atomic.
"""
