"""Scenes of named objects drawn from the DejaVu fonts that ship inside matplotlib.

A scene is a 64 × 64 colour image with one to six objects on a background. An object is a font glyph
of its class in a random colour, size, rotation, shear and place, sometimes half hidden. Two styles
exist: ``PRETRAIN`` for the image-caption pairs of the mini CLIP, ``DOWNSTREAM`` for GlyphMLT. They
differ in fonts, glyph variants, backgrounds and clutter, so that transfer is useful and imperfect.
Everything is a function of seeds; nothing is downloaded.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageFilter, ImageFont

from lmclip.backgrounds import BACKGROUNDS, SIZE, random_colour

# Class name → glyph variants. Pre-training sees only the first half (rounded up) of the variants.
CLASSES = {
    "airplane": "✈", "anchor": "⚓", "atom": "⚛", "bishop": "♗♝", "cat": "🐱", "cloud": "☁", "club": "♣♧",
    "comet": "☄", "cup": "☕", "diamond": "♦♢", "die": "⚀⚁⚂⚃⚄⚅", "envelope": "✉", "flag": "⚐⚑", "flower": "✿❀❁✾",
    "gear": "⚙", "hammer": "⚒", "hand": "✌☝☚☛☟", "heart": "♡♥❤❥", "horse": "♘♞", "keyboard": "⌨", "king": "♔♚",
    "lightning": "⚡", "moon": "☽☾", "note": "♩♪♫♬", "pawn": "♙♟", "pencil": "✎✏✐", "queen": "♕♛", "rook": "♖♜",
    "scales": "⚖", "scissors": "✂✃✄✁", "skull": "☠", "snowflake": "❄❅❆", "snowman": "☃", "spade": "♠♤",
    "star": "★☆✩✪✫✭✮✯", "sun": "☀☼", "swords": "⚔", "telephone": "☎☏✆", "umbrella": "☂☔", "wheelchair": "♿",
}  # fmt: skip
CLASS_NAMES = tuple(CLASSES)

# Objects that only pre-training shows: the mini CLIP knows more than GlyphMLT asks for.
EXTRA_CLASSES = {
    "ankh": "☥", "arrow": "➔➜", "biohazard": "☣", "check": "✔", "coffin": "⚰", "cow": "🐮", "crescent": "☪",
    "cross": "✝", "face": "😀", "flask": "⚗", "house": "⌂", "infinity": "∞", "monkey": "🐵", "mouse": "🐭",
    "peace": "☮", "pen": "✒", "radioactive": "☢", "recycling": "♻", "smiley": "☺", "staff": "⚕", "taijitu": "☯",
    "urn": "⚱", "warning": "⚠", "wheel": "☸",
}  # fmt: skip


@dataclass(frozen=True)
class SceneStyle:
    """How scenes of one style look. Ranges are (low, high) of a uniform draw.

    Attributes:
        backgrounds: background kind → probability; kinds are the keys of ``BACKGROUNDS``.
        fonts: DejaVu files to draw objects with.
        all_variants: every glyph variant of a class, or only the first half.
        object_size: longer side of an object, in pixels.
        rotation: largest rotation, in degrees, either way.
        shear: largest horizontal shear, either way.
        contrast: smallest luminance difference between an object and what is behind it (0–255).
        photo_contrast: contrast kept of a photographic background (0–1).
        letters: largest number of distractor letters.
        occlusion: probability that a bar hides part of the scene.
        blur: Gaussian blur radius, in pixels.
        noise: standard deviation of pixel noise (0–255).
    """

    backgrounds: dict[str, float] = field(hash=False)
    fonts: tuple[str, ...]
    all_variants: bool
    object_size: tuple[float, float]
    rotation: float
    shear: float
    contrast: float
    photo_contrast: tuple[float, float]
    letters: int
    occlusion: float
    blur: tuple[float, float]
    noise: tuple[float, float]


# The difficulty of GlyphMLT: frozen on zero-shot and BCE alone (data/tuning/glyph-difficulty.json).
DOWNSTREAM = SceneStyle(
    backgrounds={"photo": 1.0},
    fonts=("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    all_variants=True,
    object_size=(17, 36),
    rotation=26,
    shear=0.12,
    contrast=75,
    photo_contrast=(0.35, 0.85),
    letters=2,
    occlusion=0.2,
    blur=(0, 0.6),
    noise=(0, 8),
)

PRETRAIN = SceneStyle(
    backgrounds={"plain": 0.1, "gradient": 0.1, "noise": 0.15, "stripes": 0.1, "blobs": 0.15, "photo": 0.4},
    fonts=("DejaVuSans", "DejaVuSansMono"),
    all_variants=False,
    object_size=(18, 44),
    rotation=30,
    shear=0.15,
    contrast=80,
    photo_contrast=(0.2, 0.6),
    letters=0,
    occlusion=0.1,
    blur=(0, 0.7),
    noise=(0, 10),
)


@dataclass(frozen=True)
class Placement:
    """One object of a scene: which glyph, how it is bent (2 × 2 ``matrix``, glyph to scene pixels), and where."""

    name: str
    glyph: str
    font: str
    matrix: tuple[float, float, float, float]
    x: float
    y: float

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Bounding box (left, top, width, height) in pixels, clipped to the scene."""
        width, height = _extent(self.matrix, glyph_mask(self.glyph, self.font).size)
        left, top = max(self.x - width / 2, 0), max(self.y - height / 2, 0)
        right, bottom = min(self.x + width / 2, SIZE), min(self.y + height / 2, SIZE)
        return left, top, right - left, bottom - top


