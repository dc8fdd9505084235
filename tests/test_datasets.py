"""Data sets: three sources, one class; every unreadable input is named in a sentence."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trees import write_voc

from lmclip.benchmarks import COCO_CLASSES, PUBLISHED, VOC_CLASSES
from lmclip.config import load_profile
from lmclip.datasets import load_study_data, read_coco_annotations, read_label_list
from lmclip.errors import LMCLIPError
from lmclip.mlt import published_facts, validation_split


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
    assert published_facts(data.train, data.test) == facts and data.differences == ()
    if name == "coco":
        assert (data.test.labels.sum(1) == 0).sum() == 48


def test_class_names_are_the_benchmarks_own(reference):
    for name, ours in (("voc", VOC_CLASSES), ("coco", COCO_CLASSES)):
        lines = (reference / f"{name}_labels.txt").read_text().splitlines()
        assert [line.rsplit(maxsplit=1)[0].strip() for line in lines if line.strip()] == list(ours)


@pytest.fixture(scope="module")
def devkit(reference, tmp_path_factory):
    """A VOCdevkit with the annotations of VOC2012 trainval (11,540) and VOC2007 test (4,952), and no images."""
    folder = tmp_path_factory.mktemp("mine") / "VOCdevkit"
    with np.load(reference / "voc2012_trainval_labels.npz", allow_pickle=False) as rows:
        write_voc(folder, 2012, "trainval", [str(name) for name in rows["ids"]], rows["labels"])
    paths, labels = read_label_list(reference / "voc_mlt_test.txt", VOC_CLASSES)
    write_voc(folder, 2007, "test", [Path(path).stem for path in paths], labels)
    return folder


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def test_voc_annotations_rebuild_the_official_benchmark_image_by_image(devkit, reference, data_folder):
    data = load_study_data(load_profile("voc"), source=str(devkit))
    paths, labels = read_label_list(reference / "voc_mlt_train.txt", VOC_CLASSES)
    official = {Path(path).stem: row.tolist() for path, row in zip(paths, labels, strict=True)}
    assert dict(zip(data.train.image_ids, data.train.labels.tolist(), strict=True)) == official
    listed = load_study_data(load_profile("voc"), *(str(reference / f"voc_mlt_{w}.txt") for w in ("train", "test")))
    assert listed.train.fingerprint == data.train.fingerprint and listed.test.fingerprint == data.test.fingerprint
    assert data.differences == () and data.train.provenance["published list"] == "the same images"
    assert data.train.provenance["source"] == "rebuilt from VOC2012 annotations"
    assert len(data.pool) == 11_540 and (data.pool.labels[data.build.indices] == data.train.labels).all()
    assert len(data.test) == 4_952 and data.test.groups is data.train.groups
    assert data.validation is None and not data.train.has_images  # annotations only


def test_a_given_list_comes_before_the_annotations(devkit, reference, data_folder, tmp_path):
    lines = (reference / "voc_mlt_train.txt").read_text().splitlines()
    (tmp_path / "half.txt").write_text("\n".join(lines[::2]))
    data = load_study_data(load_profile("voc"), train_list=str(tmp_path / "half.txt"), source=str(devkit))
    assert len(data.train) == 571 and data.pool is not None and len(data.build.indices) == 1142
    assert "train images: 571, published 1142" in data.differences and len(data.test) == 4_952
    assert data.train.provenance["source"] == "label list"
    assert data.train.files[0].is_relative_to(devkit)


def test_other_settings_are_told_as_differences(devkit, data_folder):
    profile = load_profile("voc").model_copy(update={"longtail_seed": 1})
    differences = load_study_data(profile, source=str(devkit)).differences
    assert any(phrase.startswith("train sha256: ") and "published 6fa70d5b…" in phrase for phrase in differences)


def test_validation_images_are_unused_balanced_and_there(devkit, reference, data_folder, tmp_path):
    profile = load_profile("voc")
    data = load_study_data(profile, source=str(devkit))
    split = validation_split(profile, data.pool, data.train)
    assert len(split) == profile.validation_size and not set(split.image_ids) & set(data.train.image_ids)
    assert split.image_ids == validation_split(profile, data.pool, data.train).image_ids
    assert split.counts.min() > profile.validation_size / 40

    (tmp_path / "list.txt").write_text("\n".join(f"{name}.jpg 3" for name in split.image_ids[:40]))
    other = load_study_data(profile, train_list=str(tmp_path / "list.txt"), source=str(devkit))
    assert not set(validation_split(profile, other.pool, other.train).image_ids) & set(split.image_ids[:40])


def test_validation_is_there_once_all_its_images_are(data_folder, tmp_path):
    labels = np.tile(np.eye(20, dtype=np.uint8), (4, 1))
    ids = [f"2008_{row:06}" for row in range(80)]
    for year, name in ((2012, "trainval"), (2007, "test")):
        write_voc(tmp_path, year, name, ids, labels, images=80)
    profile = load_profile("voc").model_copy(update={"max_count": 2, "validation_size": 10})
    data = load_study_data(profile, source=str(tmp_path))
    assert len(data.validation) == 10 and data.validation.has_images
    assert not set(data.validation.image_ids) & set(data.train.image_ids)
    data.validation.files[7].unlink()
    assert load_study_data(profile, source=str(tmp_path)).validation is None


def test_coco_sample_is_rebuilt_and_its_differences_told(reference, data_folder):
    data = load_study_data(load_profile("coco"), source=str(reference / "coco_sample"))
    assert len(data.train) == len(data.test) == 80 and data.train.has_images and data.test.has_images
    assert {"train images: 80, published 1909", "test images: 80, published 5000"} <= set(data.differences)
    assert data.train.provenance["source"] == "rebuilt from COCO train2017 annotations"
    assert data.train.provenance["published list"] == "other images"
    assert data.test.images([0, 3], size=32).shape == (2, 32, 32, 3)


def test_smoke_keeps_the_first_test_images_and_all_training_images(reference, data_folder):
    profile = load_profile("coco", smoke=True).model_copy(update={"test_limit": 5})
    whole = load_study_data(load_profile("coco"), source=str(reference / "coco_sample"))
    data = load_study_data(profile, source=str(reference / "coco_sample"))
    assert data.train.image_ids == whole.train.image_ids and data.test.image_ids == whole.test.image_ids[:5]


def test_a_pool_that_lacks_a_class_is_named(data_folder, tmp_path):
    for year, image_set, name in ((2012, "trainval", "2008_000001"), (2007, "test", "000001")):
        write_voc(tmp_path, year, image_set, [name], np.eye(20, dtype=np.uint8)[:1])
    with pytest.raises(LMCLIPError, match=r"no long tail can be drawn from trainval\.txt: class 1 has no image"):
        load_study_data(load_profile("voc"), source=str(tmp_path))


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_without_any_data_the_command_that_helps_is_named(name, data_folder):
    with pytest.raises(LMCLIPError, match=f"run `lmclip check {name}`"):
        load_study_data(load_profile(name))


def test_a_list_by_parameter_and_missing_images(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "nothing"))
    for split, first in (("train", 0), ("test", 100)):
        lines = "\n".join(f"JPEGImages/{first + i:06}.jpg {i % 20} {(i + 1) % 20}" for i in range(60))
        (tmp_path / f"{split}.txt").write_text(lines)
    data = load_study_data(load_profile("voc"), str(tmp_path / "train.txt"), str(tmp_path / "test.txt"))
    assert len(data.train) == 60 and not data.train.has_images and data.pool is None
    with pytest.raises(LMCLIPError, match=r"000003\.jpg"):
        data.train.images([3])


def test_lists_that_share_images_or_name_one_twice_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "nothing"))
    lines = [f"JPEGImages/{i:06}.jpg {i % 20}" for i in range(60)]
    for name, rows in (("a", lines), ("b", lines[59:]), ("twice", [*lines, "VOC2007/JPEGImages/000003.jpg 5"])):
        (tmp_path / name).write_text("\n".join(rows))
    paths = {name: str(tmp_path / name) for name in ("a", "b", "twice")}
    with pytest.raises(LMCLIPError, match=r"1 images are in the training and in the test list, such as 000059\.jpg"):
        load_study_data(load_profile("voc"), paths["a"], paths["b"])
    with pytest.raises(LMCLIPError, match=r"twice lists 000003\.jpg more than once"):
        load_study_data(load_profile("voc"), paths["twice"], paths["b"])


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
