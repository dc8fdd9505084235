"""Settings: frozen, validated, and complete enough to name a run.

``Profile`` (profiles.py) says which data, which model and how much of it; ``Experiment`` says what one training run
does. Unknown keys and values out of range are errors, never ignored.
"""

import ast
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from lmclip.errors import LMCLIPError
from lmclip.profiles import (
    BACKBONES,
    EXPERIMENT_OVERRIDES,
    PROFILE_OVERRIDES,
    PROFILES,
    RELEASE,
    SMOKE,
    SMOKE_GLYPH,
    SMOKE_PHOTOGRAPHS,
    LossSettings,
    Profile,
    Settings,
    weights_label,
)

LossName = Literal["none", "bce", "focal", "cb-focal", "db", "db-focal", "asl", "bal"]
SamplerName = Literal["uniform", "class-aware", "inverse-frequency", "power"]


def load_profile(
    name: str, smoke: bool = False, backbone: str = "", weights: str = "auto", overrides: Mapping | str = ()
) -> Profile:
    """The profile called ``name``.

    Args:
        name: "glyph", "voc" or "coco".
        smoke: the smallest size that still runs every line.
        backbone: "rn50", "vit-b-16" (the default) or "vit-l-14" of the real benchmarks; glyph has the mini CLIP.
        weights: "auto", "random" or the path of a weights file.
        overrides: settings that differ from the profile's, by name, as ``{"epochs": 10, "bal_weight": 0.2}``: seeds
            and other sizes, any of `LossSettings`, and how an experiment is run; also as text, which is what papermill
            hands on. Anything but seeds gets a results folder of its own.

    Raises:
        LMCLIPError: no such profile, backbone, weights file or setting, or a value out of range.
    """
    if name not in PROFILES:
        raise LMCLIPError(f"unknown profile {name!r}; choose one of: {', '.join(PROFILES)}")
    profile = PROFILES[name]
    backbones = ("mini-clip",) if name == "glyph" else tuple(BACKBONES)[1:]
    if backbone and backbone not in backbones:
        raise LMCLIPError(f"profile {name} has no backbone {backbone!r}; choose one of: {', '.join(backbones)}")
    values = profile.model_dump() | {"backbone": backbone or profile.backbone, "weights": weights}
    if name != "glyph":
        values["loss"] = RELEASE[name, values["backbone"]][0].model_dump()
    if smoke:
        values |= SMOKE | (SMOKE_GLYPH if name == "glyph" else SMOKE_PHOTOGRAPHS)
    given = _as_mapping(overrides)
    known = (*PROFILE_OVERRIDES, *LossSettings.model_fields, *EXPERIMENT_OVERRIDES)
    if unknown := sorted(given.keys() - set(known)):
        raise LMCLIPError(f"overrides: {unknown[0]!r} can't be overridden; what can is {', '.join(known)}")
    values |= {key: value for key, value in given.items() if key in PROFILE_OVERRIDES}
    values["loss"] |= {key: value for key, value in given.items() if key in LossSettings.model_fields}
    values["overrides"] = {key: value for key, value in given.items() if key in EXPERIMENT_OVERRIDES}
    changed = sorted((key, str(value)) for key, value in given.items() if key != "seeds")
    values["custom"] = hashlib.sha256(repr(changed).encode()).hexdigest()[:6] if changed else ""
    values["loss"] = LossSettings.checked(**values["loss"])
    profile = Profile.checked(**values)
    weights_label(weights)  # a file that is not there is better known now
    for method in profile.methods:  # so are settings that do not exist, or do not go together
        experiment(profile, method)
    return profile


def _as_mapping(overrides: Mapping | str) -> dict[str, Any]:
    if isinstance(overrides, str) and overrides:
        try:
            overrides = ast.literal_eval(overrides)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass  # told below, with what was expected
    if not overrides:
        return {}
    if not isinstance(overrides, Mapping) or not all(isinstance(key, str) for key in overrides):
        raise LMCLIPError(
            f"overrides must be a mapping such as {{'epochs': 10, 'precision': 'bf16'}}, not {repr(overrides)[:80]}"
        )
    return dict(overrides)


