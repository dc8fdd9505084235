"""Settings: frozen, validated, and complete enough to name a run.

``Profile`` says which data, which model and how much of it; ``Experiment`` says what one training run does.
Unknown keys and values out of range are errors, never ignored.
"""

import hashlib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lmclip.errors import LMCLIPError

LossName = Literal["none", "bce", "focal", "cb-focal", "db", "db-focal", "asl", "bal"]
SamplerName = Literal["uniform", "class-aware", "inverse-frequency", "power"]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def checked(cls, **values: Any):
        """Construct from ``values``.

        Raises:
            LMCLIPError: an unknown key or a value out of range; one sentence that names the key.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            known = ", ".join(cls.model_fields)
            raise LMCLIPError(f"{cls.__name__}.{key}: {first['msg']}; its settings are {known}") from None


class LossSettings(_Settings):
    """The method's own hyper-parameters; symbols as in the paper."""

    bal_weight: float = Field(0.4, ge=0)  # λ: total = contrastive + λ · BAL
    gamma_neg: float = Field(9.8, ge=0)  # γ₋
    gamma_pos: float = Field(0.0, ge=0)  # γ₊
    clip: float = Field(0.05, ge=0, lt=1)  # m, probability shift of the negatives
    label_smoothing: float = Field(0.1, ge=0, lt=1)  # ε
    power: float = Field(1.35, ge=0)  # s of the class weights and of the sampler


# The four configurations that the release ships (release of August 2024), with their learning rates.
RELEASE = {
    ("voc", "vit-b-16"): (LossSettings(), 1e-6),
    ("voc", "rn50"): (LossSettings(bal_weight=0.2, gamma_neg=12.0, label_smoothing=0.01, power=0.7), 2e-6),
    ("coco", "vit-b-16"): (LossSettings(bal_weight=5.0, power=1.6), 1e-6),
    ("coco", "rn50"): (LossSettings(bal_weight=6.0), 1e-7),
}


class Profile(_Settings):
    """One size of truth: which data, which model, how long."""

    name: Literal["glyph", "voc", "coco"]
    smoke: bool = False
    model: str
    image_size: int  # pixels per side
    max_count: int  # of the Pareto reference
    min_count: int = 1
    alpha: float = 6.0
    longtail_seed: int = 0
    head_min: int = 100  # a head class has at least so many training images
    tail_max: int = 20  # a tail class has fewer
    pool_size: int = 0  # rendered scenes that the long tail is drawn from (glyph only)
    validation_size: int = 0  # images, from the unused pool (glyph only)
    test_size: int = 0  # images (glyph only)
    epochs: int
    batch_size: int
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = ("zero-shot", "bce", "asl", "bal", "contrastive", "lm-clip-no-sampler",
                                "lm-clip-release", "lm-clip")  # fmt: skip
    learning_rates: tuple[float, ...] = ()  # the grid of `lmclip tune`
    loss: LossSettings = LossSettings()

    @property
    def folder(self) -> str:
        """Name of the results folder; smoke runs have one of their own, so that they overwrite nothing."""
        return f"{self.name}-smoke" if self.smoke else self.name


PROFILES = {
    "glyph": Profile(
        name="glyph", model="mini-clip", image_size=64, max_count=850, pool_size=20_000, validation_size=1_000,
        test_size=2_000, epochs=8, batch_size=32, learning_rates=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    ),
    "voc": Profile(
        name="voc", model="ViT-B-16-quickgelu", image_size=224, max_count=800, epochs=50, batch_size=8,
        learning_rates=(1e-6,), loss=RELEASE["voc", "vit-b-16"][0],
    ),
    "coco": Profile(
        name="coco", model="ViT-B-16-quickgelu", image_size=224, max_count=1_200, epochs=50, batch_size=8,
        learning_rates=(1e-6,), loss=RELEASE["coco", "vit-b-16"][0],
    ),
}  # fmt: skip

_SMOKE = {"smoke": True, "pool_size": 3_000, "max_count": 120, "validation_size": 80, "test_size": 160, "epochs": 1,
          "seeds": (0, 1)}  # fmt: skip


def load_profile(name: str, smoke: bool = False) -> Profile:
    """The profile called ``name``; with ``smoke``, the smallest size that still runs every line.

    Raises:
        LMCLIPError: no profile of that name.
    """
    if name not in PROFILES:
        raise LMCLIPError(f"unknown profile {name!r}; choose one of: {', '.join(PROFILES)}")
    profile = PROFILES[name]
    if not smoke:
        return profile
    sizes = _SMOKE if name == "glyph" else {"smoke": True, "epochs": 1, "seeds": (0, 1)}
    return profile.model_copy(update=sizes)


class Method(_Settings):
    """Which terms a method trains and how it draws its images."""

    title: str
    loss: LossName = "none"
    contrastive: bool = False
    sampler: SamplerName = "uniform"
    fidelity: Literal["release", "clean"] = "clean"


METHODS = {
    "zero-shot": Method(title="zero-shot"),
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


class Experiment(_Settings):
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

    @property
    def run_id(self) -> str:
        """Folder name of the run: method, seed and eight digits of the settings' sha256."""
        digest = hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:8]
        return f"{self.method}_s{self.seed}_{digest}"


def experiment(
    profile: Profile, method: str, seed: int = 0, learning_rate: float = 0.0, **overrides: Any
) -> Experiment:
    """The run of ``method`` on ``profile``, with single settings overridden by name.

    ``fidelity="release"`` reproduces what the release computes, its defects included; ``"clean"`` mends them.
    A mended defect is one setting, so that ablations can toggle each alone.

    Raises:
        LMCLIPError: unknown method, unknown setting, or a value out of range.
    """
    if method not in METHODS:
        raise LMCLIPError(f"unknown method {method!r}; choose one of: {', '.join(METHODS)}")
    clean = overrides.get("fidelity", METHODS[method].fidelity) == "clean"
    values = {
        "profile": profile.name, "smoke": profile.smoke, "method": method, "seed": seed,
        "epochs": 0 if method == "zero-shot" else profile.epochs, "batch_size": profile.batch_size,
        "learning_rate": learning_rate, "settings": profile.loss,
        "smooth_negatives": clean, "clamp_logit_scale": clean, "clip_statistics": clean,
        **METHODS[method].model_dump(exclude={"title"}),
    }  # fmt: skip
    return Experiment.checked(**{**values, **overrides})
