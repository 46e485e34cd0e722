"""Presigned URLs of a real S3 server that checks their signatures."""

import contextlib
import random
import socket
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from server.allowlist import AllowList
from server.fetch import fetch
from server.wire import FetchFailed, Limits
from tests.conformance.s3 import S3, S3Unavailable, serving_s3

BODY = random.Random(3).randbytes(9_000_017)
LIMITS = Limits(resume_pause_seconds=0.01, poll_seconds=0.05)


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(serving_s3(tmp_path_factory.mktemp("s3")))
        except S3Unavailable as error:
            pytest.skip(str(error))
        server.put("images", "folder/disk one~.raw", BODY)
        yield server


class Relay:
    """Passes bytes on to a server, notes each request line, and breaks the first connection if told to."""

    def __init__(self, target: S3, *, break_after_bytes: int | None = None) -> None:
        self._target = target
        self._break_after_bytes = break_after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.requests: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), client:
                self._pass_on(client)

    def _pass_on(self, client: socket.socket) -> None:
        request = client.recv(65536)
        limit, self._break_after_bytes = self._break_after_bytes, None
        self.requests.append(request)
        with socket.create_connection((self._target.host, self._target.port)) as server:
            server.sendall(request)
            passed_bytes = 0
            while piece := server.recv(65536):
                client.sendall(piece)
                passed_bytes += len(piece)
                if limit is not None and passed_bytes > limit:
                    return


def read(uri: str, totals: list[int | None] | None = None) -> bytes:
    parts = urlsplit(uri)
    allowlist = AllowList.parse([f"http://{parts.netloc}/images/"])
    on_total = (lambda _: None) if totals is None else totals.append
    return b"".join(
        fetch(allowlist.admit(uri), allowlist, limits=LIMITS, stop=lambda: None, on_total=on_total)
    )


def test_a_presigned_object_is_read(s3: S3) -> None:
    totals: list[int | None] = []
    assert read(s3.presigned("images", "folder/disk one~.raw"), totals) == BODY
    assert totals == [len(BODY)]


@pytest.mark.parametrize("break_after_bytes", [None, 2_000_000])
def test_only_get_is_sent_also_to_go_on(s3: S3, break_after_bytes: int | None) -> None:
    """The relay stands where the signed host points, so the signature is checked as it is."""
    with contextlib.closing(Relay(s3, break_after_bytes=break_after_bytes)) as relay:
        signed = S3("127.0.0.1", relay.port).presigned("images", "folder/disk one~.raw")
        assert read(signed) == BODY
    assert len(relay.requests) == (1 if break_after_bytes is None else 2)
    assert all(request.startswith(b"GET /images/folder/disk%20one~.raw?X-Amz-") for request in relay.requests)
    if break_after_bytes is not None:
        assert b"\r\nRange: bytes=" in relay.requests[1]
        assert b"\r\nIf-Range: " in relay.requests[1]


@pytest.mark.parametrize(
    "uri",
    [
        pytest.param(
            lambda s3: s3.presigned("images", "folder/disk one~.raw", secret="wrong"), id="signature"
        ),
        pytest.param(
            lambda s3: s3.presigned("images", "folder/disk one~.raw", expires_seconds=5, age_seconds=60),
            id="expired",
        ),
        pytest.param(
            lambda s3: s3.presigned("images", "folder/disk one~.raw").replace("disk", "desk"),
            id="other-object",
        ),
        pytest.param(
            lambda s3: s3.presigned("images", "folder/disk one~.raw").partition("?")[0], id="unsigned"
        ),
    ],
)
def test_what_is_not_signed_for_is_refused_with_the_remedy(s3: S3, uri: object) -> None:
    assert callable(uri)
    with pytest.raises(FetchFailed, match="answered 403: access is denied; a presigned URL") as failed:
        read(uri(s3))
    assert "X-Amz" not in str(failed.value)


def test_an_object_that_is_not_there(s3: S3) -> None:
    with pytest.raises(FetchFailed, match="answered 404"):
        read(s3.presigned("images", "missing"))
