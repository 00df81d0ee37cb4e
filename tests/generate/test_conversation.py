"""generate/conversation and generate/repl: what is kept, forgotten and read; lines in, replies out."""

import io
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import small_config, small_params

from bitnet_ref import chat as command
from bitnet_ref.checks import CheckError
from bitnet_ref.cli import run_command
from bitnet_ref.data.tokenizer import train_bpe
from bitnet_ref.generate import repl
from bitnet_ref.generate.continuation import Continuation
from bitnet_ref.generate.conversation import Conversation
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.generate.sampling import Sampling
from bitnet_ref.generate.template import BUILT_IN, Message, Template, prompt_ids
from bitnet_ref.generate.window import Window
from bitnet_ref.kernels import load
from bitnet_ref.model import Transformer

OPS = load("numpy")
TOK = train_bpe(["hello there, good morning\nUser: Assistant: "] * 9, 290)
OWN = Template("own", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}")


def small_chat(context=200, tokens=8, template=BUILT_IN["plain"], seed=0, **given):
    cfg = small_config(vocab_size=TOK.vocab_size, context=context, n_layers=1)
    model = LanguageModel(Transformer(cfg, small_params(cfg, seed, np.float32), OPS), TOK)
    return Conversation(model, template, Sampling(0.7, 20, seed=seed), tokens, **given)


def ask(chat, text):
    reply = chat.say(text)
    made = "".join(reply)
    chat.answered(reply)
    return made


# --- the chat ----------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(seed=st.integers(0, 99), name=st.sampled_from(list(BUILT_IN)))
def test_a_chat_is_what_the_model_says_to_the_whole_of_it(seed, name):
    """With what is kept from turn to turn, or read anew each time: the same prompts and replies."""
    chat = small_chat(seed=seed, template=BUILT_IN[name], system="good")
    for text in ("hello", "morning", "there"):
        ids = prompt_ids(BUILT_IN[name], [*chat.messages, Message("user", text)], TOK, TOK.eos, TOK.eos)
        reply = chat.say(text)
        made = "".join(reply)
        assert reply.prompt == ids
        anew = Continuation(Window(chat.model.transformer), TOK, ids, 8, chat.how, chat.model.ends, chat.stop)
        assert "".join(anew) == made
        chat.answered(reply)


def test_only_what_is_new_is_read():
    chat = small_chat(context=400, template=BUILT_IN["2b4t"])
    first = chat.say("hello")
    "".join(first)
    chat.answered(first)
    second = chat.say("good morning")
    "".join(second)
    assert chat.messages[-1].ids == tuple(first.ids)
    assert first.prefilled == len(first.prompt)
    held = len(first.prompt) + len(first.ids) - 1          # the last token made was not read
    assert second.prefilled == len(second.prompt) - held
    assert chat.window.prefilled == first.prefilled + second.prefilled


def test_the_models_own_template_is_used():
    chat = small_chat(template=OWN)
    assert TOK.decode(chat.say("hello").prompt) == "[user]hello<|endoftext|>"


def test_what_was_not_answered_was_not_said():
    chat = small_chat()
    ask(chat, "hello")
    chat.say("there")
    assert chat.messages[0].content == "hello"
    assert len(chat.messages) == 2


def test_reset_keeps_the_system():
    chat = small_chat(system="good")
    ask(chat, "hello")
    chat.reset()
    assert chat.messages == [Message("system", "good")]
    chat.system("")
    assert chat.messages == []


def test_a_reply_ends_at_the_ids_that_are_given():
    chat = small_chat(template=BUILT_IN["2b4t"], ends=[])
    reply = chat.say("hello")
    assert len("".join(reply)) > 0
    assert (len(reply.ids), reply.reason) == (8, "length")
    third = reply.ids[2]
    again = small_chat(template=BUILT_IN["2b4t"], ends=[third]).say("hello")
    "".join(again)
    assert (again.ids, again.stop_id) == (reply.ids[:reply.ids.index(third)], third)


