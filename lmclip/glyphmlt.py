"""GlyphMLT: a pool of glyph scenes with VOC-like co-occurrence, written as a COCO data set.

The pool is to GlyphMLT what VOC2012 trainval is to VOC-MLT: `longtail.build_longtail` draws the training
images from it. Annotations are written as COCO JSON and images as PNG, so that everything after this module
reads them exactly as it reads COCO.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from lmclip import glyphs
from lmclip.longtail import balanced_subset
from lmclip.paths import atomic_write

POOL, TEST = 1, 2  # seed streams; pre-training scenes use (bank seed, 1, i), these (SEED, stream, i)
SEED = 20250  # differs from every pre-training bank seed, so that no scene is shared

# Theme → class weights. Classes of a theme appear together, as cars and buses do.
THEMES = {
    "chess": {"pawn": 5, "horse": 2, "rook": 2, "bishop": 2, "king": 2, "queen": 1},
    "cards": {"spade": 2, "diamond": 2, "club": 2, "heart": 3, "die": 3},
    "weather": {"sun": 4, "cloud": 5, "umbrella": 3, "snowflake": 3, "snowman": 1, "lightning": 2},
    "night": {"moon": 4, "star": 6, "comet": 1, "cloud": 2},
    "desk": {"pencil": 5, "envelope": 3, "telephone": 3, "scissors": 2, "keyboard": 2, "cup": 3},
    "travel": {"airplane": 3, "anchor": 2, "flag": 3, "wheelchair": 1, "envelope": 1, "umbrella": 1},
    "workshop": {"gear": 3, "hammer": 2, "scissors": 2, "scales": 1, "atom": 1, "lightning": 1},
    "garden": {"flower": 6, "cat": 2, "sun": 3, "heart": 1, "horse": 1},
    "treasure": {"skull": 2, "swords": 2, "anchor": 1, "flag": 2, "die": 1},
    "party": {"note": 5, "cup": 3, "heart": 3, "star": 3, "cat": 1},
}
THEME_WEIGHTS = (3, 2, 4, 3, 4, 2, 2, 4, 1, 3)
EVERYWHERE = {"hand": 0.32, "star": 0.08, "sun": 0.06}  # the part that "person" plays in VOC
OBJECTS = {1: 0.38, 2: 0.32, 3: 0.18, 4: 0.08, 5: 0.04}  # theme objects per scene → probability
TWICE = 0.1  # probability that one object is there twice


def write_annotations(path: Path, size: int, stream: int) -> None:
    """Draw ``size`` scenes' contents and places, and write them as COCO annotations (no pixels yet)."""
    rng = np.random.default_rng([SEED, stream])
    contents = [draw_contents(rng) for _ in range(size)]
    if stream == TEST:
        # Classes of the test set are roughly balanced, like those of VOC2007 test after "person".
        pool = [draw_contents(rng) for _ in range(10 * size)]
        contents = [pool[i] for i in balanced_subset(_label_matrix(pool), size, rng)]
    images, annotations = [], []
    for number, names in enumerate(tqdm(contents, desc=f"placing {path.stem}", unit="scene", mininterval=1)):
        images.append({"id": number, "file_name": f"{path.stem}_{number:06d}.png", "width": glyphs.SIZE,
                       "height": glyphs.SIZE})  # fmt: skip
        for placement in glyphs.layout(names, glyphs.DOWNSTREAM, _rng(stream, number)):
            box = [round(v, 1) for v in placement.box]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "bbox": box,
                                "category_id": glyphs.CLASS_NAMES.index(placement.name) + 1,
                                "area": round(box[2] * box[3], 1)})  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(glyphs.CLASS_NAMES)]
    info = {"description": "GlyphMLT source annotations", "seed": SEED, "stream": stream}
    text = json.dumps({"info": info, "images": images, "annotations": annotations, "categories": categories})
    with atomic_write(path) as file:
        file.write(text.encode())


def draw_images(folder: Path, scenes: Iterable[tuple[str, list[str]]], stream: int) -> None:
    """Draw the scenes that are not there yet as PNG files.

    Args:
        folder: where the images go.
        scenes: (file name, object names in annotation order); the file's number is the scene's.
        stream: ``POOL`` or ``TEST``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    missing = [(name, names) for name, names in scenes if not (folder / name).exists()]
    for file_name, names in tqdm(missing, desc="drawing scenes", unit="image", mininterval=1, disable=not missing):
        rng = _rng(stream, int(Path(file_name).stem.split("_")[-1]))
        image = glyphs.render(glyphs.layout(names, glyphs.DOWNSTREAM, rng), glyphs.DOWNSTREAM, rng)
        with atomic_write(folder / file_name) as file:
            Image.fromarray(image).save(file, format="PNG", compress_level=1)


def draw_contents(rng: np.random.Generator) -> list[str]:
    """Object names of one scene: a theme's classes, the everywhere classes, now and then a second copy."""
    theme = THEMES[list(THEMES)[rng.choice(len(THEMES), p=_share(THEME_WEIGHTS))]]
    count = min(rng.choice(list(OBJECTS), p=list(OBJECTS.values())), len(theme))
    names = [str(name) for name in rng.choice(list(theme), count, replace=False, p=_share(tuple(theme.values())))]
    names += [name for name, probability in EVERYWHERE.items() if rng.random() < probability and name not in names]
    if rng.random() < TWICE:
        names.append(names[rng.integers(len(names))])
    return names


def _label_matrix(contents: list[list[str]]) -> np.ndarray:
    labels = np.zeros((len(contents), len(glyphs.CLASS_NAMES)), dtype=np.uint8)
    for row, names in enumerate(contents):
        labels[row, [glyphs.CLASS_NAMES.index(name) for name in names]] = 1
    return labels


def _share(weights: tuple[float, ...]) -> np.ndarray:
    return np.array(weights) / sum(weights)


def _rng(stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng([SEED, stream, 1, number])
