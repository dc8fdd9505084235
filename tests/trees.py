"""Writes folders in the form that VOC and COCO come in, for tests."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from lmclip.benchmarks import VOC_CLASSES

_OBJECT = ("<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>"
           "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>{part}</object>")  # fmt: skip
_PART = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"


def write_voc(folder: Path, year: int, image_set: str, ids: list[str], labels: np.ndarray, images: int = 0) -> Path:
    """A split of a VOCdevkit: ImageSets, Annotations, and JPEGs for the first ``images`` of the ids.

    Every third object is ``difficult``, every fourth image shows its first object twice, people have heads.
    """
    split = folder / f"VOC{year}"
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (split / name).mkdir(parents=True, exist_ok=True)
    (split / f"ImageSets/Main/{image_set}.txt").write_text("".join(f"{name}\n" for name in ids))
    for row, (name, present) in enumerate(zip(ids, labels, strict=True)):
        (split / f"Annotations/{name}.xml").write_text(voc_xml(name, np.flatnonzero(present).tolist(), row))
    for row, name in enumerate(ids[:images]):
        write_jpeg(split / f"JPEGImages/{name}.jpg", 500, 375, row)
    return split


def voc_xml(name: str, classes: list[int], row: int = 0) -> str:
    names = [VOC_CLASSES[c] for c in classes]
    names += names[:1] * (row % 4 == 0)
    objects = "".join(_OBJECT.format(name=n, difficult=int((row + i) % 3 == 0), part=_PART * (n == "person"))
                      for i, n in enumerate(names))  # fmt: skip
    size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
    return f"<annotation><folder>VOC</folder><filename>{name}.jpg</filename>{size}{objects}</annotation>"


def write_jpeg(path: Path, width: int, height: int, seed: int) -> None:
    """A smooth picture of that size, a different one for each seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)


def copy_coco(sample: Path, folder: Path, images: bool = True) -> Path:
    """A COCO folder that can be written to, like the read-only sample; returns it."""
    for name in ("annotations", *(("train2017", "val2017") if images else ())):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in (sample / name).iterdir():
            shutil.copyfile(file, folder / name / file.name)
    return folder


def change_json(path: Path, change) -> None:
    """Read a JSON file, let ``change`` alter it, write it back."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
