"""The training loop: one flat loop for every method.

    record = train(experiment(profile, "lm-clip", seed=0, learning_rate=1e-4), profile, data)

On one CPU the same settings and seed give the same bits, whatever else the machine does: sums run on one
thread for the mini CLIP, every draw comes from a generator seeded with (seed, epoch).
"""

import time
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from tqdm import tqdm

from lmclip import losses, sampling
from lmclip.config import METHODS, Experiment, Profile
from lmclip.datasets import LongTailDataset, StudyData
from lmclip.errors import LMCLIPError
from lmclip.evaluation import Judge, keep_epoch, predict
from lmclip.models import (
    CLIP_STATISTICS,
    IMAGENET_STATISTICS,
    MINI_CLIP,
    encode_image,
    encode_text,
    load_model,
    weights_id,
)
from lmclip.paths import results_dir
from lmclip.records import Record, environment, is_finished, new_folder, peak_memory_mb, save_run

TEMPLATE = "a photo of a {}"  # the release's, for labels


def train(
    exp: Experiment, profile: Profile, data: StudyData, folder: Path | None = None, *, overwrite: bool = False,
    evaluate_test: bool = True, progress: bool = True,
) -> Record:  # fmt: skip
    """Run one experiment and write its record.

    Args:
        exp: the run's settings.
        profile: the profile they were made from (model, image size).
        data: its splits.
        folder: where the run's folder goes; ``results/<profile>/runs`` when None.
        overwrite: replace a finished run of the same id.
        evaluate_test: False keeps the test images unread (`lmclip tune`); only validation is judged.
        progress: show a bar with loss and rate.

    Raises:
        LMCLIPError: the run is finished already, an image is missing or corrupt, or nothing can be written.
    """
    folder = folder or results_dir(profile.folder) / "runs"
    if is_finished(folder / exp.run_id) and not overwrite:
        raise LMCLIPError(f"run {exp.run_id} is already finished; pass overwrite=True to replace it")
    new_folder(folder).rmdir()  # better to learn now than after training that nothing can be written
    start = time.perf_counter()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(exp.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device.type == "cpu" and profile.model == MINI_CLIP:
        torch.set_num_threads(1)

    learner = Learner(exp, profile, data.train, device)
    images = torch.from_numpy(data.train.images(size=profile.image_size)).permute(0, 3, 1, 2)
    splits = {"test": data.test if evaluate_test else None, "validation": data.validation}
    judged = {name: Judge(split, profile, learner, exp.scoring) for name, split in splits.items() if split}
    learner.fit_bias(images)

    history, best = [], {}
    for epoch in range(exp.epochs + 1):  # epoch 0 is the model before training
        row = {"epoch": epoch}
        if epoch:
            row |= _train_epoch(learner, images, epoch, progress)
        row["logit_scale"] = learner.model.logit_scale.exp().item()
        for split, judge in judged.items():
            judge()
            row |= judge.row(split)
        history.append(row)
        if epoch or not exp.epochs:
            keep_epoch(best, row, judged)

    protocols = {name: kept.summary for name, kept in best.items()}
    record = Record(
        run_id=exp.run_id, experiment=exp, data=describe(profile, data), precision="fp32", history=history,
        protocols=protocols, seconds=time.perf_counter() - start, peak_memory_mb=peak_memory_mb(device),
        **environment(device),
    )  # fmt: skip
    arrays = {f"logits_{name}": kept.logits for name, kept in best.items()}
    if evaluate_test:
        arrays |= {"targets": data.test.labels, "features": best["clean"].features}
    save_run(record, arrays, folder, overwrite)
    return record


class Learner:
    """What one run trains: the model, the method's loss, the sampler, the optimiser."""

    def __init__(self, exp: Experiment, profile: Profile, dataset: LongTailDataset, device: torch.device):
        self.exp, self.device = exp, device
        model, self.tokenizer = load_model(profile.model)
        self.model = model.to(device=device, memory_format=torch.channels_last)
        self.targets = torch.from_numpy(dataset.labels).float()
        self.weights = sampling.sampler_weights(exp.sampler, dataset.labels, exp.settings.power)
        self.loss = build_loss(exp, dataset.labels).to(device) if exp.loss != "none" else None
        self.contrastive = losses.ContrastiveLoss() if exp.contrastive else None
        # CLIP logits are all positive; element-wise losses on σ(x) need a bias to call anything absent. BAL divides
        # by the batch maximum instead, and has none.
        self.bias = nn.Parameter(torch.zeros((), device=device), requires_grad=exp.loss not in ("none", "bal"))
        self.label_tokens = self.tokenizer([TEMPLATE.format(name) for name in dataset.class_names]).to(device)
        captions = sorted(set(dataset.captions))
        self.caption_tokens = self.tokenizer(captions).to(device) if exp.contrastive else None
        self.caption_index = torch.tensor([captions.index(c) for c in dataset.captions])
        parameters = [*self.model.parameters(), *([self.bias] if self.bias.requires_grad else [])]
        self.parameters = [p for p in parameters if p.requires_grad]
        # release line 13: one group, weight decay on everything
        self.optimizer = torch.optim.AdamW(self.parameters, lr=exp.learning_rate, betas=(0.9, 0.98), eps=1e-9,
                                           weight_decay=exp.weight_decay, fused=True)  # fmt: skip
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=max(exp.epochs, 1))

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(N, D) normalised features of (N, 3, H, W) uint8 images."""
        statistics = CLIP_STATISTICS if self.exp.clip_statistics else IMAGENET_STATISTICS
        return encode_image(self.model, images.to(self.device), statistics)

    def label_features(self) -> torch.Tensor:
        """(C, D) normalised features of the labels' prompts."""
        return encode_text(self.model, self.label_tokens, normalize=True)

    def terms(self, images: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """One batch's loss terms, as weighted in the total: images (B, 3, H, W) uint8, their training rows (B,)."""
        image_features = self.encode_image(images)  # (B, D)
        tokens, caption_rows = self.label_tokens, None
        if self.contrastive:  # labels and the batch's distinct captions in one pass of the text tower
            distinct, caption_rows = self.caption_index[rows].unique(return_inverse=True)
            tokens = torch.cat([tokens, self.caption_tokens[distinct.to(self.device)]])
        text_features = encode_text(self.model, tokens, normalize=True)
        scale, terms = self.model.logit_scale.exp(), {}
        if self.contrastive:
            captions = text_features[len(self.label_tokens) + caption_rows.to(self.device)]  # (B, D)
            terms["contrastive"] = self.contrastive(image_features, captions, scale)
        if self.loss:
            logits = scale * image_features @ text_features[: len(self.label_tokens)].T + self.bias  # (B, C)
            weight = self.exp.settings.bal_weight if self.contrastive else 1.0
            terms["label"] = weight * self.loss(logits, self.targets[rows].to(self.device))
        return terms

    def fit_bias(self, images: torch.Tensor) -> None:
        """Start the bias where the frozen model's own loss is least, so that training need not first find it."""
        if not self.bias.requires_grad:
            return
        logits, _ = predict(self, images)
        logits, targets = torch.from_numpy(logits).to(self.device), self.targets.to(self.device)
        with torch.no_grad():
            fitted = minimize_scalar(
                lambda b: float(self.loss(logits + b, targets)), bounds=(-60, 20), method="bounded"
            )
            self.bias.fill_(fitted.x)


def build_loss(exp: Experiment, labels: np.ndarray) -> nn.Module:
    """The label loss that ``exp`` names, with class weights from the training labels (N, C)."""
    counts, s = torch.from_numpy(labels.sum(0, dtype=np.int64)), exp.settings
    balance = {"mu": 0.2, "lam": 2.0} if exp.profile == "coco" else {}  # DB's own settings per benchmark
    builders = {
        "bce": lambda: losses.BCELoss(),
        "focal": lambda: losses.FocalLoss(),
        "cb-focal": lambda: losses.FocalLoss(class_weight=losses.class_balanced_weights(counts)),
        "db": lambda: losses.DistributionBalancedLoss(counts, len(labels), **balance, focal=False),
        "db-focal": lambda: losses.DistributionBalancedLoss(counts, len(labels), **balance),
        "asl": lambda: losses.AsymmetricLoss(),  # its own paper's settings
        "bal": lambda: losses.BalancedAsymmetricLoss(
            torch.from_numpy(sampling.class_weights(labels, s.power)), s.gamma_neg, s.gamma_pos, s.clip,
            s.label_smoothing, smooth_negatives=exp.smooth_negatives),
    }  # fmt: skip
    return builders[exp.loss]()


# ── one epoch ───────────────────────────────────────────────────────────────────────────────────


def _train_epoch(learner: Learner, images: torch.Tensor, epoch: int, progress: bool) -> dict[str, float]:
    exp, start = learner.exp, time.perf_counter()
    generator = torch.Generator().manual_seed(1_000_003 * exp.seed + epoch)
    if learner.weights is None:
        order = torch.randperm(len(images), generator=generator)
    else:
        order = torch.from_numpy(sampling.draw(learner.weights, len(images), generator))
    learner.model.train()  # BatchNorm too, as in the release
    row = {"learning_rate": learner.schedule.get_last_lr()[0]}
    sums = {"loss": 0.0, "gradient_norm": 0.0}
    batches = order.split(exp.batch_size)
    title = f"{METHODS[exp.method].title} seed {exp.seed}, epoch {epoch}/{exp.epochs}"
    for step, rows in enumerate(bar := tqdm(batches, desc=title, unit="step", disable=not progress, mininterval=1)):
        flip = torch.rand(len(rows), generator=generator) < 0.5
        batch = torch.where(flip[:, None, None, None], images[rows].flip(3), images[rows])
        terms = learner.terms(batch, rows)
        loss = sum(terms.values())
        if step == 0 and len(terms) == 2:
            row |= _gradient_shares(terms, learner.parameters)
        learner.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in learner.parameters if p.grad is not None])
        learner.optimizer.step()
        if exp.clamp_logit_scale:
            learner.model.logit_scale.data.clamp_(max=float(np.log(100)))
        sums["loss"] += loss.item()
        sums["gradient_norm"] += norm.item()
        for name, term in terms.items():
            sums[f"{name}_loss"] = sums.get(f"{name}_loss", 0.0) + term.item()
        bar.set_postfix(loss=f"{loss.item():.3f}")
    learner.schedule.step()
    row |= {name: total / len(batches) for name, total in sums.items()}
    row["bias"] = learner.bias.item()
    row["train_seconds"] = time.perf_counter() - start
    return row


def _gradient_shares(terms: dict[str, torch.Tensor], parameters: list[nn.Parameter]) -> dict[str, float]:
    """Gradient norm of each weighted term alone, on the epoch's first batch, and the cosine between the two."""
    flat = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        flat[name] = torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                                for g, p in zip(gradients, parameters, strict=True)])  # fmt: skip
    norms = {f"{name}_gradient_norm": g.norm().item() for name, g in flat.items()}
    cosine = nn.functional.cosine_similarity(*flat.values(), dim=0).item()
    return {**norms, "gradient_cosine": cosine}


def describe(profile: Profile, data: StudyData) -> dict:
    """What a record says of its data and weights; runs with different descriptions are not the same run."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    groups = data.train.groups
    return {
        "splits": {name: {"name": split.name, "images": len(split), "fingerprint": split.fingerprint,
                          "source": split.provenance["source"]} for name, split in splits.items() if split},
        "weights": weights_id(profile.model), "class_names": list(data.train.class_names),
        "train_counts": data.train.counts.tolist(),
        "groups": {name: [int(c) for c in getattr(groups, name)] for name in ("head", "medium", "tail")},
    }  # fmt: skip
