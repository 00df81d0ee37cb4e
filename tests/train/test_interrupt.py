"""train/interrupt: the first Ctrl-C is a flag, the second an exception, and afterwards all is as it was."""

import signal
import threading

import pytest

from bitnet_ref.train.interrupt import Interrupted, deferred


@pytest.fixture(autouse=True)
def usual_handler():
    """Python's own: a shell that starts the tests in the background lets them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def control_c():
    signal.raise_signal(signal.SIGINT)


def test_the_first_control_c_only_sets_a_flag():
    with deferred() as asked:
        assert not asked()
        control_c()
        assert asked()
        assert asked()


def test_the_second_stops_at_once():
    with deferred() as asked:
        control_c()
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            control_c()


@pytest.mark.parametrize("presses", [0, 1, 2])
def test_the_former_handler_is_put_back(presses):
    before = signal.getsignal(signal.SIGINT)
    try:
        with deferred():
            assert signal.getsignal(signal.SIGINT) is not before
            for _ in range(presses):
                control_c()
    except KeyboardInterrupt:
        assert presses == 2
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        control_c()


def test_blocks_do_not_share_their_flag():
    with deferred() as first:
        control_c()
    with deferred() as second:
        assert not second()
    assert first()


def test_in_another_thread_training_works_and_is_not_interruptible():
    seen = []

    def work():
        with deferred() as asked:
            seen.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_interrupted_is_a_keyboard_interrupt():
    """So whoever knows nothing of training still sees a Ctrl-C."""
    assert issubclass(Interrupted, KeyboardInterrupt)
