"""Which READY images each family has, as a log is folded: in a database, since they may be millions."""

from __future__ import annotations

from typing import Final, NamedTuple

from eventstore import database

from .domain.command import Image

_CREATE: Final = """
CREATE TABLE ready (
  folder_id TEXT NOT NULL,
  family TEXT NOT NULL,
  born INTEGER NOT NULL,
  id TEXT NOT NULL,
  PRIMARY KEY (folder_id, family, born)
) STRICT, WITHOUT ROWID
"""
_LATEST: Final = """
SELECT id
FROM ready
WHERE folder_id = ? AND family = ?
ORDER BY born DESC
LIMIT 1
"""
_ADD: Final = "INSERT INTO ready (folder_id, family, born, id) VALUES (?, ?, ?, ?)"
_REMOVE: Final = "DELETE FROM ready WHERE folder_id = ? AND family = ? AND born = ?"


class Change(NamedTuple):
    """What a family resolved to before an event, and after it."""

    before: str | None
    after: str | None


class ReadyFamilies:
    """Begins empty, and is gone with `close`."""

    def __init__(self) -> None:
        """Raises Error."""
        self._connection = database.scratch()
        self._connection.execute(_CREATE)
        # Never committed: nothing of it is to be kept.
        self._connection.execute("BEGIN")

    def close(self) -> None:
        self._connection.close()

    def change(self, image: Image, *, is_ready: bool) -> Change:
        """An image of a family became READY, or is not any more."""
        folder_id, family, born = image["folder_id"], image["family"], image["born"]
        before = self._latest(folder_id, family)
        if is_ready:
            self._connection.execute(_ADD, (folder_id, family, born, image["id"]))
        else:
            self._connection.execute(_REMOVE, (folder_id, family, born))
        return Change(before, self._latest(folder_id, family))

    def _latest(self, folder_id: str, family: str) -> str | None:
        row = self._connection.execute(_LATEST, (folder_id, family)).fetchone()
        return None if row is None else str(row[0])
