"""Pre-training of the mini CLIP on rendered image-caption pairs (``lmclip pretrain``).

A bank of scenes in the ``PRETRAIN`` style is rendered once; every visit to a scene gives it a new caption,
another order of its colour channels and a small shift. Captions are as on the web: most name one of the
things that are visible, some name several, a few belong to another picture. The objective is CLIP's
symmetric contrastive loss, the very class that the study trains with.
"""

import json
import time
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from lmclip import glyphs
from lmclip.config import load_profile
from lmclip.datasets import load_study_data
from lmclip.losses import ContrastiveLoss
from lmclip.metrics import multilabel_report
from lmclip.models import MINI_CLIP, encode_image, encode_text, load_model, new_mini_clip, save_mini_clip
from lmclip.records import GROUP_METRICS

TEMPLATES = (
    "a photo of a {}", "a picture of a {}", "an image of a {}", "a drawing of a {}", "{}", "a {}", "the {}", "my {}",
    "look at this {}", "there is a {} in the scene", "a {} on a background", "a photo of my {}", "a nice {}",
)  # fmt: skip
JOINS = (", ", " and ", ", a ", " and a ", " with a ")
WORDS = sorted(
    {*" ".join((*TEMPLATES, *JOINS)).replace("{}", " ").split(), ",", *glyphs.CLASSES, *glyphs.EXTRA_CLASSES}
)


class Recipe(BaseModel):
    """Everything that decides the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = 0  # of initialisation, order, captions and augmentation
    bank_seed: int = 0  # of the scenes
    bank_size: int = 160_000  # scenes rendered; the first quarter are plain: one or two objects, no texture
    samples: int = 2_000_000  # scenes seen, with repetition
    plain_share: float = 0.1  # share of the samples that come from the plain quarter alone, at the start
    batch_size: int = 128
    learning_rate: float = 2e-3  # peak; linear warm-up, cosine to 0
    warmup: int = 500  # steps
    weight_decay: float = 0.05
    named_one: float = 0.6  # probability that a caption names one visible object
    named_all: float = 0.2  # that it names all; else it names a random part
    wrong: float = 0.05  # that it is the caption of another scene
    precision: str = "bf16"  # bf16 (autocast) or fp32


def pretrain(recipe: Recipe, folder: Path, bank_folder: Path) -> pd.DataFrame:
    """Train the mini CLIP; write ``mini-clip.safetensors``, ``recipe.json`` and ``history.csv`` into ``folder``.

    Returns:
        The history: samples seen, loss, temperature and seconds, once per 1 % of the samples.
    """
    torch.set_num_threads(1)  # two threads on shared cores were slower than one; it also fixes the order of sums
    folder.mkdir(parents=True, exist_ok=True)
    images, names = scene_bank(recipe, bank_folder)
    model, tokenizer = new_mini_clip(recipe.seed, WORDS)
    model = model.to(memory_format=torch.channels_last).train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98), fused=True)
    steps = recipe.samples // recipe.batch_size
    loss_function, rng, rows, start = ContrastiveLoss(), np.random.default_rng(recipe.seed), [], time.perf_counter()
    for step in (bar := tqdm(range(steps), unit="step", mininterval=10)):
        pool = len(images) // 4 if step < recipe.plain_share * steps else len(images)
        index = np.sort(rng.choice(pool, recipe.batch_size, replace=False))
        tokens = tokenizer([caption(names[i], recipe, rng, names) for i in index])
        batch = augment(torch.from_numpy(images[index]).permute(0, 3, 1, 2), rng)
        for group in optimizer.param_groups:
            progress = max(step - recipe.warmup, 0) / max(steps - recipe.warmup, 1)
            group["lr"] = recipe.learning_rate * min((step + 1) / recipe.warmup, 0.5 * (1 + np.cos(np.pi * progress)))
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            image_features = encode_image(model, batch)
            text_features = encode_text(model, tokens, normalize=True)
        loss = loss_function(image_features.float(), text_features.float(), model.logit_scale.exp())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        model.logit_scale.data.clamp_(max=np.log(100))
        if (step + 1) % max(steps // 100, 1) == 0:
            row = {"samples": (step + 1) * recipe.batch_size, "loss": loss.item()}
            row |= {"logit_scale": model.logit_scale.exp().item(), "seconds": time.perf_counter() - start}
            rows.append(row)
            bar.set_postfix(loss=f"{loss.item():.3f}")
            pd.DataFrame(rows).to_csv(folder / "history.csv", index=False)
            save_mini_clip(model, tokenizer, folder / "mini-clip.safetensors")
    (folder / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n")
    (folder / "vocabulary.txt").write_text("\n".join(WORDS) + "\n")
    return pd.DataFrame(rows)


def judge(folder: Path) -> dict[str, float]:
    """Zero-shot mAP (fractions) of the weights in ``folder`` on GlyphMLT's test images; kept as ``zero_shot.json``."""
    model, tokenizer = load_model(MINI_CLIP, folder / "mini-clip.safetensors")
    test = load_study_data(load_profile("glyph")).test
    with torch.inference_mode():
        labels = encode_text(model, tokenizer([f"a photo of a {name}" for name in test.class_names]), normalize=True)
        images = torch.from_numpy(test.images()).permute(0, 3, 1, 2)
        features = torch.cat([encode_image(model, batch) for batch in images.split(256)])
        scores = (model.logit_scale.exp() * features @ labels.T).softmax(1)
    report = multilabel_report(scores.numpy(), test.labels, test.groups)
    result = {name: round(report[name], 4) for name in GROUP_METRICS}
    (folder / "zero_shot.json").write_text(json.dumps(result, indent=2) + "\n")
    return result


