"""The pictures of notebooks 06 and 07: a roofline, and where the lanes of a warp read.

Drawn like all others of walk/pictures.
Read after: walk/pictures. Read next: nothing.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bitnet_ref.bench.ladders.bitlinear_cuda import Count
from bitnet_ref.bench.roofline import Machine
from bitnet_ref.kernels.ptx.counts import SECTOR
from bitnet_ref.walk.cpu_kernels import Rate, Rates
from bitnet_ref.walk.gpu_kernels import DELIVERED, ISSUED, Request, requests
from bitnet_ref.walk.pictures import INK, MINUS, PLUS, Picture, finished

APART = 1.5                  # of two neighbouring numbers in the roofline: a factor
WEIGHTS = {"gemv_b3": 5}     # of a byte, where they are not 4
SHOWN = (("naive", "w"), ("coalesced", "w"), ("coalesced", "x"), ("vector_dp4a", "w"))


def roofline(one: Machine, every: Machine, climbed: Sequence[Rates]) -> Picture:
    """Notebook 06: operations a second over operations a byte; the limits as roofs, rungs as points.

    >>> limits = Machine("a machine", (), "", 1, 5e10, 2e11, 2e11, 0.0, "", "", "", "")
    >>> rung = Rate("a rung", 1e-3, n_bytes=1e6, operations=4e6, threads=1, bandwidth=5e10, peak=2e11)
    >>> roofline(limits, limits._replace(threads=2), [Rates((rung,))]).png[1:4]
    b'PNG'
    """
    rates = [rate for some in climbed for rate in some.rates]
    figure = Figure(figsize=(10, 5.4), layout="constrained")
    ax, names = figure.subplots(1, 2, width_ratios=(3, 1))
    x = np.geomspace(0.25, max(r.operations / r.n_bytes for r in rates) * 3, 200)
    for limits, colour in ((one, MINUS), (every, PLUS)):
        for peak, style, what in ((limits.int8, "-", "int8"), (limits.float32, ":", "float32")):
            if peak:
                said = f"{what}, {limits.threads} thread{'s' if limits.threads > 1 else ''}"
                ax.loglog(x, np.minimum(x * limits.bandwidth, peak) / 1e9, style, color=colour, lw=1.4,
                          label=f"{said}: {peak / 1e9:,.0f} Gop/s, {limits.bandwidth / 1e9:.0f} GB/s")
    for i, (rate, label) in enumerate(zip(rates, _apart(rates))):
        at, height = rate.operations / rate.n_bytes, rate.operations / rate.seconds / 1e9
        colour = PLUS if rate.threads > 1 else MINUS
        ax.plot(at, height, "o", color=colour, ms=5)
        ax.plot([at, at * 1.35], [height, label], color=colour, lw=0.5)
        ax.text(at * 1.4, label, str(i + 1), fontsize=9, va="center", color=INK)
    ax.set(title="What each rung makes of this machine", xlabel="operations for each byte",
           ylabel="thousand million operations a second")
    ax.grid(alpha=0.25)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    names.axis("off")
    names.text(0, 1, "\n".join(f"{i + 1}  {rate.name}" for i, rate in enumerate(rates)), va="top", fontsize=9,
               linespacing=1.5, color=INK)
    return finished(figure, "two sloping roofs of memory that become flat roofs of arithmetic, rungs below")


def _apart(rates: Sequence[Rate]) -> list[float]:
    """Heights for the numbers of points, such that those one above the other do not overlap."""
    heights = [r.operations / r.seconds / 1e9 for r in rates]
    near = [round(np.log10(r.operations / r.n_bytes) * 2) for r in rates]
    below: dict[int, float] = {}
    for i in np.argsort(heights):
        heights[i] = below[near[i]] = max(heights[i], below.get(near[i], 0.0) * APART)
    return heights


def warp_reads(counts: dict[str, Count]) -> Picture:
    """Notebook 07: the bytes of one request, sector by sector; and what each rung asks of a card.

    >>> warp_reads({"naive": Count(2.0, 32.0, 8.0, 0.0)}).png[1:4]       # needs numba_cuda
    b'PNG'
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.add_gridspec(2, len(SHOWN), height_ratios=(1.2, 1))
    for i, (name, array) in enumerate(SHOWN):
        request = next(r for r in requests(name) if r.array == array)
        _sectors(figure.add_subplot(grid[0, i]), request, f"{name}: {array}")
    left, right = figure.add_subplot(grid[1, :2]), figure.add_subplot(grid[1, 2:])
    budgets = [ISSUED / (WEIGHTS.get(name, 4) * DELIVERED) for name in counts]
    for ax, values, title, lines in (
            (left, [c.instructions for c in counts.values()], "instructions for each weight", budgets),
            (right, [c.fetched for c in counts.values()], "bytes fetched, of those that are needed",
             [1.0] * len(counts))):
        ax.barh(list(counts), values, color=[PLUS if v <= 1.3 * b else MINUS for v, b in zip(values, lines)])
        for y, (v, line) in enumerate(zip(values, lines)):
            ax.text(1.06 * max(v, line), y, f"{v:.1f}", va="center", fontsize=8)     # no line crosses it
            ax.plot([line, line], [y - 0.5, y + 0.5], color=INK, lw=1, ls="--")
        ax.set(title=title, xscale="log", xlim=(0.8, 1.6 * max(values)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.invert_yaxis()
        ax.tick_params(axis="y", labelsize=8)
    return finished(figure, "a byte of each sector, then whole sectors; instructions and bytes, rung by rung")


def _sectors(ax: Axes, request: Request, title: str) -> None:
    """A column for each sector fetched, a row for each of its bytes, coloured by the lane that reads it."""
    at = request.offsets[:, None] + np.arange(request.n_bytes)
    numbers, column = np.unique(at // SECTOR, return_inverse=True)
    lane = np.full((SECTOR, len(numbers)), np.nan)
    lane[at.ravel() % SECTOR, column.ravel()] = np.repeat(np.arange(len(at)), request.n_bytes)
    ax.set_facecolor("#ececec")
    ax.imshow(lane, aspect="auto", cmap="viridis", vmin=0, vmax=31, origin="lower",
              extent=(0, len(numbers), 0, SECTOR))
    used = np.isfinite(lane).mean()
    ax.set(title=f"{title}\n{len(numbers)} sector{'s' if len(numbers) > 1 else ''}, {used:.0%} used",
           xlim=(0, SECTOR), xticks=(0, 16, 32), yticks=(0, 16, 32), xlabel="sectors fetched")
    ax.axvspan(len(numbers), SECTOR, color="white")
    if request.array == "w" and title.startswith("naive"):
        ax.set_ylabel("byte of the sector")
