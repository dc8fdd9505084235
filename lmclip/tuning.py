"""One fair search for every method, and the record that fixes GlyphMLT's difficulty.

Every method gets the same grid: learning rates, and the two ways of scoring an image (evaluation.py). Epochs
and seed are the same for all; the pair with the best validation mAP wins. No test image is read. The outcome is
committed in ``data/tuning/`` and read by notebooks 04 and 05.
"""

import json
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from lmclip.config import METHODS, RELEASE, Experiment, Profile, experiment
from lmclip.datasets import load_study_data
from lmclip.errors import LMCLIPError
from lmclip.evaluation import SCORINGS
from lmclip.matrix import run_matrix
from lmclip.paths import ROOT, atomic_write, display, results_dir
from lmclip.records import GROUP_METRICS, Record

TUNING = ROOT / "data" / "tuning"  # committed with the project; LMCLIP_DATA does not move it
SEED = 0


def tune(profile: Profile, methods: tuple[str, ...] = (), jobs: int = -1, source: str = "") -> pd.DataFrame:
    """Search learning rate and scoring of ``methods`` (all of the profile's when empty) and record the trials.

    Trials that are finished already are kept, and so are the recorded trials of other methods.

    Returns:
        One row per trial: method, learning_rate, scoring, validation_mAP (fraction), epoch, seconds.

    Raises:
        LMCLIPError: there are no validation images, or an unknown method.
    """
    methods = methods or profile.methods
    trials = [experiment(profile, m, SEED, rate) for m in methods for rate in profile.learning_rates]
    trials = list({trial.run_id: trial for trial in trials}.values())  # zero-shot has no rate, and is one trial
    folder = results_dir(profile.folder) / "tuning"
    data = load_study_data(profile, source=source)
    if data.validation is None:
        raise LMCLIPError(f"profile {profile.name!r} has no validation images here, so nothing can be chosen on them; "
                          f"`lmclip check {profile.name}` says what is missing")  # fmt: skip
    if data.differences:
        raise LMCLIPError(f"a search on a sample would be taken for the benchmark's: {data.differences[0]}")
    records = list(run_matrix(trials, profile, data, jobs=jobs, folder=folder, evaluate_test=False))
    rows = [_trial(record, scoring) for record in records for scoring in SCORINGS]
    titles = {row["method"] for row in rows}
    kept = [row for row in _read(profile)["trials"] if row["method"] not in titles] if _path(profile).exists() else []
    order = [m.title for m in METHODS.values()]
    rows = sorted(kept + rows, key=lambda r: (order.index(r["method"]), r["scoring"], r["learning_rate"]))
    settings = {"profile": profile.name, "smoke": profile.smoke, "seed": SEED, "epochs": profile.epochs,
                "batch_size": profile.batch_size, "chosen by": "validation mAP of the best epoch"}  # fmt: skip
    _write(_path(profile), {"settings": settings, "trials": rows})
    return pd.DataFrame(rows)


def load_trials(profile: Profile) -> pd.DataFrame:
    """The recorded trials: method, learning_rate, scoring, validation_mAP, epoch, seconds.

    Raises:
        LMCLIPError: no record, or not a readable one.
    """
    return pd.DataFrame(_read(profile)["trials"])


def chosen_settings(profile: Profile) -> dict[str, dict]:
    """Method → its ``learning_rate`` and ``scoring``: the search's choice where there is one.

    For the real benchmarks a search is optional; without one, every method has the release's rate and scoring.

    Raises:
        LMCLIPError: the glyph profile's search has not been recorded, or a search lacks a method.
    """
    given = {key: value for key, value in profile.overrides.items() if key in ("learning_rate", "scoring")}
    if not is_searched(profile):
        rate = RELEASE[profile.name, profile.backbone][1]
        return {method: {"learning_rate": rate, "scoring": "softmax"} | given for method in profile.methods}
    return {method: _best(profile, method) | given for method in profile.methods}


def is_searched(profile: Profile) -> bool:
    """Whether rates come from a search: always on glyph, and on the real benchmarks where one has been recorded."""
    return profile.name == "glyph" or _path(profile).exists()


