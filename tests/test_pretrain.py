"""Pre-training: captions as on the web, repeatable steps, and a shipped model that is what its card says."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from lmclip import pretrain
from lmclip.paths import pretrained_dir
from lmclip.pretrain import Recipe, augment, caption, scene_bank

TINY = Recipe(bank_size=64, samples=64, batch_size=16, warmup=2, precision="fp32")


def test_captions_name_mostly_one_thing_and_are_sometimes_wrong():
    rng, names = np.random.default_rng(0), ["cat", "sun", "cup"]
    bank = [["anchor"]]
    texts = [caption(names, Recipe(), rng, bank).split() for _ in range(3000)]
    named = [sum(word.strip(",") in names for word in text) for text in texts]
    wrong = np.mean(["anchor" in text for text in texts])
    assert abs(wrong - Recipe().wrong) < 0.02
    assert 0.55 < np.mean(np.array(named) == 1) < 0.8 and np.mean(np.array(named) == 3) > 0.15


def test_every_caption_is_in_the_vocabulary():
    words = (pretrained_dir() / "vocabulary.txt").read_text().split()
    assert words == pretrain.WORDS


def test_augmentation_permutes_channels_and_keeps_pixels():
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    moved = augment(images, np.random.default_rng(0))
    assert moved.shape == images.shape
    for a, b in zip(images, moved, strict=True):
        assert torch.equal(a.flatten().sort().values, b.flatten().sort().values)


def test_the_bank_is_made_once_and_starts_plain(tmp_path):
    images, names = scene_bank(TINY, tmp_path, jobs=1)
    made = next(tmp_path.glob("*.npy")).stat().st_mtime_ns
    again, _ = scene_bank(TINY, tmp_path, jobs=1)
    assert images.shape == (64, 64, 64, 3) and np.array_equal(images, again)
    assert next(tmp_path.glob("*.npy")).stat().st_mtime_ns == made
    assert max(len(n) for n in names[:16]) <= 2 < max(len(n) for n in names[16:])


def test_pretraining_is_repeatable_and_moves_the_weights(tmp_path):
    for name in "ab":
        pretrain.pretrain(TINY, tmp_path / name, tmp_path / "bank")
    a, b = (load_file(tmp_path / name / "mini-clip.safetensors") for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert Recipe.model_validate_json((tmp_path / "a" / "recipe.json").read_text()) == TINY
    history = pd.read_csv(tmp_path / "a" / "history.csv")
    assert history["samples"].iloc[-1] == 64 and history["loss"].gt(0).all()


def test_the_recipe_refuses_unknown_settings():
    with pytest.raises(ValueError, match="bank_sise"):
        Recipe(bank_sise=3)


def test_the_card_names_the_shipped_weights():
    folder = pretrained_dir()
    digest = hashlib.sha256((folder / "mini-clip.safetensors").read_bytes()).hexdigest()
    assert digest in (folder / "README.md").read_text()
    recipe = Recipe.model_validate_json((folder / "recipe.json").read_text())
    shipped = pd.read_csv(folder / "seeds.csv").set_index("seed").loc[recipe.seed]
    assert json.loads((folder / "zero_shot.json").read_text())["mAP"] == pytest.approx(shipped["mAP"], abs=1e-4)


def test_the_shipped_weights_score_what_the_card_says(tmp_path, monkeypatch):
    monkeypatch.setenv("LMCLIP_DATA", str(tmp_path / "data"))
    stated = json.loads((pretrained_dir() / "zero_shot.json").read_text())
    for name in ("mini-clip.safetensors",):
        (tmp_path / name).write_bytes((pretrained_dir() / name).read_bytes())
    assert pretrain.judge(tmp_path)["mAP"] == pytest.approx(stated["mAP"], abs=0.005)