class Method(Settings):
    """Which terms a method trains and how it draws its images."""

    title: str
    loss: LossName = "none"
    contrastive: bool = False
    sampler: SamplerName = "uniform"
    fidelity: Literal["release", "clean"] = "clean"
    templates: Literal["release", "ensemble"] = "release"

    @property
    def trained(self) -> bool:
        """Whether it trains anything; zero-shot does not."""
        return self.loss != "none" or self.contrastive


METHODS = {
    "zero-shot": Method(title="zero-shot"),
    "zero-shot-ensemble": Method(title="zero-shot, 80 templates", templates="ensemble"),
    "bce": Method(title="BCE", loss="bce"),
    "focal": Method(title="focal", loss="focal"),
    "cb-focal": Method(title="CB-focal", loss="cb-focal"),
    "db": Method(title="DB", loss="db"),
    "db-focal": Method(title="DB-focal", loss="db-focal"),
    "asl": Method(title="ASL", loss="asl"),
    "bal": Method(title="BAL", loss="bal"),
    "contrastive": Method(title="contrastive", contrastive=True),
    "lm-clip-no-sampler": Method(title="LM-CLIP, no sampler", loss="bal", contrastive=True),
    "lm-clip-release": Method(
        title="LM-CLIP, as released", loss="bal", contrastive=True, sampler="power", fidelity="release"
    ),
    "lm-clip": Method(title="LM-CLIP", loss="bal", contrastive=True, sampler="power"),
}


class Experiment(Settings):
    """One run. Every field lands in its record; the digest of all fields is part of the run's name."""

    profile: str
    smoke: bool = False
    method: str
    seed: int = Field(0, ge=0)
    loss: LossName
    contrastive: bool
    sampler: SamplerName
    settings: LossSettings
    epochs: int = Field(ge=0)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(ge=0)  # AdamW; cosine to 0, stepped per epoch
    weight_decay: float = Field(0.01, ge=0)
    scoring: Literal["softmax", "logits"] = "softmax"  # how test images are scored; softmax is the release's
    fidelity: Literal["release", "clean"] = "clean"
    smooth_negatives: bool  # release.md defect 5: smoothing reaches the negative branch
    clamp_logit_scale: bool  # defect 15: exp(logit_scale) stays ≤ 100, as in CLIP's own training
    clip_statistics: bool  # defect 11: images normalised with CLIP's statistics, not ImageNet's
    # Settings that came later. At their default they leave a run's name as it was.
    resize: Literal["squash", "crop"] = "squash"  # defect 11: squashed as in the release; or CLIP's own centre crop
    backbone: str = "mini-clip"
    weights: str = "auto"
    templates: Literal["release", "ensemble"] = "release"  # "a photo of a {}"; or the mean over CLIP's 80
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"  # of the two towers; losses are always fp32
    grad_checkpointing: bool = False  # less memory for more time; the same numbers
    draws: int = Field(0, ge=0)  # training images per epoch; 0: as many as there are
    accumulate: int = Field(1, ge=1)  # parts that a batch is split into; the loss must be a mean over images

    @model_validator(mode="after")
    def _fits_together(self):
        if self.accumulate > 1 and (reason := self._indivisible()):
            raise ValueError(f"a batch can't be split: {reason}; use grad_checkpointing or bf16 to save memory")
        if self.batch_size % self.accumulate:
            raise ValueError(f"a batch of {self.batch_size} can't be split into {self.accumulate} equal parts")
        if self.templates == "ensemble" and (self.loss != "none" or self.contrastive):
            raise ValueError("the 80 templates are for zero-shot; training uses the release's one")
        return self

    def _indivisible(self) -> str:
        if self.contrastive:
            return "the contrastive loss compares every image with every caption of its batch"
        if self.loss == "bal":
            return "BAL divides the logits by the largest of the whole batch"
        if self.backbone in ("rn50", "mini-clip"):
            return "a ResNet's BatchNorm takes its statistics over the batch"
        return ""

    @property
    def run_id(self) -> str:
        """Folder name of the run: method, seed and eight digits of the settings' sha256."""
        added = ("resize", "backbone", "weights", "templates", "precision", "grad_checkpointing", "draws",
                 "accumulate")  # fmt: skip
        unchanged = {name for name in added if getattr(self, name) == type(self).model_fields[name].default}
        digest = hashlib.sha256(self.model_dump_json(exclude=unchanged).encode()).hexdigest()[:8]
        return f"{self.method}_s{self.seed}_{digest}"


