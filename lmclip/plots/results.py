"""Figures of notebook 05: what the records say. All take tables or arrays that were read from records."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from lmclip.plots.style import GROUP_COLOURS, METHOD_LINES
from lmclip.plots.training import PANELS


def draw_main(frame: pd.DataFrame, title: str) -> np.ndarray:
    """mAP of every method, one panel per group: every seed a dot, the mean a bar.

    Args:
        frame: rows of ``records.to_frame`` of *one* protocol.
        title: the finding.

    Returns:
        One axes per panel.
    """
    methods = [m for m in METHOD_LINES if m in set(frame["method"])]
    figure, axes = plt.subplots(1, 4, figsize=(13, 0.42 * len(methods) + 1.5), sharey=True)
    for axis, (metric, name) in zip(axes, PANELS.items(), strict=True):
        for row, method in enumerate(methods):
            values, colour = 100 * frame.loc[frame["method"] == method, metric], METHOD_LINES[method]["color"]
            axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, lw=3, solid_capstyle="butt")
            axis.plot(values, [row] * len(values), "o", color=colour, ms=4, alpha=0.6)
            axis.annotate(f"{values.mean():.1f}", (values.max(), row), (7, 0), textcoords="offset points",
                          va="center", fontsize=8, fontweight="bold" if method == "LM-CLIP" else None)  # fmt: skip
        axis.set(xlabel="mAP (%)", yticks=range(len(methods)), yticklabels=methods)
        axis.set_title(name, color=GROUP_COLOURS.get(name, "black"))
        axis.margins(x=0.2)
        axis.grid(axis="y", lw=0.4, color="#dddddd")
        axis.invert_yaxis() if axis is axes[0] else None
    figure.suptitle(title)
    return axes


def draw_ap_against_count(per_class: pd.DataFrame, methods: list[str], title: str) -> np.ndarray:
    """Per-class AP against training images (log), one panel per method, classes coloured by group.

    Args:
        per_class: columns class, group, images, and one column of AP (fraction, mean over seeds) per method.
        methods: the columns to draw.
        title: the finding.

    Returns:
        One axes per method.
    """
    figure, axes = plt.subplots(1, len(methods), figsize=(4.4 * len(methods), 3.8), sharey=True, squeeze=False)
    for axis, method in zip(axes[0], methods, strict=True):
        for group, rows in per_class.groupby("group"):
            axis.scatter(
                rows["images"], 100 * rows[method], s=26, color=GROUP_COLOURS[group], edgecolor="white", lw=0.5
            )
            axis.axhline(100 * rows[method].mean(), color=GROUP_COLOURS[group], lw=1, ls="--", zorder=0)
        ends = pd.concat([per_class.nsmallest(3, method), per_class.nlargest(2, method)])
        for place, (_, row) in enumerate(ends.iterrows()):
            offset = (5, 3) if place != 4 else (-5, -11)  # the two best often lie side by side
            side = "left" if place != 4 else "right"
            axis.annotate(
                row["class"],
                (row["images"], 100 * row[method]),
                offset,
                textcoords="offset points",
                fontsize=8,
                ha=side,
            )
        axis.set(xscale="log", xlabel="training images of the class", title=method)
        axis.margins(x=0.15)
    axes[0, 0].set_ylabel("test AP (%)")
    for place, (group, colour) in enumerate(GROUP_COLOURS.items()):
        axes[0, -1].text(1.02, 0.95 - 0.08 * place, group, color=colour, transform=axes[0, -1].transAxes, va="top",
                         fontweight="bold")  # fmt: skip
    figure.suptitle(title)
    return axes[0]


def draw_bootstrap(intervals: pd.DataFrame, title: str) -> np.ndarray:
    """Forest plot of mAP differences: rivals as rows, groups as panels, 95 % interval per seed.

    Args:
        intervals: columns rival, seed, metric, difference, low, high (fractions).
        title: the finding.

    Returns:
        One axes per panel.
    """
    rivals = list(dict.fromkeys(intervals["rival"]))
    figure, axes = plt.subplots(1, 4, figsize=(13, 0.55 * len(rivals) + 1.5), sharey=True)
    for axis, (metric, name) in zip(axes, PANELS.items(), strict=True):
        for row, rival in enumerate(rivals):
            part = intervals[(intervals["rival"] == rival) & (intervals["metric"] == metric)]
            places = row + np.linspace(-0.2, 0.2, len(part)) if len(part) > 1 else [row]
            for y, (_, seed) in zip(places, part.iterrows(), strict=True):
                sure = seed["low"] > 0 or seed["high"] < 0
                colour = "#111111" if sure else "#9a9a9a"
                axis.plot([100 * seed["low"], 100 * seed["high"]], [y, y], color=colour, lw=1.6)
                axis.plot(100 * seed["difference"], y, "o", color=colour, ms=4, mfc=colour if sure else "white")
        axis.axvline(0, color="#c8553d", lw=1)
        axis.set(xlabel="LM-CLIP minus rival (mAP points)", yticks=range(len(rivals)), yticklabels=rivals)
        axis.set_title(name, color=GROUP_COLOURS.get(name, "black"))
    axes[0].invert_yaxis()
    figure.suptitle(title)
    return axes


def draw_embedding(points: np.ndarray, group: list[str], title: str, axis: Axes | None = None) -> Axes:
    """A two-dimensional map of image features, one dot per image, coloured by the group of its rarest class.

    Args:
        points: (N, 2) coordinates, for example of t-SNE (no unit).
        group: N group names.
        title: the finding.
        axis: where to draw; a new figure when None.

    Returns:
        The axes.
    """
    axis = axis or plt.subplots(figsize=(5, 5))[1]
    for name, colour in GROUP_COLOURS.items():
        chosen = np.array(group) == name
        axis.scatter(*points[chosen].T, s=7, color=colour, lw=0, alpha=0.8)
    for place, (name, colour) in enumerate(GROUP_COLOURS.items()):
        axis.text(0.98, 0.98 - 0.05 * place, name, color=colour, transform=axis.transAxes, ha="right", va="top",
                  fontweight="bold")  # fmt: skip
    axis.set(xlabel="t-SNE 1", ylabel="t-SNE 2", xticks=[], yticks=[], title=title)
    return axis


def draw_margins(margins: dict[str, np.ndarray], title: str) -> Axes:
    """How far the hardest negative stays below the weakest positive: one box per method over test images.

    Args:
        margins: method → (N,) weakest positive minus hardest negative, in standard deviations of an image's logits.
        title: the finding.

    Returns:
        The axes.
    """
    _, axis = plt.subplots(figsize=(7, 0.45 * len(margins) + 1.3))
    axis.boxplot(list(margins.values()), orientation="horizontal", showfliers=False, widths=0.6,
                 medianprops={"color": "#c8553d", "lw": 2})  # fmt: skip
    axis.axvline(0, color="#9a9a9a", lw=1)
    axis.set(yticklabels=list(margins), title=title,
             xlabel="weakest positive − hardest negative (standard deviations of the image's logits)")  # fmt: skip
    axis.invert_yaxis()
    return axis


def draw_pictures(images: np.ndarray, captions: list[str], title: str, columns: int = 8) -> np.ndarray:
    """Pictures with a line of text below each: (n, H, W, 3) uint8 images and n captions.

    Returns:
        The axes, (rows, columns).
    """
    rows = -(-len(images) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(1.55 * columns, 2.05 * rows + 0.4), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, caption in zip(axes.flat, images, captions, strict=False):
        axis.imshow(image, interpolation="none")
        axis.text(0.5, -0.05, caption, fontsize=8, ha="center", va="top", transform=axis.transAxes)
    figure.suptitle(title)
    return axes
