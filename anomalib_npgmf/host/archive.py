"""Zip archives of ``torch.save``, checked before they are read."""

from __future__ import annotations

import zipfile
from pathlib import Path


def check_archive(path: Path) -> None:
    """Raise unless a file is an intact zip archive as ``torch.save`` writes it.

    ``torch.load`` compares no checksums, so it loads damaged weights without an error. ``torch.save`` never compresses:
    a compressed member comes from another program, and may unpack to a thousand times the size of the file.

    Args:
        path: The file.

    Raises:
        ValueError: If a member is compressed or damaged.
        zipfile.BadZipFile: If the file is no zip archive, or is truncated.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is compressed")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged")
