"""Downloads against a server on localhost that does everything wrong, and the order of the places asked.

Read after: bitnet_ref/data/download. Read next: tests/data/test_python_docs.
"""

import hashlib
import http.server
import threading

import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.config import cache_dir
from bitnet_ref.data import download
from bitnet_ref.data.corpus import documents
from bitnet_ref.data.download import DATA, MIRROR, NAMED, File, named_files

from .conftest import files_below

BODY = b"A story.\n" * 2000
KNOWN = File("https://example.invalid/known.txt", len(BODY), hashlib.sha256(BODY).hexdigest())
UNKNOWN = File("https://example.invalid/unknown.txt", 1 << 20, None)
TEST_NAMED = {"known": {"train": KNOWN}, "unknown": {"train": UNKNOWN}}


class Server(http.server.BaseHTTPRequestHandler):
    """Answers GET as `how` of the server says."""

    def do_GET(self):
        status, headers, body = self.server.how
        self.server.asked.append(self.path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "NAMED", TEST_NAMED)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.asked = []
        answer(server, BODY)
        monkeypatch.setenv(MIRROR, f"http://127.0.0.1:{server.server_port}/")
        yield server
        server.shutdown()
        thread.join()


def answer(server, body, status=200, **headers):
    server.how = status, {"Content-Length": str(len(body)), **headers}, body


def test_a_good_body_is_cached(server, cache):
    path, = named_files("known")
    assert path.read_bytes() == BODY
    assert path == cache / "known/known.txt"
    answer(server, b"", 500)
    assert named_files("known") == [path]                       # from the cache: nobody is asked again
    assert server.asked == ["/known/known.txt"]
    assert files_below(cache) == ["known/known.txt"]


