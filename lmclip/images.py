"""Photographs as the model sees them: decoded and resized once, kept on disk, read from there ever after.

images = cached_images(files, size=224, resize="crop")   # (N, 224, 224, 3) uint8, memory-mapped
for batch in batches(images, order, flips): ...          # (B, 3, 224, 224) uint8
"""

import hashlib
import os
import shutil
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import InterpolationMode, center_crop, resize
from tqdm import tqdm

from lmclip.errors import LMCLIPError
from lmclip.locks import held
from lmclip.paths import atomic_write, data_dir, display

_DECODED_AT_ONCE = 256


def decode(path: Path, size: int | None, how: str = "squash") -> np.ndarray:
    """Read one image: (size, size, 3) uint8, or (height, width, 3) when ``size`` is None.

    Args:
        path: a file that Pillow reads.
        size: pixels per side.
        how: "squash" resizes to a square bilinearly, as the release does; "crop" resizes the shorter side bicubically
            and crops the centre, as CLIP does (open_clip's evaluation transform).

    Raises:
        LMCLIPError: the file is missing, corrupt, or declares more pixels than Pillow holds to be safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image = image.convert("RGB")
                if size is None:
                    return np.asarray(image)
                if how == "squash":
                    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
                return np.asarray(center_crop(resize(image, size, InterpolationMode.BICUBIC), size))
    except FileNotFoundError:
        raise LMCLIPError(f"no image at {display(path)}") from None
    except (
        UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError,
        Image.DecompressionBombWarning,
    ) as error:  # fmt: skip
        reason = str(error).replace(str(path), path.name)
        raise LMCLIPError(f"{display(path)} is no readable image ({reason}); delete it: a rendered scene is "
                          "drawn again, a photograph is fetched by `lmclip download`") from error  # fmt: skip


def cached_images(files: Sequence[Path], size: int, how: str = "squash", name: str = "images") -> np.ndarray:
    """All images decoded, (N, size, size, 3) uint8, as a read-only memory map of a file in ``data/cache/images``.

    The file is made on the first call, by one thread per core, and appears whole or not at all; a process that asks for
    it meanwhile waits. Its name holds a digest of the images' names, sizes and times of change and of the
    preprocessing, so a changed image makes a new file.

    Args:
        files: N image files.
        size: pixels per side.
        how: as in `decode`.
        name: what the progress bar and the file are called.

    Raises:
        LMCLIPError: an image is missing or corrupt (it is named), or the cache can't be written.
    """
    path = _cache_path(files, size, how, name)
    if (kept := _opened(path, len(files), size)) is not None:
        return kept
    with held(path.with_name(f".{path.name}.lock"), f"decoding {name}"):
        if (kept := _opened(path, len(files), size)) is None:  # else another process made it meanwhile
            _decode_all(path, files, size, how, name)
            kept = _opened(path, len(files), size)
    if kept is None:
        raise LMCLIPError(f"{display(path)} was written, but can't be read again; check the disk")
    return kept


def _decode_all(path: Path, files: Sequence[Path], size: int, how: str, name: str) -> None:
    needed = len(files) * size * size * 3
    if (free := shutil.disk_usage(path.parent).free) < needed:
        raise LMCLIPError(f"{display(path.parent)} has {free / 2**30:.1f} GiB free, but the decoded images of {name} "
                          f"take {needed / 2**30:.1f} GiB; free space there or set LMCLIP_DATA")  # fmt: skip
    with atomic_write(path) as file, ThreadPoolExecutor(os.cpu_count()) as threads:
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(files), size, size, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        with tqdm(total=len(files), desc=f"decoding {name}", unit="image", delay=2, mininterval=1) as bar:
            for start in range(0, len(files), _DECODED_AT_ONCE):
                chunk = files[start : start + _DECODED_AT_ONCE]
                for image in threads.map(lambda f: decode(f, size, how), chunk):
                    file.write(image.tobytes())
                bar.update(len(chunk))


def batches(images: np.ndarray, order: Sequence[torch.Tensor], flips: Sequence[torch.Tensor], workers: int = 0):
    """The batches of an epoch, (B, 3, H, W) uint8, in ``order``; with pinned memory where there is a GPU.

    Args:
        images: (N, H, W, 3) uint8.
        order: the rows of each batch, (B,) int64.
        flips: for each batch, (B,) bool: which of its images are flipped from left to right.
        workers: processes that read ahead; their number changes nothing in the batches.
    """
    return DataLoader(_Epoch(images, order, flips), batch_size=None, num_workers=workers,
                      pin_memory=torch.cuda.is_available())  # fmt: skip


class _Epoch(Dataset):
    def __init__(self, images, order, flips):
        self.images, self.order, self.flips = images, order, flips

    def __len__(self):
        return len(self.order)

    def __getitem__(self, step):
        batch = torch.from_numpy(self.images[self.order[step].numpy()]).permute(0, 3, 1, 2)
        for row in self.flips[step].nonzero().flatten().tolist():
            batch[row] = batch[row].flip(2)
        return batch


def _cache_path(files, size, how, name):
    digest = hashlib.sha256(f"{size} {how}".encode())
    for path in files:
        try:
            status = path.stat()
        except OSError:
            raise LMCLIPError(f"no image at {display(path)}") from None
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    slug = "".join(c if c.isalnum() else "-" for c in name.lower())
    return data_dir() / "cache" / "images" / f"{slug}-{size}-{how}-{digest.hexdigest()[:16]}.npy"


def _opened(path, number, size):
    """The cache file's memory map, or None when it is not there or not whole."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # not there, or damaged: numpy raises many types
        return None
    return images if images.shape == (number, size, size, 3) and images.dtype == np.uint8 else None
