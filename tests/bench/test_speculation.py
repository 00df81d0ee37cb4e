"""bench/speculation: figures of a run, each text equal to the plain one, and the page that they make."""

import json

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.bench import page, speculation
from bitnet_ref.chain.draft import Draft
from bitnet_ref.cli import run_command


def run(*arguments):
    return run_command(speculation.main, ["--quick", "--rounds", "2", *map(str, arguments)])


@pytest.mark.slow
def test_a_run_is_measured_and_written(tmp_path, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    marker = "<!-- generated: python -m bitnet_ref.bench.speculation -->\n"
    (docs / "speculative.md").write_text(f"before\n{marker}old\n<!-- end -->\nafter\n")
    given = ("--run", tiny.trained(), "--prompts", 2, "--tokens", 12, "--output", tmp_path / "out")
    assert run(*given, "--root", tmp_path) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "figures.json").read_text())
    assert [len(c) for c in found["costs"].values()] == [8]
    assert all(c[0] == 1 for c in found["costs"].values())
    for way in found["runs"][0]["ways"].values():
        assert way["texts"]["equal tokens"] == 2 * 12 * len(speculation.NAMES)
        assert list(way["drafters"]) == list(speculation.NAMES)
        assert way["drafters"]["oracle"]["acceptance"] in (None, 1)
        assert all(0 < d["calls per token"] <= 1 for d in way["drafters"].values())
    text = (docs / "speculative.md").read_text()
    assert text == f"before\n{marker}{shown}<!-- end -->\nafter\n"


def test_a_text_that_is_another_is_a_bug_and_said_so(monkeypatch):
    class Model:
        transformer = None

    monkeypatch.setattr(speculation, "Window", lambda model: None)
    monkeypatch.setattr(speculation, "decode", lambda *given, **how: iter([speculation_step(1)]))
    monkeypatch.setattr(speculation, "speculate", lambda *given, **how: iter([speculation_step(2)]))
    monkeypatch.setattr(speculation, "drafter", lambda *given: lambda text: Draft((), ()))
    with tiny.refusal("must be the plain text", "this is a bug"):
        speculation._by_turns(Model(), None, [[1, 2]], 1, speculation.GREEDY, "greedy")


def speculation_step(token):
    return type("Step", (), {"token": token})()


def test_acceptance_on_people_s_text(monkeypatch):
    """A guess of three of which two are right passes over two and the one after; nothing guessed: none."""
    monkeypatch.setattr(speculation, "PROMPT", 1)
    monkeypatch.setattr(speculation, "drafter",
                        lambda *given: lambda text: Draft((text[-1] + 1, text[-1] + 2, 0), (1.0,) * 3))
    assert speculation.alone("table", None, [[1, 2, 3, 4, 5, 6, 7]]) == 4 / 6
    monkeypatch.setattr(speculation, "drafter", lambda *given: lambda text: Draft((), ()))
    assert speculation.alone("table", None, [[1, 2, 3]]) is None


def test_loops_are_told_from_texts():
    assert speculation.distinct_share(list(range(40))) == 1
    assert speculation.distinct_share([1, 2] * 50) < 0.05
    assert speculation.distinct_share([1]) == 0


def test_by_the_formula():
    """100 tokens of 40 calls, of 2.5 tokens each on average, at 1.5 times the cost of one."""
    row = {"calls": 40, "drafted": 60, "accepted": 60, "made": 100, "ratio": 1.4}
    figures = speculation._figures(row, [1.0, 1.0, 2.0, 2.0], 0.5)
    assert figures["formula"] == pytest.approx(2.5 / 1.5)
    assert figures["acceptance"] == 1
    assert figures["share"] == 0.6


@pytest.mark.parametrize(("arguments", "words"), [
    (["--prompts", 0], ["--prompts must be greater than 0"]), ([], ["--output must be given"])])
def test_what_is_wrong_is_refused(arguments, words, tmp_path, capsys):
    assert run(*arguments, *(["--output", tmp_path] if arguments else [])) == 2
    tiny.assert_three_parts(capsys.readouterr().err, *words)


def test_a_page_without_markers_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with tiny.refusal("generated markers"):
        page.put(tmp_path / "page.md", "block", "bench.speculation")
