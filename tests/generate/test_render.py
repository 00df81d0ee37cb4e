"""generate/render: templates run as in transformers; a hostile one ends soon, small and with a reason."""

import io
import json
import os
import time

import pytest

from bitnet_ref.generate import render as module
from bitnet_ref.generate.render import TEMPLATE, TemplateError, render, render_apart

if os.name != "nt":
    import resource

VALUES = {"messages": [{"role": "user", "content": "X"}], "bos_token": "<s>", "eos_token": "</s>",
          "add_generation_prompt": True}


@pytest.mark.parametrize("how", [render, render_apart])
@pytest.mark.parametrize(("template", "text"), [
    ("{{ bos_token }}{% for m in messages %}\n{{ m['role'] }}:{{ m.content }}\n{% endfor %}", "<s>user:X\n"),
    ("  {% if add_generation_prompt %}\n  a\n  {% endif %}\nb", "  a\nb"),
    ("{{ {'a<b': 'é'} | tojson }}", '{"a<b": "é"}'),
    ("{% for i in [1, 2, 3] %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "1"),
    ("{% generation %}a{% endgeneration %}b", "ab"),
    ("{% set a = namespace(n=0) %}{% for i in range(3) %}{% set a.n = a.n + i %}{% endfor %}{{ a.n }}", "3"),
    ("{{ strftime_now('%Y') | length }}", "4"),
    ("{{ missing }}{{ messages[0].missing }}", ""),
])
def test_templates_run_as_in_transformers(how, template, text):
    assert how(template, VALUES) == text


@pytest.mark.oracle
@pytest.mark.parametrize("template", [
    "{% for m in messages %}\n  {{ m.content | tojson(indent=2) }}\n{% endfor %}\n{% generation %}a\n"
    "{% endgeneration %}",
    "{%- for m in messages -%}\n{{ m['content'].strip() }}{% continue %}x\n{%- endfor %}\n"])
def test_transformers_renders_the_same(template):
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    want = utils.render_jinja_template([VALUES["messages"]], chat_template=template)[0][0]
    assert render(template, VALUES) == want


# --- hostile -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("template", "words"), [
    ("{% for i in range(10**9) %}{% endfor %}", "Range too big"),
    ("{{ 'a' * 10**7 }}", "more than 1048576 characters"),
    ("{{ 'a' * 10**10 }}", "512 MiB"),
    ("{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}", "more than 1048576 characters"),
    ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
     "512 MiB"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ cycler.__init__.__globals__.os.system('true') }}", "unsafe"),
    ("{% include '/etc/passwd' %}", "no loader"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"), ("{{ missing.a.b }}", "UndefinedError"),
    ("{{ [] | first | tojson }}", "TypeError"), ("{% bogus %}", "unknown tag"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ("{{ raise_exception('because') }}", "because"),
    ("a" * (TEMPLATE + 1), "a template of"),
])
def test_a_hostile_template_is_refused_with_the_reason(template, words):
    start = time.monotonic()
    with pytest.raises(TemplateError, match=words):
        render_apart(template, VALUES)
    assert time.monotonic() - start < 20


@pytest.mark.slow
@pytest.mark.parametrize("template", [
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 9**(9**(9**9)) }}",
    "{% set x = ('a' * 9999) | list | batch(2) | list %}" * 500 + "{{ ('a' * 9**6) | wordwrap(1) }}"])
def test_a_template_that_does_not_end_is_ended(template):
    start = time.monotonic()
    with pytest.raises(TemplateError, match="no end within 5 s"):
        render_apart(template, VALUES)
    assert time.monotonic() - start < 40


def test_a_process_that_fails_says_how(monkeypatch):
    monkeypatch.setattr(module, "__file__", "nowhere.py")
    with pytest.raises(TemplateError, match=r"ends with code 2: .*nowhere\.py"):
        render_apart("a", VALUES)


@pytest.mark.parametrize(("code", "words"), [
    ("print('no JSON')", "a process that says 'no JSON"),
    ("raise ImportError('jinja2')", "code 1: .*jinja2$"),
    ("import os; os.kill(os.getpid(), 9)", r"no end within 5 s and 512 MiB \(signal 9\)")])
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
def test_a_process_without_an_answer_is_a_reason(code, words, tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(code)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "child.py"))
    with pytest.raises(TemplateError, match=words):
        render_apart("a", VALUES)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such bounds")
@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_system_that_refuses_a_bound_renders_all_the_same(error, monkeypatch, capsys):
    """macOS refuses the bound of memory; the one of time, asked for first, is set."""
    asked = []

    def refuse(bound, most):
        asked.append(bound)
        raise error("not here")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"template": "{{ a }}", "values": {"a": "b"}})))
    module._main()
    assert json.loads(capsys.readouterr().out) == {"text": "b"}
    assert asked == [resource.RLIMIT_CPU, resource.RLIMIT_AS]
