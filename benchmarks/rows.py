"""One function per row of speed.py's table: it measures both sides in turns, and gives the row's entries."""

import os
import tempfile
from collections import deque
from pathlib import Path

import numpy as np
import open_clip
import torch
from as_released import ReleasedLearner, looped_bootstrap, released_batches, released_start_up
from full_size import write_photographs
from growth import evaluations
from machine import coco_like_labels, temporary_data
from steps import Steps, counted, dataset_of
from timing import Measured, in_turns, matmul_rates, ratios

from lmclip.benchmarks import COCO_CLASSES
from lmclip.captions import tokenize_lists
from lmclip.config import experiment, load_profile
from lmclip.datasets import LongTailDataset, load_study_data, read_label_list
from lmclip.images import batches, cached_images
from lmclip.learner import Learner
from lmclip.longtail import ClassGroups, build_longtail
from lmclip.metrics import paired_bootstrap
from lmclip.models import standardized
from lmclip.training import train
from lmclip.tuning import chosen_settings


def training_step(benchmark: str, device: torch.device, repeats: int) -> list[dict]:
    """ViT-B/16, batch 8: the released step against ours in fp32 and in bf16, each from the same weights."""
    steps = Steps(load_profile(benchmark, weights="random"), dataset_of(benchmark), device)
    ways = {"released": steps.released(), **{name: steps.ours(name) for name in ("fp32", "bf16")}}
    flops = {name: counted(way) for name, way in ways.items()}
    before, measured, after = matmul_rates(device), in_turns(ways, repeats), matmul_rates(device)
    rate = {name: max(before[name], after[name]) for name in before}
    entries = []
    for name in ("fp32", "bf16"):
        entry = compared(f"step, {benchmark.upper()}, {name}", measured["released"], measured[name])
        losses = [np.array(measured[side].values) for side in ("released", name)]
        entry["largest difference"] = f"loss {np.abs(losses[0] - losses[1]).max():.1e}"
        entry["GFLOP"], entry["GFLOP, slow"] = flops[name] / 1e9, flops["released"] / 1e9
        entry["GFLOP/s, products"] = rate[name] / 1e9
        entry["utilisation"] = flops[name] / measured[name].median / rate[name]
        entry["utilisation, slow"] = flops["released"] / measured["released"].median / rate["fp32"]
        entries.append(entry)
    return entries


def input_pipeline(number: int, repeats: int) -> list[dict]:
    """One epoch's batches of 8 normalised images, from JPEGs and from the cache as of the second epoch."""
    with temporary_data() as folder:
        files = write_photographs(folder, number)
        cached = cached_images(files, 224, "squash", "synthetic photographs")
        order = torch.arange(number).split(8)
        flips = [torch.rand(len(rows)) < 0.5 for rows in order]
        unflipped = [torch.zeros(len(rows), dtype=torch.bool) for rows in order[:4]]
        both = zip(released_batches(files[: 8 * 4], 224, 8, 0, flip=0.0), batches(cached, order[:4], unflipped),
                   strict=True)  # fmt: skip
        difference = max((a - standardized(b)).abs().max().item() for a, b in both)

        def ours() -> None:
            for batch in batches(cached, order, flips):
                standardized(batch)

        cores = os.cpu_count() or 1
        readers = {"one process": 0, f"release with {cores} workers": cores}
        ways = {name: lambda w=w: deque(released_batches(files, 224, 8, w), maxlen=0) for name, w in readers.items()}
        measured = in_turns({"ours": ours, **ways}, min(repeats, 3), warm_up=1)
    entries = [compared(f"input pipeline, {name}", measured[name], measured["ours"]) for name in readers]
    return [entry | {"largest difference": f"pixel {difference:.1e}"} for entry in entries]


def evaluation(number: int, device: torch.device, repeats: int) -> list[dict]:
    """ViT-B/16 on test images with VOC's labels: labels once and large batches, against labels in every batch of 8."""
    profile, dataset = load_profile("voc", weights="random"), dataset_of("voc")
    released = ReleasedLearner(experiment(profile, "lm-clip"), profile, dataset, device)
    ours = {name: Learner(experiment(profile, "lm-clip", precision=name), profile, dataset, device)
            for name in ("fp32", "bf16")}  # fmt: skip
    measured = in_turns(evaluations(released, ours, number), min(repeats, 3), warm_up=1)
    entries = []
    for name in ours:
        entry = compared(f"evaluation, VOC, {name}", measured["as released"], measured[name])
        difference = np.abs(measured["as released"].values[-1] - measured[name].values[-1]).max()
        entries.append(entry | {"largest difference": f"logit {difference:.1e}",
                                "images per s": number / measured[name].median})  # fmt: skip
    return entries


