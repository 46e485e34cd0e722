"""An image from an http(s) server: redirects, resumption, encodings and what the answers may say."""

from __future__ import annotations

import http.client
import logging
import re
import socket
import ssl
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import cast

from server.allowlist import AllowList, Location, SourceNotAllowed, UriMalformed, brief
from server.wire import (
    CHUNK_BYTES,
    Addresses,
    Broken,
    FetchFailed,
    Resolve,
    Run,
    Unreachable,
    Wire,
    connect,
    tls_context,
)

logger = logging.getLogger(__name__)

_INFLATE_BYTES = 16_384
_PAUSE_SECONDS_MAX = 30.0
_ETAG_LENGTH_MAX = 1024

_REDIRECTS = (301, 302, 303, 307, 308)
_RETRIED = (408, 425, 429)
_STRONG_ETAG = re.compile(r'"[\x21\x23-\x7e]*"')
_HTTP_DATE = re.compile(r"[A-Za-z]{3}, [0-9]{2} [A-Za-z]{3} [0-9]{4} [0-9:]{8} GMT")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_LENGTH = re.compile(r"[0-9]{1,18}")
_HAS_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What an answer's headers say about its body; `end` is the size of the whole, if they tell it."""

    start: int
    end: int | None
    gzipped: bool
    etag: str | None
    modified: str | None


