"""Bytes from servers that break off, lie, dawdle and never end; and from files."""

import contextlib
import gzip
import itertools
import logging
import os
import random
import ssl
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import trustme
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.allowlist import AllowList, Location
from server.config import ConfigInvalid
from server.fetch import fetch
from server.wire import (
    CHUNK_BYTES,
    FetchFailed,
    FetchStopped,
    Limits,
    Resolve,
    resolve_name,
    tls_context,
)
from tests.unit.server.misbehaving import (
    Answer,
    Server,
    chunked,
    cut,
    dripping,
    endless,
    head,
    redirect,
    rest,
    sending,
    silent,
    whole,
)

BODY = random.Random(4).randbytes(700_001)
SMALL = BODY[:5000]
ETAG = {"ETag": '"one"'}
QUERY = "?X-Amz-Credential=key&X-Amz-Signature=secret"
FAST = Limits(
    size_bytes_max=8 << 20,
    seconds_max=20,
    connect_seconds=5,
    idle_seconds=5,
    resumes_max=3,
    resume_pause_seconds=0.001,
    poll_seconds=0.02,
)
HASTY = Limits(
    idle_seconds=0.15, resumes_max=1, resume_pause_seconds=0.001, poll_seconds=0.02, size_bytes_max=1 << 20
)


def never() -> str | None:
    return None


def read(
    uri: str,
    *,
    prefixes: Sequence[str] = (),
    limits: Limits = FAST,
    stop: Callable[[], str | None] = never,
    totals: list[int | None] | None = None,
    resolve: Resolve = resolve_name,
    tls: ssl.SSLContext | None = None,
) -> bytes:
    """All bytes, with what every fetch promises checked on the way."""
    allowlist = AllowList.parse(prefixes or [uri.partition("/images/")[0] + "/images/"])
    chunks = []
    with closing(
        fetch(
            allowlist.admit(uri),
            allowlist,
            limits=limits,
            stop=stop,
            on_total=(lambda _: None) if totals is None else totals.append,
            resolve=resolve,
            tls=tls,
        )
    ) as pieces:
        for piece in pieces:
            assert 1 <= len(piece) <= CHUNK_BYTES
            chunks.append(piece)
    return b"".join(chunks)


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.records:
        assert "secret" not in f"{record.getMessage()} {record.__dict__}"


def fail(server: Server, *, limits: Limits = FAST, **options: object) -> str:
    """The text of the failure; it holds no query and nothing of a body."""
    with pytest.raises(FetchFailed) as failed:
        read(server.uri() + QUERY, limits=limits, **options)  # type: ignore[arg-type]
    text = str(failed.value)
    assert "secret" not in text
    assert "body of" not in text
    assert text.startswith(f"{failed.value.shown}: ")
    assert text.isascii()
    assert text.isprintable()
    return text


# --- What is asked and what is taken ---


def test_a_plain_answer() -> None:
    totals: list[int | None] = []
    with Server(whole(BODY)) as server:
        assert read(server.uri() + QUERY, totals=totals) == BODY
        (request,) = server.requests
    assert totals == [len(BODY)]
    assert (request.method, request.target) == ("GET", "/images/disk.raw" + QUERY)
    assert request.headers == {
        "host": f"127.0.0.1:{server.port}",
        "user-agent": "imageledger",
        "accept": "*/*",
        "accept-encoding": "identity",
        "connection": "close",
    }


@pytest.mark.parametrize(
    ("answer", "total"),
    [
        pytest.param(sending(head(200, {"Transfer-Encoding": "chunked"}), chunked(BODY)), None, id="chunked"),
        pytest.param(
            sending(head(200, {"Transfer-Encoding": "Chunked", "Content-Length": 5}), chunked(BODY)),
            None,
            id="chunked-beats-length",
        ),
        pytest.param(sending(head(), BODY), None, id="until-close"),
        pytest.param(sending(b"HTTP/1.0 200\r\n\r\n", BODY), None, id="http-1.0"),
        pytest.param(sending(b"HTTP/1.1 100 Continue\r\n\r\n", head(), BODY), None, id="continue"),
        pytest.param(
            sending(head(200, {"Content-Encoding": "gzip"}), gzip.compress(BODY)), None, id="gzip-until-close"
        ),
        pytest.param(whole(gzip.compress(BODY), {"Content-Encoding": "GZIP"}), None, id="gzip-with-length"),
        pytest.param(
            sending(
                head(200, {"Content-Encoding": "x-gzip", "Transfer-Encoding": "chunked"}),
                chunked(gzip.compress(BODY)),
            ),
            None,
            id="gzip-chunked",
        ),
        pytest.param(
            whole(
                b"".join(gzip.compress(BODY[start : start + 1000]) for start in range(0, len(BODY), 1000)),
                {"Content-Encoding": "gzip"},
            ),
            None,
            id="gzip-members",
        ),
        pytest.param(whole(BODY, {"Content-Encoding": "identity"}), len(BODY), id="identity"),
    ],
)
def test_ways_to_send_a_body(answer: Answer, total: int | None) -> None:
    totals: list[int | None] = []
    with Server(answer) as server:
        assert read(server.uri(), totals=totals) == BODY
    assert totals == [total]


