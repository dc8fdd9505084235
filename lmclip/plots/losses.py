"""Figures of notebook 03: what each loss weighs and where it pulls. Every curve is computed by the module that trains.

A loss is handed in as a module with ``reduction="none"``; its value and its derivative come from calling it and from
autograd, never from a formula written again here.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import torch
from ipywidgets import FloatSlider, Image, VBox
from matplotlib.axes import Axes
from torch import Tensor, nn

from lmclip.plots.style import GROUP_COLOURS

PROBABILITIES = torch.linspace(0.002, 0.998, 499, dtype=torch.float64)
INK, FAINT = "#222222", "#b4b4b4"
LINE = {1: "-", 0: "--"}  # a positive is a solid line, a negative a dashed one
KIND = {1: "positive, y = 1", 0: "negative, y = 0"}
P_LABEL = "probability p = σ(x)"
FORCE_LABEL = "gradient ∂L/∂x (per element)"


def loss_curve(
    loss: nn.Module, target: int, p: Tensor = PROBABILITIES, column: int = 0, num_classes: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative ∂L/∂x of one class's term at the logits x = log(p / (1 − p)): two arrays like ``p``.

    ``loss`` maps (B, C) logits and targets to (B, C) terms, each from its own logit alone (no batch maximum).
    """
    logits = torch.zeros(len(p), num_classes, dtype=p.dtype)
    targets = torch.zeros_like(logits)
    logits[:, column], targets[:, column] = torch.logit(p), target
    logits.requires_grad_()
    terms = loss(logits, targets)[:, column]
    (gradient,) = torch.autograd.grad(terms.sum(), logits)
    return terms.detach().numpy(), gradient[:, column].numpy()


def draw_step(
    after: nn.Module, before: nn.Module | None, names: Sequence[str], title: str, column: int = 0, num_classes: int = 1
):
    """Loss and gradient of one class against p, of ``after`` in black and of ``before`` in grey; names likewise.

    Returns:
        The two axes: loss, gradient.
    """
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.3))
    for loss, colour, width in ((before, FAINT, 2.2), (after, INK, 1.6)):
        for target in (1, 0) if loss is not None else ():
            for axis, values in zip(
                axes, loss_curve(loss, target, column=column, num_classes=num_classes), strict=True
            ):
                axis.plot(PROBABILITIES, values, LINE[target], color=colour, lw=width)
    axes[0].set(xlabel=P_LABEL, ylabel="loss L (per element)", ylim=(0, 4))
    axes[1].set(xlabel=P_LABEL, ylabel=FORCE_LABEL)
    axes[1].axhline(0, color=FAINT, lw=0.6, zorder=0)
    _name_kinds(axes[1])
    _name_lines(axes[0], names if before is not None else names[:1])
    figure.suptitle(title)
    return axes


def draw_classes(losses: Mapping[str, nn.Module], columns: Mapping[str, int], num_classes: int, title: str):
    """Loss (above) and gradient (below) of a positive against p for one class per group, one column per loss.

    ``columns`` maps a group's name to the class that stands for it.

    Returns:
        The axes, two rows.
    """
    figure, axes = plt.subplots(2, len(losses), figsize=(4.5 * len(losses), 5.4), sharex=True, sharey="row")
    ends = [{} for _ in losses]
    for above, below, (name, loss), starts in zip(*axes, losses.items(), ends, strict=True):
        for group, column in columns.items():
            value, gradient = loss_curve(loss, 1, column=column, num_classes=num_classes)
            above.plot(PROBABILITIES, value, color=GROUP_COLOURS[group], lw=1.8)
            below.plot(PROBABILITIES, gradient, color=GROUP_COLOURS[group], lw=1.8)
            starts[group] = gradient[0]
        above.set(title=name, xlim=(-0.3, 1), ylim=(0, 4))
        below.set(xlabel=P_LABEL, xticks=np.linspace(0, 1, 6))
    for below, starts in zip(axes[1], ends, strict=True):  # only now is their common height known
        _label_starts(below, starts)
    axes[0, 0].set_ylabel("loss L, positives")
    axes[1, 0].set_ylabel("gradient ∂L/∂x, positives")
    figure.suptitle(title)
    return axes


