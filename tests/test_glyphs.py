"""Glyph scenes: deterministic, inside their frame, showing what they name; GlyphMLT as a COCO data set."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmclip import glyphmlt, glyphs
from lmclip.backgrounds import BACKGROUNDS, SIZE
from lmclip.longtail import balanced_subset

STYLES = {"pretrain": glyphs.PRETRAIN, "downstream": glyphs.DOWNSTREAM}


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_every_variant_has_a_font_that_draws_it(style):
    known = glyphs.CLASSES | ({} if style.all_variants else glyphs.EXTRA_CLASSES)
    for name, variants in known.items():
        for glyph in variants:
            assert any(glyphs.has_glyph(glyph, font) for font in style.fonts), (name, glyph)


def test_about_forty_classes_with_distinct_glyphs():
    drawn = [glyph for variants in (glyphs.CLASSES | glyphs.EXTRA_CLASSES).values() for glyph in variants]
    assert len(glyphs.CLASS_NAMES) == 40
    assert len(drawn) == len(set(drawn)), "two classes share a glyph"


def test_fonts_without_a_glyph_are_not_asked_for_it():
    assert not glyphs.has_glyph("⛲", "DejaVuSans")
    assert glyphs.has_glyph("★", "DejaVuSans")


@given(seed=st.integers(0, 10**6), names=st.lists(st.sampled_from(glyphs.CLASS_NAMES), min_size=1, max_size=6),
       style=st.sampled_from(list(STYLES.values())))  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_scenes_are_deterministic_and_boxes_lie_inside(seed, names, style):
    placed = glyphs.layout(names, style, np.random.default_rng(seed))
    assert [p.name for p in placed] == names
    for p in placed:
        left, top, width, height = p.box
        assert min(left, top) >= 0 and left + width <= SIZE and top + height <= SIZE and min(width, height) > 0
    image = glyphs.scene(names, style, (seed,))
    assert image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8
    assert (image == glyphs.scene(names, style, (seed,))).all()


def test_an_object_changes_its_box_and_nothing_far_from_it():
    style = glyphs.SceneStyle(**{**glyphs.DOWNSTREAM.__dict__, "letters": 0, "occlusion": 0.0, "noise": (0, 0),
                                 "blur": (0, 0), "backgrounds": {"plain": 1.0}})  # fmt: skip
    rng = np.random.default_rng(3)
    (placed,) = glyphs.layout(["heart"], style, rng)
    image = glyphs.render([placed], style, rng).astype(int)
    left, top, width, height = (round(v) for v in placed.box)
    background = image[0, 0] if left > 4 or top > 4 else image[-1, -1]
    changed = np.abs(image - background).max(-1) > 0
    outside = changed.copy()
    outside[max(top - 2, 0) : top + height + 3, max(left - 2, 0) : left + width + 3] = False
    assert changed.sum() > 50 and not outside.any()


def test_pretraining_does_not_see_all_variants():
    rng = np.random.default_rng(0)
    drawn = {p.glyph for _ in range(200) for p in glyphs.layout(["star"], glyphs.PRETRAIN, rng)}
    assert drawn == set(glyphs.CLASSES["star"][:4])


@pytest.mark.parametrize("kind", BACKGROUNDS)
def test_backgrounds_fill_the_frame(kind):
    pixels = np.asarray(BACKGROUNDS[kind](np.random.default_rng(1), (0.2, 0.6)))
    assert pixels.shape == (SIZE, SIZE, 3) and np.isfinite(pixels).all()


def test_themes_name_known_classes_and_reach_all_of_them():
    named = {name for theme in glyphmlt.THEMES.values() for name in theme} | set(glyphmlt.EVERYWHERE)
    assert named == set(glyphs.CLASS_NAMES)


def test_balanced_subset_is_balanced_where_the_pool_allows():
    rng = np.random.default_rng(0)
    labels = (rng.random((4000, 12)) < np.geomspace(0.5, 0.02, 12)).astype(np.uint8)
    chosen = balanced_subset(labels, 300, np.random.default_rng(1))
    counts = labels[chosen].sum(0)
    assert len(set(chosen)) == 300 and (np.diff(chosen) > 0).all()
    assert counts.max() / counts.min() < 1.5 < labels.sum(0).max() / labels.sum(0).min()


def test_balanced_subset_can_take_everything():
    labels = np.eye(5, dtype=np.uint8)[[0, 0, 1, 2, 3, 4, 4]]
    assert balanced_subset(labels, 7, np.random.default_rng(0)).tolist() == list(range(7))


def test_annotations_are_coco_and_deterministic(tmp_path):
    paths = [tmp_path / str(i) / "instances_pool.json" for i in range(2)]
    for path in paths:
        glyphmlt.write_annotations(path, 50, glyphmlt.POOL)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    content = json.loads(paths[0].read_text())
    assert len(content["images"]) == 50 and len(content["categories"]) == 40
    assert {a["image_id"] for a in content["annotations"]} == set(range(50))
    assert not list(tmp_path.rglob("*unfinished*"))


def test_only_missing_images_are_drawn(tmp_path):
    scenes = [("x_000001.png", ["star"]), ("x_000002.png", ["sun", "cup"])]
    glyphmlt.draw_images(tmp_path, scenes[:1], glyphmlt.POOL)
    first = (tmp_path / "x_000001.png").stat().st_mtime_ns
    glyphmlt.draw_images(tmp_path, scenes, glyphmlt.POOL)
    assert (tmp_path / "x_000001.png").stat().st_mtime_ns == first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x_000001.png", "x_000002.png"]
