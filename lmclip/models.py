"""CLIP models from open_clip, the mini CLIP among them, and text encoding that skips the padding.

model, tokenizer = load_model("mini-clip")
label_features = encode_text(model, tokenizer(["a photo of a cat", "a photo of a dog"]))   # (2, D)
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import open_clip
import torch
from open_clip.transformer import text_global_pool
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from lmclip.errors import LMCLIPError
from lmclip.paths import display, pretrained_dir

MINI_CLIP = "mini-clip"
OPENAI_MODELS = ("RN50-quickgelu", "ViT-B-16-quickgelu", "ViT-L-14-quickgelu")  # OpenAI trained with QuickGELU

CLIP_STATISTICS = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
IMAGENET_STATISTICS = (
    open_clip.constants.IMAGENET_MEAN,
    open_clip.constants.IMAGENET_STD,
)  # what the release uses (release line 11)


def load_model(name: str = MINI_CLIP, weights: str | Path = "auto", seed: int = 0):
    """Build a CLIP model on the CPU in float32, with its tokenizer.

    Args:
        name: ``"mini-clip"`` or one of ``OPENAI_MODELS``.
        weights: ``"auto"`` (the shipped file for the mini CLIP, OpenAI's weights otherwise), ``"random"``
            (initialised from ``seed``), or the path of a local weights file.
        seed: seed of random weights.

    Returns:
        ``(model, tokenizer)``; ``tokenizer(texts)`` gives (len(texts), context length) int64 tokens.

    Raises:
        LMCLIPError: unknown name, missing, corrupt or mismatched weights.
    """
    if name == MINI_CLIP:
        return _load_mini_clip(weights, seed)
    if name not in OPENAI_MODELS:
        known = ", ".join((MINI_CLIP, *OPENAI_MODELS))
        hint = " (OpenAI's weights need the -quickgelu variant)" if f"{name}-quickgelu" in OPENAI_MODELS else ""
        raise LMCLIPError(f"unknown model {name!r}{hint}; choose one of: {known}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pretrained = {"auto": "openai", "random": None}.get(str(weights), str(weights))
        try:
            model = open_clip.create_model(name, pretrained=pretrained, force_quick_gelu=True)
        except Exception as error:  # open_clip, torch and the hub raise many types for a bad or absent file
            raise LMCLIPError(f"{name}: the weights {weights!r} could not be loaded ({error})") from error
    return model, open_clip.get_tokenizer(name)


def weights_id(name: str) -> str:
    """What the default weights of a model are known by: the sha256 of the shipped file, or their name at open_clip."""
    path = pretrained_dir() / "mini-clip.safetensors"
    if name != MINI_CLIP:
        return "openai"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def encode_text(model: torch.nn.Module, tokens: torch.Tensor, normalize: bool = False) -> torch.Tensor:
    """Text features without computing what the padding would: exact, and a fraction of the cost.

    CLIP's text tower is causal and reads its feature at the end token, so no token after it can matter.
    The batch is cut at its longest end token: 9 instead of 77 tokens for "a photo of a cat, dog".

    Args:
        model: an ``open_clip.CLIP``.
        tokens: (N, context length) int64, padded with zeros.
        normalize: divide each feature by its Euclidean norm.

    Returns:
        (N, D) features, equal to ``model.encode_text(tokens, normalize)``.

    Raises:
        LMCLIPError: the text tower is not causal or not read at the end token, so cutting would not be exact.
    """
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        raise LMCLIPError("encode_text needs a causal text tower that is read at its end token, as CLIP's is")
    length = int(tokens.argmax(dim=-1).max()) + 1  # the end token has the largest id
    tokens = tokens[:, :length]
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(tokens).to(dtype) + model.positional_embedding[:length].to(dtype)  # (N, length, width)
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    features = text_global_pool(x, tokens, model.text_pool_type) @ model.text_projection  # (N, D)
    return F.normalize(features, dim=-1) if normalize else features


def encode_image(model: torch.nn.Module, images: torch.Tensor, statistics=CLIP_STATISTICS) -> torch.Tensor:
    """(N, D) L2-normalised image features of (N, 3, H, W) uint8 images, normalised by ``statistics`` on the way."""
    mean, std = (torch.tensor(s, device=images.device).view(1, 3, 1, 1) * 255 for s in statistics)
    x = ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
    return model.encode_image(x, normalize=True)


_clip_tokenizer = cache(open_clip.tokenizer.SimpleTokenizer)  # building one reads a 1.3 MB vocabulary


# ── the mini CLIP ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class MiniTokenizer:
    """CLIP's own tokenizer, reduced to the tokens that the mini CLIP knows.

    CLIP's 49,408 token embeddings would outweigh the rest of a small model, so the mini CLIP keeps
    those of its vocabulary. Ids are renumbered in order, which leaves the end token the largest.
    """

    token_ids: np.ndarray  # (V,) sorted ids in CLIP's vocabulary; row r of the embedding belongs to token_ids[r]
    context_length: int

    @classmethod
    def from_words(cls, words: list[str], context_length: int) -> "MiniTokenizer":
        """The tokenizer that knows exactly ``words`` (and the padding, start and end tokens)."""
        full = _clip_tokenizer()
        ids = {0, full.sot_token_id, full.eot_token_id}
        ids.update(*(full.encode(word) for word in words))
        return cls(np.array(sorted(ids)), context_length)

    def __call__(self, texts: list[str] | str) -> torch.Tensor:
        texts = [texts] if isinstance(texts, str) else texts
        tokens = _clip_tokenizer()(texts, self.context_length).numpy()
        rows = np.searchsorted(self.token_ids, tokens).clip(max=len(self.token_ids) - 1)
        unknown = np.flatnonzero((self.token_ids[rows] != tokens).any(1))
        if len(unknown):
            raise LMCLIPError(f"the mini CLIP does not know every word of {texts[unknown[0]]!r}; its words are in "
                              f"{display(pretrained_dir() / 'vocabulary.txt')}")  # fmt: skip
        return torch.from_numpy(rows)


def new_mini_clip(seed: int, words: list[str]):
    """An untrained mini CLIP, initialised from ``seed``, and its tokenizer."""
    config = _read(pretrained_dir() / "config.json", json.loads)
    tokenizer = MiniTokenizer.from_words(words, config["text_cfg"]["context_length"])
    config["text_cfg"]["vocab_size"] = len(tokenizer.token_ids)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return open_clip.CLIP(**config), tokenizer


def save_mini_clip(model: torch.nn.Module, tokenizer: MiniTokenizer, path: Path) -> None:
    """Write weights (float16) and the kept token ids as safetensors."""
    tensors = {
        name: value.half().contiguous() for name, value in model.state_dict().items() if value.is_floating_point()
    }
    tensors["token_ids"] = torch.from_numpy(tokenizer.token_ids)
    save_file(tensors, path)


def _load_mini_clip(weights, seed):
    words = _read(pretrained_dir() / "vocabulary.txt", str.split)
    model, tokenizer = new_mini_clip(seed, words)
    if str(weights) == "random":
        return model.eval(), tokenizer
    path = pretrained_dir() / "mini-clip.safetensors" if str(weights) == "auto" else Path(weights)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise LMCLIPError(f"no weights at {display(path)}; restore the file from the repository, or train it "
                          "with `lmclip pretrain`") from None  # fmt: skip
    except (SafetensorError, OSError) as error:
        raise LMCLIPError(f"{display(path)} is not a readable safetensors file ({error}); restore it from the "
                          "repository") from error  # fmt: skip
    if not np.array_equal(tensors.pop("token_ids", torch.zeros(0)).numpy(), tokenizer.token_ids):
        raise LMCLIPError(f"{display(path)} was trained with another vocabulary than vocabulary.txt beside it")
    floats = {name: value.float() for name, value in tensors.items()}
    own = {name: value.shape for name, value in model.state_dict().items() if value.is_floating_point()}
    differing = [
        name for name in own.keys() | floats.keys() if own.get(name) != getattr(floats.get(name), "shape", None)
    ]
    if differing:
        raise LMCLIPError(f"{display(path)} does not fit the mini CLIP of config.json: {sorted(differing)[0]} differs")
    model.load_state_dict(floats, strict=False)  # what is missing are BatchNorm's integer step counters
    return model.eval(), tokenizer


def _read(path, parse):
    try:
        return parse(path.read_text())
    except (OSError, ValueError) as error:
        raise LMCLIPError(f"{display(path)} can't be read ({error}); restore it from the repository") from error