def layout(names: list[str], style: SceneStyle, rng: np.random.Generator) -> list[Placement]:
    """Place one object per name; of twelve tried places, the one that overlaps the earlier objects least."""
    placed, boxes = [], np.zeros((0, 4))
    crowding = 1.0 if len(names) < 3 else 0.85 if len(names) < 5 else 0.7
    for name in names:
        glyph = _variant(name, style, rng)
        fonts = [font for font in style.fonts if has_glyph(glyph, font)]
        font = fonts[rng.integers(len(fonts))]
        size = rng.uniform(*style.object_size) * crowding
        matrix = _matrix(size, rng.uniform(-style.rotation, style.rotation), rng.uniform(-style.shear, style.shear),
                         glyph_mask(glyph, font).size)  # fmt: skip
        half = np.array(_extent(matrix, glyph_mask(glyph, font).size)) / 2
        margin = np.minimum(half * 0.9, SIZE / 2 - 1)
        centres = rng.uniform(margin, SIZE - margin, size=(12, 2))
        centre = centres[np.argmin(_overlap(centres, half, boxes))]
        boxes = np.vstack([boxes, [*(centre - half), *(centre + half)]])
        placed.append(Placement(name, glyph, font, matrix, float(centre[0]), float(centre[1])))
    return placed


