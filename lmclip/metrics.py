r"""How well scores rank images per class, how sure a difference is, and how tight the classes lie.

All scores, targets and features are arrays with one row per test image: scores and targets (N, C), features (N, D).
Everything is a fraction in [0, 1], not a percentage. ``groups`` is anything with ``.head``, ``.medium`` and ``.tail``,
arrays of class indices (``longtail.group_classes``).

A class without a positive image has no average precision: it is NaN in ``per_class_ap``, left out of every mean, and
counted in ``num_left_out``. (The release counts it as 0, which caps mAP at 80 % on COCO's single-label images.)
"""

import warnings

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score, roc_auc_score

from lmclip.errors import LMCLIPError

GROUPS = ("head", "medium", "tail")
_BLOCK = 250  # resamples at a time: what is worked on then fits a processor's cache
Array = NDArray[np.float64]


class Report(dict):
    """A dict of results that also reads as attributes: ``report["mAP"]`` is ``report.mAP``."""

    def __getattr__(self, name: str):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no {name!r} in this report; it has {', '.join(self)}") from None


def multilabel_report(scores: ArrayLike, targets: ArrayLike, groups, with_auroc: bool = True) -> Report:
    """mAP, mAP_head, mAP_medium, mAP_tail, per_class_ap (C,), auroc, num_images, num_left_out.

    Average precision per class is scikit-learn's (a step function, ties counted together); a mean over no class is
    NaN. ``auroc`` is the mean over the classes that have positives and negatives (NaN without
    ``with_auroc``). NaN or infinite scores, targets
    other than 0 and 1, and shapes that differ raise ``LMCLIPError``.
    """
    scores, targets = _checked(scores, targets)
    present, absent = targets.any(axis=0), (targets == 0).any(axis=0)
    per_class_ap = np.full(targets.shape[1], np.nan)
    auroc = np.full(targets.shape[1], np.nan)
    for c in np.flatnonzero(present):
        per_class_ap[c] = average_precision_score(targets[:, c], scores[:, c])
        if with_auroc and absent[c]:
            auroc[c] = roc_auc_score(targets[:, c], scores[:, c])
    return Report(
        **{name: float(value) for name, value in _group_means(per_class_ap, groups).items()},
        per_class_ap=per_class_ap,
        auroc=float(_mean(auroc)),
        num_images=len(targets),
        num_left_out=int((~present).sum()),
    )


def left_out(targets: ArrayLike, groups) -> str:
    """What a small test set has no number for, in words; empty where every class and every group has one.

    For example "31 of 80 classes have no positive image and are left out; no head class".
    """
    present = _binary(targets).any(axis=0)
    parts = []
    if missing := int((~present).sum()):
        parts.append(f"{missing} of {len(present)} classes have no positive image and are left out")
    for name in GROUPS:
        members = np.asarray(getattr(groups, name), dtype=int)
        if not present[members].any():
            parts.append(f"no {name} class" + (" with a positive image" if len(members) else ""))
    return "; ".join(parts)


def subset_reports(scores: ArrayLike, targets: ArrayLike, groups) -> dict[str, Report]:
    """Reports on the images with exactly one label ("single") and with several ("multi"), as the release prints them.

    Images without any label, of which COCO's test set has 48, are in neither.
    """
    scores, targets = _checked(scores, targets)
    labels = targets.sum(axis=1)
    subsets = {"single": labels == 1, "multi": labels > 1}
    return {name: multilabel_report(scores[rows], targets[rows], groups) for name, rows in subsets.items()}


def average_precision(scores: ArrayLike, targets: ArrayLike, sample_weight: ArrayLike | None = None) -> Array:
    r"""AP = Σ_k (R_k − R_{k−1}) P_k over the distinct scores, (N,) scores and targets of one class.

    ``sample_weight`` is (N,), or (R, N) for R weightings at once; the result is a scalar, or (R,). Equal to
    scikit-learn's for each of them, at the cost of one sort in all. NaN where no positive has weight.
    """
    scores, targets = np.asarray(scores, dtype=np.float64), np.asarray(targets)
    weight = np.ones(len(scores)) if sample_weight is None else np.asarray(sample_weight)
    return _weighted_ap(scores, targets, np.atleast_2d(weight).T).reshape(weight.shape[:-1])


