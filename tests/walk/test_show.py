"""`show` gives the code that runs, and where it stands."""

import html
import inspect
import re

import pytest

from bitnet_ref.bench.ladders.bitlinear_cpu import naive
from bitnet_ref.chain.draft import beginnings
from bitnet_ref.checks import CheckError
from bitnet_ref.layers import rmsnorm, rmsnorm_backward
from bitnet_ref.walk import show, wrapped
from bitnet_ref.walk.show import COLUMNS, Lines


def test_the_source_itself():
    text = repr(show(rmsnorm, rmsnorm_backward))
    for f in (rmsnorm, rmsnorm_backward):
        head, docstring, body = inspect.getsource(f).rstrip().split('"""')
        assert head + '"""' + docstring.partition(">>>")[0].rstrip() in text
        assert body in text
    assert text.startswith("# bitnet_ref/layers/rmsnorm.py, line ")
    line = int(text.partition("line ")[2].partition("\n")[0])
    assert inspect.getsourcelines(rmsnorm)[1] == line


def test_examples_are_left_out():
    """Wherever in a docstring; and where a line is all that is left, it is that line."""
    def one():
        """It says so.
        >>> one()
        1
        """
        return 1

    def two():
        """It says so.

        >>> two()
        ... # and more

        >>> two()
        2

        What else is to be said.
        """
        return ">>> two"

    lines = repr(show(one)).splitlines()[1:]
    assert [line.strip() for line in lines] == ["def one():", '"""It says so."""', "return 1"]
    lines = repr(show(two)).splitlines()[1:]
    said = "def two():", '"""It says so.', "", "What else is to be said.", '"""', 'return ">>> two"'
    assert [line.strip() for line in lines] == [*said]


def test_long_lines_are_broken_and_others_stay():
    text = "short\n\n" + "a word " * 40
    lines = wrapped(text).splitlines()
    assert lines[:2] == ["short", ""]
    assert all(len(line) <= COLUMNS for line in lines)
    assert [line[:4] == "    " for line in lines[2:]] == [False, True, True]
    assert " ".join(" ".join(lines).split()) == " ".join(text.split())
    assert wrapped("    columns  far   apart") == "    columns  far   apart"


def test_of_a_function_with_a_memory():
    assert "def beginnings(" in repr(show(beginnings))


def test_a_notebook_colours_it():
    pytest.importorskip("pygments")
    page = show(rmsnorm)._repr_html_()
    assert html.unescape(re.sub("<[^>]*>", "", page)).strip() == repr(show(rmsnorm))
    assert "color:" in page
    assert "background" not in page


def test_what_numba_compiles_has_the_source_of_its_function():
    text = repr(show(naive))
    assert text.startswith("# bitnet_ref/bench/ladders/bitlinear_cpu.py, line ")
    assert inspect.getsource(naive.py_func).rstrip() in text


def test_lines_stay_lines():
    text = "a < b\n" + 200 * "-"
    assert repr(Lines(text)) == text
    assert "a &lt; b\n---" in Lines(text)._repr_html_()
    assert "overflow-x: auto" in Lines(text)._repr_html_()


def test_a_kernel_of_a_card_has_the_source_of_its_function():
    pytest.importorskip("numba_cuda", reason="CUDA kernels need the extra `cuda`")
    from bitnet_ref.kernels.numba_cuda.launch import Kernel

    kernel = Kernel("rmsnorm", rmsnorm, (), (32,), "80", 64)
    assert repr(show(kernel)) == repr(show(rmsnorm))


@pytest.mark.parametrize("what", [len, 3, "rmsnorm", None])
def test_what_has_no_source(what):
    with pytest.raises(CheckError, match="must be a function"):
        show(what)
