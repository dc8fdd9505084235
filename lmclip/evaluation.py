"""Evaluation of a model on a split, and the two protocols by which an epoch is chosen.

A class's average precision depends on how the test images are scored. The release takes the softmax over
classes (release line 16), which makes the labels of one image compete; a model trained with sigmoids is
scored by its logits (AP is the same for p and x). Which of the two suits a method is chosen on validation,
like its learning rate; metrics by both are recorded.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lmclip.config import Experiment, Profile
from lmclip.datasets import LongTailDataset
from lmclip.images import cached_images
from lmclip.metrics import centroid_distances, multilabel_report
from lmclip.records import GROUP_METRICS

# Images per forward pass: on a GPU as many as keep it busy; on a CPU few, since larger batches are slower there, by the
# fresh memory that they ask for (benchmarks/NOTES.md).
GPU_BATCH, CPU_PIXELS, CPU_BATCH = 256, 64 * 64**2, 8
SCORINGS = ("softmax", "logits")


class Encoder(Protocol):
    """What evaluation needs of a learner: its model, label features (C, D) and image features (N, D), normalised."""

    model: torch.nn.Module
    exp: Experiment

    def label_features(self) -> torch.Tensor: ...

    def encode_image(self, images: torch.Tensor) -> torch.Tensor: ...


@dataclass
class Judge:
    """Evaluates one split: keeps its images, and the logits and features of the last call."""

    split: LongTailDataset
    profile: Profile
    learner: Encoder
    scoring: str

    def __post_init__(self):
        how = self.learner.exp.resize
        self.images = cached_images(self.split.files, self.profile.image_size, how, self.split.name)

    def __call__(self) -> dict[str, dict]:
        """Scoring → report, of the model as it is now."""
        self.logits, self.features = predict(self.learner, self.images)
        labels, groups = self.split.labels, self.split.groups
        self.reports = {
            name: multilabel_report(scored(self.logits, name), labels, groups, with_auroc=False) for name in SCORINGS
        }
        return self.reports

    def row(self, prefix: str) -> dict[str, float]:
        """The last call's entries of a history row: the four mAP values, and mAP by each scoring."""
        chosen = {f"{prefix}_{name}": self.reports[self.scoring][name] for name in GROUP_METRICS}
        return chosen | {f"{prefix}_mAP_{name}": report["mAP"] for name, report in self.reports.items()}


def predict(learner: Encoder, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and normalised image features (N, D) of images (N, H, W, 3) uint8, in evaluation mode.

    Label features are computed once.
    """
    learner.model.eval()
    with torch.no_grad():  # on CPUs, inference mode takes the slower of two products (benchmarks/NOTES.md)
        labels, scale = learner.label_features(), learner.model.logit_scale.exp()
        size = GPU_BATCH if labels.is_cuda else max(CPU_BATCH, CPU_PIXELS // (images.shape[1] * images.shape[2]))
        parts = (images[start : start + size] for start in range(0, len(images), size))
        features = torch.cat([learner.encode_image(torch.tensor(part).permute(0, 3, 1, 2)) for part in parts])
        return (scale * features @ labels.T).cpu().numpy(), features.cpu().numpy()


def scored(logits: np.ndarray, scoring: str) -> np.ndarray:
    """Scores (N, C) of logits (N, C) by one of ``SCORINGS``."""
    return softmax(logits) if scoring == "softmax" else logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes, in float64: (N, C) to (N, C)."""
    shifted = np.exp(np.asarray(logits, dtype=np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def positive_ranks(kept: "dict[str, Kept]", targets: np.ndarray) -> dict[str, np.ndarray]:
    """Where the positives stand, which is all that average precision depends on, in some 20 kB a run.

    Returns:
        ``<protocol>_<scoring>``: (P,) uint32, for each positive of class 0, then of class 1 and so on, how many images
        score at least as high; and ``positives``: (C,) how many each class has.
    """
    found = {"positives": targets.sum(0, dtype=np.uint32)}
    for name, result in kept.items():
        for scoring in SCORINGS:
            below = -scored(result.logits, scoring)
            ranks = [np.searchsorted(np.sort(below[:, c]), below[targets[:, c] == 1, c], side="right")
                     for c in range(targets.shape[1])]  # fmt: skip
            found[f"{name}_{scoring}"] = np.concatenate(ranks).astype(np.uint32)
    return found


@dataclass
class Kept:
    """What a protocol keeps of the epoch that it chose."""

    summary: dict
    logits: np.ndarray
    features: np.ndarray


def keep_epoch(best: dict[str, Kept], row: dict, judged: dict[str, Judge]) -> None:
    """Keep this epoch for the protocols that choose it: best on test; and clean, best on validation, else the last."""
    if "test" in judged and ("best-on-test" not in best or row["test_mAP"] > best["best-on-test"].summary["mAP"]):
        best["best-on-test"] = _summary(row, judged)
    previous = best.get("clean")
    if "validation" not in judged or previous is None or row["validation_mAP"] > previous.summary["validation_mAP"]:
        best["clean"] = _summary(row, judged)


def _summary(row: dict, judged: dict[str, Judge]) -> Kept:
    judge = judged.get("test") or judged["validation"]
    report = multilabel_report(scored(judge.logits, judge.scoring), judge.split.labels, judge.split.groups)
    summary = {
        "epoch": row["epoch"], "split": "test" if "test" in judged else "validation",
        "validation_mAP": row.get("validation_mAP"), **{name: report[name] for name in GROUP_METRICS},
        "auroc": report["auroc"], "num_left_out": report["num_left_out"],
        "by_scoring": {how: {name: r[name] for name in GROUP_METRICS} for how, r in judge.reports.items()},
        "distances": dict(centroid_distances(judge.features, judge.split.labels)),
        "per_class_ap": report["per_class_ap"].tolist(),
    }  # fmt: skip
    return Kept(summary, judge.logits.astype(np.float32), judge.features.astype(np.float32))
