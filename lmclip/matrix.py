"""The matrix of runs: method × seed, those that are not finished yet, several at a time on a CPU."""

import os
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import joblib
import torch
from tqdm import tqdm

from lmclip.config import METHODS, Experiment, Profile
from lmclip.datasets import StudyData
from lmclip.errors import LMCLIPError
from lmclip.paths import results_dir
from lmclip.records import Record, clean, load_record
from lmclip.training import checkpoint_of, is_current, train


def run_matrix(
    experiments: list[Experiment], profile: Profile, data: StudyData, *, jobs: int = -1, overwrite: bool = False,
    folder: Path | None = None, evaluate_test: bool = True,
) -> Iterator[Record]:  # fmt: skip
    """Run the experiments that are not finished yet, several at a time on a CPU, and yield every record.

    Two matrices may run at once: a run that the other one is at is waited for, and read.

    Args:
        jobs: processes at a time; -1 is one per core but at most four. On a GPU runs go one by one.
    """
    if jobs == 0 or jobs < -1:
        raise LMCLIPError(f"jobs is {jobs}; expected a number of runs at a time, or -1 for one per core")
    folder = folder or results_dir(profile.folder) / "runs"
    clean(folder)
    done = [] if overwrite else [e for e in experiments if is_current(folder / e.run_id, profile, data)]
    todo = [e for e in experiments if e not in done]
    print(f"{len(done)} of {len(experiments)} runs are finished already, {len(todo)} to do", flush=True)
    for exp in done:
        checkpoint_of(folder, exp).unlink(missing_ok=True)  # of a process killed right after it wrote the record
        yield load_record(folder / exp.run_id)
    if torch.cuda.is_available():
        jobs = 1
    elif jobs == -1:
        jobs = min(joblib.cpu_count(), 4)
    work = (joblib.delayed(train)(exp, profile, data, folder, overwrite=overwrite, reuse=not overwrite,
                                  evaluate_test=evaluate_test, progress=jobs == 1) for exp in todo)  # fmt: skip
    workers = {} if jobs == 1 else {"initializer": _end_with, "initargs": (os.getpid(),)}
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered", **workers)
    # joblib replaces a worker that has grown, and says so; the run that follows starts in a fresh process.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
    with tqdm(total=len(todo), desc=f"{jobs} at a time", unit="run", disable=not todo) as bar:
        for record in parallel(work):
            bar.update()
            bar.set_postfix_str(f"{METHODS[record.experiment.method].title}, seed {record.experiment.seed}")
            yield record


def _end_with(parent: int) -> None:
    """Let this worker end when ``parent`` is killed: joblib's would wait for its next run for ever, with its memory."""

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
