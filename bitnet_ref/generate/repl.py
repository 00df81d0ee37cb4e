"""Lines in, replies out: the loop of the command chat.

Replies go to `out` as results do; what is said about them (the prompt sign, refusals, what was forgotten) to
stderr, so that stdout is the dialogue alone. Where stdin is no terminal it is read line by line, unprompted:
as UTF-8, whatever the terminal speaks; a line that is none is said to be, and left out.
Read after: generate/conversation. Read next: generate/example.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from bitnet_ref.checks import CheckError, check
from bitnet_ref.generate.continuation import LENGTH, Continuation
from bitnet_ref.generate.conversation import Conversation
from bitnet_ref.generate.prompt import stdin

HELP = """/reset        forget all but the system's words
/save FILE    write the chat as JSON
/load FILE    go on with a saved chat
/system TEXT  say TEXT before everything else (nothing: say nothing)
/stats        tokens and speed of the last reply, and how full the context is
/quit         end, as Ctrl-D does
//...         a message that begins with /
Ctrl-C ends a reply. A line that ends in \\ goes on in the next."""
NOT_FOR_CHAT = ("the model brings no chat template: it was perhaps not trained to chat, and is shown a "
                "dialogue of User and Assistant to continue")
FORGOTTEN = "the context is full: the oldest exchanges are forgotten from here on"


def talk(chat: Conversation, out: Callable[..., None]) -> None:
    """Until /quit or the end of input. `out` is called as print is.

    >>> from io import BytesIO, TextIOWrapper
    >>> from unittest.mock import patch
    >>> from bitnet_ref.generate.example import chat
    >>> with patch("sys.stdin", TextIOWrapper(BytesIO(b"Hi\\n/quit\\n"))):       # what a user types
    ...     talk(chat(tokens=3), print)
    :::
    """
    repl = Repl(chat, out)
    if chat.template.name == "plain":
        _note(NOT_FOR_CHAT)
    for line in _lines():
        try:
            if not repl.take(line):
                return
        except CheckError as e:
            _note(f"error: {e}")


class Repl:
    """A chat at a terminal: the last reply, and whether the user knows that the chat forgets."""

    def __init__(self, chat: Conversation, out: Callable[..., None]) -> None:
        self.chat, self.out, self.told = chat, out, False
        self.last: Continuation | None = None

    def take(self, line: str) -> bool:
        """Answer or obey `line`; False when it says to end. Raises CheckError for what cannot be done."""
        word, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match word:
            case "":
                return True
            case "/quit" | "/exit":
                return False
            case "/help":
                _note(HELP)
            case "/reset":
                self.chat.reset()
                self.told = False
            case "/save" | "/load":
                check(bool(rest), f"{word} must be given a file", "none", f"type {word} chat.json")
                self.keep(word, rest)
                _note(f"{len(self.chat.messages)} messages {'in' if word == '/save' else 'from'} {rest}")
            case "/system":
                self.chat.system(rest)
            case "/stats":
                _note(self.stats())
            case _:
                check(word[0] != "/" or word[:2] == "//", "a command must be one of those that /help lists",
                      word[:40], "begin with // to say a text that begins with /")
                self.answer(line.strip().removeprefix("/") if word[:2] == "//" else line)
        return True

    def keep(self, word: str, name: str) -> None:
        """/save or /load the file called `name`; ~ is a home. Raises CheckError for what names no file."""
        try:
            file = Path(name).expanduser()
            (self.chat.save if word == "/save" else self.chat.load)(file)
        except CheckError:
            raise
        except (RuntimeError, ValueError) as e:            # a user who is not there; a zero in the name
            raise CheckError(f"{word} must be given the name of a file; got {name[:80]!r} ({e}); "
                             "give another name") from None

    def answer(self, text: str) -> None:
        """Print the reply to `text` as it comes; Ctrl-C keeps what has come."""
        with suppress(KeyboardInterrupt):
            self.last = reply = self.chat.say(text)
            if self.chat.forgotten and not self.told:
                _note(FORGOTTEN)
                self.told = True
            with suppress(KeyboardInterrupt):
                begun = False
                for piece in reply:
                    shown = piece if begun else piece.lstrip()
                    begun = begun or bool(shown)
                    self.out(shown, end="", flush=True)
            self.chat.answered(reply)
            self.out(flush=True)
            if reply.reason == LENGTH and len(reply.ids) < self.chat.tokens:
                _note("the reply ends where the context does")

    def stats(self) -> str:
        """The last reply in numbers."""
        if self.last is None:
            return "nothing was said yet"
        r = self.last.record()
        asked, made = len(self.last.prompt), len(self.last.ids)
        return (f"read {r['prefill']['tokens']} of {asked} tokens ({_speed(r['prefill'])}), "
                f"made {made} ({_speed(r['decode'])}); "
                f"{asked + made} of {self.chat.model.cfg.context} in the context; "
                f"ended by {self.last.reason}; {self.chat.forgotten} messages forgotten")


def _lines() -> Iterator[str]:
    """Lines of stdin, with a sign and a history at a terminal; a trailing \\ joins a line to the next.

    Ctrl-C at a terminal takes back what was typed; of a pipe it ends the reading.
    """
    terminal = stdin().isatty()
    if terminal:
        with suppress(ImportError):                        # Windows has none
            import readline  # noqa: F401
    held = ""
    while True:
        try:
            line = _typed(". " if held else "> ") if terminal else _piped()
        except EOFError:
            if held:
                yield held
            return
        except UnicodeDecodeError as e:
            _note(f"error: a line must be UTF-8; got {e}; say it again")
            held = ""
            continue
        except KeyboardInterrupt:
            if not terminal:
                raise
            _note("(Ctrl-D or /quit ends the chat)")
            held = ""
            continue
        if line.endswith("\\"):
            held += line[:-1] + "\n"
            continue
        yield held + line
        held = ""


def _typed(sign: str) -> str:
    """A line of the terminal; the sign goes to stderr where stdout is a file. Raises EOFError."""
    if sys.stdout is not None and sys.stdout.isatty():
        return input(sign)
    print(sign, end="", file=sys.stderr, flush=True)
    return _line(sys.stdin.readline())


def _piped() -> str:
    """A line of UTF-8. Raises EOFError, and UnicodeDecodeError for a line that is none."""
    return _line(sys.stdin.buffer.readline().decode("utf-8"))


def _line(read: str) -> str:
    if not read:
        raise EOFError
    return read.rstrip("\r\n")


def _speed(rate: dict) -> str:
    speed = rate["tokens_per_second"]
    return "at once" if speed is None else f"{speed:,.0f} tokens/s"


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
