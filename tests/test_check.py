"""`lmclip check`: a newcomer learns what to do, and nobody is told that the study can run when it can't."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from open_clip.pretrained import get_pretrained_cfg
from trees import copy_coco, write_voc

from lmclip import check
from lmclip.archives import fingerprint
from lmclip.cli import main
from lmclip.errors import LMCLIPError
from lmclip.paths import data_dir
from lmclip.profiles import BACKBONES

LABELS = np.tile(np.eye(20, dtype=np.uint8), (2, 1))
IDS = [f"2008_{row:06}" for row in range(40)]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """An empty data folder and no weights."""
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(check, "try_to_load_from_cache", lambda *_: None)
    return tmp_path / "data"


@pytest.fixture
def weights(monkeypatch):
    def give(*pages):
        monkeypatch.setattr(check, "try_to_load_from_cache", lambda page, _: "file" if page in pages else None)

    return give


def screen(capsys, *arguments):
    """Status, the findings as {what: (state, detail)}, and the lines after "Next:"."""
    status = 0
    try:
        status = main(["check", *map(str, arguments)])
    except SystemExit as ended:
        status = ended.code
    found, _, following = capsys.readouterr().out.partition("\nNext:\n")
    rows = [line for line in found.splitlines()[2:] if line[:1].strip()]
    return status, {row[9:35].strip(): (row[:9].strip(), row[35:]) for row in rows}, following


@pytest.mark.parametrize(
    "name, file", [("voc", "VOCtrainval_11-May-2012.tar"), ("coco", "annotations_trainval2017.zip")]
)
def test_a_newcomer_without_data_learns_what_to_do(name, file, capsys):
    status, found, following = screen(capsys, name)
    assert status == 1 and {state for state, _ in found.values()} == {"missing"}
    assert f"lmclip download {name}" in following and f"{data_dir() / name}, and run" in following
    assert file in following and "--source FOLDER" in following and "--weights" in following
    assert len(following.splitlines()) < 12


def test_a_check_without_data_loads_no_pytorch():
    code = "import sys, lmclip.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_pages_of_the_weights_are_those_that_open_clip_asks(capsys):
    asked = {name: get_pretrained_cfg(model, "openai").get("hf_hub", "") for name, model in BACKBONES.items()}
    assert {name: page.rstrip("/") for name, page in asked.items() if page} == {
        name: page for name, (page, _) in check.WEIGHTS.items()
    }


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_lists_alone_are_compared_and_their_images_missed(name, reference, capsys, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(reference))
    status, found, following = screen(capsys, name)
    facts = {
        "voc": "1,142 training and 4,952 test images, 6/6/8",
        "coco": "1,909 training and 5,000 test images, 22/33/25",
    }
    assert status == 1 and found["published facts"][0] == "found" and facts[name] in found["published facts"][1]
    assert found["training images"][0] == found["test images"][0] == "missing"
    assert f"lmclip study --profile {name}\n" in following and "notebooks 00 to 03" in following


def test_the_sample_can_run_and_differs(reference, capsys, weights):
    weights("timm/vit_base_patch16_clip_224.openai")
    source = reference / "coco_sample"
    status, found, following = screen(capsys, "coco", "--source", source)
    assert status == 0
    assert found["COCO train2017 labels"] == ("differs", "80 images, expected 118,287")
    assert found["published facts"][0] == "differs"
    assert found["training images"][0] == found["test images"][0] == "found"
    assert f"lmclip study --profile coco --backbone vit-b-16 -p source {shlex.quote(str(source))}" in following
    assert "-p train_list FILE" in following


def test_without_weights_the_study_can_not_run(reference, capsys, weights):
    status, _, following = screen(capsys, "coco", "--source", reference / "coco_sample")
    assert status == 1 and "The study fetches the weights" in following
    weights("timm/resnet50_clip.openai")
    status, _, following = screen(capsys, "coco", "--source", reference / "coco_sample")
    assert status == 0 and "--backbone rn50" in following


def test_missing_and_damaged_images_are_told(tmp_path, capsys, weights):
    weights("timm/vit_base_patch16_clip_224.openai")
    for year, name in ((2012, "trainval"), (2007, "test")):
        write_voc(tmp_path, year, name, IDS, LABELS, images=40)
    assert screen(capsys, "voc", "--source", tmp_path)[0] == 0

    gone = tmp_path / "VOC2007/JPEGImages/2008_000004.jpg"
    gone.unlink()
    status, found, following = screen(capsys, "voc", "--source", tmp_path)
    assert status == 1 and found["test images"] == ("missing", "1 of 40, such as 2008_000004.jpg")
    assert f"lmclip download voc --folder {tmp_path}" in following

    (tmp_path / "VOC2012/JPEGImages/2008_000000.jpg").write_bytes(b"\xff\xd8 cut short")
    status, found, _ = screen(capsys, "voc", "--source", tmp_path)
    assert status == 1 and found["training images"][0] == "differs"
    assert "2008_000000.jpg is no readable image" in found["training images"][1]


def test_damaged_labels_are_told_and_do_not_end_the_check(tmp_path, capsys):
    write_voc(tmp_path, 2012, "trainval", IDS, LABELS)
    (tmp_path / "VOC2012/Annotations/2008_000003.xml").write_text("<annotation>")
    status, found, _ = screen(capsys, "voc", "--source", tmp_path)
    assert status == 1 and found["VOC2012 trainval labels"][0] == "differs"
    assert "2008_000003.xml can't be read" in found["VOC2012 trainval labels"][1]


def test_files_that_changed_since_the_download_are_told(reference, tmp_path, capsys):
    root = copy_coco(reference / "coco_sample", tmp_path / "mine")
    names = ("annotations/instances_val2017.json", "train2017/000000008193.jpg", "zips/val2017.zip")
    known = {name: fingerprint(root / name) for name in names[:2]} | {names[2]: {"bytes": 1, "sha256": "0"}}
    (root / "fingerprints.json").write_text(json.dumps(known))
    assert screen(capsys, "coco", "--source", root)[1]["fingerprints"][0] == "found"
    for name in names[:2]:
        before = (root / name).read_bytes()
        (root / name).write_bytes(before + b" ")
        state, told = screen(capsys, "coco", "--source", root)[1]["fingerprints"]
        assert state == "differs" and name in told
        (root / name).write_bytes(before)


def test_bad_input_is_one_sentence(tmp_path, capsys):
    assert main(["check", "voc", "--source", str(tmp_path)]) == 2
    assert "lmclip check voc" in capsys.readouterr().err
    with pytest.raises(LMCLIPError, match="glyph is rendered"):
        check.check("glyph")
