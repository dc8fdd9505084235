"""Published figures and the authors' logged runs: what the files hold, the band that rests on them, damage told."""

import json

import numpy as np
import pandas as pd
import pytest

from lmclip import published
from lmclip.errors import LMCLIPError

FULL_FRAME = pd.DataFrame([
    {"method": m, "seed": s, "protocol": p, "mAP": base + 0.001 * s, "mAP_head": np.nan, "mAP_medium": 0.5,
     "mAP_tail": 0.6}
    for m, base in (("BCE", 0.8), ("LM-CLIP, as released", 0.924)) for s in (0, 1) for p in ("clean", "best-on-test")
])  # fmt: skip
TITLES = {"bce": "BCE", "lm-clip-release": "LM-CLIP, as released", "lm-clip": "LM-CLIP", "asl": "ASL", "bal": "BAL",
          "contrastive": "contrastive"}  # fmt: skip


@pytest.fixture(scope="module")
def runs():
    return published.load_author_runs()


def test_the_120_runs_are_those_of_the_logs(runs, reference):
    logs = pd.read_csv(reference / "author_runs.csv").rename(columns={
        "head": "mAP_head", "middle": "mAP_medium", "tail": "mAP_tail", "lambda(asl_mul)": "bal_weight",
        "use_sampler": "sampler", "s_sampler": "sampler_power", "lr": "learning_rate", "batch": "batch_size",
    })  # fmt: skip
    shared = ["run", "commit", *published.FIGURES, "AUROC", "last_mAP", "epochs_logged", "bal_weight", "gamma_neg",
              "label_smoothing", "sampler", "sampler_power", "learning_rate", "batch_size"]  # fmt: skip
    order = ["run", "commit", "mAP", "last_mAP"]
    ours, theirs = (table[shared].sort_values(order).reset_index(drop=True) for table in (runs, logs))
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)
    assert (runs.sort_values(order)["best_epoch"].to_numpy()
            == logs.sort_values(order)["best_epoch(0-based)"].to_numpy() + 1).all()  # fmt: skip
    logged = [
        " + ".join(json.loads(names.replace("'", '"'))) for names in logs.sort_values(order)["loss_function_logged"]
    ]
    assert runs.sort_values(order)["losses_logged"].tolist() == logged


def test_the_published_figures_are_those_that_were_given(reference):
    given = pd.read_csv(reference / "published_results.csv")
    pd.testing.assert_frame_equal(published.load_published().drop(columns="protocol"), given)


def test_no_row_names_a_machine(runs):
    text = published.RUNS_FILE.read_text()
    assert "user-" not in text and "events" not in text
    assert runs["run"].str.fullmatch(r"(voc|coco)_mlt_(rn50|vitb16)_[\w.]+").all()


def test_a_copy_holds_the_figures_of_the_run_that_it_copies(runs):
    copies = runs[runs["copy_of"] != ""]
    assert len(copies) == 4
    for copy in copies.itertuples():
        (original,) = runs[(runs["run"] == copy.copy_of) & (runs["commit"] == "ea71781")].itertuples()
        assert (copy.mAP, copy.last_mAP, copy.epochs_logged) == (
            original.mAP,
            original.last_mAP,
            original.epochs_logged,
        )


def test_losses_are_named_by_settings_and_agree_with_the_published_rows(runs):
    """Each configuration that published_results.csv quotes from the logs has a run with that mAP and those losses."""
    names = {"contrastive only, uniform sampling": "contrastive", "BAL only, no sampler": "BAL", "ASL only": "ASL",
             "BAL + sampler": "BAL + sampler", "contrastive + ASL": "contrastive + ASL", "LM-CLIP": published.HEADLINE,
             "contrastive + ASL + sampler": "contrastive + ASL + sampler"}  # fmt: skip
    table = published.load_published()
    quoted = table[table["protocol"] == "best-on-test"]
    assert set(quoted["method"]) == set(names)
    for row in quoted.itertuples():
        name = next(key for key, words in published.DATASETS.items() if words == row.dataset)
        backbone = next(key for key, words in published.BACKBONES.items() if f"CLIP {words}" == row.backbone)
        logged = published.logged_runs(name, backbone)
        assert row.mAP in set(logged.loc[logged["configuration"] == names[row.method], "mAP"]), row


@pytest.mark.parametrize("name, backbone, protocol, told", [
    ("voc", "vit-b-16", "best-on-test", "92.5 ± 0.3"),
    ("coco", "vit-b-16", "best-on-test", "74.3 ± 0.3"),
    ("voc", "vit-b-16", "clean", "91.8 ± 0.5"),
    ("coco", "vit-b-16", "clean", "74.3 ± 0.5"),
    ("voc", "rn50", "best-on-test", "86.1 ± 0.7"),
    ("coco", "rn50", "best-on-test", "58.3 ± 0.7"),
])  # fmt: skip
def test_the_band(name, backbone, protocol, told):
    assert str(published.expected_band(name, backbone, protocol)) == told


