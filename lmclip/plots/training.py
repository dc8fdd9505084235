"""Figures of notebook 04: what happened while training. All read the history of run records."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from lmclip.plots.style import GROUP_COLOURS, METHOD_LINES, label_line_ends

PANELS = {"mAP": "all classes", "mAP_head": "head", "mAP_medium": "medium", "mAP_tail": "tail"}


def draw_learning_curves(history: pd.DataFrame, title: str) -> np.ndarray:
    """Test mAP against epoch, one panel per group: mean over seeds as a line, their range as a band.

    Args:
        history: rows of ``records.history_frame``; epoch 0 is the model before training.
        title: the finding.

    Returns:
        One axes per panel.
    """
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.6), sharey=True)
    for axis, (metric, name) in zip(axes, PANELS.items(), strict=True):
        ends = {}
        for method, line in METHOD_LINES.items():
            runs = history[(history["method"] == method)].groupby("epoch")[f"test_{metric}"]
            if runs.ngroups < 2:
                continue
            mean, low, high = (100 * getattr(runs, how)() for how in ("mean", "min", "max"))
            axis.plot(mean.index, mean, **line)
            axis.fill_between(mean.index, low, high, color=line["color"], alpha=0.15, lw=0)
            if mean.notna().any():
                ends[method] = mean.iloc[-1]
        if not ends:
            axis.text(0.5, 0.5, f"no {name} class here", transform=axis.transAxes, ha="center")
        axis.set(xlabel="epoch", xlim=(0, None))
        axis.set_title(name, color=GROUP_COLOURS.get(name, "black"))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("test mAP (%)")
    label_line_ends(axes[-1], ends)
    figure.suptitle(title)
    return axes


def draw_gradient_shares(history: pd.DataFrame, title: str) -> Axes:
    """Gradient norm of LM-CLIP's two weighted terms against epoch (log scale), every seed a line.

    Returns:
        The axes.
    """
    _, axis = plt.subplots(figsize=(7, 3.4))
    names = {"contrastive_gradient_norm": ("contrastive", "#222222"), "label_gradient_norm": ("λ · BAL", "#c8553d")}
    for column, (name, colour) in names.items():
        for _, run in history.groupby("seed"):
            axis.plot(run["epoch"], run[column], color=colour, marker="o", ms=3, lw=1.2)
        last = run[column].iloc[-1]
        axis.annotate(
            name, (run["epoch"].iloc[-1], last), (6, 0), textcoords="offset points", color=colour, va="center"
        )
    axis.set(xlabel="epoch (first batch)", ylabel="gradient norm, all weights", yscale="log", title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.margins(x=0.14)
    return axis


def draw_temperature(history: pd.DataFrame, title: str) -> Axes:
    """exp(logit_scale), the inverse temperature, against epoch: mean over seeds, one line per method.

    Returns:
        The axes.
    """
    _, axis = plt.subplots(figsize=(7, 3.4))
    ends = {}
    for method, line in METHOD_LINES.items():
        runs = history[history["method"] == method].groupby("epoch")["logit_scale"]
        if runs.ngroups > 1:
            axis.plot(runs.mean().index, runs.mean(), **line)
            ends[method] = runs.mean().iloc[-1]
    axis.set(xlabel="epoch", ylabel="exp(logit_scale)", title=title)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_line_ends(axis, ends)
    return axis


def draw_search(trials: pd.DataFrame, title: str) -> Axes:
    """Validation mAP against learning rate, one line per method, the chosen rate marked.

    Args:
        trials: rows of the tuning record: method, learning_rate, validation_mAP (fraction).
        title: the finding.

    Returns:
        The axes.
    """
    _, axis = plt.subplots(figsize=(7, 3.6))
    ends = {}
    for method, line in METHOD_LINES.items():
        rows = trials[(trials["method"] == method) & (trials["learning_rate"] > 0)]
        if rows.empty:
            continue
        rows = rows.groupby("learning_rate", as_index=False)["validation_mAP"].max()  # of the two scorings
        best = rows.loc[rows["validation_mAP"].idxmax()]
        axis.plot(rows["learning_rate"], 100 * rows["validation_mAP"], **line)
        axis.plot(best["learning_rate"], 100 * best["validation_mAP"], "o", color=line["color"], ms=6)
        ends[method] = 100 * rows["validation_mAP"].iloc[-1]
    axis.set(
        xscale="log", xlabel="peak learning rate of AdamW", ylabel="validation mAP (%), better scoring", title=title
    )
    label_line_ends(axis, ends)
    return axis
