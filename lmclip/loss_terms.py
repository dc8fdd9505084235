"""What the losses share: checks of their input, stable logs and powers, the batch maximum, the reduction."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from lmclip.errors import LMCLIPError

ZERO_MAXIMUM = 1e-8  # a batch maximum closer to zero than this sets no scale; see BalancedAsymmetricLoss


def checked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and targets, both (B, C), in the precision of the computation, after the checks that every loss makes."""
    if logits.ndim != 2 or logits.shape != targets.shape:
        shapes = f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        raise LMCLIPError(f"Logits and targets have shapes {shapes}: both must be (batch, classes).")
    if logits.numel() == 0:
        raise LMCLIPError(f"Logits have shape {tuple(logits.shape)}: a loss needs at least one image and one class.")
    logits = at_least_float32(logits)
    targets = targets.to(logits.dtype)
    if not torch.isfinite(logits + targets).all():  # one pass over both; the culprit is only sought on failure
        refuse_non_finite(logits, "Logits")
        refuse_non_finite(targets, "Targets")
    return logits, targets


def similarity(image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float) -> Tensor:
    """τ · image · textᵀ, (B, D) and (C, D) to (B, C), in full precision also under autocast."""
    if image_features.ndim != 2 or text_features.ndim != 2 or image_features.shape[1] != text_features.shape[1]:
        shapes = f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        raise LMCLIPError(f"Image and text features have shapes {shapes}: both must be (rows, the same width).")
    image_features, text_features = at_least_float32(image_features), at_least_float32(text_features)
    with torch.autocast(image_features.device.type, enabled=False):
        logits = logit_scale * image_features @ text_features.T
    if not torch.isfinite(logits).all():
        refuse_non_finite(image_features, "Image features")
        refuse_non_finite(text_features, "Text features")
        refuse_non_finite(logits, "Logits (logit_scale times cosine)")
    return logits


def reduced(terms: Tensor, reduction: str) -> Tensor:
    """The (B, C) terms themselves, their sum or their mean."""
    return {"none": lambda t: t, "sum": torch.sum, "mean": torch.mean}[reduction](terms)


def focusing(log_p: Tensor, log_q: Tensor, positive: Tensor, negative: Tensor, gamma_pos: float, gamma_neg: float):
    """(1 − p·positive − q·negative)^(γ₊·positive + γ₋·negative), the factor that ASL and BAL share; (B, C)."""
    base = 1 - log_p.exp() * positive - log_q.exp() * negative
    return power(base, gamma_pos * positive + gamma_neg * negative)


def power(base: Tensor, exponent: Tensor | float) -> Tensor:
    """base^exponent with a finite gradient at 0, also for exponents in (0, 1); negative bases count as 0."""
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent


def log_shifted(logits: Tensor, clip: float) -> Tensor:
    """log q for q = min(1 − p + m, 1) with p = σ(logits) and the shift m = ``clip``; accurate for any logit."""
    log_not_p = logsigmoid(-logits)
    if clip == 0:
        return log_not_p
    return torch.logaddexp(log_not_p, torch.tensor(clip, dtype=logits.dtype, device=logits.device).log()).clamp(max=0)


def over_batch_max(logits: Tensor) -> Tensor:
    """x / max x over the whole batch; unchanged where the maximum is zero and so sets no scale."""
    maximum = logits.max()
    return logits / torch.where(maximum.abs() < ZERO_MAXIMUM, torch.ones_like(maximum), maximum)


def class_vector(values: Tensor | None, logits: Tensor, default: float) -> Tensor | float:
    """Per-class values (C,) in the logits' precision, ``default`` for None."""
    if values is None:
        return default
    if values.shape != logits.shape[1:]:
        shapes = f"{tuple(values.shape)} and {tuple(logits.shape)}"
        raise LMCLIPError(f"Class weights and logits have shapes {shapes}: one weight per class is needed.")
    return values.to(logits.dtype)


def at_least_float32(values: Tensor) -> Tensor:
    """float64 as it is, everything narrower as float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def refuse_non_finite(values: Tensor, name: str) -> None:
    """Raise ``LMCLIPError`` naming the first row of ``values`` that holds a NaN or an infinity, if any does."""
    bad = (~torch.isfinite(values)).any(dim=1).nonzero()
    if len(bad):
        row = int(bad[0])
        what = "NaN" if values[row].isnan().any() else "infinity"
        remedy = "look at that input, or lower the learning rate if training diverged"
        raise LMCLIPError(f"{name} hold {what} in row {row} (the first of {len(bad)} bad rows): {remedy}.")


def positive_counts(counts) -> Tensor:
    """Training images per class (C,) in float64; ``LMCLIPError`` for a class without any."""
    counts = torch.as_tensor(counts, dtype=torch.float64)
    empty = (counts <= 0).nonzero()
    if len(empty):
        raise LMCLIPError(f"Class {int(empty[0])} has no training image: drop the class or add an image of it.")
    return counts


def known_reduction(reduction: str) -> str:
    """``reduction`` if it is "mean", "sum" or "none"."""
    if reduction not in ("mean", "sum", "none"):
        raise LMCLIPError(f'reduction is {reduction!r}: use "mean", "sum" or "none".')
    return reduction


def known_clip(clip: float) -> float:
    """The shift m if it lies in [0, 1)."""
    if not 0 <= clip < 1:
        raise LMCLIPError(f"clip is {clip}: use a probability in [0, 1).")
    return clip
