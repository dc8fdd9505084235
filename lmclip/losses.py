r"""The losses under study, as modules on plain tensors: copy one into your training script and it works.

Notation, the same in every docstring and in notebook 03: x logits and y targets, both (B, C);
p = σ(x); every loss first computes its (B, C) terms, then reduces them, so that
``reduction="none"`` shows exactly what ``reduction="mean"`` trains on.

Precision: float64 stays float64; everything narrower (bfloat16, float16, also under autocast) is
computed and returned in float32. Logs of probabilities are log-sigmoids, never log(clamp(p)), so that
logits of ±100 keep a finite value and gradient. The authors' releases clamp p at 1e-8 instead, which
only differs where p < 1e-8.

Every loss raises ``LMCLIPError`` on a shape mismatch, an empty batch, or a NaN or infinite logit, target or feature.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from lmclip.errors import LMCLIPError
from lmclip.loss_terms import (
    checked,
    class_vector,
    focusing,
    known_clip,
    known_reduction,
    log_shifted,
    over_batch_max,
    positive_counts,
    power,
    reduced,
    similarity,
)


class BCELoss(nn.Module):
    r"""Binary cross-entropy, the baseline: L = −[y log p + (1 − y) log(1 − p)]; ∂L/∂x = p − y."""

    def __init__(self, reduction: str = "mean"):
        super().__init__()
        self.reduction = known_reduction(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of (B, C) logits against (B, C) targets in [0, 1]: a scalar, or (B, C) for reduction "none"."""
        logits, targets = checked(logits, targets)
        return reduced(binary_cross_entropy_with_logits(logits, targets, reduction="none"), self.reduction)


class FocalLoss(nn.Module):
    r"""Focal loss (Lin et al., ICCV 2017, eq. 4), per class: L = −w_c (1 − p_t)^γ log p_t, p_t = p if y = 1 else 1 − p.

    γ = 2 is the paper's; its α is not used. With ``class_weight=class_balanced_weights(counts)`` this is
    the class-balanced focal loss of Cui et al. (CVPR 2019), w_c acting on a class's positives and negatives alike.
    Gradients flow through the focusing factor, as in the paper.
    """

    def __init__(self, gamma: float = 2.0, class_weight: Tensor | None = None, reduction: str = "mean"):
        super().__init__()
        self.gamma = gamma
        self.reduction = known_reduction(reduction)
        self.register_buffer("class_weight", None if class_weight is None else torch.as_tensor(class_weight))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of (B, C) logits against (B, C) targets in [0, 1]: a scalar, or (B, C) for reduction "none"."""
        logits, targets = checked(logits, targets)
        one_minus_pt = torch.sigmoid(-logits) * targets + torch.sigmoid(logits) * (1 - targets)
        terms = power(one_minus_pt, self.gamma) * binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return reduced(terms * class_vector(self.class_weight, logits, default=1.0), self.reduction)


def class_balanced_weights(counts: Tensor, beta: float = 0.9999) -> Tensor:
    r"""Class-balanced weights of Cui et al. (CVPR 2019, eq. 6): w_c ∝ (1 − β) / (1 − β^{n_c}), normalised to mean 1.

    ``counts`` (C,) are training images per class, ``beta`` in [0, 1): the paper tries 0.9, 0.99, 0.999 and 0.9999
    (0 is no weighting, → 1 is 1/n_c). A class without images raises ``LMCLIPError``.
    """
    counts = positive_counts(counts)
    weights = (1 - beta) / (1 - beta**counts)
    return weights / weights.mean()


class AsymmetricLoss(nn.Module):
    r"""Asymmetric loss, ASL (Ridnik et al., ICCV 2021, eqs. 4–8).

    q = min(1 − p + m, 1);  L = −y (1 − p)^{γ₊} log p − (1 − y) (1 − q)^{γ₋} log q.
    The shift m (``clip``) silences every negative with p ≤ m. The paper's values: γ₋ = 4, γ₊ = 0 or 1, m = 0.05.

    Two things vary between releases. ASL's origin sums over the batch; the LM-CLIP release takes the mean (the default
    here). ASL's training script stops the gradient at the focusing factors; LM-CLIP's lets it flow (the default);
    ``detach_focusing=True`` stops it.
    """

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float = 0.05,
        reduction: str = "mean",
        detach_focusing: bool = False,
    ):
        super().__init__()
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, known_clip(clip)
        self.detach_focusing = detach_focusing
        self.reduction = known_reduction(reduction)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of (B, C) logits against (B, C) targets in {0, 1}: a scalar, or (B, C) for reduction "none"."""
        x, y = checked(logits, targets)
        log_p, log_q = logsigmoid(x), log_shifted(x, self.clip)
        factor = focusing(log_p, log_q, y, 1 - y, self.gamma_pos, self.gamma_neg)
        factor = factor.detach() if self.detach_focusing else factor
        return reduced(-(y * log_p + (1 - y) * log_q) * factor, self.reduction)


