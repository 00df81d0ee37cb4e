"""What a shard says of itself is true, a stranger can read it, and no damaged file is opened.

Read after: bitnet_ref/data/shards. Read next: tests/data/test_batches.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError
from bitnet_ref.data import shards as module
from bitnet_ref.data.shards import HEADER, Header, open_shard, unchanged, write_shard

from .conftest import error_of, files_below

SUM = "ab" * 32
same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path, docs, vocab_size=300, eos=0):
    return write_shard(path, [(np.array(d, np.int32), 2 * len(d)) for d in docs], vocab_size, eos, SUM)


@same_folder
@given(st.lists(st.lists(st.integers(1, 299), max_size=9), max_size=9), st.sampled_from([300, 65536, 65537]))
def test_what_is_written_is_read(tmp_path, docs, vocab_size):
    shard = write(tmp_path / "a.bin", docs, vocab_size)
    expected = [0]
    for d in docs:
        expected += [*d, 0]
    assert shard.tokens.tolist() == expected
    h = shard.header
    assert (h.tokens, h.documents, h.text_bytes) == (len(expected), len(docs), 2 * sum(map(len, docs)))
    assert (h.vocab_size, h.eos, h.max_token, h.tokenizer_sha256) == (vocab_size, 0, max(expected), SUM)
    assert shard.tokens.dtype == (np.uint16 if vocab_size <= 65536 else np.uint32)
    assert open_shard(tmp_path / "a.bin", verify=True).header == h
    assert not shard.tokens.flags.writeable


def test_many_small_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 10)
    docs = [[i % 200 + 1] * (i % 7) for i in range(100)]
    blocks = write(tmp_path / "blocks.bin", docs).header
    monkeypatch.undo()
    assert blocks == write(tmp_path / "one.bin", docs).header
    assert (tmp_path / "blocks.bin").read_bytes() == (tmp_path / "one.bin").read_bytes()


def test_the_bytes_are_those_of_the_specification(tmp_path):
    write(tmp_path / "a.bin", [[1, 258]], 300)
    data = (tmp_path / "a.bin").read_bytes()
    assert data[:30] == b'{"format": "bitnet_ref.tokens"'
    assert data[1023:] == b"\n" + bytes([0, 0, 1, 0, 2, 1, 0, 0])


def test_a_stranger_reads_it(tmp_path):
    """The reader printed in docs/data.md, which does not know this package."""
    write(tmp_path / "a.bin", [[5, 6], [7]])
    page = (Path(__file__).resolve().parents[2] / "docs/data.md").read_text(encoding="utf-8")
    code, = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert "bitnet_ref" not in code
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.bin"], capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == "[0, 5, 6, 0, 7, 0]"


@pytest.mark.parametrize("ids", [[300], [-1], [1 << 20]])
def test_ids_outside_the_vocabulary(tmp_path, ids):
    with pytest.raises(CheckError, match=r"tokens must lie in \[0, 300\); got .*; encode with the tokenizer"):
        write(tmp_path / "a.bin", [[1, 2], ids])
    assert files_below(tmp_path) == []


def test_a_source_that_fails_leaves_nothing(tmp_path):
    def source():
        yield np.array([1]), 1
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_shard(tmp_path / "a.bin", source(), 300, 0, SUM)
    assert files_below(tmp_path) == []


# ---- files that are not what they should be ----

def damaged(path, how):
    data = path.read_bytes()
    path.write_bytes(how(data))
    return path


def reheaded(path, **fields):
    """The shard with other values in its header; a value of None takes the field out."""
    def how(data):
        header = {k: v for k, v in {**json.loads(data[:HEADER]), **fields}.items() if v is not None}
        return json.dumps(header).ljust(HEADER).encode() + data[HEADER:]

    return damaged(path, how)


@pytest.mark.parametrize(("how", "message"), [
    (lambda d: b"", "must begin with a header of 1024 bytes; got 0"),
    (lambda d: d[:500], "must begin with a header of 1024 bytes; got 500"),
    (lambda d: d[:-1], "must have the 1034 bytes that its header states; got 1033; the file was cut"),
    (lambda d: d + b"\0\0", "must have the 1034 bytes that its header states; got 1036"),
    (lambda d: d[:HEADER], "must have the 1034 bytes that its header states; got 1024"),
    (lambda d: b"GGUF" + d[4:], "must begin with the JSON header of bitnet_ref.tokens; got b'GGUF"),
    (lambda d: b"\xff" * len(d), "must begin with the JSON header of bitnet_ref.tokens"),
    (lambda d: b"[" * len(d), "must begin with the JSON header of bitnet_ref.tokens"),
    (lambda d: b"7".ljust(HEADER) + d[HEADER:], "must begin with the JSON header of bitnet_ref.tokens"),
    (lambda d: d[:HEADER] + b"\1" + d[HEADER + 1:], "must start and end with EOS, 0; got 1 and 0"),
    (lambda d: d[:-1] + b"\1", "must start and end with EOS, 0; got 0 and 256"),
])
def test_damaged_files(tmp_path, how, message):
    write(tmp_path / "a.bin", [[1, 2], []])
    with pytest.raises(CheckError, match=message):
        open_shard(damaged(tmp_path / "a.bin", how))


@pytest.mark.parametrize(("fields", "message"), [
    ({"format": "other"}, "must begin with the JSON header"),
    ({"version": 2}, "must be of version 1; got 2 in .*; update bitnet_ref"),
    ({"version": None}, "must be of version 1; got None"),
    ({"tokens": None}, "tokens in a shard's header must be of type int; got None"),
    ({"tokens": "5"}, "tokens in a shard's header must be of type int; got '5'"),
    ({"tokens": 5.0}, "must be of type int; got 5.0"),
    ({"documents": True}, "must be of type int; got True"),
    ({"tokens": -1}, r"must have 1 <= tokens < 2\^48"),
    ({"tokens": 0}, r"must have 1 <= tokens < 2\^48"),
    ({"tokens": 10**30}, r"must have 1 <= tokens < 2\^48"),
    ({"tokens": 10**12}, "bytes that its header states"),
    ({"documents": 5}, "must have 0 <= documents < tokens"),
    ({"text_bytes": -1}, "text_bytes"),
    ({"dtype": "<u4"}, "must have dtype <u2 up to 65536 entries, else <u4"),
    ({"dtype": "object"}, "must have dtype"),
    ({"vocab_size": 1 << 20}, "must have dtype"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"vocab_size": 2}, "must have 0 <= eos <= max_token < vocab_size"),
    ({"eos": -1}, "eos"),
    ({"max_token": 300}, "max_token < vocab_size"),
    ({"payload_sha256": "x"}, "checksums of 64 hex digits"),
    ({"tokenizer_sha256": "G" * 64}, "checksums of 64 hex digits"),
])
def test_headers_that_contradict_themselves(tmp_path, fields, message):
    write(tmp_path / "a.bin", [[1, 2], []])
    with pytest.raises(CheckError, match=message):
        open_shard(reheaded(tmp_path / "a.bin", **fields))


def test_a_changed_token_is_found_by_verify(tmp_path):
    write(tmp_path / "a.bin", [[1, 2, 3]])
    open_shard(damaged(tmp_path / "a.bin", lambda d: d[:HEADER + 2] + b"\7" + d[HEADER + 3:]))
    with pytest.raises(CheckError, match=r"must have sha256 .*; got .*; the file is damaged"):
        open_shard(tmp_path / "a.bin", verify=True)


def test_a_wrong_maximum_is_found_by_verify(tmp_path):
    write(tmp_path / "a.bin", [[1, 2, 3]])
    reheaded(tmp_path / "a.bin", max_token=2)
    with pytest.raises(CheckError, match=r"the largest token of .* must be 2; got 3; the file is damaged"):
        open_shard(tmp_path / "a.bin", verify=True)


def test_no_file(tmp_path):
    for path in (tmp_path / "none.bin", tmp_path):
        with pytest.raises(CheckError, match=r"must be a readable file; got"):
            open_shard(path)


@same_folder
@given(st.binary(max_size=2000))
def test_noise_is_refused(tmp_path, data):
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(CheckError):
        open_shard(tmp_path / "a.bin")


@same_folder
@given(st.integers(0, HEADER - 1), st.integers(0, 127))
def test_one_changed_byte_of_the_header_is_no_traceback(tmp_path, at, byte):
    write(tmp_path / "a.bin", [[1, 2, 3], [4]])
    damaged(tmp_path / "a.bin", lambda d: d[:at] + bytes([byte]) + d[at + 1:])
    message = error_of(lambda: open_shard(tmp_path / "a.bin", verify=True))
    assert message is None or message.count(";") >= 2


# ---- files that change while they are open ----

def in_place(path):
    with open(path, "r+b") as f:
        f.seek(HEADER)
        f.write(b"\0\0")
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def overwritten_and_its_time_put_back(path):
    before = path.stat().st_mtime_ns
    in_place(path)
    os.utime(path, ns=(before, before))
    assert path.stat().st_mtime_ns == before


def replaced(path):
    path.with_name("new").write_bytes(path.read_bytes())
    os.replace(path.with_name("new"), path)


@pytest.mark.parametrize(("how", "message"), [
    (lambda p: os.truncate(p, HEADER + 2), r"got 1,026 bytes, changed since it was opened with 1,032;"),
    (in_place, r"got 1,032 bytes, changed since it was opened with 1,032; put the file back"),
    (overwritten_and_its_time_put_back, r"got 1,032 bytes, changed since it was opened with 1,032"),
    (lambda p: p.write_bytes(p.read_bytes() + b"\0\0"), "got 1,034 bytes, changed"),
    (replaced, r"got another file in its place; put the file back as it was, then go on .* with --resume"),
    (lambda p: p.unlink(), "got No such file or directory; put the file back"),
])
def test_a_shard_that_changes_is_noticed(tmp_path, how, message):
    write(tmp_path / "a.bin", [[1, 2]])
    shard = open_shard(tmp_path / "a.bin")
    unchanged(shard)
    (tmp_path / "other").write_text("more in the folder")
    (tmp_path / "a.bin").read_bytes()
    unchanged(shard)
    how(tmp_path / "a.bin")
    with pytest.raises(CheckError, match=rf"a.bin must stay as it is while a run reads it; {message}"):
        unchanged(shard)


# ---- larger than memory ----

SPARSE = """
import resource, sys
import numpy as np
from bitnet_ref.data.batches import sequential, tail, windows
from bitnet_ref.data.feed import micro_batch, open_feed
from bitnet_ref.data.shards import open_shard, unchanged

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

