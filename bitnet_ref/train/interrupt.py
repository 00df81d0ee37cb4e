"""Ctrl-C during training: finish the step, so that what is saved is whole. A second Ctrl-C stops at once.

Read after: train/small. Read next: train/gradient.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Training was interrupted between two steps and saved; the message says how to go on."""


@contextmanager
def deferred(signals: tuple[int, ...] = (signal.SIGINT,)) -> Iterator[Callable[[], bool]]:
    """Within the block, the first Ctrl-C only sets a flag: call what is yielded to read it.

    So does any other of `signals`.
    >>> with deferred() as asked:
    ...     before = asked(); signal.raise_signal(signal.SIGINT)        # Ctrl-C
    ...     before, asked()
    (False, True)
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False                  # only the main thread receives signals
        return
    asked: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    # Ignored in a background job: whoever started it wants that.
    before = {n: signal.signal(n, handler) for n in signals if signal.getsignal(n) is not signal.SIG_IGN}
    try:
        yield lambda: bool(asked)
    finally:
        for n, former in before.items():
            signal.signal(n, former)
