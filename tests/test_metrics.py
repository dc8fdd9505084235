"""Metrics against the release's golden numbers, scikit-learn on explicit resamples, slow loops, and bad input."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from lmclip import metrics
from lmclip.errors import LMCLIPError

GROUPS = SimpleNamespace(head=np.array([0]), medium=np.array([1, 2]), tail=np.array([3]))


def example(images=60, seed=0, ties=False):
    rng = np.random.default_rng(seed)
    targets = (rng.random((images, 4)) < [0.5, 0.3, 0.2, 0.1]).astype(int)
    targets[:3] = 1
    scores = rng.normal(size=targets.shape) + targets
    return np.round(scores) if ties else scores, targets


@pytest.fixture(scope="module")
def numbers(golden):
    return np.load(golden / "metrics.npz")


def test_report_equals_the_release(numbers):
    groups = SimpleNamespace(**{name: numbers[name] for name in metrics.GROUPS})
    report = metrics.multilabel_report(numbers["scores"], numbers["targets"], groups)
    for ours, theirs in (
        ("mAP", "map"),
        ("mAP_head", "map_head"),
        ("mAP_medium", "map_medium"),
        ("mAP_tail", "map_tail"),
        ("auroc", "auroc"),
        ("per_class_ap", "per_class_ap"),
    ):
        np.testing.assert_allclose(report[ours], numbers[theirs], atol=1e-6, rtol=0)
    assert report.mAP == report["mAP"] and report.num_left_out == 0 and report.num_images == 400


def test_centroid_distances_equal_the_release(numbers):
    found = metrics.centroid_distances(numbers["features"], numbers["targets"])
    assert abs(found.positive - numbers["positive_distance"]) < 1e-6
    assert abs(found.negative - numbers["negative_distance"]) < 1e-6
    assert found.ratio == found.positive / found.negative


def test_centroid_distances_equal_the_slow_loop():
    rng = np.random.default_rng(1)
    features, (_, targets) = rng.normal(size=(20, 6)), example(20)
    unit = [row / np.sqrt((row**2).sum()) for row in features]
    carried, not_carried = {}, {}
    for c in range(4):
        centroid = np.mean([unit[i] for i in range(20) if targets[i, c]], axis=0)
        distance = [np.sqrt(((unit[i] - centroid) ** 2).sum()) for i in range(20)]
        carried[c] = [distance[i] for i in range(20) if targets[i, c]]
        not_carried[c] = [distance[i] for i in range(20) if not targets[i, c]]
    found = metrics.centroid_distances(features, targets, GROUPS)
    assert found.positive == pytest.approx(np.mean(sum(carried.values(), [])))
    assert found.negative == pytest.approx(np.mean(sum(not_carried.values(), [])))
    assert found.positive_medium == pytest.approx(np.mean(carried[1] + carried[2]))
    assert found.negative_tail == pytest.approx(np.mean(not_carried[3]))
    assert found.ratio_head == pytest.approx(np.mean(carried[0]) / np.mean(not_carried[0]))


def test_a_class_without_images_does_not_move_the_distances():
    rng = np.random.default_rng(1)
    features, (_, targets) = rng.normal(size=(20, 6)), example(20)
    with_empty = np.hstack([targets, np.zeros((20, 1), int)])
    assert metrics.centroid_distances(features, with_empty) == metrics.centroid_distances(features, targets)


def test_a_class_without_positives_is_left_out_and_counted():
    scores, targets = example()
    targets[:, 2] = 0
    report = metrics.multilabel_report(scores, targets, GROUPS)
    assert np.isnan(report.per_class_ap[2]) and report.num_left_out == 1
    assert report.mAP == pytest.approx(report.per_class_ap[[0, 1, 3]].mean())
    assert report.mAP_medium == report.per_class_ap[1]


def test_a_group_without_any_scored_class_has_no_mean():
    scores, targets = example()
    targets[:, 3] = 0
    report = metrics.multilabel_report(scores, targets, SimpleNamespace(head=[0], medium=[], tail=[3]))
    assert np.isnan(report.mAP_medium) and np.isnan(report.mAP_tail) and np.isfinite(report.mAP)


def test_a_class_that_all_images_carry_has_ap_one_and_no_auroc():
    scores, targets = example()
    targets[:, 0] = 1
    report = metrics.multilabel_report(scores, targets, GROUPS)
    assert report.per_class_ap[0] == 1 and 0.5 < report.auroc < 1


def test_subsets_split_by_the_number_of_labels():
    scores, targets = example(200)
    targets[3] = 0
    reports = metrics.subset_reports(scores, targets, GROUPS)
    labels = targets.sum(axis=1)
    assert reports["single"].num_images == (labels == 1).sum()
    assert reports["multi"].num_images == (labels > 1).sum()
    assert reports["single"].num_images + reports["multi"].num_images < 200
    only_multi = metrics.multilabel_report(scores[labels > 1], targets[labels > 1], GROUPS)
    assert reports["multi"].mAP == only_multi.mAP


def test_a_subset_without_images_has_no_mean():
    scores, targets = example()
    targets[:] = [1, 1, 0, 0]
    single = metrics.subset_reports(scores, targets, GROUPS)["single"]
    assert single.num_images == 0 and single.num_left_out == 4 and np.isnan(single.mAP)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.booleans())
def test_weighted_ap_is_scikit_learns(seed, images, ties):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, images).astype(float) if ties else rng.normal(size=images)
    targets = np.r_[1, rng.integers(0, 2, images - 1)]
    weights = rng.integers(0, 4, (6, images))
    weights[:, 0] += 1
    expected = [average_precision_score(targets, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(metrics.average_precision(scores, targets, weights), expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.average_precision(scores, targets, weights[0]), expected[0], rtol=1e-12)
    unweighted = average_precision_score(targets, scores)
    np.testing.assert_allclose(metrics.average_precision(scores, targets), unweighted, rtol=1e-12)


@pytest.mark.parametrize("ties", [False, True])
def test_bootstrap_equals_scikit_learn_on_the_same_resamples(ties):
    (scores_a, targets), (scores_b, _) = example(ties=ties), example(seed=7, ties=ties)
    found = metrics.paired_bootstrap(scores_a, scores_b, targets, GROUPS, resamples=40, seed=5)
    rng, differences = np.random.default_rng(5), []
    for _ in range(40):
        rows = rng.integers(len(targets), size=len(targets))
        a, b = (metrics.multilabel_report(scores[rows], targets[rows], GROUPS) for scores in (scores_a, scores_b))
        differences.append([a[name] - b[name] for name in found.index])
    low, high = np.nanpercentile(differences, [2.5, 97.5], axis=0)
    np.testing.assert_allclose(found["low"], low, rtol=1e-10)
    np.testing.assert_allclose(found["high"], high, rtol=1e-10)
    np.testing.assert_allclose(found["share_above_zero"], (np.array(differences) > 0).mean(axis=0))
    whole = [metrics.multilabel_report(scores, targets, GROUPS) for scores in (scores_a, scores_b)]
    np.testing.assert_allclose(found["difference"], [whole[0][name] - whole[1][name] for name in found.index])


def test_bootstrap_knows_no_difference_from_a_large_one():
    scores, targets = example(300)
    same = metrics.paired_bootstrap(scores, scores, targets, GROUPS, resamples=50)
    assert (same[["difference", "low", "high", "share_above_zero"]] == 0).all().all()
    better = metrics.paired_bootstrap(scores + 3 * targets, scores, targets, GROUPS, resamples=50)
    assert (better["low"] > 0).all() and (better["share_above_zero"] == 1).all()


def test_bootstrap_repeats_with_its_seed():
    (scores_a, targets), (scores_b, _) = example(), example(seed=7)
    first, again, other = (
        metrics.paired_bootstrap(scores_a, scores_b, targets, GROUPS, resamples=30, seed=seed) for seed in (1, 1, 2)
    )
    assert first.equals(again) and not first.equals(other)


def test_bootstrap_leaves_out_an_undrawn_class():
    scores, targets = example()
    targets[:, 3] = 0
    targets[0, 3] = 1  # one positive image: about a third of the resamples miss it
    found = metrics.paired_bootstrap(scores, -scores, targets, GROUPS, resamples=60)
    assert np.isfinite(found.to_numpy()).all()
    targets[0, 3] = 0
    found = metrics.paired_bootstrap(scores, -scores, targets, GROUPS, resamples=60)
    assert found.loc["mAP_tail"].isna().all() and np.isfinite(found.loc["mAP"]).all()


@pytest.mark.parametrize("call", ["report", "bootstrap", "subsets"])
def test_bad_input_is_refused(call):
    def run(scores, targets):
        if call == "report":
            return metrics.multilabel_report(scores, targets, GROUPS)
        if call == "subsets":
            return metrics.subset_reports(scores, targets, GROUPS)
        return metrics.paired_bootstrap(scores, scores, targets, GROUPS, resamples=2)

    scores, targets = example()
    with pytest.raises(LMCLIPError, match=r"\(60, 3\).*\(60, 4\)"):
        run(scores[:, :3], targets)
    with pytest.raises(LMCLIPError, match="0 and 1"):
        run(scores, targets * 2)
    for bad in (np.nan, np.inf):
        scores[7, 1] = bad
        with pytest.raises(LMCLIPError, match="Scores hold NaN or infinity, first in row 7"):
            run(scores, targets)


def test_bad_features_are_refused():
    with pytest.raises(LMCLIPError, match=r"\(5, 3\).*\(4, 2\)"):
        metrics.centroid_distances(np.ones((5, 3)), np.ones((4, 2)))
    with pytest.raises(LMCLIPError, match="row 1"):
        metrics.centroid_distances([[1.0, 2.0], [np.nan, 1.0]], [[1], [0]])


# ── small test sets ──────────────────────────────────────────────────────────────────────────────

NO_HEAD = SimpleNamespace(head=np.array([], int), medium=np.array([0, 1]), tail=np.array([2, 3]))


def test_a_group_without_classes_or_positives_is_nan_and_leaves_the_others_alone():
    scores, targets = example()
    targets[:, 2:] = 0
    report = metrics.multilabel_report(scores, targets, NO_HEAD)
    assert np.isnan([report.mAP_head, report.mAP_tail]).all() and report.num_left_out == 2
    assert report.mAP == report.mAP_medium == pytest.approx(report.per_class_ap[:2].mean())
    nothing = metrics.multilabel_report(scores, np.zeros_like(targets), NO_HEAD)
    assert np.isnan([nothing.mAP, nothing.auroc]).all() and nothing.num_left_out == 4


def test_what_is_left_out_is_said_in_words():
    _, targets = example()
    assert metrics.left_out(targets, GROUPS) == ""
    assert metrics.left_out(targets, NO_HEAD) == "no head class"
    targets[:, 2:] = 0
    parts = metrics.left_out(targets, NO_HEAD).split("; ")
    assert parts == ["2 of 4 classes have no positive image and are left out", "no head class",
                     "no tail class with a positive image"]  # fmt: skip


def test_resamples_without_any_positive_leave_a_group_out_but_not_the_rest():
    rng = np.random.default_rng(0)
    targets = np.zeros((12, 4), int)
    targets[:6, 0], targets[0, 2] = 1, 1  # class 2 has one positive image: a third of the resamples miss it
    scores = rng.normal(size=targets.shape)
    found = metrics.paired_bootstrap(scores + targets, scores, targets, NO_HEAD, resamples=200)
    numbers = ["a", "b", "difference", "low", "high", "share_above_zero"]
    assert found.loc[["mAP", "mAP_medium", "mAP_tail"], numbers].notna().all(axis=None)
    assert found.loc["mAP_head", numbers].isna().all()
    assert (found["low"].dropna() <= found["high"].dropna()).all()


def test_distances_of_images_without_labels_and_of_groups_without_classes():
    features = np.random.default_rng(1).normal(size=(10, 3))
    targets = np.zeros((10, 4), int)
    assert np.isnan(list(metrics.centroid_distances(features, targets, NO_HEAD).values())).all()
    targets[:5, 0] = 1
    found = metrics.centroid_distances(features, targets, NO_HEAD)
    assert found.ratio == found.ratio_medium > 0 and np.isnan([found.ratio_head, found.ratio_tail]).all()


def test_a_subset_without_images_has_no_number():
    targets = np.array([[1, 0, 0, 0], [0, 1, 0, 0]])
    reports = metrics.subset_reports(np.eye(4)[:2], targets, NO_HEAD)
    assert reports["single"].mAP == 1 and reports["multi"].num_images == 0 and np.isnan(reports["multi"].mAP)