# --- the context -------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(seed=st.integers(0, 99), context=st.integers(60, 120), system=st.sampled_from(["", "good"]))
def test_the_oldest_exchanges_are_forgotten_and_the_system_stays(seed, context, system):
    chat, said = small_chat(context, seed=seed, system=system), 0
    for n in range(12):
        before = [m for m in chat.messages if m.role != "system"]
        reply = chat.say("hello there"[:3 + n % 8])
        kept = [m for m in chat.messages if m.role != "system"]
        assert kept == before[len(before) - len(kept):]
        assert (len(before) - len(kept)) % 2 == 0
        assert len(reply.prompt) <= chat.room
        if len(kept) < len(before):
            assert len(reply.prompt) <= chat.room // 2 or kept == []
        assert [m.content for m in chat.messages if m.role == "system"] == ([system] if system else [])
        "".join(reply)
        assert len(reply.prompt) + len(reply.ids) <= context
        chat.answered(reply)
        said += 2
    assert chat.forgotten + len([m for m in chat.messages if m.role != "system"]) == said
    assert chat.forgotten > 0


def test_a_message_that_cannot_fit_is_refused_and_nothing_is_forgotten():
    chat = small_chat(100)
    ask(chat, "hello")
    before = list(chat.messages)
    with tiny.refusal("must have at most 92 of the 100 tokens", "shorten it"):
        chat.say("xyz" * 60)
    assert chat.messages == before
    assert chat.forgotten == 0
    ask(chat, "hello")
    with tiny.refusal("a message must have text"):
        chat.say(" \n")


# --- files -------------------------------------------------------------------------------------------------


def test_a_chat_can_be_saved_and_gone_on_with(tmp_path):
    chat, other = small_chat(system="good"), small_chat()
    ask(chat, "héllo")
    chat.save(tmp_path / "a.json")
    other.load(tmp_path / "a.json")
    assert [m[:2] for m in other.messages] == [m[:2] for m in chat.messages]
    assert other.say("there").prompt[:5] == chat.say("there").prompt[:5]


@pytest.mark.parametrize("text", [
    "", "{}", "[1]", '[{"role": "user"}]', '[{"role": "user", "content": "a"}]',
    '[{"role": "tool", "content": "a"}]', "[" * 100000, '[{"role": 1, "content": "a"}]',
    '[{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]',
    '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},'
    ' {"role": "system", "content": ""}]'])
def test_a_file_that_is_no_chat_is_refused(text, tmp_path):
    chat = small_chat()
    (tmp_path / "a.json").write_text(text)
    with tiny.refusal():
        chat.load(tmp_path / "a.json")
    assert chat.messages == []
    with tiny.refusal("nowhere"):
        chat.load(tmp_path / "nowhere")


# --- lines in, replies out ---------------------------------------------------------------------------------


def piped(*lines):
    """A stdin of these lines, text or bytes; a terminal that speaks Latin-1 does not matter to it."""
    data = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
    return io.TextIOWrapper(io.BytesIO(data), "latin-1")


@pytest.fixture
def talk(capsys, monkeypatch):
    """talk(chat, *lines) -> (stdout, stderr)"""
    def run(chat, *lines):
        monkeypatch.setattr(sys, "stdin", piped(*lines))
        repl.talk(chat, print)
        return capsys.readouterr()

    return run


def test_lines_are_answered_in_turn(talk):
    chat, same = small_chat(template=BUILT_IN["2b4t"]), small_chat(template=BUILT_IN["2b4t"])
    want = [ask(same, "hello").lstrip(), ask(same, "there").lstrip()]
    out, err = talk(chat, "hello", "", "there")
    assert out == "".join(w + "\n" for w in want)
    assert err == ""
    assert chat.messages == same.messages


def test_commands(talk, tmp_path):
    chat = small_chat()
    file = tmp_path / "a.json"
    _, err = talk(chat, "/help", "/stats", "hello", "/stats", "/system good", f"/save {file}", "/reset",
                  f"/load {file}", "/quit", "never")
    assert [m.role for m in chat.messages] == ["system", "user", "assistant"]
    for words in ("continue", "forget all", "nothing was said yet", "of 200 in the context",
                  f"3 messages in {file}", f"3 messages from {file}"):
        assert words in err
    assert [m["role"] for m in json.loads(file.read_text())] == ["system", "user", "assistant"]