def draw_reach(cosines: Tensor, scale: float, highest: float, title: str) -> Axes:
    """p against cosine with and without the batch maximum; ``cosines`` (n,) are marked as a rug on the lower edge.

    ``scale`` is exp(logit_scale), ``highest`` the batch's highest cosine.
    """
    _, axis = plt.subplots(figsize=(7, 3.3))
    x = torch.linspace(-0.05, highest, 200)
    axis.plot(x, torch.sigmoid(scale * x), color=FAINT, lw=2.2)
    axis.plot(x, torch.sigmoid(x / highest), color=INK, lw=1.8)
    axis.plot(cosines, torch.full_like(cosines, 0.02), "|", color=INK, ms=7, alpha=0.5, rasterized=True)
    axis.text(highest * 0.45, 0.94, f"σ({scale:.0f} · cosine)", color="#7a7a7a", va="top")
    axis.text(highest * 0.45, 0.565, "σ(cosine / largest cosine)", va="top")
    axis.text(highest, 0.06, "cosines of one batch", ha="right")
    axis.set(xlabel="cosine of image and label", ylabel="probability p", ylim=(0, 1.03), title=title)
    return axis


def draw_forces(forces: Mapping[str, np.ndarray], title: str) -> Axes:
    """Gradient ∂L/∂x of many elements, one row per kind: every element a dot, the median a bar.

    Values left of zero raise a logit when trained, values to the right lower it.
    """
    _, axis = plt.subplots(figsize=(8, 0.62 * len(forces) + 1.5))
    rng = np.random.default_rng(0)
    for row, values in enumerate(forces.values()):
        jitter = row + rng.uniform(-0.22, 0.22, len(values))
        axis.plot(values, jitter, ".", color="#8a8a8a", ms=2.5, alpha=0.35, rasterized=True)
        axis.plot([np.median(values)] * 2, [row - 0.36, row + 0.36], color="w", lw=5)
        axis.plot([np.median(values)] * 2, [row - 0.36, row + 0.36], color=INK, lw=2.2)
    axis.axvline(0, color=FAINT, lw=0.8, zorder=0)
    axis.set_yticks(range(len(forces)), forces)
    axis.invert_yaxis()
    axis.set_xscale("symlog", linthresh=1e-3)
    axis.set(xlabel="gradient of the batch's mean loss ∂L/∂x, times batch × classes (raises ← 0 → lowers the logit)")
    axis.set_title(title)
    return axis


def draw_negatives(losses: Mapping[str, nn.Module], reach: tuple[float, float], num_classes: int, title: str) -> Axes:
    """Gradient on a negative against p on a logarithmic axis, the range of p that BAL can reach shaded."""
    _, axis = plt.subplots(figsize=(7, 3.5))
    axis.axvspan(*reach, color="#eeeeee", zorder=0)
    for style, (name, loss) in zip(("-", "--", ":"), losses.items(), strict=False):
        _, gradient = loss_curve(loss, 0, num_classes=num_classes)
        axis.plot(PROBABILITIES, np.where(gradient > 0, gradient, np.nan), style, color=INK, lw=1.6, label=name)
    axis.set(xlabel=P_LABEL, ylabel=FORCE_LABEL + ", negatives", yscale="log", ylim=(1e-6, 8), title=title)
    axis.text(np.mean(reach), 2e-6, "p that BAL can reach", ha="center", size="small")
    axis.legend(loc="upper left")
    return axis


def draw_equal_captions(advantage: np.ndarray, forces: Mapping[str, np.ndarray], title: str) -> Axes:
    """Pull on an image towards its own caption against its lead in cosine over a second image, one line per case."""
    _, axis = plt.subplots(figsize=(7, 3.5))
    for style, (name, values) in zip(("-", "--"), forces.items(), strict=True):
        axis.plot(advantage, values, style, color=INK, lw=1.8)
        axis.annotate(name, (advantage[-1], values[-1]), xytext=(-4, 8), textcoords="offset points", ha="right")
    axis.axhline(0, color=FAINT, lw=0.8, zorder=0)
    axis.set_ylim(axis.get_ylim())
    axis.axhspan(axis.get_ylim()[0], 0, color="#f4f4f4", zorder=0)
    axis.set(xlabel="the image's cosine to that caption, minus the other image's", title=title)
    axis.set_ylabel("pull towards its caption, × batch / τ\n(below 0: pushed away)")
    return axis


