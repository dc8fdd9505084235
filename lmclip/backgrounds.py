"""Backgrounds of glyph scenes: plain, gradient, 1/f noise, stripes, blobs, and crops of two photographs.

Each function takes a random generator and the range of contrast that a photograph keeps (0–1), and returns
(SIZE, SIZE, 3) pixels in 0–255.
"""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from sklearn.datasets import load_sample_images

SIZE = 64  # pixels per side of every scene


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) float32, each channel uniform in 0–255."""
    return rng.uniform(0, 255, 3).astype(np.float32)


def _plain(rng, photo_contrast):
    return np.broadcast_to(random_colour(rng), (SIZE, SIZE, 3))


def _gradient(rng, photo_contrast):
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    return _mix(rng, (x * np.cos(angle) + y * np.sin(angle)) / 2.83 + 0.5)


def _noise(rng, photo_contrast):
    x, y = rng.integers(0, 192, 2)
    return _mix(rng, _noise_sheet()[y : y + SIZE, x : x + SIZE])


def _stripes(rng, photo_contrast):
    y, x = np.mgrid[0:SIZE, 0:SIZE]
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 16)
    return _mix(rng, 0.5 + 0.25 * np.sign(np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period)))


def _blobs(rng, photo_contrast):
    image = Image.new("RGB", (SIZE, SIZE), tuple(random_colour(rng).astype(int)))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(2, 7)):
        (x, y), r = rng.uniform(0, SIZE, 2), rng.uniform(4, 20)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(random_colour(rng).astype(int)))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3))))


def _photo(rng, photo_contrast):
    """A random crop of one of scikit-learn's two photographs, at lower contrast, towards a random tint."""
    photo = _photos()[rng.integers(2)]
    side = rng.uniform(SIZE, min(photo.size))
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
    pixels = np.asarray(crop, dtype=np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    centre = 0.5 * pixels.mean((0, 1)) + 0.5 * random_colour(rng)
    return centre + rng.uniform(*photo_contrast) * (pixels - pixels.mean((0, 1)))


BACKGROUNDS = {"plain": _plain, "gradient": _gradient, "noise": _noise, "stripes": _stripes, "blobs": _blobs,
               "photo": _photo}  # fmt: skip


def _mix(rng, weight):
    return random_colour(rng) + weight[..., None] * (random_colour(rng) - random_colour(rng))


@cache
def _noise_sheet():
    """1/f noise, 256 × 256, scaled to 0–1."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.rfftfreq(256), indexing="ij"))
    spectrum = np.fft.rfft2(np.random.default_rng(0).standard_normal((256, 256))) / np.maximum(frequency, 1 / 256)
    sheet = np.fft.irfft2(spectrum)
    return (sheet - sheet.min()) / (sheet.max() - sheet.min())


@cache
def _photos():
    return [Image.fromarray(image) for image in load_sample_images().images]
