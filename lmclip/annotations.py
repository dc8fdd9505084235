"""Reads the three forms in which labels come: label lists, COCO JSON and VOC XML. Every bad file is named.

What is read was made elsewhere: a file that is too large, expands entities or names a path instead of an image is
refused, and none is trusted to be consistent.
"""

import os
import re
from collections.abc import Sequence
from contextlib import redirect_stdout as _stdout
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from pycocotools.coco import COCO

from lmclip.errors import LMCLIPError
from lmclip.paths import display

XML_BYTES = 4_000_000  # VOC's largest annotation file has under 20,000
IMAGE_NAME = r"\w[\w.-]*"  # a file name and no path, so that nothing outside the folder can be meant


def read_label_list(path: Path, class_names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Read the benchmarks' text format: per line an image path and the indices of its classes.

    Returns:
        (image paths, labels (N, C) uint8). A line without indices is an image without labels.

    Raises:
        LMCLIPError: missing, unreadable or empty file, an index that is no integer or outside the classes, an
            image listed twice.
    """
    lines = [line.split() for line in _text(path, "a text list").splitlines() if line.strip()]
    if not lines:
        raise LMCLIPError(f"{display(path)} is empty; expected one image path and its class indices per line")
    known, first_line, columns = {str(c): c for c in range(len(class_names))}, {}, []
    for row, (name, *indices) in enumerate(lines):
        if name in first_line:
            raise LMCLIPError(
                f"{display(path)}, line {row + 1}: {name[:60]} was listed before, in line {first_line[name]}"
            )
        first_line[name] = row + 1
        try:
            columns += map(known.__getitem__, indices)
        except KeyError as error:
            raise LMCLIPError(f"{display(path)}, line {row + 1}: {error.args[0][:60]!r} is no class index; "
                              f"expected 0 to {len(class_names) - 1}") from None  # fmt: skip
    labels = np.zeros((len(lines), len(class_names)), dtype=np.uint8)
    labels[np.repeat(np.arange(len(lines)), [len(line) - 1 for line in lines]), columns] = 1
    return list(first_line), labels


def read_coco_annotations(path: Path) -> tuple[list[dict], np.ndarray, tuple[str, ...]]:
    """Read COCO object annotations with pycocotools: (image entries, labels (N, C) uint8, class names).

    Images keep the order of the file, from which the official lists were drawn. Classes are the categories in the
    order of their ids, made contiguous; crowds count. An image entry gains ``"names"``, the class names of its
    objects in annotation order. Images without objects keep a row of zeros.

    Raises:
        LMCLIPError: the file is missing, no JSON, no COCO annotations, or inconsistent.
    """
    try:
        with open(os.devnull, "w") as silence, _stdout(silence):
            coco = COCO(str(path))
        names = tuple(coco.cats[c]["name"] for c in sorted(coco.cats))
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a category's name is no text")
        column = {category: place for place, category in enumerate(sorted(coco.cats))}
        images = [dict(image) for image in coco.imgs.values()]
        labels = np.zeros((len(images), len(names)), dtype=np.uint8)
        for row, image in enumerate(images):
            columns = [column[a["category_id"]] for a in coco.imgToAnns.get(image["id"], ())]
            labels[row, columns] = 1
            image["names"] = [names[c] for c in columns]
            image["file_name"] = str(image["file_name"])
        strays = coco.imgToAnns.keys() - coco.imgs.keys()
        twice = len(coco.dataset["images"]) - len(images)
    except FileNotFoundError:
        raise LMCLIPError(f"no annotations at {display(path)}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError) as error:
        raise LMCLIPError(f"{display(path)} is no consistent COCO annotation file ({type(error).__name__}: {error}); "
                          "delete it: what was rendered is made again, the rest downloaded") from error  # fmt: skip
    if strays or twice or not images:
        fault = ("has annotations of images that it does not list" if strays
                 else f"lists {twice} images twice" if twice else "lists no images")  # fmt: skip
        raise LMCLIPError(f"{display(path)} {fault}; download it again")
    odd = [image["file_name"] for image in images if not re.fullmatch(IMAGE_NAME, image["file_name"])]
    if odd:
        raise LMCLIPError(
            f"{display(path)} names an image {odd[0][:60]!r}, which is no plain file name; download it again"
        )
    return images, labels, names


def read_voc_ids(path: Path) -> list[str]:
    """The image ids of an ``ImageSets/Main`` list, in its order.

    Raises:
        LMCLIPError: missing or unreadable file, no ids, an id that is no plain name, or one that is listed twice.
    """
    ids = _text(path, "a list of image ids").split()
    odd = [name for name in ids if not re.fullmatch(IMAGE_NAME, name)]
    if odd or not ids:
        raise LMCLIPError(f"{display(path)} holds {odd[0][:60]!r}, which is no image id" if odd
                          else f"{display(path)} is empty; expected one image id per line")  # fmt: skip
    if len(set(ids)) < len(ids):
        raise LMCLIPError(f"{display(path)} lists {len(ids) - len(set(ids))} images twice; extract it again")
    return ids


def read_voc_objects(path: Path, class_names: Sequence[str]) -> list[str]:
    """Class names of the objects in one VOC annotation file, in its order, those marked ``difficult`` among them.

    Raises:
        LMCLIPError: the file is missing, too large or no VOC annotation, or names an unknown class.
    """
    try:
        if path.stat().st_size > XML_BYTES:
            raise LMCLIPError(f"{display(path)} has more than {XML_BYTES // 10**6} MB: no VOC annotation is so large")
        content = path.read_bytes()
        if b"<!ENTITY" in content:
            raise LMCLIPError(f"{display(path)} defines XML entities, which no VOC annotation does; extract it again")
        tree = ElementTree.fromstring(content)
    except FileNotFoundError:
        raise LMCLIPError(f"no annotation at {display(path)}, though the image list names it; extract it again"
                          ) from None  # fmt: skip
    except (OSError, ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, LMCLIPError):
            raise
        raise LMCLIPError(f"{display(path)} can't be read as a VOC annotation ({error}); extract it again") from error
    if tree.tag != "annotation":
        raise LMCLIPError(f"{display(path)} is no VOC annotation: it opens with <{tree.tag[:60]}>, not <annotation>")
    # Body parts have names too, one level below the objects'.
    names = [(found.findtext("name") or "").strip() for found in tree.findall("object")]
    unknown = [name for name in names if name not in class_names]
    if unknown:
        raise LMCLIPError(f"{display(path)} names the unknown class {unknown[0][:60]!r}; "
                          f"VOC's are {', '.join(class_names)}")  # fmt: skip
    return names


def _text(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LMCLIPError(f"no label list at {display(path)}; put the official list there or name one with "
                          "train_list and test_list (data/README.md says where it comes from)") from None  # fmt: skip
    except (OSError, UnicodeDecodeError) as error:
        raise LMCLIPError(f"{display(path)} can't be read as {what} ({error})") from error
