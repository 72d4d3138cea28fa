"""Memory that the C library keeps."""

import ctypes
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Give memory that was freed back to the system.

    glibc serves arrays of up to 32 MB from heaps once one of them was freed, and small results that stay between large
    arrays that go keep such heaps from shrinking: full-size maps then pile up to gigabytes that nothing uses. Other
    C libraries are left alone.

    Example:
        >>> trim()
    """
    _malloc_trim()(0)


@cache
def _malloc_trim() -> Callable[[int], object]:
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # no glibc
        return lambda _: None
    return found
