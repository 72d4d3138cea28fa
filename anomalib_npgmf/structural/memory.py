"""A readable error if memory runs out while the memory bank is built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of the allocators of torch, which raise a plain RuntimeError for the CPU.
_CPU_MESSAGES = ("can't allocate memory", "not enough memory")


@contextmanager
def enough_memory(images: int, patches: int) -> Iterator[None]:
    """Turn an out-of-memory error inside ``with`` into a RuntimeError that says which setting to lower.

    Args:
        images: Number of images whose patches are collected.
        patches: Number of these patches, before thinning.

    Raises:
        RuntimeError: If the block could not get the memory that it needs, on the CPU or on a GPU.

    Example:
        >>> with enough_memory(2, 512):
        ...     raise MemoryError
        Traceback (most recent call last):
        ...
        RuntimeError: There is too little memory for the memory bank (512 patches of 2 images so far); lower ...
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        msg = (
            f"There is too little memory for the memory bank ({patches} patches of {images} images so far); lower "
            "collect_gb or coreset_ratio of structural, set its bank_dtype to 'float16', or lower the image size."
        )
        raise RuntimeError(msg) from error


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in _CPU_MESSAGES)