def caption(names: list[str], recipe: Recipe, rng: np.random.Generator, bank: list[list[str]]) -> str:
    """A caption of the scene that shows ``names``: mostly of a part of it, sometimes of another scene."""
    if rng.random() < recipe.wrong:
        names = bank[rng.integers(len(bank))]
    kind = rng.random()
    if kind < recipe.named_one:
        count = 1
    elif kind < recipe.named_one + recipe.named_all:
        count = len(names)
    else:
        count = rng.integers(1, len(names) + 1)
    chosen = [names[i] for i in rng.permutation(len(names))[:count]]
    return TEMPLATES[rng.integers(len(TEMPLATES))].format(JOINS[rng.integers(len(JOINS))].join(chosen))


def augment(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A random order of the colour channels per image, a shift by up to 4 pixels and a flip per batch: (N, 3, H, W)."""
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(3), (len(images), 1)), axis=1))  # (N, 3)
    images = images.gather(1, order[:, :, None, None].expand_as(images))
    shift = rng.integers(-4, 5, 2)
    images = images.roll((int(shift[0]), int(shift[1])), (2, 3))
    return images.flip(3) if rng.random() < 0.5 else images


def scene_bank(recipe: Recipe, folder: Path, jobs: int = 2) -> tuple[np.ndarray, list[list[str]]]:
    """Scenes to pre-train on: (bank_size, 64, 64, 3) uint8, memory-mapped, and the names that each shows."""
    known = (*glyphs.CLASSES, *glyphs.EXTRA_CLASSES)
    rng = np.random.default_rng([recipe.bank_seed, 0])
    plain = recipe.bank_size // 4
    counts = np.where(np.arange(recipe.bank_size) < plain, rng.choice([1, 2], recipe.bank_size, p=[0.7, 0.3]),
                      rng.choice([1, 2, 3, 4, 5], recipe.bank_size, p=[0.35, 0.25, 0.2, 0.12, 0.08]))  # fmt: skip
    names = [[known[i] for i in rng.choice(len(known), count, replace=False)] for count in counts]
    path = folder / f"pretraining-bank-{recipe.bank_seed}-{recipe.bank_size}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        shape = (recipe.bank_size, glyphs.SIZE, glyphs.SIZE, 3)
        np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape).flush()
        chunks = np.array_split(np.arange(recipe.bank_size), max(recipe.bank_size // 1000, 1))
        work = (joblib.delayed(_render_chunk)(unfinished, chunk, names, plain, recipe.bank_seed) for chunk in chunks)
        for _ in tqdm(joblib.Parallel(n_jobs=jobs, return_as="generator")(work), total=len(chunks), unit="k scenes"):
            pass
        unfinished.rename(path)
    return np.load(path, mmap_mode="r", allow_pickle=False), names


PLAIN = glyphs.SceneStyle(
    **{**glyphs.PRETRAIN.__dict__, "backgrounds": {"plain": 0.7, "gradient": 0.3}, "occlusion": 0.0}
)


def _render_chunk(path, chunk, names, plain, seed):
    bank = np.load(path, mmap_mode="r+", allow_pickle=False)
    for i in chunk:
        bank[i] = glyphs.scene(names[i], PLAIN if i < plain else glyphs.PRETRAIN, (seed, 1, int(i)))