verify = sys.argv[2] == "verify"
before = peak()
shard = open_shard(sys.argv[1], verify)
if not verify:
    feed = open_feed(shard, {"corpus": "huge"}, 256, 0)
    firsts = [int(ids[0, 0]) for i in range(9) for ids, _ in [micro_batch(feed, i * 10**6, 8)]]
    next(sequential(shard.tokens, 256, 8, limit=8))
    unchanged(shard)
print(peak() - before)
"""


def sparse(path, gigabytes):
    """A shard of zeros, which takes no room on the disk."""
    n = gigabytes << 29
    header = Header("bitnet_ref.tokens", 1, "<u2", n, 0, 0, 300, 0, 0, SUM, SUM)
    path.write_bytes((json.dumps(header._asdict()).ljust(HEADER - 1) + "\n").encode())
    os.truncate(path, HEADER + 2 * n)
    if path.stat().st_blocks > 1 << 16:
        pytest.skip("the file system has no sparse files")
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="counts ru_maxrss in KiB")
def test_a_shard_larger_than_memory_is_read_where_it_is_used(tmp_path):
    """64 GB: opened, drawn from and validated on in a few MB."""
    done = subprocess.run([sys.executable, "-c", SPARSE, sparse(tmp_path / "huge.bin", 64), "draw"],
                          capture_output=True, text=True, check=True)
    assert int(done.stdout) < 50e6


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts ru_maxrss in KiB")
def test_verifying_takes_no_memory_by_the_size_of_the_file(tmp_path):
    path = sparse(tmp_path / "large.bin", 4)
    stated = hashlib.sha256()
    for _ in range(4 << 10):
        stated.update(bytes(1 << 20))
    _restate(path, stated.hexdigest())
    done = subprocess.run([sys.executable, "-c", SPARSE, path, "verify"], capture_output=True, text=True,
                          check=True)
    assert int(done.stdout) < 50e6


def _restate(path, checksum):
    with open(path, "r+b") as f:
        header = {**json.loads(f.read(HEADER)), "payload_sha256": checksum}
        f.seek(0)
        f.write((json.dumps(header).ljust(HEADER - 1) + "\n").encode())


def test_verifying_for_long_shows_a_bar(tmp_path, monkeypatch, capsys):
    write(tmp_path / "a.bin", [[1, 2, 3]])
    open_shard(tmp_path / "a.bin", verify=True, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(module, "LONG", 1)
    open_shard(tmp_path / "a.bin", verify=True, progress=True)
    assert "verifying a.bin" in capsys.readouterr().err
