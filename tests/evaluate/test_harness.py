"""evaluate/harness: our models as models of lm-evaluation-harness, on task files of our own, with no network.

Most need the library (extra `eval`); what is said without it does not. Scores against its own `hf` model are
in test_harness_oracle.
"""

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from questions import harness_tasks, questions, written
from tiny import own_cache  # noqa: F401

from bitnet_ref.checks import CheckError
from bitnet_ref.evaluate import __main__ as command
from bitnet_ref.evaluate import harness
from bitnet_ref.evaluate.harness import Answers
from bitnet_ref.evaluate.records import load as load_record
from bitnet_ref.evaluate.tasks import read_task
from bitnet_ref.evaluate.zero_shot import score_task
from bitnet_ref.generate.language_model import load
from bitnet_ref.generate.sampling import Sampling
from bitnet_ref.generate.together import together


@pytest.fixture
def lm_eval(monkeypatch):
    """The library, offline, with caches of its own."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", os.environ.get("HF_HOME") or str(tiny.folder() / "hf"))
    return pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra `eval`)")


@pytest.fixture
def model():
    return load(tiny.trained())


def instances(*args):
    """Requests as the library passes them on."""
    return [SimpleNamespace(args=a) for a in args]


# --- what is answered --------------------------------------------------------------------------------------


def test_log_likelihoods_are_those_of_zero_shot(model, tmp_path):
    task = read_task(written(tmp_path / "q.jsonl", questions()))
    answers = Answers(model)
    asked = instances(*[(q.context, c) for q in task.questions for c in q.choices])
    got = answers.loglikelihood(asked)
    assert [p for p, _ in got] == [p for found in score_task(model, task).found for p in found]
    assert all(type(p) is float and type(greedy) is bool for p, greedy in got)
    assert answers.cut == sum(len(answers.tok_encode(c + d)) > 33 for c, d in (r.args for r in asked))


@pytest.mark.parametrize("first", [True, False])
def test_an_empty_context_is_the_first_id(model, first):
    answers = Answers(model, first=first)
    assert answers.loglikelihood(instances(("", "Ba"))) == Answers(model).loglikelihood(instances(("", "Ba")))
    assert answers.tok_encode("Ba")[:first] == [model.first][:first]
    assert answers.tok_encode("Ba", add_special_tokens=False) == model.tokenizer.encode("Ba").tolist()


@settings(max_examples=10)
@given(n=st.integers(1, 120), seed=st.integers(0, 99))
def test_a_whole_text_is_scored_each_token_once(n, seed):
    """Against a loop: windows of the context, the last of them moved back to be full."""
    pytest.importorskip("lm_eval", reason="lm_eval is not installed (extra `eval`)")
    model = load(tiny.trained())
    text = " ".join(np.random.default_rng(seed).choice(tiny.text(100).split(), n))
    ids, T = [model.first, *model.tokenizer.encode(text).tolist()], model.cfg.context
    want, at = 0.0, 1
    while at < len(ids):
        new = min(T, len(ids) - at)
        begin = max(0, at + new - 1 - T)
        logits = model(np.array(ids[begin:at + new - 1]))[0][0].astype(np.float64)[-new:]
        want += float((logits[np.arange(new), ids[at:at + new]] - np.log(np.exp(logits).sum(-1))).sum())
        at += new
    got, = Answers(model).loglikelihood_rolling(instances((text,)))
    assert got == pytest.approx(want, rel=1e-5)


def test_texts_end_before_their_stops(model):
    answers, how = Answers(model, batch=2), {"max_gen_toks": 12, "do_sample": False}
    contexts = ["Ba", "Ce di", "Fo", "Ba ce"]
    free = answers.generate_until(instances(*[(c, how) for c in contexts]))
    assert free == model.generate(contexts, 12, temperature=0)
    stop = free[0][3]
    others = {"until": stop}, {"until": [stop, ""]}, {"max_gen_toks": 2}
    cut = answers.generate_until(instances(*[("Ba", {**how, **other}) for other in others]))
    assert cut[0] == cut[1] == free[0][:free[0].index(stop)]
    assert cut[2] == model.generate("Ba", 2, temperature=0)


def test_of_a_long_context_the_newest_half_is_seen_however_much_may_follow(model):
    """A task that does not say how long an answer is must not take the place of its question."""
    answers, context = Answers(model), "Ba ce di " * 40
    newest = answers.tok_encode(context)[-16:]
    want = together(model.transformer, model.tokenizer, [newest], 16, Sampling(temperature=0.0), model.ends,
                    [])
    for n, how in enumerate([{}, {"max_gen_toks": 10_000}, {"max_gen_toks": 16}], 1):
        assert answers.generate_until(instances((context, how), ("Ba", how)))[0] == want[0]
        assert answers.cut == n


def test_what_the_library_asks_about_a_model(model):
    answers = Answers(model)
    assert answers.max_length == 32
    assert answers.eot_token_id == answers.prefix_token_id == model.tokenizer.eos
    assert answers.tokenizer_name == model.tokenizer.vocabulary
    own = answers._loglikelihood_tokens([(None, [0, 1], [2])])
    assert own == answers._loglikelihood_tokens([(("a", "b"), [0, 1], [2])])


# --- what passes between, with a stand-in for the library --------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch):
    """Modules of the library's names with what we use of them: nothing here says that it works like that,
    which test_harness_oracle does; `asked` holds what its evaluation was given."""
    def windows(ids, prefix, most, context):
        return [([prefix, *ids[:at]][-1:], ids[at:at + most]) for at in range(0, len(ids), most)]

    def manager(include_path, include_defaults):
        if include_path and "broken" in include_path:
            raise ValueError("not YAML")
        return SimpleNamespace(all_tasks=["mine", "other"], defaults=include_defaults)

    def evaluate(model, tasks, task_manager, limit, **how):
        asked.update(how, tasks=tasks, known=task_manager, limit=limit)
        if "raises" in asked:
            raise asked["raises"]
        scored = model.loglikelihood(instances(("Ba", " ce"), ("Ba", " di")))
        sample = {"filter": "none", "doc_hash": "a", "prompt_hash": "b", "filtered_resps": scored, "acc": 1.0}
        return {"samples": {t: [sample] for t in tasks}, "results": {t: {"acc,none": 1.0} for t in tasks},
                "configs": {t: {"output_type": "multiple_choice"} for t in tasks},
                "higher_is_better": {t: {"acc": True} for t in tasks}}

    asked = {}
    tasks = SimpleNamespace(TaskManager=manager)
    modules = {"lm_eval": SimpleNamespace(tasks=tasks, simple_evaluate=evaluate), "lm_eval.tasks": tasks,
               "lm_eval.api": SimpleNamespace(),
               "lm_eval.api.model": SimpleNamespace(TemplateLM=type("TemplateLM", (), {})),
               "lm_eval.utils": SimpleNamespace(get_rolling_token_windows=windows,
                                                make_disjoint_window=lambda window: window)}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return asked


def test_our_model_becomes_one_of_its_models(model, stand_in):
    made = harness.adapted(model, 3, False)
    assert isinstance(made, Answers)
    assert type(made).__mro__[-2].__name__ == "TemplateLM"
    assert (made.model, made.batch, made.first, made.cut) == (model, 3, False, 0)


def test_a_whole_text_is_the_sum_of_its_windows(model, stand_in):
    texts = ["Ba ce di " * 9, "Fo", "Ba " * 40]
    answers = Answers(model)
    got = answers.loglikelihood_rolling(instances(*[(text,) for text in texts]))
    for text, value in zip(texts, got):
        ids = model.tokenizer.encode(text).tolist()
        windows = sys.modules["lm_eval.utils"].get_rolling_token_windows(ids, model.first, 32, 1)
        want = [answers._loglikelihood_tokens([(None, *window)])[0][0] for window in windows]
        assert value == pytest.approx(sum(want), rel=1e-12)


def test_what_is_scored_is_kept_by_what_was_asked(model, stand_in, tmp_path):
    answers = Answers(model, kept=lambda asked: tmp_path / asked[:8])
    first = answers.loglikelihood(instances(("Ba", " ce")))
    answers.loglikelihood(instances(("Ba", " di")))
    assert len(set(answers.files)) == 2
    assert all(file.exists() for file in answers.files)
    answers.files[0].write_text("[0, -7.5, false]\n")
    assert answers.loglikelihood(instances(("Ba", " ce"))) == [(-7.5, False)] != first


@pytest.mark.parametrize(("tasks", "folder", "words"), [
    (["mine", "no"], None, ["tasks that lm-evaluation-harness knows", "got no;", "known are 2 names"]),
    (["no"], "tasks", ["got no;", "has mine other"]),
    (["mine"], "broken", ["able to read the tasks", "not YAML"]),
    (["mine"], "nowhere", ["--task-folder must be a folder"])])
def test_tasks_that_are_none_are_refused(tasks, folder, words, stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tasks", "broken"):
        (tmp_path / name).mkdir()
    with tiny.refusal(*words):
        harness.known_tasks(tasks, folder)
    assert harness.known_tasks(["mine"], "tasks").defaults is False
    assert harness.known_tasks(["mine"], None).defaults is True


def test_the_command_keeps_a_record_of_each_task_and_nothing_else(stand_in, tmp_path, capsys):
    run = tiny.commanded(command.main, capsys)
    code, out, err = run("--tasks", "mine,other", "--limit", 7, "--output", tmp_path / "o.json")
    assert code == 0, err
    assert (stand_in["tasks"], stand_in["limit"]) == (["mine", "other"], 7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.mine.json", "o.other.json"]
    record = load_record(tmp_path / "o.mine.json")
    assert (record.kind, record.data.name, record.items) == ("choice", "lm_eval mine", [[1.0]])
    assert (record.metrics["acc"].value, record.metrics["acc"].chance) == (1.0, 0.5)
    assert "mine" in out


def test_what_its_evaluation_raises_is_said_but_an_interruption_passes(model, stand_in, capsys):
    args = SimpleNamespace(limit=None, backend="numpy", first=True)

    def run():
        return harness.run(Answers(model), None, ["mine"], None, args, [])

    stand_in["raises"] = ValueError("no such file")
    with tiny.refusal("must be able to run mine", "ValueError: no such file"):
        run()
    for passes in (KeyboardInterrupt(), CheckError("a; got b; c")):
        stand_in["raises"] = passes
        with pytest.raises(type(passes)) as raised:
            run()
        assert raised.value is passes
    del stand_in["raises"]
    answers = Answers(model)
    answers.cut = 1200
    harness.run(answers, None, ["mine"], None, args, [])
    assert "note: 1,200 contexts were longer than the model's" in capsys.readouterr().err


# --- the command -------------------------------------------------------------------------------------------


@pytest.fixture
def run(capsys):
    """Run the command in this process: (exit code, stdout, stderr)."""
    return tiny.commanded(command.main, capsys)


@pytest.mark.slow
def test_tasks_of_a_folder_have_the_figures_of_local_files(lm_eval, run, tmp_path):
    """The same questions both ways: the library's prompts and metrics are ours."""
    names = harness_tasks(tmp_path)
    files = [tmp_path / f"{name}.jsonl" for name in names]
    code, _, err = run("--tasks", ",".join(names), "--task-folder", tmp_path, "--output", tmp_path / "o.json")
    assert code == 0, err
    for file in files:
        theirs = load_record(tmp_path / f"o.{file.stem}.json")
        assert run("--tasks", file, "--output", tmp_path / "own.json")[0] == 0
        ours = load_record(tmp_path / "own.json")
        for name in ("acc", "acc_norm"):
            assert theirs.metrics[name].value == pytest.approx(ours.metrics[name].value)
            assert theirs.metrics[name].stderr == pytest.approx(ours.metrics[name].stderr)
            assert theirs.metrics[name].chance == pytest.approx(ours.metrics[name].chance)
        assert [row[:2] for row in theirs.items] == ours.items
        assert theirs.data.how == ours.data.how == {"first": True}
        assert theirs.item_fields[:2] == ours.item_fields
        assert "lm_eval" in theirs.made.versions
    assert list(tmp_path.glob(".o.json.*")) == []