BAD = {
    "truncated": (200, {"Content-Length": str(len(BODY))}, BODY[:-1000], r"must have 18000 bytes; got 17000"),
    "short without a length": (200, {}, BODY[:-1], r"must have 18000 bytes; got 17999"),
    "empty": (200, {}, b"", r"must have 18000 bytes; got 0"),
    "other bytes": (200, {}, BODY[:-1] + b"!", r"must have sha256 .*; got .*; try again later"),
    "too long": (200, {}, BODY + b"!", r"must have at most 18000 bytes; got 18001 or more"),
    "missing": (404, {}, b"no", r"must be reachable; got HTTP 404 .*; go online, or put the file at"),
    "broken server": (500, {}, b"no", r"must be reachable; got HTTP 500 .*; go online"),
    "no chunks": (200, {"Transfer-Encoding": "chunked"}, b"zz\r\n", r"must be reachable; got .*; go online"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_answer_leaves_nothing(server, cache, case):
    *server.how, message = BAD[case]
    with pytest.raises(CheckError, match=message):
        named_files("known")
    assert files_below(cache) == []


def test_no_server(server, cache, monkeypatch):
    server.server_close()
    monkeypatch.setenv(MIRROR, "http://127.0.0.1:1")
    with pytest.raises(CheckError, match=r"known.txt must be reachable; got .*refused.*; go online"):
        named_files("known")
    assert files_below(cache) == []


def test_interrupted(server, cache, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        named_files("known")
    assert files_below(cache) == []


def test_a_damaged_cache_is_refused(server):
    path, = named_files("known")
    path.write_bytes(BODY[:-1])
    with pytest.raises(CheckError, match=r"known.txt must have sha256 .*; got .*; delete the file"):
        named_files("known")


# ---- trust on first use ----

def test_the_first_sum_is_printed_and_required(server, cache, capsys):
    path, = named_files("unknown")
    seen = hashlib.sha256(BODY).hexdigest()
    assert seen in capsys.readouterr().err
    assert (cache / "unknown/unknown.txt.sha256").read_text() == seen + "\n"
    assert named_files("unknown") == [path]
    path.write_bytes(b"other")
    with pytest.raises(CheckError, match=rf"must have sha256 {seen}; got .*; delete"):
        named_files("unknown")
    path.unlink()
    answer(server, b"other")
    with pytest.raises(CheckError, match=rf"must have sha256 {seen}; got .*; try again later"):
        named_files("unknown")
    answer(server, BODY)
    assert named_files("unknown") == [path]


def test_unknown_bodies_have_a_limit_and_their_length(server, cache, monkeypatch):
    server.how = 200, {"Content-Length": "100"}, b"short"
    with pytest.raises(CheckError, match=r"must have 100 bytes; got 5"):
        named_files("unknown")
    monkeypatch.setitem(TEST_NAMED["unknown"], "train", UNKNOWN._replace(size=100))
    answer(server, BODY)
    with pytest.raises(CheckError, match=r"must have at most 100 bytes"):
        named_files("unknown")
    answer(server, b"")
    with pytest.raises(CheckError, match=r"must have some bytes; got 0"):
        named_files("unknown")
    assert files_below(cache) == []


def test_a_file_put_there_by_hand_is_taken(server, cache):
    (cache / "unknown").mkdir(parents=True)
    (cache / "unknown/unknown.txt").write_bytes(b"mine")
    assert named_files("unknown") == [cache / "unknown/unknown.txt"]
    assert server.asked == []


# ---- the data folder ----

def test_the_data_folder_comes_first(server, tmp_path, monkeypatch):
    monkeypatch.setenv(DATA, str(tmp_path))
    for name, text in {"known/known.txt": BODY, "unknown/b.txt": b"b", "unknown/a.txt": b"a",
                       "unknown/SOURCE.txt": b"not text to learn"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    assert [p.name for p in named_files("known")] == ["known.txt"]
    assert [p.name for p in named_files("unknown")] == ["a.txt", "b.txt"]
    assert server.asked == []
    (tmp_path / "known/known.txt").write_bytes(b"x")
    with pytest.raises(CheckError, match=r"must have sha256"):
        named_files("known")


def test_an_empty_data_folder_is_passed_by(server, tmp_path, cache, monkeypatch):
    monkeypatch.setenv(DATA, str(tmp_path / "nothing"))
    assert named_files("known") == [cache / "known/known.txt"]
    assert named_files("unknown") == [cache / "unknown/unknown.txt"]


# ---- names ----

def test_unknown_names():
    with pytest.raises(CheckError, match=r"corpus must be one of wikitext-2, tinystories; got 'x'"):
        named_files("x")
    with pytest.raises(CheckError, match=r"part of tinystories must be one of train; got 'test'"):
        named_files("tinystories", "test")


def test_a_mirror_must_be_http(monkeypatch):
    monkeypatch.setenv(MIRROR, "file:///etc")
    with pytest.raises(CheckError, match=r"BITNET_REF_MIRROR must be an http or https address; got file:"):
        named_files("tinystories")


def test_the_addresses_are_the_publishers():
    assert all(f.url.startswith("https://") for parts in NAMED.values() for f in parts.values())
    assert download.address("wikitext-2", NAMED["wikitext-2"]["test"]).endswith("/wikitext-2/test.txt")


@pytest.mark.parametrize(("platform", "variables", "expected"), [
    ("linux", {"HOME": "/home/x"}, "/home/x/.cache/bitnet_ref"),
    ("linux", {"XDG_CACHE_HOME": "/big"}, "/big/bitnet_ref"),
    ("darwin", {"HOME": "/Users/x"}, "/Users/x/Library/Caches/bitnet_ref"),
    ("win32", {"LOCALAPPDATA": "/l"}, "/l/bitnet_ref"),
    ("linux", {"BITNET_REF_CACHE": "/mine"}, "/mine"),
])
def test_the_cache_is_where_the_platform_has_caches(monkeypatch, platform, variables, expected):
    for name in ("BITNET_REF_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(download.sys, "platform", platform)
    assert cache_dir().as_posix() == expected


def test_a_file_that_cannot_be_read_for_its_sum(tmp_path):
    with pytest.raises(CheckError, match=r"must be a readable file; got"):
        download.sha256_of(tmp_path)


@pytest.mark.data
def test_real_wikitext_is_the_published_one(real_data):
    assert len(list(documents("wikitext-2"))) == 600            # articles, as the dataset's paper counts them
    for part in NAMED["wikitext-2"]:
        path, = named_files("wikitext-2", part)
        assert path.stat().st_size == NAMED["wikitext-2"][part].size
