"""`imageledger export --format tiles`: the log as C2SP tlog-tiles, which other people's tools check."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eventstore.checkpoint import parse_checkpoint, sign, split_note
from eventstore.errors import KeyFileRefused
from eventstore.heads import checkpoint_at
from eventstore.lineage import lineage
from eventstore.merkle import TreeSize
from eventstore.reader import LogReader
from eventstore.tiles import write_tiles
from projections.moments import Moment
from server.signing import KeyFiles, newest_key
from tools.errors import CommandFailed
from tools.moments import resolve
from tools.output import print_json, print_pairs


def export_tiles(data: Path, directory: Path, *, at: Moment | None, as_json: bool) -> None:
    """Write what is missing of the tiles up to a checkpoint, and then that. Raises CommandFailed."""
    with LogReader.open(data / "log.db") as log, _alone(directory):
        note = _note(data, log, at)
        checkpoint = parse_checkpoint(split_note(note)[0])
        written = write_tiles(log, directory, size=checkpoint.size, note=note)
    if as_json:
        print_json(
            {
                "position": checkpoint.size,
                "log_id": checkpoint.origin,
                "format": "tiles",
                "root": checkpoint.root.hex(),
                "files": written.files,
                "kept": written.tiles_kept,
                "checkpoint": note,
            }
        )
    else:
        print_pairs(
            [
                ("log", checkpoint.origin),
                ("position", str(checkpoint.size)),
                ("root", checkpoint.root.hex()),
                ("files", f"{written.files} written, {written.tiles_kept} tiles were there already"),
                ("checkpoint", str(directory / "checkpoint")),
            ]
        )


def _note(data: Path, log: LogReader, at: Moment | None) -> str:
    """The newest checkpoint that the log keeps; of `at`, or of the head, where the log's key is here."""
    position = log.head() if at is None else resolve(log, at)
    said = lineage(log)
    try:
        signer = KeyFiles(data).find(said, log.log_id, rotate=False)
    except (KeyFileRefused, PermissionError):
        # To be readable for one user alone is what the key is for.
        signer = None
    if signer is not None and signer.verifier == newest_key(said) and position >= said.keys[-1].since:
        return sign(checkpoint_at(log, TreeSize(position)), signer)
    kept = log.newest_checkpoint()
    if kept is None or (at is not None and int(kept.size) != position):
        raise CommandFailed(
            "FAILED_PRECONDITION",
            f"no checkpoint of {position} events is kept, and the key to sign one is not here",
            remedy="Leave --at out, run it as the server's user, or let the server make one first.",
        )
    return kept.note


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """While it lasts, no other export writes into the folder. Raises CommandFailed."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise CommandFailed(
            "FAILED_PRECONDITION",
            f"another export writes into {directory}",
            remedy="Wait for its end, or give another --to.",
        ) from None
    finally:
        os.close(descriptor)
