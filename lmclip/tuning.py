"""One fair search for every method, and the record that fixes GlyphMLT's difficulty.

Every method gets the same grid of learning rates, the same epochs and one seed; the rate with the best
validation mAP wins. No test image is read. The outcome is committed in ``data/tuning/`` and read by notebook 04.
"""

import json
from pathlib import Path

import pandas as pd

from lmclip.config import METHODS, RELEASE, Profile, experiment
from lmclip.datasets import load_study_data
from lmclip.errors import LMCLIPError
from lmclip.matrix import run_matrix
from lmclip.paths import ROOT, atomic_write, display, results_dir
from lmclip.records import GROUP_METRICS, Record

TUNING = ROOT / "data" / "tuning"  # committed with the project; LMCLIP_DATA does not move it
SEED = 0


def tune(profile: Profile, methods: tuple[str, ...] = (), jobs: int = -1) -> pd.DataFrame:
    """Search the learning rate of ``methods`` (all trained methods of the profile when empty) and record it.

    Trials that are finished already are kept, and so are the recorded trials of other methods.

    Returns:
        One row per trial: method, learning_rate, validation_mAP (fraction), epoch, seconds.

    Raises:
        LMCLIPError: the profile has no validation images or no grid, or an unknown method.
    """
    if not profile.validation_size:
        raise LMCLIPError(f"profile {profile.name!r} has no validation images, so nothing can be chosen on them")
    methods = methods or tuple(m for m in profile.methods if m != "zero-shot")
    trials = [experiment(profile, m, SEED, rate) for m in methods for rate in profile.learning_rates]
    folder = results_dir(profile.folder) / "tuning"
    data = load_study_data(profile)
    rows = [_trial(r) for r in run_matrix(trials, profile, data, jobs=jobs, folder=folder, evaluate_test=False)]
    titles = {row["method"] for row in rows}
    kept = [row for row in _read(profile)["trials"] if row["method"] not in titles] if _path(profile).exists() else []
    order = [m.title for m in METHODS.values()]
    rows = sorted(kept + rows, key=lambda r: (order.index(r["method"]), r["learning_rate"]))
    settings = {"profile": profile.name, "smoke": profile.smoke, "seed": SEED, "epochs": profile.epochs,
                "batch_size": profile.batch_size, "chosen by": "validation mAP of the best epoch"}  # fmt: skip
    _write(_path(profile), {"settings": settings, "trials": rows})
    return pd.DataFrame(rows)


def load_trials(profile: Profile) -> pd.DataFrame:
    """The recorded trials: method, learning_rate, validation_mAP, epoch, seconds.

    Raises:
        LMCLIPError: no record, or not a readable one.
    """
    return pd.DataFrame(_read(profile)["trials"])


def learning_rates(profile: Profile) -> dict[str, float]:
    """Method → learning rate: the recorded search's choice, or the release's rate where there is no validation set.

    Raises:
        LMCLIPError: the search has not been recorded, or lacks a method.
    """
    if not profile.validation_size:
        return {m: RELEASE[profile.name, "vit-b-16"][1] for m in profile.methods}
    trials = load_trials(profile)
    best = trials.loc[trials.groupby("method")["validation_mAP"].idxmax()].set_index("method")["learning_rate"]
    missing = [m for m in profile.methods if m != "zero-shot" and METHODS[m].title not in best]
    if missing:
        raise LMCLIPError(f"{display(_path(profile))} has no trials of {missing[0]}; run `lmclip tune` to add them")
    return {m: float(best.get(METHODS[m].title, 0.0)) for m in profile.methods}


def record_difficulty(profile: Profile, jobs: int = -1) -> dict:
    """Measure zero-shot and tuned BCE, on which alone the benchmark's difficulty is chosen, and record them.

    Returns:
        Clean-protocol mAP values per method and seed (fractions), and the sizes that they were measured on.
    """
    data, rate = load_study_data(profile), _best_rate(profile, METHODS["bce"].title)
    runs = [experiment(profile, "zero-shot"), *(experiment(profile, "bce", seed, rate) for seed in profile.seeds)]
    rows = []
    for record in run_matrix(runs, profile, data, jobs=jobs):
        clean = record.protocols["clean"]
        rows.append({"method": METHODS[record.experiment.method].title, "seed": record.experiment.seed,
                     "learning_rate": record.experiment.learning_rate,
                     **{f"test_{name}": clean[name] for name in GROUP_METRICS},
                     "validation_mAP": clean["validation_mAP"]})  # fmt: skip
    rows.sort(key=lambda row: (row["method"] != "zero-shot", row["seed"]))
    sizes = {name: len(split) for name, split in (("train", data.train), ("validation", data.validation),
                                                  ("test", data.test))}  # fmt: skip
    rule = "zero-shot between 55 and 75, BCE 5 to 20 points above it, before any other method was run"
    outcome = {"rule": rule, "images": sizes, "train fingerprint": data.train.fingerprint, "runs": rows}
    _write(TUNING / f"{profile.folder}-difficulty.json", outcome)
    return outcome


def _best_rate(profile: Profile, title: str) -> float:
    trials = load_trials(profile)
    trials = trials[trials["method"] == title]
    if trials.empty:
        raise LMCLIPError(f"{display(_path(profile))} has no trials of {title}; run `lmclip tune` first")
    return float(trials.loc[trials["validation_mAP"].idxmax(), "learning_rate"])


def _trial(record: Record) -> dict:
    clean = record.protocols["clean"]
    return {"method": METHODS[record.experiment.method].title, "learning_rate": record.experiment.learning_rate,
            "validation_mAP": clean["validation_mAP"], "epoch": clean["epoch"],
            "seconds": round(record.seconds, 1)}  # fmt: skip


def _path(profile: Profile) -> Path:
    return TUNING / f"{profile.name}.json"  # smoke runs read the full search; they never write one


def _read(profile: Profile) -> dict:
    path = _path(profile)
    try:
        content = json.loads(path.read_text())
        content["trials"][0]["validation_mAP"]
    except FileNotFoundError:
        raise LMCLIPError(f"no search at {display(path)}; run `lmclip tune --profile {profile.name}`") from None
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise LMCLIPError(f"{display(path)} is no tuning record ({type(error).__name__}: {error}); restore it from "
                          "the repository or run `lmclip tune`") from None  # fmt: skip
    return content


def _write(path: Path, content: dict) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
