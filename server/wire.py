"""A connection that keeps the rules: non-blocking, bounded in time and rate, to an address we resolved."""

from __future__ import annotations

import errno
import io
import os
import queue
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING, cast

from server.allowlist import Location, brief
from server.config import ConfigInvalid

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 262_144
"""The most bytes that are given out at once."""

_OVERHEAD_BYTES_MAX = 4 << 20
_ADDRESSES_MAX = 8

Resolve = Callable[[str, int], Sequence[str]]
"""Addresses of a host name, for a port, best first. Raises OSError."""


class FetchFailed(Exception):
    """The source cannot be read. The text says why and what to do; no query and no byte of a body."""

    def __init__(self, shown: str, reason: str) -> None:
        super().__init__(f"{brief(shown)}: {reason}")
        self.shown = shown
        self.reason = reason


class FetchStopped(Exception):
    """The caller's `stop` ended the fetch; the text is what it returned."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a source may cost. `size_bytes_max` counts what is given out, so after gzip is undone.

    `idle_seconds` may pass without a byte, and an answer's headers must be whole within them. Time in which
    the caller takes nothing counts for `seconds_max` only.
    """

    size_bytes_max: int = 10 << 30
    seconds_max: float = 6 * 3600
    connect_seconds: float = 10
    idle_seconds: float = 30
    rate_bytes_per_second_min: int = 16_384
    rate_window_seconds: float = 60
    redirects_max: int = 5
    resumes_max: int = 5
    resume_pause_seconds: float = 0.5
    poll_seconds: float = 0.25


def resolve_name(host: str, port: int) -> Sequence[str]:
    """The system's answer, in its order of preference."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Trusts the system's authorities (or SSL_CERT_FILE's), and those of `ca_file`. Raises ConfigInvalid."""
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:
            raise ConfigInvalid(f"{ca_file} gives no certificates: {error.strerror or error}") from error
    return context


class Exceeded(Exception):
    """A limit of the whole run was passed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Broken(Exception):
    """The connection is of no more use, but another one may be."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unreachable(Broken):
    """There was no connection at all: at the very start, most likely a wrong address."""


class Run:
    """The limits that hold for one fetch, over all its connections."""

    def __init__(self, limits: Limits, stop: Callable[[], str | None]) -> None:
        self.limits = limits
        self._stop = stop
        self._ends_at = time.monotonic() + limits.seconds_max
        self.given_bytes = 0

    def check(self) -> None:
        """Raises FetchStopped, Exceeded."""
        reason = self._stop()
        if reason is not None:
            raise FetchStopped(reason)
        if time.monotonic() > self._ends_at:
            raise Exceeded(
                f"it was not read within {self.limits.seconds_max:g} seconds; use a source that is faster"
            )

    def check_size(self, size_bytes: int) -> None:
        if size_bytes > self.limits.size_bytes_max:
            raise Exceeded(
                f"it has more than {self.limits.size_bytes_max} bytes, the most that this server takes"
                " (--max-image-size)"
            )

    def give(self, piece: bytes) -> bytes:
        """`piece`, counted."""
        self.check()
        self.given_bytes += len(piece)
        self.check_size(self.given_bytes)
        return piece

    def pause(self, seconds: float) -> None:
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, self.limits.poll_seconds))


class Wire(io.RawIOBase):
    """One connection, as the parser reads it: each wait is bounded and can be stopped.

    Reading raises Broken, Exceeded, FetchStopped.
    """

    def __init__(self, connection: socket.socket, run: Run) -> None:
        super().__init__()
        self._socket = connection
        self._run = run
        self._window_seconds = 0.0
        self._window_bytes = 0
        self.headers_by: float | None = time.monotonic() + run.limits.idle_seconds
        self.ended = False
        self.ungiven_bytes = 0

    def readable(self) -> bool:
        return True

    def makefile(self, _mode: str) -> io.BufferedReader:
        """What HTTPResponse asks of a socket."""
        return io.BufferedReader(self, 65_536)

    def close(self) -> None:
        self._socket.close()
        super().close()

    def send(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._when_ready(partial(self._socket.send, left), selectors.EVENT_WRITE) :]

    def readinto(self, buffer: WriteableBuffer) -> int:
        began = time.monotonic()
        self._run.check()
        count = self._when_ready(partial(self._socket.recv_into, buffer), selectors.EVENT_READ)
        self._account(count, time.monotonic() - began)
        return count

    def shake_hands(self) -> None:
        """TLS. Raises Broken, and ssl.SSLError for what another try would not mend."""
        secured = cast(ssl.SSLSocket, self._socket)

        def shake() -> int:
            secured.do_handshake()
            return 0

        self._when_ready(shake, selectors.EVENT_READ)

    def _when_ready(self, act: Callable[[], int], event: int) -> int:
        """What `act` returns, once the socket lets it."""
        began = time.monotonic()
        while True:
            try:
                return act()
            except BlockingIOError:
                wanted = event
            except ssl.SSLWantReadError:
                wanted = selectors.EVENT_READ
            except ssl.SSLWantWriteError:
                wanted = selectors.EVENT_WRITE
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                raise Broken("the connection broke") from None
            except ssl.SSLError:
                raise
            except OSError as error:
                raise Broken(f"the connection broke ({name_of(error)})") from error
            self._wait(wanted, began)

    def _wait(self, event: int, began: float) -> None:
        self._run.check()
        now = time.monotonic()
        idle_seconds = self._run.limits.idle_seconds
        if now - began > idle_seconds:
            raise Broken(f"the server sent nothing for {idle_seconds:g} seconds")
        self._check_headers(now)
        _wait(self._socket, event, self._run.limits.poll_seconds)

    def _check_headers(self, now: float) -> None:
        if self.headers_by is not None and now > self.headers_by:
            raise Broken(f"the server gave no answer within {self._run.limits.idle_seconds:g} seconds")

    def _account(self, count: int, seconds: float) -> None:
        limits = self._run.limits
        self.ended = count == 0
        self._check_headers(time.monotonic())
        self.ungiven_bytes += count
        if self.ungiven_bytes > _OVERHEAD_BYTES_MAX:
            raise Exceeded("the server sends framing without content; use another one")
        self._window_seconds += seconds
        self._window_bytes += count
        if self._window_seconds < limits.rate_window_seconds:
            return
        if self._window_bytes < limits.rate_bytes_per_second_min * self._window_seconds:
            raise Exceeded(
                f"the server sent less than {limits.rate_bytes_per_second_min} bytes a second for"
                f" {limits.rate_window_seconds:g} seconds; use a source that is faster"
            )
        self._window_seconds, self._window_bytes = 0.0, 0


