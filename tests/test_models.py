"""CLIP models: padding-free text encoding is exact, and weights that do not fit are refused in a sentence."""

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lmclip import models
from lmclip.errors import LMCLIPError
from lmclip.glyphs import CLASS_NAMES
from lmclip.models import (
    CLIP_STATISTICS,
    IMAGENET_STATISTICS,
    encode_image,
    encode_text,
    load_model,
    new_mini_clip,
    save_mini_clip,
    weights_id,
)
from lmclip.paths import pretrained_dir


@pytest.fixture(scope="module")
def mini():
    return load_model()


@pytest.fixture(scope="module")
def vit():
    return load_model("ViT-B-16-quickgelu", "random", seed=3)


TEXTS = [
    "a photo of a dog",
    "a photo of a dining table, a person and two very long words: refrigerator, toothbrush",
    "x",
]


@torch.inference_mode()
def test_text_without_padding_equals_open_clip(vit):
    model, tokenizer = vit
    model.double()
    for texts in (TEXTS, TEXTS[:1], TEXTS[2:]):
        tokens = tokenizer(texts)
        assert tokens.shape[1] == 77
        for normalize in (False, True):
            ours, theirs = encode_text(model, tokens, normalize), model.encode_text(tokens, normalize)
            assert (ours - theirs).abs().max() < 1e-6
    model.float()


