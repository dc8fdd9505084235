"""Finds and reads the folders that VOC and COCO come in, wherever they lie; nothing is copied.

A devkit is the folder that holds ``VOC2012/`` and ``VOC2007/``; a COCO folder holds ``annotations/``,
``train2017/`` and ``val2017/``. Either may be named by ``source``, or lie in the data folder.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lmclip.annotations import IMAGE_NAME, read_coco_annotations, read_voc_ids, read_voc_objects
from lmclip.benchmarks import COCO_CLASSES, VOC_CLASSES
from lmclip.errors import LMCLIPError
from lmclip.paths import atomic_write, data_dir, display

# (folder of the training images, folder of the test images) below the folder that was found
IMAGE_FOLDERS = {"voc": ("VOC2012/JPEGImages", "VOC2007/JPEGImages"), "coco": ("train2017", "val2017")}
# What the labels are read from, likewise.
LABEL_FILES = {
    "voc": ("VOC2012/ImageSets/Main/trainval.txt", "VOC2007/ImageSets/Main/test.txt"),
    "coco": ("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
}
SPLIT_NAMES = {"voc": ("VOC2012 trainval", "VOC2007 test"), "coco": ("COCO train2017", "COCO val2017")}
_WANTED = {"voc": "VOC2012/ or VOC2007/", "coco": "annotations/, train2017/ or val2017/"}


@dataclass(frozen=True)
class SourceRows:
    """The labels of one source split: N image paths, whether or not they exist, and labels (N, C) uint8."""

    name: str
    files: list[Path]
    labels: np.ndarray
    path: Path  # what they were read from


def default_root(profile_name: str) -> Path:
    """Where `lmclip download` puts a benchmark: the folder that holds its splits, in the data folder."""
    return data_dir() / ("voc/VOCdevkit" if profile_name == "voc" else "coco")


def find_root(profile_name: str, source: str = "") -> Path | None:
    """The folder that holds the benchmark's splits; None when the data folder has none.

    Args:
        profile_name: "voc" or "coco".
        source: the folder itself, the one around it or a split in it; empty: the data folder.

    Raises:
        LMCLIPError: ``source`` was given and holds nothing of the kind.
    """
    if not source:
        return look_in(profile_name, data_dir() / profile_name) or look_in(profile_name, data_dir())
    found = look_in(profile_name, Path(source).expanduser().resolve())
    if found is None:
        raise LMCLIPError(f"source {display(Path(source).expanduser())} holds no {_WANTED[profile_name]}: name the "
                          f"folder that does, or leave source empty and run `lmclip check {profile_name}`")  # fmt: skip
    return found


def look_in(profile_name: str, base: Path) -> Path | None:
    """The folder that holds the benchmark's splits: ``base``, the one of the usual name in it, or the one around it."""
    parts = ("VOC2012", "VOC2007") if profile_name == "voc" else ("annotations", "train2017", "val2017")
    candidates = [base, base / ("VOCdevkit" if profile_name == "voc" else "coco")]
    if base.name in parts:  # a split was named: its neighbours are meant too
        candidates.append(base.parent)
    return next((folder for folder in candidates if any(_is_split(folder / part) for part in parts)), None)


def missing_files(files: Iterable[Path]) -> list[Path]:
    """Those of ``files`` that do not exist, told from one listing per folder: thousands take no longer than one."""
    files = list(files)
    there = {folder: _names(folder) for folder in {path.parent for path in files}}
    return [path for path in files if path.name not in there[path.parent]]


def has_images(profile_name: str, source: str = "") -> bool:
    """Whether training and test images are there (glyph renders its own); ``source`` as in `find_root`."""
    if profile_name not in IMAGE_FOLDERS:
        return True
    root = find_root(profile_name, source)
    return root is not None and all(
        any(name.endswith(".jpg") for name in _names(root / folder)) for folder in IMAGE_FOLDERS[profile_name]
    )


def image_file(profile_name: str, root: Path, listed: str, split: int) -> Path:
    """The path below ``root`` of an image that a label list names.

    Only the list's file name and split folder are taken, so that no list can point outside. A list that leaves the
    folder out is understood too: VOC2012's ids carry their year, VOC2007's don't, COCO's are told by ``split``
    (0 training, 1 test).
    """
    *folders, name = listed.split("/")
    if not re.fullmatch(IMAGE_NAME, name) or not name.endswith(".jpg") or ".." in folders:
        raise LMCLIPError(f"{listed!r} in a label list of {profile_name} is no image file; expected a path such as "
                          f"{IMAGE_FOLDERS[profile_name][split]}/NAME.jpg")  # fmt: skip
    known = {folder.split("/")[0]: folder for folder in IMAGE_FOLDERS[profile_name]}
    named = [known[folder] for folder in folders if folder in known]
    if profile_name == "voc" and not named:
        named = [IMAGE_FOLDERS["voc"][0 if re.match(r"\d{4}_", name) else 1]]
    return root / (named[-1] if named else IMAGE_FOLDERS[profile_name][split]) / name


