"""formats/hub: names of models through a small hub on this machine, in processes that are told its address.

The server speaks as much of the hub's protocol as snapshot_download asks for, and can break off, refuse, or
be gone.
"""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from strategies import small_config, small_params
from tiny import assert_three_parts, environment, refusal

from bitnet_ref.formats import hub
from bitnet_ref.formats.hf import read
from bitnet_ref.formats.hf_write import write_hf
from bitnet_ref.formats.source import of_weights
from bitnet_ref.kernels import load
from bitnet_ref.model.weights import ternarise

CHILD = """
import json, sys
from bitnet_ref.checks import CheckError
from bitnet_ref.formats.hub import folder_of
for name in sys.argv[1:]:
    try:
        print(json.dumps({"folder": str(folder_of(name))}))
    except CheckError as e:
        print(json.dumps({"error": str(e)}))
"""
SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """`models`: name -> {file: bytes}. `asked`: paths of files that were fetched. `cut`: break off after."""

    daemon_threads = True

    def __init__(self, models):
        super().__init__(("127.0.0.1", 0), Answer)
        self.models, self.asked, self.cut = models, [], None
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    """One request. /api/models/<name>/revision/<r>, .../tree/<r>, and /<name>/resolve/<r>/<file>."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, verb, revision, *file = parts[2:] if api else parts
        files = self.server.models.get(f"{owner}/{name}")
        if files is None:
            self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="no such repository")
        elif revision not in ("main", "v1", SHA):
            self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="no such revision")
        elif api:
            tree = [{"type": "file", "path": f, "size": len(b), "oid": str(len(b))} for f, b in files.items()]
            info = {"id": f"{owner}/{name}", "sha": SHA, "siblings": [{"rfilename": f} for f in files]}
            body = json.dumps(tree if verb == "tree" else info).encode()
            self.answer(200, body, Content_Type="application/json")
        elif owner == "gated":
            self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="ask first")
        else:
            self.file("/".join(file), files)

    def file(self, name, files):
        if self.command == "GET":
            self.server.asked.append(name)
        body, status, more = files[name], 200, {}
        if begin := self.headers.get("Range", "").removeprefix("bytes=").removesuffix("-"):
            more = {"Content_Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
            body, status = body[int(begin):], 206
        headers = {"ETag": f'"{name}-{len(files[name])}"', "X_Repo_Commit": SHA, **more}
        if self.command == "GET" and self.server.cut is not None and len(body) > self.server.cut:
            self.send_response(status)
            for key, value in {"Content_Length": len(body), **headers}.items():
                self.send_header(key.replace("_", "-"), str(value))
            self.end_headers()
            self.wfile.write(body[:self.server.cut])
            self.close_connection = True
        else:
            self.answer(status, body, **headers)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small model as a folder."""
    cfg = small_config(norm="sub", glu="relu2")
    path = tmp_path_factory.mktemp("hub") / "model"
    weights = ternarise(cfg, small_params(cfg, 0, np.float32), load())
    write_hf(path, of_weights(cfg, weights), shard_bytes=4000)
    return path


@pytest.fixture
def server(folder):
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    beside = {"modeling.py": b"raise SystemExit", "pytorch_model.bin": b"\x80", "README.md": b"#",
              "onnx/model.safetensors": b"?", "consolidated.safetensors": b"?"}
    found = Hub({"good/model": files | beside, "gated/model": files,
                 "old/pickles": {"config.json": files["config.json"], "pytorch_model.bin": b"\x80"},
                 "only/code": {"modeling.py": b""}})
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


def fetch(home, address, *names, **more):
    """[{"folder": ...} or {"error": ...}] of each name, in a process of its own."""
    pytest.importorskip("huggingface_hub")
    given = {n: v for n, v in environment().items() if not n.startswith("HF_")}
    given |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1",
              "HF_HUB_ETAG_TIMEOUT": "5", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "5",
              "NO_PROXY": "127.0.0.1", **more}
    child = subprocess.run([sys.executable, "-c", CHILD, *names], env=given, capture_output=True,
                           encoding="utf-8", timeout=120)
    assert child.returncode == 0, child.stderr
    return [json.loads(line) for line in child.stdout.splitlines()]


