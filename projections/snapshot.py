"""What every question does: read one position's rows, and be sure of it."""

from __future__ import annotations

from eventstore import database
from eventstore.database import Connection

from .pages import Page, PageTokenInvalid
from .rows import APPLIED_ROW, Row, RowDamaged, check


class Snapshot:
    """A read transaction: every question inside it sees one position."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN")

    def __exit__(self, *_: object) -> None:
        # Nothing is to be kept, and a COMMIT that fails, as an interrupted one does, would leave it open.
        database.roll_back(self._connection)


def applied(connection: Connection) -> Row:
    """The row that says how far the projection has come. Raises RowDamaged."""
    row: Row | None = connection.execute(APPLIED_ROW).fetchone()
    if row is None:
        raise RowDamaged(table="applied", position=0)
    check(row, table="applied", position=row[1])
    return row


def applied_position(connection: Connection) -> int:
    return int(applied(connection)[1])


def asked_position(*, at: int | None, page: Page | None, applied: int) -> int:
    """The position a list is answered as of. Raises PageTokenInvalid for a page of a longer log."""
    if at is not None:
        return at
    if page is None:
        return applied
    if page.position > applied:
        raise PageTokenInvalid(f"it is of position {page.position}, and this log ends at {applied}")
    return page.position


def held(since: int, until: int | None, at: int) -> bool:
    """Whether a row that holds from `since` until `until` held at a position."""
    return since <= at and (until is None or until > at)


def is_over(until: int | None, at: int) -> bool:
    return until is not None and until <= at