class DistributionBalancedLoss(nn.Module):
    r"""Distribution-balanced loss, DB and DB-focal (Wu et al., ECCV 2020, eqs. 4–9).

    Re-balanced weighting:  r = (1/n_c) / Σ_{y_k=1} (1/n_k),  r̂ = α + σ(β (r − μ)), per image and class.
    Negative-tolerant regularisation:  z = x − κ log(N/n_c − 1), negatives scaled by λ and their loss by 1/λ:
    L = r̂ [y f(z) + (1 − y) f(−λz) / λ],  f(t) = (1 − σ(t))^γ · −log σ(t)  (γ = 0, ``focal=False``: plain DB).

    Paper's values: α = 0.1, β = 10, κ = 0.05, γ = 2; VOC-MLT μ = 0.3, λ = 5 (the defaults), COCO-MLT μ = 0.2, λ = 2.
    Their later code divides κ by λ and doubles the focal form: pass ``kappa=0.05 / lam`` and double the loss for that.
    An image without positives has r = ∞, hence r̂ = 1 + α. A class that every image carries (n_c = N) would
    have an infinite bias; it is counted as N − ½. A class without images raises ``LMCLIPError``.
    """

    def __init__(
        self,
        class_counts: Tensor,
        num_images: int,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.3,
        kappa: float = 0.05,
        lam: float = 5.0,
        gamma: float = 2.0,
        focal: bool = True,
        reduction: str = "mean",
    ):
        super().__init__()
        counts = positive_counts(class_counts)
        if counts.max() > num_images:
            raise LMCLIPError(
                f"A class has {counts.max():g} images but num_images is {num_images}: pass the image count."
            )
        self.alpha, self.beta, self.mu, self.lam = alpha, beta, mu, lam
        self.gamma = gamma if focal else 0.0
        self.reduction = known_reduction(reduction)
        self.register_buffer("inverse_count", 1 / counts)
        self.register_buffer("bias", -kappa * torch.log(num_images / counts.clamp(max=num_images - 0.5) - 1))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of (B, C) logits against (B, C) targets in {0, 1}: a scalar, or (B, C) for reduction "none"."""
        x, y = checked(logits, targets)
        inverse_count = class_vector(self.inverse_count, x, default=1.0)
        z = x + class_vector(self.bias, x, default=0.0)
        z = torch.where(y > 0, z, -self.lam * z)  # the logit of being right: f is the same for both signs
        ratio = inverse_count / (y * inverse_count).sum(dim=1, keepdim=True)
        weight = self.alpha + torch.sigmoid(self.beta * (ratio - self.mu))
        weight = torch.where(y > 0, weight, weight / self.lam)
        return reduced(weight * power(torch.sigmoid(-z), self.gamma) * -logsigmoid(z), self.reduction)


class BalancedAsymmetricLoss(nn.Module):
    r"""Balanced asymmetric loss, BAL, as the LM-CLIP release computes it (IEEE Access 2025; golden to 1e-10).

    z = x / max x (over the whole batch),  p = σ(z),  q = min(1 − p + m, 1),  y′ = (1 − ε) y + ε / C,
    L = −[(1 + w_c) y′ log p + (1 − y) log q] · (1 − p y′ − q (1 − y))^{γ₊ y′ + γ₋ (1 − y)}.
    Gradients flow through the focusing factor and through the maximum. Defaults are the release's for ViT-B/16.

    class_weight: (C,) w_c in [0, 1], rare classes near 1 (``sampling.class_weights``); None means w_c = 0.
    logit_norm: "batch_max" as above, or "none" for z = x.
    smooth_negatives: the release smooths y but not 1 − y; True replaces 1 − y by 1 − y′ throughout.

    Where smoothing makes the focusing base negative (p < m on a negative: a fractional power of it is NaN in the
    release) it is 0 here. **Zero maximum**: x / max x is 0/0, and its limits from above and below differ (all other
    probabilities tend to 0 or to 1), so no value continues it. A batch with |max x| < 1e-8 is therefore not
    normalised at all, z = x: finite, and a zero-initialised head still receives a gradient that moves it off zero.
    A *negative* maximum is used as it is: it flips the order of the logits, as in the release.
    """

    def __init__(
        self,
        class_weight: Tensor | None = None,
        gamma_neg: float = 9.8,
        gamma_pos: float = 0.0,
        clip: float = 0.05,
        label_smoothing: float = 0.1,
        logit_norm: str | None = "batch_max",
        reduction: str = "mean",
        smooth_negatives: bool = False,
    ):
        super().__init__()
        if logit_norm not in ("batch_max", "none", None):
            raise LMCLIPError(f'logit_norm is {logit_norm!r}: use "batch_max" or "none".')
        if not 0 <= label_smoothing < 1:
            raise LMCLIPError(f"label_smoothing is {label_smoothing}: use a value in [0, 1).")
        self.gamma_neg, self.gamma_pos, self.clip = gamma_neg, gamma_pos, known_clip(clip)
        self.label_smoothing, self.smooth_negatives = label_smoothing, smooth_negatives
        self.logit_norm = logit_norm
        self.reduction = known_reduction(reduction)
        self.register_buffer("class_weight", None if class_weight is None else torch.as_tensor(class_weight))

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of (B, C) logits against (B, C) targets in {0, 1}: a scalar, or (B, C) for reduction "none"."""
        positive, negative, log_p, log_q = self._parts(logits, targets)
        factor = focusing(log_p, log_q, positive, negative, self.gamma_pos, self.gamma_neg)
        weight = 1 + class_vector(self.class_weight, log_p, default=0.0)
        return reduced(-(weight * positive * log_p + negative * log_q) * factor, self.reduction)

    def _parts(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y′, the target of the negative branch, log p and log q, each (B, C)."""
        x, y = checked(logits, targets)
        z = over_batch_max(x) if self.logit_norm == "batch_max" else x
        positive = (1 - self.label_smoothing) * y + self.label_smoothing / y.shape[1]
        negative = 1 - (positive if self.smooth_negatives else y)
        return positive, negative, logsigmoid(z), log_shifted(z, self.clip)


class PlottedBalancedAsymmetricLoss(BalancedAsymmetricLoss):
    r"""The loss behind the release's gradient plots: never trained, only drawn (notebook 03).

    L = −w_c y′ log p · sg[(1 − p y′)^{γ₊ y′}] − (1 − y) log q · sg[(1 − q (1 − y))^{γ₋ (1 − y)}]: w_c without
    the 1, one focusing factor per branch, and no gradient through either (sg stops it). None means w_c = 1.
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of (B, C) logits against (B, C) targets in {0, 1}: a scalar, or (B, C) for reduction "none"."""
        positive, negative, log_p, log_q = self._parts(logits, targets)
        focusing_pos = power(1 - log_p.exp() * positive, self.gamma_pos * positive).detach()
        focusing_neg = power(1 - log_q.exp() * negative, self.gamma_neg * negative).detach()
        weighted = class_vector(self.class_weight, log_p, default=1.0) * positive * log_p
        return reduced(-weighted * focusing_pos - negative * log_q * focusing_neg, self.reduction)


class ContrastiveLoss(nn.Module):
    r"""Symmetric image–text loss of CLIP (Radford et al., 2021, fig. 3), one process; equals ``open_clip.ClipLoss``.

    S = τ · image · textᵀ (B, B), row i and column i matching: L = ½ [CE(S, i) + CE(Sᵀ, i)]. Two images with the same
    caption count as each other's negatives.
    """

    def forward(self, image_features: Tensor, text_features: Tensor, logit_scale: Tensor | float) -> Tensor:
        """Scalar loss of (B, D) image and (B, D) text features, L2-normalised, with the *exponentiated* scale τ.

        These are the three things that an open_clip model returns. Features are not normalised again here.
        """
        if image_features.shape != text_features.shape:
            shapes = f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
            raise LMCLIPError(f"Image and text features have shapes {shapes}: pass one text per image.")
        logits = similarity(image_features, text_features, logit_scale)
        matching = torch.arange(len(logits), device=logits.device)
        return (cross_entropy(logits, matching) + cross_entropy(logits.T, matching)) / 2


class LMCLIPLoss(nn.Module):
    r"""LM-CLIP's training loss: L = contrastive(image, caption) + λ · BAL(τ · image · labelᵀ, y).

    ``bal`` is any loss of this module on (B, C) logits that returns a scalar, ``bal_weight`` is λ (0.4 and 0.2 on
    VOC-MLT, 5 and 6 on COCO-MLT, for ViT-B/16 and RN50).
    """

    def __init__(self, bal: nn.Module, bal_weight: float):
        super().__init__()
        if getattr(bal, "reduction", "mean") == "none":
            raise LMCLIPError('LMCLIPLoss needs a bal that returns a scalar: give it reduction="mean" or "sum".')
        self.contrastive, self.bal, self.bal_weight = ContrastiveLoss(), bal, bal_weight

    def forward(
        self,
        image_features: Tensor,
        caption_features: Tensor,
        label_features: Tensor,
        logit_scale: Tensor | float,
        targets: Tensor,
    ) -> dict[str, Tensor]:
        """Scalars ``contrastive_loss``, ``bal_loss`` (before λ) and ``loss`` (their weighted sum, to call backward on).

        Image and caption features are (B, D), label features (C, D), all L2-normalised; ``logit_scale`` is the
        exponentiated scale τ, as open_clip models return it; targets are (B, C).
        """
        contrastive = self.contrastive(image_features, caption_features, logit_scale)
        bal = self.bal(similarity(image_features, label_features, logit_scale), targets)
        return {"contrastive_loss": contrastive, "bal_loss": bal, "loss": contrastive + self.bal_weight * bal}
