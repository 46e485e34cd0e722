"""The TCP connections that this process has accepted, which gRPC lets nobody close one by one."""

from __future__ import annotations

import os
import resource
import socket
import stat
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

OPEN_FILES = Path("/dev/fd")


class End(NamedTuple):
    """One end of a TCP connection; an IPv4 address that IPv6 carries is that IPv4 address."""

    host: IPv4Address | IPv6Address
    port: int


def cut(peers: Collection[str]) -> int:
    """How many connections were ended of those that come from `peers`, as gRPC spells them.

    gRPC takes the end for the caller's, and lets go of all its calls. Costs a look at each open file.
    """
    wanted = {end for end in map(_spelled, peers) if end is not None}
    return sum(_cut_if(int(file.name), wanted) for file in list(OPEN_FILES.iterdir()))


def raise_file_limit() -> int:
    """How many files this process may have open, after it was given as many as it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS has a lower limit than the one that it names.
        return soft
    return hard


def _cut_if(number: int, wanted: Collection[End]) -> bool:
    """Shut the file down if it is a connection from one of those wanted. It stays open, and gRPC's.

    It is never duplicated: closing a duplicate of a database file would drop SQLite's locks on it.
    """
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return False
        connection = socket.socket(fileno=number)
    except OSError:  # It was closed meanwhile, or is no socket any more.
        return False
    try:
        if _end(connection.getpeername()) not in wanted:
            return False
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # It listens, or its other end is gone.
        return False
    finally:
        connection.detach()
    return True


def _spelled(peer: str) -> End | None:
    """The end that gRPC writes like `ipv4:127.0.0.1:4711` or `ipv6:%5B::1%5D:4711`."""
    kind, _, address = unquote(peer).partition(":")
    host, _, port = address.rpartition(":")
    return _end((host.strip("[]"), int(port))) if kind in ("ipv4", "ipv6") else None


def _end(address: Any) -> End | None:
    """Of what `getpeername` gives; None for a family that has no ports."""
    if not isinstance(address, tuple):
        return None
    host = ip_address(address[0].partition("%")[0])
    mapped = host.ipv4_mapped if isinstance(host, IPv6Address) else None
    return End(mapped or host, address[1])