def long_tail(number: int, repeats: int) -> list[dict]:
    """Draws COCO-MLT's long tail from labels of COCO's size, marginals and company."""
    labels = coco_like_labels(number)
    measured = in_turns({"ours": lambda: len(build_longtail(labels, max_count=1_200).indices)}, repeats, warm_up=1)
    return [alone("long tail, 118,287 × 80" if number == 118_287 else f"long tail, {number} × 80", measured["ours"])]


def start_up(repeats: int, train: int = 1_909, test: int = 5_000) -> list[dict]:
    """Label lists of COCO-MLT's sizes to labels and caption tokens. (Ours needs no captions of test images.)"""
    labels = dataset_of("coco", train + test).labels
    tokenizer = open_clip.get_tokenizer(load_profile("coco").model)
    with tempfile.TemporaryDirectory() as folder:
        lists = [Path(folder) / name for name in ("train.txt", "test.txt")]
        for path, rows in zip(lists, np.split(labels, [train]), strict=True):
            path.write_text("".join(f"{path.stem}/{i}.jpg {' '.join(map(str, np.flatnonzero(row)))}\n"
                                    for i, row in enumerate(rows)))  # fmt: skip

        def ours() -> tuple:
            read = [read_label_list(path, COCO_CLASSES) for path in lists]
            split = LongTailDataset("train", read[0][0], read[0][1], tuple(COCO_CLASSES))
            captions, index = np.unique(split.captions, return_inverse=True)
            return np.concatenate([rows for _, rows in read]), tokenize_lists(tokenizer, captions.tolist()), index

        ways = {"released": lambda: released_start_up(lists, COCO_CLASSES, tokenizer), "ours": ours}
        measured = in_turns(ways, repeats, warm_up=1)
    (theirs, their_tokens), (labels, tokens, index) = (measured[name].values[-1] for name in ways)
    same = np.array_equal(theirs, labels) and torch.equal(their_tokens[:train], tokens[index])
    for one in measured.values():
        one.values.clear()
    entry = compared("start-up, COCO-MLT's lists", measured["released"], measured["ours"])
    return [entry | {"largest difference": "none" if same else "NOT THE SAME"}]


def glyph_run() -> list[dict]:
    """One LM-CLIP run on GlyphMLT, data and evaluation included, as notebook 04 starts it."""
    profile = load_profile("glyph")
    data = load_study_data(profile)
    exp = experiment(profile, "lm-clip", **chosen_settings(profile)["lm-clip"])
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        ways = {"ours": lambda: (train(exp, profile, data, Path(folder), progress=False), None)[1]}
        measured = in_turns(ways, 1, warm_up=0)
    torch.set_num_threads(threads)
    return [alone("glyph run", measured["ours"])]


def bootstrap(resamples: int, images: int, repeats: int, few: int = 5) -> list[dict]:
    """Exact AP of 80 classes under every resample; the loop over classes and resamples is timed on a few of these."""
    rng = np.random.default_rng(0)
    targets = dataset_of("coco", images).labels
    scores_a, scores_b = (rng.normal(size=targets.shape) + targets for _ in range(2))
    groups = ClassGroups(*np.split(np.arange(80), [22, 55]))
    ways = {"slow": lambda: looped_bootstrap(scores_a, scores_b, targets, few),
            "ours": lambda: paired_bootstrap(scores_a, scores_b, targets, groups, few)}  # fmt: skip
    short = in_turns(ways, min(repeats, 3), warm_up=1)
    low, high = np.percentile(short["slow"].values[-1], [2.5, 97.5])
    found = short["ours"].values[-1].loc["mAP", ["low", "high"]].to_numpy(dtype=float)
    long = in_turns({"ours": lambda: paired_bootstrap(scores_a, scores_b, targets, groups, resamples)}, 1, warm_up=0)
    entry = alone(f"bootstrap, {resamples:,} × 80 × {images:,}", long["ours"])
    entry["seconds, slow"] = short["slow"].median / few * resamples
    entry["ratio"] = entry["seconds, slow"] / entry["seconds"]
    return [entry | {"largest difference": f"interval {np.abs(found - [low, high]).max():.1e}"}]


def compared(what: str, slow: Measured, fast: Measured) -> dict:
    """One row: seconds of both sides, their ratio with its spread, and both peaks."""
    ratio = ratios(slow, fast)
    return alone(what, fast) | {
        "seconds, slow": slow.median, "ratio": float(np.median(ratio)), "lowest": ratio.min(),
        "highest": ratio.max(), "peak MiB, slow": slow.peak_mib,
    }  # fmt: skip


def alone(what: str, one: Measured) -> dict:
    """One row without a slow side."""
    return {"what": what, "turns": len(one.seconds), "seconds": one.median, "peak MiB": one.peak_mib}
