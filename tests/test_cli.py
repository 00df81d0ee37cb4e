"""cli: flags come from the config's fields; preset < file < typed; bad input is one line and exit code 2."""

import io
import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, dataclass, field, fields

import pytest

from bitnet_ref.checks import CheckError
from bitnet_ref.cli import (
    BAD_ARGUMENTS,
    DONE,
    INTERRUPTED,
    Parser,
    add_args,
    configs,
    read_config_file,
    run_command,
    text,
    typed,
    value_type,
)
from bitnet_ref.config import PRESETS, ModelConfig, TrainConfig


def parse(*argv):
    parser = Parser("python -m bitnet_ref.x", "What it does.\n\nRead after: a. Read next: b.\n")
    parser.add_argument("--preset", type=text)
    parser.add_argument("--config", type=text)
    add_args(parser, ModelConfig, "model")
    add_args(parser, TrainConfig, "run")
    return parser.parse_args(argv)


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)
    return write


# --- flags --------------------------------------------------------------------------------------------------


def test_every_field_is_a_flag_with_its_type():
    for config in (ModelConfig, TrainConfig):
        for f in fields(config):
            kind, flag = value_type(f.type), "--" + f.name.replace("_", "-")
            argv = [flag] if kind is bool else [flag, "7"]
            assert typed(parse(*argv), config) == {f.name: True if kind is bool else kind("7")}


def test_nothing_typed_leaves_nothing_behind():
    assert typed(parse(), ModelConfig) == typed(parse(), TrainConfig) == {}


def test_a_bool_has_a_flag_for_no():
    assert typed(parse("--no-tied-embeddings"), ModelConfig) == {"tied_embeddings": False}
    assert typed(parse("--tied-embeddings"), ModelConfig) == {"tied_embeddings": True}


def test_an_optional_field_has_the_type_beside_none():
    assert value_type(int | None) is int
    assert value_type(None | str) is str
    assert value_type(float) is float
    assert typed(parse("--epochs", "1.5", "--patience", "3"), TrainConfig) == {"epochs": 1.5, "patience": 3}


def test_help_shows_defaults_choices_and_a_per_cent_sign():
    @dataclass(frozen=True)
    class Odd:
        share: float = field(default=0.5, metadata={"help": "50 % of it", "sym": None, "choices": ()})
        kind: str = field(default="a", metadata={"help": "which", "sym": "X", "choices": ("a", "b")})
        limit: int | None = field(default=None, metadata={"help": "most", "sym": "N", "choices": ()})

    parser = Parser("odd", None)
    add_args(parser, Odd, "odd")
    shown = " ".join(parser.format_help().split())
    assert "--share FLOAT 50 % of it (default: 0.5)" in shown
    assert "--kind a|b which (default: a)" in shown
    assert "--limit N most (default: none)" in shown


def test_help_is_for_users(capsys):
    """The docstring without where to read on in the code."""
    with pytest.raises(SystemExit) as end:
        parse("--help")
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert "What it does.\n" in out
    assert "Read after" not in out


@pytest.mark.parametrize(("argv", "message"), [
    (["--n-layers", "two"], "--n-layers must be an int; got 'two'"),
    (["--n-layers", "1.5"], "--n-layers must be an int; got '1.5'"),
    (["--lr", "a\\1\n"], r"--lr must be a float; got 'a\\1\n'"),
    (["--unknown", "1"], "every flag must be known; got --unknown 1"),
    (["--un\nknown"], "every flag must be known; got --un known"),
    (["--steps"], "--steps must have a value; got none"),
    (["--preset", ""], "--preset must not be empty; got ''"),
    (["--config", ""], "--config must not be empty; got ''"),
    (["--corpus", ""], "--corpus must not be empty; got ''"),
    (["--tokenizer="], "--tokenizer must not be empty; got ''"),
    (["--n-", "3"], "the command line must be valid; got ambiguous option: --n- could match --n-layers, "
                    "--n-heads, --n-kv-heads"),
])
def test_what_does_not_parse_is_refused_in_one_line(argv, message):
    with pytest.raises(CheckError) as refused:
        parse(*argv)
    assert str(refused.value) == f"{message}; see python -m bitnet_ref.x --help"


