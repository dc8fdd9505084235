"""The notebooks themselves, end to end at smoke size, through the command that users call."""

import os
import re
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from lmclip.paths import ROOT, results_dir
from lmclip.study import STUDY
from lmclip.tables import fill_readme


def lmclip(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "lmclip", *arguments],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def pages(folder):
    return {path.stem: nbformat.read(path, 4) for path in (folder / "notebooks").glob("*.ipynb")}


def text_of(page):
    outputs = [o for cell in page.cells if cell.cell_type == "code" for o in cell.outputs]
    return "\n".join(str(o.get("text", "")) + str(o.get("data", {}).get("text/markdown", "")) for o in outputs)


def whole_study(results, *options, hidden, cwd, **environment):
    """The pages of a study that ran to its end into ``results``, and name none of the ``hidden`` folders."""
    run = lmclip("study", *options, cwd=cwd, **environment)
    assert run.returncode == 0, run.stdout + run.stderr
    made = pages(results)
    assert set(made) == {n.name for n in STUDY if not n.appendix}
    for page in made.values():
        assert not any(str(folder) in nbformat.writes(page) for folder in hidden)
    return made


def test_the_whole_study_runs_on_glyphs_and_then_has_nothing_to_do(tmp_path):
    folders = {"LMCLIP_DATA": str(tmp_path / "my data"), "LMCLIP_RESULTS": str(tmp_path / "my results")}
    results = tmp_path / "my results" / "glyph-smoke"
    made = whole_study(results, "--profile", "glyph", "--smoke", hidden=(tmp_path, ROOT), cwd=tmp_path, **folders)
    claims = pd.read_csv(results / "tables" / "claims.csv")
    assert set(claims["verdict"]) <= {"supported", "contradicted", "not shown", "supported in part", "not supported"}
    assert "**Smoke size: these numbers mean nothing.**" in text_of(made["05_results"])
    again = lmclip("study", "--profile", "glyph", "--smoke", "--from", "01", cwd=tmp_path, **folders)
    assert again.returncode == 0 and again.stdout.count("up to date, skipped") == 5, again.stdout + again.stderr


def test_the_appendix_runs_when_asked_for(tmp_path):
    folders = {"LMCLIP_DATA": str(tmp_path / "data"), "LMCLIP_RESULTS": str(tmp_path / "results")}
    run = lmclip("study", "--smoke", "--only", "07", cwd=tmp_path, **folders)
    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "results" / "glyph-smoke" / "figures" / "07_history.png").stat().st_size > 10_000


@pytest.mark.parametrize("profile, images, effective", [("voc", "1,142", "137"), ("coco", "1,909", "608")])
def test_real_lists_run_without_images(profile, images, effective, reference, tmp_path):
    folders = {"LMCLIP_DATA": str(reference), "LMCLIP_RESULTS": str(tmp_path)}
    run = lmclip("study", "--profile", profile, cwd=tmp_path, **folders)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Left out" in run.stdout
    made = pages(tmp_path / profile)
    assert set(made) == {n.name for n in STUDY[:4]}
    told = text_of(made["01_long_tail_construction"]) + text_of(made["02_sampler_analysis"])
    assert images in told or images.replace(",", "") in told
    assert effective in told


def test_the_whole_study_runs_on_real_photographs_with_random_weights(reference, tmp_path):
    # 80 real COCO images and annotations, RN50 at 224 pixels: every line that OpenAI's weights and the full data take.
    sample = reference / "coco_sample"
    folders = {"LMCLIP_DATA": str(tmp_path / "data"), "LMCLIP_RESULTS": str(tmp_path / "results")}
    options = ("--profile", "coco", "--backbone", "rn50", "--weights", "random", "--smoke")
    results = tmp_path / "results" / "coco-rn50-random-smoke"
    source = ("-p", "source", str(sample))
    whole_study(results, *options, *source, hidden=(tmp_path, sample), cwd=tmp_path, **folders)
    for name in ("main_clean", "main_best-on-test", "training_runs", "bootstrap", "claims", "per_class_ap"):
        assert (results / "tables" / f"{name}.md").read_text().startswith("SAMPLE, RANDOM WEIGHTS, SMOKE SIZE · "), name
    assert "nan" not in (results / "tables" / "claims.md").read_text()
    assert list((tmp_path / "data" / "cache" / "images").glob("coco-mlt-train-224-crop-*.npy"))
    assert not list((tmp_path / "data").glob("coco*")), "photographs in a folder of their own are not copied"


def test_readme_quotes_the_committed_results():
    text = (ROOT / "README.md").read_text()
    assert fill_readme(text, "glyph") == text, "results changed: run `lmclip readme`"


def test_committed_pages_carry_no_folder_of_a_machine():
    committed = sorted((ROOT / "results").glob("*/notebooks/[!.]*.ipynb"))
    assert committed
    for path in committed:
        text = re.sub(r'"image/png": ".*?"', "", path.read_text())  # pictures are base64, where any word may turn up
        assert not any(word in text for word in ("/root/", "/home/", "/tmp/", "/Users/", str(ROOT))), path


@pytest.mark.parametrize("arguments, message", [
    (("study", "--profile", "imagenet"), "unknown profile 'imagenet'"),
    (("study", "--only", "42"), "no notebook '42'"),
    (("study", "-p", "epohcs", "3"), "epohcs"),
    (("tune", "--profile", "voc"), "lmclip check voc"),
    (("study", "--profile", "glyph", "--backbone", "rn50"), "no backbone 'rn50'"),
    (("study", "--profile", "voc", "--weights", "no.pt"), "no.pt can't be read"),
    (("study", "-p", "overrides", "{'epocs': 3}"), "epocs"),
    (("study", "-p", "backbone", "rn50"), "--backbone"),
    (("check", "voc", "--source", "nowhere"), "holds no VOC2012/"),
    (("tune", "--methods", "sgd"), "unknown method 'sgd'"),
])  # fmt: skip
def test_bad_input_gets_one_sentence_and_a_status(arguments, message, tmp_path):
    folders = {"LMCLIP_DATA": str(tmp_path / "data"), "LMCLIP_RESULTS": str(tmp_path / "results")}
    run = lmclip(*arguments, cwd=tmp_path, **folders)
    assert run.returncode == 2 and message in run.stderr and "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_results_dir_is_where_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("LMCLIP_RESULTS", str(tmp_path))
    assert results_dir("glyph") == tmp_path.resolve() / "glyph"
