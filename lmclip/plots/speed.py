"""The figure of benchmarks/speed.py: what a step and an evaluation cost, with what that grows, and the limit."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, PercentFormatter, StrMethodFormatter

PANELS = {
    "classes": ("a training step by classes (8 images)", "classes"),
    "batch": ("a training step by batch (20 classes)", "images per batch"),
    "images": ("evaluation by images (20 classes)", "images"),
}
LIMIT = ("a step's share of the machine's limit", "classes")
# Dark, middle and light; dashes tell them apart in grey.
WAYS = {"as released": ("#c8553d", "--"), "fp32": ("#1f3b73", "-"), "bf16": ("#d99a2b", "-.")}


def draw_growth(growth: pd.DataFrame, title: str) -> np.ndarray:
    """Seconds against classes, images per batch and images evaluated (logarithmic, ranges over the turns as bars).

    The fourth panel holds the share of the machine's matrix-product rate, measured in the same run and precision, that
    a step reaches: the distance to the limit.

    Args:
        growth: one row per point: panel ("classes", "batch" or "images"), x, way ("as released", "fp32" or "bf16"),
            seconds, fastest, slowest, utilisation (0 to 1; NaN where it was not counted).
        title: the finding.

    Returns:
        (2, 2) axes.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9.5, 7))
    for axis, (panel, (name, label)) in zip(axes.flat, PANELS.items(), strict=False):
        points = growth[growth["panel"] == panel]
        _draw_lines(axis, points, "seconds")
        axis.set(yscale="log", ylabel="seconds", xlabel=label, title=name)
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    _draw_lines(axes[1, 1], growth[growth["panel"] == "classes"], "utilisation")
    axes[1, 1].legend(loc="lower right")
    axes[1, 1].set(ylim=(0, 1.05), ylabel="of the matrix-product rate", title=LIMIT[0], xlabel=LIMIT[1])
    axes[1, 1].yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(title)
    return axes


def _draw_lines(axis: plt.Axes, points: pd.DataFrame, y: str) -> None:
    for way, (colour, dashes) in WAYS.items():
        line = points[points["way"] == way].sort_values("x")
        if line.empty:
            continue
        spread = None if y != "seconds" else [line[y] - line["fastest"], line["slowest"] - line[y]]
        axis.errorbar(line["x"], line[y], spread, color=colour, ls=dashes, marker="o", ms=3, lw=1.6, label=way)
        if y == "seconds":  # where lines keep apart
            last = line.iloc[-1]
            axis.annotate(way, (last["x"], last[y]), (6, 0), textcoords="offset points", color=colour, va="center",
                          fontsize=8)  # fmt: skip
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(sorted(points["x"].unique())))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.margins(x=0.22)
