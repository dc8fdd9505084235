"""How every figure looks, the one colour of each group, and where figures are saved."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lmclip.paths import atomic_write, results_dir

# One colour each everywhere; dark, middle and light, so that they stay apart in grey.
GROUP_COLOURS = {"head": "#1f3b73", "medium": "#c8553d", "tail": "#f0b429"}

# One line per method everywhere: lightness and dashes tell them apart in grey, LM-CLIP is the one that stands out.
METHOD_LINES = {
    "zero-shot": {"color": "#8c8c8c", "ls": ":", "lw": 1.4},
    "BCE": {"color": "#3b6fb6", "ls": "--", "lw": 1.5},
    "ASL": {"color": "#5aa469", "ls": "-.", "lw": 1.5},
    "BAL": {"color": "#c8553d", "ls": "-", "lw": 1.5},
    "contrastive": {"color": "#d99a2b", "ls": (0, (1, 1)), "lw": 1.8},
    "LM-CLIP, no sampler": {"color": "#6b6b6b", "ls": (0, (5, 1)), "lw": 1.4},
    "LM-CLIP, as released": {"color": "#8a4f9e", "ls": (0, (3, 1, 1, 1)), "lw": 1.5},
    "LM-CLIP": {"color": "#111111", "ls": "-", "lw": 2.4},
}


def use_style() -> None:
    """Takes on the style sheet of the study for every figure that follows."""
    plt.style.use(Path(__file__).with_name("lmclip.mplstyle"))


def save_figure(fig: Figure, profile: str, name: str) -> list[Path]:
    """Writes ``results/<profile>/figures/<name>`` as PNG and SVG; returns the two paths."""
    folder = results_dir(profile) / "figures"
    files = [folder / f"{name}{suffix}" for suffix in (".png", ".svg")]
    for file in files:
        kind = file.suffix[1:]
        with atomic_write(file) as opened:
            fig.savefig(opened, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return files


def label_line_ends(axis: Axes, ends: dict[str, float]) -> None:
    """Writes each line's name beside its last value (name → y), spread so that names do not overlap."""
    if not ends:
        return
    right = max(line.get_xdata()[-1] for line in axis.lines if len(line.get_xdata()))
    low, high = axis.get_ylim()
    leader = {"arrowstyle": "-", "color": "#c8c8c8", "lw": 0.6, "relpos": (0, 0.5)}
    gap, place = 0.075 * (high - low), -float("inf")
    for name, y in sorted(ends.items(), key=lambda item: item[1]):
        place = max(y, place + gap)
        axis.annotate(name, (right, y), (1.04, (place - low) / (high - low)), xycoords="data",
                      textcoords="axes fraction", color=METHOD_LINES[name]["color"], va="center", fontsize=8,
                      annotation_clip=False, arrowprops=leader)  # fmt: skip
