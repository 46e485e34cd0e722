"""`imageledger export`."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from eventstore import database
from eventstore.event import Position
from eventstore.reader import LogReader
from projections.domain.command import folder_stream
from projections.exported import Rows, in_text, rows_of_log, rows_of_projection, state_digest
from projections.moments import AtHead, Moment, format_time
from projections.store import ProjectionFiles, ProjectionRefused, check
from tools.errors import CommandFailed
from tools.events_json import event_json
from tools.export_folder import ExportedFile, ExportFolder
from tools.export_tiles import export_tiles
from tools.moments import moment_option, resolve
from tools.options import data_option, json_option, option
from tools.output import print_json, print_pairs
from tools.progress import counted

FORMATS = ("jsonl", "tiles")
WHATS = ("images", "events")
STDOUT = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is exported: rows as of `position`, events from `first` to `position`."""

    format: str
    whats: tuple[str, ...]
    first: Position
    position: Position
    folder: str | None


@click.command()
@data_option
@option("--format", required=True, type=click.Choice(FORMATS), help="The form of the files.")
@option("--to", required=True, metavar="PATH", help="The folder to write; - is stdout, for a single --what.")
@option(
    "--what",
    multiple=True,
    type=click.Choice(WHATS),
    default=("images",),
    help="What to export; may repeat.",
)
@moment_option("--at", help="Images as of this moment, and events up to it.  [default: head]")
@moment_option("--from", "since", help="Events from this one on.  [default: the first]")
@option("--folder", metavar="ID", help="Only this folder's images and events.")
@option("--overwrite", is_flag=True, help="Replace the export that is in the folder.")
@json_option
def export(
    data: Path,
    format: str,
    to: str,
    what: tuple[str, ...],
    at: Moment | None,
    since: Moment | None,
    folder: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write images as of a moment, or events, into files with a manifest.

    It works beside a running server, and everything in it is as of one position: the head when it starts, or
    --at. MOMENT is a position (1234), an RFC 3339 time (2026-11-23T10:00:00Z: the last position at or before
    it), or head. The manifest names every file with its rows, bytes and SHA-256; it is written last, so a
    folder without one holds no complete export. Its projection_digest is over the state of all folders at the
    position, and does not depend on --what or --folder.

    The format tiles is the whole log up to a signed checkpoint, as C2SP tlog-tiles: --to is the prefix that
    verifiers are given, whoever they are. A second export adds what came since; --at needs the log's key.

    \b
    Examples:
      imageledger export --format tiles --to /srv/www/log
      imageledger export --format jsonl --to ./friday --at 2026-11-20T18:00:00Z --what images --what events
      imageledger export --format jsonl --to - --folder standard-images | jq -r .name
    """
    if format == "tiles":
        _check_tiles(to, folder=folder, since=since, overwrite=overwrite)
        export_tiles(data, Path(to), at=at, as_json=as_json)
        return
    whats = tuple(dict.fromkeys(what))
    if to == STDOUT and len(whats) > 1:
        raise click.UsageError("--to - takes a single --what: give a folder for several")
    if since is not None and "events" not in whats:
        raise click.UsageError("--from bounds events: add --what events, or leave it out")
    with ExitStack() as stack:
        log = stack.enter_context(LogReader.open(data / "log.db"))
        position = _position(log, at)
        asked = Asked(
            format=format,
            whats=whats,
            first=_first(log, since, position),
            position=position,
            folder=folder,
        )
        if to == STDOUT:
            rows = _rows(data, log, position, stack) if whats == ("images",) else None
            _print(_lines(whats[0], asked, log, rows))
            return
        with ExportFolder(Path(to), names=_names(WHATS, format), overwrite=overwrite) as target:
            manifest, path = _export(target, asked, log, _rows(data, log, position, stack))
    if as_json:
        print_json(manifest)
    else:
        print_pairs(_pairs(manifest, path))


def _check_tiles(to: str, *, folder: str | None, since: Moment | None, overwrite: bool) -> None:
    """Raises UsageError for what makes no sense of a whole log."""
    context = click.get_current_context()
    given = {
        "--to -": to == STDOUT,
        "--what": context.get_parameter_source("what") is not ParameterSource.DEFAULT,
        "--folder": folder is not None,
        "--from": since is not None,
        "--overwrite": overwrite,
    }
    for name, is_given in given.items():
        if is_given:
            raise click.UsageError(f"tiles are the whole log, in a folder that only grows: leave {name} out")


def _position(log: LogReader, at: Moment | None) -> Position:
    position = resolve(log, at or AtHead())
    if position == 0:
        raise CommandFailed(
            "OUT_OF_RANGE",
            "an export is bound to an event, and at position 0 there is none",
            remedy="Give --at a position from 1 on, or head.",
        )
    return position


def _first(log: LogReader, since: Moment | None, position: Position) -> Position:
    first = Position(1) if since is None else resolve(log, since)
    if first > position:
        raise CommandFailed(
            "INVALID_ARGUMENT",
            f"--from is position {first} and --at is position {position}: the range is empty",
            remedy="Give a --from that is not after --at.",
        )
    return first


def _rows(data: Path, log: LogReader, position: Position, stack: ExitStack) -> Rows:
    """The rows as of a position, from the live projection if it has come that far, else from the log."""
    try:
        path = ProjectionFiles(data).current()
        applied = None if path is None else check(path, log)
        if path is not None and applied is not None and applied >= position:
            connection = database.connect(path, access="read", synchronous="NORMAL")
            stack.callback(connection.close)
            return _told_from(path, rows_of_projection(connection, at=position))
    except (ProjectionRefused, database.Error):
        # A rebuild may have just removed that file, and what else is wrong with it is the server's to say.
        pass
    return rows_of_log(log, at=position)


def _told_from(path: Path, rows: Rows) -> Rows:
    """The same rows; an error of the database while they are read names the file and the remedy."""

    def told(some: Any) -> Iterator[Any]:
        try:
            yield from some()
        except database.Error as error:
            raise ProjectionRefused(path, f"it cannot be read ({error})") from error

    return Rows(
        images=lambda: told(rows.images),
        families=lambda: told(rows.families),
        operations=lambda: told(rows.operations),
    )


def _export(target: ExportFolder, asked: Asked, log: LogReader, rows: Rows) -> tuple[dict[str, Any], Path]:
    """The manifest of what was written, and its path."""
    files = [
        target.write(f"{what}.{asked.format}", counted(what, _lines(what, asked, log, rows)))
        for what in asked.whats
    ]
    manifest = _manifest(asked, log, files, state_digest(rows))
    return manifest, target.publish(files, _document(manifest).encode())


def _lines(what: str, asked: Asked, log: LogReader, rows: Rows | None) -> Iterator[bytes]:
    if what == "events":
        values = _events(asked, log)
    elif rows is not None:
        values = (in_text(row) for row in rows.images() if asked.folder in (None, row["folder_id"]))
    else:
        raise AssertionError("images are exported without their rows")
    for value in values:
        yield json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _events(asked: Asked, log: LogReader) -> Iterator[dict[str, Any]]:
    stream = None if asked.folder is None else folder_stream(asked.folder)
    for event in log.events(after=max(asked.first - 1, 0), until=asked.position):
        if stream in (None, event.stream):
            yield event_json(event)


def _manifest(
    asked: Asked, log: LogReader, files: Sequence[ExportedFile], projection_digest: str
) -> dict[str, Any]:
    """`checkpoint` and `previous` are null: this version neither signs nor exports increments."""
    return {
        "export_id": secrets.token_hex(16),
        "position": asked.position,
        "at": format_time(log.at(asked.position)),
        "log_id": log.log_id,
        "format": asked.format,
        "what": list(asked.whats),
        "files": [asdict(file) for file in files],
        "projection_digest": projection_digest,
        "checkpoint": None,
        "previous": None,
    }


def _names(whats: Sequence[str], format: str) -> list[str]:
    return [f"{what}.{format}" for what in whats]


def _print(lines: Iterator[bytes]) -> None:
    """The same bytes as those of the file would be, whatever the terminal's encoding."""
    for line in lines:
        sys.stdout.buffer.write(line)


def _document(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"


def _pairs(manifest: dict[str, Any], path: Path) -> list[tuple[str, str]]:
    files = [
        (file["name"], f"rows {file['rows']}  bytes {file['bytes']}  sha256 {file['sha256']}")
        for file in manifest["files"]
    ]
    return [*files, ("manifest", f"{path}  position {manifest['position']}")]
