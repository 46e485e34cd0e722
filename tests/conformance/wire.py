"""HTTP/2 by hand: what no client library lets a test send, and what none lets it see."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK = END_STREAM = 1
END_HEADERS = 4
TIMEOUT_S = 10


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(pairs: Sequence[tuple[bytes, bytes]]) -> bytes:
    """A header block of literals that no table keeps. Source: RFC 7541 §6.2.2."""
    return b"".join(b"\0" + _length(name) + name + _length(value) + value for name, value in pairs)


def _length(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes([size])
    out, size = bytearray([127]), size - 127
    while size >= 128:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


def call(address: str, path: str, message: bytes, extra: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
    """Everything a server sends to one unary call on a connection of its own, up to the end of its stream."""
    pairs = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b":authority", b"localhost"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        *extra,
    ]
    body = struct.pack(">BI", 0, len(message)) + message
    with connect(address) as connection:
        connection.sendall(
            PREFACE
            + frame(SETTINGS)
            + frame(HEADERS, headers(pairs), flags=END_HEADERS, stream=1)
            + frame(DATA, body, flags=END_STREAM, stream=1)
        )
        return b"".join(_until_the_end(connection))


def _until_the_end(connection: socket.socket) -> Iterator[bytes]:
    for kind, flags, stream, payload in frames(connection):
        if kind == GOAWAY:
            yield payload
            return
        if stream == 1:
            yield payload
            if kind == RST_STREAM or (kind in (DATA, HEADERS) and flags & END_STREAM):
                return


def frames(connection: socket.socket) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, stream and payload of each frame, until the server closes."""
    with connection.makefile("rb") as file:
        while len(head := file.read(9)) == 9:
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            yield kind, flags, stream, file.read(int.from_bytes(head[:3], "big"))


def settings_of(address: str) -> dict[int, int]:
    """The server's SETTINGS, by their numbers in RFC 9113 §6.5.2."""
    with connect(address) as connection:
        connection.sendall(PREFACE + frame(SETTINGS))
        for kind, flags, _, payload in frames(connection):
            if kind == SETTINGS and not flags & ACK:
                return dict(struct.iter_unpack(">HI", payload))
    raise AssertionError("the server sent no SETTINGS")
