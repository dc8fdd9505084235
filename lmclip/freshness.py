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


def digests(source: Path, parameters: dict[str, object], inputs: Iterable[str], folder: str) -> dict[str, str]:
    """One digest each for the notebook at ``source``, the parameters that it gets, the module, inputs and records.

    ``inputs`` are glob patterns behind ``data:``, ``checkout:`` or ``results:``, which name the folder that they are
    relative to. A parameter whose value is the path of a file counts as an input too. Those in the results folder
    are told apart as ``records``, since a notebook may add to the records that it reads.
    """
    named = [Path(value) for value in parameters.values() if isinstance(value, str) and value and Path(value).is_file()]
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
        return dict(json.loads(_stamp(folder, name).read_text()))
    except (OSError, ValueError):
        return {}


def write_stamp(folder: str, name: str, found: dict[str, str]) -> None:
    """Leaves the digests of a finished run for the next one to compare with."""
    path = _stamp(folder, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


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
        if status.st_size > HASHED_BYTES:
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
