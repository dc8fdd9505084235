"""The training loop: one flat loop for every method.

    record = train(experiment(profile, "lm-clip", seed=0, learning_rate=1e-4), profile, data)

On one CPU the same settings and seed give the same bits, whatever else the machine does: sums run on one
thread for the mini CLIP, every draw comes from a generator seeded with (seed, epoch). A run that was killed goes on
after its last whole epoch, with the same bits; of two processes that are asked for one run, the second waits.
"""

import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lmclip import sampling
from lmclip.checkpoints import Checkpoint
from lmclip.config import METHODS, Experiment, Profile
from lmclip.datasets import StudyData
from lmclip.errors import LMCLIPError
from lmclip.evaluation import Judge, keep_epoch, positive_ranks
from lmclip.images import batches, cached_images
from lmclip.learner import Learner, enough_memory
from lmclip.locks import held
from lmclip.models import MINI_CLIP, weights_id
from lmclip.paths import results_dir
from lmclip.records import (
    Record,
    environment,
    is_finished,
    load_record,
    lock_path,
    peak_memory_mb,
    recover,
    save_run,
)


def train(
    exp: Experiment, profile: Profile, data: StudyData, folder: Path | None = None, *, overwrite: bool = False,
    reuse: bool = False, evaluate_test: bool = True, progress: bool = True, workers: int | None = None,
) -> Record:  # fmt: skip
    """Run one experiment and write its record.

    Args:
        exp: the run's settings.
        profile: the profile they were made from (model, image size).
        data: its splits.
        folder: where the run's folder goes; ``results/<profile>/runs`` when None.
        overwrite: replace a finished run of the same id.
        reuse: read a finished run of the same id, data and weights, such as another process may have made while this
            one waited for it; replace any other.
        evaluate_test: False keeps the test images unread (`lmclip tune`); only validation is judged.
        progress: show a bar with loss and rate.
        workers: processes that read batches ahead; None: none on a CPU, up to four for a GPU. Bits do not depend on it.

    Raises:
        LMCLIPError: the run is finished already, an image is missing or corrupt, memory does not suffice, or nothing
            can be written.
    """
    folder = folder or results_dir(profile.folder) / "runs"
    run = folder / exp.run_id
    with held(lock_path(folder, exp.run_id), f"run {exp.run_id}"):  # also tells now whether anything can be written
        recover(run)
        if reuse and is_current(run, profile, data):
            checkpoint_of(folder, exp).unlink(missing_ok=True)
            return load_record(run)
        if is_finished(run) and not (overwrite or reuse):
            raise LMCLIPError(f"run {exp.run_id} is already finished; pass overwrite=True to replace it")
        return _train(exp, profile, data, folder, evaluate_test, progress, workers)


def checkpoint_of(folder: Path, exp: Experiment) -> Path:
    """Where the checkpoint of a run in ``folder`` lies while it is not finished."""
    return folder / f".{exp.run_id}.pt"


def is_current(run: Path, profile: Profile, data: StudyData) -> bool:
    """Whether a run is finished, and was made from these very data and weights."""
    return is_finished(run) and load_record(run).data == describe(profile, data)