def _wait(connection: socket.socket, event: int, seconds: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(connection, event)
        selector.select(seconds)


def name_of(error: OSError) -> str:
    return error.strerror or errno.errorcode.get(error.errno or 0, type(error).__name__)


def connect(address: str, port: int, run: Run) -> socket.socket:
    """A connected, non-blocking socket. Raises Unreachable."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        failure = connection.connect_ex((address, port))
        gives_up_at = time.monotonic() + run.limits.connect_seconds
        while failure in (errno.EINPROGRESS, errno.EALREADY):
            run.check()
            if time.monotonic() > gives_up_at:
                raise Unreachable(f"no connection within {run.limits.connect_seconds:g} seconds")
            _wait(connection, selectors.EVENT_WRITE, run.limits.poll_seconds)
            failure = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            failure = failure or connection.connect_ex((address, port))
            failure = 0 if failure == errno.EISCONN else failure
        if failure:
            raise Unreachable(f"no connection ({os.strerror(failure)})")
    except BaseException as error:
        connection.close()
        if isinstance(error, OSError):
            raise Unreachable(f"no connection ({name_of(error)})") from error
        raise
    return connection


class Addresses:
    """The addresses of the names in one run, so that a name which leads elsewhere later is noticed.

    Over plain http only the addresses found first are connected to. Over https others are taken when none of
    the first is left (large object stores rotate them), because a certificate proves whose they are.
    """

    def __init__(self, resolve: Resolve, run: Run) -> None:
        self._resolve = resolve
        self._run = run
        self._known: dict[str, tuple[str, ...]] = {}

    def find(self, location: Location) -> Sequence[str]:
        """What one resolution returned, for one connection. Raises FetchFailed, Unreachable."""
        if _is_address(location.host):
            return (location.host,)
        found = [address for address in self._ask(location) if _can_serve(address)]
        if not found:
            raise FetchFailed(
                location.shown(),
                "its name resolves to a link-local, multicast or empty address, which is refused;"
                " name another host",
            )
        known = self._known.setdefault(location.host, tuple(found))
        same = [address for address in found if address in known]
        if not same and location.scheme == "http":
            raise FetchFailed(
                location.shown(),
                "its name resolves to other addresses than at the start of this import, which is refused;"
                " import again, or use https",
            )
        return (same or found)[:_ADDRESSES_MAX]

    def _ask(self, location: Location) -> Sequence[str]:
        """In a thread of its own, because the system's resolver cannot be interrupted."""
        answers: queue.SimpleQueue[Sequence[str] | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self._resolve(location.host, location.port))
            except Exception as error:
                answers.put(error)

        threading.Thread(target=ask, name="resolve", daemon=True).start()
        gives_up_at = time.monotonic() + self._run.limits.idle_seconds
        while time.monotonic() < gives_up_at:
            self._run.check()
            try:
                answer = answers.get(timeout=self._run.limits.poll_seconds)
            except queue.Empty:
                continue
            if isinstance(answer, OSError):
                raise Unreachable(f"its host name cannot be resolved ({name_of(answer)})") from answer
            if isinstance(answer, Exception):
                raise answer
            return answer
        raise Unreachable(f"its host name was not resolved within {self._run.limits.idle_seconds:g} seconds")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _can_serve(address: str) -> bool:
    """Whether a name may lead there: not to a cloud's metadata service or this machine by another name.

    Private and loopback addresses may be meant, because the operator allowed the name.
    """
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return not (parsed.is_link_local or parsed.is_multicast or parsed.is_unspecified)