@pytest.mark.parametrize(("line", "words"), [
    ("/bogus", "a command must be one of those that /help lists; got /bogus"),
    ("/save", "/save must be given a file"), ("/load nowhere/a", "nowhere/a must be a readable file"),
    ("x" * 2000, "a message, with what the system says, must have at most"),
    (b"h\xff\xfe", "a line must be UTF-8; got 'utf-8' codec can't decode byte 0xff"),
    (b"good\\\nh\xff", "a line must be UTF-8"),
    ("/save ~nosuchuser/x", "/save must be given the name of a file; got '~nosuchuser/x' ("),
    ("/load ~nosuchuser/x", "/load must be given the name of a file"),
    ("/save a\0b", "/save must be given the name of a file; got 'a\\x00b' ("),
    ("/load a\0b", r"a\x00b must be a chat as JSON")])
def test_what_is_wrong_is_said_and_the_chat_goes_on(talk, line, words):
    chat = small_chat()
    out, err = talk(chat, line, "hello")
    said = [e for e in err.splitlines() if e != repl.NOT_FOR_CHAT]
    assert len(said) == 1
    assert said[0].startswith(f"error: {words}")
    tiny.assert_three_parts(said[0])
    assert out.count("\n") >= 1
    assert [m.content for m in chat.messages if m.role == "user"] == ["hello"]


def test_what_is_piped_is_utf8_whatever_the_terminal_speaks(talk):
    chat = small_chat()
    talk(chat, "héllo", b"there\r")
    assert [m.content for m in chat.messages if m.role == "user"] == ["héllo", "there"]


def test_a_lone_surrogate_is_refused_where_it_comes_in(talk, tmp_path):
    """A terminal may hand one over, and JSON may spell one: neither could be saved again."""
    chat = small_chat(system="good")
    for come_in in (chat.system, chat.say):
        with tiny.refusal("a message must be Unicode", "\\udcff"):
            come_in("a\udcff")
    with tiny.refusal("a message must be Unicode"):
        small_chat(system="\ud800")
    (tmp_path / "a.json").write_text(json.dumps([{"role": "system", "content": "\ud800"}]))
    with tiny.refusal("a message must be Unicode", "\\ud800"):
        chat.load(tmp_path / "a.json")
    assert chat.messages == [Message("system", "good")]
    chat.save(tmp_path / "b.json")


def test_lines_that_begin_with_two_slashes_and_lines_that_go_on(talk):
    chat = small_chat()
    talk(chat, "//hello", "good\\", "morning", "there\\")
    assert [m.content for m in chat.messages if m.role == "user"] == ["/hello", "good\nmorning", "there"]


def test_that_the_chat_forgets_is_said_once(talk):
    _, err = talk(small_chat(60), *["hello"] * 9)
    assert err.count(repl.FORGOTTEN) == 1


def test_ctrl_c_ends_the_reply_and_not_the_chat(talk, monkeypatch):
    """What has come is kept as the reply; the next line is answered."""
    chat, pieces = small_chat(template=BUILT_IN["2b4t"]), []

    def out(*text, **how):
        pieces.extend(text)
        if len(pieces) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "stdin", piped("hello", "there"))
    repl.talk(chat, out)
    assert len(chat.messages) == 4
    assert chat.messages[1].content == "".join(pieces[:3]).strip()
    assert chat.messages[2].content == "there"


# --- the command -------------------------------------------------------------------------------------------


def test_the_command_talks(capsys, monkeypatch):
    run = tiny.trained()
    capsys.readouterr()
    monkeypatch.setattr(sys, "stdin", piped("Ba", "/quit"))
    arguments = ["--model", str(run), "--tokens", "5", "--temperature", "0", "--backend", "numpy"]
    assert run_command(command.main, arguments) == 0
    out, err = capsys.readouterr()
    assert out.endswith("\n")
    assert repl.NOT_FOR_CHAT in err


