"""Files on disk that hold a model: the checkpoint of a training run, and the folders of Hugging Face.

Read after: chain/__main__. Read next: formats/checkpoint.
"""
