"""evaluate/compressors: what gzip and xz add for the validation text, and a bound on what they are given."""

import gzip
import lzma
import random

import pytest

from bitnet_ref.evaluate import compressors
from bitnet_ref.evaluate.compressors import compressed_bits_per_byte, tail


def noise(n, seed=0):
    return random.Random(seed).randbytes(n)


def words(n, seed=0):
    chance = random.Random(seed)
    return " ".join(chance.choice(["model", "weight", "trit", "scale", "token"]) for _ in range(n)).encode()


def test_they_are_the_tools_at_their_best():
    train, val = words(3000), words(500, 1)
    by_gzip = len(gzip.compress(train + val, 9)) - len(gzip.compress(train, 9))
    by_xz = len(lzma.compress(train + val, preset=9)) - len(lzma.compress(train, preset=9))
    assert compressed_bits_per_byte(train, val) == {"gzip -9": 8 * by_gzip / len(val),
                                                    "xz -9": 8 * by_xz / len(val)}


def test_noise_costs_eight_bits_a_byte():
    for bits in compressed_bits_per_byte(noise(5000), noise(5000, 1)).values():
        assert bits == pytest.approx(8, abs=0.1)


def test_text_seen_before_costs_next_to_nothing():
    text = noise(20_000)
    for bits in compressed_bits_per_byte(text, text).values():
        assert bits < 0.5


def test_gzip_forgets_after_32_kib_and_xz_does_not():
    text = noise(10_000)
    bits = compressed_bits_per_byte(text + noise(40_000, 1), text)
    assert bits["gzip -9"] > 7.9
    assert bits["xz -9"] < 1


def test_without_training_text_they_start_from_nothing():
    val = words(2000)
    empty = len(gzip.compress(b"", 9))
    bits = 8 * (len(gzip.compress(val, 9)) - empty) / len(val)
    assert compressed_bits_per_byte(b"", val)["gzip -9"] == bits


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_the_tail_is_the_end_of_the_file_up_to_a_bound(size, tmp_path, monkeypatch):
    monkeypatch.setattr(compressors, "LIMIT", 1000)
    (tmp_path / "text").write_bytes(noise(size))
    assert tail(tmp_path / "text") == noise(size)[-1000:]


def test_the_bound_is_what_xz_can_remember():
    assert compressors.LIMIT == 64 * 1024 * 1024
