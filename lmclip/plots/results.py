"""Figures of notebook 05: what the records say. All take tables or arrays that were read from records."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lmclip.plots.style import GROUP_COLOURS, METHOD_LINES
from lmclip.plots.training import PANELS
from lmclip.published import HEADLINE, Band

OTHER_METHOD = {"color": "#777777"}  # of a method that has no line of its own in METHOD_LINES
AUTHORS, OURS = "#111111", "#c8553d"  # whose run a mark is; shapes tell them apart in grey


def draw_main(frame: pd.DataFrame, title: str) -> np.ndarray:
    """mAP of every method, one panel per group: every seed a dot, the mean a bar.

    Args:
        frame: rows of ``records.to_frame`` of *one* protocol.
        title: the finding.

    Returns:
        One axes per panel.
    """
    methods = list(dict.fromkeys(frame["method"]))
    figure, axes = plt.subplots(1, 4, figsize=(13, 0.42 * len(methods) + 1.5), sharey=True)
    for axis, (metric, name) in zip(axes, PANELS.items(), strict=True):
        for row, method in enumerate(methods):
            values = 100 * frame.loc[frame["method"] == method, metric].dropna()
            colour = METHOD_LINES.get(method, OTHER_METHOD)["color"]
            if values.empty:
                continue
            axis.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, lw=3, solid_capstyle="butt")
            axis.plot(values, [row] * len(values), "o", color=colour, ms=4, alpha=0.6)
            axis.annotate(f"{values.mean():.1f}", (values.max(), row), (7, 0), textcoords="offset points",
                          va="center", fontsize=8, fontweight="bold" if method == "LM-CLIP" else None)  # fmt: skip
        axis.set(xlabel="mAP (%)", yticks=range(len(methods)), yticklabels=methods)
        axis.set_title(name, color=GROUP_COLOURS.get(name, "black"))
        axis.margins(x=0.2)
        axis.grid(axis="y", lw=0.4, color="#dddddd")
        axis.invert_yaxis() if axis is axes[0] else None
        _say_if_empty(axis, frame[metric])
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
                rows["images"].clip(lower=0.5), 100 * rows[method], s=26, color=GROUP_COLOURS[group],
                edgecolor="white", lw=0.5,
            )  # fmt: skip
            axis.axhline(100 * rows[method].mean(), color=GROUP_COLOURS[group], lw=1, ls="--", zorder=0)
        ends = pd.concat([per_class.nsmallest(3, method), per_class.nlargest(2, method)])
        for place, (_, row) in enumerate(ends.iterrows()):
            offset = (5, 3) if place != 4 else (-5, -11)  # the two best often lie side by side
            side = "left" if place != 4 else "right"
            axis.annotate(
                row["class"],
                (max(row["images"], 0.5), 100 * row[method]),
                offset,
                textcoords="offset points",
                fontsize=8,
                ha=side,
            )
        none = " (none: at 0.5)" if (per_class["images"] == 0).any() else ""  # a small sample may lack a class
        axis.set(xscale="log", xlabel=f"training images of the class{none}", title=method)
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
        _say_if_empty(axis, intervals.loc[intervals["metric"] == metric, "difference"])
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


def draw_author_runs(
    runs: pd.DataFrame, bands: dict[str, Band], peers: dict[str, float], own: pd.DataFrame, title: str,
    clean_rule: str, caveat: str = "",
) -> Axes:  # fmt: skip
    """The authors' logged runs by configuration, the band that a rerun should fall into, and our own runs.

    Args:
        runs: rows of ``published.logged_runs`` (percent).
        bands: protocol → ``published.Band``.
        peers: name → published mAP (percent), drawn as a line.
        own: columns configuration, method, protocol, mAP (percent), one row per run; may be empty.
        title: the finding.
        clean_rule: how our clean protocol chose the epoch, for example "last epoch".
        caveat: what keeps ours from being compared; they are then written at the edge instead of drawn to scale.

    Returns:
        The axes.
    """
    strips = _strips(runs, own[own["configuration"] == HEADLINE] if caveat else own)
    heights = np.array([1.0 if "protocol" in strip else 1 + 0.06 * len(strip) for _, strip in strips])
    ends = np.cumsum(heights)
    figure, axis = plt.subplots(figsize=(10, 0.3 * ends[-1] + 2))
    for (_, strip), end, height in zip(strips, ends, heights, strict=True):
        if "protocol" not in strip:
            _draw_strip(axis, strip, end - height / 2 + (height - 0.4) * np.linspace(-0.5, 0.5, len(strip) + 2)[1:-1])
        elif caveat:
            told = " and ".join(f"{v:.1f} {p}" for p, v in strip.groupby("protocol")["mAP"].mean().items())
            axis.text(0.01, end - 0.5, f"◂ {told} ({caveat}: not comparable)", va="center", fontsize=8, color=OURS,
                      transform=axis.get_yaxis_transform())  # fmt: skip
        else:
            for protocol, part in strip.groupby("protocol"):
                axis.plot(part["mAP"], np.full(len(part), end - 0.5), **_mark("D", OURS, protocol == "clean"))
    for name, value in peers.items():
        axis.axvline(value, color="#777777", lw=1, ls=":")
        axis.text(value, 1.01, f"{name} {value:.1f}", transform=axis.get_xaxis_transform(), fontsize=8, ha="center")
    rows = sum(1 for _, strip in strips if (strip["configuration"] == HEADLINE).all())
    bands = [_draw_band(axis, protocol, band, ends[rows - 1]) for protocol, band in bands.items()]
    axis.set(yticks=ends - heights / 2, yticklabels=[name for name, _ in strips], ylim=(ends[-1], 0),
             xlabel="mAP (%) on the test list")  # fmt: skip
    for label in axis.get_yticklabels():
        label.set_color(OURS if label.get_text().startswith("ours") else "black")
    for end in ends[:-1]:
        axis.axhline(end, color="#dddddd", lw=0.5, zorder=0)
    marks = {"authors, best epoch on the test list": ("o", AUTHORS, False), "authors, last epoch": ("o", AUTHORS, True)}
    if len(own) and not caveat:
        marks |= {"ours, best-on-test": ("D", OURS, False), f"ours, clean ({clean_rule})": ("D", OURS, True)}
    handles = [axis.plot([], [], **_mark(*mark), label=name)[0] for name, mark in marks.items()]
    figure.legend(handles=[*bands, *handles], loc="outside lower center", ncols=len(handles) // 2 + 1, fontsize=8)
    figure.suptitle(title)
    return axis


def _strips(runs: pd.DataFrame, own: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Rows from top to bottom: LM-CLIP, then by their highest run; below each, our methods that repeat it."""
    strips = []
    highest = runs.groupby("configuration")["mAP"].max().sort_values(ascending=False)
    for name in sorted(highest.index, key=lambda name: name != HEADLINE):
        title = f"{name} (LM-CLIP)" if name == HEADLINE else name
        strips.append((title, runs[runs["configuration"] == name].sort_values("mAP", ascending=False)))
        mine = own[own["configuration"] == name]
        strips += [(f"ours: {method}", mine[mine["method"] == method]) for method in dict.fromkeys(mine["method"])]
    return strips


