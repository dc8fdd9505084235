"""Evaluation of a model on a split, and the two protocols by which an epoch is chosen.

Scores are the softmax over classes for every method (release line 16); the same metrics on raw logits are
recorded beside them, since softmax makes the labels of one image compete.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from lmclip.config import Profile
from lmclip.datasets import LongTailDataset
from lmclip.metrics import centroid_distances, multilabel_report
from lmclip.records import GROUP_METRICS

EVALUATION_BATCH = 256


class Encoder(Protocol):
    """What evaluation needs of a learner: its model, label features (C, D) and image features (N, D), normalised."""

    model: torch.nn.Module

    def label_features(self) -> torch.Tensor: ...

    def encode_image(self, images: torch.Tensor) -> torch.Tensor: ...


@dataclass
class Judge:
    """Evaluates one split: keeps its images, and the logits and features of the last call."""

    split: LongTailDataset
    profile: Profile
    learner: Encoder

    def __post_init__(self):
        self.images = torch.from_numpy(self.split.images(size=self.profile.image_size)).permute(0, 3, 1, 2)

    def __call__(self) -> dict:
        """Metrics by softmax scores, as the release scores every method (release line 16)."""
        self.logits, self.features = predict(self.learner, self.images)
        return multilabel_report(softmax(self.logits), self.split.labels, self.split.groups)


def predict(learner: Encoder, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and normalised image features (N, D), in evaluation mode; label features are computed once."""
    learner.model.eval()
    with torch.inference_mode():
        labels, scale = learner.label_features(), learner.model.logit_scale.exp()
        features = torch.cat([learner.encode_image(batch) for batch in images.split(EVALUATION_BATCH)])
        return (scale * features @ labels.T).cpu().numpy(), features.cpu().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over classes, in float64: (N, C) to (N, C)."""
    shifted = np.exp(np.asarray(logits, dtype=np.float64) - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


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
    report = multilabel_report(softmax(judge.logits), judge.split.labels, judge.split.groups)
    raw = multilabel_report(judge.logits, judge.split.labels, judge.split.groups)
    summary = {
        "epoch": row["epoch"], "split": "test" if "test" in judged else "validation",
        "validation_mAP": row.get("validation_mAP"), **{name: report[name] for name in GROUP_METRICS},
        "auroc": report["auroc"], "num_left_out": report["num_left_out"],
        "raw_logits": {name: raw[name] for name in GROUP_METRICS},  # the same without softmax
        "distances": dict(centroid_distances(judge.features, judge.split.labels)),
        "per_class_ap": report["per_class_ap"].tolist(),
    }  # fmt: skip
    return Kept(summary, judge.logits.astype(np.float32), judge.features.astype(np.float32))
