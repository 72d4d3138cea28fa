"""Writing files: a full disk raises one clear OSError and leaves no incomplete file.

Memory-mapped files get their space first: a full disk would end the process when a page is touched (SIGBUS).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from numpy.typing import NDArray

_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch.save and OpenVINO say; they raise no OSError.
_FAILED = ("failed writing file", "inline_container", "iostream error")
_NO_COLOUR = (".pgm",)  # of the formats that anomalib reads, the one that holds no colour


class NoRoomError(OSError):
    """A file could not be written; the text names the place and, where it is known, the size."""


def reserve(file: IO[bytes], size: int, folder: Path | str) -> None:
    """Allocate the disk space of an empty file before it is mapped into memory.

    The first access to a mapped page for which the disk has no room ends the process (SIGBUS).

    Args:
        file: The file, open for writing.
        size: Size to allocate, in bytes.
        folder: Where it is, for the error message.

    Raises:
        OSError: If there is not enough space.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     reserve(file, 1000, tempfile.gettempdir())
        ...     file.seek(0, os.SEEK_END)
        1000
    """
    try:
        if not _allocate(file.fileno(), size):
            for start in range(0, size, 1 << 20):
                file.write(bytes(min(1 << 20, size - start)))
            file.flush()
    except OSError as error:
        msg = f"{folder} has no room for a file of {size / 1e9:.3g} GB ({error.strerror}); free space there."
        raise NoRoomError(error.errno, msg) from error


def _allocate(descriptor: int, size: int) -> bool:
    """Allocate the space with ``posix_fallocate``; False where the system or file system does not support it."""
    if not hasattr(os, "posix_fallocate"):
        return False
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file; where that fails on the way none is left.

    Args:
        path: The file.
        content: What it holds.

    Raises:
        OSError: If it cannot be written; its text names the file.
    """
    with path.open("wb", buffering=0) as file:
        left = memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                path.unlink()
            msg = f"{path} cannot be written ({error.strerror}, {len(content) / 1e6:.3g} MB needed); free space there."
            raise NoRoomError(error.errno, msg) from error


def replace_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file that is complete or, if the process is killed or the disk is full, as it was before.

    Args:
        path: The file; until it is complete it has a hidden name beside that.
        content: What it holds.

    Raises:
        OSError: If it cannot be written; its text names the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     replace_bytes(Path(folder, "a"), b"new")
        ...     [path.name for path in Path(folder).iterdir()]
        ['a']
    """
    draft = path.with_name(f".{path.name}.part")
    write_bytes(draft, content)
    draft.replace(path)


@contextmanager
def whole_files(folder: Path, stem: str) -> Iterator[None]:
    """Remove the incomplete files of a block that fails; for a block in which another library writes the files.

    Args:
        folder: Where the block writes.
        stem: Name of its files, without suffix.

    Raises:
        OSError: If the disk is full; its text names folder and file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, whole_files(Path(folder), "model"):
        ...     Path(folder, "model.pt").write_text("half")
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        ...
        anomalib_npgmf.disk.NoRoomError: [Errno 28] ... has no room for model (No space left on device); free ...
    """

    def changed() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in folder.glob(f"{escape(stem)}.*")}

    before = changed()
    try:
        yield
    except Exception as error:
        for path, time in changed().items():
            if before.get(path) != time:
                path.unlink()
        if not isinstance(error, NoRoomError) and (reason := _full_disk(error)):
            msg = f"{folder} has no room for {stem} ({reason}); free space there."
            raise NoRoomError(errno.ENOSPC, msg) from error
        raise


def _full_disk(error: Exception) -> str:
    """Why the disk is full, if an error says so; else ""."""
    if isinstance(error, OSError):
        return (error.strerror or "") if error.errno in _FULL else ""
    return "writing failed" if isinstance(error, RuntimeError) and any(text in str(error) for text in _FAILED) else ""


def write_picture(path: Path, picture: NDArray[np.uint8], parameters: Sequence[int] = ()) -> Path:
    """Write a colour picture; ``cv2.imwrite`` only prints a line where it cannot.

    Args:
        path: The file; its suffix is the format. ``.pgm``, which holds no colour, becomes ``.pgm.png``.
        picture: BGR, [H, W, 3], or grey, [H, W].
        parameters: Encoder flags for ``cv2.imencode``.

    Returns:
        The written file.

    Raises:
        OSError: If it cannot be written; its text names the file.
        ValueError: If the format does not hold such a picture.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_picture(Path(folder, "a.pgm"), np.zeros((2, 2, 3), np.uint8)).name
        'a.pgm.png'
    """
    if path.suffix.lower() in _NO_COLOUR:
        path = path.with_name(f"{path.name}.png")
    encoded, content = cv2.imencode(path.suffix, picture, parameters)
    if not encoded:
        raise ValueError(f"{path.name} cannot be written: OpenCV writes no such picture as {path.suffix}; use .png.")
    write_bytes(path, content.tobytes())
    return path
