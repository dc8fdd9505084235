"""VOC and COCO as they come: wherever the folder lies, in the order of the files, and nothing trusted."""

from pathlib import Path

import numpy as np
import pytest
from trees import change_json, copy_coco, voc_xml, write_voc

from lmclip import annotations, sources
from lmclip.annotations import read_coco_annotations, read_label_list, read_voc_ids, read_voc_objects
from lmclip.benchmarks import COCO_CLASSES, VOC_CLASSES
from lmclip.errors import LMCLIPError
from lmclip.sources import find_root, has_images, image_file, read_source

IDS = ["2008_000003", "2008_000001", "2011_000002"]
LABELS = np.eye(20, dtype=np.uint8)[[14, 3, 19]] | np.eye(20, dtype=np.uint8)[[0, 3, 5]]


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def devkit(tmp_path, data):
    folder = tmp_path / "mine" / "VOCdevkit"
    write_voc(folder, 2012, "trainval", IDS, LABELS, images=3)
    write_voc(folder, 2007, "test", ["000001", "000004"], LABELS[:2], images=1)
    return folder


def test_a_devkit_is_found_by_every_name_of_it(devkit):
    for source in (devkit, devkit.parent, devkit / "VOC2012", devkit / "VOC2007"):
        assert find_root("voc", str(source)) == devkit
    with pytest.raises(LMCLIPError, match="holds no VOC2012/ or VOC2007/.*lmclip check voc"):
        find_root("voc", str(devkit / "VOC2012" / "Annotations"))


@pytest.mark.parametrize("place", ["voc/VOCdevkit", "VOCdevkit", "."])
def test_a_devkit_in_the_data_folder_needs_no_name(place, devkit, data):
    assert find_root("voc") is None
    (data / place).parent.mkdir(parents=True, exist_ok=True)
    (data / place).symlink_to(devkit) if place != "." else devkit.rename(data)
    assert find_root("voc").resolve() == (data / place).resolve()


def test_a_coco_folder_is_found_by_every_name_of_it(reference, data):
    sample = reference / "coco_sample"
    for source in (sample, sample / "annotations", sample / "train2017"):
        assert find_root("coco", str(source)) == sample.resolve()
    assert find_root("coco") is None
    data.mkdir()
    (data / "coco").symlink_to(sample)
    assert find_root("coco") == data / "coco"


def test_voc_rows_keep_the_order_of_the_list_and_count_difficult_objects(devkit):
    found = read_source("voc", devkit, 0)
    assert [path.stem for path in found.files] == IDS
    assert (found.labels == LABELS).all()  # trees.write_voc marks every third object difficult
    assert "<difficult>1</difficult>" in (devkit / "VOC2012/Annotations/2008_000003.xml").read_text()
    assert found.files[0] == devkit / "VOC2012/JPEGImages/2008_000003.jpg" and found.files[0].is_file()


def test_body_parts_are_no_classes(tmp_path):
    (tmp_path / "a.xml").write_text(voc_xml("a", [14]))
    assert "<name>head</name>" in (tmp_path / "a.xml").read_text()
    assert set(read_voc_objects(tmp_path / "a.xml", VOC_CLASSES)) == {"person"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("<annotation><object><name>unicorn</name></object></annotation>", "unknown class 'unicorn'"),
        ("<annotation><object></object></annotation>", "unknown class ''"),
        ("<annotation><object>", "can't be read as a VOC annotation"),
        ("", "can't be read as a VOC annotation"),
        ("\x00\x01", "can't be read as a VOC annotation"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "can't be read as a VOC annotation"),
        ("<html></html>", "opens with <html>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation/>', "defines XML entities"),
        ("<annotation>" + " " * annotations.XML_BYTES + "</annotation>", "more than 4 MB"),
        (None, "no annotation at"),
    ],
)
def test_hostile_xml_is_named(text, message, devkit):
    path = devkit / "VOC2012/Annotations/2008_000001.xml"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(LMCLIPError, match=message) as error:
        read_source("voc", devkit, 0)
    assert "2008_000001.xml" in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "../../etc/passwd\n", "a/b\n", "2008_000001\n2008_000001\n", "\\\n"])
def test_hostile_id_lists_are_named(text, tmp_path):
    (tmp_path / "trainval.txt").write_text(text)
    with pytest.raises(LMCLIPError, match=r"trainval\.txt"):
        read_voc_ids(tmp_path / "trainval.txt")


