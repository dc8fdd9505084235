"""Training steps of both sides on the same weights, batches and labels, and what they cost in operations."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from as_released import ReleasedLearner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmclip.benchmarks import COCO_CLASSES, VOC_CLASSES
from lmclip.config import Profile, experiment
from lmclip.datasets import LongTailDataset
from lmclip.learner import Learner
from lmclip.models import standardized

BATCH = 8
LEARNING_RATE = 1e-6  # the release's on both benchmarks
LABELS_PER_IMAGE = {"voc": 2.05, "coco": 4.36}  # in the training lists of VOC-MLT and COCO-MLT


def dataset_of(benchmark: str, number: int = 64, classes: int = 0) -> LongTailDataset:
    """Labels of ``number`` images with a benchmark's class names and labels per image, drawn with a long tail.

    ``classes``: only the first so many classes; 0: all.
    """
    names = {"voc": VOC_CLASSES, "coco": COCO_CLASSES}[benchmark]
    names = tuple(names[: classes or None])
    rng = np.random.default_rng(0)
    share = np.geomspace(1, 0.01, len(names))
    labels = np.zeros((number, len(names)), dtype=np.uint8)
    for row in labels:
        size = min(1 + rng.poisson(LABELS_PER_IMAGE[benchmark] - 1), len(names))
        row[rng.choice(len(names), size, replace=False, p=share / share.sum())] = 1
    labels[np.arange(len(names)) % number, np.arange(len(names))] = 1  # no class is empty
    return LongTailDataset(benchmark, [str(i) for i in range(number)], labels, names)


class Steps:
    """Makes training steps: calls that train on one batch after another, the same ones for every side.

    Args:
        profile: model and settings; its weights should be "random".
        dataset: labels and class names.
        device: where both sides train.
        batch: images per step.
    """

    def __init__(self, profile: Profile, dataset: LongTailDataset, device: torch.device, batch: int = BATCH):
        self.profile, self.dataset, self.device = profile, dataset, device
        generator = torch.Generator().manual_seed(0)
        shape = (2, batch, 3, profile.image_size, profile.image_size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        rows = torch.randperm(len(dataset), generator=generator)[: len(dataset) // batch * batch].view(-1, batch)
        self.batches = [(images[step % 2], row) for step, row in enumerate(rows)]

    def released(self) -> Callable[[], float]:
        """A call that makes the release's next step and returns its loss."""
        learner = ReleasedLearner(self._experiment("fp32"), self.profile, self.dataset, self.device)
        learner.model.train()
        batches = itertools.cycle([(standardized(images).contiguous(), rows) for images, rows in self.batches])

        def step() -> float:
            torch.use_deterministic_algorithms(False)
            return learner.step(*next(batches))

        return step

    def ours(self, precision: str = "fp32", **overrides) -> Callable[[], float]:
        """A call that makes this study's next step, as `training.train_epoch` does, and returns its loss."""
        learner = Learner(self._experiment(precision, **overrides), self.profile, self.dataset, self.device)
        learner.model.train()
        batches = itertools.cycle(self.batches)

        def step(deterministic: bool = True) -> float:
            with as_training(deterministic):
                return one_step(learner, *next(batches))

        step.learner = learner
        return step

    def _experiment(self, precision: str, **overrides):
        return experiment(self.profile, "lm-clip", 0, LEARNING_RATE, batch_size=len(self.batches[0][1]),
                          precision=precision, **overrides)  # fmt: skip


def one_step(learner: Learner, images: torch.Tensor, rows: torch.Tensor) -> float:
    """`training.train_epoch`'s loop body for images (B, 3, H, W) uint8 and their rows (B,); the loss."""
    learner.optimizer.zero_grad()
    loss = sum(learner.terms(images, rows).values())
    loss.backward()
    value = loss.item()
    norm = torch.nn.utils.get_total_norm([p.grad for p in learner.parameters if p.grad is not None])
    learner.optimizer.step()
    norm.item()
    return value


@contextmanager
def as_training(deterministic: bool = True) -> Iterator[None]:
    """Deterministic algorithms, as `training.train` asks for."""
    kept = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(kept)


def counted(call: Callable) -> int:
    """Floating-point operations of the matrix products and convolutions in ``call()``, forwards and backwards."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the CPU's fused kernel is not known
        call()
    return counter.get_total_flops()
