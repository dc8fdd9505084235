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
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from lmclip.errors import LMCLIPError
from lmclip.paths import display, pretrained_dir
from lmclip.profiles import BACKBONES, weights_label

MINI_CLIP = "mini-clip"
_POSITIONS = 512  # tokens of one packed sequence
OPENAI_MODELS = tuple(name for name in BACKBONES.values() if name != MINI_CLIP)

CLIP_STATISTICS = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
# what the release uses (release line 11)
IMAGENET_STATISTICS = (open_clip.constants.IMAGENET_MEAN, open_clip.constants.IMAGENET_STD)


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
        model = open_clip.CLIP(**open_clip.get_model_config(name))
    if str(weights) != "random":
        path = _openai_file(name) if str(weights) == "auto" else Path(weights).expanduser()
        state = read_weights(path)
        _load_checked(model, state, path, name)
        if str(weights) != "auto" and not _is_openais(state):
            raise LMCLIPError(f"{display(path)} does not hold OpenAI's weights, which are half-precision numbers with "
                              "exp(logit_scale) at 100; those of others were mostly trained with GELU, and a model "
                              "with QuickGELU would be wrong with them without a sign of it")  # fmt: skip
    return model, open_clip.get_tokenizer(name)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file: safetensors, or a file of ``torch.save`` that holds tensors alone.

    Nothing in the file is executed.

    Raises:
        LMCLIPError: missing, truncated, or a file that would have to be executed to be read.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise LMCLIPError(f"no weights at {display(path)}") from None
    except Exception as error:  # torch and safetensors raise many types for a damaged file
        reason = "a TorchScript archive" if "TorchScript" in str(error) else "truncated, or no file of tensors alone"
        raise LMCLIPError(f"{display(path)} can't be read as weights: it is {reason}; bring "
                          "open_clip_model.safetensors from its page at huggingface.co/timm") from error  # fmt: skip
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise LMCLIPError(f"{display(path)} holds no table of tensors by name; bring a model's state_dict")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _openai_file(name: str) -> Path:
    """OpenAI's weights in the hub's cache; fetched into it where they are not there yet."""
    settings = get_pretrained_cfg(name, "openai")
    if settings.get("quick_gelu") != open_clip.get_model_config(name).get("quick_gelu"):
        raise LMCLIPError(f"{name}: QuickGELU mismatch between open_clip's model and OpenAI's weights; install the "
                          "version of open_clip_torch that requirements.lock pins")  # fmt: skip
    try:
        return Path(download_pretrained(settings, prefer_hf_hub=True))
    except Exception as error:  # the hub raises many types
        page = f"huggingface.co/{settings['hf_hub'].strip('/')}"
        raise LMCLIPError(f"{name}: OpenAI's weights are not in the hub's cache and can't be fetched; get "
                          f"open_clip_model.safetensors from {page} on a machine with internet, bring it here, and "
                          "name it with --weights FILE") from error  # fmt: skip


def _load_checked(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path, name: str) -> None:
    # OpenAI's own files hold three sizes among the weights, and BatchNorm's step counters or none.
    own, given = (
        {key: tuple(v.shape) for key, v in tensors.items() if v.is_floating_point()}
        for tensors in (model.state_dict(), {key: torch.as_tensor(v) for key, v in state.items()})
    )
    differing = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if differing:
        first = differing[0]
        sides = [f"is {shapes[first]}" if first in shapes else "is missing" for shapes in (given, own)]
        raise LMCLIPError(f"{display(path)} is of another architecture than {name}: {len(differing)} tensors differ, "
                          f"such as {first}, which {sides[0]} in the file and {sides[1]} in the model")  # fmt: skip
    model.load_state_dict({key: value.float() for key, value in state.items() if key in own}, strict=False)


def _is_openais(state: dict[str, torch.Tensor]) -> bool:
    """Whether weights are as all were that OpenAI released: matrices in half precision, temperature at its bound."""
    if abs(float(state["logit_scale"]) - np.log(100)) > 1e-2:
        return False
    blocks = [value for key, value in state.items() if key.startswith("transformer.") and value.dim() == 2]
    return all(torch.equal(value.half().float(), value.float()) for value in blocks)


def weights_id(name: str, weights: str = "auto") -> str:
    """What weights are known by: their name at open_clip, or the sha256 (or its start) of the file."""
    path = pretrained_dir() / "mini-clip.safetensors"
    if weights != "auto":
        return weights_label(weights)
    if name != MINI_CLIP:
        return "openai"
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "missing"


