"""A client that keeps HTTP/2's rules only as far as it suits it, and what is watched while it is at work."""

from __future__ import annotations

import contextlib
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

import grpc

from tests.conformance import wire
from tests.conformance.api import Api
from tests.harness import Server

WINDOW_UPDATE, CONTINUATION = 8, 9
INITIAL_WINDOW_SIZE = 4  # The number of the setting. Source: RFC 9113 §6.5.2.
WINDOW_BYTES = 65_535
FRAME_BYTES_MAX = 16_384
PATIENCE_S = 20
MIB = 1024 * 1024

Pairs = Sequence[tuple[bytes, bytes]]


def head(path: str, extra: Pairs = ()) -> bytes:
    """The header block of a call with a token."""
    return wire.headers(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"localhost"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
            (b"authorization", b"Bearer local"),
            *extra,
        ]
    )


def framed(message: bytes, *, size: int | None = None, compressed: bool = False) -> bytes:
    """A gRPC message, which claims another size than it has if `size` is given."""
    return struct.pack(">BI", compressed, len(message) if size is None else size) + message


class Connection:
    """One HTTP/2 connection. Nothing is read, and no window is opened, but by `pump`.

    `window` is what the server may send of each answer. `heads` has the last header block of each stream, and
    `ended` are those that the server has ended. Only the server makes it `closed`; it is `stalled` when the
    server no longer reads what is sent.
    """

    def __init__(self, address: str, *, window: int | None = None) -> None:
        self.socket = wire.connect(address)
        self.closed = False
        self.stalled = False
        self.ended: set[int] = set()
        self.heads: dict[int, bytes] = {}
        self.goaway = b""
        self._is_greeted = False
        self._buffer = b""
        self._next = 1
        self._window = WINDOW_BYTES
        self._windows: dict[int, int] = {}
        self._initial = WINDOW_BYTES
        settings = b"" if window is None else struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
        self.send(wire.PREFACE + wire.frame(wire.SETTINGS, settings))
        # The connection's own window is opened wide, so that each stream's counts alone.
        self.send(wire.frame(WINDOW_UPDATE, struct.pack(">I", 2**30)))
        self._until(lambda: self._is_greeted)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    def send(self, sent: bytes) -> bool:
        """Whether the server takes it, or may."""
        if not (self.closed or self.stalled):
            try:
                self.socket.sendall(sent)
            except TimeoutError:
                self.stalled = True
            except OSError:
                self.closed = True
        return not (self.closed or self.stalled)

    def begin(self, path: str, extra: Pairs = (), *, ends: bool = False) -> int:
        """The number of a new stream, of which the head is sent."""
        stream, self._next = self._next, self._next + 2
        self._windows[stream] = self._initial
        flags = wire.END_HEADERS | (wire.END_STREAM if ends else 0)
        self.send(wire.frame(wire.HEADERS, head(path, extra), flags=flags, stream=stream))
        return stream

    def call(self, path: str, message: bytes, extra: Pairs = ()) -> int:
        """The number of a stream with one whole and short message."""
        stream = self.begin(path, extra)
        self._data(stream, framed(message), wire.END_STREAM)
        return stream

    def push(self, stream: int, sent: bytes, *, wait_s: float = 2) -> bool:
        """Whether all of it was sent, as flow control allows, before the server ended the stream.

        `wait_s` is how long a window that is used up is waited for.
        """
        while sent:
            self.pump()
            if self.closed or self.stalled or stream in self.ended:
                return False
            size = min(self._may_send(stream), FRAME_BYTES_MAX, len(sent))
            if size > 0:
                self._data(stream, sent[:size], 0)
                sent = sent[size:]
            elif not self._until(lambda: self._may_send(stream) or stream in self.ended, wait_s):
                return False
        return True

    def pump(self, wait_s: float = 0) -> bool:
        """Whether something came; it is answered as a well-behaved client would."""
        came = False
        while not self.closed and select.select([self.socket], [], [], 0 if came else wait_s)[0]:
            came = True
            try:
                read = self.socket.recv(MIB)
            except OSError:
                read = b""
            self.closed = not read
            self._buffer += read
            self._take_frames()
        return came

    def wait_closed(self) -> bool:
        """Whether the server ends the connection, before our patience does."""
        return self._until(lambda: self.closed)

    def wait_answered(self, *streams: int) -> bool:
        """Whether the server begins to answer all of them."""
        return self._until(lambda: self.heads.keys() >= set(streams))

    def wait_ended(self, *streams: int) -> bool:
        """Whether the server ends the streams, or the connection."""
        return self._until(lambda: self.closed or self.ended >= set(streams))

    def _until(self, holds: Callable[[], bool], wait_s: float = PATIENCE_S) -> bool:
        give_up = time.monotonic() + wait_s
        while not holds() and not self.closed and time.monotonic() < give_up:
            self.pump(0.05)
        return holds()

    def _may_send(self, stream: int) -> int:
        return max(0, min(self._window, self._windows[stream]))

    def _data(self, stream: int, sent: bytes, flags: int) -> None:
        self._window -= len(sent)
        self._windows[stream] -= len(sent)
        self.send(wire.frame(wire.DATA, sent, flags=flags, stream=stream))

    def _take_frames(self) -> None:
        while len(self._buffer) >= 9 and len(self._buffer) >= (size := int.from_bytes(self._buffer[:3]) + 9):
            kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
            payload, self._buffer = self._buffer[9:size], self._buffer[size:]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == wire.SETTINGS and not flags & wire.ACK:
            self._take_settings(payload)
        elif kind == wire.PING and not flags & wire.ACK:
            self.send(wire.frame(wire.PING, payload, flags=wire.ACK))
        elif kind == WINDOW_UPDATE and stream == 0:
            self._window += int.from_bytes(payload)
        elif kind == WINDOW_UPDATE:
            self._windows[stream] += int.from_bytes(payload)
        elif kind == wire.GOAWAY:
            self.goaway = payload
        elif kind in (wire.DATA, wire.HEADERS, wire.RST_STREAM):
            if kind == wire.HEADERS:
                self.heads[stream] = payload
            if kind == wire.RST_STREAM or flags & wire.END_STREAM:
                self.ended.add(stream)

    def _take_settings(self, payload: bytes) -> None:
        for number, value in struct.iter_unpack(">HI", payload):
            if number == INITIAL_WINDOW_SIZE:
                self._windows = {
                    stream: window + value - self._initial for stream, window in self._windows.items()
                }
                self._initial = value
        self._is_greeted = True
        self.send(wire.frame(wire.SETTINGS, flags=wire.ACK))


