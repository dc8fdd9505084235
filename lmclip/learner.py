"""What one run trains: a CLIP, the method's loss, the sampler, the optimiser; in the precision that is asked for."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import open_clip
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from lmclip import losses, sampling
from lmclip.captions import tokenize_lists
from lmclip.config import Experiment, Profile
from lmclip.datasets import LongTailDataset
from lmclip.errors import LMCLIPError
from lmclip.evaluation import predict
from lmclip.models import CLIP_STATISTICS, IMAGENET_STATISTICS, encode_image, encode_text, load_model

TEMPLATE = "a photo of a {}"  # the release's, for labels
_TEXTS_AT_ONCE = 512


class Learner:
    """What one run trains: the model, the method's loss, the sampler, the optimiser."""

    def __init__(self, exp: Experiment, profile: Profile, dataset: LongTailDataset, device: torch.device):
        self.exp, self.device = exp, device
        set_precision(exp.precision, device)
        model, self.tokenizer = load_model(profile.model, profile.weights)
        self.model = model.to(device=device, memory_format=torch.channels_last)
        if exp.grad_checkpointing:  # of RN50, open_clip checkpoints the text tower only
            self.model.set_grad_checkpointing()
        self.class_names, self._ensemble = dataset.class_names, None
        self.targets = torch.from_numpy(dataset.labels).float()
        self.weights = sampling.sampler_weights(exp.sampler, dataset.labels, exp.settings.power)
        self.loss = build_loss(exp, dataset.labels).to(device) if exp.loss != "none" else None
        self.contrastive = losses.ContrastiveLoss() if exp.contrastive else None
        # CLIP logits are all positive; element-wise losses on σ(x) need a bias to call anything absent. BAL divides
        # by the batch maximum instead, and has none.
        self.bias = nn.Parameter(torch.zeros((), device=device), requires_grad=exp.loss not in ("none", "bal"))
        self.label_tokens = self.tokenizer([TEMPLATE.format(name) for name in dataset.class_names]).to(device)
        captions, index = np.unique(dataset.captions, return_inverse=True)
        self.caption_tokens = tokenize_lists(self.tokenizer, captions.tolist()).to(device) if exp.contrastive else None
        self.caption_index = torch.from_numpy(index)  # (N,) which of the distinct captions an image has
        parameters = [*self.model.parameters(), *([self.bias] if self.bias.requires_grad else [])]
        self.parameters = [p for p in parameters if p.requires_grad]
        # release line 13: one group, weight decay on everything
        self.optimizer = torch.optim.AdamW(self.parameters, lr=exp.learning_rate, betas=(0.9, 0.98), eps=1e-9,
                                           weight_decay=exp.weight_decay, fused=True)  # fmt: skip
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=max(exp.epochs, 1))

    def towers(self) -> torch.autocast:
        """The precision of the two towers, as a context; what comes out of them is float32, and so are the losses."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.exp.precision == "bf16")

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        """(N, D) normalised features of (N, 3, H, W) uint8 images."""
        statistics = CLIP_STATISTICS if self.exp.clip_statistics else IMAGENET_STATISTICS
        with self.towers():
            return encode_image(self.model, images.to(self.device, non_blocking=True), statistics)

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        """(N, D) normalised features of (N, context length) tokens."""
        with self.towers():
            return encode_text(self.model, tokens.to(self.device), normalize=True)

    def label_features(self) -> torch.Tensor:
        """(C, D) normalised features of the labels' prompts, or of the means over CLIP's 80 templates."""
        if self.exp.templates == "release":
            return self.encode_text(self.label_tokens)
        if self._ensemble is None:  # zero-shot: the model stays as it is
            templates = open_clip.OPENAI_IMAGENET_TEMPLATES[: 2 if self.exp.smoke else None]
            prompts = [template(name) for name in self.class_names for template in templates]
            parts = [self.encode_text(self.tokenizer(prompts[i : i + _TEXTS_AT_ONCE]))
                     for i in range(0, len(prompts), _TEXTS_AT_ONCE)]  # fmt: skip
            means = torch.cat(parts).view(len(self.class_names), len(templates), -1).mean(1)
            self._ensemble = nn.functional.normalize(means, dim=-1)
        return self._ensemble

    def terms(self, images: torch.Tensor, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """One batch's loss terms, as weighted in the total: images (B, 3, H, W) uint8, their training rows (B,)."""
        image_features = self.encode_image(images)  # (B, D)
        tokens, caption_rows = self.label_tokens, None
        if self.contrastive:  # labels and the batch's distinct captions in one pass of the text tower
            distinct, caption_rows = self.caption_index[rows].unique(return_inverse=True)
            tokens = torch.cat([tokens, self.caption_tokens[distinct.to(self.device)]])
        text_features = self.encode_text(tokens)
        scale, terms = self.model.logit_scale.exp(), {}
        if self.contrastive:
            captions = text_features[len(self.label_tokens) + caption_rows.to(self.device)]  # (B, D)
            terms["contrastive"] = self.contrastive(image_features, captions, scale)
        if self.loss:
            logits = scale * image_features @ text_features[: len(self.label_tokens)].T + self.bias  # (B, C)
            weight = self.exp.settings.bal_weight if self.contrastive else 1.0
            terms["label"] = weight * self.loss(logits, self.targets[rows].to(self.device))
        return terms

    def fit_bias(self, images: np.ndarray) -> None:
        """Start the bias where the frozen model's own loss is least on ``images`` (N, H, W, 3) uint8."""
        if not self.bias.requires_grad:
            return
        images = images[: self.exp.draws or None]  # an epoch that is cut short makes do with fewer
        logits, targets = torch.from_numpy(predict(self, images)[0]), self.targets[: len(images)]
        logits, targets = logits.to(self.device), targets.to(self.device)
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


def set_precision(precision: str, device: torch.device) -> None:
    """Let float32 matrix products run as TF32, or not. (bf16 is a context of the learner's.)

    Raises:
        LMCLIPError: TF32 was asked of a CPU, which has none.
    """
    if precision == "tf32" and device.type != "cuda":
        raise LMCLIPError("precision tf32 is a mode of NVIDIA GPUs, and there is none here; use fp32 or bf16")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def enough_memory(exp: Experiment, device: torch.device) -> Iterator[None]:
    """Turns running out of memory into an LMCLIPError that names the settings that need less."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "can't allocate memory" not in str(error):
            raise
        settings = {
            "precision bf16": exp.precision != "bf16", "grad_checkpointing True": not exp.grad_checkpointing,
            "a smaller backbone": exp.backbone in ("vit-b-16", "vit-l-14"),
            "a smaller batch_size (which is another run: the losses depend on the batch)": exp.batch_size > 1,
        }  # fmt: skip
        less = ", ".join(name for name, helps in settings.items() if helps) or "another machine"
        where = "this machine's memory"
        if device.type == "cuda":
            where = f"the {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB of the GPU"
        raise LMCLIPError(f"{exp.method} with {exp.backbone} at batch {exp.batch_size} in {exp.precision} does not fit "
                          f"into {where}; what needs less: {less}") from error  # fmt: skip
