"""bench/evaluation_report and evaluation_page: nothing is left out that speaks against the model."""

import json
import re
from dataclasses import replace
from pathlib import Path

import made_up
import pytest

from bitnet_ref.bench import evaluation_page as page
from bitnet_ref.bench import evaluation_report, rivals
from bitnet_ref.bench.contest import Row
from bitnet_ref.bench.evaluation_report import Contestant

LOSS, WIN = 2.1, 1.9             # nats of the twin's are 2


def contestant(who, nats, linear, n_bytes, first):
    scored = [made_up.perplexity(nats + 0.001 * n, seed=first + n, noise=0.002, linear=linear, bytes=n_bytes)
              for n in range(3)]
    runs = [{"seed": n, "steps": 30, "tokens": 1234, "lr": 0.01, "d_model": 64, "seconds per step": 0.2,
             "curve": [[0, 9.0], [10, 7.0 + n], [30, 6.0 + n]]} for n in range(3)]
    return Contestant(rivals.NAMES[who], rivals.CONTESTS.get(who, ""), scored, Path(who), runs)


def chains():
    drafter = {"acceptance": 0.5, "calls per token": 0.6, "ratios": [1.3 + 0.01 * n for n in range(9)]}
    texts = {"distinct 4-grams": 0.9, "plain tokens per second": 1000.0, "equal tokens": 99}
    return {"ways": {"greedy": {"texts": texts, "drafters": {
                "table": drafter, "lookup": {**drafter, "acceptance": None}, "oracle": drafter}},
                     "temperature 0.8": {"texts": {**texts, "distinct 4-grams": 0.1},
                                         "drafters": {"table": {**drafter, "ratios": [1.5, 1.6]}}}},
            "compression": {"chains": 64, "covered": 0.2, "held out": 0.1, "saved": 0.15}}


def report(nats=LOSS, others=(), notes=("energy: unknown: no counter",)):
    models = {rivals.BITNET: contestant(rivals.BITNET, nats, "ternary", 400, 0),
              rivals.TWIN: contestant(rivals.TWIN, 2.0, "full", 800, 10),
              rivals.SMALL: contestant(rivals.SMALL, 2.3, "full", 400, 20),
              rivals.LONG: contestant(rivals.LONG, 2.0003, "full", 800, 30)}
    speed = {who: made_up.efficiency([base, base + 1, base - 1], 400) for who, base in
             zip(models, (200, 100, 150, 100))}
    return evaluation_report.assembled(models, speed, others, chains(), notes, made_up.MADE)


def found(made, contest, metric):
    return next(r for r in made["rows"] if (r["contest"], r["metric"]) == (contest, metric))


# ---- what is in it ----

def test_three_contests_with_verdicts_of_their_own():
    made = report()
    assert found(made, "equal parameters", "bits per byte")["verdict"] == "loss"
    assert found(made, "equal bytes", "bits per byte")["verdict"] == "win"
    assert found(report(nats=2.0), "equal time", "bits per byte")["verdict"] == "unknown"
    assert found(made, "equal parameters", "decode tokens/s")["delta"] == pytest.approx(100, abs=1)


def test_the_machine_of_the_report_is_that_of_its_timings():
    """Its processes may have had other threads than the one that started them."""
    timed = made_up.efficiency([1, 2, 3])
    timed = replace(timed, made=replace(timed.made, machine={"cpu": "none", "threads": 7}))
    models = {who: contestant(who, 2.0, "ternary", 400, 0) for who in (rivals.BITNET, rivals.TWIN)}
    made = evaluation_report.assembled(models, dict.fromkeys(models, timed), [], chains(), [], made_up.MADE)
    assert made["made"]["machine"] == {"cpu": "none", "threads": 7}
    assert made["made"]["command"] == made_up.MADE.command


def test_what_is_the_same_by_construction_is_no_contest():
    rows = report()["rows"]
    assert not [r for r in rows if r["contest"] == "equal bytes" and r["metric"] == "model bytes"]
    assert {r["metric"] for r in rows if r["contest"] == "equal time"} == {"bits per byte", "perplexity"}


def test_a_verdict_counts_once():
    """Perplexities are shown and not counted: bits per byte have said it. Chain buckets are no contest with
    full precision."""
    made = report()
    counted = [r for r in made["rows"] if r["metric"] != "perplexity" and r["contest"] != "chain buckets"]
    assert sum(made["summary"]["all"].values()) == len(counted) < len(made["rows"])
    assert sum(made["summary"]["by contest"]["chain buckets"].values()) == 3
    for verdict, n in made["summary"]["all"].items():
        assert n == sum(r["verdict"] == verdict for r in counted)


