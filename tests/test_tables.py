"""Tables: protocols apart, three formats that agree, verdicts by their rule."""

import numpy as np
import pandas as pd
import pytest

from lmclip.errors import LMCLIPError
from lmclip.longtail import group_classes
from lmclip.tables import bootstrap_mean, compare, main_table, save_table, verdict, verdict_on_all


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
