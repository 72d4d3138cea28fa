"""Every test runs offline and on one thread, also in the processes it starts."""

import os
import socket
from collections.abc import Callable
from typing import Any

# before torch is imported, and inherited by child processes
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from hypothesis import settings

# the same examples in every run
settings.register_profile("stable", derandomize=True, deadline=None, database=None)
settings.load_profile("stable")

# a start-up module for the processes of printed commands, none of this one's
collect_ignore = ["commands/small"]


def _local_only(connect: Callable[..., Any]) -> Callable[..., Any]:
    """Let a connect method of sockets reach this machine only; anything else fails the test."""

    def guarded(self: socket.socket, address: Any) -> Any:
        # an address is a path for AF_UNIX and a tuple that starts with the host for the internet families
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            pytest.fail(f"a test tried to connect to {address[0]}; tests must run without a network")
        return connect(self, address)

    return guarded


def pytest_configure() -> None:
    # not a fixture, so that it holds for doctests and for code that runs at import as well
    socket.socket.connect = _local_only(socket.socket.connect)  # type: ignore[method-assign]
    socket.socket.connect_ex = _local_only(socket.socket.connect_ex)  # type: ignore[method-assign]
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # the longest first: at the end one process would run a notebook and the others wait
    items.sort(key=lambda item: "notebooks" not in item.path.parts)