def test_every_loss_refusal_flag_and_gap_is_a_deficiency():
    small = [made_up.choice(0.26, n=40), made_up.choice(0.27, n=40, linear="full", path="runs/twin")]
    elsewhere = [made_up.perplexity(), made_up.perplexity(linear="full", sha256="another")]
    made = report(others=small + elsewhere)
    said = "\n".join(made["deficiencies"])
    for row in made["rows"]:
        if row["verdict"] == "loss" and row["metric"] != "perplexity":
            assert f"loses to {row['theirs']} in {row['metric']}" in said
        for flag in row["flags"]:
            assert flag in said
    for words in ("refused: other data", "below the minimum: 40 questions", "at chance",
                  "not measured here: code: HumanEval", "the texts loop",
                  "not measured here: reasoning: PIQA", "energy: unknown: no counter"):
        assert words in said
    assert "not measured here: reasoning: ARC" not in said
    assert "not measured here: reasoning: ARC" in "\n".join(report()["deficiencies"])


def test_a_brief_training_is_said_first():
    made = report()
    small = made["models"][0]
    said = made["deficiencies"][0]
    assert said.startswith("trained briefly: BitNet b1.58 on 1,234 tokens")
    assert f"{1234 / small['parameters']:.2g} for each parameter" in said
    assert evaluation_report.brief([{**small, "tokens": 20 * small["parameters"]}]) == []
    assert evaluation_report.brief([{"name": "a baseline", "parameters": 10}]) == []     # not trained here


