"""The figure of benchmarks/speed.py: what a step costs, and with what that grows."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

PANELS = {
    "classes": ("a step by classes (8 images)", "classes"),
    "images": ("a step by images (20 classes)", "images per batch"),
    "texts": ("the text tower alone", "texts, labels and captions"),
}
# Dark, middle and light; dashes tell them apart in grey.
WAYS = {"as released": ("#c8553d", "--"), "fp32": ("#1f3b73", "-"), "bf16": ("#d99a2b", "-.")}


def draw_growth(growth: pd.DataFrame, title: str) -> np.ndarray:
    """Seconds against classes, images per batch and texts; both axes logarithmic, ranges over the turns as bars.

    Args:
        growth: one row per point: panel ("classes", "images" or "texts"), x, way ("as released", "fp32" or "bf16"),
            seconds, fastest, slowest.
        title: the finding.

    Returns:
        One axes per panel.
    """
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.8), sharey=True)
    for axis, (panel, (name, label)) in zip(axes, PANELS.items(), strict=True):
        points = growth[growth["panel"] == panel]
        for way, (colour, dashes) in WAYS.items():
            line = points[points["way"] == way].sort_values("x")
            if line.empty:
                continue
            spread = [line["seconds"] - line["fastest"], line["slowest"] - line["seconds"]]
            axis.errorbar(line["x"], line["seconds"], spread, color=colour, ls=dashes, marker="o", ms=3, lw=1.6)
            last = line.iloc[-1]
            axis.annotate(way, (last["x"], last["seconds"]), (6, 0), textcoords="offset points", color=colour,
                          va="center", fontsize=8)  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel=label, title=name)
        axis.xaxis.set_major_locator(FixedLocator(sorted(points["x"].unique())))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.margins(x=0.22)
    axes[0].set_ylabel("seconds, forwards and backwards")
    figure.suptitle(title)
    return axes
