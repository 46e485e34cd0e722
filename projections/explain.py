"""Which answers two projection files of one log give otherwise: what a rebuild with a difference changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgpack

from eventstore import database
from eventstore.database import Connection

from .changes import Change, changes
from .damage import damage_told
from .rows import Row

PAGE_ROWS = 1000
MISSING = "there is no table of that name with these columns"


class _Table(NamedTuple):
    """A table of answers: its key, by which both files are read, and what else a row says."""

    name: str
    key: tuple[str, ...]
    says: tuple[str, ...]


TABLES = (
    _Table("image", ("since",), ("id", "until", "state")),
    _Table("operation", ("since",), ("id", "until", "state")),
    _Table("source", ("since",), ("id", "until", "state")),
    _Table("family_latest", ("folder_id", "family", "since"), ("until", "image_id")),
    _Table("image_life", ("folder_id", "id"), ("born", "died")),
)


class Difference(NamedTuple):
    """A row that one file has otherwise than the other; a side is None where it is missing.

    `what` is the id of an image, operation or source, or folder and family; `position` the event that made
    the row. `fields` are those that differ, as an answer shows them where it is an image or a source.
    """

    table: str
    what: str
    position: int
    fields: list[Change]


class NotComparable(Exception):
    """A file whose tables are others: of a projector so old or new that rows cannot be compared."""


@damage_told
def differences(old: Path, new: Path) -> Iterator[Difference]:
    """Every answer that differs, table by table. Raises NotComparable, ProjectionDamaged."""
    with closing(_connected(old)) as before, closing(_connected(new)) as after:
        for table in TABLES:
            yield from _of_table(before, after, table)


def _of_table(before: Connection, after: Connection, table: _Table) -> Iterator[Difference]:
    """Both files are read in the order of the key, side by side."""
    lefts, rights = _rows(before, table), _rows(after, table)
    left, right = next(lefts, None), next(rights, None)
    width = len(table.key)
    while left is not None or right is not None:
        if right is None or (left is not None and left[:width] < right[:width]):
            yield _difference(table, left, None)
            left = next(lefts, None)
        elif left is None or right[:width] < left[:width]:
            yield _difference(table, None, right)
            right = next(rights, None)
        else:
            if left != right:
                yield _difference(table, left, right)
            left, right = next(lefts, None), next(rights, None)


def _difference(table: _Table, before: Row | None, after: Row | None) -> Difference:
    names = (*table.key, *table.says)
    old, new = (dict(zip(names, row or (), strict=bool(row))) for row in (before, after))
    there = new or old
    what = str(there.get("id") or f"{there['folder_id']} {there['family']}")
    position = int(there.get("since") or there["born"])
    return Difference(table.name, what, position, _fields(table, old, new))


def _fields(table: _Table, old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """What differs: of a state its fields, of columns their values."""
    found: list[Change] = []
    for name in table.says:
        one, other = old.get(name), new.get(name)
        if one == other:
            continue
        if name != "state":
            found.append(Change(name, one, other))
            continue
        states = [None if state is None else cast("Any", msgpack.unpackb(state)) for state in (one, other)]
        shown = changes(*states) if table.name in ("image", "source") else []
        found += shown or _keys(states[0] or {}, states[1] or {})
    return found


def _keys(old: dict[str, Any], new: dict[str, Any]) -> list[Change]:
    """The private fields of states that no answer shows."""
    return [
        Change(key, old.get(key), new.get(key))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]


def _rows(connection: Connection, table: _Table) -> Iterator[Row]:
    key, places = ", ".join(table.key), ", ".join("?" * len(table.key))
    columns = ", ".join((*table.key, *table.says))
    first = f"SELECT {columns} FROM {table.name} ORDER BY {key} LIMIT {PAGE_ROWS}"
    then = f"SELECT {columns} FROM {table.name} WHERE ({key}) > ({places}) ORDER BY {key} LIMIT {PAGE_ROWS}"
    try:
        rows = connection.execute(first).fetchall()
        while rows:
            yield from rows
            rows = connection.execute(then, rows[-1][: len(table.key)]).fetchall()
    except database.OperationalError as error:
        if "no such" in str(error):
            raise NotComparable(f"table {table.name}: {MISSING}") from None
        raise


def _connected(path: Path) -> Connection:
    return database.connect(path, access="read", synchronous="NORMAL")
