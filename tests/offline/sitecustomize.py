"""Keeps a process off the network: sockets reach this machine only.

Python imports a module of this name at its start if it finds one. The tests put this folder on PYTHONPATH, so that it
holds for the processes that they start as well; `conftest.py` runs it for its own.
"""

import socket
from collections.abc import Callable
from functools import wraps
from typing import Any


class NetworkError(BaseException):
    """Not an ``Exception``, which a library would catch in order to try again."""


def local_only(send: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of sockets that takes an address last reach this machine only."""

    @wraps(send)
    def guarded(self: socket.socket, *arguments: Any) -> Any:
        # an address is a path for AF_UNIX and a tuple that starts with the host for the internet families
        address = arguments[-1]
        if isinstance(address, tuple) and not str(address[0]).startswith(("127.", "::1", "localhost")):
            message = f"connection to {address[0]}; tests must run without a network"
            raise NetworkError(message)
        return send(self, *arguments)

    return guarded


for name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, name, local_only(getattr(socket.socket, name)))
