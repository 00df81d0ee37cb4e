"""Text from a model: prefill the prompt, then a token at a time, by the backend's whole-model path.

Read after: info. Read next: generate/sampling.
"""
