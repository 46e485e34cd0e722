"""The child of a server that rebuilds online: makes the new projection file, and says how far it is.

    python -m server.rebuild_child LOG FILE LIVE VERSION ENCODING

A JSON object a line on stdout: `{"stage", "done", "events"}` as it goes on, `{"compared": {…}}` once the file
is complete and compared with the live one, `{"refused": {…}}` if it fails. Exit code 0 says that the file is
all but caught up with the log. It holds no lock and writes to FILE alone, which is its server's to name and
to remove; and it ends when its server does, however that ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from grpc import StatusCode

from eventstore import database
from eventstore.errors import SchemaTooNew
from eventstore.reader import LogReader
from projections.domain.evolve import EventUnknown
from projections.encoding import fingerprint
from projections.rebuild import build_beside, follow
from projections.schema import PROJECTOR_VERSION
from server.encode import image_frame
from server.status import INTERNAL, Refusal, refusal_of

NICENESS = 10
TOLD_S = 0.2
# What the end of the server leaves it: nobody reads the exit code then.
ORPHANED = 3

_log = logging.getLogger(__name__)


def identity() -> tuple[str, str]:
    """Projector version and encoding of this software, as arguments: a server's child must have the same."""
    return str(PROJECTOR_VERSION), fingerprint(image_frame).hex()


def main(arguments: Sequence[str]) -> int:
    log_path, path, live = map(Path, arguments[:3])
    os.nice(NICENESS)
    threading.Thread(target=_end_with_server, daemon=True).start()
    logging.basicConfig(level=logging.INFO)
    if tuple(arguments[3:]) != identity():
        _say_refused(Refusal(StatusCode.FAILED_PRECONDITION, OTHER_SOFTWARE, "OTHER_SOFTWARE"))
        return 1
    try:
        with LogReader.open(log_path) as log:
            rebuilt = build_beside(
                path,
                live,
                log,
                encode=image_frame,
                on_progress=_progress("BUILDING"),
                on_built=lambda: _say({"stage": "COMPARING"}),
            )
            _say({"compared": asdict(rebuilt)})
            follow(path, log, encode=image_frame, on_progress=_progress("CATCHING_UP"))
    except Exception as error:
        refusal = _refusal(error)
        if refusal is INTERNAL:
            _log.error("a rebuild failed for a reason of ours", exc_info=error)
        _say_refused(refusal)
        return 1
    return 0


OTHER_SOFTWARE = (
    "The software that is installed now is not what this server was started with: its projections are others."
    " Restart the server, which then builds what it needs"
)


def _refusal(error: Exception) -> Refusal:
    if isinstance(error, EventUnknown | SchemaTooNew):
        return Refusal(StatusCode.FAILED_PRECONDITION, str(error), "LOG_TOO_NEW")
    if isinstance(error, database.Error | OSError):
        full = isinstance(error, database.Error) and database.is_full(error)
        code = StatusCode.RESOURCE_EXHAUSTED if full else StatusCode.UNAVAILABLE
        return Refusal(code, f"The new projection cannot be written: {error}", "PROJECTION_NOT_WRITTEN")
    return refusal_of(error) or INTERNAL


def _progress(stage: str) -> Callable[[int, int], None]:
    """Tells of progress, a few times a second at most."""
    next_s = 0.0

    def tell(done: int, events: int) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + TOLD_S
            _say({"stage": stage, "done": done, "events": events})

    return tell


def _say_refused(refusal: Refusal) -> None:
    told = {"code": refusal.code.name, "message": refusal.message, "reason": refusal.reason}
    _say({"refused": told})


def _say(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


def _end_with_server() -> None:
    """The server holds the other end of stdin and never writes: what comes is its end."""
    # Not through sys.stdin, whose lock a thread that waits would hold when this process ends by itself.
    os.read(sys.stdin.fileno(), 1)
    os._exit(ORPHANED)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
