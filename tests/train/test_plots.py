"""train/plots: each picture is there, is a PNG of a sensible size, and shows the log it was drawn from."""

import shutil
import struct

import pytest
import tiny
from tiny import own_cache  # noqa: F401

from bitnet_ref.train import log, plots

ALL = ["flips.png", "loss.png", "overview.png", "trits.png", "weights.png"]


def size_of(path):
    """(width, height) in the header of a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def drawn(path, run, ternary=True):
    return [p.name for p in plots.draw(path, run.model.params, ternary)]


@pytest.fixture(scope="module")
def run():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITNET_REF_CACHE", str(tiny.folder() / "cache"))
        return tiny.begin_at_end(tiny.trained())


def test_a_ternary_run_has_five_pictures_and_drawing_again_draws_the_same(run, tmp_path):
    path = tiny.copy(tiny.trained(), tmp_path / "run")
    assert drawn(path, run) == ALL
    before = {name: (path / "pictures" / name).read_bytes() for name in ALL}
    assert drawn(path, run) == ALL
    assert {name: (path / "pictures" / name).read_bytes() for name in ALL} == before
    for name in ALL:
        width, height = size_of(path / "pictures" / name)
        assert 600 <= width <= 4000
        assert 400 <= height <= 3000
        assert (path / "pictures" / name).stat().st_size > 10_000
    assert size_of(path / "pictures/overview.png")[0] > size_of(path / "pictures/loss.png")[0]


def test_the_twin_has_no_pictures_of_trits(tmp_path):
    twin = tiny.train(tmp_path / "twin", linear="full", steps=4)
    assert drawn(twin.folder, twin, ternary=False) == ["loss.png", "overview.png"]


@pytest.fixture
def coarse(monkeypatch):
    """Few dots, for tests that only ask whether it can be drawn."""
    def save(fig, path):
        fig.savefig(path, dpi=10)
        plots.plt.close(fig)

    monkeypatch.setattr(plots, "_save", save)


@pytest.mark.parametrize("lines", [0, 1, 2])
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


def test_the_curves_are_the_log(run, tmp_path, monkeypatch):
    """Read back from the axes, before they are saved and forgotten."""
    axes = {}
    monkeypatch.setattr(plots, "_save", lambda fig, path: axes.setdefault(path.stem, fig.axes))
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
    assert len(axes["overview"]) == 4
    assert axes["trits"][0].get_ylim() == (0, 0.5)             # three thirds: no zoom makes a drama of it


def test_what_the_guard_did_is_marked_on_the_loss(run, tmp_path, monkeypatch):
    """A stroke for each batch skipped, an arrow for each way back, and no line of the curve backwards."""
    axes = {}
    monkeypatch.setattr(plots, "_save", lambda fig, path: axes.setdefault(path.stem, fig.axes))
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


def test_what_is_not_logged_yet_is_said_and_steps_are_whole_numbers(run, tmp_path, monkeypatch):
    """A run shorter than log_every has no line of layers; one of three steps has no step 0.5."""
    axes = {}
    monkeypatch.setattr(plots, "_save", lambda fig, path: axes.setdefault(path.stem, fig.axes))
    for line in log.read(tiny.trained()):
        if line["kind"] != "layers" and line["step"] <= 3:
            log.append(tmp_path, **line)
    drawn(tmp_path, run)
    for name in ("trits", "flips"):
        (text,) = axes[name][0].texts
        assert text.get_text().startswith("not logged yet: run longer than ")
    assert all(tick == int(tick) for tick in axes["loss"][0].get_xticks())


def test_the_page_of_a_twin_is_its_loss_alone(run, tmp_path, monkeypatch):
    axes = {}
    monkeypatch.setattr(plots, "_save", lambda fig, path: axes.setdefault(path.stem, fig.axes))
    shutil.copy(tiny.trained() / log.LOG, tmp_path)
    plots.draw(tmp_path, run.model.params, False)
    assert [ax.get_title() for ax in axes["overview"]] == ["Loss"]