def test_a_name_is_a_folder_and_what_is_none_is_explained(server, folder, tmp_path):
    names = ["good/model", "good/model@v1", "no/such", "good/model@v9", "gated/model", "old/pickles",
             "only/code"]
    good, again, *errors = fetch(tmp_path, server.address, *names)
    assert again == good
    wanted = {p.name for p in folder.iterdir()}
    assert {p.name for p in Path(good["folder"]).iterdir()} == wanted
    assert sorted(f for f in server.asked if f in wanted) == sorted([*wanted, "config.json"])
    assert set(server.asked) == wanted                     # no code, no pickles, no other folders
    got, want = read(good["folder"])[1], read(folder)[1]   # through the hub's own links
    assert got.keys() == want.keys()
    for error, words in zip(errors, (["no/such", "model on the hub", "neither"],
                                     ["revision v9", "good/model"], ["gated/model", "terms"],
                                     ["old/pickles", "safetensors", "pickles"],
                                     ["only/code", "safetensors"]), strict=True):
        assert_three_parts(error["error"], *words)


@pytest.mark.slow
def test_half_a_download_is_never_a_whole_one(server, folder, tmp_path):
    """Broken off, then asked for without a network, then with one: refused, refused, whole."""
    server.cut = 700
    broken, = fetch(tmp_path, server.address, "good/model")
    assert_three_parts(broken["error"], "good/model", "whole")
    offline, = fetch(tmp_path, server.address, "good/model", HF_HUB_OFFLINE="1")
    assert_three_parts(offline["error"], "good/model", "half")
    server.cut = None
    whole, = fetch(tmp_path, server.address, "good/model")
    for file in folder.iterdir():
        assert (Path(whole["folder"]) / file.name).read_bytes() == file.read_bytes()
    offline, = fetch(tmp_path, server.address, "good/model", HF_HUB_OFFLINE="1")
    assert offline == whole


def test_no_hub_at_all(tmp_path):
    """A port that nobody listens at, and a wish to stay offline."""
    gone, = fetch(tmp_path, "http://127.0.0.1:9", "good/model")
    assert_three_parts(gone["error"], "good/model", "folder here", "HF_ENDPOINT")
    offline, = fetch(tmp_path, "http://127.0.0.1:9", "good/model", HF_HUB_OFFLINE="1")
    assert_three_parts(offline["error"], "good/model", "HF_HUB_OFFLINE")


@pytest.mark.parametrize("path", [".", "runs", "./a/b", "/a/b", "a/b/c", "../a", "a/../b", "a", "a/b@",
                                  "a//b", "~/a", "a b/c", "-a/b", "a/b@-c", "", "a" * 97 + "/b", "a/b\n"])
def test_what_is_no_name_is_a_path(path, monkeypatch):
    monkeypatch.setattr(hub, "_download", lambda *args: pytest.fail("asked the hub"))
    assert hub.folder_of(path) == Path(path)


def test_what_is_here_is_not_looked_for_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_download", lambda *args: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    os.makedirs("runs/first")
    assert hub.folder_of("runs/first") == Path("runs/first")
    assert hub.folder_of("runs/frist") == Path("runs/frist")       # a slip of the pen stays a local path
    assert not hub.is_name(Path("other/model"))
    assert hub.is_name("other/model")


def test_the_library_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with refusal("huggingface_hub", ".[hub]"):
        hub.folder_of("other/model")


def test_an_old_library_cannot_tell_half_from_whole(monkeypatch):
    library = pytest.importorskip("huggingface_hub")
    import huggingface_hub.errors

    monkeypatch.delattr(huggingface_hub.errors, "IncompleteSnapshotError")
    with refusal("half a download", library.__version__, "-U"):
        hub.folder_of("other/model")
