"""evaluate/records and evaluate/provenance: what is saved comes back; a damaged file never gets in."""

import dataclasses
import hashlib
import json
import os
import shlex
from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from tiny import own_cache  # noqa: F401

from bitnet_ref.evaluate import records
from bitnet_ref.evaluate.provenance import called, made, model_facts, short
from bitnet_ref.evaluate.records import Data, Made, Metric, Model, Record, load, save
from bitnet_ref.formats.checkpoint import TENSORS, latest
from bitnet_ref.generate.language_model import load as load_model
from bitnet_ref.model.cost import count_params

MODEL = Model("runs/nano", "run", "ab" * 32, "ternary", 4, 1, "cd" * 32, 300, 32)
MADE = Made("python -m bitnet_ref.evaluate --model nano", "2026-01-01T00:00:00+00:00", 1.5, {"numpy": "2"},
            {"cpu": "one", "cores": 2})
RECORD = Record("choice", "arc_easy", MODEL, MADE, Data("arc_easy.jsonl", "ef" * 32, 2),
                {"acc": Metric(0.5, 2, 0.35, chance=0.25), "acc_norm": Metric(1.0, 2)},
                [[1, 1.0], [0, 1.0]], ["correct", "correct_norm"])


# --- property ----------------------------------------------------------------------------------------------

finite = st.floats(allow_nan=False, allow_infinity=False, max_value=1e299, min_value=-1e299)
metrics = st.builds(Metric, finite, st.integers(0, 10**9), st.none() | finite.map(abs),
                    st.sampled_from(["higher", "lower"]), st.none() | finite)


@given(found=st.dictionaries(st.text(), metrics, min_size=1), rows=st.lists(finite, max_size=9) | st.none(),
       kind=st.sampled_from(records.KINDS))
def test_what_is_saved_is_loaded(found, rows, kind):
    table = None if rows is None else [[x, 1] for x in rows]
    data = Data("d", "", 0 if rows is None else len(rows))
    record = dataclasses.replace(RECORD, kind=kind, metrics=found, data=data, items=table,
                                 item_fields=None if rows is None else ["a", "b"])
    path = tiny.folder() / "record.json"
    save(path, record)
    assert load(path) == record


def test_the_file_has_the_fields_that_other_programs_read(tmp_path):
    save(tmp_path / "r.json", RECORD)
    table = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert table == {"schema": 1, **dataclasses.asdict(RECORD)}
    assert table["metrics"]["acc"] == {"value": 0.5, "n": 2, "stderr": 0.35, "better": "higher",
                                       "chance": 0.25}


# --- bad input ---------------------------------------------------------------------------------------------

DROP = object()
GOOD = {"value": 0.5, "n": 2, "stderr": None, "better": "higher", "chance": None}


@pytest.mark.parametrize(("where", "value", "words"), [
    (["schema"], 2, ["must be of schema 1", "update bitnet_ref"]), (["schema"], DROP, ["schema 1"]),
    (["kind"], "gossip", ["kind", "one of perplexity, choice"]), (["kind"], 3, ["kind", "text"]),
    (["task"], DROP, ["task", "must be a text"]), (["model"], DROP, ["model", "must be a table"]),
    (["model", "bytes"], 1.5, ["bytes in model", "int"]), (["model", "bytes"], -1, ["bytes in model"]),
    (["model", "path"], DROP, ["path in model", "str"]), (["made", "seconds"], "1", ["seconds", "float"]),
    (["made", "seconds"], None, ["seconds"]), (["made", "machine"], [], ["machine", "dict"]),
    (["data", "items"], True, ["items in data"]), (["metrics"], {}, ["must have metrics"]),
    (["metrics", "acc"], 0.5, ["acc", "table"]),
    (["metrics", "acc", "value"], float("nan"), ["value in acc"]),
    (["metrics", "acc", "value"], float("inf"), ["value in acc"]),
    (["metrics", "acc", "value"], 10**400, ["value in acc"]),
    (["metrics", "acc", "better"], "more", ["better in acc"]), (["metrics", "acc", "stderr"], -1, ["stderr"]),
    (["items"], [[1, 1]], ["must be 2 rows", "got 1"]), (["items"], [[1], [1]], ["rows of 2 numbers"]),
    (["items"], [[1, 1], [1, "x"]], ["rows of 2 numbers", "row 1"]), (["items"], None, ["must be 2 rows"]),
    (["metrics", "pass@x"], GOOD, ["pass@1 to pass@10000", "'pass@x'"]),
    (["metrics", "pass@0"], GOOD, ["pass@1 to"]), (["metrics", "pass@99999"], GOOD, ["pass@1 to"]),
    (["metrics", "pass@"], GOOD, ["pass@1 to"]), (["metrics", "pass@-1"], GOOD, ["pass@1 to"]),
    (["metrics", "pass@1\n"], GOOD, ["pass@1 to"]), (["metrics", "pass@\u0661"], GOOD, ["pass@1 to"]),
    (["metrics", "pass@1"], GOOD, ["item_fields", "correct, samples", "got correct, correct_norm"]),
    (["item_fields"], "ab", ["item_fields", "list of names"]), (["item_fields"], None, ["item_fields"]),
])
def test_a_field_that_is_wrong_is_named(where, value, words, tmp_path):
    table = json.loads(json.dumps(dataclasses.asdict(RECORD) | {"schema": 1}))
    place = table
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = value
    if value is DROP:
        del place[where[-1]]
    (tmp_path / "r.json").write_text(json.dumps(table), encoding="utf-8")
    with tiny.refusal(*words, "r.json"):
        load(tmp_path / "r.json")


