"""The trainer: one loop that reads as a paragraph, on pure schedules, pure batches and whole checkpoints.

Read after: evaluate/__main__. Read next: train/schedule.
"""