def test_the_band_says_what_it_rests_on():
    band = published.expected_band("voc", "vit-b-16")
    assert band.runs == 2 and "92.54 after 22, 92.42 after 50" in band.source and "0.25" in band.source
    assert published.expected_band("coco", "vit-b-16").runs == 1
    assert published.expected_band("voc", "vit-l-14") is None and published.expected_band("glyph", "mini-clip") is None


def test_repeats_are_runs_of_one_setting_without_copies_and_stopped_runs(runs):
    found = published.repeats(runs)
    assert found["runs"].sum() == 19 and (found["range"] <= 0.3 + 1e-9).sum() == len(found) - 1  # one of RN50: 0.70
    doubled = published.repeats(pd.concat([runs, runs.assign(copy_of=runs["run"])]))
    pd.testing.assert_frame_equal(found, doubled)
    assert published.repeats(runs.assign(epochs_logged=published.FEWEST_EPOCHS - 1)).empty


def test_a_rerun_is_placed_by_the_band():
    band = published.Band(90.0, 0.5, 2, "")
    assert [band.place(v) for v in (89.4, 89.5, 90.0, 90.5, 90.6)] == ["below", "inside", "inside", "inside", "above"]


def test_ours_and_theirs_share_a_table_and_every_row_names_its_protocol():
    table = published.beside_published(FULL_FRAME, "voc", "vit-b-16", "last epoch", "")
    assert table["mAP"].is_monotonic_decreasing and table["protocol"].notna().all()
    ours = table[table.index.str.startswith("ours")]
    assert sorted(ours["protocol"]) == ["best-on-test"] * 2 + ["clean (last epoch)"] * 2
    assert ours.loc["ours: BCE", "mAP"].tolist() == pytest.approx([80.05] * 2)
    assert ours["source"].eq("2 seeds").all() and set(ours["backbone"]) == {"CLIP ViT-B/16"}
    assert len(table) == 4 + 26
    marked = published.beside_published(FULL_FRAME, "voc", "vit-b-16", "last epoch", "sample, random weights")
    assert marked.index[-4:].str.startswith("ours").all()  # though the rerun's mAP would rank among theirs
    assert marked.loc["ours: BCE", "source"].eq("2 seeds; NOT COMPARABLE: sample, random weights").all()


def test_our_runs_are_set_beside_the_configuration_that_they_repeat():
    own = published.own_runs(FULL_FRAME, TITLES)
    assert set(own["method"]) == {"LM-CLIP, as released"} and set(own["configuration"]) == {published.HEADLINE}
    assert own["mAP"].between(92, 93).all() and len(own) == 4  # in percent; BCE was not logged by the authors


def test_the_finding_places_a_rerun_and_never_a_sample():
    runs = published.logged_runs("voc", "vit-b-16")
    bands = {"best-on-test": published.expected_band("voc", "vit-b-16")}
    own = published.own_runs(FULL_FRAME, TITLES)
    faithful = TITLES["lm-clip-release"]
    assert "ours as released 92.5, inside the band" in published.finding(runs, bands, own, faithful, "")
    assert "below it" in published.finding(runs, bands, own.assign(mAP=80.0), faithful, "")
    assert published.finding(runs, bands, own[:0], faithful, "").endswith("no run of ours yet")
    sample = published.finding(runs, bands, own, faithful, "sample")
    assert sample.endswith("ours can't be compared") and "92.45" not in sample and "93.05 (contrastive + ASL" in sample


def test_peers_have_the_same_backbone():
    assert published.peers("voc", "vit-b-16") == {"LMPT": 87.88} and published.peers("coco", "rn50") == {"LMPT": 58.97}
    assert published.peers("voc", "vit-l-14") == {} == published.peers("glyph", "mini-clip")


@pytest.mark.parametrize("read, file", [
    (published.load_author_runs, published.RUNS_FILE), (published.load_published, published.PUBLISHED_FILE),
])  # fmt: skip
@pytest.mark.parametrize("damage, told", [
    (lambda text: text.replace("mAP_tail", "tail"), "no column 'mAP_tail'"),
    (lambda text: text.replace("VOC-MLT", ""), "dataset is empty in line 2"),
    (lambda text: text.replace(",9", ",x9"), "must hold"),
    (lambda text: text.replace(",8", ",-8"), "must hold"),
    (lambda text: text + 'a,"b', "not the table"),
    (lambda text: "", "not the table"),
])  # fmt: skip
def test_a_damaged_file_is_named_in_one_sentence(read, file, damage, told, tmp_path):
    (tmp_path / file.name).write_text(damage(file.read_text()))
    with pytest.raises(LMCLIPError, match=told) as error:
        read(tmp_path / file.name)
    assert file.name in str(error.value) and "restore it" in str(error.value) and "\n" not in str(error.value)


def test_a_missing_or_binary_file_is_named(tmp_path):
    with pytest.raises(LMCLIPError, match="author_runs.csv is not the table"):
        published.load_author_runs(tmp_path / "author_runs.csv")
    (tmp_path / "author_runs.csv").write_bytes(b"\xff\xfe\x00PNG")
    with pytest.raises(LMCLIPError, match="restore it"):
        published.load_author_runs(tmp_path / "author_runs.csv")
