"""The slow side of speed.py: what the authors' release computes, in the way it computes it.

Texts are padded to 77 tokens; captions and labels pass the text tower apart, and labels do so again at every training
step and every evaluation batch; everything is eager fp32, with torch's default AdamW; each JPEG is decoded by PIL
whenever it is needed; start-up loops over images × classes and tokenises one caption at a time. Nothing is slower than
it has to be for that. (Losses are this project's own: they are the same arithmetic on both sides, and cost nothing.)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from lmclip.config import Experiment, Profile
from lmclip.datasets import LongTailDataset
from lmclip.learner import TEMPLATE, build_loss
from lmclip.losses import ContrastiveLoss
from lmclip.models import CLIP_STATISTICS, load_model


class ReleasedLearner:
    """LM-CLIP's training step and evaluation as released, from the same weights as `lmclip.learner.Learner`."""

    def __init__(self, exp: Experiment, profile: Profile, dataset: LongTailDataset, device: torch.device):
        model, tokenizer = load_model(profile.model, profile.weights)
        self.model, self.device = model.to(device), device
        self.label_tokens = tokenizer([TEMPLATE.format(name) for name in dataset.class_names]).to(device)  # (C, 77)
        self.caption_tokens = torch.cat([tokenizer([caption]) for caption in dataset.captions]).to(device)  # (N, 77)
        self.targets = torch.from_numpy(dataset.labels).float().to(device)
        self.loss, self.contrastive = build_loss(exp, dataset.labels).to(device), ContrastiveLoss()
        self.weight = exp.settings.bal_weight
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=exp.learning_rate, betas=(0.9, 0.98), eps=1e-9,
                                           weight_decay=exp.weight_decay)  # fmt: skip

    def total_loss(self, images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Contrastive loss and weighted BAL of images (B, 3, H, W), normalised float32, and their rows (B,)."""
        image_features = self.model.encode_image(images, normalize=True)  # (B, D)
        captions = self.model.encode_text(self.caption_tokens[rows], normalize=True)  # (B, D)
        labels = self.model.encode_text(self.label_tokens, normalize=True)  # (C, D)
        scale = self.model.logit_scale.exp()
        logits = scale * image_features @ labels.T
        return self.contrastive(image_features, captions, scale) + self.weight * self.loss(logits, self.targets[rows])

    def step(self, images: torch.Tensor, rows: torch.Tensor) -> float:
        """One training step on images (B, 3, H, W), normalised float32; its loss."""
        self.optimizer.zero_grad()
        loss = self.total_loss(images.to(self.device), rows)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def predict(self, batches: Sequence[torch.Tensor]) -> np.ndarray:
        """Logits (N, C) of batches of normalised float32 images; the labels are encoded anew for each batch."""
        self.model.eval()
        logits = []
        for images in batches:
            image_features = self.model.encode_image(images.to(self.device), normalize=True)
            labels = self.model.encode_text(self.label_tokens, normalize=True)
            logits.append((self.model.logit_scale.exp() * image_features @ labels.T).cpu())
        return torch.cat(logits).numpy()


class ReleasedImages(Dataset):
    """Files as normalised float32 images (3, size, size): decoded, squashed and flipped whenever one is asked for."""

    def __init__(self, files: Sequence[Path], size: int, flip: float = 0.5):
        self.files = files
        self.transform = transforms.Compose(
            [
                transforms.Resize((size, size)),
                transforms.RandomHorizontalFlip(flip),
                transforms.ToTensor(),
                transforms.Normalize(*CLIP_STATISTICS),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.transform(Image.open(self.files[row]).convert("RGB"))


def released_batches(files: Sequence[Path], size: int, batch: int, workers: int, flip: float = 0.5) -> DataLoader:
    """An epoch's batches of `ReleasedImages`, read by ``workers`` processes (0: by this one)."""
    return DataLoader(ReleasedImages(files, size, flip), batch, num_workers=workers)


def released_start_up(lists: Sequence[Path], class_names: Sequence[str], tokenizer) -> tuple[np.ndarray, torch.Tensor]:
    """Labels (N, C) and caption tokens (N, 77) of label lists, by a loop over images × classes."""
    labels, tokens = [], []
    for path in lists:
        for line in path.read_text().splitlines():
            _, *indices = line.split()
            row = np.zeros(len(class_names), dtype=np.uint8)
            row[[int(index) for index in indices]] = 1
            labels.append(row)
    for row in labels:
        names = []
        for c in range(len(class_names)):
            if row[c] == 1:
                names.append(class_names[c])
        tokens.append(tokenizer("a photo of a " + ", ".join(names)))
    return np.stack(labels), torch.cat(tokens)


def looped_bootstrap(scores_a: np.ndarray, scores_b: np.ndarray, targets: np.ndarray, resamples: int) -> np.ndarray:
    """mAP differences (R,) over resamples of the images: scikit-learn's AP for one class of one resample at a time."""
    rng, differences = np.random.default_rng(0), []
    for _ in range(resamples):
        rows = rng.integers(len(targets), size=len(targets))
        present = np.flatnonzero(targets[rows].any(0))
        a, b = (np.mean([average_precision_score(targets[rows, c], scores[rows, c]) for c in present])
                for scores in (scores_a, scores_b))  # fmt: skip
        differences.append(a - b)
    return np.array(differences)
