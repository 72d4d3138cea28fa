"""Errors of file readers, turned into one sentence that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn an error of the block, which reads a file, into one sentence with the name of the file.

    Args:
        path: The file.
        what: What it should be.

    Raises:
        FileNotFoundError: If there is no such file.
        PermissionError: If it may not be read.
        ValueError: If the block fails in any other way; readers of images raise many kinds of errors.

    Example:
        >>> with reading(Path("map.tiff"), "TIFF"):
        ...     raise EOFError("no more data")
        Traceback (most recent call last):
        ...
        ValueError: map.tiff cannot be read as TIFF (EOFError: no more data); it is damaged, restore it.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError):
        raise  # they name it already
    except Exception as error:
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ValueError(f"{path} cannot be read as {what} ({reason}); it is damaged, restore it.") from error
