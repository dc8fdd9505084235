"""Settings: named, frozen, and refusing what they do not know."""

import pytest
from pydantic import ValidationError

from lmclip.config import METHODS, PRESETS, caveat, experiment, load_profile, preset
from lmclip.errors import LMCLIPError
from lmclip.paths import ROOT
from lmclip.profiles import PROFILES, RELEASE, LossSettings, Profile
from lmclip.records import load_record


def test_unknown_profile_lists_the_known():
    with pytest.raises(LMCLIPError, match=r"'imagenet'.*glyph, voc, coco"):
        load_profile("imagenet")


def test_unknown_method_lists_the_known():
    with pytest.raises(LMCLIPError, match=r"'sgd'.*zero-shot.*lm-clip"):
        experiment(load_profile("glyph"), "sgd")


def test_unknown_setting_is_named():
    with pytest.raises(LMCLIPError, match="learning_rat"):
        experiment(load_profile("glyph"), "bce", learning_rat=1e-3)


@pytest.mark.parametrize("values", [{"epochs": -1}, {"batch_size": 0}, {"learning_rate": -1.0}, {"sampler": "best"}])
def test_values_out_of_range_are_named(values):
    with pytest.raises(LMCLIPError, match=next(iter(values))):
        experiment(load_profile("glyph"), "bce", **values)


def test_profiles_refuse_unknown_keys_and_changes():
    with pytest.raises(LMCLIPError, match="colour"):
        Profile.checked(**PROFILES["glyph"].model_dump(), colour="red")
    with pytest.raises(ValidationError):
        PROFILES["glyph"].epochs = 1


def test_release_configurations_are_those_of_the_release():
    table = {key: (s.bal_weight, s.gamma_neg, s.gamma_pos, s.clip, s.label_smoothing, s.power, lr)
             for key, (s, lr) in RELEASE.items() if key[1] != "vit-l-14"}  # fmt: skip
    assert table == {
        ("voc", "vit-b-16"): (0.4, 9.8, 0, 0.05, 0.1, 1.35, 1e-6),
        ("voc", "rn50"): (0.2, 12, 0, 0.05, 0.01, 0.7, 2e-6),
        ("coco", "vit-b-16"): (5, 9.8, 0, 0.05, 0.1, 1.6, 1e-6),
        ("coco", "rn50"): (6, 9.8, 0, 0.05, 0.1, 1.35, 1e-7),
    }


def test_fidelity_sets_every_mended_defect_and_each_can_be_set_alone():
    profile = load_profile("glyph")
    clean, release = (experiment(profile, "lm-clip", fidelity=f) for f in ("clean", "release"))
    switches = ("smooth_negatives", "clamp_logit_scale", "clip_statistics")
    assert all(getattr(clean, s) and not getattr(release, s) for s in switches)
    one = experiment(profile, "lm-clip", fidelity="release", smooth_negatives=True)
    assert one.smooth_negatives and not one.clip_statistics


def test_run_ids_tell_every_setting_apart():
    profile = load_profile("glyph")
    runs = [experiment(profile, "lm-clip", seed, rate) for seed in (0, 1) for rate in (1e-4, 3e-4)]
    runs += [experiment(profile, "lm-clip", settings=LossSettings(bal_weight=5.0)), experiment(profile, "bal")]
    runs += [experiment(load_profile("glyph", smoke=True), "lm-clip", 0, 1e-4)]
    assert len({run.run_id for run in runs}) == len(runs)
    assert runs[0].run_id == experiment(profile, "lm-clip", 0, 1e-4).run_id


def test_zero_shot_trains_nothing_and_lm_clip_all_three_parts():
    assert experiment(load_profile("glyph"), "zero-shot").epochs == 0
    method = METHODS["lm-clip"]
    assert (method.loss, method.contrastive, method.sampler) == ("bal", True, "power")


def test_smoke_has_a_results_folder_of_its_own():
    assert load_profile("glyph", smoke=True).folder != load_profile("glyph").folder


def test_vit_l_14_for_which_nothing_was_released_starts_from_vit_b_16():
    for name in ("voc", "coco"):
        ours, theirs = preset(f"{name}-vit-l-14"), preset(f"{name}-vit-b-16")
        assert (ours.settings, ours.learning_rate) == (theirs.settings, theirs.learning_rate)
        assert ours.run_id != theirs.run_id