def render(placements: list[Placement], style: SceneStyle, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene: (SIZE, SIZE, 3) uint8."""
    kinds = list(style.backgrounds)
    kind = kinds[rng.choice(len(kinds), p=list(style.backgrounds.values()))]
    canvas = BACKGROUNDS[kind](rng, style.photo_contrast).astype(np.float32)
    for _ in range(rng.integers(style.letters + 1)):
        letter = chr(rng.integers(ord("A"), ord("Z") + 1))
        mask = glyph_mask(letter, style.fonts[0])
        matrix = _matrix(rng.uniform(9, 15), rng.uniform(-40, 40), 0, mask.size)
        _paint(canvas, mask, matrix, *rng.uniform(8, SIZE - 8, 2), random_colour(rng))
    for p in placements:
        behind = canvas[int(max(p.y - 8, 0)) : int(p.y + 8), int(max(p.x - 8, 0)) : int(p.x + 8)].mean((0, 1))
        _paint(canvas, glyph_mask(p.glyph, p.font), p.matrix, p.x, p.y, _contrasting(behind, style.contrast, rng))
    if rng.random() < style.occlusion:
        _bar(canvas, rng)
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(*style.noise)
    image = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(*style.blur))))


def scene(names: list[str], style: SceneStyle, seed: tuple[int, ...]) -> np.ndarray:
    """Layout and drawing of the scene that ``seed`` names: (SIZE, SIZE, 3) uint8."""
    rng = np.random.default_rng(seed)
    return render(layout(names, style, rng), style, rng)


@cache
def has_glyph(glyph: str, font: str) -> bool:
    """Whether the font draws the glyph; where it does not, it would draw an empty box without complaint."""
    return ord(glyph) in FT2Font(_font_file(font)).get_charmap()


@cache
def glyph_mask(glyph: str, font: str, height: int = 72) -> Image.Image:
    """The glyph as a tight 8-bit mask, drawn once at a large size (``height``: font size in pixels)."""
    drawn = ImageFont.truetype(_font_file(font), height).getmask(glyph, mode="L")
    mask = Image.new("L", drawn.size)
    mask.im.paste(drawn, (0, 0, *drawn.size))
    return mask.crop(mask.getbbox())


def _font_file(font: str) -> str:
    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf")


# ── geometry ────────────────────────────────────────────────────────────────────────────────────


def _variant(name: str, style: SceneStyle, rng: np.random.Generator) -> str:
    variants = CLASSES.get(name) or EXTRA_CLASSES[name]
    seen = len(variants) if style.all_variants else (len(variants) + 1) // 2
    return variants[rng.integers(seen)]


def _matrix(size, degrees, shear, mask_size):
    scale, angle = size / max(mask_size), np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    return tuple(float(v) for v in scale * np.array([cos, cos * shear - sin, sin, sin * shear + cos]))


def _extent(matrix, mask_size):
    a, b, c, d = np.abs(matrix)
    return a * mask_size[0] + b * mask_size[1], c * mask_size[0] + d * mask_size[1]


def _overlap(centres, half, boxes):
    """Largest share of the new object's box that an earlier box covers, for each tried centre."""
    if not len(boxes):
        return np.zeros(len(centres))
    low = np.maximum((centres - half)[:, None], boxes[None, :, :2])
    high = np.minimum((centres + half)[:, None], boxes[None, :, 2:])
    return (np.clip(high - low, 0, None).prod(-1) / (4 * half.prod())).max(1)


# ── paint ───────────────────────────────────────────────────────────────────────────────────────


def _paint(canvas, mask, matrix, x, y, colour):
    """Blend ``colour`` into ``canvas`` (in place) where the bent mask lies; drawn at twice the size, then halved."""
    width, height = (int(np.ceil(e)) + 2 for e in _extent(matrix, mask.size))
    inverse = np.linalg.inv(np.array(matrix).reshape(2, 2)) / 2
    offset = np.array(mask.size) / 2 - inverse @ (width, height)
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    bent = mask.transform((2 * width, 2 * height), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    alpha = np.asarray(bent.reduce(2), dtype=np.float32)[..., None] / 255
    left, top = round(x - width / 2), round(y - height / 2)
    alpha = alpha[max(-top, 0) : SIZE - top, max(-left, 0) : SIZE - left]
    patch = canvas[max(top, 0) : max(top, 0) + alpha.shape[0], max(left, 0) : max(left, 0) + alpha.shape[1]]
    patch += alpha * (colour - patch)


def _bar(canvas, rng):
    """A plain bar of 5–10 pixels across a third to the whole of the scene."""
    thickness, length = rng.integers(5, 11), rng.integers(SIZE // 3, SIZE)
    start, place = rng.integers(0, SIZE - length + 1), rng.integers(0, SIZE - thickness)
    bar = canvas[place : place + thickness, start : start + length]
    if rng.random() < 0.5:
        bar = canvas[start : start + length, place : place + thickness]
    bar[:] = random_colour(rng)


_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def _contrasting(behind, contrast, rng):
    """A random colour whose luminance differs enough from ``behind``; after ten tries, black or white."""
    level = behind @ _LUMINANCE
    for colour in rng.uniform(0, 255, (10, 3)).astype(np.float32):
        if abs(colour @ _LUMINANCE - level) >= contrast:
            return colour
    return np.full(3, 0.0 if level > 127 else 255.0, dtype=np.float32)
