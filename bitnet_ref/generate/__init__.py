"""Text from a model, the plain way: no cache, one full forward per token. The oracle for every faster way.

Read after: info. Read next: generate/sampling.
"""
