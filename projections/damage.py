"""What is wrong with a projection's file, and the one place where SQLite's errors become that.

A row is checked when it is read. What cannot be noticed by reading is a row that is not found, since a bit of
the index key that leads to it has changed: then an answer lacks it. Where it costs nothing, another table is
asked whether that can be (`queries.py`); the digest of a rebuild notices the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from eventstore import database

P = ParamSpec("P")
Answer = TypeVar("Answer")

# Result codes that our statements, constants which tests have run, get from a damaged file alone: no such
# table or column, a text or blob too big, a type that a column cannot have.
_CODES = frozenset({1, 18, 20})
_REMEDY = "stop the server and run `imageledger rebuild`"


class ProjectionDamaged(Exception):
    """A projection's file is not what was written. The log still has the truth."""

    def __init__(self, reason: str) -> None:
        self.what = f"the projection is damaged ({reason})"
        super().__init__(f"{self.what}: {_REMEDY}")


class RowDamaged(ProjectionDamaged):
    """A stored row that is not what was written; position 0 where the row does not say its own."""

    def __init__(self, *, table: str, position: object) -> None:
        self.table = table
        self.position = position if isinstance(position, int) else 0
        self.what = f"the projection's row of table {table} at position {self.position} is damaged"
        Exception.__init__(self, f"{self.what}: {_REMEDY}")


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading says that stored bytes are not what was written."""
    if isinstance(error, UnicodeDecodeError) or database.is_corrupt(error):
        return True
    if not isinstance(error, database.OperationalError):
        return False
    # Without a code it is the driver's own: a text that is no UTF-8.
    code = getattr(error, "sqlite_errorcode", None)
    return code is None or code in _CODES


def told(error: Exception) -> Exception:
    """The error that a caller is told: ProjectionDamaged for damage, which it names, else the same one."""
    return ProjectionDamaged(str(error)) if is_damage(error) else error


def damage_told(ask: Callable[P, Answer]) -> Callable[P, Answer]:
    """The same question; SQLite's errors of a damaged file become ProjectionDamaged, others stay."""

    @wraps(ask)
    def asked(*args: P.args, **kwargs: P.kwargs) -> Answer:
        try:
            return ask(*args, **kwargs)
        except (database.Error, UnicodeDecodeError) as error:
            raise told(error) from None

    return asked
