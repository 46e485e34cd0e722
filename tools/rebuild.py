"""`imageledger rebuild`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from eventstore.lock import DirectoryLock
from eventstore.reader import LogReader
from projections.damage import ProjectionDamaged
from projections.explain import NotComparable, differences
from projections.files import ProjectionFiles
from projections.moments import format_time
from projections.opening import Progress
from projections.prepared import prepare as prepare_projection
from projections.rebuild import Rebuilt
from projections.rebuild import rebuild as rebuild_projection
from server.encode import image_frame
from server.gen.imageledger.v1 import rebuild_service_pb2 as pb
from tools.client import Client, client_options
from tools.errors import CommandFailed
from tools.events_json import changes_json, value_text
from tools.options import data_option, json_option, option
from tools.output import note, print_json, print_pairs, shown
from tools.progress import progress_bar

REBUILD = "imageledger.v1.RebuildService/Rebuild"
REBUILD_REMEDY = "`imageledger rebuild`, with --online or with the server stopped, replaces it"
EXTRA = ("damage", "kept")  # What a rebuild says only where the old projection was wrong.
STAGES = {
    pb.RebuildProgress.BUILDING: "building",
    pb.RebuildProgress.COMPARING: "comparing",
    pb.RebuildProgress.CATCHING_UP: "catching up",
}


@click.command()
@option("--online", is_flag=True, help="Ask the running server to do it, which goes on answering.")
@option(
    "--prepare",
    is_flag=True,
    help="Make the projection of this version ahead of an upgrade, beside the older server.",
)
@option(
    "--explain",
    is_flag=True,
    help="Say which answers the new projection gives otherwise than the old one, field by field.",
)
@data_option
@json_option
@client_options
def rebuild(client: Client, online: bool, prepare: bool, explain: bool, data: Path, as_json: bool) -> None:
    """Build the projections anew from the log, with the server stopped.

    The log is the truth and is only read; the projections are made of it. The new one is complete on disk
    before it takes over, so that an interrupted rebuild changes nothing. The digest of the old one as of the
    same position must be that of the new one: if they differ, a row of the old one was wrong. The new one is
    live then, too, and the exit code is 1. There is no digest of an old one that is missing, damaged, of
    another log or of another projector version.

    With --online the server at --endpoint builds it in a process of low priority, catches up, and goes over
    to it between two batches of writes; Ctrl-C before that changes nothing. With --prepare, the newer version
    that is to take over makes its projection while the older one still serves the same directory: it starts
    with that one then, and applies only what was written in between.

    \b
    Examples:
      imageledger rebuild --data /var/lib/imageledger --json | jq -r .digest_after
      imageledger rebuild --online --endpoint 127.0.0.1:50051
      imageledger rebuild --prepare --data /var/lib/imageledger
      imageledger rebuild --explain --data ./copy
    """
    _check_usage(online=online, prepare=prepare, explain=explain)
    explained: list[dict[str, Any]] | None = [] if explain else None
    if online:
        rebuilt = _online(client)
    else:
        work = _prepared if prepare else _offline(explained)
        rebuilt = _with_bar("prepare" if prepare else "rebuild", data, work)
    if as_json:
        document = {name: value for name, value in asdict(rebuilt).items() if name not in EXTRA or value}
        print_json(document if explained is None else {**document, "differences": explained})
    else:
        print_pairs(_pairs(rebuilt))
        for line in explained_lines(explained):
            print(line)
    _judge(rebuilt, is_live=not prepare)


def _check_usage(*, online: bool, prepare: bool, explain: bool) -> None:
    """Raises UsageError for options that contradict one another."""
    if explain and (online or prepare):
        raise click.UsageError(
            "--explain compares the old projection with the new one where nobody is served: leave out"
            f" {'--online' if online else '--prepare'}, and take a copy of the data directory"
        )
    if online and prepare:
        raise click.UsageError(
            "--online asks a running server and --prepare works beside one: give one of them"
        )
    context = click.get_current_context()
    if online and context.get_parameter_source("data") is ParameterSource.COMMANDLINE:
        raise click.UsageError(
            "--online asks the server at --endpoint, which knows its --data: leave that out"
        )


def _offline(explained: list[dict[str, Any]] | None) -> Callable[[Path, Progress], Rebuilt]:
    def on_built(old: Path | None, new: Path) -> None:
        if explained is not None:
            explained.extend(_explained(old, new))

    def rebuilt(data: Path, on_progress: Progress) -> Rebuilt:
        with LogReader.open(data / "log.db") as log:
            since = format_time(time.time_ns())
            with DirectoryLock(data, command="imageledger rebuild", since=since):
                return rebuild_projection(
                    ProjectionFiles(data), log, encode=image_frame, on_progress=on_progress, on_built=on_built
                )

    return rebuilt


def _explained(old: Path | None, new: Path) -> Iterator[dict[str, Any]]:
    if old is None:
        note("there was no old projection to compare with")
        return
    try:
        for found in differences(old, new):
            yield {
                "table": found.table,
                "what": found.what,
                "position": found.position,
                "changes": changes_json(found.fields),
            }
    except (NotComparable, ProjectionDamaged) as error:
        note(f"warning: {old.name} cannot be compared any further: {error}")


def explained_lines(explained: list[dict[str, Any]] | None) -> Iterator[str]:
    """For people: what differs, and how."""
    for found in explained or ():
        yield shown(f"@@ {found['table']} {found['what']} at position {found['position']}")
        for change in found["changes"]:
            yield f"   {change['field']}: {value_text(change['old'])} → {value_text(change['new'])}"
    if explained == []:
        yield "every answer is the same"


def _prepared(data: Path, on_progress: Progress) -> Rebuilt:
    with LogReader.open(data / "log.db") as log:
        return prepare_projection(data, log, encode=image_frame, on_progress=on_progress)


def _with_bar(label: str, data: Path, work: Callable[[Path, Progress], Rebuilt]) -> Rebuilt:
    with LogReader.open(data / "log.db") as log:
        head = log.head()
    with progress_bar(label, length=head) as show:
        rebuilt = work(data, lambda done, head: show(done))
    return replace(rebuilt, seconds=round(rebuilt.seconds, 3))


def _online(client: Client) -> Rebuilt:
    for progress in client.download(REBUILD, pb.RebuildRequest(), pb.RebuildProgress):
        if progress.HasField("rebuilt"):
            _show("")
            return _of_answer(progress.rebuilt)
        far = f" {progress.done} of {progress.events}" if progress.events else ""
        _show(f"rebuild: {STAGES.get(progress.stage, 'working')}{far}")
    raise CommandFailed("DATA_LOSS", "the server ended the answer without saying what it did")


def _show(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)


def _of_answer(rebuilt: pb.Rebuilt) -> Rebuilt:
    return Rebuilt(
        rebuilt.events,
        rebuilt.seconds,
        rebuilt.digest_before or None,
        rebuilt.digest_after,
        rebuilt.damage or None,
        rebuilt.kept or None,
    )


def _judge(rebuilt: Rebuilt, *, is_live: bool) -> None:
    """Warns of an old projection that could not be read to its end. Raises CommandFailed for a wrong one."""
    kept = (
        "" if rebuilt.kept is None else f" It is kept as {rebuilt.kept}: remove it when you are done with it."
    )
    if rebuilt.damage is not None:
        note(f"warning: the old projection is damaged: {rebuilt.damage}")
        note(f"The new one is live now; check the disk.{kept}" if is_live else f"{REBUILD_REMEDY}.")
    if rebuilt.digest_before in (None, rebuilt.digest_after):
        return
    raise CommandFailed(
        "DATA_LOSS",
        "the old projection was not what the log says:"
        f" its digest is {rebuilt.digest_before}, that of the new one {rebuilt.digest_after}",
        remedy=f"The new projection is live now; the old one may have answered wrongly: check its disk.{kept}"
        if is_live
        else f"The live projection may answer wrongly: {REBUILD_REMEDY}",
    )


def _pairs(rebuilt: Rebuilt) -> list[tuple[str, str]]:
    return [
        ("events", str(rebuilt.events)),
        ("seconds", str(rebuilt.seconds)),
        ("digest before", rebuilt.digest_before or "none: there was no usable projection"),
        ("digest after", rebuilt.digest_after),
        *((name, value) for name in EXTRA if (value := getattr(rebuilt, name))),
    ]
