"""Long-tailed data sets: GlyphMLT, VOC-MLT and COCO-MLT behind one class.

Every data set walks the same path: source annotations → label matrix → long-tailed subset → groups →
captions. `load_study_data` returns the splits of a profile; where images are not there, everything that
needs labels alone still works.
"""

import hashlib
import os
import re
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stdout as _stdout
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools.coco import COCO

from lmclip import glyphmlt, glyphs
from lmclip.benchmarks import COCO_CLASSES, VOC_CLASSES
from lmclip.config import Profile
from lmclip.errors import LMCLIPError
from lmclip.longtail import ClassGroups, LongTailBuild, build_longtail, group_classes, list_sha256
from lmclip.paths import data_dir, display


@dataclass(frozen=True)
class LongTailDataset:
    """Labels of N images over C classes, and the images where they are there.

    Attributes:
        name: data set and split, as printed.
        image_ids: N file stems.
        labels: (N, C) uint8, 0 or 1.
        class_names: C names as the captions use them.
        groups: head, medium and tail classes by *training* counts; None for a source pool.
        files: N image paths, or None.
        provenance: what the labels were read from.
    """

    name: str
    image_ids: list[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    groups: ClassGroups | None = None
    files: list[Path] | None = None
    provenance: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> np.ndarray:
        """(C,) images per class."""
        return self.labels.sum(0, dtype=np.int64)

    @property
    def has_images(self) -> bool:
        """Whether the images can be read (the first one is looked for)."""
        return bool(self.files) and self.files[0].exists()

    @cached_property
    def captions(self) -> list[str]:
        """N captions, "a photo of a " and all label names joined by ", " (release line 1)."""
        return ["a photo of a " + ", ".join(self.class_names[c] for c in np.flatnonzero(row)) for row in self.labels]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over ids, labels and class names: equal fingerprints mean equal data (pixels aside)."""
        text = "\n".join([*self.image_ids, *self.class_names]).encode()
        return hashlib.sha256(text + self.labels.astype(np.uint8).tobytes()).hexdigest()

    @property
    def id_sha256(self) -> str:
        """sha256 of the sorted, newline-joined image ids, by which the official lists are known."""
        return list_sha256(self.image_ids)

    def images(self, indices: Sequence[int] | None = None, size: int | None = None) -> np.ndarray:
        """Decode images: (n, size, size, 3) uint8, squashed to a square bilinearly as the release does.

        Args:
            indices: rows to read; all when None.
            size: pixels per side; None keeps the files' own size, which must then be one and the same.

        Raises:
            LMCLIPError: there are no images, or one is missing or corrupt (it is named).
        """
        if self.files is None:
            raise LMCLIPError(f"{self.name} has labels but no images here; see data/README.md for where to put them")
        rows = range(len(self)) if indices is None else indices
        return np.stack([_read_image(self.files[i], size) for i in rows])


@dataclass(frozen=True)
class StudyData:
    """The splits of one profile. ``pool`` and ``build`` are None where only the lists are known."""

    train: LongTailDataset
    test: LongTailDataset
    validation: LongTailDataset | None = None
    pool: LongTailDataset | None = None
    build: LongTailBuild | None = None


def load_study_data(profile: Profile, train_list: str = "", test_list: str = "", draw: bool = True) -> StudyData:
    """Read (for the glyph profile: first render) the data of a profile.

    Args:
        profile: which data, and how much.
        train_list: label list of the training images (voc and coco); empty: ``data/<name>_mlt_train.txt``.
        test_list: likewise for the test images.
        draw: render the glyph images that are not there yet.

    Raises:
        LMCLIPError: a list or annotation file is missing or inconsistent.
    """
    if profile.name == "glyph":
        return _load_glyph(profile, draw)
    return _load_lists(profile, train_list, test_list)


def read_label_list(path: Path, class_names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Read the benchmarks' text format: per line an image path and the indices of its classes.

    Returns:
        (image paths, labels (N, C) uint8). A line without indices is an image without labels.

    Raises:
        LMCLIPError: missing, unreadable or empty file, an index that is no integer or outside the classes, an
            image listed twice.
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise LMCLIPError(f"no label list at {display(path)}; put the official list there or name one with "
                          "train_list and test_list (data/README.md says where it comes from)") from None  # fmt: skip
    except (OSError, UnicodeDecodeError) as error:
        raise LMCLIPError(f"{display(path)} can't be read as a text list ({error})") from error
    if not lines:
        raise LMCLIPError(f"{display(path)} is empty; expected one image path and its class indices per line")
    labels = np.zeros((len(lines), len(class_names)), dtype=np.uint8)
    first_line = {}
    for row, (name, *indices) in enumerate(lines):
        if name in first_line:
            raise LMCLIPError(f"{display(path)}, line {row + 1}: {name} was listed before, in line {first_line[name]}")
        first_line[name] = row + 1
        for index in indices:
            if not index.isascii() or not index.isdigit() or int(index) >= len(class_names):
                raise LMCLIPError(f"{display(path)}, line {row + 1}: {index!r} is no class index; "
                                  f"expected 0 to {len(class_names) - 1}")  # fmt: skip
            labels[row, int(index)] = 1
    return [name for name, *_ in lines], labels


def read_coco_annotations(path: Path) -> tuple[list[dict], np.ndarray, tuple[str, ...]]:
    """Read COCO object annotations with pycocotools: (image entries, labels (N, C) uint8, class names).

    Classes are the categories in the order of their ids, made contiguous. An image entry gains ``"names"``,
    the class names of its objects in annotation order. Images without objects keep a row of zeros.

    Raises:
        LMCLIPError: the file is missing, no JSON, no COCO annotations, or inconsistent.
    """
    try:
        with open(os.devnull, "w") as silence, _stdout(silence):
            coco = COCO(str(path))
        categories = sorted(coco.cats)
        names = tuple(coco.cats[c]["name"] for c in categories)
        images = [dict(coco.imgs[i]) for i in sorted(coco.imgs)]
        labels = np.zeros((len(images), len(names)), dtype=np.uint8)
        for row, image in enumerate(images):
            columns = [categories.index(a["category_id"]) for a in coco.imgToAnns[image["id"]]]
            labels[row, columns] = 1
            image["names"] = [names[c] for c in columns]
            image["file_name"] = str(image["file_name"])
        strays = coco.imgToAnns.keys() - coco.imgs.keys()
    except FileNotFoundError:
        raise LMCLIPError(f"no annotations at {display(path)}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise LMCLIPError(f"{display(path)} is no consistent COCO annotation file ({type(error).__name__}: {error}); "
                          "delete it if it was rendered here, or download it again") from error  # fmt: skip
    if strays or not images:
        raise LMCLIPError(f"{display(path)} has annotations of images that it does not list" if strays
                          else f"{display(path)} lists no images")  # fmt: skip
    return images, labels, names


# ── one loader per kind of source ───────────────────────────────────────────────────────────────


def _load_glyph(profile: Profile, draw: bool) -> StudyData:
    folder = data_dir() / "glyph" / f"pool{profile.pool_size}-test{profile.test_size}-seed{glyphmlt.SEED}"
    pool = _glyph_source(folder, "pool", profile.pool_size, glyphmlt.POOL)
    test = _glyph_source(folder, "test", profile.test_size, glyphmlt.TEST)
    build = build_longtail(
        pool.dataset.labels, profile.max_count, profile.min_count, profile.alpha, profile.longtail_seed
    )
    groups = group_classes(build.counts, profile.head_min, profile.tail_max)
    unused = np.setdiff1d(np.arange(profile.pool_size), build.indices)
    rng = np.random.default_rng([glyphmlt.SEED, 9])
    chosen = glyphmlt.balanced_subset(pool.dataset.labels[unused], profile.validation_size, rng)
    validation = np.sort(unused[chosen])
    splits = {
        "train": pool.subset("train", build.indices, groups),
        "validation": pool.subset("validation", validation, groups),
        "test": test.subset("test", np.arange(profile.test_size), groups),
    }
    if draw:
        pool.draw(np.concatenate([build.indices, validation]))
        test.draw(np.arange(profile.test_size))
    return StudyData(**splits, pool=pool.dataset, build=build)


@dataclass(frozen=True)
class _GlyphSource:
    """Annotations of one stream of scenes, and the files that its images go to."""

    dataset: LongTailDataset
    contents: list[list[str]]
    stream: int

    def subset(self, split: str, rows: np.ndarray, groups: ClassGroups) -> LongTailDataset:
        d = self.dataset
        return LongTailDataset(f"GlyphMLT {split}", [d.image_ids[i] for i in rows], d.labels[rows], d.class_names,
                               groups, [d.files[i] for i in rows], d.provenance)  # fmt: skip

    def draw(self, rows: np.ndarray) -> None:
        scenes = [(self.dataset.files[i].name, self.contents[i]) for i in rows]
        glyphmlt.draw_images(self.dataset.files[0].parent, scenes, self.stream)


def _glyph_source(folder: Path, split: str, size: int, stream: int) -> _GlyphSource:
    path = folder / "annotations" / f"instances_{split}.json"
    if not path.exists():
        glyphmlt.write_annotations(path, size, stream)
    images, labels, names = read_coco_annotations(path)
    if len(images) != size or names != glyphs.CLASS_NAMES:
        raise LMCLIPError(f"{display(path)} does not hold the {size} scenes it should; delete it to render it again")
    if any(not re.fullmatch(rf"{path.stem}_\d{{6}}\.png", image["file_name"]) for image in images):
        raise LMCLIPError(f"{display(path)} names images that are not its own; delete it to render it again")
    files = [folder / "images" / image["file_name"] for image in images]
    provenance = {"source": f"rendered by lmclip.glyphmlt, seed {glyphmlt.SEED}", "annotations": display(path)}
    dataset = LongTailDataset(f"GlyphMLT {split}", [f.stem for f in files], labels, names, None, files, provenance)
    return _GlyphSource(dataset, [image["names"] for image in images], stream)


def _load_lists(profile: Profile, train_list: str, test_list: str) -> StudyData:
    names = tuple(VOC_CLASSES if profile.name == "voc" else COCO_CLASSES)
    title = f"{profile.name.upper()}-MLT"

    def split(which: str, given: str, groups: ClassGroups | None = None) -> LongTailDataset:
        path = Path(given).expanduser() if given else data_dir() / f"{profile.name}_mlt_{which}.txt"
        paths, labels = read_label_list(path, names)
        groups = groups or group_classes(labels.sum(0, dtype=np.int64), profile.head_min, profile.tail_max)
        files = [data_dir() / profile.name / p for p in paths]
        return LongTailDataset(f"{title} {which}", [Path(p).stem for p in paths], labels, names, groups, files,
                               {"source": "label list", "list": display(path)})  # fmt: skip

    train = split("train", train_list)
    pool = _voc_pool(names) if profile.name == "voc" else None
    build = None
    if pool is not None:
        build = build_longtail(pool.labels, profile.max_count, profile.min_count, profile.alpha, profile.longtail_seed)
    return StudyData(train, split("test", test_list, train.groups), pool=pool, build=build)


def _voc_pool(names: tuple[str, ...]) -> LongTailDataset | None:
    """The label rows of VOC2012 trainval (``ids``, ``labels``), where that matrix is there."""
    path = data_dir() / "voc2012_trainval_labels.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, labels = [str(i) for i in arrays["ids"]], arrays["labels"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise LMCLIPError(f"{display(path)} is no label matrix with ids and labels ({error}); remove it or replace "
                          "it") from error  # fmt: skip
    if labels.shape != (len(ids), len(names)):
        raise LMCLIPError(f"{display(path)}: labels have shape {labels.shape}, expected {(len(ids), len(names))}")
    return LongTailDataset("VOC2012 trainval", ids, labels, names, provenance={"source": "label matrix",
                                                                               "matrix": display(path)})  # fmt: skip


def _read_image(path: Path, size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as image:
            image = image.convert("RGB")
            return np.asarray(image if size is None else image.resize((size, size), Image.Resampling.BILINEAR))
    except FileNotFoundError:
        raise LMCLIPError(f"no image at {display(path)}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise LMCLIPError(f"{display(path)} is no readable image ({error}); delete it if it was rendered here, or "
                          "download it again") from error  # fmt: skip
