"""What a machine is called, tables that say where they were measured, and data like COCO's where only size matters."""

import os
import platform
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from lmclip.paths import atomic_write, results_dir


def device_name(device: torch.device) -> str:
    """The GPU's name; or the CPU's, with family and model where they are told (Linux), and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        told = {key.strip(): value.strip() for key, value in lines}
        name = f"{told['model name']} (family {told['cpu family']}, model {told['model']})"
    except (OSError, KeyError):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def slug(name: str) -> str:
    """``name`` as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def save(name: str, rows: list[dict], device: torch.device, replaces: str = "") -> pd.DataFrame:
    """Write results/benchmarks/<name>-<device>.csv with the device, its threads and torch's version in each row.

    Args:
        name: what was measured.
        rows: one dictionary per row.
        device: where.
        replaces: a column; rows of an earlier table whose value there was not measured now are kept. Empty: none are.
    """
    table = pd.DataFrame(rows)
    for place, (key, value) in enumerate(
        {"device": device_name(device), "threads": torch.get_num_threads(), "torch": torch.__version__}.items()
    ):
        table.insert(place, key, value)
    path = results_dir("benchmarks") / f"{name}-{slug(device_name(device))}.csv"
    if replaces and path.exists():
        kept = pd.read_csv(path)
        table = pd.concat([kept[~kept[replaces].isin(table[replaces])], table], ignore_index=True)
    with atomic_write(path) as file:
        file.write(table.to_csv(index=False, float_format="%.4g").encode())
    return table


@contextmanager
def temporary_data() -> Iterator[Path]:
    """A folder that is the data folder meanwhile, so that caches leave nothing behind."""
    kept = os.environ.get("LMCLIP_DATA")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LMCLIP_DATA"] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ["LMCLIP_DATA"]
            if kept is not None:
                os.environ["LMCLIP_DATA"] = kept


def coco_like_labels(number: int, seed: int = 0) -> np.ndarray:
    """(number, 80) uint8 labels with COCO's marginals and company in outline: 2.9 labels an image, half with a person.

    An image shows one of twelve scenes; most of its labels belong to that scene, as forks do to kitchens.
    """
    rng = np.random.default_rng(seed)
    share = np.geomspace(0.1, 0.002, 80)
    share[0] = 0.54  # a person, in every scene
    scene = np.r_[-1, rng.integers(0, 12, 79)]  # of each class
    shown = rng.integers(0, 12, number)[:, None] == scene  # (N, 80)
    factor = np.where(scene < 0, 1.0, np.where(shown, 8.0, 4 / 11))
    labels = (rng.random((number, 80)) < (share * factor).clip(max=0.9)).astype(np.uint8)
    labels[rng.permutation(number)[:80], np.arange(80)] = 1  # no class is empty
    return labels
