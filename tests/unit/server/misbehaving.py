"""Small HTTP servers on loopback that answer byte for byte what a test says, and count who came."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

HeaderMap = Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked; header names are in lower case."""

    method: str
    target: str
    headers: dict[str, str]


Answer = Callable[[Request, socket.socket], None]


class Server:
    """Answers the nth connection with the nth answer, and further ones with the last; then closes."""

    def __init__(
        self,
        *answers: Answer,
        address: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        greeting: bytes = b"",
    ) -> None:
        self._answers = answers
        self._greeting = greeting
        self._tls = tls
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listener = socket.create_server((address, port), family=family)
        self._open: set[socket.socket] = set()
        self._stopping = False
        self.address = address
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.requests: list[Request] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        # A close alone would leave the thread in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def uri(self, path: str = "/images/disk.raw", *, host: str | None = None) -> str:
        scheme = "http" if self._tls is None else "https"
        address = f"[{self.address}]" if ":" in self.address else self.address
        return f"{scheme}://{host or address}:{self.port}{path}"

    def _accept(self) -> None:
        while not self._stopping:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            answer = self._answers[min(self.connections, len(self._answers)) - 1]
            self._open.add(connection)
            threading.Thread(target=self._serve, args=(connection, answer), daemon=True).start()

    def _serve(self, connection: socket.socket, answer: Answer) -> None:
        # A client that hangs up early is what many tests are about.
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.sendall(self._greeting)
            if self._tls is None:
                self._answer(connection, answer)
                return
            with self._tls.wrap_socket(connection, server_side=True) as secured:
                self._answer(secured, answer)
                secured.unwrap()
        self._open.discard(connection)

    def _answer(self, connection: socket.socket, answer: Answer) -> None:
        request = _read_request(connection)
        if request is not None:
            self.requests.append(request)
            answer(request, connection)


def _read_request(connection: socket.socket) -> Request | None:
    received = b""
    while not received.endswith(b"\r\n\r\n"):
        piece = connection.recv(65536)
        if not piece:
            return None
        received += piece
    first, *lines = received.decode("latin-1").strip().split("\r\n")
    method, target, _ = first.split(" ")
    pairs = (line.partition(": ") for line in lines)
    return Request(method, target, {name.lower(): value for name, _, value in pairs})


def head(status: int = 200, headers: HeaderMap | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def sending(*pieces: bytes) -> Answer:
    """These bytes, as they are."""

    def answer(_: Request, connection: socket.socket) -> None:
        for piece in pieces:
            connection.sendall(piece)

    return answer


def whole(body: bytes, headers: HeaderMap | None = None, *, status: int = 200) -> Answer:
    """A well-behaved answer."""
    return sending(head(status, {"Content-Length": len(body), **(headers or {})}), body)


def cut(body: bytes, sent_bytes: int, headers: HeaderMap | None = None) -> Answer:
    """Declares the whole body, and sends only its beginning."""
    return sending(head(200, {"Content-Length": len(body), **(headers or {})}), body[:sent_bytes])


def rest(body: bytes, headers: HeaderMap | None = None, *, sent_bytes: int | None = None) -> Answer:
    """Honours a Range, for `sent_bytes` at most."""

    def answer(request: Request, connection: socket.socket) -> None:
        start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        part = body[start:]
        content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
        given = {"Content-Length": len(part), "Content-Range": content_range, **(headers or {})}
        connection.sendall(head(206, given) + part[:sent_bytes])

    return answer


def redirect(location: str | None, status: int = 302) -> Answer:
    headers: HeaderMap = {"Content-Length": 0} if location is None else {"Location": location}
    return sending(head(status, headers), b"body of a redirect")


def chunked(body: bytes, chunk_bytes: int = 1000) -> bytes:
    chunks = [body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)]
    return b"".join(b"%x;name=value\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


def dripping(first: bytes, pieces: Iterable[bytes], *, seconds: float = 0.01) -> Answer:
    """`first`, then a piece now and then, until the client hangs up."""

    def answer(_: Request, connection: socket.socket) -> None:
        connection.sendall(first)
        for piece in pieces:
            time.sleep(seconds)
            connection.sendall(piece)

    return answer


def endless(first: bytes, piece: bytes) -> Answer:
    """`first`, then the same piece until the client hangs up."""

    def answer(_: Request, connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(piece)

    return answer


def silent(first: bytes = b"") -> Answer:
    """`first`, and then nothing until the client hangs up."""

    def answer(_: Request, connection: socket.socket) -> None:
        connection.sendall(first)
        connection.recv(1)

    return answer
