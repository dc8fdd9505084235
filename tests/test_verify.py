"""`lmclip verify`: what is whole passes, and what was changed by hand is found, with scores and without."""

import json
import re
import shutil

import numpy as np
import pytest

from lmclip import recompute
from lmclip.cli import main
from lmclip.config import experiment, load_profile
from lmclip.datasets import load_study_data
from lmclip.paths import ROOT
from lmclip.records import content_digest
from lmclip.training import train
from lmclip.verify import verify
from lmclip.verify_pages import _same, check_pages

COMMITTED = ROOT / "results" / "glyph"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A results folder with one run of two epochs."""
    base = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMCLIP_DATA", str(base / "data"))
        profile = load_profile("glyph", smoke=True)
        exp = experiment(profile, "lm-clip", 0, 3e-4, epochs=2)
        train(exp, profile, load_study_data(profile), base / "glyph-smoke" / "runs", progress=False)
        yield base / "glyph-smoke", exp.run_id


@pytest.fixture
def folder(made, tmp_path):
    """A copy of it, and its only run's folder."""
    shutil.copytree(made[0], tmp_path / "glyph-smoke")
    return tmp_path / "glyph-smoke", tmp_path / "glyph-smoke" / "runs" / made[1]


def change(run, alter, forge=False):
    content = json.loads((run / "record.json").read_text())
    alter(content)
    if forge:
        content["digest"] = content_digest(content)
    (run / "record.json").write_text(json.dumps(content))


@pytest.mark.parametrize("without", [(), ("scores.npz",), ("ranks.npz",), ("scores.npz", "ranks.npz")])
def test_a_run_as_it_was_made_matches(folder, without, capsys):
    for name in without:
        (folder[1] / name).unlink()
    assert verify(folder[0]), capsys.readouterr().out
    assert "everything matches" in capsys.readouterr().out


def ap(content):
    content["protocols"]["clean"]["per_class_ap"][5] += 1e-4


def consistent_ap(content):
    """One AP, and every mean that it enters, as a careful hand would."""
    clean = content["protocols"]["clean"]
    clean["per_class_ap"][5] += 1e-4
    group = next(name for name, classes in content["data"]["groups"].items() if 5 in classes)
    for key, size in (("mAP", 40), (f"mAP_{group}", len(content["data"]["groups"][group]))):
        for place in (clean, clean["by_scoring"][content["experiment"]["scoring"]]):
            place[key] += 1e-4 / size
        for name in (f"test_{key}", f"test_{key}_{content['experiment']['scoring']}"):
            if name in content["history"][clean["epoch"]]:
                content["history"][clean["epoch"]][name] += 1e-4 / size


def seed(content):
    content["experiment"]["seed"] = 1


def history(content):
    content["history"][1]["gradient_norm"] *= 1.0001


def rate(content):
    content["history"][2]["learning_rate"] *= 1.0001


def auroc(content):
    content["protocols"]["clean"]["auroc"] += 1e-4


def chosen_epoch(content):
    best = content["protocols"]["best-on-test"]["epoch"]
    content["history"][3 - best]["test_mAP"] = content["history"][3 - best]["test_mAP_softmax"] = 0.99


@pytest.mark.parametrize(("alter", "forge", "without", "word"), [
    (ap, False, (), "digest"), (ap, True, (), "AP of"), (ap, True, ("scores.npz",), "from ranks"),
    (ap, True, ("scores.npz", "ranks.npz"), "against its classes"), (seed, True, (), "its settings make it"),
    (consistent_ap, True, (), "from scores"), (consistent_ap, True, ("scores.npz",), "from ranks"),
    (history, False, (), "digest"), (rate, True, (), "learning rate of epoch 2"), (auroc, True, (), "AUROC"),
    (auroc, False, ("scores.npz",), "digest"), (chosen_epoch, True, (), "not the one that its rule chooses"),
])  # fmt: skip
def test_a_record_changed_by_hand_is_found(folder, alter, forge, without, word, capsys):
    for name in without:
        (folder[1] / name).unlink()
    change(folder[1], alter, forge)
    assert not verify(folder[0])
    told = capsys.readouterr().out
    assert word in told and "fault" in told


