"""Two problems in the form of HumanEval, a writer of its files, and the sandbox: for tests of judging."""

import gzip
import json

import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.evaluate.humaneval import Problem
from bitnet_ref.evaluate.sandbox import proved

ADD = Problem("t/0", "def add(x, y):\n    \"\"\" The sum. \"\"\"\n", "add",
              "def check(candidate):\n    assert candidate(2, 3) == 5\n", "    return x + y\n")
TWICE = Problem("t/1", "def one(x):\n    return x\n\ndef twice(x):\n    \"\"\" Twice. \"\"\"\n", "twice",
                "def check(candidate):\n    assert twice(one(4)) == 8\n", "    return 2 * x\n")
PROBLEMS = {p.task_id: p for p in (ADD, TWICE)}


def put(path, rows):
    """`path`, with a line of JSON for each row, packed where its name says so."""
    text = "".join([json.dumps(row) + "\n" for row in rows]).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def walls():
    """A skip where the system has none; where it has and they do not hold, the error."""
    try:
        proved()
    except CheckError as e:
        if "a system without" in str(e) or "Linux only" in str(e):
            pytest.skip(str(e))
        raise