def test_an_ipv6_address() -> None:
    try:
        server = Server(whole(SMALL), address="::1")
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server:
        assert read(server.uri()) == SMALL
    assert server.requests[0].headers["host"] == f"[::1]:{server.port}"


def test_an_empty_body_gives_nothing() -> None:
    with Server(whole(b"")) as server:
        assert read(server.uri()) == b""


def test_a_generator_that_is_closed_hangs_up() -> None:
    gone = threading.Event()

    def until_gone(_: object, connection: object) -> None:
        try:
            endless(head(), SMALL)(_, connection)  # type: ignore[arg-type]
        finally:
            gone.set()

    with Server(until_gone) as server:
        allowlist = AllowList.parse([server.uri("/images/")])
        pieces = fetch(
            allowlist.admit(server.uri()), allowlist, limits=FAST, stop=never, on_total=lambda _: None
        )
        next(pieces)
        pieces.close()
        assert gone.wait(5)


def test_a_location_is_checked_again() -> None:
    with Server(whole(SMALL)) as server:
        location = AllowList.parse([server.uri("/")]).admit(server.uri())
        with pytest.raises(FetchFailed, match="No source prefix"):
            next(fetch(location, AllowList(), limits=FAST, stop=never, on_total=lambda _: None))
    assert server.connections == 0


# --- Broken connections ---


@pytest.mark.parametrize(
    ("headers", "if_range"),
    [
        pytest.param({"ETag": '"one"'}, '"one"', id="strong-etag"),
        pytest.param({"ETag": 'W/"one"'}, None, id="weak-etag"),
        pytest.param({"ETag": "junk"}, None, id="bad-etag"),
        pytest.param(
            {"Last-Modified": "Tue, 24 Nov 2026 10:00:00 GMT"}, "Tue, 24 Nov 2026 10:00:00 GMT", id="date"
        ),
        pytest.param({"Last-Modified": "yesterday"}, None, id="bad-date"),
        pytest.param({}, None, id="none"),
    ],
)
def test_a_broken_body_is_resumed(headers: dict[str, str], if_range: str | None) -> None:
    totals: list[int | None] = []
    with Server(
        cut(BODY, 300_000, headers), rest(BODY, headers, sent_bytes=100_000), rest(BODY, headers)
    ) as server:
        assert read(server.uri() + QUERY, totals=totals) == BODY
    ranges = [request.headers.get("range") for request in server.requests]
    assert ranges == [None, "bytes=300000-", "bytes=400000-"]
    assert [request.headers.get("if-range") for request in server.requests[1:]] == [if_range] * 2
    assert {request.method for request in server.requests} == {"GET"}
    assert totals == [len(BODY)]


def test_a_chunked_body_is_resumed_and_its_size_learnt() -> None:
    first = sending(
        head(200, {"Transfer-Encoding": "chunked", **ETAG}),
        chunked(BODY[:300_000]).removesuffix(b"0\r\n\r\n"),
    )
    with Server(first, rest(BODY, ETAG)) as server:
        assert read(server.uri()) == BODY
    with Server(first, rest(BODY, ETAG, sent_bytes=10), rest(BODY + b"more", ETAG)) as server:
        assert "changed while it was read" in fail(server)


def test_a_gzip_body_is_resumed_in_its_encoded_bytes() -> None:
    encoded = gzip.compress(BODY)
    headers = {"Content-Encoding": "gzip", **ETAG}
    with Server(cut(encoded, 300_000, headers), rest(encoded, headers)) as server:
        assert read(server.uri()) == BODY
    with Server(sending(head(200, headers), encoded[:300_000]), rest(encoded, headers)) as server:
        assert read(server.uri()) == BODY


