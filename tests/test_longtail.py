"""The long tail: exact on VOC2012, sound on anything, and clear about bad input."""

import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lmclip.errors import LMCLIPError
from lmclip.longtail import build_longtail, conditional_cooccurrence, group_classes, list_sha256, pareto_reference

VOC_MLT_SHA256 = "6fa70d5b693700d97657acd03b18b4d198aa59795dc99828db2c21a2abf2133f"
COCO_MLT_SHA256 = "65d0d7fb585456dd7b543bd1fbb90f20676656412b0c74b2e2b136398e447ead"


def label_matrices(max_images=60, max_classes=8):
    """Random label matrices in which every class has an image."""
    shapes = st.tuples(st.integers(1, max_images), st.integers(1, max_classes))
    matrices = hnp.arrays(np.uint8, shapes, elements=st.integers(0, 1))
    return matrices.filter(lambda labels: labels.any(axis=0).all())


def official_ids(path):
    return [line.split()[0].rsplit("/", 1)[-1].removesuffix(".jpg") for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def voc_pool(reference):
    with np.load(reference / "voc2012_trainval_labels.npz") as arrays:
        return arrays["ids"], arrays["labels"]


@pytest.fixture(scope="module")
def voc_build(voc_pool):
    return build_longtail(voc_pool[1], max_count=800)


def test_rebuilds_voc_mlt_image_by_image(voc_pool, voc_build, reference):
    ids = voc_pool[0][voc_build.indices].tolist()
    official = official_ids(reference / "voc_mlt_train.txt")
    assert len(ids) == len(official) == 1142
    assert set(ids) == set(official)
    assert list_sha256(ids) == VOC_MLT_SHA256


def test_coco_mlt_list_has_its_published_fingerprint(reference):
    assert list_sha256(official_ids(reference / "coco_mlt_train.txt")) == COCO_MLT_SHA256


def test_voc_mlt_has_the_groups_of_the_paper(voc_build):
    groups = group_classes(voc_build.counts)
    assert [len(groups.head), len(groups.medium), len(groups.tail)] == [6, 6, 8]
    assert (voc_build.counts.min(), voc_build.counts.max()) == (4, 775)


def test_trace_of_voc_replays_to_the_result(voc_pool, voc_build):
    check_replay(voc_pool[1], voc_build)
    assert sum(getattr(voc_build.trace, name).nbytes for name in vars(voc_build.trace)) < 100_000


def test_another_seed_draws_other_images(voc_pool, voc_build):
    other = build_longtail(voc_pool[1], max_count=800, seed=1)
    assert set(other.indices.tolist()) != set(voc_build.indices.tolist())


def check_replay(labels, build):
    """Walks the trace step by step: it must never add or remove twice, and must end where the build ended."""
    trace, chosen = build.trace, set()
    for step in range(len(trace)):
        image, visited = int(trace.image[step]), int(trace.class_index[step])
        assert labels[image, visited] == 1
        assert visited == build.order[trace.visit[step]]
        assert (image in chosen) == (trace.action[step] < 0)
        chosen.symmetric_difference_update({image})
        if step + 1 == len(trace) or trace.visit[step + 1] != trace.visit[step]:
            counts = labels[sorted(chosen)].sum(axis=0)
            assert (counts == trace.counts[trace.visit[step]]).all()
    assert sorted(chosen) == build.indices.tolist()


@settings(max_examples=60, deadline=None)
@given(label_matrices(), st.integers(1, 40), st.integers(0, 3))
def test_any_build_is_sound(labels, max_count, seed):
    build = build_longtail(labels, max_count=max_count, seed=seed)
    assert (build.counts == labels[build.indices].sum(axis=0)).all()
    assert (np.diff(build.indices) > 0).all()
    assert sorted(build.order.tolist()) == list(range(labels.shape[1]))
    assert (np.diff(build.reference) <= 0).all()
    check_replay(labels, build)
    # The class visited last meets its reference, or has no more images to give.
    last = build.order[-1]
    assert build.counts[last] == min(build.reference[-1], labels[:, last].sum())


@settings(max_examples=25, deadline=None)
@given(label_matrices(), st.integers(0, 3), st.sampled_from([np.bool_, np.int64, np.float32]))
def test_same_input_same_subset_whatever_its_dtype(labels, seed, dtype):
    first = build_longtail(labels, max_count=20, seed=seed)
    second = build_longtail(labels.astype(dtype), max_count=20, seed=seed)
    assert (first.indices == second.indices).all()
    assert (first.trace.image == second.trace.image).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5000), st.integers(0, 1), st.floats(0.5, 20))
