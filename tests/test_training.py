"""The loop: bit-repeatable, evaluating what it says, and leaving whole records or none."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import open_clip
import pytest
import torch
from scipy.optimize import approx_fprime

from lmclip import evaluation, training
from lmclip import learner as learner_module
from lmclip.config import METHODS, LossSettings, experiment, load_profile
from lmclip.datasets import LongTailDataset, load_study_data
from lmclip.errors import LMCLIPError
from lmclip.evaluation import predict, scored, softmax
from lmclip.images import cached_images
from lmclip.learner import Learner
from lmclip.matrix import is_current, run_matrix
from lmclip.metrics import multilabel_report
from lmclip.models import load_model
from lmclip.records import is_finished, load_record, load_records, load_scores, to_frame

TRAINED = [name for name, method in METHODS.items() if method.trained]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """A tiny profile, its data, and folders of its own."""
    patch = pytest.MonkeyPatch()
    patch.setenv("LMCLIP_DATA", str(tmp_path_factory.mktemp("data")))
    patch.setenv("LMCLIP_RESULTS", str(tmp_path_factory.mktemp("results")))
    profile = load_profile("glyph", smoke=True).model_copy(update={"epochs": 1})
    yield profile, load_study_data(profile)
    patch.undo()


def run(setting, folder, method="lm-clip", seed=0, **options):
    profile, data = setting
    exp = experiment(profile, method, seed, 3e-4)
    return training.train(exp, profile, data, folder, progress=False, **options)


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_trains_and_lowers_its_loss(setting, tmp_path, method):
    profile, data = setting
    exp = experiment(profile, method, 0, 1e-3)
    learner = Learner(exp, profile, data.train, torch.device("cpu"))
    images = torch.from_numpy(data.train.images(range(32))).permute(0, 3, 1, 2)
    learner.fit_bias(data.train.images())
    learner.model.train()
    losses = []
    for _ in range(4):
        loss = sum(learner.terms(images, torch.arange(32)).values())
        learner.optimizer.zero_grad()
        loss.backward()
        learner.optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(setting, tmp_path):
    first, again, other = (run(setting, tmp_path / str(i), seed=s) for i, s in enumerate((0, 0, 1)))
    with (
        np.load(tmp_path / "0" / first.run_id / "scores.npz") as a,
        np.load(tmp_path / "1" / again.run_id / "scores.npz") as b,
    ):
        assert all(np.array_equal(a[name], b[name]) for name in a.files)
    timeless = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in r.history] for r in (first, again, other)
    ]
    assert repr(timeless[0]) == repr(timeless[1]) != repr(timeless[2])  # repr, since NaN differs from itself


def test_a_record_says_what_the_scores_say(setting, monkeypatch):
    profile, data = setting
    (record,) = run_matrix([experiment(profile, "bce", 0, 3e-4)], profile, data, jobs=1)
    assert [r.run_id for r in load_records(profile)] == [record.run_id]
    stored, scores = (
        load_record(training.results_dir(profile.folder) / "runs" / record.run_id),
        load_scores(record, profile),
    )
    scoring = stored.experiment.scoring
    for protocol, result in stored.protocols.items():
        found = multilabel_report(scored(scores[f"logits_{protocol}"], scoring), scores["targets"], data.test.groups)
        assert abs(found["mAP"] - result["mAP"]) < 1e-6
    assert (scores["targets"] == data.test.labels).all() and len(scores["features"]) == len(data.test)
    assert (
        stored.experiment == record.experiment and stored.data["splits"]["test"]["fingerprint"] == data.test.fingerprint
    )
    assert set(to_frame([stored])["protocol"]) == {"best-on-test", "clean"}
    assert {"torch", "python"} <= set(stored.packages) and stored.seconds > 0 and stored.peak_memory_mb > 100
    assert "/" not in json.dumps(stored.data["splits"]["train"]["source"])


def test_zero_shot_is_the_untouched_model(setting, tmp_path):
    profile, data = setting
    record = run(setting, tmp_path, "zero-shot")
    model, tokenizer = load_model()
    with torch.inference_mode():
        from lmclip.models import encode_image

        labels = model.encode_text(tokenizer([f"a photo of a {n}" for n in data.test.class_names]), normalize=True)
        features = encode_image(model, torch.from_numpy(data.test.images()).permute(0, 3, 1, 2))
        expected = (model.logit_scale.exp() * features @ labels.T).numpy()
    with np.load(tmp_path / record.run_id / "scores.npz") as scores:
        assert np.allclose(scores["logits_clean"], expected, atol=1e-3)
    assert [row["epoch"] for row in record.history] == [0]


def test_protocols_choose_their_epoch_by_their_own_rule(setting, tmp_path):
    profile, data = setting
    exp = experiment(profile, "bce", 0, 1e-3, epochs=3)
    record = training.train(exp, profile, data, tmp_path, progress=False)
    trained = [row for row in record.history if row["epoch"] > 0]
    best = max(trained, key=lambda row: row["test_mAP"])
    chosen = max(trained, key=lambda row: row["validation_mAP"])
    assert record.protocols["best-on-test"]["mAP"] == pytest.approx(best["test_mAP"])
    assert record.protocols["clean"]["mAP"] == pytest.approx(chosen["test_mAP"])
    rates = [row["learning_rate"] for row in trained]
    assert rates == pytest.approx([1e-3 * (1 + np.cos(np.pi * e / 3)) / 2 for e in range(3)])


def test_tuning_reads_no_test_image(setting, tmp_path, monkeypatch):
    profile, data = setting
    read = []
    for module in (training, evaluation):
        monkeypatch.setattr(module, "cached_images", lambda *a: read.append(a[-1]) or cached_images(*a))
    record = run(setting, tmp_path, "bce", evaluate_test=False)
    assert read == ["GlyphMLT train", "GlyphMLT validation"]
    assert list(record.protocols) == ["clean"] and "test_mAP" not in record.history[-1]


def test_the_bias_starts_where_the_loss_is_least(setting):
    profile, data = setting
    learner = Learner(experiment(profile, "asl"), profile, data.train, torch.device("cpu"))
    images = data.train.images()
    learner.fit_bias(images)
    logits = torch.from_numpy(predict(learner, images)[0]).double()

    def loss(bias):
        return float(learner.loss(logits + float(bias[0]), learner.targets))

    assert learner.bias.item() < -1
    assert abs(approx_fprime([learner.bias.item()], loss, 1e-4)[0]) < 1e-4


def test_bal_moves_the_temperature_by_weight_decay_alone(setting, tmp_path):
    profile, data = setting
    learner = Learner(experiment(profile, "bal"), profile, data.train, torch.device("cpu"))
    rows = torch.arange(16)
    images = torch.from_numpy(data.train.images(range(16))).permute(0, 3, 1, 2)
    learner.terms(images, rows)["label"].backward()
    largest = max(p.grad.abs().max().item() for p in learner.parameters if p.grad is not None)
    assert abs(learner.model.logit_scale.grad.item()) < 1e-5 * largest


def test_a_finished_run_is_not_overwritten_unless_told(setting, tmp_path):
    record = run(setting, tmp_path, "zero-shot")
    with pytest.raises(LMCLIPError, match=f"{record.run_id} is already finished; pass overwrite=True"):
        run(setting, tmp_path, "zero-shot")
    before = (tmp_path / record.run_id / "record.json").stat().st_ino
    run(setting, tmp_path, "zero-shot", overwrite=True)
    assert (tmp_path / record.run_id / "record.json").stat().st_ino != before
    assert [p.name for p in tmp_path.iterdir()] == [record.run_id]


def test_a_matrix_goes_on_where_it_stopped(setting, tmp_path, capfd):
    profile, data = setting
    runs = [experiment(profile, "zero-shot"), experiment(profile, "bal", 0, 1e-4)]
    list(run_matrix(runs[:1], profile, data, folder=tmp_path, jobs=1))
    stamp = (tmp_path / runs[0].run_id / "record.json").stat().st_mtime_ns
    records = list(run_matrix(runs, profile, data, folder=tmp_path, jobs=1))
    assert {r.run_id for r in records} == {r.run_id for r in runs}
    assert (tmp_path / runs[0].run_id / "record.json").stat().st_mtime_ns == stamp
    assert "1 of 2 runs are finished already, 1 to do" in capfd.readouterr().out


def test_a_record_without_scores_is_made_again(setting, tmp_path):
    profile, data = setting
    record = run(setting, tmp_path, "zero-shot")
    (tmp_path / record.run_id / "scores.npz").unlink()
    assert not is_finished(tmp_path / record.run_id)
    list(run_matrix([record.experiment], profile, data, folder=tmp_path, jobs=1))
    assert is_finished(tmp_path / record.run_id)


def test_a_run_killed_while_it_is_written_leaves_no_record(setting, tmp_path, monkeypatch):
    """The process dies after record.json is there and before scores.npz is: nothing must pass for a run."""
    profile, data = setting
    record = run(setting, tmp_path / "good", "zero-shot")
    (tmp_path / "record.json").write_text(record.model_dump_json())
    code = (
        "import os, sys, numpy as np; from pathlib import Path; from lmclip import records\n"
        "np.savez_compressed = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        "record = records.Record.model_validate_json(Path(sys.argv[1]).read_text())\n"
        "records.save_run(record, {}, Path(sys.argv[2]))"
    )
    runs = tmp_path / profile.folder / "runs"
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path / "record.json"), str(runs)], capture_output=True)
    assert child.returncode == -9 and list(runs.rglob("record.json")), "it must die in the middle, or it tests nothing"
    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path))
    assert load_records(profile) == [] and not is_finished(runs / record.run_id)
    train_again = run(setting, runs, "zero-shot")
    assert [r.run_id for r in load_records(profile)] == [train_again.run_id]


def test_a_run_on_other_data_or_weights_is_not_reused(setting, tmp_path, monkeypatch):
    profile, data = setting
    record = run(setting, tmp_path, "zero-shot")
    assert is_current(tmp_path / record.run_id, profile, data)
    labels = data.test.labels.copy()
    labels[0, 0] ^= 1
    changed = dataclasses.replace(data, test=dataclasses.replace(data.test, labels=labels))
    assert not is_current(tmp_path / record.run_id, profile, changed)
    monkeypatch.setattr(training, "weights_id", lambda *name: "other weights")
    assert not is_current(tmp_path / record.run_id, profile, data)


def test_unreadable_scores_are_told(setting, tmp_path, monkeypatch):
    profile, data = setting
    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path))
    record = run(setting, tmp_path / profile.folder / "runs", "zero-shot")
    path = tmp_path / profile.folder / "runs" / record.run_id / "scores.npz"
    good = path.read_bytes()
    for bad in (b"", b"PK\x03\x04", good[: len(good) // 2], b"nothing"):
        path.write_bytes(bad)
        with pytest.raises(LMCLIPError, match=r"scores\.npz is unreadable"):
            load_scores(record, profile)
    path.unlink()
    with pytest.raises(LMCLIPError, match="no scores at"):
        load_scores(record, profile)


def test_twenty_steps_of_this_loop_equal_the_release(setting, golden_clip, monkeypatch):
    """The golden trajectory through the very learner that trains: its terms, optimiser, schedule and captions."""
    model, numbers = golden_clip
    hyper, names = json.loads(str(numbers["hyper"])), tuple(json.loads(str(numbers["names"])))
    monkeypatch.setattr(learner_module, "load_model", lambda *name: (model, open_clip.get_tokenizer("ViT-B-16")))
    labels = numbers["targets"].reshape(-1, len(names))  # 20 batches of 8 in a row
    dataset = LongTailDataset("golden", [str(i) for i in range(len(labels))], labels, names)
    loss = LossSettings(
        bal_weight=hyper["lambda_bal"], **{k: hyper[k] for k in ("gamma_neg", "gamma_pos", "clip", "label_smoothing")}
    )
    exp = experiment(setting[0], "lm-clip-release", 0, hyper["lr"], epochs=hyper["epochs"], settings=loss)
    learner = Learner(exp, setting[0], dataset, torch.device("cpu"))
    learner.encode_image = lambda images: model.encode_image(
        images.float(), normalize=True
    )  # golden images are normalised
    learner.loss.class_weight = torch.tensor(numbers["class_weight"])
    found = []
    for step, images in enumerate(numbers["images"]):
        total = sum(learner.terms(torch.tensor(images), torch.arange(8) + 8 * step).values())
        learner.optimizer.zero_grad()
        total.backward()
        learner.optimizer.step()
        found.append(total.item())
        if (step + 1) % hyper["steps_per_epoch"] == 0:
            learner.schedule.step()
    np.testing.assert_allclose(found, numbers["losses"], atol=1e-4, rtol=0)


def test_an_unwritable_results_folder_is_told(setting, tmp_path):
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(LMCLIPError, match=r"runs can't be written.*LMCLIP_RESULTS"):
        run(setting, tmp_path / "runs", "zero-shot")


def test_records_that_are_none_are_named(setting, tmp_path):
    record = run(setting, tmp_path, "zero-shot")
    path = tmp_path / record.run_id / "record.json"
    for text, message in (("{", "is no run record"), ("{}", "is no run record"), ('{"run_id": 3}', "run_id")):
        path.write_text(text)
        with pytest.raises(LMCLIPError, match=message):
            load_record(path.parent)
    path.unlink()
    with pytest.raises(LMCLIPError, match="no readable record"):
        load_record(path.parent)


def test_softmax_is_a_distribution_that_large_logits_do_not_break():
    scores = softmax(np.array([[1000.0, 0.0], [-1000.0, -1000.0], [3.0, 3.0]]))
    assert np.allclose(scores.sum(1), 1) and np.allclose(scores, [[1, 0], [0.5, 0.5], [0.5, 0.5]])
