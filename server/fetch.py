"""The bytes of an image, read once and in order from an http(s) server or a file.

Synchronous: runs in a worker thread. The source is not trusted: what it sends is bounded in size, time and
rate, and a redirect is connected to only if the allow-list admits it.

Built on the standard library's parser of responses, because a client library would resolve names, follow
redirects and decode bodies by itself, which are the three things that must be done by the rules here. Below
the parser lies a non-blocking socket of our own, so that a stop is seen within `poll_seconds` wherever the
source keeps us waiting. No proxy of the environment is used, and no HEAD is ever sent: a presigned GET
refuses it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Generator, Iterator

from server.allowlist import AllowList, Location, SourceNotAllowed, SourceRefused, open_file
from server.http_source import HttpSource
from server.wire import (
    CHUNK_BYTES,
    Exceeded,
    FetchFailed,
    Limits,
    Resolve,
    Run,
    resolve_name,
)


def fetch(
    location: Location,
    allowlist: AllowList,
    *,
    limits: Limits,
    stop: Callable[[], str | None],
    on_total: Callable[[int | None], None],
    resolve: Resolve = resolve_name,
    tls: ssl.SSLContext | None = None,
) -> Generator[bytes]:
    """The source's bytes in pieces of 1 to 262,144, from its first to its last.

    `on_total` gets the size in bytes before the first piece, None if the source does not say it. `stop` is
    asked often; what it returns, unless None, ends the fetch. Close the generator if it is left early.
    Raises, from the first `next()` on, FetchFailed and FetchStopped.
    """
    run = Run(limits, stop)
    try:
        allowlist.prefix_of(location)
        if location.scheme == "file":
            yield from _read_file(location, allowlist, run, on_total)
        else:
            yield from HttpSource(location, allowlist, run, on_total, resolve, tls).read()
    except SourceNotAllowed as error:
        raise FetchFailed(error.shown, error.reason) from error
    except Exceeded as error:
        raise FetchFailed(location.shown(), error.reason) from error


def _read_file(
    location: Location, allowlist: AllowList, run: Run, on_total: Callable[[int | None], None]
) -> Iterator[bytes]:
    shown = location.shown()
    try:
        with open_file(location, allowlist) as file:
            before = os.fstat(file.fileno())
            run.check_size(before.st_size)
            on_total(before.st_size)
            # One byte more than there should be is asked for, so that a file which grows is noticed.
            while piece := file.read(min(CHUNK_BYTES, before.st_size - run.given_bytes + 1)):
                if run.given_bytes + len(piece) > before.st_size:
                    break
                yield run.give(piece)
            after = os.fstat(file.fileno())
    except SourceRefused as error:
        raise FetchFailed(shown, error.reason) from error
    except OSError as error:
        raise FetchFailed(shown, f"it cannot be read: {error.strerror or error}") from error
    unchanged = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    if piece or run.given_bytes != before.st_size or not unchanged:
        raise FetchFailed(shown, "the file changed while it was read; try again when nobody writes to it")
