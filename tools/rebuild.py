"""`imageledger rebuild`."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

import click

from eventstore.lock import DirectoryLock
from eventstore.reader import LogReader
from projections.moments import format_time
from projections.store import ProjectionFiles, Rebuilt
from projections.store import rebuild as rebuild_projection
from server.encode import image_frame
from tools.errors import CommandFailed
from tools.options import data_option, json_option
from tools.output import print_json, print_pairs
from tools.progress import progress_bar

EXTRA = ("damage", "kept")  # What a rebuild says only where the old projection was wrong.


@click.command()
@data_option
@json_option
def rebuild(data: Path, as_json: bool) -> None:
    """Build the projections anew from the log, with the server stopped.

    The log is the truth and is only read; the projections are made of it. The new one is complete on disk
    before it takes over, so that an interrupted rebuild changes nothing. The digest of the old one, caught up
    with the log first, must be that of the new one: if they differ, a row of the old one was wrong. The new
    one is live then, too, and the exit code is 1. There is no digest of an old one that is missing, unusable
    or of another projector version.

    \b
    Example:
      imageledger rebuild --data /var/lib/imageledger --json | jq -r .digest_after
    """
    with LogReader.open(data / "log.db") as log:
        since = format_time(time.time_ns())
        with DirectoryLock(data, command="imageledger rebuild", since=since):
            rebuilt = _rebuild(data, log)
    if as_json:
        print_json({name: value for name, value in asdict(rebuilt).items() if name not in EXTRA or value})
    else:
        print_pairs(_pairs(rebuilt))
    if rebuilt.kept is not None:
        raise CommandFailed(
            "DATA_LOSS",
            f"the old projection was not what the log says: {rebuilt.damage or _digests(rebuilt)}",
            remedy="The new projection is live now; the old one may have answered wrongly: check its disk."
            f" It is kept as {rebuilt.kept}: remove it when you are done with it.",
        )


def _rebuild(data: Path, log: LogReader) -> Rebuilt:
    with progress_bar("rebuild", length=log.head()) as show:
        rebuilt = rebuild_projection(
            ProjectionFiles(data), log, encode=image_frame, on_progress=lambda done, head: show(done)
        )
    return replace(rebuilt, seconds=round(rebuilt.seconds, 3))


def _digests(rebuilt: Rebuilt) -> str:
    return f"its digest is {rebuilt.digest_before}, that of the new one {rebuilt.digest_after}"


def _pairs(rebuilt: Rebuilt) -> list[tuple[str, str]]:
    return [
        ("events", str(rebuilt.events)),
        ("seconds", str(rebuilt.seconds)),
        ("digest before", rebuilt.digest_before or "none: there was no usable projection"),
        ("digest after", rebuilt.digest_after),
        *((name, value) for name in EXTRA if (value := getattr(rebuilt, name))),
    ]
