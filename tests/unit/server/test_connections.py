"""Connections are ended one by one, and nothing else is touched."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.connections import cut


@contextlib.contextmanager
def connected(family: socket.AddressFamily, host: str) -> Iterator[tuple[socket.socket, socket.socket, str]]:
    """The accepted end, the caller's, and the caller as gRPC spells it."""
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as listener:
        to = ("127.0.0.1" if host == "::" else host, listener.getsockname()[1])
        with socket.create_connection(to) as calling, listener.accept()[0] as accepted:
            name, port = calling.getsockname()[:2]
            spelled = f"ipv6:%5B{name}%5D:{port}" if ":" in name else f"ipv4:{name}:{port}"
            yield accepted, calling, spelled


@pytest.mark.parametrize(
    ("family", "host"),
    [
        pytest.param(socket.AF_INET, "127.0.0.1", id="ipv4"),
        pytest.param(socket.AF_INET6, "::1", id="ipv6"),
        pytest.param(socket.AF_INET6, "::", id="ipv4-carried-by-ipv6"),
    ],
)
def test_one_connection_is_ended_and_others_are_not(family: socket.AddressFamily, host: str) -> None:
    with connected(family, host) as (accepted, calling, spelled), connected(family, host) as others:
        accepted.setblocking(False)

        assert cut({spelled}) == 1

        assert calling.recv(1) == b""
        # It is still open here, for gRPC to close it.
        assert accepted.fileno() >= 0
        assert accepted.recv(1) == b""
        others[1].sendall(b"x")
        assert others[0].recv(1) == b"x"


@pytest.mark.parametrize("peer", ["ipv4:127.0.0.1:1", "unix:/tmp/socket", "unix:", ""])
def test_a_peer_that_is_not_there(peer: str) -> None:
    with connected(socket.AF_INET, "127.0.0.1") as (accepted, calling, _):
        assert cut({peer}) == 0
        calling.sendall(b"x")
        assert accepted.recv(1) == b"x"


LOCK = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


def is_locked(path: Path) -> bool:
    """Whether another process finds the file locked."""
    return (
        subprocess.run([sys.executable, "-c", LOCK, path], check=False, capture_output=True).returncode != 0
    )


def test_the_locks_of_databases_are_kept(tmp_path: Path) -> None:
    """As SQLite takes them: they end when any descriptor of the same file is closed, also a copied one."""
    path = tmp_path / "locked"
    path.touch()
    with path.open("r+b") as database, connected(socket.AF_INET, "127.0.0.1") as (_, _, spelled):
        fcntl.lockf(database, fcntl.LOCK_EX)

        assert cut({spelled}) == 1

        assert is_locked(path)
    assert not is_locked(path)
