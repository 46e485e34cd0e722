"""`imageledger status`: what an operator asks first, of a server or of a data directory."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import click
from click.core import ParameterSource

from eventstore.event import Position
from eventstore.reader import LogReader
from projections.moments import format_time
from projections.store import ProjectionFiles, ProjectionRefused, check
from server.gen.imageledger.v1 import status_service_pb2 as pb
from server.services.status import SOFTWARE
from tools.client import STATUS, Client, client_options
from tools.options import json_option, option
from tools.output import full_document, print_json, print_pairs, size_text

BLOB_NAME = re.compile(r"[0-9a-f]{64}")


@click.command()
@option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Read the files of this data directory instead, beside a running server or without one.",
)
@json_option
@client_options
def status(client: Client, data: Path | None, as_json: bool) -> None:
    """Print the log's id and head, how far the projection has come, the blobs and the free space.

    \b
    Examples:
      imageledger status
      imageledger status --data ./imageledger-data --json
    """
    if data is None or _endpoint_wins():
        _print(client.call(f"{STATUS}/Get", pb.GetStatusRequest(), pb.Status), as_json=as_json)
        return
    if not data.is_dir():
        raise click.BadParameter(f"directory {str(data)!r} does not exist", param_hint="'--data'")
    found, refused = _of_files(data)
    _print(found, as_json=as_json)
    if refused is not None:
        raise refused


def _endpoint_wins() -> bool:
    """Whether the command line names a server, and only the environment a directory."""
    context = click.get_current_context()
    if context.get_parameter_source("endpoint") is not ParameterSource.COMMANDLINE:
        return False
    if context.get_parameter_source("data") is ParameterSource.COMMANDLINE:
        raise click.UsageError("--data reads files and --endpoint asks a server: give one of them")
    return True


def _of_files(data: Path) -> tuple[pb.Status, ProjectionRefused | None]:
    """What the files say, and what is wrong with the projection: its position is 0 then.

    It is 0, too, where there is none of this version yet; the server builds it when it starts.
    """
    refused: ProjectionRefused | None = None
    with LogReader.open(data / "log.db") as log:
        try:
            live = ProjectionFiles(data).current()
            applied = None if live is None else check(live, log)
        except ProjectionRefused as error:
            applied, refused = None, error
        found = pb.Status(
            log_id=log.log_id, head=log.head(), applied_position=applied or 0, software=SOFTWARE
        )
        newest = log.event(Position(found.head))
    found.newest_event.position, found.newest_event.type = newest.position, newest.type
    found.newest_event.at.FromNanoseconds(newest.at)
    blobs = data / "blobs"
    found.blobs.count, found.blobs.bytes = _blobs(blobs)
    disk = shutil.disk_usage(blobs if blobs.is_dir() else data)
    found.free_bytes, found.total_bytes = disk.free, disk.total
    return found, refused


def _blobs(root: Path) -> tuple[int, int]:
    """Number and bytes of the blobs below the root; one that is removed meanwhile does not matter."""
    count = total_bytes = 0
    for folder, _, names in os.walk(root):
        for name in names:
            if BLOB_NAME.fullmatch(name):
                try:
                    total_bytes += (Path(folder) / name).lstat().st_size
                except FileNotFoundError:
                    continue
                count += 1
    return count, total_bytes


def _print(found: pb.Status, *, as_json: bool) -> None:
    at = format_time(found.newest_event.at.ToNanoseconds())
    if as_json:
        made = full_document(found)
        made["newest_event"]["at"] = at
        print_json(made)
        return
    newest = found.newest_event
    blobs = f"{found.blobs.count} ({size_text(found.blobs.bytes)})"
    free = f"{size_text(found.free_bytes)} of {size_text(found.total_bytes)}"
    print_pairs(
        (
            ("log", found.log_id),
            ("head", str(found.head)),
            ("applied", str(found.applied_position)),
            ("newest event", f"{newest.position} {newest.type} {at}"),
            ("blobs", blobs),
            ("free space", free),
            ("imports", f"{len(found.imports)} under way" if found.imports else ""),
            *(("", _import_text(under_way)) for under_way in found.imports),
            ("software", found.software),
            ("read-only", "yes" if found.read_only else ""),
            ("started", found.started_at.ToJsonString() if found.HasField("started_at") else ""),
        )
    )


def _import_text(under_way: pb.Status.Import) -> str:
    total = size_text(under_way.total_bytes) if under_way.total_bytes else "?"
    state = f"{size_text(under_way.bytes)} of {total}" if under_way.running else "queued"
    return f"{under_way.image_id} from {under_way.uri}: {state}, operation {under_way.operation_id}"
