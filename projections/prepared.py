"""A projection made ahead of an upgrade, by the newer software and beside the older server.

It lies in a folder of its own, named by projector version and encoding: an older server knows nothing of such
folders and leaves them alone, and each version looks for its own only. The folder has what the data directory
has: numbered files, a CURRENT that names a complete one, and a lock, so that two of them never meet.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from eventstore import database
from eventstore.errors import LogLocked
from eventstore.lock import DirectoryLock
from eventstore.reader import LogReader

from .encoding import Encode, fingerprint
from .files import SIDE_FILES, ProjectionFiles, ProjectionRefused
from .moments import format_time
from .opening import Progress, check
from .rebuild import Rebuilt, build_beside, usable
from .schema import PROJECTOR_VERSION

FOLDER_NAME = re.compile(r"prepared-v([0-9]{1,18})-([0-9a-f]{16})")

_log = logging.getLogger(__name__)


def prepared_folder(directory: Path, encode: Encode) -> Path:
    """Where a projection of this version and encoding is made ahead."""
    return directory / f"prepared-v{PROJECTOR_VERSION}-{fingerprint(encode).hex()[:16]}"


def prepare(
    directory: Path, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Rebuilt:
    """Make a projection of this version in a data directory that a server may be writing to.

    It replaces an earlier one of the same version, once it is complete; an unfinished one stays unnamed and
    is removed by the next. Where the live one is of this version, too, the two are compared.
    Raises LogLocked while another process prepares the same.
    """
    folder = prepared_folder(directory, encode)
    folder.mkdir(mode=0o750, exist_ok=True)
    database.fsync_directory(directory)
    files = ProjectionFiles(folder)
    with _lock(folder, command="imageledger rebuild --prepare"):
        live, _ = usable(ProjectionFiles(directory), log, encode=encode)
        path = files.reserve()
        try:
            rebuilt = build_beside(path, live, log, encode=encode, on_progress=on_progress)
        except BaseException:
            files.remove(path)
            raise
        files.make_current(path)
        files.remove_others(path)
    return rebuilt


def adopt(files: ProjectionFiles, log: LogReader, *, encode: Encode) -> Path | None:
    """The projection that was prepared for this version, moved under a name of its own; not live yet.

    None where there is none, or none that is of this log and whole: the log says all that it could.
    """
    folder = prepared_folder(files.directory, encode)
    if not folder.is_dir():
        return None
    try:
        with _lock(folder, command="imageledger serve"):
            return _adopt(folder, files, log, encode=encode)
    except LogLocked as error:
        _log.warning("a projection is still being prepared, and not used", extra={"reason": str(error)})
    except ProjectionRefused as error:
        _log.warning("a prepared projection is not used", extra={"reason": f"{folder.name}/{error}"})
    return None


def _adopt(folder: Path, files: ProjectionFiles, log: LogReader, *, encode: Encode) -> Path | None:
    """Raises ProjectionRefused."""
    source = ProjectionFiles(folder).current()
    if source is None:
        return None
    position = check(source, log, encode=encode)
    if position is None:
        raise ProjectionRefused(source, "it is not of the version that its folder is named by")
    _empty_wal(source)
    target = files.reserve()
    # A crash from here on leaves a file that CURRENT does not name: the next start builds one itself.
    source.rename(target)
    database.fsync_directory(files.directory)
    _log.info(
        "a prepared projection is used",
        extra={"file": target.name, "applied": position, "events": log.head()},
    )
    return target


def _empty_wal(path: Path) -> None:
    """Leave nothing beside the file: what stays behind when it is renamed would be lost, or meet another."""
    try:
        with closing(database.connect(path, access="write", synchronous="FULL")) as connection:
            is_empty = database.checkpoint_truncate(connection)
    except database.Error as error:
        raise ProjectionRefused(path, f"it cannot be written ({error})") from error
    if not is_empty or any(path.with_name(path.name + ending).exists() for ending in SIDE_FILES if ending):
        raise ProjectionRefused(path, "its write-ahead log cannot be merged into it")


def discard_prepared(directory: Path, *, encode: Encode) -> None:
    """Remove what was prepared for this version, which is live now, and for earlier ones.

    What is there for a later version, or another encoding, belongs to software that has not started yet.
    """
    own = prepared_folder(directory, encode).name
    for folder, version in _folders(directory):
        if version < PROJECTOR_VERSION or folder.name == own:
            _discard(folder)


def _folders(directory: Path) -> Iterator[tuple[Path, int]]:
    for entry in list(directory.iterdir()):
        found = FOLDER_NAME.fullmatch(entry.name)
        if found and entry.is_dir() and not entry.is_symlink():
            yield entry, int(found[1])


def _discard(folder: Path) -> None:
    try:
        with _lock(folder, command="imageledger serve"):
            shutil.rmtree(folder)
    except LogLocked:
        return  # It is being made right now; the next start looks again.
    except OSError as error:
        _log.warning("a prepared projection is not removed", extra={"reason": str(error)})
        return
    _log.info("a prepared projection that is of no use any more was removed", extra={"folder": folder.name})


def _lock(folder: Path, *, command: str) -> DirectoryLock:
    return DirectoryLock(folder, command=command, since=format_time(time.time_ns()))
