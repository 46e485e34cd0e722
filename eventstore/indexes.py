"""Whether an index and its table say the same, a page at a time.

`PRAGMA integrity_check` says so, too, but in one read transaction, during which the write-ahead log only
grows. Here each statement is short, and both ways are asked: whether the index leads to every row that it
should, and whether every entry of it leads to a row that says the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

from eventstore.database import Connection

PAGE_ENTRIES: Final = 200

_CREATE = re.compile(r"CREATE (?:UNIQUE )?INDEX (\w+) ON (\w+) \(([^)]*)\)(?: WHERE (.*))?", re.DOTALL)


class Index(NamedTuple):
    """An index of a table with an integer primary key, `key`. `where` is true of every row that it has."""

    name: str
    table: str
    key: str
    columns: tuple[str, ...]
    where: str

    @classmethod
    def parse(cls, statement: str, *, key: str) -> Index:
        """The index that a CREATE INDEX statement of ours makes."""
        found = _CREATE.search(statement)
        if found is None:
            raise ValueError(f"this makes no index: {statement}")
        name, table, columns, where = found.groups()
        return cls(name, table, key, tuple(re.split(r",\s*", columns)), where or "true")


class IndexDamaged(Exception):
    """An index whose entries are not in order, so that nothing can be found in it."""


def unreachable(connection: Connection, index: Index, *, first: int, last: int) -> list[int]:
    """The rows between two keys to which the index must lead, and does not. Raises Error."""
    same = " AND ".join(f"i.{column} = v.{column}" for column in index.columns)
    sql = f"""
SELECT v.{index.key}
FROM {index.table} AS v NOT INDEXED
WHERE v.{index.key} BETWEEN ? AND ?
    AND ({index.where})
    AND NOT EXISTS (
        SELECT 1
        FROM {index.table} AS i INDEXED BY {index.name}
        WHERE {same} AND i.{index.key} = v.{index.key} AND ({index.where})
    )
ORDER BY v.{index.key}
"""
    return [key for (key,) in connection.execute(sql, (first, last))]


def wrong_entries(
    connection: Connection, index: Index, *, until: int, on_page: Callable[[int], None] = lambda entries: None
) -> Iterator[int]:
    """The keys up to `until` of entries whose row says something else. `on_page` hears of how many were read.

    Without a bound it would never end beside a writer who is faster. Raises Error; and IndexDamaged, which
    ends it.
    """
    last: tuple[Any, ...] | None = None
    while page := _page(connection, index, last, until):
        for *entry, is_right in page:
            if last is not None and not _is_after(tuple(entry), last):
                raise IndexDamaged(f"an entry of {index.name} is out of order")
            last = tuple(entry)
            if not is_right:
                yield last[-1]
        on_page(len(page))


def _page(
    connection: Connection, index: Index, last: tuple[Any, ...] | None, until: int
) -> list[tuple[Any, ...]]:
    """The entries behind `last`, columns and then the key: first those with the same columns."""
    values = {"count": PAGE_ENTRIES, "until": until}
    if last is None:
        return connection.execute(_select(index, "true"), values).fetchall()
    values["key"] = last[-1]
    values |= {f"c{place}": value for place, value in enumerate(last[:-1])}
    columns, places = ", ".join(index.columns), ", ".join(f":c{place}" for place in range(len(index.columns)))
    rows: list[tuple[Any, ...]] = []
    if index.key not in index.columns:
        rows = connection.execute(
            _select(index, f"({columns}) = ({places}) AND {index.key} > :key"), values
        ).fetchall()
    if len(rows) < PAGE_ENTRIES:
        rows += connection.execute(_select(index, f"({columns}) > ({places})"), values).fetchall()
    return rows


def _select(index: Index, bound: str) -> str:
    """Some entries: their columns and key as the index has them, and whether the row says the same."""
    columns = ", ".join((*(f"{column} AS c{n}" for n, column in enumerate(index.columns)), index.key))
    same = " AND ".join(f"t.{column} IS i.c{n}" for n, column in enumerate(index.columns))
    order = ", ".join((*index.columns, index.key))
    return f"""
SELECT
    i.*,
    EXISTS (SELECT 1 FROM {index.table} AS t NOT INDEXED WHERE t.{index.key} = i.{index.key} AND {same})
FROM (
    SELECT {columns}
    FROM {index.table} INDEXED BY {index.name}
    WHERE ({index.where}) AND {index.key} <= :until AND {bound}
    ORDER BY {order}
    LIMIT :count
) AS i
"""


def _is_after(entry: tuple[Any, ...], last: tuple[Any, ...]) -> bool:
    try:
        return entry > last
    except TypeError:
        return False  # A column of another type.
