"""train/report: a page that stands alone, says what the run's files say, and shows hostile text as text."""

import json
import re
from html.parser import HTMLParser

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.cli import run_command
from bitnet_ref.train import log, report

HOSTILE = "<script>alert(1)</script><img src=x onerror='alert(2)'>&amp;\x1b[31m\"{{ 7 * 7 }}"
SUMMARY = {"steps": 20, "validation loss": 4.56789, "bits per byte": 2.34567, "perplexity": 96.3,
           "others, bits per byte": {"gzip -9": 2.5, "xz -9": 1.9}, "sample": "The end",
           "machine": {"processor": "abacus"},
           "speed": {"tokens_per_second": 5, "operations_per_second": 1e8, "peak": 4e9, "utilisation": 0.025}}
PICTURES = {"loss": "<svg><path/></svg>", "norm": "<svg><g/></svg>"}


class Page(HTMLParser):
    """The tags with their attributes, the text, and whether every tag is closed that must be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "path":
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def folder(tmp_path):
    """A finished run, by its files alone."""
    path = tiny.copy(tiny.trained(), tmp_path / "run")
    (path / report.SUMMARY).write_text(json.dumps(SUMMARY), encoding="utf-8")
    return path


def written(folder, pictures=PICTURES):
    page = Page(report.write(folder, pictures).read_text(encoding="utf-8"))
    assert page.open == []
    return page


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_the_page_says_what_the_files_say(folder):
    page = written(folder)
    tokens = sum(line["tokens"] for line in log.read(folder, "step"))
    for said in ("finished at step 20 of 20", "4.5679", "2.346", "96.30", f"{tokens:,}", "2.5%", "4 Gop/s",
                 "abacus", "The end", f"--model {folder}", f"--config {folder}/config.json", "2.500"):
        assert said in page.text, said
    last = log.read(folder, "layers")[-1]["layers"].values()
    zeros = [m["zero"] for m in last if "zero" in m]
    assert f"{sum(zeros) / len(zeros):.1%}" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 2


def test_the_page_asks_no_host_and_runs_nothing(folder):
    page = written(folder)
    assert {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "form"} == set()
    assert [a for _, a in page.tags if {"src", "href", "onload", "action"} & set(a)] == []
    text = (folder / report.REPORT).read_text(encoding="utf-8")
    assert re.findall(r"url\(|@import|http", text) == []


def test_hostile_text_is_shown_and_never_obeyed(folder):
    change(folder / report.SUMMARY, sample=HOSTILE, machine={HOSTILE: HOSTILE})
    change(folder / report.CONFIG, preset=HOSTILE)
    log.append(folder, "event", 20, 21, what="skip", why=HOSTILE, loss=float("inf"))
    hostile = folder.rename(folder.with_name("a <b>&'\"; rm run"))
    page = written(hostile)
    assert {tag for tag, _ in page.tags} & {"script", "img", "b"} == set()
    assert not [a for _, a in page.tags if "onerror" in a]
    assert page.text.count("alert(1)") == 5
    assert "{{ 7 * 7 }}" in page.text
    assert "\x1b" not in page.text
    assert "--model '" in page.text                      # the command survives a shell


def test_events_are_listed(folder):
    assert "What the guard did" not in written(folder).text
    log.append(folder, "event", 12, 13, what="skip", why="the loss stood out by 7", loss=9.0, norm=1.0)
    page = written(folder)
    assert "What the guard did" in page.text
    assert "the loss stood out by 7" in page.text


@pytest.mark.parametrize("kept", [1, 2])
def test_a_run_that_was_stopped_says_how_to_go_on(kept, folder):
    """With one line of its log, a validation, and with the first step."""
    (folder / report.SUMMARY).unlink()
    lines = (folder / log.LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / log.LOG).write_text("".join(lines[:kept]), encoding="utf-8")
    page = written(folder, {})
    assert f"not finished: step {kept - 1} of 20" in page.text
    assert f"--resume {folder}" in page.text
    assert f"{log.read(folder, 'eval')[0]['loss']:.4f}" in page.text
    assert "sample" not in page.text


def test_a_run_worse_than_guessing_has_no_perplexity_and_one_without_a_peak_no_utilisation(folder):
    change(folder / report.SUMMARY, perplexity=None, speed=None)
    page = written(folder)
    assert "perplexity" not in page.text
    assert "utilisation" not in page.text


@pytest.mark.parametrize(("file", "content"), [
    ("summary.json", "["), ("summary.json", "[1]"), ("summary.json", '{"steps": 1}'),
    ("summary.json", json.dumps({**SUMMARY, "validation loss": "low"})),
    ("summary.json", json.dumps({**SUMMARY, "speed": 5})),
    ("summary.json", json.dumps({**SUMMARY, "others, bits per byte": {"gzip": "x"}})),
    ("summary.json", json.dumps({**SUMMARY, "machine": 7})), ("config.json", "{}"),
    ("config.json", '{"train": {"steps": 1}}'), ("config.json", '{"train": {"steps": 1}, "model": 5}'),
])
def test_files_that_training_did_not_write_are_refused_and_leave_no_page(file, content, folder):
    (folder / file).write_text(content, encoding="utf-8")
    with tiny.refusal(file, str(folder)):
        report.write(folder, PICTURES)
    assert not (folder / report.REPORT).exists()


def test_a_file_of_any_size_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(log, "LARGEST", 10)
    with tiny.refusal("at most 10 bytes", str(folder)):
        report.write(folder, PICTURES)


@pytest.mark.parametrize("linear", ["ternary", "full"])
def test_the_command_writes_the_page_of_a_run_of_one_step(linear, tmp_path, capsys):
    run = tiny.train(tmp_path / "run", linear=linear, steps=1, log_every=1)
    assert run_command(report.main, [str(run.folder)]) == 0
    assert capsys.readouterr().out == f"{run.folder / report.REPORT}\n"
    text = (run.folder / report.REPORT).read_text(encoding="utf-8")
    assert "not finished: step 1 of 1" in text
    assert text.count("<svg") == {"ternary": 10, "full": 5}[linear]


def test_a_folder_without_a_checkpoint_is_refused(tmp_path, capsys):
    assert run_command(report.main, [str(tmp_path)]) == 2
    tiny.assert_three_parts(capsys.readouterr().err, str(tmp_path))
