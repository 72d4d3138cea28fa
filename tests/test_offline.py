"""No test, and no process that a test starts, reaches the network or finds weights in a cache."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

OUTSIDE = ("192.0.2.1", 80)  # reserved for documentation, RFC 5737
CONNECT = f"import socket; socket.create_connection({OUTSIDE}, timeout=1)"


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_sockets_are_blocked(method: str) -> None:
    with socket.socket() as client, pytest.raises(BaseException, match=r"connection to 192\.0\.2\.1; tests must run"):
        getattr(client, method)(OUTSIDE)


def test_datagrams_are_blocked() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as client,
        pytest.raises(BaseException, match=r"connection to 192\.0\.2\.1"),
    ):
        client.sendto(b"", OUTSIDE)


def test_sockets_of_processes_are_blocked() -> None:
    result = subprocess.run([sys.executable, "-c", CONNECT], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "NetworkError: connection to 192.0.2.1; tests must run without a network" in result.stderr


def test_this_machine_is_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))


@pytest.mark.parametrize("name", ["HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME"])
def test_caches_are_new_and_hold_no_weights(name: str) -> None:
    folder = Path(os.environ[name])
    assert not folder.is_relative_to(Path.home())
    weights = [path for end in ("safetensors", "pth", "pt", "bin") for path in folder.rglob(f"*.{end}")]
    assert not weights