def test_reference_falls_from_max_towards_min(num_classes, max_count, min_count, alpha):
    counts = pareto_reference(num_classes, max_count, min_count, alpha)
    assert counts.shape == (num_classes,)
    assert (np.diff(counts) <= 0).all()
    assert max_count - 1 <= counts[0] <= max_count  # the cut to integers may take one image
    assert counts[-1] >= min_count


@pytest.mark.parametrize(("num_classes", "max_count", "ends"), [(20, 800, (800, 4)), (80, 1200, (1200, 6))])
def test_reference_of_the_two_benchmarks(num_classes, max_count, ends):
    counts = pareto_reference(num_classes, max_count)
    assert (counts[0], counts[-1]) == ends


def test_conditional_cooccurrence_by_hand():
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1]])
    expected = [[1, 0.25, 0.5], [1, 1, 0], [1, 0, 1]]
    np.testing.assert_allclose(conditional_cooccurrence(labels), expected)


def test_classes_are_visited_from_the_most_co_occurring():
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 0, 1]])
    assert build_longtail(labels, max_count=2).order.tolist() == [0, 2, 1]


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.int64, st.integers(0, 50), elements=st.integers(0, 300)))
def test_groups_hold_every_class_once(counts):
    groups = group_classes(counts)
    together = np.concatenate([groups.head, groups.medium, groups.tail])
    assert sorted(together.tolist()) == list(range(len(counts)))


def test_group_thresholds_are_those_of_the_paper():
    groups = group_classes(np.array([100, 99, 20, 19, 0]))
    assert (groups.head.tolist(), groups.medium.tolist(), groups.tail.tolist()) == ([0], [1, 2], [3, 4])


def test_coco_sized_pool_in_seconds_and_within_a_gigabyte():
    generator = np.random.default_rng(0)
    share = np.geomspace(0.5, 0.002, 80)
    labels = (generator.random((118_287, 80), dtype=np.float32) < share).astype(np.uint8)
    started = time.perf_counter()
    build_longtail(labels, max_count=1200)
    assert time.perf_counter() - started < 5
    tracemalloc.start()
    build_longtail(labels, max_count=1200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e9


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([[1, 2]]), r"labels\[0, 1\] is 2"),
        (np.array([[1.0, np.nan]]), r"labels\[0, 1\] is nan"),
        (np.array([[1, 0, 1], [1, 0, 0]]), "class 1 has no image"),
        (np.array([1, 0, 1]), r"shape \(3,\)"),
        (np.zeros((0, 4)), r"shape \(0, 4\)"),
    ],
)
def test_what_is_no_label_matrix_is_refused(labels, words):
    with pytest.raises(LMCLIPError, match=words):
        build_longtail(labels, max_count=10)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_classes": 0, "max_count": 9}, "num_classes is 0"),
        ({"num_classes": 3, "max_count": 1, "min_count": 2}, "min_count 2 and max_count 1"),
        ({"num_classes": 3, "max_count": 9, "alpha": 0.0}, "alpha is 0.0"),
        ({"num_classes": 3, "max_count": 9, "tail": 1.0}, "tail is 1.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, words):
    with pytest.raises(LMCLIPError, match=words):
        pareto_reference(**settings)


def test_groups_refuse_overlapping_thresholds_and_negative_counts():
    with pytest.raises(LMCLIPError, match="tail_max 30"):
        group_classes(np.array([1, 2]), head_min=20, tail_max=30)
    with pytest.raises(LMCLIPError, match="0 or more"):
        group_classes(np.array([1, -2]))
