"""Tells whether an executed notebook is still what its source, settings, module and inputs would give.

After a notebook has run, a stamp with one digest for each of these is left in ``.stamps`` in the results folder; the
next run compares. Stamps describe one machine's state and are not committed.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from lmclip import paths

MODULE = Path(__file__).resolve().parent
# Larger files are told apart by size and time of change: hashing a folder of photographs takes minutes.
HASHED_BYTES = 8_000_000
# What labels are read from, in a folder of VOC's or COCO's or around it; XML files are too many to be hashed, too.
ANNOTATIONS = ("VOCdevkit/VOC*/ImageSets/Main/t*.txt", "VOCdevkit/VOC*/Annotations/*.xml",
               "annotations/instances_*.json")  # fmt: skip


def digests(source: Path, parameters: dict[str, object], inputs: Iterable[str], folder: str) -> dict[str, str]:
    """One digest each for the notebook at ``source``, the parameters that it gets, the module, inputs and records.

    ``inputs`` are glob patterns behind ``data:``, ``checkout:`` or ``results:``, which name the folder that they are
    relative to. A parameter whose value is the path of a file, or of a folder of annotations, counts as an input too.
    Those in the results folder are told apart as ``records``, since a notebook may add to the records that it reads.
    """
    named = [Path(value) for value in parameters.values() if isinstance(value, str) and value and Path(value).is_file()]
    folders = [Path(value) for value in parameters.values() if isinstance(value, str) and "/" in value]
    around = [around for path in folders if path.is_dir() for around in (path, path.parent)]
    named += [found for path in around for glob in ANNOTATIONS for found in path.glob(glob)]
    module = [path for path in MODULE.rglob("*") if path.suffix in {".py", ".json", ".mplstyle"}]
    return {
        "source": _digest_files([source]),
        "parameters": hashlib.sha256(json.dumps(parameters, sort_keys=True, default=str).encode()).hexdigest(),
        "module": _digest_files([*module, paths.ROOT / "requirements.lock"]),
        "inputs": _digest_files([*named, *_matches(inputs, {"data": paths.data_dir(), "checkout": paths.ROOT})]),
        "records": _digest_files(_matches(inputs, {"results": paths.results_dir(folder)})),
    }


def read_stamp(folder: str, name: str) -> dict[str, str]:
    """The digests left by the last finished run of notebook ``name``; empty when there are none to be read."""
    try:
        found = json.loads(_stamp(folder, name).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def write_stamp(folder: str, name: str, found: dict[str, str]) -> None:
    """Leaves the digests of a finished run for the next one to compare with."""
    with paths.atomic_write(_stamp(folder, name)) as file:
        file.write((json.dumps(found, indent=1) + "\n").encode())


def remove_stamp(folder: str, name: str) -> None:
    """Forgets the last run of notebook ``name``, so that a run that does not finish leaves none behind."""
    _stamp(folder, name).unlink(missing_ok=True)


def _stamp(folder: str, name: str) -> Path:
    return paths.results_dir(folder) / ".stamps" / f"{name}.json"


def _matches(patterns: Iterable[str], folders: dict[str, Path]) -> list[Path]:
    """The files that the patterns for these folders find."""
    split = [pattern.split(":", 1) for pattern in patterns]
    return [path for name, glob in split if name in folders for path in folders[name].glob(glob) if path.is_file()]


def _digest_files(files: Iterable[Path]) -> str:
    """Digest of names and contents, independent of the order in which the files are listed."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        if not path.is_file():
            continue
        digest.update(path.name.encode())
        status = path.stat()
        if status.st_size > HASHED_BYTES or path.suffix == ".xml":
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
