"""train/small: a real run that can be trained and resumed, and that leaves nothing behind."""

import gc

import numpy as np
from tiny import own_cache  # noqa: F401

from bitnet_ref.train import loop, start
from bitnet_ref.train.small import small_run


def test_it_is_trained_and_resumed():
    run, data = small_run(steps=4)
    before = run.model.params.flat.copy()
    loop.train(run, data)
    assert not np.array_equal(run.model.params.flat, before)
    again, _ = start.resume(str(run.folder), {})
    np.testing.assert_array_equal(again.model.params.flat, run.model.params.flat)


def test_two_are_equal():
    (a, _), (b, _) = small_run(), small_run()
    assert a.folder != b.folder
    assert a.data == b.data
    np.testing.assert_array_equal(a.model.params.flat, b.model.params.flat)


def test_its_folder_goes_with_it():
    run, _ = small_run()
    place = run.folder.parent
    assert place.is_dir()
    del run, _
    gc.collect()
    assert not place.exists()
