"""Every operation between processes.

In a single process the collective ones do nothing; `send_to_rank0` and `receive_from` must not be called there.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether a process group of more than one process is initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_rank() -> int:
    """Rank of this process; 0 in a single process.

    Example:
        >>> process_rank()
        0
    """
    return dist.get_rank() if is_distributed() else 0


def gather_list(items: list[T]) -> list[T]:
    """The items of all processes in the order of their ranks; ``items`` itself in a single process.

    Example:
        >>> gather_list([1, 2])
        [1, 2]
    """
    if not is_distributed():
        return items
    shares: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(shares, items)
    return [item for share in shares for item in share]


@contextmanager
def raise_together() -> Iterator[None]:
    """Raise an error of one process in all; the others would wait for ever at their next collective operation.

    Every process must run the block, and the block itself must hold no collective operation.

    Raises:
        RuntimeError: In the processes without an error of their own, with the message of the first failed rank.

    Example:
        >>> with raise_together():
        ...     raise ValueError("an image is truncated")
        Traceback (most recent call last):
        ...
        ValueError: an image is truncated
    """
    if not is_distributed():
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    messages = gather_list([None if own is None else str(own) or type(own).__name__])
    if own is not None:
        raise own
    for rank, message in enumerate(messages):
        if message is not None:
            msg = f"Process {rank} stopped: {message}"
            raise RuntimeError(msg)


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place; its shape must be the same in all.

    Example:
        >>> sum_over_processes(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if is_distributed():
        dist.all_reduce(values)
    return values


def broadcast_from_rank0(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors in place with those of rank 0; shapes and dtypes must be the same in every process.

    Example:
        >>> broadcast_from_rank0([torch.ones(2)])
    """
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def broadcast_buffers(module: nn.Module, names: Sequence[str], device: torch.device) -> None:
    """Overwrite buffers of a module with those of rank 0, whose shapes and dtypes the other processes do not know.

    Args:
        module: The same module in every process.
        names: Its buffers.
        device: Where other processes than rank 0 allocate them.

    Example:
        >>> bank = nn.Module()
        >>> bank.register_buffer("norms", torch.ones(2))
        >>> broadcast_buffers(bank, ["norms"], torch.device("cpu"))
    """
    layouts = gather_list([{name: (getattr(module, name).shape, getattr(module, name).dtype) for name in names}])
    if process_rank() > 0:
        for name, (shape, dtype) in layouts[0].items():
            setattr(module, name, torch.empty(shape, dtype=dtype, device=device))
    broadcast_from_rank0(getattr(module, name) for name in names if getattr(module, name).numel() > 0)


def rank_offset(count: int) -> tuple[int, int]:
    """Offset of this process's items when the items of all processes are concatenated by rank, and their total number.

    Args:
        count: Number of items of this process.

    Example:
        >>> rank_offset(5)
        (0, 5)
    """
    counts = gather_list([count])
    return sum(counts[: process_rank()]), sum(counts)


def send_to_rank0(tensor: Tensor) -> None:
    """Send a tensor to rank 0, which must call `receive_from` for it; only for other ranks than 0."""
    dist.send(tensor.contiguous(), dst=0)


def receive_from(rank: int, tensor: Tensor) -> None:
    """Overwrite a contiguous tensor with the one that a process sends by `send_to_rank0`; only for rank 0.

    Args:
        rank: The process that sends.
        tensor: Of the same shape and dtype as the one that is sent.
    """
    dist.recv(tensor, src=rank)
