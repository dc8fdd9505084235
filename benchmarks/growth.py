"""How cost grows with classes, images per batch and images evaluated, and how near it is to the machine's limit."""

from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from as_released import ReleasedLearner
from machine import save
from steps import BATCH, Steps, counted, dataset_of
from timing import in_turns, matmul_rates

from lmclip.config import experiment, load_profile
from lmclip.evaluation import predict
from lmclip.learner import Learner
from lmclip.models import standardized
from lmclip.paths import atomic_write, results_dir
from lmclip.plots.speed import draw_growth
from lmclip.plots.style import use_style

CLASSES = (5, 10, 20, 40, 80)
BATCHES = (2, 4, 8, 16)
IMAGES = (8, 16, 32, 64)
WITH_CLASSES = 20  # while images vary


def measure_growth(device: torch.device, repeats: int) -> None:
    """Measure, write results/benchmarks/growth-<device>.csv, and draw cost.png and cost.svg beside it.

    Args:
        device: where.
        repeats: turns of each point.
    """
    rows = []
    for panel, x, ways in _points(device):
        rate = matmul_rates(device)
        flops = {} if panel == "images" else {way: counted(ways[way]) for way in ("as released", "fp32")}
        for way, one in in_turns(ways, repeats, warm_up=1).items():
            precision = "bf16" if way == "bf16" else "fp32"
            rows.append({"panel": panel, "x": x, "way": way, "seconds": one.median, "fastest": min(one.seconds),
                         "slowest": max(one.seconds), "peak MiB": one.peak_mib,
                         "GFLOP": flops.get("fp32" if way == "bf16" else way, np.nan) / 1e9,
                         "GFLOP/s, products": rate[precision] / 1e9})  # fmt: skip
            print("  " + ", ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
    draw_figure(save("growth", with_utilisation(rows), device))


def with_utilisation(rows: list[dict]) -> list[dict]:
    """The rows with their share of the limit: the best rate of matrix products in the way's precision in all rows."""
    table = pd.DataFrame(rows)
    limit = table.groupby(table["way"] == "bf16")["GFLOP/s, products"].transform("max")
    return table.assign(utilisation=table["GFLOP"] / table["seconds"] / limit).to_dict("records")


def draw_figure(table: pd.DataFrame) -> None:
    """cost.png and cost.svg of a growth table."""
    use_style()
    classes = table[table["panel"] == "classes"]
    most = classes["x"].max()
    seconds = classes[classes["x"] == most].set_index("way")["seconds"]
    fp32, bf16 = (seconds["as released"] / seconds[way] for way in ("fp32", "bf16"))
    title = (f"At {most} classes the released step takes {fp32:.1f} times as long as ours ({bf16:.1f} times in bf16)\n"
             f"ViT-B/16; {table['device'].iloc[0]}, {table['threads'].iloc[0]} threads")  # fmt: skip
    draw_growth(table, title)
    for suffix in (".png", ".svg"):
        with atomic_write(results_dir("benchmarks") / f"cost{suffix}") as file:
            plt.savefig(file, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
    plt.close()


def _points(device: torch.device) -> Iterator[tuple[str, int, dict[str, Callable]]]:
    """(panel, x, ways) of every point."""
    for classes in CLASSES:
        yield "classes", classes, _steps(dataset_of("coco", 96, classes), device, BATCH)
    for batch in BATCHES:
        yield "batch", batch, _steps(dataset_of("coco", 96, WITH_CLASSES), device, batch)
    profile, dataset = load_profile("coco", weights="random"), dataset_of("coco", 96, WITH_CLASSES)
    released = ReleasedLearner(experiment(profile, "lm-clip"), profile, dataset, device)
    ours = {way: Learner(experiment(profile, "lm-clip", precision=way), profile, dataset, device)
            for way in ("fp32", "bf16")}  # fmt: skip
    for images in IMAGES:
        yield "images", images, evaluations(released, ours, images)


def _steps(dataset, device: torch.device, batch: int) -> dict[str, Callable]:
    steps = Steps(load_profile("coco", weights="random"), dataset, device, batch)
    return {"as released": steps.released(), "fp32": steps.ours("fp32"), "bf16": steps.ours("bf16")}


def evaluations(
    released: ReleasedLearner, ours: dict[str, Learner], number: int, size: int = 224
) -> dict[str, Callable]:
    """Calls that give logits (number, C) of the same images: the release's, in batches of 8, and those of ``ours``."""
    images = np.random.default_rng(0).integers(0, 256, (number, size, size, 3), dtype=np.uint8)
    prepared = [standardized(torch.from_numpy(part).permute(0, 3, 1, 2)).contiguous()
                for part in np.split(images, range(8, number, 8))]  # fmt: skip
    return {"as released": lambda: released.predict(prepared),
            **{way: lambda one=one: predict(one, images)[0] for way, one in ours.items()}}  # fmt: skip
