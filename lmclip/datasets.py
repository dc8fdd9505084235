"""Long-tailed data sets: GlyphMLT, VOC-MLT and COCO-MLT behind one class.

Every data set walks the same path: source annotations → label matrix → long-tailed subset → groups →
captions. `load_study_data` returns the splits of a profile; where images are not there, everything that
needs labels alone still works.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmclip import glyphmlt, glyphs
from lmclip.annotations import read_coco_annotations, read_label_list
from lmclip.config import Profile
from lmclip.errors import LMCLIPError
from lmclip.longtail import balanced_subset, build_longtail, group_classes
from lmclip.mlt import load_mlt
from lmclip.paths import data_dir, display
from lmclip.splits import LongTailDataset, StudyData

__all__ = ["LongTailDataset", "StudyData", "load_study_data", "read_coco_annotations", "read_label_list"]


def load_study_data(
    profile: Profile, train_list: str = "", test_list: str = "", source: str = "", draw: bool = True
) -> StudyData:
    """Read (for the glyph profile: first render) the data of a profile.

    The training images of voc and coco are those of ``train_list``; else they are drawn again from the annotations in
    ``source``; else those of the official list ``<name>_mlt_train.txt`` in the data folder. The test images likewise.

    Args:
        profile: which data, and how much.
        train_list: a label list of the training images (voc and coco), instead of drawing them.
        test_list: likewise of the test images.
        source: the folder of an existing VOCdevkit or COCO download, read in place; empty: the data folder.
        draw: render the glyph images that are not there yet.

    Raises:
        LMCLIPError: a list, a folder or an annotation file is missing or inconsistent.
    """
    if profile.name == "glyph":
        return _load_glyph(profile, draw)
    return load_mlt(profile, train_list, test_list, source)


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
    chosen = balanced_subset(pool.dataset.labels[unused], profile.validation_size, rng)
    validation = np.sort(unused[chosen])
    splits = {
        "train": pool.dataset.subset(build.indices, "GlyphMLT train", groups),
        "validation": pool.dataset.subset(validation, "GlyphMLT validation", groups),
        "test": test.dataset.subset(np.arange(profile.test_size), "GlyphMLT test", groups),
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
