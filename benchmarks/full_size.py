"""How long a full-size run takes, and what memory it needs: random weights, synthetic photographs of VOC's size.

    python benchmarks/full_size.py                                   # three backbones, fp32 and bf16: minutes on a GPU
    python benchmarks/full_size.py --backbones rn50 --steps 4 --train 16 --test 32     # a try on a CPU

Speed depends on neither what the weights are nor what the pictures show, so nothing has to be downloaded. Measured
are seconds of training steps through the very loop that trains, seconds of evaluation, and peak memory; minutes per
epoch and run are computed from these, for VOC-MLT's 143 steps and 4,952 test images. (The loop measures the terms'
gradients apart on an epoch's first step, so few steps overstate the time.) Writes
results/benchmarks/full_size-<device>.csv.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from machine import save
from PIL import Image
from tqdm import tqdm

from lmclip.benchmarks import PUBLISHED, VOC_CLASSES
from lmclip.config import experiment, load_profile
from lmclip.datasets import LongTailDataset
from lmclip.errors import LMCLIPError
from lmclip.evaluation import predict
from lmclip.images import cached_images
from lmclip.learner import Learner, enough_memory
from lmclip.longtail import pareto_reference
from lmclip.training import train_epoch

WARM_UP_STEPS = 3


def main(
    backbones: tuple[Literal["rn50", "vit-b-16", "vit-l-14"], ...] = ("rn50", "vit-b-16", "vit-l-14"),
    precisions: tuple[Literal["fp32", "tf32", "bf16"], ...] = ("fp32", "bf16"),
    steps: int = 143,
    train: int = 1_142,
    test: int = 4_952,
    repeats: int = 3,
) -> None:
    """Measure every backbone in every precision.

    Args:
        backbones: Which models.
        precisions: Of the two towers.
        steps: Training steps that are timed, each repeat.
        train: Synthetic training images.
        test: Synthetic test images.
        repeats: How often training is timed; the median is kept, and the spread shown.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMCLIP_DATA"] = folder  # the image cache goes where the photographs are
        start = time.perf_counter()
        files = write_photographs(Path(folder), train + test)
        print(f"{len(files)} synthetic JPEGs written in {time.perf_counter() - start:.0f} s")
        start = time.perf_counter()
        images = cached_images(files, 224, "crop", "synthetic photographs")
        decoding = len(files) / (time.perf_counter() - start)
        print(f"decoded once: {decoding:.0f} images per second")
        dataset = synthetic_labels(train)
        for backbone in backbones:
            for precision in precisions:
                print(f"{backbone}, {precision} ...", flush=True)
                try:
                    found = measure(
                        backbone, precision, dataset, images[:train], images[train:], device, steps, repeats
                    )
                except LMCLIPError as error:  # too little memory is a finding
                    print(f"  {error}")
                    continue
                rows.append({"backbone": backbone, "precision": precision, "batch": 8, **found,
                             "decoded images per s": decoding})  # fmt: skip
                print("  " + ", ".join(f"{key}: {value:.4g}" for key, value in found.items()), flush=True)
    table = save("full_size", rows, device)
    print(table.to_string(index=False))


def write_photographs(folder: Path, number: int) -> list[Path]:
    """JPEGs of 500 × 375 pixels with detail at every scale, so that they are as long to decode as photographs."""

    def write(index: int) -> Path:
        rng = np.random.default_rng(index)
        picture = np.zeros((375, 500, 3))
        for cell in (4, 16, 64):
            coarse = Image.fromarray(rng.integers(0, 256, (375 // cell + 1, 500 // cell + 1, 3), dtype=np.uint8))
            picture += np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)) / 3
        path = folder / f"{index:06d}.jpg"
        Image.fromarray(picture.astype(np.uint8)).save(path, quality=90)
        return path

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return list(tqdm(threads.map(write, range(number)), total=number, desc="writing JPEGs", delay=2, mininterval=1))


def synthetic_labels(number: int) -> LongTailDataset:
    """VOC's classes over ``number`` images, as long-tailed as VOC-MLT, one to three labels each."""
    rng, counts = np.random.default_rng(0), pareto_reference(len(VOC_CLASSES), 800)
    labels = np.zeros((number, len(VOC_CLASSES)), dtype=np.uint8)
    for row in labels:
        row[rng.choice(len(counts), rng.integers(1, 4), replace=False, p=counts / counts.sum())] = 1
    labels[np.arange(len(counts)) % number, np.arange(len(counts))] = 1  # no class is empty
    return LongTailDataset("synthetic", [str(i) for i in range(number)], labels, tuple(VOC_CLASSES))


def measure(
    backbone: str, precision: str, dataset: LongTailDataset, train: np.ndarray, test: np.ndarray, device: torch.device,
    steps: int, repeats: int,
) -> dict[str, float]:  # fmt: skip
    """Seconds per step, images per second, memory, and the minutes that follow for VOC-MLT."""
    profile = load_profile("voc", backbone=backbone, weights="random", overrides={"precision": precision})
    workers = min(4, os.cpu_count() or 1) if device.type == "cuda" else 0
    with enough_memory(experiment(profile, "lm-clip"), device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        learner = Learner(experiment(profile, "lm-clip", 0, 1e-6, draws=8 * WARM_UP_STEPS), profile, dataset, device)
        train_epoch(learner, train, 1)
        learner.exp = experiment(profile, "lm-clip", 0, 1e-6, draws=8 * steps)
        seconds = [train_epoch(learner, train, 2 + i, workers=workers)["train_seconds"] / steps for i in range(repeats)]
        memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
        start = time.perf_counter()
        predict(learner, test)  # ends with a copy to the CPU, which waits for the device
        evaluated = len(test) / (time.perf_counter() - start)
    step = float(np.median(seconds))
    facts = PUBLISHED["voc"]
    epoch = (-(-facts["train images"] // 8) * step + facts["test images"] / evaluated) / 60
    return {"s per step": step, "s per step, fastest": min(seconds), "s per step, slowest": max(seconds),
            "trained images per s": 8 / step, "GPU GiB": memory, "evaluated images per s": evaluated,
            "min per epoch": epoch, "min per run of 50": 50 * epoch}  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
