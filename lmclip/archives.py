"""Archives, unpacked whole or not at all, and the fingerprints by which a file is known again."""

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import file_digest
from pathlib import Path

from tqdm import tqdm

from lmclip.errors import LMCLIPError
from lmclip.paths import atomic_write, display

FINGERPRINTS = "fingerprints.json"
MOST_INFLATED = 100  # COCO's annotations grow tenfold; an archive that would grow by more is a bomb


def unpack_zip(archive: Path, wanted: Callable[[str], object], folder: Path) -> None:
    """Unpack the members whose names are ``wanted`` into ``folder``.

    Raises:
        LMCLIPError: a damaged archive, one with a member that is a link or points outside, none that is wanted, or one
            that would not fit. Nothing is unpacked then.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [info for info in opened.infolist() if not info.is_dir()]
            for info in members:
                parts = info.filename.split("/")
                link = (info.external_attr >> 16) & 0o170000 == 0o120000
                if link or ".." in parts or "" in parts or "\\" in info.filename or ":" in parts[0]:
                    raise LMCLIPError(f"{display(archive)} holds {info.filename!r}, which points outside: it is not "
                                      "the official archive; delete it")  # fmt: skip
            members = [info for info in members if wanted(info.filename)]
            if not members:
                raise LMCLIPError(f"{display(archive)} holds nothing of what the official one does; bring that")
            _refuse_bombs(archive, opened.infolist())
            check_disk(folder, sum(info.file_size for info in members), f"unpacking {archive.name}")
            for info in tqdm(members, desc=f"unpacking {archive.name}", unit="file", mininterval=1, ascii=True):
                opened.extract(info, folder)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise LMCLIPError(f"{display(archive)} can't be unpacked ({error}); delete it and run the same command again, "
                          "or bring it anew") from error  # fmt: skip


def _refuse_bombs(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    unpacked = sum(info.file_size for info in members)
    if unpacked > MOST_INFLATED * archive.stat().st_size + 1_000_000:
        raise LMCLIPError(f"{display(archive)} would grow to {unpacked / 1e9:,.1f} GB from {archive.stat().st_size:,} "
                          "bytes: it is not the official archive; delete it")  # fmt: skip


@contextmanager
def only_safe_tars() -> Iterator[None]:
    """No tar archive that is unpacked meanwhile, by whatever library, may write outside its folder or make a device."""
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)  # Python's own default from 3.14 on
    try:
        yield
    except tarfile.FilterError as error:
        raise LMCLIPError(f"an archive holds {error.tarinfo.name!r}, which points outside: it is not the official one; "
                          "delete it") from error  # fmt: skip
    finally:
        tarfile.TarFile.extraction_filter = before


def move_in(staged: Path, target: Path) -> None:
    """Move an unpacked folder into place; where there is one, the files that it lacks. Nothing is replaced."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(target)
        return
    for path in sorted(staged.rglob("*")):
        place = target / path.relative_to(staged)
        if path.is_file() and not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def check_disk(folder: Path, needed: int, what: str) -> None:
    """Say what is needed and free, in bytes.

    Raises:
        LMCLIPError: more is needed than is free.
    """
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    told = f"{what} needs {needed / 1e9:.1f} GB in {display(folder)}, where {free / 1e9:.1f} GB are free"
    if needed > free:
        raise LMCLIPError(f"{told}; free space there or name another folder with --folder")
    if needed > 1e8:
        print(told, flush=True)


def read_fingerprints(root: Path) -> dict[str, dict]:
    """File below ``root`` → its ``bytes`` and ``sha256`` at the first download; empty when none are recorded.

    Raises:
        LMCLIPError: the record can't be read.
    """
    path = root / FINGERPRINTS
    try:
        found = json.loads(path.read_text())
        return {str(name): {"bytes": int(of["bytes"]), "sha256": str(of["sha256"])} for name, of in found.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise LMCLIPError(f"{display(path)} is no record of fingerprints ({type(error).__name__}); delete it, and the "
                          "next download records them anew") from error  # fmt: skip


def fingerprint(path: Path) -> dict:
    """``bytes`` and ``sha256`` of a file."""
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": file_digest(file, "sha256").hexdigest()}


def record(root: Path, found: dict[str, dict], known: dict[str, dict]) -> None:
    """Add to the record of fingerprints.

    Raises:
        LMCLIPError: a file that is recorded already is no longer what it was.
    """
    changed = [name for name in found.keys() & known.keys() if found[name] != known[name]]
    if changed:
        raise LMCLIPError(f"{changed[0]} is not the file that was first fetched (see {display(root / FINGERPRINTS)}); "
                          "bring that one, or delete its entry there to accept this one")  # fmt: skip
    if found.keys() - known.keys():
        with atomic_write(root / FINGERPRINTS) as file:
            file.write((json.dumps(dict(sorted((known | found).items())), indent=1) + "\n").encode())