class HttpSource:
    """One image over as many connections as it takes."""

    def __init__(
        self,
        location: Location,
        allowlist: AllowList,
        run: Run,
        on_total: Callable[[int | None], None],
        resolve: Resolve,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._first = location
        self._at = location
        self._allowlist = allowlist
        self._run = run
        self._on_total = on_total
        self._addresses = Addresses(resolve, run)
        self._tls = tls
        self._whole: _Answer | None = None
        self._inflate: _Inflate | None = None
        self._received_bytes = 0

    def read(self) -> Iterator[bytes]:
        resumes = 0
        while True:
            try:
                yield from self._read_on()
                return
            except Broken as broken:
                if resumes == self._run.limits.resumes_max or (
                    isinstance(broken, Unreachable) and not resumes
                ):
                    raise self._failed(
                        f"{broken.reason}; {_tried(resumes)}check the source, and import again"
                    ) from None
                logger.info(
                    "a source broke off",
                    extra={
                        "source": self._at.shown(),
                        "cause": broken.reason,
                        "received_bytes": self._received_bytes,
                    },
                )
            self._run.pause(min(self._run.limits.resume_pause_seconds * 2**resumes, _PAUSE_SECONDS_MAX))
            resumes += 1

    def _read_on(self) -> Iterator[bytes]:
        """The pieces that one connection gives. Raises Broken."""
        if not self._run.given_bytes:
            self._whole, self._received_bytes = None, 0
        wire, response = self._open()
        with closing(wire):
            answer = self._check_answer(response)
            if self._whole is None:
                self._begin(answer)
            else:
                self._check_same(self._whole, answer)
            yield from self._body(wire, response)

    def _begin(self, answer: _Answer) -> None:
        if answer.start:
            raise self._failed("the server answered with a part that nobody asked for; check the source")
        self._whole = answer
        self._inflate = _Inflate() if answer.gzipped else None
        if answer.end is not None and not answer.gzipped:
            self._run.check_size(answer.end)
        self._on_total(None if answer.gzipped else answer.end)

    def _body(self, wire: Wire, response: http.client.HTTPResponse) -> Iterator[bytes]:
        end = self._whole.end if self._whole is not None else None
        while piece := self._piece(response):
            self._received_bytes += len(piece)
            if end is not None and self._received_bytes > end:
                raise self._failed(
                    f"the server sent more than the {end} bytes that it declared; check the source"
                )
            for chunk in self._decode(piece):
                wire.ungiven_bytes = 0
                yield self._run.give(chunk)
        if end is not None and self._received_bytes < end:
            raise Broken(f"the connection broke after {self._received_bytes} of {end} bytes")
        if self._inflate is not None and not self._inflate.finished:
            if end is None and wire.ended:
                raise Broken(f"the connection broke after {self._received_bytes} bytes")
            raise self._failed("its gzip encoding ends too early; check the source")

    def _piece(self, response: http.client.HTTPResponse) -> bytes:
        try:
            return response.read1(CHUNK_BYTES)
        except http.client.IncompleteRead:
            raise Broken(f"the connection broke after {self._received_bytes} bytes") from None
        except (http.client.HTTPException, ValueError):
            raise self._failed("the server's answer is no valid HTTP; check the address") from None
        except ssl.SSLError as error:
            raise Broken(f"the connection broke ({error.reason})") from error

    def _decode(self, piece: bytes) -> Iterator[bytes]:
        if self._inflate is None:
            yield piece
            return
        try:
            yield from self._inflate.feed(piece)
        except zlib.error:
            raise self._failed("its gzip encoding is damaged; check the source") from None

    def _open(self) -> tuple[Wire, http.client.HTTPResponse]:
        """An answer that is no redirect; from the first URI on, because what it led to may have expired."""
        self._at = self._first
        for _ in range(self._run.limits.redirects_max + 1):
            wire = self._dial()
            try:
                response = self._request(wire)
            except BaseException:
                wire.close()
                raise
            if response.status not in _REDIRECTS:
                return wire, response
            wire.close()
            self._at = self._follow(response)
        raise self._failed(
            f"it redirects more than {self._run.limits.redirects_max} times; use the last address"
        )

    def _dial(self) -> Wire:
        """A connection to the first address that takes one. Raises Broken."""
        unreachable = Unreachable("its host name has no address")
        for address in self._addresses.find(self._at):
            try:
                connection = connect(address, self._at.port, self._run)
            except Unreachable as error:
                unreachable = error
                continue
            return self._secure(connection) if self._at.scheme == "https" else Wire(connection, self._run)
        raise unreachable

    def _secure(self, connection: socket.socket) -> Wire:
        if self._tls is None:
            self._tls = tls_context()
        # A connection that ends without TLS's own end is a broken one.
        wire = Wire(
            self._tls.wrap_socket(
                connection,
                server_hostname=self._at.host,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            ),
            self._run,
        )
        try:
            wire.shake_hands()
        except ssl.SSLCertVerificationError as error:
            wire.close()
            raise self._failed(
                f"the server's certificate is not trusted ({error.verify_message});"
                " give this server the authority's certificate (SSL_CERT_FILE)"
            ) from None
        except ssl.SSLError as error:
            wire.close()
            raise self._failed(
                f"the server speaks no TLS that is understood ({error.reason}); check the address"
            ) from None
        except BaseException:
            wire.close()
            raise
        return wire

    def _request(self, wire: Wire) -> http.client.HTTPResponse:
        lines = [
            f"GET {self._at.target()} HTTP/1.1",
            f"Host: {self._at.authority()}",
            "User-Agent: imageledger",
            "Accept: */*",
            "Accept-Encoding: identity",
            *self._range(),
            "Connection: close",
        ]
        response = http.client.HTTPResponse(cast(socket.socket, wire), method="GET")
        try:
            wire.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode("ascii"))
            response.begin()
        except http.client.RemoteDisconnected:
            raise Broken("the server closed the connection without an answer") from None
        except (http.client.HTTPException, ValueError):
            raise self._failed("the server's answer is no valid HTTP; check the address") from None
        except ssl.SSLError as error:
            raise Broken(f"the connection broke ({error.reason})") from error
        if wire.ended:
            # The parser takes this for the end of the headers.
            raise Broken("the connection broke within the answer's headers")
        if response.headers.defects or response.headers.get_payload():
            # The parser stops at a bad line. With the lines after it, a Content-Length could go unseen.
            raise self._failed("the server's answer is no valid HTTP; check the address")
        wire.headers_by = None
        return response

    def _range(self) -> list[str]:
        if self._whole is None:
            return []
        lines = [f"Range: bytes={self._received_bytes}-"]
        etag, modified = self._whole.etag, self._whole.modified
        if etag is not None and _STRONG_ETAG.fullmatch(etag):
            lines.append(f"If-Range: {etag}")
        elif etag is None and modified is not None and _HTTP_DATE.fullmatch(modified):
            lines.append(f"If-Range: {modified}")
        return lines

    def _follow(self, response: http.client.HTTPResponse) -> Location:
        """Where a redirect leads: admitted like any source, but a server names no files of this machine."""
        reference = str(response.headers.get("Location") or "").strip(" \t")
        if not reference:
            raise self._failed(
                f"the server answered {response.status} without saying where to; check the address"
            )
        try:
            target = self._allowlist.admit(_absolute(self._at, reference))
        except UriMalformed as error:
            raise self._failed(f"it redirects to an address that is refused: {error}") from None
        except SourceNotAllowed as error:
            raise self._failed(f"it redirects to {brief(error.shown)}: {error.reason}") from None
        if target.scheme == "file":
            raise self._failed("it redirects to a file of this machine, which is refused")
        return target

    def _check_answer(self, response: http.client.HTTPResponse) -> _Answer:
        """What the answer holds. Raises FetchFailed, and Broken for what may pass."""
        status = response.status
        if status in _RETRIED or status >= 500:
            raise Broken(f"the server answered {status}")
        if status not in (200, 206):
            raise self._failed(_explain(status))
        headers = response.headers
        codings = [str(value).strip().lower() for value in headers.get_all("Transfer-Encoding", [])]
        if codings not in ([], ["chunked"]):
            raise self._failed("the server uses a Transfer-Encoding other than chunked; use another one")
        length = None if codings else self._length(headers.get_all("Content-Length", []))
        start, end = (0, length) if status == 200 else self._part(headers.get("Content-Range"), length)
        encoding = str(headers.get("Content-Encoding") or "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip"):
            raise self._failed(
                "the server encodes the content, though only gzip is taken; store it unencoded"
            )
        etag, modified = headers.get("ETag"), headers.get("Last-Modified")
        return _Answer(
            start,
            end,
            encoding != "identity",
            None if etag is None else str(etag)[:_ETAG_LENGTH_MAX],
            None if modified is None else str(modified),
        )

    def _length(self, values: list[str]) -> int | None:
        texts = {str(value).strip() for value in values}
        if not texts:
            return None
        text = texts.pop()
        if texts or not _LENGTH.fullmatch(text):
            raise self._failed("the server's Content-Length is not one number; check the source")
        return int(text)

    def _part(self, value: str | None, length: int | None) -> tuple[int, int]:
        """Where a 206 begins, and the size of the whole, to whose end it must reach."""
        found = _CONTENT_RANGE.fullmatch(str(value or "").strip())
        if found is None:
            raise self._failed("the server answered 206 without a valid Content-Range; check the source")
        first, last = int(found[1]), int(found[2])
        size = last + 1 if found[3] == "*" else int(found[3])
        if not first <= last == size - 1 or length not in (None, size - first):
            raise self._failed("the server answered 206 with another part than asked for; check the source")
        return first, size

    def _check_same(self, whole: _Answer, answer: _Answer) -> None:
        """Refuses to put together what may be parts of two different images."""
        if answer.start != self._received_bytes:
            raise self._failed(
                f"the connection broke after {self._received_bytes} bytes and the server did not go on from"
                " there: it knows no ranges, or the source changed; import again"
            )
        same_size = whole.end is None or whole.end == answer.end
        same_etag = whole.etag is None or answer.etag in (None, whole.etag)
        same_time = whole.modified is None or answer.modified in (None, whole.modified)
        if not (same_size and same_etag and same_time and whole.gzipped == answer.gzipped):
            raise self._failed("the source changed while it was read; import again")
        if whole.end is None:
            self._whole = replace(whole, end=answer.end)

    def _failed(self, reason: str) -> FetchFailed:
        return FetchFailed(self._at.shown(), reason)


