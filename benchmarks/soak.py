"""Kills the study at random moments, again and again, and shows that it ends with the numbers it would have had.

    python benchmarks/soak.py                     # 40 kills, about 20 minutes on two cores
    python benchmarks/soak.py --kills 3 --only 04 # a try

The study runs at smoke size, in a copy of this checkout, and is killed with SIGKILL while it renders, decodes, trains,
evaluates, writes records, and executes and publishes notebooks: now the command alone, whose kernel and workers live on
for a moment, now all of them at once. Then the same command runs again, until it finishes; finished studies start anew
until there were enough kills. Each is compared with one that was not killed: every score bit by bit, histories and
tables but for seconds and memory. Writes results/benchmarks/soak.csv.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import tyro

from lmclip.paths import ROOT, atomic_write, results_dir

COPIED = ("lmclip", "notebooks", "data/pretrained", "data/tuning", "data/published_results.csv", "data/author_runs.csv",
          "requirements.lock")  # fmt: skip
COSTS = ("seconds", "peak_memory_mb", "train_seconds", "digest")  # differ between any two runs
SMOKE_EPOCHS = '"smoke": True, "epochs": 1'  # three in the copy: after a single one there is little to resume


def main(kills: int = 40, seed: int = 0, longest: float = 45.0, only: tuple[str, ...] = (), save: bool = True) -> None:
    """Run the soak.

    Args:
        kills: How many.
        seed: Of the moments and of whom a kill hits.
        longest: Seconds from the start of the command to a kill, at most.
        only: Notebooks, by number; all of the study when empty.
        save: Write results/benchmarks/soak.csv.
    """
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        base = Path(name)
        _copy_checkout(base / "checkout")
        command = [sys.executable, "-m", "lmclip", "study", "--smoke", *(["--only", *only] if only else [])]
        began = time.time()
        Study(base, "reference", command).finish()
        print(f"reference: {time.time() - began:.0f} s without a kill", flush=True)
        rows = soak(base, command, kills, random.Random(seed), longest)
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    survived = int(table.loc[table["identical"], "kills"].sum())
    print(f"{survived} of {table['kills'].sum()} kills survived with identical scores, histories and tables; "
          f"{table['strays'].sum()} stray files or processes")  # fmt: skip
    if save:
        with atomic_write(results_dir("benchmarks") / "soak.csv") as file:
            file.write(table.to_csv(index=False).encode())
    if survived < table["kills"].sum() or table["strays"].any():
        sys.exit(1)


def soak(base: Path, command: list[str], kills: int, rng: random.Random, longest: float) -> list[dict]:
    """One row per study: how often it was killed, while it did what, and whether it is the reference all the same."""
    rows, left = [], kills
    while left:
        study, hit, alone = Study(base, f"study{len(rows)}", command), {}, 0
        while left:
            moment, only_command = rng.uniform(2, longest), rng.random() < 0.5
            doing = study.kill_after(moment, only_command)
            if doing is None:  # it had finished
                break
            left -= 1
            alone += only_command
            hit[doing] = hit.get(doing, 0) + 1
            print(f"killed after {moment:.1f} s, {'the command alone' if only_command else 'all'}: {doing}", flush=True)
        study.finish()
        found = differences(base / "reference", study.folder)
        strays = [*stray_files(study.folder), *left_processes(study.folder)]
        print(*found, *strays, sep="\n", flush=True)
        rows.append({"study": len(rows), "kills": sum(hit.values()), "of the command alone": alone,
                     "killed during": ", ".join(f"{name} {count}" for name, count in sorted(hit.items())),
                     "identical": not found, "strays": len(strays)})  # fmt: skip
        shutil.rmtree(study.folder)
    return rows


class Study:
    """One study in folders of its own, which is started, killed and started again."""

    def __init__(self, base: Path, name: str, command: list[str]):
        self.folder, self.command = base / name, command
        self.folder.mkdir()
        self.log = base / f"{name}.log"
        self.environment = os.environ | {
            "PYTHONPATH": str(base / "checkout"), "LMCLIP_DATA": str(self.folder / "data"),
            "LMCLIP_RESULTS": str(self.folder / "results"), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip

    def start(self) -> subprocess.Popen:
        with self.log.open("ab") as log:
            return subprocess.Popen(self.command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def kill_after(self, seconds: float, only_command: bool) -> str | None:
        """Kill it after so many seconds; returns what it was doing, or None when it had finished before."""
        running = self.start()
        try:
            if running.wait(seconds):
                raise RuntimeError(f"the study failed:\n{self.log.read_text()[-2000:]}")
            return None
        except subprocess.TimeoutExpired:
            doing = self.doing()
        family = [] if only_command else psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signal.SIGKILL)
        for process in family:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass
        running.wait()
        return doing

    def finish(self) -> None:
        if self.start().wait():
            raise RuntimeError(f"the study failed:\n{self.log.read_text()[-2000:]}")

    def doing(self) -> str:
        """What the study is at, told by the files that are there at the moment."""
        names = {path.name for path in self.folder.rglob(".*")}
        if any(name.startswith(".unfinished-") for name in names):
            return "record writing"
        if any(".npy." in name and name.endswith((".part", ".lock")) for name in names):
            return "caching"
        if any(name.endswith(".pt.part") or ".pt." in name for name in names):
            return "checkpoint writing"
        if any(name.endswith(".lock") and "_s" in name for name in names):
            return "training and evaluation"
        if any(name.endswith(".part") for name in names):
            return "writing"
        running = sorted(name for name in names if name.endswith(".running.ipynb"))
        return f"notebook {running[0][1:3]}" if running else "start or rendering"


def differences(reference: Path, other: Path) -> list[str]:
    """What two finished studies differ in, but for seconds and memory; empty when in nothing."""
    found = []
    results = reference / "results"
    for path in sorted(p for p in results.rglob("*") if p.is_file() and ".stamps" not in p.parts):
        name = path.relative_to(results)
        twin = other / "results" / name
        if not twin.is_file():
            found.append(f"{name} is missing")
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as a, np.load(twin, allow_pickle=False) as b:
                if a.files != b.files or any(not np.array_equal(a[n], b[n]) for n in a.files):
                    found.append(f"{name} has other bits")
        elif path.name == "record.json":
            if _timeless(json.loads(path.read_text())) != _timeless(json.loads(twin.read_text())):
                found.append(f"{name} differs")
        elif path.suffix == ".csv":
            a, b = (pd.read_csv(p).drop(columns=list(COSTS), errors="ignore") for p in (path, twin))
            if not a.equals(b):
                found.append(f"{name} differs")
        elif path.suffix == ".png" and path.read_bytes() != twin.read_bytes():
            found.append(f"{name} differs")
    return found


def stray_files(folder: Path) -> list[str]:
    """Hidden files that a finished study has left."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob(".*") if p.name not in (".stamps",) and p.exists())


def left_processes(folder: Path, patience: float = 90.0) -> list[str]:
    """Processes of a study that live on although it has finished; they are ended."""
    deadline = time.monotonic() + patience
    while (living := _processes(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    for process in living:
        process.kill()
    return [f"process {process.pid} lived on" for process in living]


def _processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("LMCLIP_RESULTS") == str(folder / "results"):
                found.append(process)
        except psutil.Error:
            pass
    return found


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in COSTS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def _copy_checkout(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.is_file():
            shutil.copy(source, folder / name)
    profiles = folder / "lmclip" / "profiles.py"
    settings = profiles.read_text()
    if settings.count(SMOKE_EPOCHS) != 1:
        raise RuntimeError("profiles.py sets the epochs of a smoke run otherwise: look for it, and change SMOKE_EPOCHS")
    profiles.write_text(settings.replace(SMOKE_EPOCHS, SMOKE_EPOCHS.replace("1", "3")))


if __name__ == "__main__":
    tyro.cli(main)
