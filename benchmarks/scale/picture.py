"""The curves as one figure: for each its cost above and its peak memory below."""

from __future__ import annotations

from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.scale.curves import Curve, Figures

COLOURS = ("#1f5fa8", "#c8641b")


def series_of(every: Sequence[Figures]) -> dict[str, list[Figures]]:
    """Return the figures of each series, in order."""
    series: dict[str, list[Figures]] = {}
    for figures in every:
        series.setdefault(figures.series, []).append(figures)
    return series


def label_x(axes: Axes, curve: Curve, every: Sequence[Figures]) -> None:
    """Put a mark at each x that was measured and at no other."""
    places = sorted({figures.x for figures in every})
    if places[-1] / places[0] > 2:
        axes.set_xscale("log")
        axes.minorticks_off()
    else:
        axes.margins(x=0.3)
    axes.set_xticks(places, [f"{place:,}" for place in places], fontsize=8)
    axes.set_xlabel(curve.axis)


def draw(measured: Sequence[tuple[Curve, Sequence[Figures]]], path: Path) -> None:
    """Draw the curves into a file whose name says of which kind it is (`.svg`, `.png`, `.pdf`)."""
    with mpl.rc_context({"font.size": 9, "svg.fonttype": "none"}):
        figure = Figure(figsize=(3.3 * len(measured), 4.6), layout="constrained")
        rows = figure.subplots(2, len(measured), squeeze=False, sharex="col")
        for column, (curve, every) in enumerate(measured):
            costs, memory = rows[0][column], rows[1][column]
            for colour, (name, figures) in zip(COLOURS, series_of(every).items(), strict=False):
                x = [each.x for each in figures]
                low = [each.cost - each.least for each in figures]
                high = [each.most - each.cost for each in figures]
                costs.errorbar(
                    x,
                    [each.cost for each in figures],
                    yerr=(low, high),
                    marker="o",
                    markersize=4,
                    capsize=3,
                    color=colour,
                    label=name,
                )
                memory.plot(
                    x,
                    [each.memory / 1e6 for each in figures],
                    marker="o",
                    markersize=4,
                    color=colour,
                )
            if len(series_of(every)) > 1:
                costs.legend(loc="lower right", frameon=False)
            costs.set_title(f"CPU for each {curve.unit}", fontsize=9)
            costs.set_ylabel("\N{MICRO SIGN}s")
            memory.set_title("peak memory of a sidecar", fontsize=9)
            memory.set_ylabel("MB")
            label_x(memory, curve, every)
            for axes in (costs, memory):
                axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.1)
                axes.grid(axis="y", linewidth=0.5, alpha=0.4)
                axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=110)