def _train(
    exp: Experiment, profile: Profile, data: StudyData, folder: Path, evaluate_test: bool, progress: bool,
    workers: int | None,
) -> Record:  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(exp.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    if device.type == "cpu" and profile.model == MINI_CLIP:
        torch.set_num_threads(1)
    if workers is None:
        workers = min(4, os.cpu_count() or 1) if device.type == "cuda" else 0
    start, told = time.perf_counter(), describe(profile, data)
    identity = json.dumps([exp.model_dump(), told, environment(device), evaluate_test], sort_keys=True)
    checkpoint = Checkpoint(checkpoint_of(folder, exp), identity)

    images = cached_images(data.train.files or [], profile.image_size, exp.resize, data.train.name)
    with enough_memory(exp, device):
        learner = Learner(exp, profile, data.train, device)
        splits = {"test": data.test if evaluate_test else None, "validation": data.validation}
        judged = {name: Judge(split, profile, learner, exp.scoring) for name, split in splits.items() if split}
        history, best, before = checkpoint.load(learner)
        if not history:
            learner.fit_bias(images)

        for epoch in range(len(history), exp.epochs + 1):  # epoch 0 is the model before training
            row = {"epoch": epoch}
            if epoch:
                row |= train_epoch(learner, images, epoch, progress, workers)
            row["logit_scale"] = learner.model.logit_scale.exp().item()
            for split, judge in judged.items():
                judge()
                row |= judge.row(split)
            history.append(row)
            if epoch or not exp.epochs:
                keep_epoch(best, row, judged)
            if exp.epochs:  # else this was all
                checkpoint.save(learner, history, best, before + time.perf_counter() - start)

    protocols = {name: kept.summary for name, kept in best.items()}
    record = Record(
        run_id=exp.run_id, experiment=exp, data=told, precision=exp.precision, history=history, protocols=protocols,
        seconds=before + time.perf_counter() - start, peak_memory_mb=peak_memory_mb(device), **environment(device),
    )  # fmt: skip
    arrays, ranks = {f"logits_{name}": kept.logits for name, kept in best.items()}, {}
    if evaluate_test:
        arrays |= {"targets": data.test.labels, "features": best["clean"].features}
        ranks = positive_ranks(best, data.test.labels)
    save_run(record, arrays, folder, overwrite=True, ranks=ranks)
    checkpoint.remove()
    return record


# ── one epoch ───────────────────────────────────────────────────────────────────────────────────


def train_epoch(
    learner: Learner, images: np.ndarray, epoch: int, progress: bool = False, workers: int = 0
) -> dict[str, float]:
    """Train one epoch on images (N, H, W, 3) uint8 and return its history row: mean losses, gradient norms, seconds.

    Every draw (order, sampler, flips) follows from the run's seed and ``epoch`` alone.
    """
    exp, start = learner.exp, time.perf_counter()
    generator = torch.Generator().manual_seed(1_000_003 * exp.seed + epoch)
    draws = exp.draws or len(images)
    if learner.weights is None:
        order = torch.randperm(len(images), generator=generator)[:draws]
    else:
        order = torch.from_numpy(sampling.draw(learner.weights, draws, generator))
    order = order.split(exp.batch_size)
    flips = [torch.rand(len(rows), generator=generator) < 0.5 for rows in order]
    learner.model.train()  # BatchNorm too, as in the release
    row = {"learning_rate": learner.schedule.get_last_lr()[0]}
    sums = {"loss": 0.0, "gradient_norm": 0.0}
    title = f"{METHODS[exp.method].title} seed {exp.seed}, epoch {epoch}/{exp.epochs}"
    bar = tqdm(batches(images, order, flips, workers), desc=title, unit="step", disable=not progress, mininterval=1)
    for step, (batch, rows) in enumerate(zip(bar, order, strict=True)):
        learner.optimizer.zero_grad()
        values = {}
        for part, part_rows in zip(batch.chunk(exp.accumulate), rows.chunk(exp.accumulate), strict=True):
            terms = learner.terms(part, part_rows)
            loss = sum(terms.values())
            if step == 0 and len(terms) == 2:
                row |= _gradient_shares(terms, learner.parameters)
            share = len(part_rows) / len(rows)
            (share * loss).backward()
            for name, value in {"loss": loss, **{f"{name}_loss": term for name, term in terms.items()}}.items():
                values[name] = values.get(name, 0.0) + share * value.item()
        norm = torch.nn.utils.get_total_norm([p.grad for p in learner.parameters if p.grad is not None])
        learner.optimizer.step()
        if exp.clamp_logit_scale:
            learner.model.logit_scale.data.clamp_(max=float(np.log(100)))
        for name, value in (values | {"gradient_norm": norm.item()}).items():
            sums[name] = sums.get(name, 0.0) + value
        bar.set_postfix(loss=f"{values['loss']:.3f}")
    learner.schedule.step()
    row |= {name: total / len(order) for name, total in sums.items()}
    row["bias"] = learner.bias.item()
    row["train_seconds"] = time.perf_counter() - start
    return row


def _gradient_shares(terms: dict[str, torch.Tensor], parameters: list[nn.Parameter]) -> dict[str, float]:
    """Gradient norm of each weighted term alone, on the epoch's first batch, and the cosine between the two."""
    flat = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
        flat[name] = torch.cat([(torch.zeros_like(p) if g is None else g).flatten()
                                for g, p in zip(gradients, parameters, strict=True)])  # fmt: skip
    norms = {f"{name}_gradient_norm": g.norm().item() for name, g in flat.items()}
    cosine = nn.functional.cosine_similarity(*flat.values(), dim=0).item()
    return {**norms, "gradient_cosine": cosine}


def describe(profile: Profile, data: StudyData) -> dict:
    """What a record says of its data and weights; runs with different descriptions are not the same run."""
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    groups = data.train.groups
    return {
        "splits": {name: {"name": split.name, "images": len(split), "fingerprint": split.fingerprint,
                          "source": split.provenance["source"]} for name, split in splits.items() if split},
        "weights": weights_id(profile.model, profile.weights), "class_names": list(data.train.class_names),
        "train_counts": data.train.counts.tolist(),
        "groups": {name: [int(c) for c in getattr(groups, name)] for name in ("head", "medium", "tail")},
    }  # fmt: skip
