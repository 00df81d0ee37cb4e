"""bench/size: the lines that a reader has before them."""

from bitnet_ref.bench import size
from bitnet_ref.cli import run_command


def test_the_table_adds_up(capsys):
    assert run_command(size.main, []) == 0
    rows = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    table = {name: int(n) for n, name in rows[:-2]}
    assert int(rows[-2][0]) == sum(table.values())
    assert table["train/loop.py"] == len((size.PACKAGE / "train/loop.py").read_bytes().splitlines())


def test_examples_are_not_counted(tmp_path):
    file = tmp_path / "one.py"
    file.write_text('def f():\n    """One.\n    >>> for i in range(1):\n    ...     f()\n    1\n    """\n')
    assert (size.lines(file), size.example_lines(file)) == (6, 3)


def test_the_reading_fits_into_an_afternoon():
    assert 0 < size.reading() <= size.BUDGET