@pytest.mark.parametrize("n", [0, -1, 1.5, 10_001, 1e12])
def test_samples_are_a_number_that_can_be_counted_to(n, tmp_path):
    """pass@k is a product over them: a stranger's 1e12 would never end."""
    record = dataclasses.replace(RECORD, kind="code", metrics={"pass@10000": Metric(0.5, 2)},
                                 item_fields=["correct", "samples"], items=[[0.5, 10_000], [0.5, 1.0]])
    save(tmp_path / "r.json", record)
    assert load(tmp_path / "r.json") == record
    table = json.loads((tmp_path / "r.json").read_text())
    table["items"][1][1] = n
    (tmp_path / "r.json").write_text(json.dumps(table))
    with tiny.refusal("samples of", "must be 1 to 10000", "row 1"):
        load(tmp_path / "r.json")
    table["items"][1] = [1.5, 1]
    (tmp_path / "r.json").write_text(json.dumps(table))
    with tiny.refusal("correct of", "must be 0 to 1", "row 1"):
        load(tmp_path / "r.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}"])
def test_a_file_that_is_no_record_is_refused(content, tmp_path):
    (tmp_path / "r.json").write_bytes(content)
    with tiny.refusal("r.json"):
        load(tmp_path / "r.json")


def test_what_is_no_file_is_refused(tmp_path, monkeypatch):
    with tiny.refusal("none.json"):
        load(tmp_path / "none.json")
    with tiny.refusal("readable file", "folder"):
        load(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with tiny.refusal("readable file"):
            load(tmp_path / "pipe")
    save(tmp_path / "r.json", RECORD)
    monkeypatch.setattr(records, "LARGEST", 100)
    with tiny.refusal("at most 100 bytes", "more in"):
        load(tmp_path / "r.json")


def test_nothing_is_saved_that_could_not_be_loaded(tmp_path):
    with tiny.refusal("value in acc"):
        save(tmp_path / "r.json", dataclasses.replace(RECORD, metrics={"acc": Metric(float("nan"), 1)}))
    assert list(tmp_path.iterdir()) == []


# --- where it comes from -----------------------------------------------------------------------------------


def test_a_run_is_known_by_its_weights_and_its_vocabulary():
    path = tiny.trained()
    model = load_model(path, "numpy")
    facts = model_facts(model, str(path))
    weights = (latest(path) / TENSORS).read_bytes()
    assert facts.weights == hashlib.sha256(weights).hexdigest()
    assert facts.path == Path(path).name
    assert (facts.format, facts.linear, facts.vocab_size, facts.context) == ("run", "ternary", 300, 32)
    assert facts.vocabulary == model.tokenizer.vocabulary
    assert facts.parameters == count_params(model.cfg).total
    assert facts.bytes < 2 * facts.parameters


def test_a_command_names_no_folder():
    found = made("evaluate", ["--model", "/home/me/run", "--tasks=/a/b.jsonl", "--limit", "3"], 1.0, "numpy")
    assert found.command == "python -m bitnet_ref.evaluate --model run --tasks=b.jsonl --limit 3"
    assert "home" not in json.dumps(dataclasses.asdict(found))
    assert found.versions["numpy"]
    assert found.machine["backend"] == "numpy"
    assert found.machine["threads"] >= 1
    assert found.machine["cpu"]


@pytest.mark.parametrize(("path", "name"), [
    ("/home/alice/model", "model"), ("m.gguf", "m.gguf"),
    ("alice/nano-001/step-00000020", "nano-001/step-00000020"),
    ("/home/alice/nano-001/", "nano-001"), ("/home/alice/step-by-step", "step-by-step")])
def test_a_model_is_called_by_no_folder_of_the_machine(path, name):
    assert called(path, Path(path)) == name


def test_a_model_of_a_hub_keeps_its_name():
    snapshot = Path("/home/alice/.cache/models--owner--name/snapshots/0123abcd")
    assert called("owner/name@main", snapshot) == "owner/name@main"


def test_a_command_can_be_typed_again():
    asked = ["--model", "/home/me/my run", "--tasks=a b.jsonl,/c/d e", "--judge", "it's; rm $HOME"]
    found = made("evaluate", asked, 1.0, "numpy")
    assert shlex.split(found.command)[3:] == ["--model", "my run", "--tasks=a b.jsonl,d e", "--judge",
                                              "it's; rm $HOME"]


@pytest.mark.parametrize(("argument", "said"), [
    ("a", "a"), ("a/b", "b"), ("/b", "b"), ("--x=/a/b", "--x=b"), ("C:\\a\\b", "b"), ("/", "/"), ("", ""),
    ("--x", "--x"), ("arc_easy,piqa", "arc_easy,piqa"), ("a/b/", "b"), ("/a/x,/a/y", "x,y"),
])
def test_the_last_part_of_a_path_is_said(argument, said):
    assert short(argument) == said


