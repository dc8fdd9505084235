"""Tables: protocols apart, three formats that agree, verdicts by their rule."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lmclip.errors import LMCLIPError
from lmclip.longtail import group_classes
from lmclip.tables import (
    bootstrap_mean,
    compare,
    correlation,
    filled,
    main_table,
    save_table,
    told,
    verdict,
    verdict_on_all,
)


@pytest.fixture
def frame():
    rows = [{"method": m, "seed": s, "protocol": p, "mAP": base + 0.01 * s + bonus, "mAP_head": 0.5, "mAP_medium": 0.6,
             "mAP_tail": 0.7}
            for m, base in (("BCE", 0.6), ("LM-CLIP", 0.5)) for s in (2, 0, 1)
            for p, bonus in (("clean", 0.0), ("best-on-test", 0.02))]  # fmt: skip
    return pd.DataFrame(rows)


def test_main_table_shows_every_seed_in_order_and_one_protocol(frame):
    table = main_table(frame, "clean")
    assert table.loc["BCE", "mAP of each seed"] == "60.0 · 61.0 · 62.0"
    assert table.loc["BCE", "mAP"] == "61.0 (60.0 to 62.0)"
    assert main_table(frame, "best-on-test").loc["BCE", "mAP"] == "63.0 (62.0 to 64.0)"


def test_one_run_has_no_range(frame):
    assert main_table(frame[frame["seed"] == 0], "clean").loc["BCE", "mAP"] == "60.0"


@pytest.mark.parametrize(
    "low, high, expected",
    [([0.1, 0.2], [0.3, 0.4], "supported"), ([-0.2, -0.3], [-0.1, -0.1], "contradicted"),
     ([-0.1, 0.2], [0.1, 0.4], "not shown"), ([0.1, -0.5], [0.2, -0.1], "not shown")],
)  # fmt: skip
def test_verdicts_need_every_seed(low, high, expected):
    assert verdict(pd.DataFrame({"low": low, "high": high})) == expected


def test_a_verdict_needs_intervals_and_falls_with_any_rival():
    with pytest.raises(LMCLIPError, match="no intervals"):
        verdict(pd.DataFrame({"low": [], "high": []}))
    won, lost = pd.DataFrame({"low": [0.1], "high": [0.2]}), pd.DataFrame({"low": [-0.2], "high": [-0.1]})
    open_ = pd.DataFrame({"low": [-0.1], "high": [0.1]})
    assert verdict_on_all([won, won]) == "supported" and verdict_on_all([won, lost]) == "contradicted"
    assert verdict_on_all([won, open_]) == "not shown" and verdict_on_all([open_, open_]) == "not shown"


def test_compare_refuses_to_pair_different_seeds():
    scores = np.random.default_rng(0).random((50, 3))
    targets, groups = (scores > 0.5).astype(int), group_classes(np.array([200, 50, 5]))
    with pytest.raises(LMCLIPError, match="rival has no run with seed 1"):
        compare({1: scores}, {"rival": {0: scores, 2: scores}}, targets, groups, 10)


def test_bootstrap_of_a_mean_covers_the_truth_about_as_often_as_it_says():
    rng, inside = np.random.default_rng(0), 0
    for trial in range(200):
        found = bootstrap_mean(rng.normal(0.3, 1, 80), np.zeros(80), 300, trial)
        inside += found["low"] <= 0.3 <= found["high"]
    assert 180 <= inside <= 199


def test_compare_pairs_seeds_and_reuses_a_single_rival_run():
    rng = np.random.default_rng(0)
    targets = (rng.random((200, 6)) < 0.3).astype(int)
    groups = group_classes(np.array([200, 150, 50, 40, 10, 5]))
    good = {s: targets + rng.normal(0, 0.3, targets.shape) for s in (0, 1)}
    noise = {0: rng.normal(size=targets.shape)}
    table = compare(good, {"noise": noise, "itself": good}, targets, groups, resamples=100)
    assert len(table) == 2 * 2 * 4 and list(table.columns) == ["rival", "seed", "metric", "difference", "low", "high"]
    assert verdict(table[(table["rival"] == "noise") & (table["metric"] == "mAP")]) == "supported"
    assert (table[table["rival"] == "itself"][["difference", "low", "high"]] == 0).all().all()


def test_tables_are_saved_in_three_formats_that_agree(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path))
    table = pd.DataFrame(
        {"mAP_tail": [0.25, 0.5], "text": ["5 % & more", "b_c"]}, index=pd.Index(["x", "y"], name="method")
    )
    files = save_table(table, "glyph", "t", "A caption, protocol: clean, 95 %.")
    assert [f.name for f in files] == ["t.csv", "t.md", "t.tex"]
    again = pd.read_csv(files[0], index_col="method")
    assert again.equals(table)
    assert "A caption, protocol: clean" in files[1].read_text() and "| x" in files[1].read_text()
    latex = files[2].read_text()
    assert r"5 \% \& more" in latex and r"mAP\_tail" in latex and r"95 \%" in latex and r"\toprule" in latex


def test_a_column_that_decimals_would_make_zeros_keeps_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path))
    table = pd.DataFrame({"learning_rate": [0.0, 1e-6], "seconds": [3.2, 40.0]}, index=pd.Index(["x", "y"], name="run"))
    files = save_table(table, "glyph", "t", "A caption.", digits=0)
    for path in files:
        assert "1e-06" in path.read_text() and "40" in path.read_text()
    assert pd.read_csv(files[0], index_col="run")["learning_rate"].tolist() == [0, 1e-6]


# ── small test sets: no head class, classes without positives, a single seed ─────────────────────


def small_test_set():
    """Eight images of four classes: no head class, class 2 (medium) and class 3 (tail) without a positive."""
    targets = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]] * 2)
    return targets, SimpleNamespace(head=np.array([], int), medium=np.array([0, 1, 2]), tail=np.array([3]))


def test_a_group_without_a_class_is_a_dash_and_never_nan(frame, tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path))
    table = main_table(frame.assign(mAP_head=np.nan), "clean")
    assert set(table["head"]) == {"–"} and table.loc["BCE", "mAP"] == "61.0 (60.0 to 62.0)"
    numbers = pd.DataFrame({"low": [0.25, np.nan], "images": [3, 4]}, index=pd.Index(["x", "y"], name="class"))
    files = save_table(numbers, "glyph", "t", "A caption.", 2)
    assert all("nan" not in file.read_text().lower() for file in files)
    assert "| 0.25  |" in files[1].read_text() and "| –     |" in files[1].read_text()
    assert pd.read_csv(files[0], index_col="class").equals(numbers)


def test_where_all_is_there_nothing_is_filled(frame):
    assert filled(frame).equals(frame)
    gaps = filled(pd.DataFrame({"a": [1.25, np.nan], "b": [1.25, 2.0]}), 2)
    assert gaps["a"].tolist() == ["1.25", "–"] and gaps["b"].tolist() == [1.25, 2.0]


def test_a_difference_that_can_not_be_measured_is_not_shown_and_says_why():
    targets, groups = small_test_set()
    rng = np.random.default_rng(0)
    ours, theirs = {0: targets + rng.normal(0, 0.1, targets.shape)}, {0: rng.normal(size=targets.shape)}
    table = compare(ours, {"rival": theirs}, targets, groups, resamples=40).set_index("metric")
    for metric in ("mAP_head", "mAP_tail"):
        assert verdict(table.loc[[metric]]) == "not shown"
        assert (
            told(table.loc[[metric]], " points") == "not measurable, as no class of the group has a positive test image"
        )
    assert table.loc[["mAP", "mAP_medium"], ["difference", "low", "high"]].notna().all(axis=None)
    assert told(table.loc[["mAP"]], " points").endswith(" points") and "nan" not in told(table.loc[["mAP"]])
    shown = pd.DataFrame({"low": [0.1, np.nan], "high": [0.2, np.nan], "difference": [0.15, np.nan]})
    assert verdict(shown) == "not shown" and "nan" not in told(shown)


def test_differences_are_told_in_points_with_their_sign():
    assert told(pd.DataFrame({"difference": [0.012, -0.003]}), " points") == "+1.2, -0.3 points"


def test_rank_correlation_leaves_out_what_is_no_number():
    table = pd.DataFrame(
        {"images": [1, 2, 3, 4], "up": [0.1, np.nan, 0.3, 0.4], "none": [np.nan] * 4, "same": [0.5] * 4}
    )
    assert correlation(table, "images", "up") == "+1.00"
    assert correlation(table, "images", "none") == correlation(table, "images", "same") == "none"