def test_nothing_given_yet_begins_again() -> None:
    nothing = [
        sending(),
        sending(b"HTTP/1.1 200 OK\r\nContent-Le"),
        sending(head(200, {"Content-Length": 5000})),
    ]
    with Server(*nothing, whole(SMALL)) as server:
        assert read(server.uri()) == SMALL
    assert [request.headers.get("range") for request in server.requests] == [None] * 4


def test_a_redirect_is_followed_anew_when_the_body_broke() -> None:
    hop = redirect("/images/second?one-time=secret")
    with Server(hop, cut(SMALL, 1000, ETAG), hop, rest(SMALL, ETAG)) as server:
        assert read(server.uri()) == SMALL
    assert server.requests[2].target == "/images/disk.raw"
    assert server.requests[3].headers["range"] == "bytes=1000-"


@pytest.mark.parametrize(
    ("second", "text"),
    [
        pytest.param(whole(SMALL, ETAG), "knows no ranges, or the source changed", id="no-range-support"),
        pytest.param(
            whole(SMALL[999:], {"Content-Range": "bytes 999-4999/5000"}, status=206),
            "did not go on from there",
            id="earlier-start",
        ),
        pytest.param(
            whole(SMALL[1001:], {"Content-Range": "bytes 1001-4999/5000"}, status=206),
            "did not go on from there",
            id="later-start",
        ),
        pytest.param(
            whole(SMALL[1000:2000], {"Content-Range": "bytes 1000-1999/5000"}, status=206),
            "another part than asked for",
            id="not-to-the-end",
        ),
        pytest.param(
            whole(SMALL[1000:], {"Content-Range": "bytes 1000-4998/4999"}, status=206),
            "another part than asked for",
            id="length-and-range-differ",
        ),
        pytest.param(
            whole(SMALL[1000:4000], {"Content-Range": "bytes 1000-3999/4000"}, status=206),
            "changed while it was read",
            id="another-size",
        ),
        pytest.param(
            whole(SMALL[1000:], {"Content-Range": "bytes 1000-4999/5000", "ETag": '"two"'}, status=206),
            "changed while it was read",
            id="another-etag",
        ),
        pytest.param(
            whole(
                SMALL[1000:],
                {"Content-Range": "bytes 1000-4999/5000", "Content-Encoding": "gzip"},
                status=206,
            ),
            "changed while it was read",
            id="another-encoding",
        ),
        pytest.param(whole(SMALL[1000:], status=206), "without a valid Content-Range", id="no-content-range"),
        pytest.param(
            whole(SMALL[1000:], {"Content-Range": "bytes 4999-1000/5000"}, status=206),
            "another part",
            id="backwards",
        ),
        pytest.param(
            whole(SMALL[1000:], {"Content-Range": "bytes 1000-99999999999999999999/*"}, status=206),
            "without a valid Content-Range",
            id="absurd-range",
        ),
        pytest.param(whole(b"", status=416), "became shorter", id="416"),
        pytest.param(whole(b"body of 403", status=403), "403", id="expired-meanwhile"),
    ],
)
def test_a_resumption_that_does_not_fit_is_refused(second: Answer, text: str) -> None:
    with Server(cut(SMALL, 1000, ETAG), second) as server:
        assert text in fail(server)


def test_a_body_that_is_always_short_fails() -> None:
    with Server(cut(SMALL, 1000, ETAG), rest(SMALL, ETAG, sent_bytes=10)) as server:
        text = fail(server)
    assert "the connection broke after 1030 of 5000 bytes; so did 3 more attempts" in text
    assert server.connections == 1 + FAST.resumes_max


def test_a_body_beyond_its_range_is_refused() -> None:
    more = sending(
        head(206, {"Content-Range": "bytes 1000-4999/5000", "Transfer-Encoding": "chunked"}),
        chunked(SMALL[1000:] + b"more"),
    )
    with Server(cut(SMALL, 1000), more) as server:
        assert "more than the 5000 bytes that it declared" in fail(server)


def test_nobody_listens() -> None:
    with Server(whole(SMALL)) as server:
        pass
    began = time.monotonic()
    assert "no connection (Connection refused)" in fail(server, limits=Limits())
    assert time.monotonic() - began < 1


# --- Statuses ---


