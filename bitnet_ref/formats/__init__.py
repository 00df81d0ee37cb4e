"""Files on disk that hold a model. Today: the checkpoint of a training run.

Read after: data/__main__. Read next: formats/checkpoint.
"""
