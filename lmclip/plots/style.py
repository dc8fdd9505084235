"""How every figure looks, the one colour of each group, and where figures are saved."""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from lmclip.paths import results_dir

# One colour each everywhere; dark, middle and light, so that they stay apart in grey.
GROUP_COLOURS = {"head": "#1f3b73", "medium": "#c8553d", "tail": "#f0b429"}


def use_style() -> None:
    """Takes on the style sheet of the study for every figure that follows."""
    plt.style.use(Path(__file__).with_name("lmclip.mplstyle"))


def save_figure(fig: Figure, profile: str, name: str) -> list[Path]:
    """Writes ``results/<profile>/figures/<name>`` as PNG and SVG; returns the two paths."""
    folder = results_dir(profile) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}{suffix}" for suffix in (".png", ".svg")]
    for file in files:
        fig.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
    return files
