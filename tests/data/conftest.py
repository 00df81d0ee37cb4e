"""Fixtures of the data tests: a cache of one's own, invented text, and a reader of leftovers.

No test reads or fills the user's cache, and none leaves this machine: the only server asked is on localhost.
Read after: tests/conftest. Read next: tests/data/test_corpus.
"""

import os
import random

import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.config import CACHE
from bitnet_ref.data.download import DATA, MIRROR

REAL = os.environ.get(DATA)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder for each test, and no data folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv(CACHE, str(folder))
    monkeypatch.delenv(MIRROR, raising=False)
    monkeypatch.delenv(DATA, raising=False)
    return folder


@pytest.fixture
def real_data(monkeypatch):
    """The folder of real corpora, or a skip that says how to get one."""
    if not REAL:
        pytest.skip("set BITNET_REF_DATA to a folder of corpora (docs/data.md)")
    monkeypatch.setenv(DATA, REAL)
    return REAL


def story(seed, words=120):
    """Some English-looking text, different for each seed."""
    rng = random.Random(seed)
    letters = "etaoinshrdlu"
    lexicon = ["".join(rng.choice(letters) for _ in range(rng.randint(2, 9))) for _ in range(60)]
    text = " ".join(rng.choice(lexicon) for _ in range(words))
    return text[:1].upper() + text[1:] + ".\n"


def error_of(call):
    """The message with which `call` refuses its input, or None if it does not; any other exception passes."""
    try:
        call()
    except CheckError as e:
        return str(e)
    return None


def files_below(folder):
    """The names of all files below a folder (none if it is not there)."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
