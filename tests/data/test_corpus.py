"""Documents from files: the rules of cutting, that nothing is lost, and every way a file can be wrong.

Read after: bitnet_ref/data/corpus. Read next: tests/data/test_split.
"""

import json
import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_ref.checks import CheckError
from bitnet_ref.data import corpus as module
from bitnet_ref.data.corpus import (
    GROUP,
    LONGEST,
    corpus_files,
    documents,
    part_documents,
    text_documents,
    validation_documents,
)

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return path


# ---- cutting ----

def test_markers(tmp_path):
    text = "One.\n\nStill one.\n<|endoftext|>\nTwo <|endoftext|> inside.\n  <|endoftext|> \n"
    path = write(tmp_path / "a.txt", text)
    assert list(text_documents(path)) == ["One.\n\nStill one.\n", "Two <|endoftext|> inside.\n"]


def test_wikitext_titles(tmp_path):
    text = (" \n = One = \n \n Text . \n = = Part = = \n \n = 5 = \n Not a title . \n"
            " \n = Two = \n \n More . \n")
    parts = list(text_documents(write(tmp_path / "a.txt", text)))
    assert [p.strip().split("\n")[0] for p in parts if p.strip()] == ["= One = ", "= Two = "]
    assert "".join(parts) == text


def test_paragraphs_are_grouped(tmp_path):
    paragraph = "Some words of a paragraph.\n" * 20
    text = "\n".join([paragraph] * 40)
    parts = list(text_documents(write(tmp_path / "a.txt", text)))
    assert "".join(parts) == text
    assert len(parts) > 3
    assert all(GROUP <= len(p) <= GROUP + len(paragraph) + 1 for p in parts[:-1])
    assert all(p.endswith("\n\n") for p in parts[:-1])


@same_folder
@given(TEXT, st.sampled_from(["", "\r\n", "\n\n", " = T = \n \n"]))
def test_nothing_is_lost(tmp_path, text, joint):
    text = joint.join([text] * 3)
    path = write(tmp_path / "a.txt", text)
    small = {"CHUNK": 7, "LONGEST": 11, "GROUP": 5}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(module, name, value)
        parts = list(text_documents(path))
    assert "".join(parts) == text.removeprefix("\ufeff")
    assert all(0 < len(p) <= 11 for p in parts)


def test_a_line_without_end_comes_in_pieces_and_in_little_memory(tmp_path):
    path = write(tmp_path / "a.txt", b"abcdefgh" * (1 << 21))         # 16 MiB, no newline
    tracemalloc.start()
    sizes = [len(text) for text in text_documents(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(sizes) == 1 << 24
    assert max(sizes) == LONGEST
    assert peak < 8 << 20


def test_a_character_across_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    text = "ab\U0001f600é\u20acz"
    assert "".join(text_documents(write(tmp_path / "a.txt", text))) == text


def test_a_byte_order_mark_is_dropped(tmp_path):
    assert list(documents(str(write(tmp_path / "a.txt", b"\xef\xbb\xbfText.")))) == ["Text."]


# ---- jsonl ----

def test_jsonl(tmp_path):
    lines = ['{"text": "One\\nline", "id": 1}', "", '{"text": ""}', '{"text": "Two \\u00e9"}']
    path = write(tmp_path / "a.jsonl", "\n".join(lines))
    assert list(documents(str(path))) == ["One\nline", "Two é"]


def test_a_long_text_comes_in_pieces(tmp_path):
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * (LONGEST + 5)}))
    assert [len(t) for t in documents(str(path))] == [LONGEST, 5]


@pytest.mark.parametrize("line", [
    b"{", b"[1]", b'"text"', b'{"txt": "a"}', b'{"text": 1}', b'{"text": null}', b'{"text": "\xff"}',
    b'{"text": "\\ud800"}', b'{"text": "a\\u0000b"}', b"[" * 100_000, b"nonsense",
    '{"text": "a"}'.encode("utf-16-le"), '{"text": "a"}'.encode("utf-16-be")])
def test_bad_lines_name_file_and_line(tmp_path, line):
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(CheckError, match=r"a line of .jsonl must .*; got .* in line 3 of .*a.jsonl; correct"):
        list(documents(str(path)))


def test_an_endless_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_LINE", 100)
    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 100}))
    with pytest.raises(CheckError, match=r"must have at most 100 bytes; got more in line 1 of .*; split the"):
        list(documents(str(path)))


# ---- names and paths ----

