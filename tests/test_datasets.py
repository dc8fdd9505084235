"""Data sets: three sources, one class; every unreadable input is named in a sentence."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from lmclip.benchmarks import COCO_CLASSES, PUBLISHED, VOC_CLASSES
from lmclip.config import load_profile
from lmclip.datasets import load_study_data, read_coco_annotations, read_label_list
from lmclip.errors import LMCLIPError


@pytest.fixture(scope="module")
def glyph(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("LMCLIP_DATA", str(tmp_path_factory.mktemp("data")))
    yield load_study_data(load_profile("glyph", smoke=True))
    patch.undo()


def test_glyph_splits_share_no_image(glyph):
    train, validation, test = (set(s.image_ids) for s in (glyph.train, glyph.validation, glyph.test))
    assert not train & validation and not train & test and not validation & test
    assert train | validation <= set(glyph.pool.image_ids)


def test_glyph_training_images_are_what_build_longtail_chose(glyph):
    assert (glyph.train.labels == glyph.pool.labels[glyph.build.indices]).all()
    assert (glyph.train.counts == glyph.build.counts).all()


def test_glyph_images_and_captions(glyph):
    images = glyph.test.images([0, 5])
    assert images.shape == (2, 64, 64, 3) and images.dtype == np.uint8
    row = glyph.train.labels[0]
    names = [n for n, y in zip(glyph.train.class_names, row, strict=True) if y]
    assert glyph.train.captions[0] == "a photo of a " + ", ".join(names)


def test_full_glyph_profile_has_the_sizes_of_the_design(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path))
    data = load_study_data(load_profile("glyph"), draw=False)
    assert 1000 <= len(data.train) <= 1200 and len(data.validation) == 1000 and len(data.test) == 2000
    groups, counts = data.train.groups, data.train.counts
    assert counts[groups.head].min() >= 100 and counts[groups.tail].max() < 20
    assert min(len(groups.head), len(groups.medium), len(groups.tail)) >= 6
    assert data.test.counts.max() / data.test.counts.min() < 1.2


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_official_lists_give_the_published_facts(name, reference, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(reference))
    data, facts = load_study_data(load_profile(name)), PUBLISHED[name]
    groups = data.train.groups
    found = {"train images": len(data.train), "test images": len(data.test), "head classes": len(groups.head),
             "medium classes": len(groups.medium), "tail classes": len(groups.tail),
             "smallest class": data.train.counts.min(), "largest class": data.train.counts.max(),
             "train sha256": data.train.id_sha256}  # fmt: skip
    assert found == facts
    if name == "coco":
        assert (data.test.labels.sum(1) == 0).sum() == 48


def test_class_names_are_the_benchmarks_own(reference):
    for name, ours in (("voc", VOC_CLASSES), ("coco", COCO_CLASSES)):
        lines = (reference / f"{name}_labels.txt").read_text().splitlines()
        assert [line.rsplit(maxsplit=1)[0].strip() for line in lines if line.strip()] == list(ours)


def test_voc_pool_rebuilds_the_official_list(reference, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(reference))
    data = load_study_data(load_profile("voc"))
    rebuilt = {data.pool.image_ids[i] for i in data.build.indices}
    assert rebuilt == set(data.train.image_ids) and len(rebuilt) == 1142


def test_real_coco_annotations_are_read(reference):
    images, labels, names = read_coco_annotations(reference / "coco_sample/annotations/instances_val2017.json")
    assert list(names) == list(COCO_CLASSES) and labels.shape == (len(images), 80)
    listed = (reference / "coco_mlt_test.txt").read_text().splitlines()
    official = {line.split()[0].split("/")[1]: {int(i) for i in line.split()[1:]} for line in listed}
    for image, row in zip(images, labels, strict=True):
        assert set(np.flatnonzero(row)) == official[image["file_name"]]


def test_a_list_by_parameter_and_missing_images(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "nothing"))
    lines = "\n".join(f"JPEGImages/{i:06}.jpg {i % 20} {(i + 1) % 20}" for i in range(60))
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(lines)
    data = load_study_data(load_profile("voc"), str(tmp_path / "train.txt"), str(tmp_path / "test.txt"))
    assert len(data.train) == 60 and not data.train.has_images and data.pool is None
    with pytest.raises(LMCLIPError, match=r"000003\.jpg"):
        data.train.images([3])


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "empty"),
        ("a.jpg 3\nb.jpg 20\n", r"line 2: '20' is no class index; expected 0 to 19"),
        ("a.jpg -1\n", "line 1: '-1'"),
        ("a.jpg cat\n", "line 1: 'cat'"),
        ("a.jpg ²\n", "line 1"),
        ("a.jpg 1\na.jpg 2\n", "line 2: a.jpg was listed before, in line 1"),
    ],
)
def test_bad_lists_are_refused_by_line(text, message, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(LMCLIPError, match=message):
        read_label_list(path, VOC_CLASSES)


def test_missing_and_binary_lists_are_refused(tmp_path):
    with pytest.raises(LMCLIPError, match=r"no label list.*train_list"):
        read_label_list(tmp_path / "none.txt", VOC_CLASSES)
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(LMCLIPError, match="can't be read"):
        read_label_list(tmp_path / "binary.txt", VOC_CLASSES)


GOOD = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 7, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 1, 1], "area": 1}]}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 8}]},
        {"annotations": [{"id": 1, "image_id": 2, "category_id": 7}]},
        {"annotations": [{"id": 1}]},
        {"images": []},
        {"images": [{"file_name": "a.png"}]},
        {"categories": [{"id": 7}]},
        {"images": 3},
    ],
)
def test_inconsistent_annotations_are_refused(change, tmp_path):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(GOOD))
    _, labels, names = read_coco_annotations(path)
    assert labels.tolist() == [[1]] and names == ("cat",)
    path.write_text(json.dumps(GOOD | change))
    with pytest.raises(LMCLIPError, match=r"instances\.json"):
        read_coco_annotations(path)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "[1, 2]", "\x00"])
def test_files_that_are_no_annotations_are_refused(text, tmp_path):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(LMCLIPError, match=r"x\.json"):
        read_coco_annotations(tmp_path / "x.json")


def test_a_corrupt_image_is_named(glyph):
    path = glyph.test.files[7]
    good = path.read_bytes()
    try:
        for bad in (b"no image", good[: len(good) // 2], b""):
            path.write_bytes(bad)
            with pytest.raises(LMCLIPError, match=path.name):
                glyph.test.images([6, 7])
    finally:
        path.write_bytes(good)


def test_images_are_squashed_to_a_square(tmp_path, glyph):
    path = tmp_path / "wide.png"
    Image.new("RGB", (200, 50), (10, 200, 30)).save(path)
    wide = type(glyph.test)("wide", ["wide"], glyph.test.labels[:1], glyph.test.class_names, files=[path])
    assert wide.images(size=32).shape == (1, 32, 32, 3)


def test_fingerprint_notices_a_changed_label(glyph):
    d = glyph.test
    labels = d.labels.copy()
    labels[3, 4] ^= 1
    assert type(d)(d.name, d.image_ids, labels, d.class_names).fingerprint != d.fingerprint
    assert d.id_sha256 == hashlib.sha256("\n".join(sorted(d.image_ids)).encode()).hexdigest()