def test_scores_changed_by_hand_are_found(folder, capsys):
    with np.load(folder[1] / "scores.npz") as arrays:
        arrays = dict(arrays)
    arrays["logits_clean"][3] += 0.5 * np.random.default_rng(0).normal(size=40)
    np.savez_compressed(folder[1] / "scores.npz", **arrays)
    assert not verify(folder[0])
    told = capsys.readouterr().out
    assert "not the file that the record was made of" in told and "from scores" in told and "ranks of scores" in told


@pytest.mark.parametrize("content", ["", "{}", "[" * 100_000, '{"run_id": 1}'])
def test_what_is_no_record_is_a_fault_and_no_traceback(folder, content, capsys):
    (folder[1] / "record.json").write_text(content)
    assert not verify(folder[0])
    assert "record.json" in capsys.readouterr().out


def test_a_record_whose_parts_are_missing_is_a_fault(folder, capsys):
    change(folder[1], lambda content: content["protocols"]["clean"].pop("epoch"))
    assert not verify(folder[0])
    change(folder[1], lambda content: content["protocols"].update(clean={"mAP": "high"}))
    assert not verify(folder[0])
    assert "a part of the record is missing" in capsys.readouterr().out


def test_the_command_ends_with_a_status(folder, tmp_path, capsys):
    assert main(["verify", str(folder[0])]) == 0
    change(folder[1], ap)
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(folder[0])])
    assert stop.value.code == 1
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no runs" in capsys.readouterr().err


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The committed results as a fresh clone has them."""
    folder = tmp_path_factory.mktemp("clone") / "glyph"
    shutil.copytree(COMMITTED, folder, ignore=shutil.ignore_patterns("scores.npz", ".stamps", "*.svg"))
    return folder


def test_the_committed_results_pass(committed, capsys):
    passed = verify(committed)
    told = capsys.readouterr().out
    assert passed, told
    assert "7 tables and 6 figures were made again" in told


def raised(by):
    """Replaces a number by one that is ``by`` larger."""
    return lambda match: f"{float(match[0]) + by:.{len(match[0].split('.')[1])}f}"


# What is altered: the first match in a table, a number by more than rounding could.
@pytest.mark.parametrize(("name", "old", "new", "word"), [
    ("main_clean.csv", r"\d+\.\d(?= \()", raised(0.1), "main_clean.csv, line"),
    ("main_clean.md", r"\d+\.\d(?= \()", raised(0.1), ".md, line"),
    ("main_best-on-test.tex", "zero-shot", "zero", ".tex, line"),
    ("claims.csv", "contradicted", "supported", "claims"),
    ("claims.md", "contradicted", "supported", "claims.md does not say"),
    ("bootstrap.csv", r"(?<=mAP,)-?\d\.\d+", raised(0.01), "minus"),
    ("per_class_ap.csv", r"\d\.\d{5}", raised(0.001), "line 2"),
    ("distances.csv", r"\d\.\d{5}", raised(0.001), "line 2"),
])  # fmt: skip
def test_a_table_changed_by_hand_is_found(committed, name, old, new, word, monkeypatch):
    path = committed / "tables" / name
    text = path.read_text()
    altered = re.sub(old, new, text, count=1)
    assert altered != text, "nothing in the committed table is as this test expects"
    monkeypatch.setattr(recompute, "figures", lambda *a: {})
    from lmclip.records import load_record

    records = [load_record(p.parent) for p in sorted(committed.glob("runs/*/record.json"))]
    path.write_text(altered)
    try:
        found = list(check_pages(committed, records, {}, []))
    finally:
        path.write_text(text)
    assert any(word in fault for fault in found), found


def test_numbers_may_differ_in_the_last_place_alone():
    assert _same("a 0.123 (0.5)", "a 0.124 (0.5)") and _same("x", "x")
    for other in ("a 0.125 (0.5)", "b 0.123 (0.5)", "a 0.1230 (0.5)", "a 0.123", "a -0.123 (0.5)"):
        assert not _same("a 0.123 (0.5)", other)