@pytest.mark.parametrize(
    ("status", "text"),
    [
        pytest.param(401, "credentials", id="401"),
        pytest.param(403, "presigned URL may have expired or its signature may not fit", id="403"),
        pytest.param(404, "nothing is there", id="404"),
        pytest.param(410, "nothing is there", id="410"),
        pytest.param(204, "brings no image", id="204"),
        pytest.param(300, "brings no image", id="300"),
        pytest.param(304, "brings no image", id="304"),
        pytest.param(418, "brings no image", id="418"),
    ],
)
def test_a_status_that_another_try_does_not_mend(status: int, text: str) -> None:
    with Server(whole(b"body of an error: secret", status=status)) as server:
        message = fail(server)
    assert text in message
    assert f"answered {status}" in message
    assert server.connections == 1


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_status_that_may_pass_is_tried_again(status: int) -> None:
    error = whole(b"body of an error: secret", status=status)
    with Server(error, error, whole(SMALL)) as server:
        assert read(server.uri()) == SMALL
    with Server(error) as server:
        assert f"answered {status}; so did 3 more attempts" in fail(server)


def test_a_part_that_nobody_asked_for() -> None:
    with Server(whole(SMALL[9:], {"Content-Range": "bytes 9-4999/5000"}, status=206), whole(SMALL)) as server:
        assert "nobody asked for" in fail(server)


# --- Answers that are no HTTP ---


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        pytest.param(b"SSH-2.0-body of secret\r\n", "no valid HTTP", id="ssh"),
        pytest.param(b"HTTP/9.9 200 OK\r\n\r\n", "no valid HTTP", id="version"),
        pytest.param(b"HTTP/1.1 2x0 OK\r\n\r\n", "no valid HTTP", id="status"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000, "no valid HTTP", id="long-header"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "no valid HTTP", id="many-headers"
        ),
        pytest.param(head(200, {"Content-Length": "-5"}), "not one number", id="negative-length"),
        pytest.param(head(200, {"Content-Length": "5, 5"}), "not one number", id="listed-length"),
        pytest.param(head(200, {"Content-Length": "5_0"}), "not one number", id="odd-length"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "not one number",
            id="two-lengths",
        ),
        pytest.param(head(200, {"Transfer-Encoding": "gzip, chunked"}), "other than chunked", id="transfer"),
        pytest.param(head(200, {"Content-Encoding": "br"}), "only gzip", id="brotli"),
        pytest.param(head(200, {"Content-Encoding": "gzip, gzip"}), "only gzip", id="gzip-twice"),
        pytest.param(
            head(200, {"Transfer-Encoding": "chunked"}) + b"zz\r\nbody of secret",
            "the connection broke",
            id="chunk-size",
        ),
        pytest.param(
            head(200, {"Transfer-Encoding": "chunked"}) + b"-1\r\nabc", "connection broke", id="chunk-minus"
        ),
        pytest.param(
            head(200, {"Transfer-Encoding": "chunked"}) + b"5;" + b"a" * 70_000,
            "no valid HTTP",
            id="chunk-extension",
        ),
        pytest.param(
            head(200, {"Content-Encoding": "gzip"}) + b"body of secret", "gzip encoding is damaged", id="gzip"
        ),
        pytest.param(
            head(200, {"Content-Encoding": "gzip"}) + gzip.compress(SMALL)[:-6] + b"123456",
            "gzip encoding is damaged",
            id="gzip-checksum",
        ),
        pytest.param(
            head(200, {"Content-Encoding": "gzip"}) + gzip.compress(SMALL) + b"body of trailing",
            "gzip encoding is damaged",
            id="gzip-trailing",
        ),
        pytest.param(
            head(200, {"Content-Encoding": "gzip", "Content-Length": "50"}) + gzip.compress(SMALL)[:50],
            "gzip encoding ends too early",
            id="gzip-cut",
        ),
    ],
)
def test_an_answer_that_is_no_good(answer: bytes, text: str) -> None:
    with Server(sending(answer)) as server:
        assert text in fail(server)


def test_a_header_with_line_breaks_injects_nothing() -> None:
    junk = b'HTTP/1.1 200 OK\r\nETag: "a\r\n Range: bytes=0-0"\r\nContent-Length: 5000\r\n\r\n'
    with Server(sending(junk, SMALL[:1000]), rest(SMALL)) as server:
        assert read(server.uri()) == SMALL
    assert server.requests[1].headers["range"] == "bytes=1000-"
    assert "if-range" not in server.requests[1].headers


