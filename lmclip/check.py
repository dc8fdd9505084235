"""Says, in one screen, what of VOC-MLT or COCO-MLT is there, what is missing or differs, and what to do next."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from lmclip.archives import fingerprint, read_fingerprints
from lmclip.benchmarks import PUBLISHED
from lmclip.config import load_profile
from lmclip.download import COCO_URL
from lmclip.errors import LMCLIPError
from lmclip.mlt import load_mlt, validation_split
from lmclip.paths import data_dir, display
from lmclip.sources import (
    IMAGE_FOLDERS,
    LABEL_FILES,
    SPLIT_NAMES,
    default_root,
    find_root,
    has_labels,
    missing_files,
    read_source,
)
from lmclip.splits import StudyData

# Images of the source splits as they were released.
SOURCE_IMAGES = {"voc": (11_540, 4_952), "coco": (118_287, 5_000)}
# Backbone → the page of OpenAI's weights from which open_clip fetches them, and their gigabytes.
WEIGHTS = {"rn50": ("timm/resnet50_clip.openai", 0.4), "vit-b-16": ("timm/vit_base_patch16_clip_224.openai", 0.6),
           "vit-l-14": ("timm/vit_large_patch14_clip_224.openai", 1.7)}  # fmt: skip
OPENED = 3  # JPEGs decoded, of each split


@dataclass(frozen=True)
class Finding:
    """One ingredient: "found", "missing" or "differs", and what there is to say of it."""

    state: str
    what: str
    detail: str = ""


def check(profile_name: str, source: str = "") -> bool:
    """Prints what is there and what to do next; True when the study can run with images.

    Args:
        profile_name: "voc" or "coco".
        source: the folder of an existing VOCdevkit or COCO download; empty: the data folder.

    Raises:
        LMCLIPError: no such benchmark, or ``source`` holds none of it.
    """
    if profile_name not in IMAGE_FOLDERS:
        raise LMCLIPError(f"there is nothing to check for {profile_name!r}: choose voc or coco (glyph is rendered)")
    root = find_root(profile_name, source)
    where = display(root) if root else f"{display(data_dir() / profile_name)} (nothing there yet)"
    print(f"{profile_name.upper()}-MLT, from {where}\n")
    findings = [*_annotations(profile_name, root), *_lists(profile_name)]
    data = None
    try:
        data = load_mlt(load_profile(profile_name), source=source)
        findings += [*_facts(profile_name, data), *_images(profile_name, data)]
    except LMCLIPError as error:
        findings.append(Finding("missing", "training and test images", "" if root is None else str(error)))
    findings += [*_fingerprints(profile_name, root), *_weights()]
    for finding in findings:
        print(f"{finding.state:<9}{finding.what:<26}{finding.detail}".rstrip())
    ready = data is not None and not any(f.state != "found" and f.what in _NEEDED for f in findings)
    weights = [f.what.split()[1] for f in findings if f.what.endswith(" weights") and f.state == "found"]
    print("\nNext:", *_next(profile_name, source, data, ready, weights), sep="\n  ")
    return ready and bool(weights)


_NEEDED = ("training images", "test images")


def _annotations(name: str, root: Path | None) -> list[Finding]:
    findings = []
    for split, (title, expected) in enumerate(zip(SPLIT_NAMES[name], SOURCE_IMAGES[name], strict=True)):
        what = f"{title} labels"
        if not has_labels(name, root, split):
            findings.append(Finding("missing", what, f"{LABEL_FILES[name][split]}, {expected:,} images"))
            continue
        try:
            count = len(read_source(name, root, split).files)
            state = "found" if count == expected else "differs"
            findings.append(
                Finding(state, what, f"{count:,} images" + f", expected {expected:,}" * (count != expected))
            )
        except LMCLIPError as error:
            findings.append(Finding("differs", what, str(error)))
    return findings


def _lists(name: str) -> list[Finding]:
    """The official lists, which serve where annotations are missing."""
    names = [f"{name}_mlt_{which}.txt" for which in ("train", "test")]
    there = [list_name for list_name in names if (data_dir() / list_name).is_file()]
    if there:
        return [Finding("found", "official lists", ", ".join(there))]
    return [Finding("missing", "official lists", "not needed where the labels above are there")]


def _facts(name: str, data: StudyData) -> list[Finding]:
    facts, groups = PUBLISHED[name], data.train.groups
    told = (f"{len(data.train):,} training and {len(data.test):,} test images, {len(groups.head)}/{len(groups.medium)}/"
            f"{len(groups.tail)} head/medium/tail classes")  # fmt: skip
    if not data.differences:
        return [Finding("found", "published facts", f"{told}, sha256 {facts['train sha256'][:8]}…")]
    return [Finding("differs", "published facts", told), *(Finding("", "", text) for text in data.differences)]


def _images(name: str, data: StudyData) -> list[Finding]:
    held_out = data.validation or validation_split(load_profile(name), data.pool, data.train)
    findings = []
    for what, split in (("training images", data.train), ("test images", data.test), ("validation images", held_out)):
        if split is None:
            told = "drawn from labelled images that training does not use; without any, no epoch is chosen on them"
            findings.append(Finding("missing", what, told))
            continue
        lacking = missing_files(split.files)
        if lacking:
            told = f"{len(lacking):,} of {len(split):,}, such as {display(lacking[0])}"
            findings.append(Finding("missing", what, told))
            continue
        findings.append(_opened(what, split.files))
    return findings


def _opened(what: str, files: list[Path]) -> Finding:
    from lmclip.images import decode  # loads PyTorch, which a check without images need not wait for

    try:
        for path in files[:: max(1, len(files) // OPENED)][:OPENED]:
            decode(path, None)
    except LMCLIPError as error:
        return Finding("differs", what, str(error))
    return Finding("found", what, f"{len(files):,}, of which {min(OPENED, len(files))} were opened")


def _fingerprints(name: str, root: Path | None) -> list[Finding]:
    """Whether COCO's files are those of the first download; the annotations by sha256, images by their size."""
    if name != "coco" or root is None:
        return []
    try:
        known = read_fingerprints(root)
    except LMCLIPError as error:
        return [Finding("differs", "fingerprints", str(error))]
    there = {file: of for file, of in known.items() if (root / file).is_file()}
    changed = [file for file, of in there.items()
               if (fingerprint(root / file) != of if file.endswith(".json")
                   else (root / file).stat().st_size != of["bytes"])]  # fmt: skip
    if changed:
        return [
            Finding("differs", "fingerprints", f"{len(changed)} files are not what was first fetched: {changed[0]}")
        ]
    return [Finding("found", "fingerprints", f"of {len(there):,} files, as first fetched")] if there else []


