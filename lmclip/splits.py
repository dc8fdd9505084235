"""What every data set is once it has been read: `LongTailDataset`, and the splits of a profile, `StudyData`."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np

from lmclip.errors import LMCLIPError
from lmclip.longtail import ClassGroups, LongTailBuild, list_sha256


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
        names = [self.class_names[c] for c in np.nonzero(self.labels)[1].tolist()]
        ends = np.count_nonzero(self.labels, axis=1).cumsum().tolist()
        return ["a photo of a " + ", ".join(names[a:b]) for a, b in pairwise([0, *ends])]

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
        from lmclip.images import decode  # loads PyTorch, which labels alone need not wait for

        if self.files is None:
            raise LMCLIPError(f"{self.name} has labels but no images here; see data/README.md for where to put them")
        rows = range(len(self)) if indices is None else indices
        return np.stack([decode(self.files[i], size) for i in rows])

    def subset(self, rows: Sequence[int] | np.ndarray, name: str, groups: ClassGroups | None) -> "LongTailDataset":
        """The images of these rows, in their order, as a split of its own."""
        files = None if self.files is None else [self.files[i] for i in rows]
        return LongTailDataset(name, [self.image_ids[i] for i in rows], self.labels[rows], self.class_names, groups,
                               files, self.provenance)  # fmt: skip


@dataclass(frozen=True)
class StudyData:
    """The splits of one profile.

    Attributes:
        train, test: always there; their images need not be (``has_images``).
        validation: images of the pool that training does not use; None where they can't be looked at.
        pool, build: all source images and the long tail drawn from them; None where only the lists are known.
        differences: how ``train`` and ``test`` differ from what is published, one short phrase each; empty where
            they agree, and for glyph, of which nothing is published.
    """

    train: LongTailDataset
    test: LongTailDataset
    validation: LongTailDataset | None = None
    pool: LongTailDataset | None = None
    build: LongTailBuild | None = None
    differences: tuple[str, ...] = ()
