"""Sampling weights against the release's golden numbers, slow loops, and what is known of the real benchmarks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lmclip import sampling
from lmclip.errors import LMCLIPError

TINY = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 0, 0]])  # counts 4, 1, 1 of N = 4

label_matrices = hnp.arrays(
    np.int64, st.tuples(st.integers(1, 12), st.integers(1, 6)), elements=st.integers(0, 1)
).filter(lambda labels: (labels.sum(axis=0) > 0).all())


@pytest.mark.parametrize("power", [1.35, 0.7])
def test_weights_equal_the_release(golden, power):
    numbers = np.load(golden / "weights.npz")
    labels = numbers["voc_mlt.labels"]
    for ours, kind in ((sampling.class_weights, "class"), (sampling.sample_weights, "sample")):
        np.testing.assert_allclose(ours(labels, power), numbers[f"voc_mlt.{power}.{kind}"], atol=1e-12, rtol=0)


def test_effective_sample_size_of_voc_mlt(golden):
    labels = np.load(golden / "weights.npz")["voc_mlt.labels"]
    assert len(labels) == 1142
    assert round(sampling.effective_sample_size(sampling.sample_weights(labels, 1.35))) == 137


def test_effective_sample_size_of_coco_mlt(reference):
    lines = (reference / "coco_mlt_train.txt").read_text().splitlines()
    labels = np.zeros((len(lines), 80), dtype=int)
    for row, line in enumerate(lines):
        labels[row, [int(index) for index in line.split()[1:]]] = 1
    assert len(labels) == 1909
    assert round(sampling.effective_sample_size(sampling.sample_weights(labels, 1.6))) == 608


@settings(deadline=None)
@given(label_matrices, st.floats(0, 3))
def test_weights_equal_the_slow_loop(labels, power):
    N, C = labels.shape
    n = [sum(labels[i, c] for i in range(N)) for c in range(C)]
    per_class = [(N / n[c]) ** power for c in range(C)]
    per_image = [sum(N / n[c] for c in range(C) if labels[i, c]) ** power for i in range(N)]
    rarest = [max((N / n[c] for c in range(C) if labels[i, c]), default=0) for i in range(N)]
    class_aware = [sum(1 / C / n[c] for c in range(C) if labels[i, c]) for i in range(N)]
    for ours, slow in (
        (sampling.class_weights(labels, power), per_class),
        (sampling.sample_weights(labels, power), per_image),
        (sampling.inverse_frequency_weights(labels), rarest),
        (sampling.class_aware_weights(labels), class_aware),
        (sampling.uniform_weights(labels), [1.0] * N),
    ):
        np.testing.assert_allclose(ours, np.array(slow) / max(slow), rtol=1e-12)


@settings(deadline=None)
@given(label_matrices)
def test_class_aware_sampling_is_the_power_sampler_at_one(labels):
    np.testing.assert_allclose(sampling.class_aware_weights(labels), sampling.sample_weights(labels, 1.0), rtol=1e-12)


def test_class_aware_weights_come_from_picking_a_class_then_an_image():
    rng = np.random.default_rng(0)
    picked = np.zeros(len(TINY))
    for _ in range(20_000):
        members = np.flatnonzero(TINY[:, rng.integers(TINY.shape[1])])
        picked[rng.choice(members)] += 1
    weights = sampling.class_aware_weights(TINY)
    np.testing.assert_allclose(weights / weights.sum(), picked / picked.sum(), atol=0.012)


@settings(deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 30), elements=st.floats(0.001, 10)))
def test_effective_sample_size_lies_between_one_and_the_number_of_images(weights):
    size = sampling.effective_sample_size(weights)
    assert 1 - 1e-9 <= size <= len(weights) + 1e-9
    assert sampling.effective_sample_size(3 * weights) == pytest.approx(size)


def test_effective_sample_size_of_known_weights():
    assert sampling.effective_sample_size(np.ones(7)) == 7
    assert sampling.effective_sample_size([1, 0, 0, 1]) == 2
    assert sampling.effective_sample_size([3, 1]) == pytest.approx(16 / 10)


def test_expected_class_counts_are_what_many_draws_average_to():
    weights = sampling.sample_weights(TINY, 1.35)
    expected = sampling.expected_class_counts(TINY, weights, 200_000)
    drawn = TINY[sampling.draw(weights, 200_000, seed=1)].sum(axis=0)
    np.testing.assert_allclose(drawn, expected, rtol=0.01)
    assert expected[0] == 200_000  # every image carries class 0
    np.testing.assert_array_equal(sampling.expected_class_counts(TINY, np.ones(4), 4), TINY.sum(axis=0))


def test_draws_repeat_with_their_seed_and_only_with_it():
    weights = sampling.sample_weights(TINY, 1.0)
    first = sampling.draw(weights, 50, seed=3)
    assert first.shape == (50,) and first.dtype == np.int64
    np.testing.assert_array_equal(first, sampling.draw(weights, 50, seed=3))
    assert (first != sampling.draw(weights, 50, seed=4)).any()
    stream = torch.Generator().manual_seed(3)
    np.testing.assert_array_equal(first, sampling.draw(weights, 50, stream))
    assert (first != sampling.draw(weights, 50, stream)).any()


def test_an_image_without_labels_is_never_drawn():
    labels = np.vstack([TINY, [0, 0, 0]])
    for weights in (
        sampling.sample_weights(labels, 1.35),
        sampling.inverse_frequency_weights(labels),
        sampling.class_aware_weights(labels),
    ):
        assert weights[-1] == 0 and 4 not in sampling.draw(weights, 2_000)
    assert 4 in sampling.draw(sampling.uniform_weights(labels), 2_000)


@pytest.mark.parametrize(
    "weigh",
    [
        lambda labels: sampling.class_weights(labels, 1.0),
        lambda labels: sampling.sample_weights(labels, 1.0),
        sampling.inverse_frequency_weights,
        sampling.class_aware_weights,
        sampling.uniform_weights,
    ],
)
def test_unusable_labels_are_refused(weigh):
    with pytest.raises(LMCLIPError, match="Class 1 has no training image"):
        weigh([[1, 0], [1, 0]])
    with pytest.raises(LMCLIPError, match=r"shape \(3,\)"):
        weigh([1, 0, 1])
    with pytest.raises(LMCLIPError, match="other than 0 and 1"):
        weigh([[2, 1], [1, 1]])


def test_unusable_weights_are_refused():
    for weights in ([0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [[1.0]]):
        with pytest.raises(LMCLIPError, match="Weights must be"):
            sampling.draw(weights, 3)
    with pytest.raises(LMCLIPError, match=r"\(4, 3\).*\(2,\)"):
        sampling.expected_class_counts(TINY, [1.0, 1.0], 10)
    with pytest.raises(LMCLIPError, match="power"):
        sampling.sample_weights(TINY, -1.0)
