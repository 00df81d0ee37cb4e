"""The pictures of the notebooks: small PNGs that show what they are given."""

import struct

import numpy as np

from bitnet_ref.layers import relu2
from bitnet_ref.walk import pictures


def is_small_png(picture):
    png = picture._repr_png_()
    width, height = struct.unpack(">II", png[16:24])
    return png[:8] == b"\x89PNG\r\n\x1a\n" and len(png) < 64 * 1024 and width <= 1400 and height <= 800


def test_pictures_are_small_and_have_words(rng):
    w = rng.normal(size=(40, 30))
    x, v, up = rng.normal(size=(3, 8))
    exact = 2 * np.maximum(x, 0) * up * v
    drawn = [pictures.latent_and_trits(w), pictures.who_reads_whom(),
             pictures.bits_of_layouts(rng.integers(-1, 2, (16, 256)).astype(np.int8)),
             pictures.guesses_in_texts([[[("·the", True), ("$x", False)], [(".", False)]] * 30] * 4,
                                       {"one": np.arange(1.0, 9)}, {"one": list(range(1, 9))}),
             pictures.norms_by_layer({"right": np.arange(1.0, 9), "wrong": np.arange(2.0, 10)}),
             pictures.steps_of_a_derivative(lambda x: relu2(x, up), x, v, exact)]
    assert all(is_small_png(p) for p in drawn)
    assert len({repr(p) for p in drawn}) == 6


def test_a_picture_is_of_what_it_was_given(rng):
    w = rng.normal(size=(40, 30))
    assert pictures.latent_and_trits(w).png == pictures.latent_and_trits(w).png
    assert pictures.latent_and_trits(w).png != pictures.latent_and_trits(w + 0.5).png
