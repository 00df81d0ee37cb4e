"""Ctrl-C during training: finish the step, so that what is saved is whole. A second Ctrl-C stops at once.

Read after: train/start. Read next: train/gradient.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Training was interrupted between two steps and saved; the message says how to go on."""


@contextmanager
def deferred() -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C only sets a flag: call what is yielded to read it."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False                  # only the main thread receives signals
        return
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: False                  # a background job: whoever started it wants Ctrl-C ignored
        return
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
