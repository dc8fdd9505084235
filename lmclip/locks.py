"""Locks between processes: whoever comes second waits, and the lock of a process that has died holds nobody up."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from lmclip.errors import LMCLIPError
from lmclip.paths import display


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold the lock file at ``path``; where another process holds it, say who, and wait.

    The operating system frees the lock of a process that has died, however it died. The file goes with the lock.

    Args:
        path: the lock file; its folder is made.
        what: what the lock is for, as told to whoever waits.

    Raises:
        LMCLIPError: the folder can't be written.
    """
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"{what}: {_holder(path)} is at it; waiting", flush=True)
            lock.acquire()
        path.write_text(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}\n")
    except (OSError, NotImplementedError) as error:
        lock.release()
        reason = getattr(error, "strerror", None) or error
        raise LMCLIPError(f"{display(path.parent)} can't be written ({reason}); make it writable, free space there, or "
                          "name another folder in LMCLIP_RESULTS or LMCLIP_DATA") from error  # fmt: skip
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before the release: whoever waits finds it gone, and makes a new one
        lock.release()


def is_free(path: Path) -> bool:
    """Whether no living process holds the lock file at ``path``."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return False
    path.unlink(missing_ok=True)
    lock.release()
    return True


def _holder(path: Path) -> str:
    try:
        return path.read_text()[:60].strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
