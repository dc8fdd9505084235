"""What a run trains: precision, checkpointing and split batches change memory or time, not what is learned."""

import numpy as np
import open_clip
import pytest
import torch

from lmclip import learner as module
from lmclip.config import experiment, load_profile
from lmclip.datasets import LongTailDataset
from lmclip.errors import LMCLIPError
from lmclip.learner import Learner, enough_memory, set_precision
from lmclip.models import load_model
from lmclip.training import train_epoch

CPU = torch.device("cpu")
NAMES = ("person", "dog", "cat")


@pytest.fixture(scope="module")
def dataset():
    """Sixteen images of three classes, and what they show."""
    rng = np.random.default_rng(0)
    labels = np.eye(3, dtype=np.uint8)[rng.integers(0, 3, 16)] | np.eye(3, dtype=np.uint8)[rng.integers(0, 3, 16)]
    return LongTailDataset("noise", [str(i) for i in range(16)], labels, ("cat", "horse", "heart"))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (16, 64, 64, 3), dtype=np.uint8)


def trained(dataset, images, method="lm-clip", epochs=1, **overrides):
    """A learner after some epochs, and its history."""
    profile = load_profile("glyph", overrides={"batch_size": 8, "epochs": 4, "methods": [method]})
    learner = Learner(experiment(profile, method, 0, 3e-4, **overrides), profile, dataset, CPU)
    learner.fit_bias(images)
    return learner, [train_epoch(learner, images, epoch, False) for epoch in range(1, epochs + 1)]


def flat(learner):
    return torch.cat([p.detach().flatten() for p in learner.parameters])


def test_bf16_towers_give_float32_losses_close_to_fp32(dataset, images):
    full, (row,) = trained(dataset, images)
    half, (half_row,) = trained(dataset, images, precision="bf16")
    batch, rows = torch.from_numpy(images[:8]).permute(0, 3, 1, 2), torch.arange(8)
    terms = half.terms(batch, rows)
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert all(p.dtype == torch.float32 for p in half.parameters)
    assert half_row["loss"] == pytest.approx(row["loss"], rel=0.02) and half_row["loss"] != row["loss"]


def test_gradient_checkpointing_gives_the_same_bits(dataset, images):
    plain, _ = trained(dataset, images)
    checkpointed, _ = trained(dataset, images, grad_checkpointing=True)
    assert checkpointed.model.visual.transformer.grad_checkpointing if hasattr(
        checkpointed.model.visual, "transformer") else checkpointed.model.transformer.grad_checkpointing  # fmt: skip
    assert torch.equal(flat(plain), flat(checkpointed))


@pytest.fixture
def small_vit(monkeypatch):
    """A tiny ViT in place of ViT-B/16: accumulation is refused where BatchNorm would tell the parts apart."""
    towers = {
        "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }

    def load(*arguments):
        torch.manual_seed(0)
        return open_clip.CLIP(embed_dim=32, **towers), open_clip.SimpleTokenizer(context_length=32)

    monkeypatch.setattr(module, "load_model", load)


@pytest.mark.parametrize("method", ["bce", "asl"])
def test_a_batch_in_parts_gives_the_same_gradient(dataset, images, method, small_vit):
    rows = []
    for accumulate in (1, 2, 4):
        profile = load_profile("voc", overrides={"methods": [method], "draws": 12, "accumulate": accumulate})
        learner = Learner(experiment(profile, method, 0, 0.0), profile, dataset, CPU)
        learner.fit_bias(images)
        rows.append(train_epoch(learner, images, 1, False))  # batches of 8 and of 4
    for row in rows[1:]:
        for name in ("loss", "label_loss", "gradient_norm"):
            assert row[name] == pytest.approx(rows[0][name], rel=1e-5), name


def test_bal_in_parts_would_be_another_loss(dataset, images):
    learner, _ = trained(dataset, images, "bal", 0)
    batch, rows = torch.from_numpy(images[:8]).permute(0, 3, 1, 2), torch.arange(8)
    whole = learner.terms(batch, rows)["label"].item()
    parts = [learner.terms(batch[i : i + 4], rows[i : i + 4])["label"].item() for i in (0, 4)]
    assert abs(np.mean(parts) - whole) > 1e-6


def test_an_epoch_can_be_cut_short(dataset, images):
    _, (row,) = trained(dataset, images, draws=3)
    assert row["loss"] > 0
    with pytest.raises(LMCLIPError, match="draws"):
        trained(dataset, images, draws=-1)


def test_zero_shot_with_80_templates_is_their_mean(dataset):
    model, tokenizer = load_model("ViT-B-16-quickgelu", "random")
    profile = load_profile("voc", weights="random")
    photos = LongTailDataset("photos", ["a", "b", "c"], np.eye(3, dtype=np.uint8), NAMES)
    learner = Learner(experiment(profile, "zero-shot-ensemble"), profile, photos, CPU)
    with torch.inference_mode():
        found = learner.label_features()
        for name, feature in zip(NAMES, found, strict=True):
            prompts = [template(name) for template in module.open_clip.OPENAI_IMAGENET_TEMPLATES]
            each = model.encode_text(tokenizer(prompts), normalize=True)
            assert len(prompts) == 80 and torch.allclose(
                feature, torch.nn.functional.normalize(each.mean(0), dim=0), atol=1e-5)  # fmt: skip
    with pytest.raises(LMCLIPError, match="80 templates are for zero-shot"):
        experiment(profile, "bce", templates="ensemble")


def test_tf32_is_refused_where_there_is_none(dataset, images):
    with pytest.raises(LMCLIPError, match="tf32 is a mode of NVIDIA GPUs"):
        set_precision("tf32", CPU)


def test_too_little_memory_names_what_would_need_less():
    exp = experiment(load_profile("voc", backbone="vit-l-14"), "lm-clip")
    with pytest.raises(LMCLIPError, match="vit-l-14 at batch 8 in fp32.*precision bf16.*grad_checkpointing.*backbone"):
        with enough_memory(exp, CPU):
            raise torch.OutOfMemoryError("CUDA out of memory")
    bare = exp.model_copy(update={"precision": "bf16", "grad_checkpointing": True, "backbone": "rn50", "batch_size": 1})
    with pytest.raises(LMCLIPError, match="another machine"), enough_memory(bare, CPU):
        torch.empty(2**58)  # what a CPU says
    with pytest.raises(RuntimeError, match="something else"), enough_memory(exp, CPU):
        raise RuntimeError("something else")