def draw_settings(
    make_loss: Callable[..., nn.Module],
    variations: Mapping[str, Sequence[float]],
    symbols: Mapping[str, str],
    column: int,
    num_classes: int,
    title: str,
):
    """Gradient of one class against p for three values of each setting, the others as they are: one panel each.

    ``make_loss(**{setting: value})`` returns a module with reduction "none"; curves darken as the value grows.

    Returns:
        One axes per setting.
    """
    figure, axes = plt.subplots(1, len(variations), figsize=(2.6 * len(variations), 3.2), sharey=True)
    for axis, (setting, values) in zip(axes, variations.items(), strict=True):
        for value, colour in zip(values, ("#c0c0c0", "#808080", "#111111"), strict=True):
            loss = make_loss(**{setting: value})
            for target in (1, 0):
                _, gradient = loss_curve(loss, target, column=column, num_classes=num_classes)
                axis.plot(PROBABILITIES, gradient, LINE[target], color=colour, lw=1.5)
            axis.plot([], [], color=colour, label=f"{value:g}")
        axis.legend(title=symbols[setting], loc="lower right", handlelength=1)
        axis.set(xlabel=P_LABEL)
        axis.axhline(0, color=FAINT, lw=0.6, zorder=0)
    axes[0].set_ylabel(FORCE_LABEL)
    figure.suptitle(title)
    return axes


def slider_panel(
    draw: Callable[..., Axes], sliders: Mapping[str, tuple[float, float]], names: Mapping[str, str]
) -> VBox:
    """Sliders over a figure: ``draw(**values)`` is called again at every move and returns the axes of a new figure.

    ``sliders`` maps a keyword of ``draw`` to its (start, maximum), from 0 on; ``names`` to what stands beside it. The
    figure goes into an image widget: ``ipywidgets.interact``'s output widget now and then stalls a page that is
    executed without a browser.
    """
    picture = Image(format="png")
    moving = {
        key: FloatSlider(start, min=0, max=highest, step=0.01, description=names[key], continuous_update=False)
        for key, (start, highest) in sliders.items()
    }

    def redraw(_change: object = None) -> None:
        figure = np.ravel(draw(**{key: slider.value for key, slider in moving.items()}))[0].figure
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=100)
        plt.close(figure)
        picture.value = buffer.getvalue()

    for slider in moving.values():
        slider.observe(redraw, "value")
    redraw()
    return VBox([*moving.values(), picture])


def _name_kinds(axis: Axes) -> None:
    """The two kinds of line, named in the half of the gradient panel that each lives in."""
    low, high = axis.get_ylim()
    axis.text(0.98, low + 0.06 * (high - low), KIND[1] + " (solid)", ha="right")
    axis.text(0.02, high - 0.06 * (high - low), KIND[0] + " (dashed)", va="top")


def _name_lines(axis: Axes, names: Sequence[str]) -> None:
    """Names of the drawn losses, black for the new one and grey for the one before it."""
    for row, (name, colour) in enumerate(zip(names, (INK, "#8a8a8a"), strict=False)):
        axis.text(0.5, 0.95 - 0.1 * row, name, color=colour, transform=axis.transAxes, ha="center", va="top")


def _label_starts(axis: Axes, starts: Mapping[str, float]) -> None:
    """Group names left of their curves, pushed apart where the curves start at nearly the same height."""
    low, high = axis.get_ylim()
    places = sorted(starts, key=starts.get)
    heights = np.array([starts[group] for group in places])
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + 0.075 * (high - low))
    for group, height in zip(places, heights, strict=True):
        axis.text(-0.02, height, group, color=GROUP_COLOURS[group], ha="right", va="center")
