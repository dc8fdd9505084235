"""What a run leaves on disk, and how tables read it back.

A run is a folder ``results/<profile>/runs/<run id>/`` with

* ``record.json``: settings, seed, data fingerprint, versions, device, times, history, metrics per protocol;
* ``scores.npz``: test logits per protocol, targets, image features (bulky, not committed; remade by the run).

The folder appears whole or not at all. A record without its scores, as a fresh clone has it, tells what was
measured but is not finished: the run is made again, and can be compared with the committed numbers.
"""

import json
import math
import platform
import resource
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from lmclip.config import METHODS, Experiment, Profile
from lmclip.errors import LMCLIPError
from lmclip.paths import ROOT, display, results_dir

PROTOCOLS = ("best-on-test", "clean")  # how the epoch was chosen; never mixed in one row
GROUP_METRICS = ("mAP", "mAP_head", "mAP_medium", "mAP_tail")
_PACKAGES = ("torch", "open_clip_torch", "numpy", "scipy", "scikit-learn", "pillow", "matplotlib")


class Record(BaseModel):
    """One finished run, as in ``record.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    experiment: Experiment
    data: dict[str, Any]  # name, size and fingerprint per split; class names; training counts; groups; weights
    packages: dict[str, str]
    device: str
    precision: str
    threads: int
    commit: str  # of the checkout; "+" when files differed from it
    seconds: float  # wall time of the whole run
    peak_memory_mb: float  # of the process (CPU) or of the device's allocator (GPU)
    history: list[dict[str, float | int | None]]  # one row per epoch; row 0 is before training
    protocols: dict[str, dict[str, Any]]  # protocol → epoch, metrics, per_class_ap


def save_run(record: Record, arrays: dict[str, np.ndarray], folder: Path, overwrite: bool = False) -> Path:
    """Write a run into ``folder`` under its id: complete, or not at all.

    Raises:
        LMCLIPError: the run is already finished there and ``overwrite`` is False, or the folder can't be written.
    """
    target = folder / record.run_id
    if is_finished(target) and not overwrite:
        raise LMCLIPError(f"{display(target)} is already finished; pass overwrite=True to replace it")
    unfinished = new_folder(folder)
    try:
        (unfinished / "record.json").write_text(_to_json(record) + "\n")
        np.savez_compressed(unfinished / "scores.npz", **arrays)
        unfinished.chmod(0o755)
        if target.exists():
            target.rename(unfinished / "replaced")
        unfinished.rename(target)
        shutil.rmtree(target / "replaced", ignore_errors=True)
    except OSError as error:
        raise LMCLIPError(f"{display(target)} can't be written ({error.strerror}); free space there") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def new_folder(folder: Path) -> Path:
    """A hidden, empty folder inside ``folder``, where a run is put together before it gets its name.

    Raises:
        LMCLIPError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=folder, prefix=".unfinished-"))
    except OSError as error:
        advice = "make it writable or set LMCLIP_RESULTS to another folder"
        raise LMCLIPError(f"{display(folder)} can't be written ({error.strerror}); {advice}") from error


def is_finished(run: Path) -> bool:
    """Whether a run's folder holds its record and its scores."""
    return (run / "record.json").exists() and (run / "scores.npz").exists()


def load_record(run: Path) -> Record:
    """Read one record.

    Raises:
        LMCLIPError: missing, no JSON, or not a record.
    """
    path = run / "record.json"
    try:
        return Record.model_validate_json(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise LMCLIPError(f"no readable record at {display(path)} ({error}); train the run in notebook 04") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise LMCLIPError(f"{display(path)} is no run record ({'.'.join(map(str, first['loc']))}: {first['msg']}); "
                          "delete its folder and train the run again") from None  # fmt: skip


def load_records(profile: Profile) -> list[Record]:
    """All records of a profile's main runs, in the order of its methods, then seeds. Empty when there are none."""
    runs = results_dir(profile.folder) / "runs"
    records = [load_record(path.parent) for path in sorted(runs.glob("[!.]*/record.json"))]
    order = list(METHODS)
    return sorted(records, key=lambda r: (order.index(r.experiment.method), r.experiment.seed, r.run_id))


def load_scores(record: Record, profile: Profile) -> dict[str, np.ndarray]:
    """The arrays of a run: ``targets`` (N, C), ``logits_<protocol>`` (N, C), ``features`` (N, D).

    Raises:
        LMCLIPError: the scores are not there or unreadable.
    """
    path = results_dir(profile.folder) / "runs" / record.run_id / "scores.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise LMCLIPError(f"no scores at {display(path)}; notebook 04 makes the run again") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise LMCLIPError(f"{display(path)} is unreadable ({error}); delete its folder and run notebook 04") from error


def to_frame(records: list[Record]) -> pd.DataFrame:
    """One row per run and protocol: method, seed, protocol, epoch, the four mAP values, seconds, memory."""
    rows = []
    for record in records:
        for protocol, result in record.protocols.items():
            rows.append({
                "method": METHODS[record.experiment.method].title, "seed": record.experiment.seed,
                "protocol": protocol, "epoch": result["epoch"], **{name: result[name] for name in GROUP_METRICS},
                "learning_rate": record.experiment.learning_rate, "seconds": record.seconds,
                "peak_memory_mb": record.peak_memory_mb, "run_id": record.run_id,
            })  # fmt: skip
    return pd.DataFrame(rows).astype(dict.fromkeys(GROUP_METRICS, float) if rows else {})


def history_frame(records: list[Record]) -> pd.DataFrame:
    """One row per run and epoch, with the method's title and the seed."""
    frames = []
    for record in records:
        frame = pd.DataFrame(record.history, dtype=float).astype({"epoch": int})
        frames.append(frame.assign(method=METHODS[record.experiment.method].title, seed=record.experiment.seed))
    return pd.concat(frames, ignore_index=True)


def environment(device: torch.device) -> dict[str, Any]:
    """What a record says of the machine: packages, device, threads, commit. No host or folder names."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    packages = {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}
    return {"packages": packages, "device": f"{device.type} ({name})", "threads": torch.get_num_threads(),
            "commit": _commit()}  # fmt: skip


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far in MB: of the device's allocator on a GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kilobyte = 1 if platform.system() == "Darwin" else 2**10  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte / 2**20


def _commit() -> str:
    def git(*arguments):
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=10)

    try:
        head = git("rev-parse", "--short=12", "HEAD")
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", "lmclip", "data")
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else "unknown"


def _to_json(record: Record) -> str:
    """JSON with four significant digits more than any table shows, and null for what is not a number."""

    def tidy(value):
        if isinstance(value, float):
            return float(f"{value:.8g}") if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: tidy(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [tidy(item) for item in value]
        return value

    return json.dumps(tidy(record.model_dump()), indent=1)
