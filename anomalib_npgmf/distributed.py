"""What the processes of a distributed run tell one another; every function is a no-op in a single process."""

from collections.abc import Iterable
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def is_distributed() -> bool:
    """Whether several processes work together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


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


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of a tensor of one shape over all processes, in place.

    Example:
        >>> import torch
        >>> sum_over_processes(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    if is_distributed():
        dist.all_reduce(values)
    return values


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of the first process."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor.data, src=0)


def place_among(count: int) -> tuple[int, int]:
    """Where this process's ``count`` items start when those of all processes are put in a row, and how many there are.

    Example:
        >>> place_among(5)
        (0, 5)
    """
    counts = gather_list([count])
    rank = dist.get_rank() if is_distributed() else 0
    return sum(counts[:rank]), sum(counts)
