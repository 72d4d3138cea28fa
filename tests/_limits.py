"""Limits on what this process may take: they stand for a full disk and for a machine with little memory."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def no_room_beyond(size: int) -> Iterator[None]:
    """A limit on the size of files, bytes; beyond it, writing fails as on a full disk."""
    with _limit(resource.RLIMIT_FSIZE, size):
        yield


@contextmanager
def little_memory(more: int) -> Iterator[None]:
    """A limit on the address space: so many bytes beyond what the process has (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + more):
        yield


@contextmanager
def _limit(kind: int, size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
