"""What a machine is called in tables and file names, and data that look like COCO's where only their size matters."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch


def device_name(device: torch.device) -> str:
    """The GPU's name, or how many cores the CPU has."""
    return torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {os.cpu_count()} cores"


def slug(name: str) -> str:
    """``name`` as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


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
