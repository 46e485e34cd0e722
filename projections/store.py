"""Which projection is live when a server starts; and, by one name, what the other rooms need of the files."""

from __future__ import annotations

from pathlib import Path

from eventstore.reader import LogReader

from .build import build as build
from .encoding import Encode
from .files import ProjectionFiles as ProjectionFiles
from .files import ProjectionRefused as ProjectionRefused
from .opening import Progress, bring_up
from .opening import check as check
from .opening import digest_of as digest_of
from .opening import open_projector as open_projector
from .opening import open_queries as open_queries
from .prepared import adopt, discard_prepared
from .rebuild import Rebuilt as Rebuilt
from .rebuild import rebuild as rebuild


def open_live(
    files: ProjectionFiles, log: LogReader, *, encode: Encode, on_progress: Progress = lambda done, head: None
) -> Path:
    """The live projection's file, caught up with the log.

    Where there is none of this version it is the one that was prepared, else one that is built first.
    Raises ProjectionRefused for one of another log, ahead of it, or of another history.
    """
    path = files.current()
    applied = None if path is None else check(path, log, encode=encode)
    if path is None or applied is None:
        path = adopt(files, log, encode=encode) or build(files, log, encode=encode, on_progress=on_progress)
        files.make_current(path)
        applied = check(path, log, encode=encode)
    if applied is None:
        raise AssertionError("a projection that was just made is of another version")
    bring_up(path, log, applied, encode=encode, on_progress=on_progress)
    files.remove_others(path)
    discard_prepared(files.directory, encode=encode)
    return path
