"""train/plots: each picture is there, is a PNG of a sensible size, and shows the log it was drawn from."""

import re
import shutil
import struct

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.train import log, plots

OF_EVERY_RUN = ["loss", "ratio", "norm", "rates", "speed"]
OF_TRITS = ["weights", "trits", "flips", "near", "drift"]
ALL = ["loss", *OF_TRITS, *OF_EVERY_RUN[1:]]              # in the order of the page


def size_of(path):
    """(width, height) in the header of a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def drawn(path, run, ternary=True):
    """The names of what was drawn: the SVG elements, beside which lie the PNGs."""
    elements = plots.draw(path, run.model.params, ternary)
    assert {p.stem for p in (path / "pictures").glob("*.png")} in ({*elements, "overview"}, set())
    assert all(e is None or e.startswith("<svg") for e in elements.values())
    return list(elements)


@pytest.fixture(scope="module")
def run():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITNET_REF_CACHE", str(tiny.folder() / "cache"))
        return tiny.begin_at_end(tiny.trained())


def test_each_picture_is_an_image_of_a_sensible_size(run, tmp_path):
    path = tiny.copy(tiny.trained(), tmp_path / "run")
    assert drawn(path, run) == ALL
    files = {name: path / "pictures" / f"{name}.png" for name in (*ALL, "overview")}
    for file in files.values():
        width, height = size_of(file)
        assert 600 <= width <= 4000
        assert 400 <= height <= 3000
        assert file.stat().st_size > 10_000
    assert size_of(files["overview"])[0] > size_of(files["loss"])[0]


def test_drawing_again_draws_the_same(run, tmp_path, monkeypatch):
    """Two pictures stand for all: curves, and a map with its bar of colours."""
    pictures = plots._pictures
    monkeypatch.setattr(plots, "_pictures", lambda *args: {n: pictures(*args)[n] for n in ("loss", "ratio")})
    path = tiny.copy(tiny.trained(), tmp_path / "run")
    elements = plots.draw(path, run.model.params, False)
    before = {file.name: file.read_bytes() for file in (path / "pictures").iterdir()}
    assert plots.draw(path, run.model.params, False) == elements
    assert {file.name: file.read_bytes() for file in (path / "pictures").iterdir()} == before
    assert sorted(before) == ["loss.png", "overview.png", "ratio.png"]


def test_the_twin_has_no_pictures_of_trits(tmp_path):
    twin = tiny.train(tmp_path / "twin", linear="full", steps=4)
    assert drawn(twin.folder, twin, ternary=False) == OF_EVERY_RUN


@pytest.fixture
def coarse(monkeypatch):
    """Few dots, for tests that only ask whether it can be drawn."""
    def save(fig, path):
        fig.savefig(path, dpi=10)
        plots.plt.close(fig)
        return "<svg"

    monkeypatch.setattr(plots, "_save", save)


@pytest.fixture
def axes(monkeypatch):
    """{name of a picture: its axes}, instead of files."""
    kept = {}

    def save(fig, path):
        kept[path.stem] = fig.axes
        plots.plt.close(fig)

    monkeypatch.setattr(plots, "_save", save)
    return kept


@pytest.mark.parametrize("lines", [0, 2])
def test_a_log_of_few_lines_can_be_drawn(lines, run, tmp_path, coarse):
    whole = (tiny.trained() / log.LOG).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / log.LOG).write_text("".join(whole[:lines]), encoding="utf-8")
    assert drawn(tmp_path, run) == ALL


def test_a_log_of_one_line_of_layers_can_be_drawn(run, tmp_path, coarse):
    """No second line to compare trits with, hence no curve of flips."""
    for line in log.read(tiny.trained()):
        if line["kind"] != "layers" or line["step"] == 2:
            log.append(tmp_path, **line)
    assert drawn(tmp_path, run) == ALL


def test_the_curves_are_the_log(run, tmp_path, axes):
    """Read back from the axes, before they are saved and forgotten."""
    shutil.copy(tiny.trained() / log.LOG, tmp_path)
    drawn(tmp_path, run)
    curves = [list(zip(*line.get_data())) for line in axes["loss"][0].get_lines()]
    for kind in ("step", "eval"):
        assert [(x["step"], x["loss"]) for x in log.read(tmp_path, kind)] in curves
    switch = [line for line in axes["loss"][0].get_lines() if "stage 2" in line.get_label()]
    assert [line.get_xdata()[0] for line in switch] == [11]
    flips = {line.get_label(): line.get_data() for line in axes["flips"][0].get_lines()}
    assert len(flips) == 7
    last = log.read(tmp_path, "layers")[-1]["layers"]
    want = (last["layers.0.attn.wq"]["flipped"] + last["layers.1.attn.wq"]["flipped"]) / 2
    assert flips["attn.wq"][1][-1] == pytest.approx(want)
    bars = sum(patch.get_height() for patch in axes["weights"][0].patches)
    assert bars == pytest.approx(1, abs=0.02)
    assert len(axes["overview"]) == 2
    assert axes["trits"][0].get_ylim() == (0, 0.5)             # three thirds: no zoom makes a drama of it


def test_what_the_guard_did_is_marked_on_the_loss(run, tmp_path, axes):
    """A stroke for each batch skipped, an arrow for each way back, and no line of the curve backwards."""
    steps = [1, 2, 3, 4, 3, 4, 5]
    for n, step in enumerate(steps):
        if n == 4:
            log.append(tmp_path, "event", 4, 5, what="skip", why="", loss=None)
            log.append(tmp_path, "event", 2, 6, what="rollback", why="", loss=9.0, **{"from": 4, "to": 2})
        log.append(tmp_path, "step", step, n, loss=5.0 - n / 10, decay=0.0)
    plots.draw(tmp_path, run.model.params, False)
    curve, _, skipped, back = axes["loss"][0].get_lines()
    x, y = curve.get_data()
    assert list(x) == [1, 2, 3, 4, 3, 3, 4, 5]
    assert [n for n, loss in enumerate(y) if loss != loss] == [4]
    assert (list(skipped.get_xdata()), skipped.get_label()) == ([4], "batches skipped: 1")
    assert (list(back.get_xdata()), back.get_label()) == ([4, 2], "rolled back: 1")


def test_what_is_not_logged_yet_is_said_and_steps_are_whole_numbers(run, tmp_path, axes):
    """A run shorter than log_every has no line of layers; one of three steps has no step 0.5."""
    for line in log.read(tiny.trained()):
        if line["kind"] != "layers" and line["step"] <= 3:
            log.append(tmp_path, **line)
    drawn(tmp_path, run)
    for name in ("trits", "flips", "near", "drift", "ratio"):
        (text,) = axes[name][0].texts
        assert text.get_text().startswith("not logged yet: run longer than ")
    assert all(tick == int(tick) for tick in axes["loss"][0].get_xticks())


def test_the_page_of_a_twin_is_its_loss_alone(run, tmp_path, axes):
    shutil.copy(tiny.trained() / log.LOG, tmp_path)
    plots.draw(tmp_path, run.model.params, False)
    assert [ax.get_title() for ax in axes["overview"]] == ["Loss"]


def test_the_pictures_of_the_measures_are_the_log(run, tmp_path, axes):
    shutil.copy(tiny.trained() / log.LOG, tmp_path)
    drawn(tmp_path, run)
    lines, steps = log.read(tmp_path, "layers"), log.read(tmp_path, "step")
    first, last = lines[0]["layers"], lines[-1]["layers"]
    names = "layers.0.ffn.w_up", "layers.1.ffn.w_up"
    curves = {name: {line.get_label(): line.get_ydata() for line in axes[name][0].get_lines()}
              for name in ("near", "drift", "rates")}
    assert curves["near"]["ffn.w_up"][-1] == pytest.approx(sum(last[n]["near"] for n in names) / 2)
    grown = sum(last[n]["scale"] / first[n]["scale"] - 1 for n in names) / 2
    assert curves["drift"]["ffn.w_up"][-1] == pytest.approx(grown)
    assert curves["drift"]["ffn.w_up"][0] == 0
    peak = max(line["lr"] for line in steps)
    assert list(curves["rates"][f"learning rate, of {peak:.2g}"]) == [line["lr"] / peak for line in steps]
    grid = axes["ratio"][0].collections[0].get_array()
    assert grid.shape == (14, 10)                                # 7 matrices of 2 layers, 10 lines
    assert 10 ** grid[-1, -1] == pytest.approx(last["layers.1.ffn.w_down"]["grad_to_weight"])
    assert list(axes["norm"][0].get_lines()[0].get_ydata()) == [line["norm"] for line in steps]
    speeds = list(axes["speed"][0].get_lines()[0].get_ydata())
    assert speeds == [line["tokens"] / line["seconds"] for line in steps]


def test_a_picture_on_a_page_takes_its_ink_from_there_and_asks_nobody(tmp_path):
    fig, ax = plots.plt.subplots(layout="constrained")
    with plots.plt.rc_context(plots.LOOK):
        ax.set_title("A <title> & more", color=plots.INK)
        svg = plots._save(fig, tmp_path / "a.png")
    assert svg.startswith("<svg")
    assert "currentColor" in svg
    assert plots.INK not in svg
    assert "<metadata>" not in svg
    assert "<script" not in svg
    named = set(re.findall(r'="(http[^"]*)"', svg))              # names of vocabularies, not places to ask
    assert named == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
