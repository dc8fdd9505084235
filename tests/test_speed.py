"""Every fast path equals its slow twin, and the benchmark compares what it says that it compares."""

import importlib
import re

import matplotlib.pyplot as plt
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmclip import evaluation, metrics, models
from lmclip.benchmarks import COCO_CLASSES, VOC_CLASSES
from lmclip.captions import tokenize_lists
from lmclip.config import experiment, load_profile
from lmclip.datasets import LongTailDataset
from lmclip.glyphs import CLASS_NAMES
from lmclip.images import batches, cached_images
from lmclip.learner import Learner
from lmclip.models import CLIP_STATISTICS, encode_text, load_model, standardized
from lmclip.paths import ROOT
from lmclip.plots.speed import LIMIT, PANELS, WAYS, draw_growth

CPU = torch.device("cpu")


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a file of ``benchmarks/`` by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module


@pytest.fixture(scope="module")
def dataset():
    labels = (np.random.default_rng(0).random((24, 6)) < 0.4).astype(np.uint8)
    labels[np.arange(24), np.arange(24) % 6] = 1
    return LongTailDataset("noise", [str(i) for i in range(24)], labels, CLASS_NAMES[:6])


@pytest.fixture
def steps(benchmark, dataset):
    return benchmark("steps").Steps(load_profile("glyph", weights="random"), dataset, CPU)


# ── fast paths and their slow twins ─────────────────────────────────────────────────────────────


def test_our_steps_lose_as_much_as_the_releases(steps):
    released, ours, half = steps.released(), steps.ours(), steps.ours("bf16")
    losses = np.array([(released(), ours(), half()) for _ in range(5)])
    assert np.abs(losses[:, 0] - losses[:, 1]).max() < 1e-5
    assert np.abs(losses[:, 0] - losses[:, 2]).max() < 0.05 * losses.max()
    assert len(set(losses[:, 0])) == 5, "every step has its own batch"


def test_our_step_takes_far_fewer_operations(benchmark, steps):
    counted = benchmark("steps").counted
    released, ours = counted(steps.released()), counted(steps.ours())
    assert 0 < ours < released
    a = torch.ones(3, 5)
    assert counted(lambda: a @ a.T) == 2 * 3 * 3 * 5


def test_a_step_is_the_training_loops(steps, dataset):
    """`one_step` has the loop's body; a run's own batches through it give the run's own weights."""
    from lmclip.training import train_epoch

    profile = load_profile("glyph", weights="random", overrides={"batch_size": 8, "epochs": 1})
    images = np.random.default_rng(1).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
    exp = experiment(profile, "lm-clip", 0, 1e-6, sampler="uniform")
    looped, stepped = (Learner(exp, profile, dataset, CPU) for _ in range(2))
    train_epoch(looped, images, 1)
    generator = torch.Generator().manual_seed(1)
    order = torch.randperm(24, generator=generator).split(8)
    chosen = [torch.rand(8, generator=generator) < 0.5 for _ in order]
    stepped.model.train()
    one_step = importlib.import_module("steps").one_step
    for batch, rows in zip(batches(images, order, chosen), order, strict=True):
        one_step(stepped, batch, rows)
    for a, b in zip(looped.parameters, stepped.parameters, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-7)


@pytest.mark.parametrize("pixels", [1, 64 * 64**2])
def test_our_logits_are_the_releases(benchmark, dataset, monkeypatch, pixels):
    monkeypatch.setattr(evaluation, "CPU_PIXELS", pixels)  # three batches of ours, and one
    profile = load_profile("glyph", weights="random")
    exp = experiment(profile, "lm-clip")
    released = benchmark("as_released").ReleasedLearner(exp, profile, dataset, CPU)
    ways = benchmark("growth").evaluations(released, {"fp32": Learner(exp, profile, dataset, CPU)}, 18, size=64)
    logits = {name: call() for name, call in ways.items()}
    assert logits["fp32"].shape == (18, 6)
    np.testing.assert_allclose(logits["fp32"], logits["as released"], atol=1e-5)


