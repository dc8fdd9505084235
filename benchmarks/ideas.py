"""What else might save time: one measurement per idea, for NOTES.md, which says what was expected and what was kept.

    python benchmarks/ideas.py                                 # all; about 20 minutes on two cores
    python benchmarks/ideas.py --ideas optimiser positions

Each idea is two or more ways to compute the same thing, in turns; the first is what the study does. Writes
results/benchmarks/ideas-<device>.csv.
"""

import ctypes
import os
import time
from collections.abc import Callable

import numpy as np
import open_clip
import torch
import tyro
from machine import save
from steps import BATCH, LEARNING_RATE, Steps, as_training, dataset_of
from timing import in_turns, ratios

from lmclip import models
from lmclip.captions import tokenize_lists
from lmclip.config import load_profile
from lmclip.learner import TEMPLATE
from lmclip.models import encode_text, load_model, standardized

VIT, RN50 = "ViT-B-16-quickgelu", "RN50-quickgelu"
Ways = dict[str, Callable]


def main(ideas: tuple[str, ...] = (), repeats: int = 5, threads: int = 0) -> None:
    """Measure the ideas.

    Args:
        ideas: Which; none: all.
        repeats: Turns of each.
        threads: Threads of torch; 0: one per core.
    """
    torch.set_num_threads(threads or os.cpu_count() or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for idea in ideas or tuple(IDEAS):
        rows = []
        for setting, ways in IDEAS[idea](device):
            measured = in_turns(ways, repeats, warm_up=1)
            first = next(iter(measured.values()))
            for way, one in measured.items():
                ratio = ratios(one, first)
                rows.append({"idea": idea, "setting": setting, "way": way, "seconds": one.median,
                             "times the first": float(np.median(ratio)), "lowest": ratio.min(), "highest": ratio.max(),
                             "peak MiB": one.peak_mib})  # fmt: skip
                told = (f"{k}: {v:.4g}" if isinstance(v, float) else str(v) for k, v in rows[-1].items())
                print("  " + ", ".join(told), flush=True)
        save("ideas", rows, device, replaces="idea")


# ── texts ───────────────────────────────────────────────────────────────────────────────────────


def texts_of(benchmark: str, tokenizer) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of all labels and of one batch's distinct captions."""
    dataset = dataset_of(benchmark, 64)
    labels = tokenizer([TEMPLATE.format(name) for name in dataset.class_names])
    return labels, tokenizer(sorted(set(dataset.captions[-BATCH:])))


def backwards(features: torch.Tensor, model: torch.nn.Module) -> None:
    """The gradient of something that depends on all features, as the loop computes it."""
    with as_training():
        features.float().square().sum().backward()
    model.zero_grad()


def packs(device):
    """Labels and captions in one pass of the text tower, or in two."""
    model, tokenizer = _loaded(VIT, device)
    for benchmark in ("voc", "coco"):
        labels, captions = texts_of(benchmark, tokenizer)
        yield benchmark, {
            "one pass": lambda a=labels, b=captions: backwards(encode_text(model, torch.cat([a, b])), model),
            "two passes": lambda a=labels, b=captions: backwards(
                torch.cat([encode_text(model, a), encode_text(model, b)]), model),
        }  # fmt: skip


def positions(device):
    """Tokens of one packed sequence at most."""
    model, tokenizer = _loaded(VIT, device)
    tokens = torch.cat(texts_of("coco", tokenizer))

    def call(limit: int) -> None:
        kept, models._POSITIONS = models._POSITIONS, limit
        try:
            backwards(encode_text(model, tokens), model)
        finally:
            models._POSITIONS = kept

    limits = (512, 128, 256, 1024)
    yield "coco", {str(limit): lambda limit=limit: call(limit) for limit in limits}


def captions(device):
    """Captions of 1,909 images tokenised by their words, all in one call, or one at a time."""
    tokenizer = open_clip.get_tokenizer(VIT)
    texts = sorted(set(dataset_of("coco", 1_909).captions))
    yield (
        "coco",
        {
            "by words": lambda: tokenize_lists(tokenizer, texts).shape,
            "one call": lambda: tokenizer(texts).shape,
            "one at a time": lambda: torch.cat([tokenizer([text]) for text in texts]).shape,
        },
    )


# ── images ──────────────────────────────────────────────────────────────────────────────────────


def channels_last(device):
    """Memory layout of images and convolutions."""
    for name in (RN50, VIT):
        ways = {}
        for layout in (torch.channels_last, torch.contiguous_format):
            model, _ = _loaded(name, device)
            visual = model.visual.to(memory_format=layout)
            images = standardized(_noise(BATCH, device)).contiguous(memory_format=layout)
            ways[str(layout).removeprefix("torch.")] = lambda v=visual, x=images: backwards(v(x), v)
        yield name.split("-quick")[0], ways


def bf16_weights(device):
    """bf16 by autocast, with weights in float32; by weights that are cast once; and none."""
    model, _ = _loaded(VIT, device)
    half, _ = _loaded(VIT, device)
    half.visual.to(torch.bfloat16)
    images = standardized(_noise(BATCH, device))

    def autocast() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            features = model.visual(images)
        backwards(features, model)

    yield (
        "ViT-B/16, image tower",
        {
            "autocast": autocast,
            "bf16 weights": lambda: backwards(half.visual(images.bfloat16()), half),
            "fp32": lambda: backwards(model.visual(images), model),
        },
    )


def compiled(device):
    """torch.compile of the image tower; its first call, which compiles, is printed and not part of the turns."""
    for precision in ("fp32", "bf16"):
        model, _ = _loaded(VIT, device)
        images = standardized(_noise(BATCH, device))
        fast = torch.compile(model.visual)

        def call(tower, model=model, images=images, precision=precision) -> None:
            with as_training():  # as a whole: a compiled graph remembers what it was compiled under
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    features = tower(images)
                backwards(features, model)

        start = time.perf_counter()
        call(fast)
        print(f"  compiled, {precision}: first call {time.perf_counter() - start:.0f} s")
        yield f"ViT-B/16, image tower, {precision}", {"eager": lambda c=call, m=model: c(m.visual),
                                                      "compiled": lambda c=call, f=fast: c(f)}  # fmt: skip


def standardising(device):
    """uint8 to standardised float32: means and deviations laid along whole rows, or per channel."""
    images = _noise(BATCH, device).permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    mean, std = (torch.tensor(s, device=device).view(1, 3, 1, 1) * 255 for s in models.CLIP_STATISTICS)
    yield (
        "8 images",
        {
            "whole rows": lambda: standardized(images).shape,
            "per channel": lambda: ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last).shape,
        },
    )


