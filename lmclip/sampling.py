r"""How often each training image is drawn: LM-CLIP's power sampler, its rivals, and what they do to an epoch.

Notation: N images, C classes, labels Y (N, C) of 0 and 1, n_c = Σ_i Y[i, c] images of class c. A sampler is one
weight per image, computed once; an epoch draws N images with replacement, image i with probability w_i / Σw.

A class that no image carries makes N / n_c infinite and can be sampled by no weight at all: ``LMCLIPError`` names it.
An image without labels gets weight 0 from every sampler that looks at labels, hence is never drawn, as in the release.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lmclip.errors import LMCLIPError

Weights = NDArray[np.float64]


def class_weights(labels: ArrayLike, power: float) -> Weights:
    r"""(C,) weights (N/n_c)^power, divided by their maximum (LM-CLIP's release; BAL's w_c).

    The rarest class gets 1. ``power`` is the release's s: 1.35 and 0.7 on VOC-MLT, 1.6 and 1.35 on COCO-MLT.
    """
    labels, counts = _counted(labels)
    return _over_max((len(labels) / counts) ** _known_power(power))


def sample_weights(labels: ArrayLike, power: float) -> Weights:
    r"""(N,) weights (Σ_{c: Y[i,c]=1} N/n_c)^power, divided by their maximum (LM-CLIP's power sampler).

    The sum runs over all labels of an image, so every label makes it likelier, frequent ones too.
    """
    labels, counts = _counted(labels)
    return _over_max((labels @ (len(labels) / counts)) ** _known_power(power))


def inverse_frequency_weights(labels: ArrayLike) -> Weights:
    r"""(N,) weights max_{c: Y[i,c]=1} N/n_c, divided by their maximum: an image counts as its rarest label.

    The image-level repeat factor of Gupta et al. (LVIS, CVPR 2019) uses the same maximum, of sqrt(t/f_c).
    """
    labels, counts = _counted(labels)
    return _over_max((labels * (len(labels) / counts)).max(axis=1))


def class_aware_weights(labels: ArrayLike) -> Weights:
    r"""(N,) weights Σ_{c: Y[i,c]=1} 1/n_c, divided by their maximum: pick a class uniformly, then one of its images.

    The sampler of Shen et al. (ECCV 2016), used by Wu et al. (ECCV 2020) on these benchmarks. The sum is C times an
    image's probability, and is the power sampler's at power 1.
    """
    labels, counts = _counted(labels)
    return _over_max(labels @ (1 / counts))


def uniform_weights(labels: ArrayLike) -> Weights:
    """(N,) ones: every image alike."""
    return np.ones(len(_counted(labels)[0]))


def sampler_weights(name: str, labels: ArrayLike, power: float) -> Weights | None:
    """(N,) weights of the sampler called ``name``, as in ``config.SamplerName``; None for "uniform", a plain shuffle.

    ``power`` is s, which only the "power" sampler uses.
    """
    samplers = {
        "uniform": lambda: None,
        "class-aware": lambda: class_aware_weights(labels),
        "inverse-frequency": lambda: inverse_frequency_weights(labels),
        "power": lambda: sample_weights(labels, power),
    }
    return samplers[name]()


def effective_sample_size(weights: ArrayLike) -> float:
    r"""Kish's effective sample size (Σw)² / Σw²: so many equally weighted images carry as much as these N."""
    weights = _usable(weights)
    return float(weights.sum() ** 2 / (weights**2).sum())


def expected_class_counts(labels: ArrayLike, weights: ArrayLike, num_draws: int) -> Weights:
    r"""(C,) expected number of drawn images that carry each class: num_draws · Σ_i w_i Y[i, c] / Σ_i w_i."""
    labels, weights = _counted(labels)[0], _usable(weights)
    if len(labels) != len(weights):
        raise LMCLIPError(f"{labels.shape} labels but {weights.shape} weights: one weight per image is needed.")
    return num_draws * (weights @ labels) / weights.sum()


def draw(weights: ArrayLike, num_draws: int, seed: int | torch.Generator = 0) -> NDArray[np.int64]:
    """(num_draws,) image indices drawn with replacement, the same for the same seed; the training loop's own draw.

    Pass a ``torch.Generator`` instead of a seed to keep drawing from one stream, epoch after epoch.
    """
    generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)
    weights = torch.from_numpy(_usable(weights))
    return torch.multinomial(weights, num_draws, replacement=True, generator=generator).numpy()


def _counted(labels: ArrayLike) -> tuple[Weights, Weights]:
    """Labels (N, C) and images per class (C,), both as floats; ``LMCLIPError`` for labels that no sampler can use."""
    labels = np.asarray(labels, dtype=np.float64)
    if labels.ndim != 2 or labels.size == 0:
        raise LMCLIPError(
            f"Labels have shape {labels.shape}: pass a matrix (images, classes) with at least one of each."
        )
    if not np.isin(labels, (0, 1)).all():
        raise LMCLIPError("Labels hold values other than 0 and 1: pass a binary matrix (images, classes).")
    counts = labels.sum(axis=0)
    if (counts == 0).any():
        raise LMCLIPError(f"Class {int(counts.argmin())} has no training image: drop the class or add an image of it.")
    return labels, counts


def _usable(weights: ArrayLike) -> Weights:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any() or weights.sum() == 0:
        raise LMCLIPError("Weights must be one finite number ≥ 0 per image, not all zero.")
    return weights


def _known_power(power: float) -> float:
    if not 0 <= power < np.inf:
        raise LMCLIPError(f"power is {power}: use a finite number ≥ 0 (0 is uniform).")
    return power


def _over_max(weights: Weights) -> Weights:
    return weights / weights.max()