def experiment(
    profile: Profile, method: str, seed: int = 0, learning_rate: float = 0.0, **overrides: Any
) -> Experiment:
    """The run of ``method`` on ``profile``, with single settings overridden by name (and by the profile's overrides).

    ``fidelity="release"`` reproduces what the release computes, its defects included; ``"clean"`` mends them.
    A mended defect is one setting, so that ablations can toggle each alone.

    Raises:
        LMCLIPError: unknown method, unknown setting, a value out of range, or settings that do not go together.
    """
    if method not in METHODS:
        raise LMCLIPError(f"unknown method {method!r}; choose one of: {', '.join(METHODS)}")
    overrides = {**overrides, **profile.overrides}
    clean = overrides.get("fidelity", METHODS[method].fidelity) == "clean"
    values = {
        "profile": profile.name, "smoke": profile.smoke, "method": method, "seed": seed, "epochs": profile.epochs,
        "batch_size": profile.batch_size, "draws": profile.draws, "learning_rate": learning_rate,
        "settings": profile.loss, "smooth_negatives": clean, "clamp_logit_scale": clean, "clip_statistics": clean,
        "resize": "crop" if clean and profile.name != "glyph" else "squash",  # a rendered scene is square
        "backbone": profile.backbone, "weights": weights_label(profile.weights),
        **METHODS[method].model_dump(exclude={"title"}), **overrides,
    }  # fmt: skip
    if not METHODS[method].trained:
        values |= {"epochs": 0, "learning_rate": 0.0, "accumulate": 1}
    return Experiment.checked(**values)


def preset(name: str, fidelity: Literal["release", "clean"] = "release", **overrides: Any) -> Experiment:
    """LM-CLIP as configured by the release for a benchmark and backbone, such as ``"voc-rn50"``.

    Args:
        name: one of `PRESETS`. The release ships no configuration for ViT-L/14; it gets ViT-B/16's.
        fidelity: with the release's defects, or with these mended.
        overrides: single settings that differ.

    Raises:
        LMCLIPError: no such preset or setting.
    """
    if name not in PRESETS:
        raise LMCLIPError(f"unknown preset {name!r}; choose one of: {', '.join(PRESETS)}")
    profile = load_profile(PRESETS[name][0], backbone=PRESETS[name][1])
    return experiment(profile, "lm-clip", learning_rate=RELEASE[PRESETS[name]][1], fidelity=fidelity, **overrides)


PRESETS = {f"{name}-{backbone}": (name, backbone) for name, backbone in RELEASE}


def caveat(profile: Profile, data: Any = None) -> str:
    """What keeps a table from being a result: "" or, for example, "SAMPLE, RANDOM WEIGHTS · ", to open its title with.

    Args:
        profile: the profile, for random weights and smoke size.
        data: its splits; where they differ from the published benchmark, they are a sample.
    """
    reasons = ["sample"] if data is not None and data.differences else []
    reasons += ["random weights"] if profile.weights == "random" else []
    reasons += ["smoke size"] if profile.smoke else []
    return f"{', '.join(reasons).upper()} · " if reasons else ""