def test_our_batches_are_the_releases(benchmark, tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path))
    files = benchmark("full_size").write_photographs(tmp_path, 6)
    order = torch.arange(6).split(4)
    cached = cached_images(files, 96, "squash", "six")
    for flip in (0.0, 1.0):
        released = benchmark("as_released").released_batches(files, 96, 4, 0, flip=flip)
        ours = batches(cached, order, [torch.full((len(rows),), bool(flip)) for rows in order])
        for theirs, batch in zip(released, ours, strict=True):
            torch.testing.assert_close(standardized(batch), theirs, rtol=0, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=5), st.integers(0, 1000))
def test_flipping_some_images_is_choosing_between_two_batches(chosen, seed):
    images = np.random.default_rng(seed).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    kept, rows, flips = images.copy(), torch.arange(len(chosen)), torch.tensor(chosen)
    (found,) = batches(images, [rows], [flips])
    plain = torch.from_numpy(images[rows.numpy()]).permute(0, 3, 1, 2)
    assert torch.equal(found, torch.where(flips[:, None, None, None], plain.flip(3), plain))
    assert np.array_equal(images, kept), "the cache itself must stay as it is"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_standardising_whole_rows_gives_the_bits_of_each_channel_apart(layout):
    images = torch.randint(0, 256, (3, 3, 10, 7), dtype=torch.uint8).contiguous(memory_format=layout)
    kept = images.clone()
    mean, std = (torch.tensor(s).view(1, 3, 1, 1) * 255 for s in CLIP_STATISTICS)
    found = standardized(images)
    assert torch.equal(found, (images.float() - mean) / std) and torch.equal(images, kept)
    assert found.is_contiguous(memory_format=torch.channels_last)


TOKENIZER = open_clip.get_tokenizer("ViT-B-16-quickgelu")
PARTS = st.sampled_from([*COCO_CLASSES, "", "it's", "t.v.", "(x", "é", "a photo of a dog", "&amp", "  two ", "40", "!"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PARTS, max_size=30), min_size=1, max_size=5))
def test_tokens_by_words_are_the_tokens_of_the_whole(texts):
    texts = ["a photo of a " + ", ".join(parts) for parts in texts]
    assert torch.equal(tokenize_lists(TOKENIZER, texts), TOKENIZER(texts))


def test_start_up_reads_what_the_loop_reads(benchmark, tmp_path):
    rng = np.random.default_rng(0)
    labels = (rng.random((30, 80)) < 0.04).astype(np.uint8)
    path = tmp_path / "list.txt"
    path.write_text("".join(f"{i}.jpg {' '.join(map(str, np.flatnonzero(row)))}\n" for i, row in enumerate(labels)))
    found, tokens = benchmark("as_released").released_start_up([path], COCO_CLASSES, TOKENIZER)
    assert np.array_equal(found, labels)
    captions = LongTailDataset("x", [str(i) for i in range(30)], labels, tuple(COCO_CLASSES)).captions
    assert torch.equal(tokens, tokenize_lists(TOKENIZER, captions))


@pytest.mark.parametrize("limit", [24, 64, 4096])
def test_packs_of_any_size_give_the_same_features(monkeypatch, limit):
    model, tokenizer = load_model(weights="random")
    tokens = tokenizer([f"a photo of a {name}" for name in CLASS_NAMES])
    monkeypatch.setattr(models, "_POSITIONS", limit)
    with torch.inference_mode():
        torch.testing.assert_close(encode_text(model, tokens), model.encode_text(tokens), rtol=0, atol=1e-5)


def test_bootstrap_intervals_are_the_loops(benchmark):
    from lmclip.longtail import ClassGroups
    from lmclip.metrics import paired_bootstrap

    rng = np.random.default_rng(0)
    targets = (rng.random((60, 4)) < 0.3).astype(int)
    scores = [rng.normal(size=targets.shape) + targets for _ in range(2)]
    looped = benchmark("as_released").looped_bootstrap(*scores, targets, 20)
    groups = ClassGroups(*(np.array([c]) for c in range(3)))
    found = paired_bootstrap(*scores, targets, groups, 20, seed=0).loc["mAP", ["low", "high"]]
    np.testing.assert_allclose(found.to_numpy(dtype=float), np.percentile(looped, [2.5, 97.5]))


