"""Fetching VOC and COCO from a server on this machine: whole or not at all, never twice, one sentence on failure."""

import functools
import hashlib
import http.server
import json
import shutil
import socket
import tarfile
import threading
import zipfile

import numpy as np
import pytest
from torchvision.datasets import voc
from trees import copy_coco, write_voc

from lmclip import archives, download
from lmclip.archives import unpack_zip
from lmclip.cli import main
from lmclip.errors import LMCLIPError
from lmclip.paths import data_dir

EYE = np.eye(20, dtype=np.uint8)
TRAIN_IDS = [f"2008_{i:06}" for i in range(30)]


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, counts what is asked for, and breaks off in the middle of the files that it is told to."""

    asked: list[str] = []
    broken: set[str] = set()

    def do_GET(self):
        name = self.path.lstrip("/")
        self.asked.append(name)
        if name not in self.broken:
            return super().do_GET()
        content = (self.served / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])

    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The server's folder; ``Server.asked`` and ``Server.broken`` start empty."""
    folder = tmp_path / "web"
    folder.mkdir()
    monkeypatch.setattr(Server, "asked", [])
    monkeypatch.setattr(Server, "broken", set())
    monkeypatch.setattr(Server, "served", folder, raising=False)
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "data"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Server, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setattr(download, "COCO_URL", f"http://127.0.0.1:{server.server_port}/")
        yield folder
        server.shutdown()


def zip_folder(archive, folder, *names):
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as opened:
        for name in names:
            for path in sorted((folder / name).iterdir()):
                opened.write(path, f"{name}/{path.name}")


@pytest.fixture
def coco(web, reference):
    """COCO's server, with the sample for all of COCO."""
    sample = reference / "coco_sample"
    zip_folder(web / "annotations/annotations_trainval2017.zip", sample, "annotations")
    zip_folder(web / "zips/val2017.zip", sample, "val2017")
    zip_folder(web / "zips/train2017.zip", sample, "train2017")
    shutil.copytree(sample / "train2017", web / "train2017")
    return web


@pytest.fixture
def tars(web, monkeypatch):
    """VOC's two archives on the server, with their checksums where torchvision keeps them."""
    devkit = web / "made/VOCdevkit"
    labels = EYE[np.arange(30) % 20]
    splits = {"2012": write_voc(devkit, 2012, "trainval", TRAIN_IDS, labels, images=30),
              "2007-test": write_voc(devkit, 2007, "test", ["000001", "000002"], labels[:2], images=2)}  # fmt: skip
    for key, split in splits.items():
        archive = web / voc.DATASET_YEAR_DICT[key]["filename"]
        with tarfile.open(archive, "w") as opened:
            opened.add(split, f"VOCdevkit/{split.name}")
        known = {"url": download.COCO_URL + archive.name, "md5": hashlib.md5(archive.read_bytes()).hexdigest()}
        monkeypatch.setitem(voc.DATASET_YEAR_DICT, key, voc.DATASET_YEAR_DICT[key] | known)
    return web


def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}/"


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ── COCO ────────────────────────────────────────────────────────────────────────────────────────


def test_coco_is_fetched_whole_and_then_left_alone(coco, reference, tmp_path, capsys):
    data = download.download("coco")
    root = tmp_path / "data/coco"
    for name in ("annotations", "train2017", "val2017"):
        assert files_of(root / name) == files_of(reference / "coco_sample" / name)
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "fingerprints.json", "train2017", "val2017"]
    assert len(data.train) == 80 and data.train.has_images and "train images: 80, published 1909" in data.differences
    assert "zips/train2017.zip" not in Server.asked  # 18 GB that the study does not need
    assert (root / "train2017/000000008193.jpg").stat().st_mode & 0o777 == 0o644

    Server.asked.clear()
    download.download("coco")
    assert Server.asked == [] and "are in place" in capsys.readouterr().out


def test_only_missing_images_are_fetched_again(coco, tmp_path):
    download.download("coco")
    Server.asked.clear()
    gone = tmp_path / "data/coco/train2017/000000024577.jpg"
    content = gone.read_bytes()
    gone.unlink()
    download.download("coco")
    assert Server.asked == ["train2017/000000024577.jpg"] and gone.read_bytes() == content