@pytest.mark.slow
def test_a_task_that_the_library_cannot_run_is_refused(lm_eval, run, tmp_path, monkeypatch):
    name, *_ = harness_tasks(tmp_path)
    with monkeypatch.context() as patch:                   # before a model is loaded, or anything scored
        patch.setattr("bitnet_ref.evaluate.choice.load", None)
        code, _, err = run("--tasks", f"{tmp_path / name}.jsonl,no_such_task", "--task-folder", tmp_path)
    assert code == 2
    tiny.assert_three_parts(err.splitlines()[-1], "lm-evaluation-harness knows", "no_such_task", name)
    (tmp_path / f"{name}.jsonl").unlink()
    code, _, err = run("--tasks", name, "--task-folder", tmp_path)
    assert code == 2
    tiny.assert_three_parts(err.splitlines()[-1], "lm-evaluation-harness must be able to run", name)
    code, _, err = run("--tasks", name, "--task-folder", tmp_path / "none")
    assert code == 2
    tiny.assert_three_parts(err.splitlines()[-1], "--task-folder must be a folder")


def test_without_the_library_the_way_out_is_said(run, monkeypatch, model):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = run("--tasks", "arc_easy")
    assert code == 2
    tiny.assert_three_parts(err, "lm-evaluation-harness", "no library lm_eval", harness.INSTALL)
    with tiny.refusal("lm-evaluation-harness"):
        harness.adapted(model)


def test_a_record_is_made_of_what_the_library_found():
    """Of several filters the first; figures of another kind are kept without rows."""
    sample = {"filter": "none", "doc_hash": "a", "prompt_hash": "b", "filtered_resps": [1, 2], "acc": 1.0,
              "word_perplexity": (1.0, 2)}
    found = {"results": {"t": {"alias": "t", "acc,none": 1.0, "acc_stderr,none": "N/A", "f1,other": 0.5,
                               "word_perplexity,none": 7.0, "word_perplexity_stderr,none": 0.5}},
             "configs": {"t": {"output_type": "multiple_choice"}},
             "higher_is_better": {"t": {"acc": True, "word_perplexity": False}}}
    record = harness._record("t", [sample, {**sample, "filter": "other"}], found, None, None, True)
    assert record.data.how == {"first": True}
    assert {n: (m.value, m.n, m.stderr, m.better, m.chance) for n, m in record.metrics.items()} == {
        "acc": (1.0, 1, None, "higher", 0.5), "word_perplexity": (7.0, 1, 0.5, "lower", None)}
    assert (record.items, record.item_fields, record.kind) == ([[1.0]], ["correct"], "choice")