@pytest.mark.parametrize("name", PRESETS)
def test_presets_differ_between_fidelities_in_the_marked_defects_alone(name):
    release, clean = (preset(name, fidelity).model_dump() for fidelity in ("release", "clean"))
    differing = {key for key in release if release[key] != clean[key]}
    assert differing == {"fidelity", "smooth_negatives", "clamp_logit_scale", "clip_statistics", "resize"}
    assert (release["resize"], clean["resize"]) == ("squash", "crop")
    settings, rate = RELEASE[PRESETS[name]]
    assert release["settings"] == settings.model_dump() and release["learning_rate"] == rate


def test_records_made_before_a_setting_existed_keep_their_names():
    for path in (ROOT / "results" / "glyph" / "runs").glob("*/record.json"):
        record = load_record(path.parent)
        assert record.experiment.run_id == record.run_id == path.parent.name


def test_overrides_reach_profile_loss_and_experiment_and_the_name():
    given = {"epochs": 3, "seeds": (1,), "bal_weight": 0.2, "precision": "bf16"}
    profile = load_profile("voc", overrides=given)
    run = experiment(profile, "lm-clip", 1, 1e-6)
    assert (run.epochs, run.settings.bal_weight, run.precision, profile.seeds) == (3, 0.2, "bf16", (1,))
    assert run.settings.power == 1.35, "what is not overridden stays"
    assert load_profile("voc", overrides=repr(given)) == profile, "papermill hands text on"
    assert run.run_id != experiment(load_profile("voc"), "lm-clip", 1, 1e-6).run_id
    assert profile.folder != load_profile("voc").folder == load_profile("voc", overrides={"seeds": [0]}).folder
    assert experiment(profile, "zero-shot").epochs == 0, "zero-shot stays untrained"


@pytest.mark.parametrize("overrides, message", [
    ({"precison": "bf16"}, "precison.*what can is.*precision"), ({"precision": "fp8"}, "precision"),
    ({"backbone": "rn50"}, "'backbone' can't be overridden"), ({"settings": {"power": 2}}, "'settings' can't"),
    ({"bal_weight": float("inf")}, "bal_weight"), ({"learning_rate": float("nan")}, "learning_rate"),
    ({"methods": []}, "methods"), ({"seeds": [0, 0]}, "more than once"),
    ({"epochs": 0}, "epochs"), ({"seeds": []}, "seeds"), ({"power": -1}, "power"), ({"methods": ["sgd"]}, "sgd"),
    ("epochs=3", "mapping"), ([1], "mapping"), ({1: 2}, "mapping"), ("{" * 5000, "mapping"),
    ({"accumulate": 2}, "can't be split.*largest of the whole batch"),
    ({"accumulate": 3, "methods": ["bce"]}, "equal parts"),
])  # fmt: skip
def test_overrides_that_make_no_sense_are_refused_before_anything_runs(overrides, message):
    with pytest.raises(LMCLIPError, match=message):
        load_profile("voc", overrides=overrides)


def test_a_batch_is_split_only_where_the_loss_allows_it():
    whole = {"contrastive": "caption of its batch", "lm-clip": "caption of its batch", "bal": "largest"}
    for method, reason in whole.items():
        with pytest.raises(LMCLIPError, match=reason):
            experiment(load_profile("voc"), method, accumulate=2)
    assert experiment(load_profile("voc"), "asl", accumulate=2).accumulate == 2
    with pytest.raises(LMCLIPError, match="BatchNorm"):
        experiment(load_profile("voc", backbone="rn50"), "asl", accumulate=2)


def test_backbones_have_folders_of_their_own_and_glyph_has_one_model():
    profiles = [load_profile("coco", smoke, backbone, weights) for smoke in (False, True)
                for backbone in ("", "rn50", "vit-l-14") for weights in ("auto", "random")]  # fmt: skip
    assert len({p.folder for p in profiles}) == len(profiles)
    assert load_profile("voc").folder == load_profile("voc", backbone="vit-b-16").folder == "voc"
    with pytest.raises(LMCLIPError, match="no backbone 'rn50'.*mini-clip"):
        load_profile("glyph", backbone="rn50")
    with pytest.raises(LMCLIPError, match="weights must be auto, random or a file"):
        load_profile("voc", weights="/no/such/file")


def test_caveats_name_everything_that_keeps_a_table_from_being_a_result():
    class Sample:
        differences = ("train images: 80, published 1909",)

    assert caveat(load_profile("coco")) == ""
    assert caveat(load_profile("coco", True, weights="random"), Sample) == "SAMPLE, RANDOM WEIGHTS, SMOKE SIZE · "