@pytest.mark.parametrize("line", [b"no colon", b": no name", b"X\x00 y: z", b"X: y\r\r", b"X: y\r z"])
def test_a_bad_header_does_not_hide_the_length(line: bytes) -> None:
    """A body that breaks off must not pass for one that ends."""
    answer = b"HTTP/1.1 200 OK\r\n" + line + b"\r\nContent-Length: 5000\r\n\r\n" + SMALL[:1000]
    with (
        Server(sending(answer)) as server,
        pytest.raises(FetchFailed, match=r"no valid HTTP|broke after 1000"),
    ):
        read(server.uri(), limits=HASTY)


HEADERS = st.sampled_from(
    [
        b"Content-Length: 7",
        b"Content-Length: 99",
        b"Content-Length: x",
        b"Transfer-Encoding: chunked",
        b"Content-Encoding: gzip",
        b"Content-Range: bytes 0-6/7",
        b"Location: /images/b",
        b"Location: http://[",
        b'ETag: "\xff"',
        b": x",
        b" folded",
        b"\x00",
    ]
)
ANSWERS = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda status, headers, body: (
            b"HTTP/1.1 %d X\r\n" % status + b"".join(line + b"\r\n" for line in headers) + b"\r\n" + body
        ),
        st.sampled_from([100, 200, 206, 301, 404, 500]),
        st.lists(HEADERS, max_size=4),
        st.one_of(
            st.binary(max_size=20),
            st.sampled_from([chunked(b"1234567"), gzip.compress(b"1234567"), b"1234567", b"7\r\n1234567"]),
        ),
    ),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANSWERS)
def test_any_answer_is_bytes_or_a_failure(answer: bytes) -> None:
    limits = Limits(idle_seconds=2, resumes_max=1, resume_pause_seconds=0, poll_seconds=0.02)
    with Server(sending(answer)) as server, contextlib.suppress(FetchFailed):
        read(server.uri(), limits=limits)


# --- Bounds ---


def test_a_declared_size_over_the_limit_is_refused_before_the_body() -> None:
    with Server(silent(head(200, {"Content-Length": FAST.size_bytes_max + 1}))) as server:
        assert "has more than 8388608 bytes" in fail(server)


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        pytest.param(
            head(200, {"Transfer-Encoding": "chunked"}), b"2000\r\n" + bytes(8192) + b"\r\n", id="chunked"
        ),
        pytest.param(head(), bytes(8192), id="until-close"),
    ],
)
def test_an_endless_body_ends_at_the_limit(first: bytes, piece: bytes) -> None:
    with Server(endless(first, piece)) as server:
        assert "has more than 1048576 bytes" in fail(server, limits=HASTY)


def test_a_gzip_bomb_ends_at_the_limit() -> None:
    bomb = zlib.compressobj(9, wbits=31)
    data = b"".join(bomb.compress(bytes(1 << 20)) for _ in range(64)) + bomb.flush()
    assert len(data) < 100_000
    with Server(whole(data, {"Content-Encoding": "gzip"})) as server:
        assert "has more than 8388608 bytes" in fail(server)


@pytest.mark.parametrize(
    ("first", "piece"),
    [
        pytest.param(
            head(200, {"Transfer-Encoding": "chunked"}) + b"0\r\n",
            b"X: " + bytes(8000) + b"\r\n",
            id="trailers",
        ),
        pytest.param(
            head(200, {"Content-Encoding": "gzip"}) + b"\x1f\x8b\x08\x10" + bytes(6),
            b"a" * 8192,
            id="gzip-comment",
        ),
        pytest.param(head(200, {"Content-Encoding": "gzip"}), gzip.compress(b"") * 400, id="gzip-members"),
    ],
)
def test_framing_without_content_is_bounded(first: bytes, piece: bytes) -> None:
    with Server(endless(first, piece)) as server:
        assert "framing without content" in fail(server)


def test_a_slow_body_is_refused() -> None:
    limits = Limits(rate_bytes_per_second_min=100_000, rate_window_seconds=0.2, poll_seconds=0.02)
    with Server(dripping(head(), itertools.repeat(b"x"))) as server:
        assert "sent less than 100000 bytes a second for 0.2 seconds" in fail(server, limits=limits)
    assert server.connections == 1


