"""How a step's cost grows with classes, images per batch and texts: measured, written, and drawn."""

from collections.abc import Callable

import matplotlib.pyplot as plt
import pandas as pd
import torch
from machine import device_name, slug
from steps import BATCH, Steps, as_training, dataset_of
from timing import in_turns

from lmclip.config import load_profile
from lmclip.learner import TEMPLATE
from lmclip.models import encode_text, load_model
from lmclip.paths import atomic_write, results_dir
from lmclip.plots.speed import draw_growth
from lmclip.plots.style import use_style

CLASSES = (5, 10, 20, 40, 80)
IMAGES = (2, 4, 8, 16)
TEXTS = (8, 16, 32, 64, 128)
WITH_CLASSES = 20  # while images vary


def measure_growth(device: torch.device, repeats: int) -> None:
    """Measure, write results/benchmarks/growth-<device>.csv, and draw cost.png and cost.svg beside it."""
    rows = []
    for panel, x, ways in _panels(device):
        for name, one in in_turns(ways, repeats, warm_up=1).items():
            rows.append({"panel": panel, "x": x, "way": name, "seconds": one.median, "fastest": min(one.seconds),
                         "slowest": max(one.seconds), "peak MiB": one.peak_mib})  # fmt: skip
            print("  " + ", ".join(f"{key}: {value}" for key, value in rows[-1].items()), flush=True)
    table = pd.DataFrame(rows)
    table.insert(0, "device", device_name(device))
    folder = results_dir("benchmarks")
    with atomic_write(folder / f"growth-{slug(device_name(device))}.csv") as file:
        file.write(table.to_csv(index=False, float_format="%.4g").encode())
    draw_figure(table)


def draw_figure(table: pd.DataFrame) -> None:
    """cost.png and cost.svg of a growth table."""
    use_style()
    coco = table[(table["panel"] == "classes") & (table["x"] == table.loc[table["panel"] == "classes", "x"].max())]
    seconds = coco.set_index("way")["seconds"]
    fp32, bf16 = (seconds["as released"] / seconds[way] for way in ("fp32", "bf16"))
    title = (f"At {coco['x'].iloc[0]} classes the released step takes {fp32:.1f} times as long as ours, and "
             f"{bf16:.1f} times as long as ours in bf16 ({table['device'].iloc[0]})")  # fmt: skip
    draw_growth(table, title)
    for suffix in (".png", ".svg"):
        with atomic_write(results_dir("benchmarks") / f"cost{suffix}") as file:
            plt.savefig(file, format=suffix[1:], metadata={"Date": None} if suffix == ".svg" else None)
    plt.close()


def _panels(device: torch.device):
    """(panel, x, ways) of every point."""
    for classes in CLASSES:
        yield "classes", classes, _steps(dataset_of("coco", 96, classes), device, BATCH)
    for images in IMAGES:
        yield "images", images, _steps(dataset_of("coco", 96, WITH_CLASSES), device, images)
    model, tokenizer = load_model(load_profile("coco").model, "random")
    model = model.to(device).train()
    tokens = tokenizer([TEMPLATE.format(name) for name in dataset_of("coco").class_names]
                       + sorted(set(dataset_of("coco", 512).captions)))  # fmt: skip
    tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))].to(device)
    for texts in TEXTS:
        yield "texts", texts, _encodings(model, tokens[:texts])


def _steps(dataset, device: torch.device, batch: int) -> dict[str, Callable]:
    steps = Steps(load_profile("coco", weights="random"), dataset, device, batch)
    return {"as released": steps.released(), "fp32": steps.ours("fp32"), "bf16": steps.ours("bf16")}


def _encodings(model: torch.nn.Module, tokens: torch.Tensor) -> dict[str, Callable]:
    """The text tower forwards and backwards, padded and packed."""

    def call(encode: Callable, autocast: bool) -> None:
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
            features = encode(model, tokens)
        with as_training():
            features.float().square().sum().backward()
        model.zero_grad()

    padded = type(model).encode_text
    return {"as released": lambda: call(padded, False), "fp32": lambda: call(encode_text, False),
            "bf16": lambda: call(encode_text, True)}  # fmt: skip
