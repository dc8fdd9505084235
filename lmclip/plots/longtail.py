"""Figures of notebook 01: how a long tail is drawn from a pool, and what several labels per image do to it."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter, ScalarFormatter

from lmclip.longtail import ClassGroups, LongTailBuild
from lmclip.plots.style import GROUP_COLOURS

INK, FAINT = "#222222", "#d0d0d0"
MANY = 40  # more classes than this, and their names no longer fit under bars


def draw_counts(
    counts: np.ndarray, reference: np.ndarray, order: np.ndarray, class_names: Sequence[str], groups: ClassGroups
) -> Axes:
    """Images per class (C,) as bars, in ``order`` (C,), under the Pareto reference (C,) by rank."""
    ordered = counts[order]
    _, axis = plt.subplots(figsize=(10, 4))
    ranks = np.arange(len(order))
    axis.bar(ranks, ordered, color=np.array(_colours(groups, len(order)))[order], width=0.8)
    axis.step(ranks, reference, where="mid", color=INK, lw=1.4)
    axis.annotate("Pareto reference", (ranks[1], reference[1]), (14, 6), textcoords="offset points", color=INK)
    if len(order) <= MANY:
        for rank, count in enumerate(ordered):
            axis.text(rank, count * 1.06, count, ha="center", va="bottom", fontsize=7.5, color=INK, backgroundcolor="w")
    _name_ranks(axis, class_names, order)
    axis.set(yscale="log", ylim=(0.7, reference[0] * 2), ylabel="training images (log)")
    axis.yaxis.set_major_formatter(ScalarFormatter())
    _name_groups(axis, groups)
    met = int((ordered == reference).sum())
    worst = int(np.argmin(ordered / reference))
    axis.set_title(
        f"{met} of {len(order)} classes meet the reference; "
        f"{class_names[order[worst]]} keeps {ordered[worst]} of {reference[worst]}"
    )
    return axis


def draw_walk(build: LongTailBuild, class_names: Sequence[str], groups: ClassGroups, panels: int = 8) -> np.ndarray:
    """Images per class after some visits, first to last: visited classes in colour, those still to come in grey.

    Returns:
        The axes, an array of two rows.
    """
    num_classes = len(build.order)
    visits = np.unique(np.geomspace(1, num_classes, panels).round().astype(int)) - 1
    figure, axes = plt.subplots(2, -(-len(visits) // 2), figsize=(11, 5), sharex=True, sharey=True)
    colours = np.array(_colours(groups, num_classes))[build.order]
    ranks = np.arange(num_classes)
    for axis, visit in zip(axes.flat, visits, strict=False):
        heights = build.trace.counts[visit][build.order]
        axis.bar(ranks, heights, color=np.where(ranks <= visit, colours, FAINT), width=1.0, edgecolor="w", lw=0.3)
        axis.step(ranks, build.reference, where="mid", color=INK, lw=1.1)
        axis.plot(visit, build.reference[visit], "v", color=INK, ms=6, clip_on=False)
        steps = build.trace.action[build.trace.visit == visit]
        moved = f"{steps.sum():+d} images" if len(steps) else "nothing to do"
        axis.set_title(f"visit {visit + 1}: {class_names[build.order[visit]]}, {moved}", fontsize=9.5)
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(0, build.reference[0] * 2)
        axis.yaxis.set_major_formatter(ScalarFormatter())
    for axis in axes.flat[len(visits) :]:
        axis.set_axis_off()
    figure.supxlabel("class, by rank of visit", fontsize=10)
    figure.supylabel("images so far (log)", fontsize=10)
    figure.suptitle("The walk from head to tail: black line the reference, grey the classes still to be visited")
    return axes


def draw_moves(build: LongTailBuild, class_names: Sequence[str]) -> Axes:
    """Images that each visit adds (up) and removes (down)."""
    num_classes = len(build.order)
    added = np.bincount(build.trace.visit[build.trace.action > 0], minlength=num_classes)
    removed = np.bincount(build.trace.visit[build.trace.action < 0], minlength=num_classes)
    _, axis = plt.subplots(figsize=(10, 3.6))
    axis.bar(np.arange(num_classes), added, color="#6f6f6f", width=0.8)
    axis.bar(np.arange(num_classes), -removed, color="w", edgecolor="#6f6f6f", hatch="////", lw=0.8, width=0.8)
    axis.axhline(0, color=INK, lw=0.8)
    axis.text(num_classes - 0.5, added.max() * 0.12, "added", ha="right")
    axis.text(num_classes - 0.5, -removed.max() * 1.25, "removed", ha="right", va="top")
    axis.set(yscale="symlog", ylabel="images moved (symmetric log)", ylim=(-removed.max() * 4 - 1, added.max() * 2))
    axis.yaxis.set_major_formatter(ScalarFormatter())
    _name_ranks(axis, class_names, build.order)
    axis.set_title(
        f"{(added > 0).sum()} of {num_classes} visits add images; {(removed > 0).sum()} remove some, "
        "because earlier classes brought too many"
    )
    return axis


def draw_cooccurrence(matrices: Mapping[str, np.ndarray], class_names: Sequence[str], order: np.ndarray) -> np.ndarray:
    """Conditional co-occurrence P[i, j] of each titled (C, C) matrix, both axes in ``order``, on one colour scale.

    Returns:
        The axes, one per matrix.
    """
    figure, axes = plt.subplots(1, len(matrices), figsize=(5.4 * len(matrices), 5.2), squeeze=False)
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        shown = matrix[np.ix_(order, order)].astype(float)
        np.fill_diagonal(shown, np.nan)  # a class always comes with itself
        image = axis.imshow(shown, vmin=0, vmax=1, cmap="cividis_r")
        axis.set_title(title)
        axis.set_xlabel("comes with class j")
        _name_ranks(axis, class_names, order)
        _name_ranks(axis, class_names, order, vertical=True)
    axes[0, 0].set_ylabel("an image of class i")
    bar = figure.colorbar(image, ax=axes, shrink=0.7, format=PercentFormatter(xmax=1))
    bar.set_label("share of class i's images, P[i, j]")
    return axes[0]


def draw_shortfall(
    build: LongTailBuild, control: LongTailBuild, class_names: Sequence[str], groups: ClassGroups
) -> Axes:
    """Images kept as a share of the reference, class by class, beside a control drawn from one label per image."""
    share = build.counts[build.order] / build.reference
    control_share = control.counts[control.order] / control.reference
    ranks = np.arange(len(share))
    _, axis = plt.subplots(figsize=(10, 3.8))
    colours = np.array(_colours(groups, len(share)))[build.order]
    axis.vlines(ranks, share, 1, color=FAINT, lw=2)
    axis.plot(ranks, control_share, "o", mfc="w", mec=INK, ms=7, label="one label per image (control)")
    axis.scatter(ranks, share, c=colours, s=42, edgecolor=INK, lw=0.6, zorder=3, label="several labels per image")
    axis.set(ylabel="images kept / reference", ylim=(0, 1.25))
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.legend(loc="lower right")
    _name_ranks(axis, class_names, build.order)
    exact = int((control_share == 1).sum())
    axis.set_title(
        f"With one label per image {exact} of {len(share)} classes meet the curve; "
        f"with several, {int((share == 1).sum())} do"
    )
    return axis


def draw_samples(rows: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> np.ndarray:
    """Images with their captions, a row of them for each group: group → ((n, H, W, 3) images, n captions).

    Returns:
        The axes, one row per group.
    """
    columns = max(len(captions) for _, captions in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.75 * columns, 2.3 * len(rows)), squeeze=False)
    for line, (group, (images, captions)) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, image, caption in zip(line, images, captions, strict=False):
            axis.imshow(image)
            axis.set_title(textwrap.fill(caption, 22), fontsize=8, loc="center", weight="normal", y=-0.04, va="top")
        line[0].text(-0.12, 0.5, group, transform=line[0].transAxes, rotation=90, va="center", ha="right",
                     weight="bold", color=GROUP_COLOURS[group])  # fmt: skip
    figure.suptitle("Every image of a rare class is an image of other classes too", x=0.02, ha="left")
    return axes


def _colours(groups: ClassGroups, num_classes: int) -> list[str]:
    """The colour of each class's group, by class index."""
    colours = [FAINT] * num_classes
    for group, colour in GROUP_COLOURS.items():
        for index in getattr(groups, group):
            colours[index] = colour
    return colours


def _name_ranks(axis: Axes, class_names: Sequence[str], order: np.ndarray, vertical: bool = False) -> None:
    """Writes class names along an axis, every n-th where there are too many."""
    stride = -(-len(order) // MANY)
    ticks = np.arange(0, len(order), stride)
    names = [class_names[c] for c in order[::stride]]
    size = 9 if len(order) <= 20 else 7.5
    if vertical:
        axis.set_yticks(ticks, names, fontsize=size)
    else:
        axis.set_xticks(ticks, names, rotation=90, fontsize=size)
        axis.set_xlim(-0.7, len(order) - 0.3)


def _name_groups(axis: Axes, groups: ClassGroups) -> None:
    """Names the colours in the free corner, with the number of classes of each group."""
    for line, (group, colour) in enumerate(GROUP_COLOURS.items()):
        text = f"{group}: {len(getattr(groups, group))} classes"
        place = {"xycoords": "axes fraction", "xytext": (-8, -10 - 16 * line), "textcoords": "offset points"}
        axis.annotate("■ " + text, (1, 1), ha="right", color=colour, weight="bold", **place)