def test_a_clone_keeps_the_report(tmp_path):
    page_file = tmp_path / page.PAGE
    page_file.parent.mkdir(parents=True)
    marker = "<!-- generated: python -m bitnet_ref.evaluate report -->"
    page_file.write_text(f"before\n{marker}\nold\n<!-- end -->\n", encoding="utf-8")
    page.publish(tmp_path, report())
    text = page_file.read_text(encoding="utf-8")
    assert text.startswith("before")
    assert "old" not in text
    assert "## Deficiencies" in text
    assert {p.name for p in (page_file.parent / "evaluation").iterdir()} == {"report.html", "report.json"}
    kept = json.loads((page_file.parent / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert page.block(kept) in text


@pytest.mark.parametrize("who", [rivals.BITNET, rivals.TWIN])
def test_a_model_that_is_worse_than_guessing_is_in_the_report(who):
    """Its records have no perplexity."""
    models = {name: contestant(name, 2.0, "ternary" if name == rivals.BITNET else "full", 400, n)
              for n, name in enumerate((rivals.BITNET, rivals.TWIN))}
    bad = [replace(r, metrics={"bits per byte": r.metrics["bits per byte"]}) for r in models[who].records]
    models[who] = replace(models[who], records=bad)
    speed = dict.fromkeys(models, made_up.efficiency([1, 2, 3]))
    made = evaluation_report.assembled(models, speed, [], chains(), [], made_up.MADE)
    row = found(made, "equal parameters", "perplexity")
    assert row["verdict"] == "refused"
    assert "worse than guessing" in "\n".join(made["deficiencies"])
    page.markdown(made)


def test_the_first_token_says_again_what_reading_says():
    rows = [contest_of("prefill tokens/s", "higher"), contest_of("first token ms", "lower")]
    assert evaluation_report.tally(rows)["all"]["win"] == 1


def contest_of(metric, better):
    return Row("equal parameters", "generation", metric, better, "a", "b", 1, 1, [], [], 1, 1, 1, "win", 3,
               "rounds")


def test_tasks_are_compared_seed_by_seed():
    """Each seed of BitNet answers six in ten, one of the twin's does too."""
    ours, theirs = ([made_up.choice(share, seed=n) for n, share in enumerate(shares)]
                    for shares in ((0.6, 0.6, 0.6), (0.5, 0.5, 0.6)))
    models = {who: contestant(who, 2.0, "ternary" if who == rivals.BITNET else "full", 400, n)
              for n, who in enumerate((rivals.BITNET, rivals.TWIN))}
    models = {who: replace(models[who], tasks={"arc_easy": scored})
              for who, scored in zip(models, (ours, theirs))}
    speed = dict.fromkeys(models, made_up.efficiency([1, 2, 3]))
    made = evaluation_report.assembled(models, speed, [], chains(), [], made_up.MADE)
    row = found(made, "equal parameters", "acc")
    assert (row["verdict"], len(row["values"])) == ("unknown", 3)
    assert row["delta"] == pytest.approx((20 + 20 + 0) / 3)
    assert "not measured here: reasoning: ARC" not in "\n".join(made["deficiencies"])
    assert "not measured here: reasoning: HellaSwag" in "\n".join(made["deficiencies"])


def test_records_of_others_join_ternary_against_full():
    others = [made_up.choice(0.6), made_up.choice(0.5, linear="full", path="runs/twin"),
              made_up.choice(0.4, task="piqa")]
    made = report(others=others)
    joined = [r for r in made["rows"] if r["contest"] == "choice"]
    assert [(r["task"], r["metric"], r["verdict"]) for r in joined] == [("arc_easy", "acc", "win"),
                                                                     ("arc_easy", "acc_norm", "win")]


def test_every_row_has_its_size_its_interval_and_its_command():
    for row in report()["rows"]:
        assert row["n"] > 0
        assert row["commands"] == [made_up.MADE.command]
        assert (row["low"] is None) == (row["high"] is None)
        assert row["low"] is None or row["low"] <= row["delta"] <= row["high"]


# ---- its pages ----

def test_the_three_files(tmp_path):
    page.write(tmp_path, report())
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["kind"] == "report"
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("equal parameters", "equal bytes", "equal time", "chain buckets", "perplexity",
                  "not measured here: code"):
        assert words in text.lower()
        assert words in html.lower()
    assert html.count("<svg") == 4
    table = [line for line in text.splitlines() if line.startswith("| wikitext-2")]
    assert all(line.count("|") == 8 for line in table)
    assert len(table) == 6


def test_what_lies_beyond_a_line_is_marked(tmp_path):
    """Decoding is twice as fast as the twin's."""
    page.write(tmp_path, report())
    assert "›</s>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_asks_no_host_and_escapes_what_it_shows(tmp_path):
    made = report(notes=["<script>alert(1)</script>"])
    page.write(tmp_path, made)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in html
    outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", html)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", outside)
    assert not re.search(r"@import|url\((?!#)", outside)


def test_the_summary_is_what_counts():
    lines = page.summary(report()).splitlines()
    counts = report()["summary"]["all"]
    assert lines[0] == (f"{counts['win']} wins, {counts['loss']} losses, {counts['unknown']} unknown, "
                        f"{counts['refused']} refused")
    assert [line.split(",")[0] for line in lines[1:4]] == ["equal parameters", "equal bytes", "equal time"]
    assert lines[1].endswith(", worse")


def test_the_drafter_of_the_summary_is_one_that_counts():
    """That of texts which loop is the fastest, 1.55 times."""
    made = report()
    assert max(r["delta"] for r in made["rows"] if r["contest"] == "chain buckets") == pytest.approx(55)
    assert page.key_rows(made)[-1]["delta"] == pytest.approx(34)


def test_unknown_says_why():
    row = found(report(nats=2.0), "equal time", "bits per byte")
    assert page.sentence(row).endswith("unknown: within its uncertainty")
    for ends, flags, words in ((3.0, ["ours is at chance"], "ours is at chance"), (None, ["one"], "one"),
                               (None, [], "nothing says how sure it is")):
        other = {**row, "low": ends, "high": ends, "flags": flags, "verdict": "unknown"}
        assert page.sentence(other).endswith(f"unknown: {words}")


def test_a_strangers_words_stay_in_their_cell():
    """Of a record: its task, the name of its model, its command."""
    others = [made_up.choice(0.6, task="a|b<img src=x>\n# c"),
              made_up.choice(0.5, task="a|b<img src=x>\n# c", linear="full", path="x|y\n## z")]
    others = [replace(r, made=replace(r.made, command="a `b` <c>\n# d")) for r in others]
    text = page.markdown(report(others=others))
    [line, _] = [line for line in text.splitlines() if line.startswith("| a")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 8
    assert not re.search(r"(?<!\\)<img", text)
    assert not [line for line in text.splitlines() if line.startswith(("# c", "## z", "# d"))]
    assert "`a 'b' <c> # d`" in text


@pytest.mark.parametrize(("value", "shown"), [
    (None, "-"), (2.06864, "2.069"), (12345.6, "12,346"), (0.5, "0.500"), (172.14, "172.1")])
def test_numbers(value, shown):
    assert page.number(value) == shown


def test_bars_stay_on_their_line():
    row = found(report(), "equal parameters", "bits per byte")
    assert 0 <= page.bar(row)["from"] <= page.bar(row)["at"] < 50
    assert page.bar(row)["beyond"] == ""
    assert page.bar({**row, "delta": 900.0, "low": -900.0, "high": None}) == {
        "at": 100, "from": 0, "to": 100, "beyond": "<>"}
    assert page.bar({**row, "delta": 30.0, "low": 20.0, "high": 60.0})["beyond"] == ">"
    assert page.bar({**row, "delta": None}) is None
