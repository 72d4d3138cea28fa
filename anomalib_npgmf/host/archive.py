"""Zip archives of ``torch.save``, checked before they are read."""

from __future__ import annotations

import zipfile
from pathlib import Path


def check_archive(path: Path) -> None:
    """Raise unless a file is an intact archive as torch writes it.

    Torch itself compares no checksums: it loads damaged weights without a word. It stores its members as they are, so a
    compressed one is foreign, and may be a thousand times larger than the file.

    Args:
        path: The file.

    Raises:
        ValueError: If a member is compressed or damaged.
        zipfile.BadZipFile: If it is no archive, or is truncated.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is compressed")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")
