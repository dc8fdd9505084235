"""Profiles: which data, which model and how much of it. Frozen and validated; unknown keys are errors."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lmclip.errors import LMCLIPError
from lmclip.paths import display


class Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def checked(cls, **values: Any):
        """Construct from ``values``.

        Raises:
            LMCLIPError: an unknown key, a value out of range, or values that do not go together.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            if key := ".".join(str(part) for part in first["loc"]):
                message = f"{cls.__name__}.{key}: {message}"
            if first["type"] == "extra_forbidden":
                message += f"; its settings are {', '.join(cls.model_fields)}"
            raise LMCLIPError(message) from None


class LossSettings(Settings):
    """The method's own hyper-parameters; symbols as in the paper."""

    bal_weight: float = Field(0.4, ge=0)  # λ: total = contrastive + λ · BAL
    gamma_neg: float = Field(9.8, ge=0)  # γ₋
    gamma_pos: float = Field(0.0, ge=0)  # γ₊
    clip: float = Field(0.05, ge=0, lt=1)  # m, probability shift of the negatives
    label_smoothing: float = Field(0.1, ge=0, lt=1)  # ε
    power: float = Field(1.35, ge=0)  # s of the class weights and of the sampler


# The four configurations that the release ships (release of August 2024), with their learning rates. It ships none for
# ViT-L/14: that backbone starts from ViT-B/16's.
RELEASE = {
    ("voc", "vit-b-16"): (LossSettings(), 1e-6),
    ("voc", "rn50"): (LossSettings(bal_weight=0.2, gamma_neg=12.0, label_smoothing=0.01, power=0.7), 2e-6),
    ("coco", "vit-b-16"): (LossSettings(bal_weight=5.0, power=1.6), 1e-6),
    ("coco", "rn50"): (LossSettings(bal_weight=6.0), 1e-7),
}
RELEASE |= {(name, "vit-l-14"): RELEASE[name, "vit-b-16"] for name in ("voc", "coco")}

# Backbone → the model's name at open_clip. OpenAI trained with QuickGELU.
BACKBONES = {"mini-clip": "mini-clip", "rn50": "RN50-quickgelu", "vit-b-16": "ViT-B-16-quickgelu",
             "vit-l-14": "ViT-L-14-quickgelu"}  # fmt: skip


class Profile(Settings):
    """One size of truth: which data, which model, how long."""

    name: Literal["glyph", "voc", "coco"]
    smoke: bool = False
    backbone: Literal["mini-clip", "rn50", "vit-b-16", "vit-l-14"]
    weights: str = "auto"  # "auto": OpenAI's, or the shipped mini CLIP; "random"; or the path of a weights file
    image_size: int  # pixels per side
    max_count: int  # of the Pareto reference
    min_count: int = 1
    alpha: float = 6.0
    longtail_seed: int = 0
    head_min: int = 100  # a head class has at least so many training images
    tail_max: int = 20  # a tail class has fewer
    pool_size: int = 0  # rendered scenes that the long tail is drawn from (glyph only)
    validation_size: int = 0  # images, from the unused pool
    test_size: int = 0  # images (glyph only)
    draws: int = 0  # training images per epoch; 0: as many as there are
    test_limit: int = 0  # smoke runs read only so many test and validation images of a real benchmark; 0: all
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    methods: tuple[str, ...] = Field(("zero-shot", "bce", "asl", "bal", "contrastive", "lm-clip-no-sampler",
                                "lm-clip-release", "lm-clip"), min_length=1)  # fmt: skip
    learning_rates: tuple[float, ...] = ()  # the grid of `lmclip tune`
    loss: LossSettings = LossSettings()
    overrides: dict[str, Any] = {}  # settings of every experiment, by name
    custom: str = ""  # digest of what was overridden, seeds apart; names the results folder

    @field_validator("seeds", "methods")
    @classmethod
    def _listed_once(cls, values: tuple) -> tuple:
        if len(set(values)) < len(values):
            raise ValueError(f"{values} lists one more than once")
        return values

    @property
    def model(self) -> str:
        """Name of the model, as `models.load_model` takes it."""
        return BACKBONES[self.backbone]

    @property
    def folder(self) -> str:
        """Name of the results folder; whatever is not the study itself has its own, so that it overwrites nothing."""
        marks = ("" if self.backbone in ("mini-clip", "vit-b-16") else self.backbone,
                 self.custom and f"custom-{self.custom}", "random" if self.weights == "random" else "",
                 "smoke" if self.smoke else "")  # fmt: skip
        return "-".join((self.name, *filter(None, marks)))


_METHODS_OF_PHOTOGRAPHS = ("zero-shot", "zero-shot-ensemble", *Profile.model_fields["methods"].default[1:])
_RATES_OF_PHOTOGRAPHS = (1e-7, 3e-7, 1e-6, 3e-6, 1e-5)
PROFILES = {
    "glyph": Profile(
        name="glyph", backbone="mini-clip", image_size=64, max_count=850, pool_size=20_000, validation_size=1_000,
        test_size=2_000, epochs=8, batch_size=32, learning_rates=(3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    ),
    **{name: Profile(
        name=name, backbone="vit-b-16", image_size=224, max_count=max_count, validation_size=1_000, epochs=50,
        batch_size=8, learning_rates=_RATES_OF_PHOTOGRAPHS, methods=_METHODS_OF_PHOTOGRAPHS,
        loss=RELEASE[name, "vit-b-16"][0],
    ) for name, max_count in (("voc", 800), ("coco", 1_200))},
}  # fmt: skip

SMOKE = {"smoke": True, "epochs": 1, "seeds": (0, 1)}
SMOKE_GLYPH = {"pool_size": 3_000, "max_count": 120, "validation_size": 80, "test_size": 160}
SMOKE_PHOTOGRAPHS = {"draws": 8, "test_limit": 16, "validation_size": 8, "seeds": (0,)}
# What may be overridden: of the profile, of `LossSettings`, and of an experiment. The rest says which run it is.
PROFILE_OVERRIDES = ("epochs", "batch_size", "seeds", "methods", "draws")
EXPERIMENT_OVERRIDES = ("learning_rate", "weight_decay", "scoring", "smooth_negatives", "clamp_logit_scale",
                        "clip_statistics", "resize", "precision", "grad_checkpointing", "accumulate")  # fmt: skip


@cache
def weights_label(weights: str) -> str:
    """What a record calls weights: "auto", "random", or "file-" and the first twelve digits of the file's sha256.

    Raises:
        LMCLIPError: there is no such file.
    """
    if weights in ("auto", "random"):
        return weights
    try:
        with Path(weights).expanduser().open("rb") as file:
            return f"file-{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"
    except OSError as error:
        raise LMCLIPError(f"weights must be auto, random or a file; {display(weights)} can't be read "
                          f"({error.strerror})") from None  # fmt: skip
