"""The image cache: decoded once, whole or not there, and the same pictures whatever reads them."""

import os
import time

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from lmclip import images as module
from lmclip.errors import LMCLIPError
from lmclip.images import batches, cached_images, decode


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Photographs of different sizes, wide and tall, grey and coloured."""
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "data"))
    rng, paths = np.random.default_rng(0), []
    for i, shape in enumerate([(90, 60, 3), (60, 90, 3), (64, 64, 3), (50, 200), (40, 33, 4)]):
        pixels = rng.integers(0, 256, (shape[0] // 8 + 1, shape[1] // 8 + 1, *shape[2:]), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize(shape[1::-1])
        paths.append(tmp_path / (f"{i}.png" if picture.mode == "RGBA" else f"{i}.jpg"))
        picture.save(paths[-1])
    return paths


def cache_files():
    return sorted((module.data_dir() / "cache" / "images").glob("*"))


def test_crop_is_the_preprocessing_of_open_clip(files):
    transform = open_clip.image_transform(48, is_train=False, mean=(0, 0, 0), std=(1, 1, 1), resize_mode="shortest",
                                          interpolation="bicubic")  # fmt: skip
    for path in files:
        theirs = transform(Image.open(path).convert("RGB"))  # (3, H, W) in 0 … 1
        ours = torch.from_numpy(decode(path, 48, "crop").copy()).permute(2, 0, 1) / 255
        assert torch.allclose(ours, theirs, atol=1e-6), path.name


def test_squash_is_a_bilinear_resize_to_a_square(files):
    for path in files:
        theirs = Image.open(path).convert("RGB").resize((48, 48), Image.Resampling.BILINEAR)
        assert np.array_equal(decode(path, 48), np.asarray(theirs))


@pytest.mark.parametrize("how", ["squash", "crop"])
def test_the_cache_holds_what_decoding_gives_and_is_not_made_twice(files, how, monkeypatch):
    first = cached_images(files, 32, how, "photos")
    assert isinstance(first, np.memmap) and first.shape == (5, 32, 32, 3) and first.dtype == np.uint8
    assert np.array_equal(first, np.stack([decode(path, 32, how) for path in files]))
    monkeypatch.setattr(module, "decode", lambda *a: pytest.fail("a cached image was decoded again"))
    assert np.array_equal(cached_images(files, 32, how, "photos"), first)
    with pytest.raises(ValueError):
        first[0] = 0


def test_sizes_preprocessings_and_changed_images_have_caches_of_their_own(files):
    for size, how in ((32, "squash"), (32, "crop"), (16, "squash")):
        cached_images(files, size, how)
    assert len(cache_files()) == 3
    Image.new("RGB", (50, 50), "red").save(files[0])
    os.utime(files[0], ns=(time.time_ns(), time.time_ns()))
    assert (cached_images(files, 32)[0] == decode(files[0], 32)).all() and len(cache_files()) == 4


def test_a_cache_that_was_cut_off_is_made_again(files):
    whole = np.array(cached_images(files, 32))
    (path,) = cache_files()
    for broken in (b"", path.read_bytes()[:-1], path.read_bytes()[:50], b"\x93NUMPY\x01\x00"):
        path.write_bytes(broken)
        assert np.array_equal(cached_images(files, 32), whole)


@pytest.mark.parametrize("content", [b"", b"no picture", "cut", "bomb"])
def test_a_corrupt_image_is_named_and_leaves_no_cache(files, content):
    if content == "cut":
        content = files[1].read_bytes()[:400]
    if content == "bomb":  # a PNG that declares 60,000 × 60,000 pixels
        Image.new("L", (1, 1)).save(files[1], "PNG")
        content = files[1].read_bytes().replace(b"IHDR\0\0\0\1\0\0\0\1", b"IHDR\0\0\xea\x60\0\0\xea\x60")
    files[1].write_bytes(content)
    with pytest.raises(LMCLIPError, match=r"1\.jpg is no readable image"):
        cached_images(files, 32)
    assert not cache_files()


def test_a_missing_image_is_named(files):
    files[3].unlink()
    with pytest.raises(LMCLIPError, match=r"no image at 3\.jpg"):
        cached_images(files, 32)


def test_a_full_disk_is_told_before_anything_is_written(files, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    with pytest.raises(LMCLIPError, match="0.0 GiB free.*LMCLIP_DATA"):
        cached_images(files, 224)
    assert not cache_files()


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_same_whatever_reads_them(files, workers):
    images = cached_images(files, 32)
    order = torch.tensor([4, 0, 0, 3, 2, 1, 1]).split(3)
    flips = [torch.tensor([True, False, True]), torch.tensor([False] * 3), torch.tensor([True])]
    found = list(batches(images, order, flips, workers))
    assert [tuple(b.shape) for b in found] == [(3, 3, 32, 32), (3, 3, 32, 32), (1, 3, 32, 32)]
    for batch, rows, flip in zip(found, order, flips, strict=True):
        for image, row, flipped in zip(batch, rows, flip, strict=True):
            pixels = images[row][:, ::-1] if flipped else images[row]
            assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)
