"""Figures of notebook 01: how a long tail is drawn from a pool, and what several labels per image do to it."""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter

from lmclip.longtail import ClassGroups, LongTailBuild
from lmclip.plots.style import GROUP_COLOURS

INK, FAINT = "#222222", "#d0d0d0"
PLAIN = FuncFormatter(lambda value, _: f"{abs(value):g}")
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
    axis.annotate("Pareto reference", (ranks[1], reference[1]), (14, 4), textcoords="offset points", color=INK)
    if len(order) <= MANY:
        for rank, count in enumerate(ordered):
            ink = INK if order[rank] in groups.tail else "w"
            axis.text(rank, count * 0.9, count, ha="center", va="top", fontsize=8, color=ink,
                      rotation=0 if len(order) <= 20 else 90)  # fmt: skip
    _name_ranks(axis, class_names, order)
    axis.margins(x=0.01)
    axis.set(yscale="log", ylim=(0.7, reference[0] * 2), ylabel="training images (log)")
    axis.yaxis.set_major_formatter(PLAIN)
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
    # Closer together at the head, where a visit moves most.
    visits = np.unique((np.linspace(0, 1, panels) ** 1.5 * (num_classes - 1)).round().astype(int))
    figure, axes = plt.subplots(2, -(-len(visits) // 2), figsize=(11, 5), sharex=True, sharey=True)
    colours = np.array(_colours(groups, num_classes))[build.order]
    ranks = np.arange(1, num_classes + 1)
    for axis, visit in zip(axes.flat, visits, strict=False):
        heights = build.trace.counts[visit][build.order]
        axis.bar(ranks, heights, color=np.where(ranks <= visit + 1, colours, FAINT), width=1.0, edgecolor="w", lw=0.3)
        axis.step(ranks, build.reference, where="mid", color=INK, lw=1.1)
        axis.plot(visit + 1, build.reference[visit], "v", color=INK, ms=6, clip_on=False)
        steps = build.trace.action[build.trace.visit == visit]
        moved = f"{steps.sum():+d} images".replace("-", "−") if len(steps) else "nothing to do"
        axis.set_title(f"visit {visit + 1}: {class_names[build.order[visit]]}, {moved}", fontsize=9.5)
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(0, build.reference[0] * 2)
        axis.yaxis.set_major_formatter(PLAIN)
    for axis in axes.flat[len(visits) :]:
        axis.set_axis_off()
    figure.supxlabel("class, by rank of visit", fontsize=10)
    figure.supylabel("images so far (log)", fontsize=10)
    first = axes.flat[0]
    first.annotate("reference", (num_classes * 0.3, build.reference[int(num_classes * 0.3)]), (10, 12),
                   textcoords="offset points", fontsize=9, color=INK)  # fmt: skip
    first.text(num_classes * 0.55, 0.4, "not visited yet", ha="center", fontsize=9, color=INK)
    from_here = build.trace.visit[build.trace.action > 0].max() + 2  # the visit after the last that added, from 1
    figure.suptitle(
        f"From visit {from_here} of {num_classes} on, no class lacks images when its turn comes"
        if from_here <= num_classes
        else "The walk from head to tail"
    )
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
    axis.yaxis.set_major_formatter(PLAIN)
    _name_ranks(axis, class_names, build.order)
    axis.margins(x=0.01)
    axis.set_title(
        f"{(added > 0).sum()} of {num_classes} visits add images; {(removed > 0).sum()} remove some, "
        "because earlier classes brought too many"
    )
    return axis


def draw_cooccurrence(
    matrices: Mapping[str, np.ndarray], class_names: Sequence[str], order: np.ndarray, groups: ClassGroups
) -> np.ndarray:
    """Conditional co-occurrence P[i, j] of each titled (C, C) matrix, both axes in ``order``, on one colour scale.

    Returns:
        The axes, one per matrix.
    """
    size = (1.5 + 4.6 * len(matrices), 5.8)
    figure, axes = plt.subplots(1, len(matrices), figsize=size, squeeze=False, layout="compressed")
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        shown = matrix[np.ix_(order, order)].astype(float)
        np.fill_diagonal(shown, np.nan)  # a class always comes with itself
        image = axis.imshow(shown, vmin=0, vmax=1, cmap="Blues")
        axis.set(title=title, xlabel="also shows class j", facecolor=FAINT)
        _name_ranks(axis, class_names, order)
        _name_ranks(axis, class_names, order, vertical=axis is axes[0, 0])
    axes[0, 0].set_ylabel("of the images with class i")
    for axis in axes[0, 1:]:
        axis.set_yticks([])
    bar = figure.colorbar(image, ax=axes, shrink=0.7, format=PercentFormatter(xmax=1))
    bar.set_label("share, P[i, j]")
    shares = [f"{matrix[groups.tail, order[0]].mean():.0%} ({title})" for title, matrix in matrices.items()]
    figure.suptitle(f"Images of a tail class that also show {class_names[order[0]]}: {', '.join(shares)}")
    return axes[0]


def draw_shortfall(build: LongTailBuild, class_names: Sequence[str], groups: ClassGroups) -> Axes:
    """How far later visits moved each class off the reference that its own visit had met, by who was visited."""
    num_classes = len(build.order)
    # (C, C): change of the class at rank k during visit v, the later visits only.
    changes = np.triu(np.diff(build.trace.counts, axis=0, prepend=0)[:, build.order].T, k=1) / build.reference[:, None]
    _, axis = plt.subplots(figsize=(10, 3.8))
    ups, downs, ranks = np.zeros(num_classes), np.zeros(num_classes), np.arange(num_classes)
    for group, colour in GROUP_COLOURS.items():
        change = changes[:, np.isin(build.order, getattr(groups, group))]
        up, down = change.clip(min=0).sum(axis=1), change.clip(max=0).sum(axis=1)
        axis.bar(ranks, up, bottom=ups, color=colour, width=0.8, edgecolor="w", lw=0.5)
        axis.bar(ranks, down, bottom=downs, color=colour, width=0.8, edgecolor="w", lw=0.5)
        ups, downs = ups + up, downs + down
    axis.plot(ranks, ups + downs, "D", color="w", mec=INK, ms=5, label="where the class ends")
    axis.axhline(0, color=INK, lw=1)
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axis.set_ylabel("moved by later visits\n(share of the reference)")
    handles = [Patch(color=colour, label=f"visits to {group} classes") for group, colour in GROUP_COLOURS.items()]
    axis.legend(handles=[*handles, *axis.get_legend_handles_labels()[0]], loc="lower right", ncols=2)
    _name_ranks(axis, class_names, build.order)
    axis.margins(x=0.01, y=0.08)
    axis.use_sticky_edges = False
    met = int((build.trace.counts[ranks, build.order] == build.reference).sum())
    lost = {
        group: changes.clip(max=0)[:, np.isin(build.order, getattr(groups, group))].sum() for group in GROUP_COLOURS
    }
    most = min(lost, key=lost.get)
    axis.set_title(f"{met} of {num_classes} visits meet their reference; later visits, most to {most} classes, undo it")
    return axis


def draw_samples(rows: Mapping[str, tuple[np.ndarray, Sequence[str]]], title: str) -> np.ndarray:
    """Images with their captions, a row of them for each group: group → ((n, H, W, 3) images, n captions).

    Returns:
        The axes, one row per group.
    """
    columns = max(len(captions) for _, captions in rows.values())
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.75 * columns, 2.2 * len(rows)), squeeze=False)
    for line, (group, (images, captions)) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_axis_off()
        for axis, image, caption in zip(line, images, captions, strict=False):
            axis.imshow(image, interpolation="none")
            axis.text(
                0.5, -0.04, textwrap.fill(caption, 24), transform=axis.transAxes, ha="center", va="top", fontsize=8
            )
        line[0].text(-0.12, 0.5, group, transform=line[0].transAxes, rotation=90, va="center", ha="right",
                     weight="bold", color=GROUP_COLOURS[group])  # fmt: skip
    figure.suptitle(title)
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


def _name_groups(axis: Axes, groups: ClassGroups) -> None:
    """Names the colours, with the number of classes of each group."""
    labels = {group: f"{group}: {len(getattr(groups, group))} classes" for group in GROUP_COLOURS}
    axis.legend(handles=[Patch(color=colour, label=labels[group]) for group, colour in GROUP_COLOURS.items()])
