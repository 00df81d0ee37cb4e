"""The commands with --backend cuda, over the interpreter: what they print is what other backends print."""

import json

import pytest
import tiny

from bitnet_ref.bench import golden
from bitnet_ref.data.tokenizer import byte_letters

pytest.importorskip("numba_cuda", reason="CUDA kernels need numba-cuda")
from bitnet_ref.kernels.numba_cuda.driver import ENV


@pytest.fixture
def reciting(tmp_path):
    """The golden tiny model with a tokenizer whose ids are ASCII. Each text begins with the golden A."""
    given = golden.folder() / "tiny"
    config = json.loads((given / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"bos_token_id": ord("A")}), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes((given / "model.safetensors").read_bytes())
    letters = byte_letters()
    vocab = {letters[b]: b for b in range(1, 128)} | {"<|endoftext|>": 0}
    added = [{"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    (tmp_path / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": byte_level, "post_processor": None, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
                  "merges": []}}), encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_generate_recites_the_golden_text(reciting, monkeypatch):
    monkeypatch.setenv(ENV, "interpreter")
    text = (golden.folder() / "greedy.txt").read_text(encoding="utf-8")
    done = tiny.command("generate", "--model", reciting, "--prompt", text[1:40], "--tokens", 16,
                        "--temperature", 0, "--backend", "cuda")
    assert done.returncode == 0, done.stderr
    assert done.stdout == text[1:56] + "\n"


@pytest.mark.slow
def test_evaluate_scores_as_numpy_does(reciting, monkeypatch, tmp_path):
    monkeypatch.setenv(ENV, "interpreter")
    (tmp_path / "text.txt").write_text((golden.folder() / "greedy.txt").read_text(encoding="utf-8")[:200])
    found = []
    for backend in ("numpy", "cuda"):
        done = tiny.command("evaluate", "--model", reciting, "--corpus", tmp_path / "text.txt", "--json",
                            "--backend", backend)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=1e-5)
    assert found[1]["tokens"] == found[0]["tokens"]


@pytest.mark.slow
def test_chat_answers_as_numba_does(reciting, monkeypatch):
    monkeypatch.setenv(ENV, "interpreter")
    how = "--tokens", 6, "--temperature", 0, "--template", "plain", "--chain", "off"
    said = [tiny.command("chat", "--model", reciting, *how, "--backend", backend, input="A trit\n")
            for backend in ("numba", "cuda")]
    assert [s.returncode for s in said] == [0, 0], said[1].stderr
    assert said[0].stdout == said[1].stdout