@given(names=st.lists(st.lists(st.sampled_from(CLASS_NAMES), min_size=1, max_size=5), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_mini_clip_text_without_padding_equals_open_clip(mini, names):
    model, tokenizer = mini
    tokens = tokenizer(["a photo of a " + ", ".join(group) for group in names])
    with torch.inference_mode():
        assert (encode_text(model, tokens) - model.encode_text(tokens)).abs().max() < 1e-5


def test_gradients_agree_too(mini):
    model, tokenizer = mini
    tokens = tokenizer(["a photo of a cat", "a photo of a star, sun"])
    gradients = []
    for encode in (encode_text, type(model).encode_text):
        model.zero_grad()
        encode(model, tokens).square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (gradients[0] - gradients[1]).abs().max() < 1e-4 * gradients[1].abs().max()
    model.zero_grad()


def test_a_text_tower_that_is_not_causal_is_refused(mini):
    model, tokenizer = mini
    kept, model.attn_mask = model.attn_mask, None
    try:
        with pytest.raises(LMCLIPError, match="causal"):
            encode_text(model, tokenizer(["cat"]))
    finally:
        model.attn_mask = kept


def test_mini_tokenizer_keeps_the_meaning_of_tokens(mini):
    _, tokenizer = mini
    texts = ["a photo of a cat, hand", "look at this snowman"]
    theirs = open_clip.tokenizer.SimpleTokenizer(context_length=32)(texts).numpy()
    ours = tokenizer(texts)
    assert (tokenizer.token_ids[ours.numpy()] == theirs).all()
    assert (ours.argmax(1).numpy() == theirs.argmax(1)).all(), "the end token must stay the largest"


def test_unknown_words_are_refused(mini):
    with pytest.raises(LMCLIPError, match=r"a photo of a zeppelin.*vocabulary\.txt"):
        mini[1](["a photo of a cat", "a photo of a zeppelin"])


def test_image_features_use_the_statistics_that_are_asked_for(mini):
    model, _ = mini
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        for mean, std in (CLIP_STATISTICS, IMAGENET_STATISTICS):
            x = (images / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
            expected = model.encode_image(x, normalize=True)
            assert torch.allclose(encode_image(model, images, (mean, std)), expected, atol=1e-5)


def test_random_weights_follow_the_seed():
    first, again, other = (load_model(weights="random", seed=s)[0].text_projection for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_saved_weights_come_back(tmp_path, mini):
    model, tokenizer = mini
    save_mini_clip(model, tokenizer, tmp_path / "w.safetensors")
    again, _ = load_model(weights=tmp_path / "w.safetensors")
    for (name, a), b in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-3), name


def test_shipped_weights_are_small_and_safe():
    path = pretrained_dir() / "mini-clip.safetensors"
    assert path.stat().st_size < 6e6
    assert np.array_equal(load_file(path)["token_ids"].numpy(), load_model()[1].token_ids)


@pytest.mark.parametrize("name, hint", [("ViT-B-16", "quickgelu"), ("resnet", "mini-clip")])
def test_unknown_models_are_refused(name, hint):
    with pytest.raises(LMCLIPError, match=f"{name}.*{hint}"):
        load_model(name)


def test_missing_corrupt_and_foreign_weights_are_refused(tmp_path):
    with pytest.raises(LMCLIPError, match=r"no weights at none\.safetensors.*pretrain"):
        load_model(weights=tmp_path / "none.safetensors")
    good = (pretrained_dir() / "mini-clip.safetensors").read_bytes()
    for bad in (b"", b"x" * 100, good[: len(good) // 2]):
        (tmp_path / "bad.safetensors").write_bytes(bad)
        with pytest.raises(LMCLIPError, match=r"bad\.safetensors is not a readable"):
            load_model(weights=tmp_path / "bad.safetensors")
    tensors = load_file(pretrained_dir() / "mini-clip.safetensors")
    save_file(tensors | {"text_projection": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(LMCLIPError, match="text_projection differs"):
        load_model(weights=tmp_path / "other.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "ln_final.weight"}, tmp_path / "less.safetensors")
    with pytest.raises(LMCLIPError, match=r"ln_final\.weight differs"):
        load_model(weights=tmp_path / "less.safetensors")
    save_file(tensors | {"token_ids": tensors["token_ids"] + 1}, tmp_path / "words.safetensors")
    with pytest.raises(LMCLIPError, match="another vocabulary"):
        load_model(weights=tmp_path / "words.safetensors")


def halved(model):
    """A state dict as OpenAI released theirs: every matrix a half-precision number, the temperature at its bound."""
    state = {name: v.half().float() if v.dim() > 1 else v for name, v in model.state_dict().items()}
    return state | {"logit_scale": torch.tensor(100.0).log()}


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_local_file_of_the_right_kind_is_loaded_exactly(vit, tmp_path, ending):
    state = {name: value.contiguous().clone() for name, value in halved(vit[0]).items()}
    path = tmp_path / f"clip.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save({"state_dict": state}, path)
    model, _ = load_model("ViT-B-16-quickgelu", path)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert weights_id("ViT-B-16-quickgelu", str(path)).startswith("file-")


def test_weights_that_are_not_openais_are_refused(vit, tmp_path):
    state = {name: value.contiguous().clone() for name, value in vit[0].state_dict().items()}
    untrained = {name: v.half().float() if v.dim() > 1 else v for name, v in state.items()}
    for other in (state | {"logit_scale": torch.tensor(100.0).log()}, untrained):  # not halved; not trained
        save_file(other, tmp_path / "laion.safetensors")
        with pytest.raises(LMCLIPError, match=r"laion\.safetensors does not hold OpenAI's weights.*QuickGELU"):
            load_model("ViT-B-16-quickgelu", tmp_path / "laion.safetensors")


def test_another_architecture_is_refused_in_a_sentence(vit, tmp_path):
    torch.save(halved(vit[0]), tmp_path / "clip.pt")
    with pytest.raises(LMCLIPError, match=r"clip\.pt is of another architecture than RN50-quickgelu") as caught:
        load_model("RN50-quickgelu", tmp_path / "clip.pt")
    assert len(str(caught.value)) < 300


class Bomb:
    """What a hostile pickle holds: reading it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_broken_truncated_and_hostile_files_are_refused_and_not_run(vit, tmp_path):
    torch.save(halved(vit[0]), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.pt").write_bytes(b"nothing")
    (tmp_path / "half.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save(["no", "table"], tmp_path / "list.pt")
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pt")
    reasons = {"half.pt": "truncated", "none.pt": "truncated", "half.safetensors": "truncated",
               "bomb.pt": "tensors alone", "list.pt": "table of tensors", "script.pt": "TorchScript",
               "absent.pt": "no weights at"}  # fmt: skip
    for name, reason in reasons.items():
        with pytest.raises(LMCLIPError, match=reason) as caught:
            load_model("RN50-quickgelu", tmp_path / name)
        assert name in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_openais_weights_without_network_name_the_file_to_bring(monkeypatch):
    def refused(*arguments, **settings):
        raise OSError("no network")

    monkeypatch.setattr(models, "download_pretrained", refused)
    with pytest.raises(
        LMCLIPError, match=r"open_clip_model\.safetensors from huggingface.co/timm/\S+openai.*--weights"
    ):
        load_model("ViT-L-14-quickgelu")


def test_a_quickgelu_mismatch_between_model_and_weights_is_refused(monkeypatch):
    settings = models.get_pretrained_cfg("RN50-quickgelu", "openai")
    monkeypatch.setattr(models, "get_pretrained_cfg", lambda *name: settings | {"quick_gelu": False})
    with pytest.raises(LMCLIPError, match="QuickGELU mismatch"):
        load_model("RN50-quickgelu")


def test_new_mini_clip_is_an_open_clip_model():
    model, tokenizer = new_mini_clip(0, ["cat", "dog"])
    assert isinstance(model, open_clip.CLIP) and model.vocab_size == len(tokenizer.token_ids) == 5