def _weights() -> list[Finding]:
    """OpenAI's weights in the hub's cache; nothing is fetched."""
    findings = []
    for backbone, (page, size) in WEIGHTS.items():
        kept = [try_to_load_from_cache(page, f"open_clip_model.{kind}") for kind in ("safetensors", "bin")]
        state = "found" if any(isinstance(path, str) for path in kept) else "missing"
        findings.append(Finding(state, f"CLIP {backbone} weights", f"{size} GB, huggingface.co/{page}"))
    return findings


def _next(name: str, source: str, data: StudyData | None, ready: bool, weights: list[str]) -> list[str]:
    """The commands that come next, each with what it does below it."""
    quoted, lines = shlex.quote(source), []
    given = f" -p source {quoted}" if source else ""
    folder = source or str(default_root(name) if name == "coco" else default_root(name).parent)
    if not ready:
        lines += [
            f"lmclip download {name}" + f" --folder {quoted}" * bool(source),
            *(line.format(folder=folder) for line in _BRING[name]),
        ]
    if data and not ready:
        lines += [f"lmclip study --profile {name}{given}", "    runs what needs labels alone: notebooks 00 to 03"]
    if ready:
        # The default backbone, unless only another's weights are there.
        backbone = weights[0] if weights and "vit-b-16" not in weights else "vit-b-16"
        lines.append(f"lmclip study --profile {name} --backbone {backbone}{given}")
    if not weights:
        lines += [
            "    The study fetches the weights of its backbone. Without a network: bring open_clip_model.safetensors",
            "    from the page named above, and give its path with --weights.",
        ]
    if data and data.differences:
        lines += [
            f"lmclip study --profile {name}{given} -p train_list FILE -p test_list FILE",
            "    takes the images of the official lists instead; data/README.md says where they come from",
        ]
    return lines


_BRING = {
    "voc": (
        "    fetches what is missing; needs 4.9 GB of disk. Without a network: bring VOCtrainval_11-May-2012.tar and",
        "    VOCtest_06-Nov-2007.tar, put them into {folder}, and run the same command.",
        "    A VOCdevkit that is elsewhere is used in place: lmclip check voc --source FOLDER",
    ),
    "coco": (
        "    fetches what is missing, and of train2017 only the images that the study uses; needs 2.9 GB of disk.",
        "    Without a network: bring annotations/annotations_trainval2017.zip, zips/val2017.zip and",
        f"    zips/train2017.zip of {COCO_URL}, put them into {{folder}}, and run the same command.",
        "    A COCO folder that is elsewhere is used in place: lmclip check coco --source FOLDER",
    ),
}