def test_a_slow_taker_is_not_the_servers_fault() -> None:
    limits = Limits(rate_bytes_per_second_min=1_000_000, rate_window_seconds=0.05, poll_seconds=0.02)
    with Server(whole(BODY)) as server:
        allowlist = AllowList.parse([server.uri("/images/")])
        received = b""
        for piece in fetch(
            allowlist.admit(server.uri()), allowlist, limits=limits, stop=never, on_total=lambda _: None
        ):
            received += piece
            time.sleep(0.03)
    assert received == BODY


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        pytest.param(silent(), "sent nothing for 0.15 seconds", id="no-answer"),
        pytest.param(silent(head()), "sent nothing for 0.15 seconds", id="no-body"),
        pytest.param(
            dripping(b"HTTP/1.1 200 OK\r\nX: ", itertools.repeat(b"x")), "no answer within", id="slow-headers"
        ),
        pytest.param(endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "no answer within", id="continues"),
    ],
)
def test_a_server_that_says_nothing_is_left(answer: Answer, text: str) -> None:
    with Server(answer) as server:
        message = fail(server, limits=HASTY)
    assert text in message
    assert server.connections == 1 + HASTY.resumes_max


def test_the_whole_run_is_bounded() -> None:
    limits = Limits(seconds_max=0.2, poll_seconds=0.02, resume_pause_seconds=0)
    with Server(dripping(head(), itertools.repeat(b"x"))) as server:
        assert "not read within 0.2 seconds" in fail(server, limits=limits)
    with Server(whole(b"", status=503)) as server:
        assert "not read within 0.2 seconds" in fail(
            server, limits=Limits(seconds_max=0.2, poll_seconds=0.02, resume_pause_seconds=10)
        )


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(silent(), id="no-answer"),
        pytest.param(silent(head(200, {"Content-Length": 5})), id="no-body"),
        pytest.param(dripping(head(), itertools.repeat(b"x")), id="slow-body"),
        pytest.param(endless(head(), bytes(8192)), id="fast-body"),
        pytest.param(whole(b"", status=503), id="between-attempts"),
    ],
)
def test_a_stop_is_obeyed_at_once(answer: Answer) -> None:
    limits = Limits(poll_seconds=0.02, resume_pause_seconds=30)
    asked_at = time.monotonic() + 0.1
    with Server(answer) as server, pytest.raises(FetchStopped, match="cancelled by a test"):
        read(
            server.uri(),
            limits=limits,
            stop=lambda: "cancelled by a test" if time.monotonic() > asked_at else None,
        )
    assert time.monotonic() - asked_at < 1


def test_a_stop_does_not_wait_for_a_resolver() -> None:
    release = threading.Event()

    def resolve(*_: object) -> list[str]:
        release.wait(10)
        return []

    asked_at = time.monotonic() + 0.1
    with pytest.raises(FetchStopped):
        read(
            "http://images.test/images/a",
            stop=lambda: "cancelled" if time.monotonic() > asked_at else None,
            resolve=resolve,
            limits=FAST,
        )
    assert time.monotonic() - asked_at < 1
    release.set()


# --- Redirects ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "target"),
    [
        pytest.param("/images/b?c=secret", "/images/b?c=secret", id="absolute-path"),
        pytest.param("b", "/images/b", id="relative"),
        pytest.param("?c=secret", "/images/disk.raw?c=secret", id="query"),
        pytest.param("HTTP://127.0.0.1:{port}/images/b", "/images/b", id="absolute"),
        pytest.param("//127.0.0.1:{port}/images/b", "/images/b", id="same-scheme"),
    ],
)
def test_a_redirect_inside_the_prefix_is_followed(status: int, location: str, target: str) -> None:
    def answer(request: object, connection: object) -> None:
        redirect(location.format(port=server.port), status)(request, connection)  # type: ignore[arg-type]

    with Server(answer, whole(SMALL)) as server:
        assert read(server.uri()) == SMALL
        assert [request.target for request in server.requests] == ["/images/disk.raw", target]


