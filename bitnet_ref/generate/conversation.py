"""A chat: its messages, the window they are read in, and what to do when they outgrow it.

The rule: a prompt leaves room for a reply, of as many tokens as were asked for or a quarter of the context,
whichever is less. When it does not, the oldest exchanges (what a user said, what was answered) are forgotten,
as few as make it half as long as it may be; what the system said stays. A reply that fills the context ends.
Read after: generate/template. Read next: generate/repl.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitnet_ref.checks import CheckError, check
from bitnet_ref.data.atomic import unreadable, whole_file
from bitnet_ref.generate.continuation import Continuation
from bitnet_ref.generate.language_model import LanguageModel
from bitnet_ref.generate.sampling import Sampling
from bitnet_ref.generate.template import ROLES, Message, Template, prompt_ids
from bitnet_ref.generate.window import Window

LARGEST_FILE = 1 << 26       # bytes of a saved chat


class Conversation:
    """Messages so far, and a window that has read them. `forgotten` counts messages dropped for room.

    `say` a text, iterate over the reply, then `answered` (whether it came to its end or not). A reply ends at
    the ids `ends` (None: the model's).
    """

    def __init__(self, model: LanguageModel, template: Template, how: Sampling, tokens: int,
                 stop: Sequence[str] = (), system: str = "", ends: Sequence[int] | None = None) -> None:
        self.model, self.template, self.how, self.tokens = model, template, how, tokens
        self.stop, self.ends = (*template.stop, *stop), model.ends if ends is None else ends
        self.window = Window(model.transformer)
        self.messages: list[Message] = []
        self.asked = Message("user", "")
        self.forgotten = 0
        self.system(system)

    @property
    def room(self) -> int:
        """The longest prompt that leaves room for a reply."""
        context = self.model.cfg.context
        return context - max(1, min(self.tokens, context // 4))

    def system(self, text: str) -> None:
        """Say `text` before everything else, from the next reply on; an empty one says nothing.

        Raises CheckError for a lone surrogate.
        """
        check_text(text)
        rest = [m for m in self.messages if m.role != "system"]
        self.messages = [Message("system", text.strip()), *rest] if text.strip() else rest

    def reset(self) -> None:
        """Forget all but what the system said."""
        self.messages = [m for m in self.messages if m.role == "system"]
        self.forgotten = 0

    def say(self, text: str) -> Continuation:
        """The reply to `text`, to iterate over; it is no part of the chat before it was `answered`.

        Raises CheckError for no text, for one that does not fit, and for a lone surrogate; then nothing is
        forgotten.
        """
        check_text(text)
        check(bool(text.strip()), "a message must have text", repr(text)[:20], "say something")
        drafter = self.model.drafter(self.how)
        self.asked = Message("user", text.strip())
        system = [m for m in self.messages if m.role == "system"]
        rest = self.messages[len(system):]

        def ids(dropped: int) -> list[int]:
            said = [*system, *rest[2 * dropped:], self.asked]
            return prompt_ids(self.template, said, self.model.tokenizer, self.model.first, self.model.ends[0])

        drop, prompt = 0, ids(0)
        if len(prompt) > self.room:
            pairs = len(rest) // 2
            drop = min(pairs, bisect_left(range(pairs), True, key=lambda n: len(ids(n)) <= self.room // 2))
            prompt = ids(drop)
        check(len(prompt) <= self.room, "a message, with what the system says, must have at most "
              f"{self.room} of the {self.model.cfg.context} tokens of the context", len(prompt),
              "shorten it, or ask for shorter replies with --tokens")
        self.messages = [*system, *rest[2 * drop:]]
        self.forgotten += 2 * drop
        tokens = min(self.tokens, self.model.cfg.context - len(prompt))
        return Continuation(self.window, self.model.tokenizer, prompt, tokens, self.how, self.ends, self.stop,
                            drafter=drafter, pace=self.model.pace)

    def answered(self, reply: Continuation) -> None:
        """Keep what was asked and answered; the ids too, where they spell the text, to read nothing twice."""
        spelt = b"".join(map(self.model.tokenizer.piece, reply.ids)).decode("utf-8", "replace")
        same = spelt == reply.text and (self.template.ours or not spelt[:1].isspace())
        ids = tuple(reply.ids) if same and reply.ids else None
        self.messages += [self.asked, Message("assistant", reply.text.strip(), ids)]

    def save(self, path: str | Path) -> None:
        """Write the messages as JSON, whole or not at all."""
        record = [{"role": m.role, "content": m.content} for m in self.messages]
        with whole_file(path) as f:
            f.write((json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))

    def load(self, path: str | Path) -> None:
        """Go on with saved messages. Raises CheckError for a file that is no chat; then nothing changes."""
        self.messages, self.forgotten = _read_messages(path), 0


def check_text(text: str) -> None:
    """Raise CheckError for a lone surrogate, a byte that is no UTF-8 perhaps: no file can have it.

    >>> check_text("half of a pair: \\ud800")
    Traceback (most recent call last):
        ...
    bitnet_ref.checks.CheckError: a message must be Unicode; got the lone surrogate '\\ud800'; type it as
    UTF-8
    """
    lone = next((c for c in text if "\ud800" <= c <= "\udfff"), "")
    check(not lone, "a message must be Unicode", f"the lone surrogate {lone!r}", "type it as UTF-8")


def _read_messages(path: str | Path) -> list[Message]:
    """The messages of a saved chat: system first if at all, then user and assistant in turn."""
    fix = "give a file that /save wrote"
    try:
        size = Path(path).stat().st_size
        check(size <= LARGEST_FILE, f"a chat must have at most {LARGEST_FILE} bytes", f"{size} in {path}",
              fix)
        record: Any = json.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as e:
        raise unreadable(path, e, fix) from None
    except (ValueError, RecursionError) as e:
        raise CheckError(f"{path} must be a chat as JSON; got {str(e)[:100]}; {fix}") from None
    check(isinstance(record, list), f"{path} must hold a list of messages", type(record).__name__, fix)
    for m in record:
        fine = isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str)
        check(fine, "a message must have a role and a content", repr(m)[:80], fix)
        check_text(m["content"])
    messages = [Message(m["role"], m["content"]) for m in record]
    turns = [m.role for m in messages if m.role != "system"]
    check(turns == (["user", "assistant"] * len(turns))[:len(turns)] and len(turns) % 2 == 0
          and "system" not in [m.role for m in messages[1:]],
          "user and assistant must speak in turn, the system first if at all", ", ".join(turns)[:80], fix)
    return messages
