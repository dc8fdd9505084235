"""Figures of notebook 02: which classes and which images an epoch sees under each sampler."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, StrMethodFormatter

from lmclip.longtail import ClassGroups
from lmclip.plots.style import GROUP_COLOURS

INK, FAINT = "#222222", "#d0d0d0"
# LM-CLIP's sampler stands out, the others differ by dash; readable in grey.
SAMPLER_LINES = {
    "uniform": {"color": "#8c8c8c", "ls": ":", "lw": 1.8},
    "class-aware": {"color": "#5f5f5f", "ls": "--", "lw": 1.4},
    "inverse-frequency": {"color": "#5f5f5f", "ls": "-.", "lw": 1.4},
    "power": {"color": INK, "ls": "-", "lw": 2.2},
}
MANY = 40  # more classes than this, and only every n-th name is written


def draw_class_counts(
    expected: Mapping[str, np.ndarray],
    drawn: np.ndarray,
    counts: np.ndarray,
    class_names: Sequence[str],
    groups: ClassGroups,
    title: str,
) -> Axes:
    """Images per epoch that carry each class, frequent to rare: expected (C,) per sampler, and drawn by the last one.

    ``drawn`` (E, C) holds the class counts of E drawn epochs of the last sampler; ``counts`` (C,) orders the classes.
    """
    _, axis = plt.subplots(figsize=(10, 4.2))
    order = np.argsort(-counts, kind="stable")
    ranks = np.arange(len(order))
    _shade_groups(axis, order, groups)
    for epoch in drawn:
        axis.plot(ranks, np.maximum(epoch[order], 0.7), ".", color=INK, ms=3, alpha=0.5)
    for name, values in expected.items():
        axis.plot(ranks, values[order], label=name, **SAMPLER_LINES[name])
    axis.plot([], [], ".", color=INK, ms=4, label=f"{len(drawn)} epochs drawn, {name}")
    axis.set(yscale="log", ylabel="images per epoch (log)", title=title)
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.legend(loc="lower left", fontsize=9)
    _name_classes(axis, class_names, order)
    return axis


def draw_power_sweep(
    powers: np.ndarray, size_share: np.ndarray, imbalance: np.ndarray, marks: Mapping[str, float], title: str
) -> np.ndarray:
    """Against the power s: effective sample size as a share of all images, and largest over smallest class of an epoch.

    ``marks`` names values of s that get a dot, the first a filled one.

    Returns:
        The two axes.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6))
    for axis, values, below in zip(axes, (size_share, imbalance), (7, -14), strict=True):
        axis.plot(powers, values, color=INK, lw=2)
        for row, (name, power) in enumerate(marks.items()):
            height = np.interp(power, powers, values)
            axis.plot(power, height, "o", color=INK, mfc="w" if row else INK, ms=7)
            place, side = ((-7, -14), "right") if row else ((7, below), "left")
            axis.annotate(name, (power, height), place, textcoords="offset points", ha=side, fontsize=9)
        axis.set(xlabel="power s of the sampler (0 is uniform)", ylim=(0, values.max() * 1.08))
    axes[0].set_ylabel("effective sample size / images")
    axes[0].yaxis.set_major_formatter(PercentFormatter(xmax=1))
    axes[1].set(ylabel="largest / smallest class (log)", yscale="log", ylim=(values.min() * 0.7, values.max() * 1.4))
    axes[1].yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes[1].yaxis.set_major_locator(FixedLocator([1, 2, 5, 10, 20, 50, 100, 200, 500]))
    axes[1].yaxis.set_minor_locator(NullLocator())
    figure.suptitle(title)
    return axes


def draw_repeats(draws: Mapping[str, np.ndarray], title: str) -> Axes:
    """Expected draws per epoch of every image, most drawn first, one line per sampler; both axes logarithmic."""
    _, axis = plt.subplots(figsize=(7.5, 3.8))
    for name, values in draws.items():
        ranked = np.sort(values)[::-1]
        axis.plot(np.arange(1, len(ranked) + 1), ranked, label=name, **SAMPLER_LINES[name])
    axis.set(xscale="log", yscale="log", ylim=(1e-3, None), title=title)
    axis.set(xlabel="images, most drawn first (log)", ylabel="expected draws per epoch (log)")
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.legend(loc="lower left")
    return axis


