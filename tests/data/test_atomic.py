"""A file is there whole or not at all, whatever happens while it is written.

Read after: bitnet_ref/data/atomic. Read next: tests/data/test_download.
"""

import errno
import os

import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.data.atomic import whole_file, whole_folder

from .conftest import files_below


def test_writes_and_makes_folders(tmp_path):
    with whole_file(tmp_path / "a/b/c.txt") as f:
        f.write(b"??llo")
        f.seek(0)
        f.write(b"he")
        assert not (tmp_path / "a/b/c.txt").exists()
    assert (tmp_path / "a/b/c.txt").read_bytes() == b"hello"
    assert files_below(tmp_path) == ["a/b/c.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file(tmp_path, error):
    (tmp_path / "x").write_bytes(b"old")
    def write():
        with whole_file(tmp_path / "x") as f:
            f.write(b"new")
            raise error

    with pytest.raises(error):
        write()
    assert (tmp_path / "x").read_bytes() == b"old"
    assert files_below(tmp_path) == ["x"]


def test_a_full_disk(tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    message = "x must be writable; got No space left on device; free space"
    with pytest.raises(CheckError, match=message), whole_file(tmp_path / "x") as f:
        f.write(b"new")
    assert files_below(tmp_path) == []


def test_a_file_where_a_folder_must_be(tmp_path):
    (tmp_path / "x").write_bytes(b"")
    message = r"must be writable; got .*; free space or choose another place"
    with pytest.raises(CheckError, match=message), whole_file(tmp_path / "x/y"):
        raise AssertionError("never opened")


def test_a_full_disk_within_a_folder_names_the_folder(tmp_path, monkeypatch):
    """Not the temporary one, which nobody has heard of."""
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with (pytest.raises(CheckError) as refused, whole_folder(tmp_path / "x") as part,
          whole_file(part / "model") as f):
        f.write(b"new")
    assert str(refused.value).startswith(f"{tmp_path / 'x'} must be writable; got No space left on device; ")
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
@pytest.mark.parametrize("path", ["/", "..", "a/.."])
def test_what_has_no_name_is_refused(whole, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckError, match=r"must have a name; got .*; give a new name"), whole(path):
        raise AssertionError("never opened")


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_the_folder_one_is_in_is_refused_unless_it_is_empty(whole, tmp_path, monkeypatch):
    (tmp_path / "mine").write_text("mine")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckError, match="; got "), whole("."):
        pass
    assert files_below(tmp_path) == ["mine"]