def _absolute(base: Location, reference: str) -> str:
    """A redirect's target as a URI, with its `..` left for the allow-list to refuse."""
    if _HAS_SCHEME.match(reference):
        return reference
    if reference.startswith("//"):
        return f"{base.scheme}:{reference}"
    origin = f"{base.scheme}://{base.authority()}"
    if reference.startswith("/"):
        return origin + reference
    if reference.startswith("?"):
        return origin + base.path + reference
    return f"{origin}{base.path.rpartition('/')[0]}/{reference}"


def _tried(resumes: int) -> str:
    return f"so did {resumes} more attempts; " if resumes else ""


def _explain(status: int) -> str:
    said = f"the server answered {status}"
    match status:
        case 401:
            return f"{said}: it asks for credentials, and none are sent; use a presigned URL"
        case 403:
            return (
                f"{said}: access is denied; a presigned URL may have expired or its signature may not fit,"
                " so make a new one"
            )
        case 404 | 410:
            return f"{said}: nothing is there; check the address"
        case 416:
            return f"{said}: the source became shorter while it was read; import again"
        case _:
            return f"{said}, which brings no image; check the address"


class _Inflate:
    """Undoes gzip, members one after the other, with at most 262,144 bytes of output at a time."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    @property
    def finished(self) -> bool:
        """Whether the last member is whole."""
        return self._member.eof

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Raises zlib.error."""
        # In short slices, because what follows a member is copied each time one ends.
        for start in range(0, len(piece), _INFLATE_BYTES):
            yield from self._feed(piece[start : start + _INFLATE_BYTES])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            if self._member.eof:
                if not data:
                    return
                self._member = zlib.decompressobj(wbits=31)
            chunk = self._member.decompress(data, CHUNK_BYTES)
            if chunk:
                yield chunk
            data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            # With its output full, the decoder may hold back more than it has input left.
            if not data and len(chunk) < CHUNK_BYTES:
                return
