"""A chat template of a stranger, run where it can do no harm: in a process of its own, with little of all.

A Jinja template is a program. The sandbox of jinja2 takes away what reaches out; the process has a bound of
memory, of time and of what it may say, because a sandbox bounds none of them: `{{ "a" * 10**10 }}`, two loops
inside each other. This file runs by itself: a table as JSON on stdin, the text as JSON on stdout.
Read after: generate/__main__. Read next: generate/template.
"""

import json
import subprocess
import sys
from contextlib import suppress
from typing import Any

SECONDS = 5                  # of a processor for one rendering; it takes milliseconds
MEMORY = 1 << 29             # bytes that the process may address; Python and jinja2 take a tenth
OUTPUT = 1 << 20             # characters of the text, in which each message is a short placeholder
TEMPLATE = 1 << 18           # characters of a template; the longest published have a tenth
BEYOND = f"no end within {SECONDS} s and {MEMORY >> 20} MiB"
START = 20                   # seconds more for the process to start, on a busy machine


class TemplateError(Exception):
    """What the template, or the sandbox it runs in, said."""


def render_apart(template: str, values: dict[str, Any]) -> str:
    """The text of `template` for `values`, from another process. Raises TemplateError with its reason.

    >>> render_apart("{{ name }}!", {"name": "Ada"})
    'Ada!'
    """
    if len(template) > TEMPLATE:
        raise TemplateError(f"a template of {len(template)} characters, {TEMPLATE} are the most")
    said = json.dumps({"template": template, "values": values})
    try:
        done = subprocess.run([sys.executable, "-P", __file__], input=said, capture_output=True,
                              encoding="utf-8", errors="replace", timeout=SECONDS + START, check=False)
        answer = json.loads(done.stdout) if done.returncode == 0 else {"error": _failure(done)}
    except subprocess.TimeoutExpired:
        answer = {"error": BEYOND}
    except ValueError:
        answer = {"error": f"a process that says {done.stdout[:100]!r}"}
    if "text" not in answer:
        raise TemplateError(answer["error"])
    return answer["text"]


def _failure(done: Any) -> str:
    """Why a process ended without an answer: by a signal of the system, beyond its bounds, or by itself."""
    if done.returncode < 0:
        return f"{BEYOND} (signal {-done.returncode})"
    return f"a process that ends with code {done.returncode}: {' '.join(done.stderr.split())[-200:]}"


def render(template: str, values: dict[str, Any]) -> str:
    """The same in this process: for templates of our own. As transformers runs them: blocks leave no empty
    lines, `raise_exception`, `strftime_now`, `tojson` that escapes nothing, break and continue.

    >>> render("{% for word in words %}<{{ word }}>{% endfor %}", {"words": ["a", "b"]})
    '<a><b>'
    """
    from jinja2 import TemplateError as JinjaError
    from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=["jinja2.ext.loopcontrols", _generation()])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    made, size = [], 0
    try:
        for part in environment.from_string(template).generate(**values):
            made.append(part)
            size += len(part)
            if size > OUTPUT:
                raise TemplateError(f"more than {OUTPUT} characters")
    except (JinjaError, SecurityError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError,
            RecursionError) as e:
        raise TemplateError(f"{type(e).__name__}: {e}"[:300]) from None
    return "".join(made)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """jinja2's own escapes < and > for HTML; a model was shown them as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise TemplateError(str(message)[:300])


def _now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)


def _generation() -> type:
    """{% generation %} marks, for training, what an assistant said. Here it is what stands inside."""
    from jinja2.ext import Extension

    def parse(self: Any, parser: Any) -> Any:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return type("Generation", (Extension,), {"tags": {"generation"}, "parse": parse})


def _main() -> None:
    """One table from stdin, one answer to stdout; beyond the bounds the process ends without an answer."""
    if sys.platform != "win32":                            # there: the parent's clock alone
        import resource

        for bound, most in ((resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY)):
            with suppress(ValueError, OSError):            # macOS has the bound of memory by name alone
                resource.setrlimit(bound, (most, most))
    given = json.load(sys.stdin)
    try:
        answer = {"text": render(given["template"], given["values"])}
    except (TemplateError, MemoryError) as e:
        answer = {"error": str(e) or f"more than {MEMORY >> 20} MiB"}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