@pytest.mark.parametrize(
    ("location", "text"),
    [
        pytest.param("http://127.0.0.1:{port}/other/x?s=secret", "no allowed prefix", id="other-server"),
        pytest.param("//127.0.0.1:{port}/images/x", "no allowed prefix", id="other-server-same-path"),
        pytest.param("http://secret@127.0.0.1:{port}/images/x", "user name", id="userinfo"),
        pytest.param("http://127.0.0.1:{port}\\@good/", "cannot hold", id="backslash"),
        pytest.param("http://0x7f.1:{port}/images/x", "number", id="hex-ip"),
        pytest.param("http://127.0.0.1.:{port}/images/x", "dot", id="trailing-dot"),
        pytest.param("/images-evil/x", "no allowed prefix", id="longer-segment"),
        pytest.param("/images/../x", ". or ..", id="dotdot"),
        pytest.param("../x", ". or ..", id="relative-dotdot"),
        pytest.param("/images/%2e%2e/x", ". or ..", id="escaped-dotdot"),
        pytest.param("/images/a\tb", "control", id="tab"),
        pytest.param("/images/\xe9", "not ASCII", id="latin-1"),
        pytest.param("file:///srv/images/a", "file of this machine", id="allowed-file"),
        pytest.param("file:///etc/shadow", "no allowed prefix", id="other-file"),
        pytest.param("ftp://127.0.0.1:{port}/images/x", "only http", id="ftp"),
        pytest.param("javascript:alert(1)", "absolute", id="script"),
        pytest.param("/images/" + "a" * 5000, "characters", id="too-long"),
        pytest.param("", "without saying where to", id="empty"),
        pytest.param(None, "without saying where to", id="none"),
    ],
)
def test_a_redirect_out_of_the_prefix_connects_to_nothing(location: str | None, text: str) -> None:
    with Server(whole(SMALL)) as elsewhere:
        hop = redirect(location and location.format(port=elsewhere.port))
        with Server(redirect("/images/second"), hop) as server:
            prefixes = [server.uri("/images/"), "file:///srv/images/"]
            assert text in fail(server, prefixes=prefixes)
            assert server.connections == 2
        assert elsewhere.connections == 0


def test_redirects_end() -> None:
    with Server(redirect("/images/disk.raw")) as server:
        assert "redirects more than 5 times" in fail(server)
    assert server.connections == 6


# --- Names ---


class Names:
    """A resolver that gives one list after the other, and the last one for ever."""

    def __init__(self, *lists: list[str]) -> None:
        self._lists = lists
        self.asked = 0

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self._lists[min(self.asked, len(self._lists)) - 1]


def test_a_name_is_resolved_once_a_connection() -> None:
    names = Names(["127.0.0.1"])
    with Server(whole(SMALL)) as server:
        uri = server.uri(host="images.test")
        assert read(uri, resolve=names) == SMALL
    assert names.asked == 1
    assert server.requests[0].headers["host"] == f"images.test:{server.port}"


def test_a_name_that_leads_elsewhere_the_second_time_is_refused() -> None:
    with Server(cut(SMALL, 1000, ETAG), rest(SMALL, ETAG)) as server:
        try:
            elsewhere = Server(rest(SMALL, ETAG), address="127.0.0.2", port=server.port)
        except OSError:
            pytest.skip("this machine has no second loopback address")
        with elsewhere, pytest.raises(FetchFailed, match="resolves to other addresses"):
            read(server.uri(host="images.test"), resolve=Names(["127.0.0.1"], ["127.0.0.2"]))
        assert elsewhere.connections == 0
    with Server(redirect("/images/b")) as server, pytest.raises(FetchFailed, match="other addresses"):
        read(server.uri(host="images.test"), resolve=Names(["127.0.0.1"], ["127.0.0.2", "::1"]))


def test_an_address_known_from_the_start_may_come_again() -> None:
    names = Names(["127.0.0.1", "127.0.0.3"], ["127.0.0.9", "127.0.0.1"])
    with Server(cut(SMALL, 1000, ETAG), rest(SMALL, ETAG)) as server:
        assert read(server.uri(host="images.test"), resolve=names) == SMALL


def test_the_next_address_is_tried() -> None:
    with Server(whole(SMALL)) as server:
        assert read(server.uri(host="images.test"), resolve=Names(["::1", "127.0.0.7", "127.0.0.1"])) == SMALL


@pytest.mark.parametrize(
    "address",
    ["169.254.169.254", "fe80::1", "fe80::1%lo", "0.0.0.0", "::", "224.0.0.1", "::ffff:169.254.1.1"],
)
def test_a_name_of_a_link_local_address_is_refused(address: str) -> None:
    with pytest.raises(FetchFailed, match="link-local"):
        read("http://images.test/images/a", resolve=Names([address]))


def dawdle(*_: object) -> list[str]:
    time.sleep(0.4)
    return []