def test_a_broken_connection_leaves_no_partial_image_and_the_rest_is_kept(coco, tmp_path, capsys, monkeypatch):
    Server.broken.add("train2017/000000196610.jpg")
    monkeypatch.setattr(download, "THREADS", 1)
    assert main(["download", "coco"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "train2017/000000196610.jpg can't be fetched" in told and "run the same command again" in told
    kept = files_of(tmp_path / "data/coco/train2017")
    assert kept and all(content == (coco / "train2017" / name).read_bytes() for name, content in kept.items())

    Server.broken.clear()
    Server.asked.clear()
    download.download("coco")
    assert len(Server.asked) == 80 - len(kept)


def test_a_page_instead_of_an_image_is_refused(coco, tmp_path):
    (coco / "train2017/000000024577.jpg").write_text("<html>please log in</html>")
    with pytest.raises(LMCLIPError, match="is no JPEG"):
        download.download("coco")
    assert not (tmp_path / "data/coco/train2017/000000024577.jpg").exists()


def test_all_fetches_the_archive_of_training_images(coco):
    download.download("coco", everything=True)
    assert Server.asked[-1] == "zips/train2017.zip" and len(Server.asked) == 3


def test_archives_that_were_brought_are_used_and_kept(coco, tmp_path, monkeypatch):
    root = tmp_path / "elsewhere"
    root.mkdir()
    for name in download.COCO_ZIPS:
        shutil.copy(coco / name, root)
    monkeypatch.setattr(download, "COCO_URL", closed_port())
    data = download.download("coco", str(root))
    assert data.train.has_images and Server.asked == []
    assert all((root / name.split("/")[1]).is_file() for name in download.COCO_ZIPS)


def test_a_coco_folder_that_is_whole_is_used_in_place(coco, reference, tmp_path):
    root = copy_coco(reference / "coco_sample", tmp_path / "mine")
    before = files_of(root)
    assert download.download("coco", str(root)).train.files[0].is_relative_to(root)
    assert Server.asked == [] and files_of(root) == before


def test_fingerprints_are_recorded_and_compared(coco, tmp_path):
    download.download("coco")
    root = tmp_path / "data/coco"
    known = json.loads((root / "fingerprints.json").read_text())
    archive = (coco / "annotations/annotations_trainval2017.zip").read_bytes()
    assert known["annotations/annotations_trainval2017.zip"] == {
        "bytes": len(archive), "sha256": hashlib.sha256(archive).hexdigest()}  # fmt: skip
    assert {"annotations/instances_train2017.json", "train2017/000000008193.jpg"} <= known.keys()

    (root / "train2017/000000008193.jpg").unlink()
    shutil.copy(coco / "train2017/000000024577.jpg", coco / "train2017/000000008193.jpg")
    with pytest.raises(LMCLIPError, match=r"000000008193\.jpg can't be fetched"):
        download.download("coco")
    assert not (root / "train2017/000000008193.jpg").exists()

    shutil.rmtree(root / "val2017")
    with zipfile.ZipFile(root / "val2017.zip", "w") as opened:
        opened.write(coco / "train2017/000000024577.jpg", "val2017/000000005001.jpg")
    with pytest.raises(LMCLIPError, match=r"zips/val2017\.zip is not the file that was first fetched"):
        download.download("coco")
    assert not (root / "val2017").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', '{"a": {"bytes": 1}}'])
def test_a_damaged_record_of_fingerprints_is_named(text, tmp_path):
    (tmp_path / "fingerprints.json").write_text(text)
    with pytest.raises(LMCLIPError, match=r"fingerprints\.json is no record"):
        archives.read_fingerprints(tmp_path)


@pytest.mark.parametrize("name", ["coco", "voc"])
def test_without_a_network_one_sentence_names_what_to_bring(name, tars, tmp_path, capsys, monkeypatch):
    address = closed_port()
    monkeypatch.setattr(download, "COCO_URL", address)
    for key in ("2012", "2007-test"):
        known = voc.DATASET_YEAR_DICT[key]
        monkeypatch.setitem(voc.DATASET_YEAR_DICT, key, known | {"url": address + known["filename"]})
    assert main(["download", name]) == 2
    (told,) = capsys.readouterr().err.strip().splitlines()
    file = {"coco": "annotations_trainval2017.zip", "voc": "VOCtrainval_11-May-2012.tar"}[name]
    assert told.startswith(f"lmclip: {address}") and f"fetch {file} on a machine with internet" in told
    assert str(data_dir() / name) in told


@pytest.mark.parametrize("name, needed", [("coco", "2.9 GB"), ("voc", "4.9 GB")])
def test_too_little_disk_is_said_before_anything_is_fetched(name, needed, coco, capsys, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert main(["download", name]) == 2
    told = capsys.readouterr().err
    assert f"needs {needed}" in told and "where 1.0 GB are free" in told and Server.asked == []


# ── VOC ─────────────────────────────────────────────────────────────────────────────────────────


def test_voc_is_fetched_whole_and_then_left_alone(tars, tmp_path, capsys):
    data = download.download("voc")
    root = tmp_path / "data/voc"
    assert data.train.has_images and len(data.test) == 2
    assert files_of(root / "VOCdevkit") == files_of(tars / "made/VOCdevkit")
    assert [path.name for path in root.iterdir()] == ["VOCdevkit"]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    Server.asked.clear()
    download.download("voc")
    assert Server.asked == [] and {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert "VOC2012: in place" in capsys.readouterr().out


def test_what_voc_lacks_is_completed_and_nothing_replaced(tars, tmp_path):
    download.download("voc")
    split = tmp_path / "data/voc/VOCdevkit/VOC2007"
    (split / "JPEGImages/000002.jpg").unlink()
    (split / "Annotations/000001.xml").write_text("<annotation/>")
    Server.asked.clear()
    download.download("voc")
    assert set(Server.asked) == {"VOCtest_06-Nov-2007.tar"}
    assert (split / "JPEGImages/000002.jpg").is_file()
    assert (split / "Annotations/000001.xml").read_text() == "<annotation/>"


def test_a_tar_that_was_brought_is_used_and_a_damaged_one_refused(tars, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    names = ("VOCtrainval_11-May-2012.tar", "VOCtest_06-Nov-2007.tar")
    for name in names:
        shutil.copy(tars / name, folder)
    download.download("voc", str(folder))
    assert Server.asked == [] and all((folder / name).is_file() for name in names)

    shutil.rmtree(folder / "VOCdevkit")
    (folder / names[0]).write_bytes(b"cut short")
    with pytest.raises(LMCLIPError, match="has not the published checksum"):
        download.download("voc", str(folder))
    assert (folder / names[0]).read_bytes() == b"cut short" and not (folder / "VOCdevkit").exists()


def test_a_damaged_download_is_refused(tars, tmp_path):
    (tars / "VOCtrainval_11-May-2012.tar").write_bytes(b"something else")
    with pytest.raises(LMCLIPError, match="VOCtrainval_11-May-2012.tar can't be fetched"):
        download.download("voc")
    assert not (tmp_path / "data/voc/VOCdevkit").exists()


# ── archives ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/evil.jpg", "a/../../evil.jpg", "a//b.jpg", "C:/evil.jpg", "..\\x.jpg"]
)
def test_a_zip_that_points_outside_is_refused_before_anything_is_unpacked(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("good.jpg", "x")
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        opened.writestr(info, "x")
    with pytest.raises(LMCLIPError, match="points outside"):
        unpack_zip(tmp_path / "a.zip", bool, tmp_path / "into")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_link_in_a_zip_is_refused(tmp_path):
    info = zipfile.ZipInfo("link.jpg")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr(info, "/etc/passwd")
    with pytest.raises(LMCLIPError, match="points outside"):
        unpack_zip(tmp_path / "a.zip", bool, tmp_path / "into")


def test_a_zip_that_would_not_fit_is_refused(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("zeros.jpg", bytes(10**6))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 0, 10**5))
    with pytest.raises(LMCLIPError, match="unpacking a.zip needs"):
        unpack_zip(tmp_path / "a.zip", bool, tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:40], lambda b: b.replace(b"image", b"imbge", 1)])
def test_a_damaged_zip_is_refused(damage, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("good.jpg", "image" * 100)
    (tmp_path / "a.zip").write_bytes(damage((tmp_path / "a.zip").read_bytes()))
    with pytest.raises(LMCLIPError, match=r"a\.zip can't be unpacked"):
        unpack_zip(tmp_path / "a.zip", bool, tmp_path / "into")


def test_a_zip_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        opened.writestr("readme.txt", "hello")
    with pytest.raises(LMCLIPError, match="holds nothing"):
        unpack_zip(tmp_path / "a.zip", lambda name: name.endswith(".jpg"), tmp_path / "into")


def test_glyphs_are_not_downloaded():
    with pytest.raises(LMCLIPError, match="glyph is rendered"):
        download.download("glyph")
