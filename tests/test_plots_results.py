"""Figures of notebook 05: they draw what they are given, and small test sets and missing runs do not stop them."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lmclip import published
from lmclip.config import METHODS
from lmclip.plots import results
from lmclip.plots.style import use_style

TITLES = {name: method.title for name, method in METHODS.items()}


@pytest.fixture(autouse=True)
def style():
    with plt.rc_context():
        use_style()
        yield
    plt.close("all")


def frame_of(methods, base=0.9, seeds=(0, 1)):
    rows = [{"method": TITLES[m], "seed": s, "protocol": p, "mAP": base + 0.001 * s, "mAP_head": 0.5, "mAP_medium": 0.6,
             "mAP_tail": 0.7} for m in methods for s in seeds for p in ("clean", "best-on-test")]  # fmt: skip
    return pd.DataFrame(rows, columns=["method", "seed", "protocol", *results.PANELS])


OURS = ("bce", "bal", "lm-clip-release", "lm-clip")


def draw_runs(name="voc", backbone="vit-b-16", methods=OURS, base=0.92, **more):
    """The figure of one data set and backbone, two seeds of each of our methods, rendered."""
    runs = published.logged_runs(name, backbone)
    bands = {p: published.expected_band(name, backbone, p) for p in ("best-on-test", "clean")}
    own = published.own_runs(frame_of(methods, base), TITLES)
    axis = results.draw_author_runs(runs, bands, published.peers(name, backbone), own, "title", "last epoch", **more)
    axis.figure.draw_without_rendering()
    return axis, runs, bands


def rows_of(axis):
    return [label.get_text() for label in axis.get_yticklabels()]


def marks(axis, marker):
    """x values of all marks of one shape."""
    lines = [line for line in axis.lines if line.get_marker() == marker]
    return np.sort(np.concatenate([np.asarray(line.get_xdata(), float) for line in lines])) if lines else np.array([])


@pytest.mark.parametrize(
    "name, backbone", [("voc", "vit-b-16"), ("coco", "vit-b-16"), ("voc", "rn50"), ("coco", "rn50")]
)
def test_every_logged_run_is_drawn_by_best_and_by_last_epoch(name, backbone):
    axis, runs, _ = draw_runs(name, backbone, methods=())
    np.testing.assert_allclose(marks(axis, "o"), np.sort([*runs["mAP"], *runs["last_mAP"]]))
    assert rows_of(axis)[0] == f"{published.HEADLINE} (LM-CLIP)" and not any(
        r.startswith("ours") for r in rows_of(axis)
    )
    assert len(rows_of(axis)) == runs["configuration"].nunique()


def test_our_runs_stand_below_the_configuration_that_they_repeat():
    axis, _, _ = draw_runs()
    rows = rows_of(axis)
    assert rows[1:3] == ["ours: LM-CLIP, as released", "ours: LM-CLIP"]
    assert rows[rows.index("BAL") + 1] == "ours: BAL" and "ours: BCE" not in rows
    np.testing.assert_allclose(marks(axis, "D"), np.sort([92.0, 92.1] * 2 * 3))
    low, high = axis.get_xlim()
    assert (low < marks(axis, "D")).all() and (marks(axis, "D") < high).all()


def test_the_bands_lie_behind_lm_clip_alone():
    axis, _, bands = draw_runs()
    for patch, band in zip(axis.patches, bands.values(), strict=True):
        left, width = patch.get_x(), patch.get_width()
        assert (left, left + width) == pytest.approx((band.centre - band.half_width, band.centre + band.half_width))
        first_other = axis.get_yticks()[rows_of(axis).index("contrastive")]
        assert axis.get_yticks()[2] < patch.get_y() + patch.get_height() < first_other
        assert str(band) in patch.get_label()


def test_a_sample_is_written_at_the_edge_and_never_drawn_to_scale():
    axis, runs, _ = draw_runs("coco", base=0.0505, caveat="sample, random weights")
    assert len(marks(axis, "D")) == 0 and axis.get_xlim()[0] > 50
    told = [text.get_text() for text in axis.texts if "not comparable" in text.get_text()]
    assert len(told) == 2 and all("5.1 best-on-test" in t and "sample, random weights" in t for t in told)
    assert [r for r in rows_of(axis) if r.startswith("ours")] == ["ours: LM-CLIP, as released", "ours: LM-CLIP"]


def test_no_label_is_cut():
    axis, _, _ = draw_runs()
    figure = axis.figure
    box = figure.bbox
    for text in (*axis.get_yticklabels(), *axis.texts, *figure.legends[0].get_texts()):
        extent = text.get_window_extent()
        assert extent.x0 >= box.x0 - 1 and extent.x1 <= box.x1 + 1, text.get_text()


def test_an_empty_group_is_a_panel_with_words():
    frame = frame_of(("zero-shot", "zero-shot-ensemble", "lm-clip"), seeds=(0,)).assign(mAP_head=np.nan)
    axes = results.draw_main(frame[frame["protocol"] == "clean"], "title")
    assert ["no such class" in axis.texts[-1].get_text() for axis in axes] == [False, True, False, False]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == [
        "zero-shot",
        "zero-shot, 80 templates",
        "LM-CLIP",
    ]
    differences = dict(zip(results.PANELS, (0.1, np.nan, 0.1, -0.1), strict=True))
    intervals = pd.DataFrame([{"rival": "BCE", "seed": 0, "metric": metric, "difference": d, "low": d, "high": d}
                              for metric, d in differences.items()])  # fmt: skip
    axes = results.draw_bootstrap(intervals, "title")
    words = ["".join(text.get_text() for text in axis.texts) for axis in axes]
    assert ["no such class" in text for text in words] == [False, True, False, False]
    axes[0].figure.draw_without_rendering()


def test_classes_without_ap_or_training_images_do_not_stop_the_scatter():
    table = pd.DataFrame({"class": list("abcdef"), "group": ["medium", *["tail"] * 5], "images": [40, 3, 0, 0, 1, 2],
                          "BCE": [0.5, np.nan, 0.2, np.nan, 0.1, np.nan]})  # fmt: skip
    axes = results.draw_ap_against_count(table, ["BCE"], "title")
    axes[0].figure.draw_without_rendering()
    assert "none: at 0.5" in axes[0].get_xlabel() and axes[0].get_xlim()[0] < 0.5
    named = [text.get_text() for text in axes[0].texts]
    assert {"a", "c", "e"} <= set(named) and not {"b", "d", "f"} & set(named)
    every = results.draw_ap_against_count(table.assign(images=5), ["BCE"], "title")
    assert every[0].get_xlabel() == "training images of the class"


def test_a_map_without_head_images_is_drawn():
    axis = results.draw_embedding(np.random.default_rng(0).normal(size=(3, 2)), ["tail", "tail", "medium"], "title")
    assert sum(len(part.get_offsets()) for part in axis.collections) == 3
