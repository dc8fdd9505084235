"""Draws a long-tailed subset from a multi-label pool, as VOC-MLT and COCO-MLT were drawn.

The method is that of Wu et al., *Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets* (ECCV 2020): a Pareto curve says how many images each class ought to have, and classes are visited
from head to tail, each gaining or losing images until it meets the curve. Because an image carries several
labels, a later visit moves the counts of earlier classes, and the result is no longer a Pareto curve.
"""

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import pareto

from lmclip.errors import LMCLIPError


@dataclass(frozen=True)
class ClassGroups:
    """Class indices of the three groups, each array ascending; together they hold every class once."""

    head: np.ndarray
    medium: np.ndarray
    tail: np.ndarray


@dataclass(frozen=True)
class Trace:
    """Every step of the walk, one entry per image added or removed, in the order in which it happened.

    ``visit`` (S,) is the position 0..C-1 of the visit in which the step fell, ``class_index`` (S,) the class
    visited, ``action`` (S,) +1 for an image added and -1 for one removed, ``image`` (S,) its row in the pool.
    ``counts`` (C, C) holds in row v the images per class, by class index, after visit v.
    """

    visit: np.ndarray
    class_index: np.ndarray
    action: np.ndarray
    image: np.ndarray
    counts: np.ndarray

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True)
class LongTailBuild:
    """A long-tailed subset and how it came about.

    ``indices`` (N,) are the chosen rows of the pool, ascending; ``counts`` (C,) the images per class, by class
    index; ``order`` (C,) the class visited at each rank; ``reference`` (C,) the Pareto count at each rank, so that
    ``reference[k]`` was the aim of class ``order[k]``; ``trace`` the walk.
    """

    indices: np.ndarray
    counts: np.ndarray
    reference: np.ndarray
    order: np.ndarray
    trace: Trace


def pareto_reference(
    num_classes: int, max_count: int, min_count: int = 1, alpha: float = 6.0, tail: float = 0.99
) -> np.ndarray:
    """Images that each class ought to have, from the most to the least frequent: (C,) int64, never rising.

    int(pdf(x) (max - min) / alpha + min) of the Pareto density with shape ``alpha``, at C points spread evenly
    between its quantiles 0 and ``tail``. At the first point the density equals alpha, so the first count is
    ``max_count``. Raises LMCLIPError on a setting out of range.
    """
    if num_classes < 1:
        raise LMCLIPError(f"num_classes is {num_classes}: a Pareto reference needs at least one class.")
    if not 0 <= min_count <= max_count:
        raise LMCLIPError(f"min_count {min_count} and max_count {max_count} must satisfy 0 <= min_count <= max_count.")
    if not (alpha > 0 and 0 < tail < 1):
        raise LMCLIPError(f"alpha is {alpha} and tail is {tail}: alpha must be positive, tail between 0 and 1.")
    points = np.linspace(pareto.ppf(0, alpha), pareto.ppf(tail, alpha), num_classes)
    return (pareto.pdf(points, alpha) * (max_count - min_count) / alpha + min_count).astype(np.int64)


def conditional_cooccurrence(labels: np.ndarray) -> np.ndarray:
    """P[i, j] = n_ij / n_ii, the share of the images with class i that also carry class j: (C, C) in [0, 1].

    ``labels`` is (N, C) of 0 and 1. Raises LMCLIPError when it is anything else, or when a class has no image.
    """
    labels = _checked_labels(labels)
    # float64 goes through BLAS, and holds every count up to 2^53 exactly.
    matrix = labels.astype(np.float64)
    joint = matrix.T @ matrix
    return joint / np.diag(joint)[:, None]


