"""VOC-MLT and COCO-MLT: drawn again from the source annotations, or read from the official lists."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from lmclip.annotations import read_label_list
from lmclip.benchmarks import COCO_CLASSES, PUBLISHED, VOC_CLASSES
from lmclip.config import Profile
from lmclip.errors import LMCLIPError
from lmclip.longtail import LongTailBuild, balanced_subset, build_longtail, group_classes
from lmclip.paths import data_dir, display
from lmclip.sources import default_root, find_root, has_labels, image_file, missing_files, read_source
from lmclip.splits import LongTailDataset, StudyData

TRAIN, TEST = 0, 1  # places of the source splits in `sources`
VALIDATION_SEED = 20120  # fixed once, so that every machine holds out the same images


def load_mlt(profile: Profile, train_list: str = "", test_list: str = "", source: str = "") -> StudyData:
    """The splits of VOC-MLT or COCO-MLT; arguments and errors as in `datasets.load_study_data`."""
    name, root = profile.name, find_root(profile.name, source)
    require_labels(name, train_list, test_list, source)
    pool = _source(name, root, TRAIN)
    build = None if pool is None else _build(profile, pool)
    train = _list(name, root, TRAIN, train_list) if train_list or pool is None else _rebuilt(name, pool, build)
    # One order however they were found, or the same seed would draw other batches from the list than from the pool.
    train = train.subset(np.argsort(train.image_ids, kind="stable"), train.name, None)
    groups = group_classes(train.counts, profile.head_min, profile.tail_max)
    same = train.id_sha256 == PUBLISHED[name]["train sha256"]
    told = train.provenance | {"published list": "the same images" if same else "other images"}
    train = replace(train, groups=groups, provenance=told)
    test = None if test_list else _source(name, root, TEST)
    test = replace(test or _list(name, root, TEST, test_list), name=f"{name.upper()}-MLT test", groups=groups)
    if shared := set(train.files) & set(test.files):
        raise LMCLIPError(f"{len(shared)} images are in the training and in the test list, such as "
                          f"{min(shared).name}; name two lists that share none")  # fmt: skip
    validation = validation_split(profile, pool, train)
    if validation is not None and missing_files(validation.files):
        validation = None
    if profile.smoke:
        test = _first(test, profile.test_limit)
        validation = validation and _first(validation, profile.test_limit)
    return StudyData(train, test, validation, pool, build, differences(name, train, test))


def validation_split(profile: Profile, pool: LongTailDataset | None, train: LongTailDataset) -> LongTailDataset | None:
    """Images of ``pool`` that a study chooses epochs on: roughly balanced, none of ``train``'s; None without a pool.

    The same pool and training images give the same split, whether or not its images are there.
    """
    if pool is None or not profile.validation_size:
        return None
    taken = set(train.image_ids)
    unused = np.array([row for row, image in enumerate(pool.image_ids) if image not in taken], dtype=np.int64)
    size = min(profile.validation_size, len(unused))
    if not size:
        return None
    rows = unused[balanced_subset(pool.labels[unused], size, np.random.default_rng(VALIDATION_SEED))]
    return pool.subset(rows, f"{profile.name.upper()}-MLT validation", train.groups)


def require_labels(name: str, train_list: str = "", test_list: str = "", source: str = "") -> None:
    """Nothing, where every split has annotations or a list; arguments as in `datasets.load_study_data`.

    Raises:
        LMCLIPError: a split has neither.
    """
    root = find_root(name, source)
    for split, given in enumerate((train_list, test_list)):
        if not given and not has_labels(name, root, split) and not _official_list(name, split).exists():
            which = ("train", "test")[split]
            raise LMCLIPError(f"there are neither annotations nor a label list of {name.upper()}-MLT's {which} images: "
                              f"run `lmclip check {name}`, which says what to bring")  # fmt: skip


def published_facts(train: LongTailDataset, test: LongTailDataset) -> dict[str, int | str]:
    """What `benchmarks.PUBLISHED` states of a benchmark, counted in these splits."""
    counts, groups = train.counts, train.groups
    return {
        "train images": len(train), "test images": len(test), "head classes": len(groups.head),
        "medium classes": len(groups.medium), "tail classes": len(groups.tail), "smallest class": int(counts.min()),
        "largest class": int(counts.max()), "train sha256": train.id_sha256,
    }  # fmt: skip


def differences(name: str, train: LongTailDataset, test: LongTailDataset) -> tuple[str, ...]:
    """How the splits differ from what is published, one phrase each: "train images: 80, published 1909"."""
    found = published_facts(train, test)
    return tuple(f"{key}: {_short(found[key])}, published {_short(fact)}"
                 for key, fact in PUBLISHED[name].items() if found[key] != fact)  # fmt: skip


def _official_list(name: str, split: int) -> Path:
    return data_dir() / f"{name}_mlt_{('train', 'test')[split]}.txt"


def _classes(name: str) -> tuple[str, ...]:
    return tuple(VOC_CLASSES if name == "voc" else COCO_CLASSES)


def _source(name: str, root: Path | None, split: int) -> LongTailDataset | None:
    """All images of a source split, where its annotations are there."""
    rows = read_source(name, root, split)
    if rows is None:
        return None
    told = {"source": f"{rows.name} annotations", "annotations": display(rows.path)}
    return LongTailDataset(rows.name, [f.stem for f in rows.files], rows.labels, _classes(name), None, rows.files, told)


def _list(name: str, root: Path | None, split: int, given: str) -> LongTailDataset:
    """The images of a label list: the given one, else the official one in the data folder."""
    which = ("train", "test")[split]
    path = Path(given).expanduser() if given else _official_list(name, split)
    listed, labels = read_label_list(path, _classes(name))
    files = [image_file(name, root or default_root(name), image, split) for image in listed]
    if twice := next((str(f.name) for f, count in Counter(files).items() if count > 1), ""):
        raise LMCLIPError(f"{display(path)} lists {twice} more than once, in different words; keep one of its lines")
    told = {"source": "label list", "list": display(path)}
    return LongTailDataset(
        f"{name.upper()}-MLT {which}", [f.stem for f in files], labels, _classes(name), None, files, told
    )


def _build(profile: Profile, pool: LongTailDataset) -> LongTailBuild:
    try:
        return build_longtail(pool.labels, profile.max_count, profile.min_count, profile.alpha, profile.longtail_seed)
    except LMCLIPError as error:
        raise LMCLIPError(f"no long tail can be drawn from {pool.provenance['annotations']}: {error}") from error


def _rebuilt(name: str, pool: LongTailDataset, build: LongTailBuild) -> LongTailDataset:
    train = pool.subset(build.indices, f"{name.upper()}-MLT train", None)
    origin = pool.name.rsplit(maxsplit=1)[0] if name == "voc" else pool.name
    return replace(train, provenance=pool.provenance | {"source": f"rebuilt from {origin} annotations"})


def _first(split: LongTailDataset, limit: int) -> LongTailDataset:
    """The first images of a split for a smoke run (all when ``limit`` is 0), in the groups of the whole split."""
    return split.subset(np.arange(len(split))[: limit or None], split.name, split.groups)


def _short(fact: int | str) -> str:
    return f"{fact[:8]}…" if isinstance(fact, str) else str(fact)
