"""The only module that knows where things are.

``LMCLIP_DATA`` and ``LMCLIP_RESULTS`` move the two folders that a run reads and writes, for example
to a scratch disk; everything else hangs off the checkout that holds this file, so that commands and
notebooks work from any working directory.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lmclip.errors import LMCLIPError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"


def data_dir() -> Path:
    """Folder of the data sets and of the shipped weights: ``$LMCLIP_DATA`` or ``data/``."""
    return Path(os.environ.get("LMCLIP_DATA") or ROOT / "data").expanduser().resolve()


def pretrained_dir() -> Path:
    """Folder of the mini CLIP, which ships with the project and does not move with ``LMCLIP_DATA``."""
    return ROOT / "data" / "pretrained" / "mini-clip"


def results_dir(profile: str) -> Path:
    """Folder of one profile's runs, tables, figures and executed notebooks.

    It is ``$LMCLIP_RESULTS/<profile>`` or ``results/<profile>``; it is not created here.
    """
    return Path(os.environ.get("LMCLIP_RESULTS") or ROOT / "results").expanduser().resolve() / profile


def display(path: str | os.PathLike) -> str:
    """``path`` as a reader should see it: relative to the checkout where it lies inside, else its name.

    Executed notebooks and records are published; a machine's folder names are nobody's business.
    """
    path = Path(path).resolve()
    for base, label in ((ROOT, ""), (data_dir(), "$LMCLIP_DATA/"), (results_dir("").resolve(), "$LMCLIP_RESULTS/")):
        if path.is_relative_to(base):
            return label + path.relative_to(base).as_posix()
    return path.name


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a file to write that appears under its name only once it is complete.

    A process that is killed meanwhile leaves a hidden ``.part`` file behind, which the next process that writes into
    the same folder removes: its writer's lock died with it.

    Raises:
        LMCLIPError: the folder can't be created or written to.
    """
    path = Path(path)
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent)
        with _locked_file(path) as file:
            unfinished = Path(file.name)
            yield file
            file.flush()
            unfinished.chmod(0o644)
            unfinished.replace(path)  # while it is locked, lest another process takes it for a leftover
    except OSError as error:
        raise LMCLIPError(f"{display(path)} can't be written ({error.strerror or error}); free space there or make "
                          "the folder writable") from error  # fmt: skip
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


def _locked_file(path: Path) -> BinaryIO:
    while True:
        file = tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False)
        # Between the two lines another process may have taken it for a leftover.
        if _lock(file.fileno()) is not False and os.fstat(file.fileno()).st_nlink:
            return file
        file.close()


def _sweep(folder: Path) -> None:
    """Remove the unfinished files of dead processes in ``folder``, at this process's first write into it."""
    if folder in _SWEPT:
        return
    _SWEPT.add(folder)
    for path in folder.glob(".*.part"):
        with suppress(OSError), path.open("rb") as file:
            if _lock(file.fileno()) is True:
                path.unlink(missing_ok=True)


def _lock(descriptor: int) -> bool | None:
    """Lock this open file until it is closed: False where another process holds it, None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


_SWEPT: set[Path] = set()
