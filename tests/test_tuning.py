"""The search: recorded per method, read back, and refusing to be used where it cannot be fair."""

import json

import pytest

from lmclip import tuning
from lmclip.config import load_profile
from lmclip.errors import LMCLIPError


@pytest.fixture
def profile(tmp_path, monkeypatch):
    for name in ("LMCLIP_DATA", "LMCLIP_RESULTS"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr(tuning, "TUNING", tmp_path / "tuning")
    return load_profile("glyph", smoke=True).model_copy(
        update={"epochs": 1, "methods": ("zero-shot", "bce"), "learning_rates": (1e-4, 1e-3)}
    )


def test_the_best_validation_rate_is_chosen_and_other_methods_are_kept(profile, tmp_path):
    trials = tuning.tune(profile, jobs=1)
    assert len(trials[trials["method"] == "BCE"]) == 4 and len(trials[trials["method"] == "zero-shot"]) == 2
    trials = trials[trials["method"] == "BCE"]
    best = trials.loc[trials["validation_mAP"].idxmax(), "learning_rate"]
    assert tuning.chosen_settings(profile)["bce"]["learning_rate"] == best
    tuning.tune(profile, ("bal",), jobs=1)
    assert set(tuning.load_trials(profile)["method"]) == {"zero-shot", "BCE", "BAL"}
    recorded = tuning.record_difficulty(profile, jobs=1)
    assert [row["method"] for row in recorded["runs"]] == ["zero-shot", "BCE", "BCE"]


def test_a_missing_broken_or_incomplete_record_is_told(profile, tmp_path):
    with pytest.raises(LMCLIPError, match=r"no search at .*lmclip tune"):
        tuning.chosen_settings(profile)
    path = tmp_path / "tuning" / "glyph.json"
    path.parent.mkdir()
    good = {
        "method": "BAL",
        "learning_rate": 1e-4,
        "scoring": "logits",
        "validation_mAP": 0.5,
        "epoch": 1,
        "seconds": 1.0,
    }
    bad = [
        good | change for change in ({"scoring": "x"}, {"validation_mAP": None}, {"validation_mAP": "0.5"}, {"lr": 1})
    ]
    bad += [{k: v for k, v in good.items() if k != "learning_rate"}]
    for text in (
        "{",
        "[]",
        '{"settings": {}, "trials": []}',
        *(json.dumps({"settings": {}, "trials": [b]}) for b in bad),
    ):
        path.write_text(text)
        with pytest.raises(LMCLIPError, match=r"glyph\.json is no tuning record"):
            tuning.chosen_settings(profile)
    path.write_text(json.dumps({"settings": {}, "trials": [good]}))
    with pytest.raises(LMCLIPError, match="no trials of"):
        tuning.chosen_settings(profile)


def test_without_validation_images_nothing_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path))
    for year, which in enumerate(("train", "test"), 2008):  # lists, as a user may bring them, name none to choose on
        lines = [f"JPEGImages/{year}_{row:06d}.jpg {row}\n" for row in range(20)]
        (tmp_path / f"voc_mlt_{which}.txt").write_text("".join(lines))
    with pytest.raises(LMCLIPError, match="no validation images here.*lmclip check voc"):
        tuning.tune(load_profile("voc"))
    assert tuning.chosen_settings(load_profile("voc"))["bce"] == {"learning_rate": 1e-6, "scoring": "softmax"}


def test_the_shipped_search_covers_every_method_with_its_best_inside_the_grid():
    profile = load_profile("glyph")
    trials = tuning.load_trials(profile)
    assert set(tuning.chosen_settings(profile)) == set(profile.methods)
    for method, rows in trials[trials["learning_rate"] > 0].groupby("method"):
        assert tuple(sorted(set(rows["learning_rate"]))) == profile.learning_rates, method
        best = rows.loc[rows["validation_mAP"].idxmax(), "learning_rate"]
        assert min(profile.learning_rates) < best < max(profile.learning_rates), method


def test_the_recorded_difficulty_is_the_one_that_was_asked_for():
    recorded = json.loads((tuning.TUNING / "glyph-difficulty.json").read_text())
    scores = {m: [100 * r["test_mAP"] for r in recorded["runs"] if r["method"] == m] for m in ("zero-shot", "BCE")}
    assert 55 <= scores["zero-shot"][0] <= 75
    assert all(5 <= bce - scores["zero-shot"][0] <= 20 for bce in scores["BCE"])