def draw_company(
    own: np.ndarray,
    company: np.ndarray,
    counts: np.ndarray,
    class_names: Sequence[str],
    groups: ClassGroups,
    title: str,
) -> Axes:
    """Images of each class in an epoch, split by why they are drawn: for this class, or for a rarer one beside it.

    ``own`` and ``company`` (C,) add up to the expected images of a class; ``counts`` (C,) is what a plain epoch shows.
    """
    _, axis = plt.subplots(figsize=(10, 4.2))
    order = np.argsort(-counts, kind="stable")
    ranks = np.arange(len(order))
    colours = np.array(_group_colours(groups, len(order)))[order]
    axis.bar(ranks, own[order], color=colours, width=0.75)
    axis.bar(ranks, company[order], bottom=own[order], color="w", edgecolor=colours, hatch="/////", lw=1, width=0.75)
    axis.plot(ranks, counts[order], "_", color=INK, ms=11, mew=2)
    axis.set(ylabel="images per epoch", title=title)
    notes = ("▬ a plain epoch", "filled: its rarest label is this class", "hatched: drawn for a rarer label beside it")
    for row, note in enumerate(notes):
        axis.text(0.99, 0.95 - 0.08 * row, note, transform=axis.transAxes, ha="right", va="top")
    _name_classes(axis, class_names, order)
    return axis


def draw_epochs(
    drawn: np.ndarray, expected: np.ndarray, spread: np.ndarray, names: Mapping[str, str], title: str
) -> np.ndarray:
    """Images of one class per group in every epoch: drawn (E, G) dots, expected (G,) lines, ± two standard deviations.

    ``names`` maps the G groups to the classes that stand for them.

    Returns:
        One axes per group.
    """
    figure, axes = plt.subplots(len(names), 1, figsize=(8, 1.35 * len(names) + 0.9), sharex=True)
    epochs = np.arange(1, len(drawn) + 1)
    for g, (axis, (group, name)) in enumerate(zip(axes, names.items(), strict=True)):
        colour = GROUP_COLOURS[group]
        axis.axhspan(expected[g] - 2 * spread[g], expected[g] + 2 * spread[g], color=colour, alpha=0.2, lw=0)
        axis.axhline(expected[g], color=colour, lw=1.2)
        axis.plot(epochs, drawn[:, g], "o", color=colour, mec=INK, mew=0.5, ms=4.5)
        axis.set_ylim(expected[g] - 5 * spread[g] - 1, expected[g] + 5 * spread[g] + 1)
        axis.text(1.01, 0.5, f"{name}\n({group})", transform=axis.transAxes, va="center")
    axes[-1].set_xlabel("epoch")
    figure.supylabel("images in the epoch", fontsize=10)
    figure.suptitle(title)
    return axes


def draw_most_drawn(images: np.ndarray, captions: Sequence[str], draws: Sequence[float], title: str) -> np.ndarray:
    """Images (n, H, W, 3) in a row, each with its caption and its expected draws per epoch.

    Returns:
        One axes per image.
    """
    figure, axes = plt.subplots(1, len(images), figsize=(1.9 * len(images), 3.1), squeeze=False)
    for axis, image, caption, times in zip(axes[0], images, captions, draws, strict=True):
        axis.imshow(image, interpolation="none")
        axis.set_axis_off()
        words = caption.removeprefix("a photo of a ").replace(", ", "\n")
        axis.set_title(f"{times:.1f} ×", loc="center")
        axis.text(0.5, -0.05, words, transform=axis.transAxes, ha="center", va="top", fontsize=8)
    figure.suptitle(title)
    return axes[0]


def _shade_groups(axis: Axes, order: np.ndarray, groups: ClassGroups) -> None:
    """A tinted band behind the ranks of each group, named at its top."""
    for group, colour in GROUP_COLOURS.items():
        ranks = np.flatnonzero(np.isin(order, getattr(groups, group)))
        if len(ranks):
            axis.axvspan(ranks[0] - 0.5, ranks[-1] + 0.5, color=colour, alpha=0.13, lw=0)
            place = {"transform": axis.get_xaxis_transform(), "ha": "center", "va": "top", "weight": "bold"}
            axis.text(ranks.mean(), 0.98, group, color=INK, **place)


def _group_colours(groups: ClassGroups, num_classes: int) -> list[str]:
    colours = [FAINT] * num_classes
    for group, colour in GROUP_COLOURS.items():
        for index in getattr(groups, group):
            colours[index] = colour
    return colours


def _name_classes(axis: Axes, class_names: Sequence[str], order: np.ndarray) -> None:
    """Class names under the ranks, every n-th where there are too many."""
    stride = -(-len(order) // MANY)
    names = [class_names[c] for c in order[::stride]]
    axis.set_xticks(np.arange(0, len(order), stride), names, rotation=90, fontsize=9 if len(order) <= 20 else 7.5)
    axis.set_xlim(-0.7, len(order) - 0.3)
    axis.set_xlabel("classes, frequent to rare" + (f" (one in {stride} named)" if stride > 1 else ""))