def build_longtail(
    labels: np.ndarray, max_count: int, min_count: int = 1, alpha: float = 6.0, seed: int = 0
) -> LongTailBuild:
    """Draws the long-tailed subset of a pool with ``labels`` (N, C) of 0 and 1; the same input gives the same output.

    Classes are visited by falling column sum of the conditional co-occurrence, the class that turns up most beside
    others first. A class above its reference loses images drawn at random, one below gains some that it lacks (all
    that there are, where they do not suffice). Each move changes the counts of every label that the image carries.
    On the 11,540 VOC2012 trainval rows with ``max_count=800`` the result is VOC-MLT, image by image.

    Raises LMCLIPError when ``labels`` is not such a matrix, when a class has no image, or on a setting out of range.
    """
    labels = _checked_labels(labels)
    num_classes = labels.shape[1]
    reference = pareto_reference(num_classes, max_count, min_count, alpha)
    order = np.argsort(-conditional_cooccurrence(labels).sum(axis=0), kind="stable")

    # One set per class, kept for the whole walk: the draws below depend on the order in which a set lists its
    # members, and that order on the set's history. Rebuilding or sorting it would draw another subset.
    chosen: list[set[int]] = [set() for _ in range(num_classes)]
    steps: list[tuple[int, int, int, int]] = []
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    generator = random.Random(seed)
    for visit, class_index in enumerate(order.tolist()):
        surplus = len(chosen[class_index]) - int(reference[visit])
        if surplus > 0:
            action, drawn = -1, generator.sample(tuple(chosen[class_index]), surplus)
        else:
            candidates = tuple(set(np.flatnonzero(labels[:, class_index]).tolist()) - chosen[class_index])
            action, drawn = +1, generator.sample(candidates, min(-surplus, len(candidates)))
        for image in drawn:
            for label in np.flatnonzero(labels[image]).tolist():
                if action > 0:
                    chosen[label].add(image)
                else:
                    chosen[label].remove(image)
            steps.append((visit, class_index, action, image))
        counts[visit] = [len(images) for images in chosen]

    indices = np.array(sorted(set().union(*chosen)), dtype=np.int64)
    return LongTailBuild(indices, counts[-1].copy(), reference, order, _trace(steps, counts))


def group_classes(counts: np.ndarray, head_min: int = 100, tail_max: int = 20) -> ClassGroups:
    """Splits classes by training images: head has ``head_min`` or more, tail fewer than ``tail_max``, medium the rest.

    ``counts`` is (C,), images per class. Raises LMCLIPError on a negative count or thresholds that overlap.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or (counts < 0).any():
        raise LMCLIPError(f"counts has shape {counts.shape}: group_classes needs one count of 0 or more per class.")
    if not 0 <= tail_max <= head_min:
        raise LMCLIPError(f"tail_max {tail_max} and head_min {head_min} must satisfy 0 <= tail_max <= head_min.")
    head, tail = counts >= head_min, counts < tail_max
    return ClassGroups(np.flatnonzero(head), np.flatnonzero(~head & ~tail), np.flatnonzero(tail))


def balanced_subset(labels: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Choose images so that classes are roughly balanced.

    Each step serves the class that has fewest images so far; of up to ten random unused images of that class it
    takes the one whose labels are, on average, rarest so far (which spares images with many labels no less than
    images with one).

    Args:
        labels: (N, C) 0/1 label matrix.
        size: number of images to choose, at most N.

    Returns:
        (size,) sorted row indices.
    """
    counts, unused, chosen = np.zeros(labels.shape[1]), np.ones(len(labels), dtype=bool), []
    for _ in range(size):
        for rarest in np.argsort(counts, kind="stable"):
            candidates = np.flatnonzero(unused & (labels[:, rarest] == 1))
            if len(candidates):
                break
        else:  # only unlabelled images are left
            candidates = np.flatnonzero(unused)
        tried = rng.choice(candidates, min(10, len(candidates)), replace=False)
        best = tried[np.argmin(labels[tried] @ counts / np.maximum(labels[tried].sum(1), 1))]
        unused[best] = False
        counts += labels[best]
        chosen.append(best)
    return np.sort(chosen)


def list_sha256(image_ids: Iterable[str]) -> str:
    """Fingerprint of a subset, whatever its order: sha256 of its sorted image ids, joined by newlines."""
    return hashlib.sha256("\n".join(sorted(image_ids)).encode()).hexdigest()


def _checked_labels(labels: np.ndarray) -> np.ndarray:
    """``labels`` as an array, or an LMCLIPError that says what keeps it from being a label matrix."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or 0 in labels.shape:
        raise LMCLIPError(f"labels has shape {labels.shape}: it must be (images, classes), neither of them zero.")
    odd = (labels != 0) & (labels != 1)
    if odd.any():
        row, column = np.argwhere(odd)[0].tolist()
        raise LMCLIPError(f"labels[{row}, {column}] is {labels[row, column]}: every entry must be 0 or 1.")
    empty = np.flatnonzero(~labels.any(axis=0))
    if len(empty):
        raise LMCLIPError(f"class {empty[0]} has no image in the pool: leave the class out, or add images of it.")
    return labels


def _trace(steps: list[tuple[int, int, int, int]], counts: np.ndarray) -> Trace:
    visit, class_index, action, image = np.array(steps, dtype=np.int32).reshape(-1, 4).T
    return Trace(visit.astype(np.int16), class_index.astype(np.int16), action.astype(np.int8), image.copy(), counts)