def test_resamples_in_blocks_give_the_same_numbers(monkeypatch):
    rng = np.random.default_rng(1)
    targets, scores = (rng.random((50, 3)) < [0.5, 0.1, 0.02]).astype(int), rng.integers(0, 9, (2, 50, 3)) / 8
    counts = metrics._resample_counts(50, 101, 0)
    found = []
    for block in (1, 10, 1_000):
        monkeypatch.setattr(metrics, "_BLOCK", block)
        found.append(metrics._bootstrap_ap(scores[0], targets, counts))
    for one in found[:2]:
        np.testing.assert_allclose(one, found[2], rtol=1e-13)


# ── the benchmark itself ────────────────────────────────────────────────────────────────────────


def test_ways_are_called_in_turns_and_ratios_are_of_one_turn(benchmark):
    timing, calls = benchmark("timing"), []
    found = timing.in_turns({name: lambda name=name: calls.append(name) for name in "ab"}, repeats=3, warm_up=2)
    assert calls == list("ab") * 5 and all(len(one.seconds) == 3 for one in found.values())
    slow, fast = timing.Measured([2.0, 9.0, 4.0]), timing.Measured([1.0, 3.0, 1.0])
    assert timing.ratios(slow, fast).tolist() == [2, 3, 4] and slow.median == 4


def test_peak_memory_sees_what_a_call_frees_again(benchmark):
    value, peak = benchmark("timing").with_peak(lambda: torch.ones(20_000_000).sum().item())
    assert value == 20_000_000
    assert np.isnan(peak) or 70 < peak < 120  # 76 MiB; NaN where the system can't tell


def test_targets_are_judged_by_their_kind(benchmark):
    speed = benchmark("speed")
    entry = {"what": "step, VOC, fp32", "seconds": 1.0, "ratio": 1.44}
    assert speed.judged(entry, CPU)["reached"] == "no"
    assert speed.judged(entry | {"ratio": 1.45}, CPU) == entry | {"ratio": 1.45, "target": "≥ 1.45×", "reached": "yes"}
    assert speed.judged({"what": "glyph run", "seconds": 61.0}, CPU)["reached"] == "no"
    assert speed.judged({"what": "something else", "seconds": 61.0}, CPU)["reached"] == ""


def test_rows_have_the_names_that_targets_are_set_for(benchmark, monkeypatch, tmp_path, capsys):
    rows = benchmark("rows")
    entries = [*rows.long_tail(3_000, 1), *rows.start_up(1, train=40, test=60), *rows.bootstrap(20, 100, 1)]
    assert entries[1]["largest difference"] == "none"  # no ratio is tested: one turn on a busy machine says nothing
    for entry in entries[1:]:
        assert entry["ratio"] == pytest.approx(entry["seconds, slow"] / entry["seconds"])
    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path))
    speed, threads = benchmark("speed"), torch.get_num_threads()
    try:
        speed.main(rows=("start-up",), repeats=1, threads=1)
    finally:
        torch.set_num_threads(threads)
    (path,) = (tmp_path / "benchmarks").glob("speed-*.csv")
    table = pd.read_csv(path)
    assert set(table["what"]) <= set(speed.TARGETS) and table["target"].notna().all()
    assert "start-up" in capsys.readouterr().out


def test_synthetic_labels_look_like_the_benchmarks(benchmark):
    dataset_of = benchmark("steps").dataset_of
    for name, classes in (("voc", VOC_CLASSES), ("coco", COCO_CLASSES)):
        labels = dataset_of(name, 2_000).labels
        assert labels.shape == (2_000, len(classes)) and labels.any(0).all() and labels.any(1).all()
        assert labels.sum(1).mean() == pytest.approx(benchmark("steps").LABELS_PER_IMAGE[name], rel=0.1)
    coco = benchmark("machine").coco_like_labels(20_000)
    assert coco.shape == (20_000, 80) and coco.sum(1).mean() == pytest.approx(2.9, abs=0.6)
    assert coco[:, 0].mean() == pytest.approx(0.54, abs=0.02)