def test_a_list_that_can_not_be_decoded_is_named(tmp_path):
    (tmp_path / "trainval.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(LMCLIPError, match=r"trainval\.txt can't be read"):
        read_voc_ids(tmp_path / "trainval.txt")


def test_labels_are_kept_and_read_again_when_a_file_changes(devkit, data, monkeypatch):
    first = read_source("voc", devkit, 0)
    (kept,) = (data / "cache").glob("labels-*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(sources, "read_voc_objects", lambda *_: pytest.fail("read, though nothing had changed"))
        assert (read_source("voc", devkit, 0).labels == first.labels).all()
    for damage in (b"", b"no zip", kept.read_bytes()[:100]):
        kept.write_bytes(damage)
        assert (read_source("voc", devkit, 0).labels == first.labels).all()
    (devkit / "VOC2012/Annotations/2008_000001.xml").write_text(voc_xml("2008_000001", [7]))
    assert np.flatnonzero(read_source("voc", devkit, 0).labels[1]).tolist() == [7]


def test_a_kept_file_with_hostile_names_or_labels_is_not_believed(devkit, data):
    read_source("voc", devkit, 0)
    (kept,) = (data / "cache").glob("labels-*.npz")
    for names, labels in ((["../x.jpg"] * 3, LABELS), (IDS, LABELS * 7), (IDS, LABELS[:, :5]), (IDS[:2], LABELS)):
        np.savez(kept.open("wb"), names=np.array(names), labels=labels)
        assert (read_source("voc", devkit, 0).labels == LABELS).all()


def test_a_cache_that_can_not_be_written_is_no_error(devkit, data):
    data.mkdir()
    (data / "cache").write_text("a file where the folder should be")
    assert len(read_source("voc", devkit, 0).files) == 3


def test_no_annotations_are_none_rather_than_an_error(devkit):
    assert read_source("coco", devkit, 0) is None
    (devkit / "VOC2007/ImageSets/Main/test.txt").unlink()
    assert read_source("voc", devkit, 1) is None


def test_images_are_there_when_both_splits_have_some(devkit):
    assert has_images("voc", str(devkit)) and has_images("glyph") and not has_images("voc")
    (devkit / "VOC2007/JPEGImages/000001.jpg").unlink()
    assert not has_images("voc", str(devkit))


@pytest.mark.parametrize(
    "name, listed, split, expected",
    [
        ("voc", "VOCdevkit/VOC2012/JPEGImages/2008_000023.jpg", 0, "VOC2012/JPEGImages/2008_000023.jpg"),
        ("voc", "JPEGImages/2008_000023.jpg", 0, "VOC2012/JPEGImages/2008_000023.jpg"),
        ("voc", "000001.jpg", 1, "VOC2007/JPEGImages/000001.jpg"),
        ("coco", "train2017/000000554625.jpg", 0, "train2017/000000554625.jpg"),
        ("coco", "val2017/000000554625.jpg", 0, "val2017/000000554625.jpg"),
        ("coco", "000000554625.jpg", 1, "val2017/000000554625.jpg"),
    ],
)
def test_listed_images_are_mapped_onto_the_folder_that_was_found(name, listed, split, expected):
    assert image_file(name, Path("root"), listed, split) == Path("root") / expected


def test_a_listed_image_without_a_name_is_refused():
    for listed in ("train2017/", "..", "train2017/..", "../../etc/passwd", "train2017/../x.jpg", "train2017/x.png"):
        with pytest.raises(LMCLIPError, match="no image file"):
            image_file("coco", Path("root"), listed, 0)


def test_real_coco_annotations_are_read(reference):
    images, labels, names = read_coco_annotations(reference / "coco_sample/annotations/instances_val2017.json")
    assert list(names) == list(COCO_CLASSES) and labels.shape == (len(images), 80)
    listed = (reference / "coco_mlt_test.txt").read_text().splitlines()
    official = {line.split()[0].split("/")[1]: {int(i) for i in line.split()[1:]} for line in listed}
    for image, row in zip(images, labels, strict=True):
        assert set(np.flatnonzero(row)) == official[image["file_name"]]


def test_coco_sample_has_the_labels_of_the_official_lists_where_they_overlap(reference, data):
    for split, which, overlap in ((0, "train", 2), (1, "test", 80)):
        rows = read_source("coco", reference / "coco_sample", split)
        paths, labels = read_label_list(reference / f"coco_mlt_{which}.txt", COCO_CLASSES)
        official = {Path(path).name: row for path, row in zip(paths, labels, strict=True)}
        shared = [(row, official[path.name]) for path, row in zip(rows.files, rows.labels, strict=True)
                  if path.name in official]  # fmt: skip
        assert len(shared) == overlap and all((ours == theirs).all() for ours, theirs in shared)


def test_coco_images_keep_the_order_of_the_file_and_crowds_count(reference, data, tmp_path):
    root = copy_coco(reference / "coco_sample", tmp_path / "coco", images=False)
    path = root / "annotations/instances_val2017.json"

    def change(content):
        content["images"].reverse()
        for annotation in content["annotations"]:
            annotation["iscrowd"] = 1

    before = read_source("coco", root, 1)
    change_json(path, change)
    after = read_source("coco", root, 1)
    assert after.files == before.files[::-1] and (after.labels == before.labels[::-1]).all()
    assert [file.stem for file in before.files] != sorted(file.stem for file in before.files)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c["categories"].pop(), "no consistent COCO annotation file"),
        (lambda c: c["categories"][0].update(name="persona"), "not COCO's 80"),
        (lambda c: c["images"][0].update(file_name="../../x.jpg"), "no plain file name"),
        (lambda c: c["images"].append(c["images"][0]), "lists 1 images twice"),
    ],
)
def test_hostile_coco_json_is_named(change, message, reference, data, tmp_path):
    root = copy_coco(reference / "coco_sample", tmp_path / "coco", images=False)
    change_json(root / "annotations/instances_val2017.json", change)
    with pytest.raises(LMCLIPError, match=message) as error:
        read_source("coco", root, 1)
    assert "instances_val2017.json" in str(error.value)
