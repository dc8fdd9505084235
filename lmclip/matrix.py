"""The matrix of runs: method × seed, those that are not finished yet, several at a time on a CPU."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import joblib
import torch
from tqdm import tqdm

from lmclip.config import METHODS, Experiment, Profile
from lmclip.datasets import StudyData
from lmclip.paths import results_dir
from lmclip.records import Record, is_finished, load_record
from lmclip.training import describe, train


def run_matrix(
    experiments: list[Experiment], profile: Profile, data: StudyData, *, jobs: int = -1, overwrite: bool = False,
    folder: Path | None = None, evaluate_test: bool = True,
) -> Iterator[Record]:  # fmt: skip
    """Run the experiments that are not finished yet, several at a time on a CPU, and yield every record.

    Args:
        jobs: processes at a time; -1 is one per core but at most four. On a GPU runs go one by one.
    """
    folder = folder or results_dir(profile.folder) / "runs"
    done = [] if overwrite else [e for e in experiments if is_current(folder / e.run_id, profile, data)]
    todo = [e for e in experiments if e not in done]
    print(f"{len(done)} of {len(experiments)} runs are finished already, {len(todo)} to do", flush=True)
    for exp in done:
        yield load_record(folder / exp.run_id)
    if torch.cuda.is_available():
        jobs = 1
    elif jobs == -1:
        jobs = min(joblib.cpu_count(), 4)
    work = (joblib.delayed(train)(exp, profile, data, folder, overwrite=True, evaluate_test=evaluate_test,
                                  progress=jobs == 1) for exp in todo)  # fmt: skip
    parallel = joblib.Parallel(n_jobs=jobs, return_as="generator_unordered")
    # joblib replaces a worker that has grown, and says so; the run that follows starts in a fresh process.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs were given")
    with tqdm(total=len(todo), desc=f"{jobs} at a time", unit="run", disable=not todo) as bar:
        for record in parallel(work):
            bar.update()
            bar.set_postfix_str(f"{METHODS[record.experiment.method].title}, seed {record.experiment.seed}")
            yield record


def is_current(run: Path, profile: Profile, data: StudyData) -> bool:
    """Whether a run is finished, and was made from these very data and weights."""
    return is_finished(run) and load_record(run).data == describe(profile, data)