def flips(device):
    """Some images of a batch flipped: these alone, or all and then chosen between."""
    images, chosen = _noise(BATCH, device).permute(0, 2, 3, 1).contiguous(), torch.arange(BATCH, device=device) % 2 == 0

    def some() -> None:
        batch = images.clone().permute(0, 3, 1, 2)
        for row in chosen.nonzero().flatten().tolist():
            batch[row] = batch[row].flip(2)

    def every() -> None:
        batch = images.clone().permute(0, 3, 1, 2)
        torch.where(chosen[:, None, None, None], batch.flip(3), batch)

    yield "8 images", {"these alone": some, "all, then chosen": every}


def evaluation_batch(device):
    """Images per forward pass, without gradients and under inference mode; 64 images each."""
    model, _ = _loaded(VIT, device)
    model.eval()
    images = standardized(_noise(64, device))

    def call(size: int, mode, autocast: bool) -> None:
        with mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            for part in images.split(size):
                model.encode_image(part)

    for precision in ("fp32", "bf16"):
        ways = [(size, torch.no_grad) for size in (8, 16, 32, 64)] + [(8, torch.inference_mode)]
        yield (
            f"ViT-B/16, 64 images, {precision}",
            {f"{size}, {mode.__name__}": lambda size=size, mode=mode, half=precision == "bf16": call(size, mode, half)
             for size, mode in ways},
        )  # fmt: skip


# ── the step around them ────────────────────────────────────────────────────────────────────────


def optimiser(device):
    """AdamW over ViT-B/16's 150 million weights."""
    model, _ = _loaded(VIT, device)
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in model.parameters()]
    for p in parameters:
        p.grad = torch.full_like(p, 1e-3)
    settings = {"fused": {"fused": True}, "foreach": {"foreach": True}, "one by one": {"foreach": False}}
    ways = {name: torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.98), eps=1e-9, weight_decay=0.01,
                                    **given).step for name, given in settings.items()}  # fmt: skip
    yield "ViT-B/16", ways


def deterministic(device):
    """Deterministic algorithms, which fill every new tensor; without that filling; and without both."""
    steps = Steps(load_profile("voc", weights="random"), dataset_of("voc"), device)
    step = steps.ours()

    def call(algorithms: bool, filled: bool) -> None:
        torch.utils.deterministic.fill_uninitialized_memory = filled
        try:
            step(algorithms)
        finally:
            torch.utils.deterministic.fill_uninitialized_memory = True

    yield "step, VOC, fp32", {"filled": lambda: call(True, True), "not filled": lambda: call(True, False),
                              "neither": lambda: call(False, False)}  # fmt: skip


def gradients(device):
    """Gradients freed after each step, as the loop does, or kept and set to zero."""
    steps = Steps(load_profile("voc", weights="random"), dataset_of("voc"), device)
    step = steps.ours()
    free = step.learner.optimizer.zero_grad

    def call(to_none: bool) -> None:
        step.learner.optimizer.zero_grad = lambda: free(set_to_none=to_none)
        step()

    yield "step, VOC, fp32", {"freed": lambda: call(True), "zeroed": lambda: call(False)}


def allocator(device):
    """Freed memory returned to the system at once, as glibc does with large blocks, or kept for the next allocation."""
    libc = ctypes.CDLL(None)
    steps = Steps(load_profile("voc", weights="random"), dataset_of("voc"), device)
    step = steps.ours()
    images = standardized(_noise(32, device))

    def evaluate() -> None:
        with torch.no_grad():
            step.learner.model.encode_image(images)

    def call(work: Callable, threshold: int, trim: int) -> None:
        libc.mallopt(-3, threshold)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, trim)  # M_TRIM_THRESHOLD
        work()

    for name, work in (("step, VOC, fp32", step), ("ViT-B/16, 32 images, fp32", evaluate)):
        yield name, {"returned": lambda w=work: call(w, 2**17, 2**17), "kept": lambda w=work: call(w, 2**30, 2**31 - 1)}


def _loaded(name: str, device: torch.device):
    model, tokenizer = load_model(name, "random")
    return model.to(device=device, memory_format=torch.channels_last).train(), tokenizer


def _noise(number: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (number, 3, 224, 224), dtype=torch.uint8, generator=generator).to(device)


IDEAS = {"packs": packs, "positions": positions, "captions": captions, "channels-last": channels_last,
         "bf16 weights": bf16_weights, "compile": compiled, "standardising": standardising, "flips": flips,
         "evaluation batch": evaluation_batch, "optimiser": optimiser, "deterministic": deterministic,
         "gradients": gradients, "allocator": allocator}  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