def test_a_name_that_cannot_be_resolved() -> None:
    with pytest.raises(FetchFailed, match="its host name cannot be resolved"):
        read("http://no-such-host.invalid/images/a")
    with pytest.raises(FetchFailed, match="not resolved within"):
        read("http://a.test/images/a", resolve=dawdle, limits=HASTY)


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def serving(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("images.test", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def trusting(authority: trustme.CA, tmp_path: Path) -> ssl.SSLContext:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tls_context(tmp_path / "ca.pem")


def test_https_with_a_private_authority(serving: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    with Server(whole(BODY), tls=serving) as server:
        assert read(server.uri(), tls=trusting) == BODY
    with Server(sending(head(), BODY), tls=serving) as server:
        assert read(server.uri(host="images.test"), tls=trusting, resolve=Names(["127.0.0.1"])) == BODY


def test_a_certificate_that_is_not_trusted(serving: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    with Server(whole(SMALL), tls=serving) as server:
        assert "certificate is not trusted (unable to get local issuer" in fail(server)
        with pytest.raises(FetchFailed, match=r"certificate is not trusted .Hostname mismatch"):
            read(server.uri(host="other.test"), tls=trusting, resolve=Names(["127.0.0.1"]))
    assert server.requests == []


def test_a_server_without_tls(trusting: ssl.SSLContext) -> None:
    with Server(silent(), greeting=b"220 not TLS\r\n") as server:
        uri = server.uri().replace("http:", "https:")
        with pytest.raises(FetchFailed, match="speaks no TLS"):
            read(uri, tls=trusting, limits=HASTY)


def test_an_end_without_tls_saying_so_is_a_break(serving: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    def hang_up(_: object, connection: ssl.SSLSocket) -> None:
        connection.sendall(head(200, ETAG) + SMALL[:1000])
        os.close(connection.detach())

    with Server(hang_up, rest(SMALL, ETAG), tls=serving) as server:  # type: ignore[arg-type]
        assert read(server.uri(), tls=trusting) == SMALL


def test_over_https_a_certificate_vouches_for_new_addresses(
    serving: ssl.SSLContext, trusting: ssl.SSLContext
) -> None:
    names = Names(["127.0.0.2", "127.0.0.1"], ["127.0.0.1"], ["127.0.0.3"])
    with Server(cut(SMALL, 1000, ETAG), rest(SMALL, ETAG), tls=serving) as server:
        assert read(server.uri(host="images.test"), tls=trusting, resolve=names) == SMALL
    names = Names(["127.0.0.9"], ["127.0.0.1"])
    with Server(whole(b"", status=503), whole(SMALL), tls=serving) as server:
        uri = server.uri(host="images.test")
        with pytest.raises(FetchFailed, match="no connection"):
            read(uri, tls=trusting, resolve=Names(["127.0.0.9"]))
        assert read(uri, tls=trusting, resolve=Names(["127.0.0.1"], ["127.0.0.9", "127.0.0.1"])) == SMALL


def test_an_authority_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="gives no certificates"):
        tls_context(tmp_path / "missing.pem")
    (tmp_path / "junk.pem").write_text("junk")
    with pytest.raises(ConfigInvalid, match="gives no certificates"):
        tls_context(tmp_path / "junk.pem")


# --- Files ---


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "disk.raw"
    path.write_bytes(BODY)
    return path


def test_a_file(image: Path) -> None:
    totals: list[int | None] = []
    assert read(image.as_uri(), totals=totals) == BODY
    assert totals == [len(BODY)]
    image.write_bytes(b"")
    assert read(image.as_uri()) == b""


def test_a_file_that_cannot_be_read_as_an_image(image: Path) -> None:
    with pytest.raises(FetchFailed, match="no such file"):
        read(image.as_uri() + "x")
    with pytest.raises(FetchFailed, match="has more than 700000 bytes"):
        read(image.as_uri(), limits=Limits(size_bytes_max=700_000))
    os.mkfifo(image.with_name("fifo"))
    with pytest.raises(FetchFailed, match="device, pipe or socket"):
        read(image.with_name("fifo").as_uri())
    image.with_name("link").symlink_to(image)
    with pytest.raises(FetchFailed, match="symbolic link"):
        read(image.with_name("link").as_uri())


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def shrink(path: Path) -> None:
    os.truncate(path, 1000)


def rewrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [grow, shrink, rewrite])
def test_a_file_that_changes_while_it_is_read(image: Path, change: Callable[[Path], None]) -> None:
    allowlist = AllowList.parse([image.parent.as_uri()])
    location: Location = allowlist.admit(image.as_uri())
    pieces = fetch(location, allowlist, limits=FAST, stop=never, on_total=lambda _: None)
    received = [next(pieces)]
    change(image)
    with pytest.raises(FetchFailed, match="changed while it was read"):
        received.extend(pieces)
    assert sum(map(len, received)) <= len(BODY)


def test_a_file_is_left_at_a_stop(image: Path) -> None:
    with pytest.raises(FetchStopped):
        read(image.as_uri(), stop=lambda: "cancelled")