def resident_mib(server: Server) -> float:
    """The server's resident memory (VmRSS)."""
    if server.process is None:
        raise AssertionError("the server does not run")
    with open(f"/proc/{server.process.pid}/status", encoding="ascii") as status:
        line = next(line for line in status if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


class Watched:
    """A server under attack: how much its memory grew at most, and what became of others' calls meanwhile."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.grown_mib = 0.0
        self.answered = 0
        self.refused: list[str] = []
        self._before_mib = resident_mib(server)
        self.client = Api(server.address)
        self._image_id = self.client.image("others", disk_id=self.client.disk("others")).id
        self._one_at_a_time = threading.Lock()
        self._over = threading.Event()

    def others_are_served(self) -> None:
        """A Get and an Update of a well-behaved client are answered, and what is written is read."""
        with self._one_at_a_time:
            description = f"call {self.answered}"
            self.client.update(self._image_id, ["description"], description=description)
            if self.client.get(self._image_id).description != description:
                raise AssertionError("an acknowledged update was not read")
            self.answered += 1

    def look(self) -> None:
        """Measure until it is over."""
        while not self._over.wait(0.01):
            self.grown_mib = max(self.grown_mib, resident_mib(self.server) - self._before_mib)

    def call(self) -> None:
        """Call until it is over."""
        while not self._over.is_set():
            try:
                self.others_are_served()
            except grpc.RpcError as error:
                self.refused.append(f"{error.code().name}: {error.details()}")

    def end(self) -> None:
        self._over.set()

    def close(self) -> None:
        self.client.channel.close()


@contextlib.contextmanager
def watched(server: Server) -> Iterator[Watched]:
    """What is seen of a server while it is attacked; others call it all the time."""
    seen = Watched(server)
    threads = [threading.Thread(target=work) for work in (seen.look, seen.call)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        seen.end()
        for thread in threads:
            thread.join()
        seen.close()