def test_what_must_be_given_or_stand_alone():
    parser = Parser("x", "")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--a")
    either.add_argument("--b")
    parser.add_argument("--model", required=True)
    with pytest.raises(CheckError, match=r"^--model must be given; got nothing; see x --help$"):
        parser.parse_args([])
    with pytest.raises(CheckError, match=r"^--b must stand without --a; got both; see x --help$"):
        parser.parse_args(["--model", "m", "--a", "1", "--b", "2"])


# --- files --------------------------------------------------------------------------------------------------


def test_toml_and_json_say_the_same(write):
    toml = write("a.toml", 'preset = "tiny"\n[model]\nn_layers = 3\n[train]\nlr = 1\nepochs = 0.5\n')
    tables = {"preset": "tiny", "model": {"n_layers": 3}, "train": {"lr": 1, "epochs": 0.5}}
    assert read_config_file(toml) == tables
    assert read_config_file(write("a.json", json.dumps(tables))) == tables


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.toml", "[modle]\nn_layers = 3", r"a table of .* must be one of model, train; got 'modle'"),
    ("a.toml", "[model]\nlayers = 3", r"a name in \[model\] must be one of vocab_.*; got 'layers'"),
    ("a.toml", "[train]\nn_layers = 3", r"a name in \[train\] must be one of corpus, .*; got 'n_layers'"),
    ("a.toml", "[model]\nn_layers = 3.0", r"model.n_layers must be int; got 3.0; correct the value"),
    ("a.toml", "[model]\nn_layers = true", r"model.n_layers must be int; got True"),
    ("a.toml", "[model]\ntied_embeddings = 1", r"model.tied_embeddings must be bool; got 1"),
    ("a.toml", "[train]\nlr = '1'", r"train.lr must be float; got '1'"),
    ("a.toml", "model = 3", r"\[model\] must be a table; got 3"),
    ("a.toml", "[model\n", r"--config must be valid TOML or JSON; got .*; correct the file"),
    ("a.json", "{", r"--config must be valid TOML or JSON"),
    ("a.json", "[1]", r"a config file must hold tables; got list"),
])
def test_a_bad_file_is_refused(write, name, text, message):
    with pytest.raises(CheckError, match=message):
        read_config_file(write(name, text))


@pytest.mark.parametrize("table", [{"model": {"d_model": None}}, {"train": {"lr": None}},
                                   {"train": {"weight_decay": None}}])
def test_null_is_for_optional_fields_alone(write, table):
    with pytest.raises(CheckError, match=r"must be (int|float); got None"):
        read_config_file(write("a.json", json.dumps(table)))


def test_a_preset_that_is_no_name_is_refused(write):
    with pytest.raises(CheckError, match=r"preset must be"):
        configs(parse("--config", write("a.json", '{"preset": []}')))


def test_a_missing_or_binary_file_is_refused(tmp_path):
    with pytest.raises(CheckError, match=r"--config must name a file; got .*nowhere.toml; give the path"):
        read_config_file(str(tmp_path / "nowhere.toml"))
    with pytest.raises(CheckError, match="--config must name a file"):
        read_config_file(str(tmp_path))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckError, match="--config must be valid TOML or JSON"):
        read_config_file(str(tmp_path / "bytes.toml"))


def test_a_runs_own_echo_reproduces_it(write):
    """config.json of a run holds every field, None included."""
    preset = PRESETS["tiny"]
    echo = write("config.json", json.dumps({"preset": "tiny", "model": asdict(preset.model),
                                            "train": asdict(preset.train)}))
    assert configs(parse("--config", echo)) == ("tiny", *preset)


# --- the order: preset, file, typed -------------------------------------------------------------------------


def test_the_default_is_nano():
    assert configs(parse()) == ("nano", *PRESETS["nano"])


def test_a_file_overrides_the_preset_and_typing_overrides_the_file(write):
    file = write("a.toml", 'preset = "tiny"\n[model]\nn_layers = 3\nd_ff = 96\n[train]\nsteps = 7\nlr = 0.5')
    name, model, train = configs(parse("--config", file, "--d-ff", "80", "--lr", "0.25"))
    tiny = PRESETS["tiny"]
    assert name == "tiny"
    assert (model.n_layers, model.d_ff, model.d_model) == (3, 80, tiny.model.d_model)
    assert (train.steps, train.lr, train.batch) == (7, 0.25, tiny.train.batch)


