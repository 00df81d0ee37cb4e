"""How good a model is: perplexity and bits per byte, beside what general compressors reach on the same text.

Read after: chat. Read next: evaluate/records.
"""
