"""conform: a port's tensors are judged by the reference, and the wrong line is named.

    probes homework        what a port is given: two small models, inputs of single ops
    slots training_slots   every decision at which a port can go wrong, with the reference's choice
    graph                  the tensors that a port may dump, and what each is made from
    faults/                the catalogue: known mistakes, as other choices in one or two slots
    judge blame            each op on the port's own inputs; which fault explains what is wrong
    read report picture    a dump's four formats; the table, the causes, the picture
    export verdict         the verbs `export DIR` and `DIR`
    checkpoint dump        the verbs `hf` and `dump`: real checkpoints

Read after: bench/golden. Read next: conform/probes.
"""