def test_a_typed_preset_overrides_the_files(write):
    file = write("a.toml", 'preset = "tiny"\n[model]\nn_layers = 3\n')
    name, model, _ = configs(parse("--config", file, "--preset", "nano"))
    assert (name, model.n_layers, model.d_model) == ("nano", 3, PRESETS["nano"].model.d_model)


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(CheckError, match=r"preset must be one of tiny, nano, .*2b4t; got 'huge'"):
        configs(parse("--preset", "huge"))


def test_typed_values_are_checked():
    with pytest.raises(CheckError, match="n_heads must be a multiple of n_kv_heads"):
        configs(parse("--n-kv-heads", "3"))


def test_steps_and_epochs_exclude_each_other():
    with pytest.raises(CheckError, match="a run has --steps or --epochs; got both; leave one out"):
        configs(parse("--steps", "3", "--epochs", "1"))


# --- exit codes ---------------------------------------------------------------------------------------------


def raising(error):
    def command(argv):
        raise error
    return command


def test_a_command_gets_its_arguments_and_gives_its_code(monkeypatch):
    assert run_command(len, ["a", "b"]) == 2
    monkeypatch.setattr("sys.argv", ["program", "x"])
    assert run_command(len) == 1
    assert run_command(lambda argv: DONE, []) == 0


def test_a_broken_rule_is_one_line_and_code_2(capsys):
    assert run_command(raising(CheckError("a must hold; got b; do c")), []) == BAD_ARGUMENTS == 2
    assert capsys.readouterr() == ("", "error: a must hold; got b; do c\n")


def test_control_c_is_code_130(capsys):
    assert run_command(raising(KeyboardInterrupt()), []) == INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_signal_unwinds_unless_somebody_has_decided_about_it():
    """nohup ignores SIGHUP; afterwards everything is as it was."""
    ends = []

    def command(argv):
        try:
            signal.raise_signal(signal.SIGHUP)
        finally:
            ends.append("unwound")
        return DONE

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    try:
        assert run_command(command, []) == 129
        assert ends == ["unwound"]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert run_command(command, []) == DONE
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_closed_pipe_is_not_an_error(monkeypatch):
    streams = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", streams[0])
    monkeypatch.setattr("sys.stderr", streams[1])
    assert run_command(raising(BrokenPipeError()), []) == DONE
    assert all(stream.closed for stream in streams)       # else the interpreter complains at exit


def test_too_little_memory_is_one_line(capsys):
    for error, got in ((MemoryError("Unable to allocate 8 GiB"), "Unable to allocate 8 GiB"),
                       (MemoryError(), "no more memory")):
        assert run_command(raising(error), []) == BAD_ARGUMENTS
        assert capsys.readouterr().err == (f"error: the model and batch must fit in memory; got {got}; "
                                           "use a smaller --batch, --context or model\n")


PRINTING = """
import sys
from bitnet_ref.cli import run_command
sys.exit(run_command(lambda argv: print("né 🙂") or 0))
"""


def printing(**options):
    """A command that prints, as a process of its own."""
    return subprocess.run([sys.executable, "-c", PRINTING], stderr=subprocess.PIPE, check=False, **options)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_under_stdout_is_one_line():
    with open("/dev/full", "w") as full:
        done = printing(stdout=full)
    assert done.returncode == BAD_ARGUMENTS
    assert done.stderr == (b"error: the output must be accessible; got No space left on device; "
                           b"free space, or check the path and its rights\n")


@pytest.mark.skipif(os.name != "posix", reason="needs a pipe nobody reads")
def test_a_closed_pipe_as_a_process():
    reading, writing = os.pipe()
    os.close(reading)
    done = printing(stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (DONE, b"")


@pytest.mark.parametrize(("encoding", "shown"), [("ascii", b"n? ?"), ("cp1252", b"n\xe9 ?")])
def test_a_terminal_without_our_letters_shows_question_marks(encoding, shown):
    done = printing(stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stdout.split(b"\n")[0].strip(), done.stderr) == (DONE, shown, b"")


def test_a_bug_stays_a_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), [])