def paired_bootstrap(
    scores_a: ArrayLike, scores_b: ArrayLike, targets: ArrayLike, groups, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Is A better than B on this test set? Test images are drawn again with replacement, the same ones for both.

    Rows: mAP, mAP_head, mAP_medium, mAP_tail. Columns: ``a``, ``b`` and ``difference`` = a − b on the test set itself;
    ``low`` and ``high``, the 2.5 and 97.5 percentiles of the difference over the resamples; ``share_above_zero``, the
    share of resamples in which A is ahead. Every resample's APs are exact; a class that a resample draws no positive
    image of is left out of that resample's means, for A and B alike. It says nothing about training seeds.
    """
    scores_a, targets = _checked(scores_a, targets)
    scores_b, _ = _checked(scores_b, targets)
    counts = _resample_counts(len(targets), resamples, seed)  # (N, R): how often each resample draws each image
    ap_a, ap_b = (_bootstrap_ap(scores, targets, counts) for scores in (scores_a, scores_b))  # (R, C)
    drawn = _group_means(ap_a, groups), _group_means(ap_b, groups)
    whole = multilabel_report(scores_a, targets, groups), multilabel_report(scores_b, targets, groups)
    rows = {}
    for name in drawn[0]:
        difference = (drawn[0][name] - drawn[1][name])[~np.isnan(drawn[0][name])]
        low, high = np.percentile(difference, [2.5, 97.5]) if len(difference) else (np.nan, np.nan)
        above = (difference > 0).mean() if len(difference) else np.nan
        a, b = whole[0][name], whole[1][name]
        rows[name] = {"a": a, "b": b, "difference": a - b, "low": low, "high": high, "share_above_zero": above}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("metric")


def centroid_distances(features: ArrayLike, targets: ArrayLike, groups=None) -> Report:
    """positive, negative, ratio: mean distance of images to the centroids of classes that they carry or do not carry.

    Features (N, D) are L2-normalised; a class's centroid is the mean of its images' features, not normalised again;
    distances are Euclidean, averaged over all (image, class) pairs; ratio = positive / negative, smaller is tighter.
    With ``groups`` also positive_head and so on, over the classes of one group. Classes without images are left out.
    As in the release, the centroids come from the very images that are measured, which flatters small classes.
    """
    features, targets = np.asarray(features, dtype=np.float64), _binary(targets)
    if features.ndim != 2 or len(features) != len(targets):
        raise LMCLIPError(
            f"Features have shape {features.shape}, targets {targets.shape}: one row per image is needed."
        )
    _refuse_non_finite(features, "Features")
    features = features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)
    present = targets.any(axis=0)
    centroids = (targets.T @ features) / targets.sum(axis=0).clip(min=1)[:, None]  # (C, D)
    squared = 1 + (centroids**2).sum(axis=1) - 2 * features @ centroids.T  # (N, C), as |f| = 1
    distances = np.sqrt(squared.clip(min=0))
    found = _distance_means(distances, targets, np.flatnonzero(present), "")
    for name in GROUPS if groups is not None else ():
        members = np.asarray(getattr(groups, name), dtype=int)
        found |= _distance_means(distances, targets, members[present[members]], f"_{name}")
    return Report(found)


def _distance_means(distances: Array, targets: NDArray, classes: NDArray, suffix: str) -> dict[str, float]:
    chosen, carried = distances[:, classes], targets[:, classes] == 1
    positive, negative = float(_mean(chosen[carried])), float(_mean(chosen[~carried]))
    ratio = positive / negative if negative else np.nan  # all images alike: nothing to compare
    return {f"positive{suffix}": positive, f"negative{suffix}": negative, f"ratio{suffix}": ratio}


def _group_means(per_class_ap: Array, groups) -> dict[str, Array]:
    """mAP over all classes and over each group, of (..., C) average precisions; NaN entries are left out."""
    means = {"mAP": _mean(per_class_ap)}
    for name in GROUPS:
        means[f"mAP_{name}"] = _mean(per_class_ap[..., np.asarray(getattr(groups, name), dtype=int)])
    return means


def _mean(values: Array) -> Array:
    """Mean over the last axis without the NaNs; NaN where nothing is left."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=-1)


def _resample_counts(num_images: int, resamples: int, seed: int) -> NDArray[np.int32]:
    rng = np.random.default_rng(seed)
    draws = (rng.integers(num_images, size=num_images) for _ in range(resamples))
    return np.stack([np.bincount(draw, minlength=num_images) for draw in draws], axis=1).astype(np.int32)


def _bootstrap_ap(scores: Array, targets: NDArray, counts: NDArray) -> Array:
    blocks = [np.ascontiguousarray(counts[:, r : r + _BLOCK]) for r in range(0, counts.shape[1], _BLOCK)]
    per_class = zip(scores.T, targets.T, strict=True)
    return np.stack([np.concatenate([_weighted_ap(s, t, block) for block in blocks]) for s, t in per_class], axis=1)


def _weighted_ap(scores: Array, targets: NDArray, weight: NDArray) -> Array:
    """AP of one class under R weightings (N, R) of its images; the precision at each positive is all that is needed.

    Images with the same score enter the ranking together, so a positive's precision is taken at the end of its tie.
    """
    order = np.argsort(-scores, kind="stable")
    scores, positive = scores[order], np.flatnonzero(targets[order])
    if not len(positive):
        return np.full(weight.shape[1], np.nan)
    ends, place = np.unique(np.searchsorted(-scores, -scores[positive], side="right"), return_inverse=True)  # of ties
    between = np.add.reduceat(weight[order[: ends[-1]]], np.r_[0, ends[:-1]], axis=0)  # weight from one end to the next
    ranked = np.cumsum(between, axis=0)[place]  # (P, R) weight of all images ranked up to there
    gained = weight[order[positive]]  # (P, R)
    found = np.cumsum(gained, axis=0)[np.searchsorted(positive, ends[place], side="left") - 1]  # (P, R) of positives
    total = gained.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        terms = np.where(gained > 0, gained * (found / ranked), 0.0)
        return terms.sum(axis=0) / total


def _checked(scores: ArrayLike, targets: ArrayLike) -> tuple[Array, NDArray]:
    scores, targets = np.asarray(scores, dtype=np.float64), _binary(targets)
    if scores.ndim != 2 or scores.shape != targets.shape:
        raise LMCLIPError(f"Scores have shape {scores.shape}, targets {targets.shape}: both must be (images, classes).")
    _refuse_non_finite(scores, "Scores")
    return scores, targets


def _binary(targets: ArrayLike) -> NDArray:
    targets = np.asarray(targets)
    if targets.ndim != 2 or not np.isin(targets, (0, 1)).all():
        raise LMCLIPError(f"Targets of shape {targets.shape} must be an (images, classes) matrix of 0 and 1.")
    return targets.astype(np.int64)


def _refuse_non_finite(values: Array, name: str) -> None:
    bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
    if len(bad):
        raise LMCLIPError(f"{name} hold NaN or infinity, first in row {bad[0]}: look at that image or at the model.")
