"""Limits of mixed precision: the networks may run in it, all other arithmetic is in single precision."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
_DEVICES = ("cuda", "cpu", "xpu", "mps")  # each has an autocast of its own


def at_least_single(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors in float32 where they are float16 or bfloat16, as a network under autocast gives; others unchanged.

    Example:
        >>> [tensor.dtype for tensor in at_least_single([torch.ones(1, dtype=torch.bfloat16), torch.ones(1)])]
        [torch.float32, torch.float32]
    """
    return [tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor for tensor in tensors]


@contextmanager
def single_precision() -> Iterator[None]:
    """Switch off what computes in less than single precision: autocast, and TF32 or bfloat16 inside of float32.

    TF32 is torch's default for convolutions on NVIDIA GPUs since Ampere, and rounds to 11 bits: a search for the
    nearest code would find another one than on a CPU.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16), single_precision():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """
    device = _autocast_device()
    if device is not None:
        with torch.autocast(device, enabled=False), single_precision():
            yield
    elif torch.compiler.is_compiling():  # a compiled graph does not record these settings
        yield
    else:
        with _exact_products():
            yield


def in_single_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the function runs in `single_precision`."""

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            with single_precision():
                return function(*args, **kwargs)
        device = _autocast_device()  # the graph would not record other settings
        if device is None:
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return guarded(*args, **kwargs)

    return guarded


def _autocast_device() -> str | None:
    """A device whose operations run under autocast."""
    for device in _DEVICES:  # a loop, which torch 2.8 compiles as well
        if torch.is_autocast_enabled(device):
            return device
    return None


@contextmanager
def _exact_products() -> Iterator[None]:
    """Matrix products and convolutions of float32 tensors in full float32, on every device."""
    backends: Any = torch.backends
    # Torch 2.9 and later have one switch for each kind of operation. The older ones are set as well, and first: torch
    # refuses to read one that contradicts the others.
    switches: list[Any] = []
    if hasattr(backends.cudnn, "conv"):
        cudnn, mkldnn = backends.cudnn, backends.mkldnn
        switches = [backends.cuda.matmul, mkldnn.matmul, mkldnn.conv, cudnn.conv, cudnn.rnn]
    kept = [(switch, switch.fp32_precision) for switch in switches]
    products, convolutions = "highest", False
    with suppress(RuntimeError):  # where the new switches alone were used
        products = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = backends.cudnn.allow_tf32
    try:
        if products != "highest":
            torch.set_float32_matmul_precision("highest")
        if convolutions:
            backends.cudnn.allow_tf32 = False
        for switch, value in kept:
            if value in ("tf32", "bf16"):
                switch.fp32_precision = "ieee"
        yield
    finally:
        if products != "highest":
            torch.set_float32_matmul_precision(products)
        if convolutions:
            backends.cudnn.allow_tf32 = True
        for switch, value in kept:
            if switch.fp32_precision != value:
                switch.fp32_precision = value
