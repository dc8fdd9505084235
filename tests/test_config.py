"""Settings: named, frozen, and refusing what they do not know."""

import pytest
from pydantic import ValidationError

from lmclip.config import METHODS, PROFILES, RELEASE, LossSettings, Profile, experiment, load_profile
from lmclip.errors import LMCLIPError


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
             for key, (s, lr) in RELEASE.items()}  # fmt: skip
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