def study_experiments(profile: Profile) -> list[Experiment]:
    """The runs that notebook 04 trains and 05 judges: every method with every seed, and what trains nothing once.

    Raises:
        LMCLIPError: the search for learning rates has not been recorded where there is one, or settings don't fit.
    """
    chosen = chosen_settings(profile)
    return [experiment(profile, method, seed, **chosen[method]) for method in profile.methods
            for seed in (profile.seeds if METHODS[method].trained else profile.seeds[:1])]  # fmt: skip


def record_difficulty(profile: Profile, jobs: int = -1) -> dict:
    """Measure zero-shot and tuned BCE, on which alone the benchmark's difficulty is chosen, and record them.

    Returns:
        Clean-protocol mAP values per method and seed (fractions), and the sizes that they were measured on.
    """
    data = load_study_data(profile)
    runs = [experiment(profile, m, seed, **_best(profile, m)) for m in ("zero-shot", "bce")
            for seed in (profile.seeds if m == "bce" else (SEED,))]  # fmt: skip
    rows = []
    for record in run_matrix(runs, profile, data, jobs=jobs):
        clean = record.protocols["clean"]
        rows.append({"method": METHODS[record.experiment.method].title, "seed": record.experiment.seed,
                     "learning_rate": record.experiment.learning_rate, "scoring": record.experiment.scoring,
                     **{f"test_{name}": clean[name] for name in GROUP_METRICS},
                     "validation_mAP": clean["validation_mAP"]})  # fmt: skip
    rows.sort(key=lambda row: (row["method"] != "zero-shot", row["seed"]))
    sizes = {name: len(split) for name, split in (("train", data.train), ("validation", data.validation),
                                                  ("test", data.test))}  # fmt: skip
    rule = "zero-shot between 55 and 75, BCE 5 to 20 points above it, before any other method was run"
    outcome = {"rule": rule, "images": sizes, "train fingerprint": data.train.fingerprint, "runs": rows}
    _write(TUNING / f"{profile.folder}-difficulty.json", outcome)
    return outcome


def _best(profile: Profile, method: str) -> dict:
    trials = load_trials(profile)
    trials = trials[trials["method"] == METHODS[method].title]
    if trials.empty:
        raise LMCLIPError(f"{display(_path(profile))} has no trials of {method}; run `lmclip tune` to add them")
    best = trials.loc[trials["validation_mAP"].idxmax()]
    return {"learning_rate": float(best["learning_rate"]), "scoring": str(best["scoring"])}


def _trial(record: Record, scoring: str) -> dict:
    trained = [row for row in record.history if row["epoch"] or not record.experiment.epochs]
    best = max(trained, key=lambda row: row[f"validation_mAP_{scoring}"])
    return {"method": METHODS[record.experiment.method].title, "learning_rate": record.experiment.learning_rate,
            "scoring": scoring, "validation_mAP": best[f"validation_mAP_{scoring}"], "epoch": best["epoch"],
            "seconds": round(record.seconds, 1)}  # fmt: skip


def _path(profile: Profile) -> Path:
    searched = profile.model_copy(update={"smoke": False, "weights": "auto", "custom": ""})
    return TUNING / f"{searched.folder}.json"  # smoke runs read the full search; they never write one


class _Trial(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: str
    learning_rate: float = Field(ge=0)
    scoring: Literal["softmax", "logits"]
    validation_mAP: float = Field(ge=0, le=1)
    epoch: int
    seconds: float


class _Search(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict
    trials: list[_Trial] = Field(min_length=1)


def _read(profile: Profile) -> dict:
    path = _path(profile)
    try:
        return _Search.model_validate_json(path.read_text()).model_dump()
    except FileNotFoundError:
        raise LMCLIPError(f"no search at {display(path)}; run `lmclip tune --profile {profile.name}`") from None
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        advice = "restore it from the repository or run `lmclip tune` without it"
        raise LMCLIPError(f"{display(path)} is no tuning record ({reason}); {advice}") from None


def _write(path: Path, content: dict) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
