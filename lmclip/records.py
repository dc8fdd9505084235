"""What a run leaves on disk, and how tables read it back.

A run is a folder ``results/<profile>/runs/<run id>/`` with

* ``record.json``: settings, seed, data fingerprint, versions, device, times, history, metrics per protocol;
* ``scores.npz``: test logits per protocol, targets, image features (bulky, not committed; remade by the run);
* ``ranks.npz``: where the positives stand among each class's scores, which is all that average precision depends on
  (small, committed).

The folder appears whole or not at all. A record without its scores, as a fresh clone has it, tells what was
measured but is not finished: the run is made again, and can be compared with the committed numbers. ``digest`` covers
the record and ``scores_sha256`` the arrays, so that `lmclip verify` can tell a record that was changed by hand.
"""

import hashlib
import json
import math
import os
import platform
import resource
import shutil
import subprocess
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
from lmclip.locks import is_free
from lmclip.paths import ROOT, display, results_dir

PROTOCOLS = ("best-on-test", "clean")  # how the epoch was chosen; never mixed in one row
GROUP_METRICS = ("mAP", "mAP_head", "mAP_medium", "mAP_tail")
MOST_INFLATED = 100  # real scores compress to a half; an archive that would grow by more is a bomb
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
    scores_sha256: str = ""  # of the arrays in scores.npz
    digest: str = ""  # of everything else in record.json


def save_run(
    record: Record, arrays: dict[str, np.ndarray], folder: Path, overwrite: bool = False,
    ranks: dict[str, np.ndarray] | None = None,
) -> Path:  # fmt: skip
    """Write a run into ``folder`` under its id: complete, or not at all. The caller holds the run's lock.

    Raises:
        LMCLIPError: the run is already finished there and ``overwrite`` is False, or the folder can't be written.
    """
    target = folder / record.run_id
    recover(target)
    if is_finished(target) and not overwrite:
        raise LMCLIPError(f"{display(target)} is already finished; pass overwrite=True to replace it")
    unfinished, replaced = _hidden(target)
    try:
        unfinished.mkdir(parents=True)
        (unfinished / "record.json").write_text(_to_json(record, arrays) + "\n")
        np.savez_compressed(unfinished / "scores.npz", **arrays)
        if ranks:
            np.savez_compressed(unfinished / "ranks.npz", **ranks)
        for path in unfinished.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a power cut must not leave a run that looks finished
        if target.exists():
            target.rename(replaced)
        unfinished.rename(target)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        raise LMCLIPError(f"{display(target)} can't be written ({error.strerror or error}); free space there, make it "
                          "writable or set LMCLIP_RESULTS to another folder") from error  # fmt: skip
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def recover(target: Path) -> None:
    """Put right what a process that was killed while it wrote the run at ``target`` left. Its lock must be held."""
    unfinished, replaced = _hidden(target)
    shutil.rmtree(unfinished, ignore_errors=True)
    if replaced.exists() and not target.exists():
        replaced.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)


def clean(folder: Path) -> None:
    """Put right what dead processes left of any run in ``folder``; runs that a living process is at are left alone."""
    for path in [*folder.glob(".unfinished-*"), *folder.glob(".replaced-*"), *folder.glob(".*.lock")]:
        run_id = path.name.removesuffix(".lock").removeprefix(".unfinished-").removeprefix(".replaced-").lstrip(".")
        if is_free(lock_path(folder, run_id)):
            recover(folder / run_id)


def lock_path(folder: Path, run_id: str) -> Path:
    """The lock file of a run."""
    return folder / f".{run_id}.lock"


def _hidden(target: Path) -> tuple[Path, Path]:
    """Where a run is put together, and where the one that it replaces stands for that moment."""
    return target.with_name(f".unfinished-{target.name}"), target.with_name(f".replaced-{target.name}")


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
    return load_arrays(results_dir(profile.folder) / "runs" / record.run_id)


def load_arrays(run: Path, name: str = "scores.npz") -> dict[str, np.ndarray]:
    """The arrays of ``scores.npz`` or ``ranks.npz`` in a run's folder.

    Raises:
        LMCLIPError: the file is not there, unreadable, or declares more than it could hold.
    """
    path = run / name
    try:
        with zipfile.ZipFile(path) as archive:
            declared = sum(info.file_size for info in archive.infolist())
            if declared > MOST_INFLATED * path.stat().st_size + 1_000_000:
                raise ValueError(f"it declares {declared:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError:
        raise LMCLIPError(f"no scores at {display(path)}; notebook 04 makes the run again") from None
    except (OSError, ValueError, EOFError, KeyError, SyntaxError, RecursionError, MemoryError, NotImplementedError,
            RuntimeError, TypeError, OverflowError, zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
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


def scores_sha256(arrays: dict[str, np.ndarray]) -> str:
    """sha256 over the arrays' names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode() + np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def content_digest(content: dict[str, Any]) -> str:
    """sha256 over a record's content as in ``record.json``, without the digest itself."""
    content = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _to_json(record: Record, arrays: dict[str, np.ndarray]) -> str:
    """JSON with four significant digits more than any table shows, and null for what is not a number."""

    def tidy(value):
        if isinstance(value, float):
            return float(f"{value:.8g}") if math.isfinite(value) else None
        if isinstance(value, dict):
            return {key: tidy(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [tidy(item) for item in value]
        return value

    content = tidy(record.model_dump()) | {"scores_sha256": scores_sha256(arrays)}
    return json.dumps(content | {"digest": content_digest(content)}, indent=1)
