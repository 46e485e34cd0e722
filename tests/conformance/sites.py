"""An HTTP server with a body for each path, some of which are sent only when a test says so."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Self, TypeVar

from server.gen.yandex.cloud.operation import operation_pb2
from tests.conformance.api import Api
from tests.unit.server.misbehaving import Answer, Request, Server, head, whole

DEADLINE_S = 20.0
POLL_S = 0.01
Found = TypeVar("Found")


def until(look: Callable[[], Found], *, seconds: float = DEADLINE_S) -> Found:
    """What `look` returns once it is true. Raises AssertionError after a while."""
    gives_up_at = time.monotonic() + seconds
    while time.monotonic() < gives_up_at:
        found = look()
        if found:
            return found
        time.sleep(POLL_S)
    raise AssertionError(f"it did not come true within {seconds:g} s: {look()!r}")


def ended(api: Api, operation_id: str) -> operation_pb2.Operation:
    """The operation, once it is done."""

    def look() -> operation_pb2.Operation | None:
        operation = api.operation(operation_id)
        return operation if operation.done else None

    operation = until(look)
    assert operation is not None
    return operation


class Held:
    """An answer that stops after `sent_bytes` until `go` is set; `gone` is set when the client hangs up."""

    def __init__(self, body: bytes, *, sent_bytes: int) -> None:
        self.body = body
        self.sent_bytes = sent_bytes
        self.come, self.go, self.gone = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, _: Request, connection: socket.socket) -> None:
        connection.sendall(head(200, {"Content-Length": len(self.body)}) + self.body[: self.sent_bytes])
        self.come.set()
        connection.settimeout(POLL_S)
        while not self.go.is_set():
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    self.gone.set()
                    return
        connection.settimeout(DEADLINE_S)
        connection.sendall(self.body[self.sent_bytes :])


class Site:
    """Paths and their answers; what is not there is 404. Counts connections, also those without a request."""

    def __init__(self, *, address: str = "127.0.0.1", port: int = 0) -> None:
        self._answers: dict[str, Answer] = {}
        self._held: list[Held] = []
        self._server = Server(self._answer, address=address, port=port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.let_go()
        self._server.__exit__(None, None, None)

    @property
    def prefix(self) -> str:
        return self.uri("/images/")

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def connections(self) -> int:
        return self._server.connections

    @property
    def requests(self) -> list[Request]:
        return self._server.requests

    def requests_of(self, path: str) -> list[Request]:
        return [request for request in self._server.requests if request.target.partition("?")[0] == path]

    def uri(self, path: str) -> str:
        return self._server.uri(path)

    def put(self, path: str, answer: Answer | bytes) -> str:
        """The URI of a path, which answers so from now on."""
        self._answers[path] = whole(answer) if isinstance(answer, bytes) else answer
        return self.uri(path)

    def hold(self, path: str, body: bytes, *, sent_bytes: int = 0) -> tuple[str, Held]:
        """The URI of a body that stops after its first bytes, and what holds it."""
        held = Held(body, sent_bytes=sent_bytes)
        self._held.append(held)
        return self.put(path, held), held

    def let_go(self) -> None:
        """Send the rest of everything that is held."""
        for held in self._held:
            held.go.set()
        self._held.clear()

    def _answer(self, request: Request, connection: socket.socket) -> None:
        answer = self._answers.get(request.target.partition("?")[0], whole(b"none", status=404))
        answer(request, connection)