def has_labels(profile_name: str, root: Path | None, split: int) -> bool:
    """Whether the annotations of a split (0 training, 1 test) are below ``root``."""
    if root is None or not (root / LABEL_FILES[profile_name][split]).is_file():
        return False
    return profile_name == "coco" or _annotations(root, split).is_dir()


def read_source(profile_name: str, root: Path, split: int) -> SourceRows | None:
    """Labels of a split (0 training, 1 test) from its annotations, in their order; None where they are not there.

    VOC: an image has a label when an object of that class is in its XML, one marked ``difficult`` too. COCO: when an
    annotation names the class, a crowd too. What was read is kept in ``cache/`` of the data folder.

    Raises:
        LMCLIPError: an annotation is missing, unreadable or inconsistent (it is named).
    """
    if not has_labels(profile_name, root, split):
        return None
    path = root / LABEL_FILES[profile_name][split]
    if profile_name == "voc":
        ids = read_voc_ids(path)
        files = [_annotations(root, split) / f"{name}.xml" for name in ids]
        state = [*ids, *_state(files[0].parent)]
        names, labels = _cached(path, state, VOC_CLASSES, lambda: _read_voc(ids, files))
        names = [f"{name}.jpg" for name in names]
    else:
        names, labels = _cached(path, [], COCO_CLASSES, lambda: _read_coco(path))
    folder = root / IMAGE_FOLDERS[profile_name][split]
    return SourceRows(SPLIT_NAMES[profile_name][split], [folder / name for name in names], labels, path)


# ── finding ─────────────────────────────────────────────────────────────────────────────────────


def _is_split(folder: Path) -> bool:
    if folder.name == "annotations":
        return any((folder / Path(name).name).is_file() for name in LABEL_FILES["coco"])
    return folder.is_dir()


def _annotations(root: Path, split: int) -> Path:
    return root / IMAGE_FOLDERS["voc"][split].split("/")[0] / "Annotations"


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:  # not there, or not for us to read
        return set()


# ── reading, once ───────────────────────────────────────────────────────────────────────────────


def _state(folder: Path) -> list[str]:
    """Names, sizes and times of change of the files in a folder: what tells that one of them is another."""
    try:
        return sorted(f"{e.name} {e.stat().st_size} {e.stat().st_mtime_ns}" for e in os.scandir(folder))
    except OSError as error:
        raise LMCLIPError(f"{display(folder)} can't be listed ({error.strerror}); make it readable") from error


def _read_voc(ids: list[str], files: list[Path]) -> tuple[list[str], np.ndarray]:
    labels = np.zeros((len(ids), len(VOC_CLASSES)), dtype=np.uint8)
    title = f"reading {files[0].parent.parent.name} annotations"
    for row, path in enumerate(tqdm(files, desc=title, unit="file", mininterval=1, delay=1, ascii=True)):
        labels[row, [VOC_CLASSES.index(name) for name in read_voc_objects(path, VOC_CLASSES)]] = 1
    return ids, labels


def _read_coco(path: Path) -> tuple[list[str], np.ndarray]:
    images, labels, names = read_coco_annotations(path)
    if list(names) != list(COCO_CLASSES):
        raise LMCLIPError(f"{display(path)} has {len(names)} categories that are not COCO's 80 in their order; "
                          "bring the official instances file")  # fmt: skip
    return [image["file_name"] for image in images], labels


def _cached(
    path: Path, more: Iterable[str], classes: list[str], read: Callable[[], tuple[list[str], np.ndarray]]
) -> tuple[list[str], np.ndarray]:
    """``read()``, or what an earlier call with the same file (name, size, time of change) and ``more`` gave."""
    status = path.stat()
    key = "\n".join([str(path.resolve()), f"{status.st_size} {status.st_mtime_ns}", *classes, *more])
    cache = data_dir() / "cache" / f"labels-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    kept = _read_cache(cache, len(classes))
    if kept:
        return kept
    names, labels = read()
    try:
        with atomic_write(cache) as file:
            np.savez_compressed(file, names=np.array(names), labels=labels)
    except LMCLIPError:
        pass  # a folder that can't be written costs time at the next call, no more
    return names, labels


def _read_cache(cache: Path, num_classes: int) -> tuple[list[str], np.ndarray] | None:
    try:
        with np.load(cache, allow_pickle=False) as arrays:
            names, labels = arrays["names"].tolist(), arrays["labels"]
    except Exception:  # numpy and zipfile raise many types
        return None  # none yet, or not whole: read again
    sound = labels.shape == (len(names), num_classes) and labels.dtype == np.uint8 and labels.size and labels.max() <= 1
    return (names, labels) if sound and all(re.fullmatch(IMAGE_NAME, str(name)) for name in names) else None