@pytest.mark.parametrize(("arguments", "words"), [
    (["--model", "nowhere"], "a model must be a run's folder"), ([], "--model must be given"),
    (["--model", "x", "--tokens", "-1"], "tokens must not be negative"),
    (["--model", "x", "--system", "a\udcff"], "a message must be Unicode"),
    (["--model", "x", "--stop-id", "-1"], "a stop id must lie in"),
    (["--model", "x", "--stop", ""], "a stop string must have"),
    (["--model", "x", "--top-p", "2"], "top_p must lie in"),
    (["--model", "nowhere", "--template", "x"], "--template must be one of"),
    (["--model", "RUN", "--template", "own"], "the model must bring a chat template")])
def test_bad_arguments_are_refused(arguments, words, capsys):
    given = [str(tiny.trained()) if a == "RUN" else a for a in arguments]
    capsys.readouterr()
    assert run_command(command.main, given) == 2
    tiny.assert_three_parts(capsys.readouterr().err, words)


# --- the command as a process: its real stdin --------------------------------------------------------------


def arguments():
    return ["--model", tiny.trained(), "--tokens", "5", "--temperature", "0", "--backend", "numpy"]


def process(**streams):
    return subprocess.Popen([sys.executable, "-m", "bitnet_ref.chat", *map(str, arguments())],
                            env=tiny.environment(), stderr=subprocess.PIPE, **streams)


def test_a_process_says_what_is_no_text_and_goes_on():
    result = subprocess.run([sys.executable, "-m", "bitnet_ref.chat", *map(str, arguments())],
                            input=b"Ba\n\xff\xfe\nBa\n", env=tiny.environment() | {
                                "PYTHONIOENCODING": "utf-8:strict"}, capture_output=True, timeout=300)
    assert result.returncode == 0
    assert result.stdout.count(b"\n") >= 2
    assert result.stderr.count(b"error: a line must be UTF-8") == 1
    assert b"Traceback" not in result.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells close a stream with <&-")
@pytest.mark.parametrize("module", ["chat", "generate"])
def test_a_closed_stdin_is_said_before_a_model_is_loaded(module):
    words = [sys.executable, "-m", f"bitnet_ref.{module}", "--model", "nowhere"]
    words += ["--prompt-file", "-"] if module == "generate" else []
    result = subprocess.run(["/bin/sh", "-c", 'exec "$@" <&-', "sh", *words], env=tiny.environment(),
                            capture_output=True, encoding="utf-8", timeout=300)
    tiny.assert_refused(result, "stdin must be open")


def test_a_library_call_with_a_closed_stdin_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CheckError, match="stdin must be open"):
        repl.talk(small_chat(), print)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_an_interrupt_ends_a_chat_that_waits_on_a_pipe():
    chat = process(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    chat.stdin.write(b"/stats\n")
    chat.stdin.flush()
    while b"nothing was said yet" not in (said := chat.stderr.readline()):
        assert said                                        # not ended; then it waits, outside of any reply
    chat.send_signal(signal.SIGINT)
    try:
        _, err = chat.communicate(timeout=60)
    finally:
        chat.kill()
    assert chat.returncode == 130
    assert err.endswith(b"interrupted\n")
    assert b"Ctrl-D" not in err


@pytest.mark.skipif(os.name == "nt", reason="terminals are POSIX's")
def test_of_a_terminal_only_replies_go_into_a_file(tmp_path):
    """The sign is for who types, who reads stderr then."""
    terminal, theirs = os.openpty()
    with open(tmp_path / "out.txt", "wb") as out:
        chat = process(stdin=theirs, stdout=out)
    os.close(theirs)
    os.write(terminal, b"Ba\n/quit\n")
    _, err = chat.communicate(timeout=300)
    os.close(terminal)
    same = subprocess.run([sys.executable, "-m", "bitnet_ref.chat", *map(str, arguments())], input=b"Ba\n",
                          env=tiny.environment(), capture_output=True, timeout=300)
    assert (tmp_path / "out.txt").read_bytes() == same.stdout != b""
    assert err == same.stderr + b"> > "