def _draw_strip(axis: Axes, strip: pd.DataFrame, places: np.ndarray) -> None:
    axis.hlines(places, strip["last_mAP"], strip["mAP"], color="#9a9a9a", lw=0.8)
    axis.plot(strip["last_mAP"], places, **_mark("o", AUTHORS, True))
    axis.plot(strip["mAP"], places, **_mark("o", AUTHORS, False))


def _mark(marker: str, colour: str, hollow: bool) -> dict:
    return {"marker": marker, "ls": "none", "ms": 6 if marker == "D" else 4, "color": colour,
            "mfc": "white" if hollow else colour}  # fmt: skip


def _draw_band(axis: Axes, protocol: str, band: Band, height: float) -> Rectangle:
    """The band behind the first rows, which are LM-CLIP's; no other configuration is held against it."""
    looks = {"best-on-test": {"color": "#d0d0d0"}, "clean": {"fc": "none", "ec": "#a5a5a5", "hatch": "////"}}
    words = {"best-on-test": "best epoch on the test list", "clean": "last epoch"}
    corner, width = (band.centre - band.half_width, 0), 2 * band.half_width
    return axis.add_patch(Rectangle(corner, width, height, lw=0, zorder=0, **looks[protocol],
                                    label=f"to expect of LM-CLIP, {words[protocol]}: {band}"))  # fmt: skip


def _say_if_empty(axis: Axes, values: pd.Series) -> None:
    """Words in place of an empty panel: a small test set may hold no class of a group."""
    if values.isna().all():
        axis.text(0.5, 0.5, "no such class in\nthese test images", ha="center", va="center", transform=axis.transAxes,
                  fontsize=8, color="#777777", bbox={"fc": "white", "ec": "none"})  # fmt: skip
        axis.set_xticks([])
