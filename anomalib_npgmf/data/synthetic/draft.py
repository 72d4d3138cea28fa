"""Temporary folders that are renamed once they are complete; those of killed processes are removed later."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: there the folder of a killed process stays
    fcntl = None  # type: ignore[assignment]


@contextmanager
def draft_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder, removed after the block unless it was renamed; first remove what killed processes left.

    The process locks its folder, and the system unlocks it however the process ends. So a folder that nobody has locked
    is abandoned.

    Args:
        parent: Where to make it.
        prefix: Start of its name, which nothing else in ``parent`` may have.

    Example:
        >>> with tempfile.TemporaryDirectory() as root, draft_folder(Path(root), ".a-") as folder:
        ...     folder.is_dir(), folder.name.startswith(".a-")
        (True, True)
    """
    for abandoned in parent.glob(f"{prefix}*"):
        with _locked(abandoned, wait=False) as own:
            if own:
                shutil.rmtree(abandoned, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with _locked(folder, wait=True):
            if folder.is_dir():  # else another process took it for an abandoned one before it was locked
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)
                return


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Lock a folder for the block; false if another process has, it is gone, or the file system knows no locks."""
    if fcntl is None:
        yield False
        return
    descriptor = -1
    try:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            own = True
        except OSError:
            own = False
        yield own
    finally:
        if descriptor >= 0:
            os.close(descriptor)