MACHINES = ("cpu-2-cores", "amd-epyc-family-25-model-17-2-cores")  # the first and the second, of every quoted pair
TABLES = {
    "README.md": {
        "training step, VOC (20 classes)": ("step, VOC, fp32", "step, VOC, bf16"),
        "training step, COCO (80 classes)": ("step, COCO, fp32", "step, COCO, bf16"),
        "evaluation": ("evaluation, VOC, fp32", "evaluation, VOC, bf16"),
        "input, from the second epoch on": ("input pipeline, one process",),
        "start-up from COCO-MLT's lists": ("start-up, COCO-MLT's lists",),
    },
    "benchmarks/NOTES.md": {
        **{f"step, {name}": (f"step, {name}",) for name in ("VOC, fp32", "VOC, bf16", "COCO, fp32", "COCO, bf16")},
        **{f"evaluation, {name}": (f"evaluation, VOC, {name}",) for name in ("fp32", "bf16")},
        "input pipeline, 1,142 JPEGs, against one process": ("input pipeline, one process",),
        "the same, against two workers": ("input pipeline, release with 2 workers",),
        "start-up, COCO-MLT's lists": ("start-up, COCO-MLT's lists",),
    },
}


@pytest.mark.parametrize("page", TABLES)
def test_the_speeds_that_are_quoted_were_measured(page):
    tables = [pd.read_csv(ROOT / f"results/benchmarks/speed-{name}.csv", index_col="what") for name in MACHINES]
    columns = ["ratio"] if page == "README.md" else ["ratio", "lowest", "highest"]
    for label, rows in TABLES[page].items():
        (line,) = [line for line in (ROOT / page).read_text().splitlines() if line.startswith(f"| {label} | ")]
        quoted = re.findall(r"[\d.]+", re.sub(r"≥ [\d.]+×", "", line.removeprefix(f"| {label} | ")))  # without targets
        measured = [table.loc[row, column] for row in rows for table in tables for column in columns]
        for told, value in zip(quoted, measured, strict=True):
            assert_told(told, value)


def assert_told(told: str, measured: float):
    """``told`` is ``measured``, rounded to the decimals that it shows."""
    decimals = len(told.partition(".")[2])
    assert float(told) == pytest.approx(measured, abs=0.5001 * 10**-decimals), (told, measured)


def test_the_limit_is_the_best_rate_of_a_run(benchmark):
    """A rate measured while the machine was busy must not show a step beyond the limit."""
    rows = [{"way": way, "seconds": seconds, "GFLOP": 100.0, "GFLOP/s, products": rate}
            for way, seconds, rate in (("as released", 2.0, 80.0), ("fp32", 1.5, 100.0), ("bf16", 0.5, 150.0),
                                       ("bf16", 0.5, 400.0))]  # fmt: skip
    found = [row["utilisation"] for row in benchmark("growth").with_utilisation(rows)]
    assert found == pytest.approx([100 / 2 / 100, 100 / 1.5 / 100, 100 / 0.5 / 400, 100 / 0.5 / 400])


def test_growth_is_drawn_with_every_point_and_its_range():
    points = [(panel, k, way, x) for panel in PANELS for k, way in enumerate(WAYS, 1) for x in (8, 2, 4)]
    rows = [{"panel": panel, "x": x, "way": way, "seconds": k * x, "fastest": 0.9 * k * x, "slowest": 2 * k * x,
             "utilisation": k * x / 30} for panel, k, way, x in points]  # fmt: skip
    axes = draw_growth(pd.DataFrame(rows), "a finding").ravel()
    for axis, (title, label) in zip(axes, (*PANELS.values(), LIMIT), strict=True):
        assert (axis.get_title() or axis.get_title(loc="left")) == title and axis.get_xlabel() == label
        lines = [line for line in axis.lines if len(line.get_xdata()) == 3 and line.get_linestyle() != "None"]
        first = [2 / 30, 4 / 30, 6 / 30] if axis is axes[3] else [2, 4, 6]
        assert sorted(line.get_ydata()[0] for line in lines) == first, "sorted by x, one line per way"
        assert axis.get_xscale() == "log" and axis.get_yscale() == ("linear" if axis is axes[3] else "log")
    assert "seconds" in axes[0].get_ylabel() and axes[3].get_ylim()[0] == 0
    plt.close("all")