def encode_text(model: torch.nn.Module, tokens: torch.Tensor, normalize: bool = False) -> torch.Tensor:
    """Text features without padding, and with the texts' common opening computed once: exact, and far cheaper.

    CLIP's text tower is causal and reads its feature at the end token, so no token after it can matter, and texts that
    open alike ("a photo of a ...") have the same activations there. The texts are laid end to end behind their common
    opening, as one sequence in which a mask lets each text see the opening and itself: for 20 labels and 8 captions
    some 130 positions in place of 28 × 77.

    Args:
        model: an ``open_clip.CLIP``.
        tokens: (N, context length) int64, padded with zeros.
        normalize: divide each feature by its Euclidean norm.

    Returns:
        (N, D) features, equal to ``model.encode_text(tokens, normalize)`` but for rounding.

    Raises:
        LMCLIPError: the text tower is not causal or not read at the end token, so this would not be exact.
    """
    if model.text_pool_type != "argmax" or model.attn_mask is None:
        raise LMCLIPError("encode_text needs a causal text tower that is read at its end token, as CLIP's is")
    parts = [_encode_packed(model, part) for part in _packs(tokens.cpu())]
    features = torch.cat(parts) if len(parts) != 1 else parts[0]  # (N, D)
    return _normalized(features) if normalize else features


def _packs(tokens: torch.Tensor) -> list[torch.Tensor]:
    """Neighbouring texts in groups of at most ``_POSITIONS`` tokens: attention's cost grows with a group's square."""
    ends = (tokens.argmax(1) + 1).cumsum(0)  # the end token has the largest id
    starts = [0]
    for row in range(1, len(tokens)):
        if ends[row] - (ends[starts[-1] - 1] if starts[-1] else 0) > _POSITIONS:
            starts.append(row)
    return [tokens[a:b] for a, b in zip(starts, [*starts[1:], len(tokens)], strict=True)]


def _encode_packed(model: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    device = model.token_embedding.weight.device
    lengths = tokens.argmax(1) + 1  # (N,)
    equal = (tokens == tokens[0]).all(0).long().cumprod(0)  # (context length,) 1 while all texts are the same
    opening = min(int(equal.sum()), int(lengths.min()) - 1)  # every text keeps a token of its own, its end token
    own = torch.arange(tokens.shape[1])
    text, place = torch.nonzero((own >= opening) & (own < lengths[:, None]), as_tuple=True)  # row by row
    text = torch.cat([torch.full((opening,), -1), text])  # (L,) whose token it is; -1: everybody's
    place = torch.cat([own[:opening], place])  # (L,) where it stands in its text
    visible = ((text == -1) | (text == text[:, None])) & (place <= place[:, None])  # (L, L)
    mask = torch.zeros(visible.shape).masked_fill_(~visible, float("-inf"))
    packed = tokens[text.clamp(min=0), place].to(device, non_blocking=True)
    ends = opening - 1 + (lengths - opening).cumsum(0)  # (N,)
    dtype = model.transformer.get_cast_dtype()
    x = model.token_embedding(packed).to(dtype) + model.positional_embedding[place.to(device)].to(dtype)  # (L, width)
    x = model.transformer(x[None], attn_mask=mask.to(device=device, dtype=dtype, non_blocking=True))[0]
    return model.ln_final(x[ends.to(device)]) @ model.text_projection  # (N, D)


def encode_image(model: torch.nn.Module, images: torch.Tensor, statistics=CLIP_STATISTICS) -> torch.Tensor:
    """(N, D) L2-normalised image features of (N, 3, H, W) uint8 images, standardised by ``statistics`` on the way."""
    return _normalized(model.encode_image(standardized(images, statistics)))


def standardized(images: torch.Tensor, statistics=CLIP_STATISTICS) -> torch.Tensor:
    """(N, 3, H, W) uint8 images, less the means and over the deviations of ``statistics``: float32, channels last."""
    mean, std = (torch.tensor(s, device=images.device).repeat(images.shape[3]) * 255 for s in statistics)
    x = images.permute(0, 2, 3, 1).flatten(2).to(torch.float32, copy=True)  # long rows: several times as fast
    return x.sub_(mean).div_(std).unflatten(2, (-1, 3)).permute(0, 3, 1, 2)


def _normalized(features: torch.Tensor) -> torch.Tensor:
    """Rows of unit length, in float32 at least: under autocast the towers give bfloat16."""
    return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)


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
    except (OSError, ValueError, RecursionError) as error:
        raise LMCLIPError(f"{display(path)} can't be read ({error}); restore it from the repository") from error