def test_folders_and_globs(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.jsonl", "sub/d.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, '{"text": "c"}' if name.endswith("jsonl") else name[0])
    assert list(documents(str(tmp_path))) == ["a", "b", "c"]
    assert list(documents(str(tmp_path / "*.txt"))) == ["a", "b"]
    assert list(documents(str(tmp_path / "**/d.*"))) == ["s"]
    assert list(documents(str(tmp_path / "sub/d.md"))) == ["s"]


def test_unknown_names_list_the_known_ones():
    with pytest.raises(CheckError, match=r"a corpus must be one of python-docs, wikitext-2, tinystories, or "
                                         r"a file, folder or glob that exists; got 'wikitext'; correct"):
        documents("wikitext")
    for odd in ("", "no/such/*.txt", "a\0b", "[", "x" * 5000):
        with pytest.raises(CheckError):
            documents(odd)


def test_empty_corpora(tmp_path):
    with pytest.raises(CheckError, match=r"a corpus folder must hold .txt or .jsonl files; got .*; put text"):
        documents(str(tmp_path))
    write(tmp_path / "a.txt", " \n\n")
    write(tmp_path / "b.txt", "")
    with pytest.raises(CheckError, match=r"a corpus must hold text; got none in .*; give files with text"):
        list(documents(str(tmp_path)))


@pytest.mark.parametrize(("data", "message"), [
    (b"text\0more", "without NUL bytes; got one at byte 4 of .*a.txt; leave"),
    (b"x" * (1 << 20) + b"\0", f"got one at byte {1 << 20} of .*a.txt"),
    (b"x" * ((1 << 20) - 1) + b"\xc3\xa9\0", f"got one at byte {(1 << 20) + 1} of .*a.txt"),
    ("text".encode("utf-16"), "must be UTF-8 text; got UTF-16 in .*a.txt; convert it to UTF-8"),
    (b"\xfe\xff\0t", "must be UTF-8 text; got UTF-16 in .*a.txt; convert it to UTF-8"),
    (b"text \xff more", "must be UTF-8 text; got 0xff at byte 5 of .*a.txt; convert"),
    (b"\xc3\xa9" * (1 << 19) + b"a\xc3(", f"got 0xc3 at byte {(1 << 20) + 1} of .*a.txt"),
    (b"ends within \xe2\x82", "got 0xe2 at byte 12 of .*a.txt"),
])
def test_binary_files_name_the_byte(tmp_path, data, message):
    with pytest.raises(CheckError, match=message):
        list(documents(str(write(tmp_path / "a.txt", data))))


def test_utf_16_in_jsonl(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "a"}\n'.encode("utf-16"))
    with pytest.raises(CheckError, match=r"must be UTF-8 text; got UTF-16 in .*a.jsonl; convert it to UTF-8"):
        list(documents(str(path)))
    path = write(tmp_path / "b.jsonl", '\ufeff{"text": "a"}\n')
    assert list(documents(str(path))) == ["a"]


@pytest.mark.parametrize("closed", ["", "sub", "sub/deeper"])
def test_a_folder_that_cannot_be_listed_is_not_skipped(tmp_path, monkeypatch, closed):
    (tmp_path / "sub/deeper").mkdir(parents=True)
    write(tmp_path / "a.txt", "x")
    write(tmp_path / "sub/b.txt", "x")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path) == str(tmp_path / closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CheckError) as refused:
        documents(str(tmp_path))
    assert str(refused.value) == ("every folder of a corpus must be readable; got Permission denied for "
                                  f"{tmp_path / closed}; correct its rights or move it away")


@pytest.mark.skipif(os.name != "posix", reason="makes a link")
def test_a_link_to_nothing_is_not_skipped(tmp_path):
    write(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckError, match=r"must be a readable file; got No such file or directory"):
        documents(str(tmp_path))


def test_unreadable_files(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "x")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    for read in (module.text_documents, module.jsonl_documents):
        with pytest.raises(CheckError, match=r"a.txt must be a readable file; got Permission denied; check"):
            list(read(path))


def test_the_default_corpus():
    assert next(documents("python-docs"))
    assert validation_documents("python-docs") is None
    assert validation_documents("some/path") is None


@pytest.mark.data
def test_real_corpora(real_data):
    assert len(corpus_files("tinystories")) >= 1
    assert sum(1 for _ in documents("tinystories")) > 100
    assert sum(1 for _ in validation_documents("wikitext-2")) == 60        # articles of each part
    assert sum(1 for _ in part_documents("wikitext-2", "test")) == 60
    assert next(documents("wikitext-2")).startswith(" = Valkyria Chronicles III = ")
