"""The only module that knows where things are.

``LMCLIP_DATA`` and ``LMCLIP_RESULTS`` move the two folders that a run reads and writes, for example
to a scratch disk; everything else hangs off the checkout that holds this file, so that commands and
notebooks work from any working directory.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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

    Raises:
        LMCLIPError: the folder can't be created or written to.
    """
    path = Path(path)
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            unfinished = Path(file.name)
            yield file
        unfinished.chmod(0o644)
        unfinished.replace(path)
    except OSError as error:
        raise LMCLIPError(f"{display(path)} can't be written ({error.strerror or error}); free space there or make "
                          "the folder writable") from error  # fmt: skip
    finally:
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)
