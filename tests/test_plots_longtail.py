"""Figures of notebook 01: named axes, and titles that say what the numbers say."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from lmclip.longtail import build_longtail, conditional_cooccurrence, group_classes
from lmclip.plots import longtail as figures

NAMES = [f"class {i}" for i in range(9)]


@pytest.fixture(scope="module")
def drawn():
    """A pool in which class 0 stands beside all others, its long tail, and groups."""
    labels = (np.random.default_rng(0).random((600, 9)) < 0.15).astype(np.uint8)
    labels[:300, 0] = 1
    build = build_longtail(labels, max_count=120)
    return labels, build, group_classes(build.counts, head_min=30, tail_max=10)


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def named(axis):
    return bool(axis.get_title(loc="left") or axis.get_title()) and bool(axis.get_ylabel())


def test_counts_title_counts_the_classes_on_the_reference(drawn):
    _, build, groups = drawn
    axis = figures.draw_counts(build.counts, build.reference, build.order, NAMES, groups)
    met = int((build.counts[build.order] == build.reference).sum())
    assert (axis.get_title(loc="left") + axis.get_title()).startswith(f"{met} of 9 classes meet the reference")
    assert [bar.get_height() for bar in axis.patches] == build.counts[build.order].tolist()


def test_walk_ends_with_the_counts_of_the_build(drawn):
    _, build, groups = drawn
    axes = figures.draw_walk(build, NAMES, groups)
    last = [axis for axis in axes.flat if axis.patches][-1]
    assert [bar.get_height() for bar in last.patches] == build.counts[build.order].tolist()


def test_moves_add_up_to_the_trace(drawn):
    _, build, _ = drawn
    axis = figures.draw_moves(build, NAMES)
    assert named(axis)
    assert sum(bar.get_height() for bar in axis.patches) == build.trace.action.sum()


def test_shortfall_ends_where_the_counts_end(drawn):
    _, build, groups = drawn
    axis = figures.draw_shortfall(build, NAMES, groups)
    ends = next(line for line in axis.lines if line.get_marker() == "D").get_ydata()
    # Every visit of this pool meets its reference, so what later visits moved is all that is missing.
    np.testing.assert_allclose(1 + ends, build.counts[build.order] / build.reference)
    assert named(axis)


def test_cooccurrence_tells_the_share_of_tail_images_with_the_first_class(drawn):
    labels, build, groups = drawn
    matrices = {"pool": conditional_cooccurrence(labels)}
    axes = figures.draw_cooccurrence(matrices, NAMES, build.order, groups)
    share = matrices["pool"][groups.tail, build.order[0]].mean()
    assert f"{share:.0%} (pool)" in axes[0].figure.get_suptitle()
    assert axes[0].get_xlabel() and axes[0].get_ylabel()


def test_samples_stand_in_one_row_per_group():
    images = np.zeros((2, 8, 8, 3), dtype=np.uint8)
    axes = figures.draw_samples({"head": (images, ["a photo of a b"] * 2), "tail": (images[:1], ["a c"])}, "title")
    assert axes.shape == (2, 2)
    assert [len(axis.images) for axis in axes.flat] == [1, 1, 1, 0]
