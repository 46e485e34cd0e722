"""The filter and order grammar of lists: text to conditions, conditions to SQL, and the same in Python.

    filter    = [ condition *( AND condition ) ]
    condition = field ( "=" / "!=" ) value  /  field ( IN / NOT IN ) "(" value *( "," value ) ")"
    field     = id / name / family / status / created_at / createdAt
    value     = a text in " or ' with the escapes \\" \\' \\\\

AND, IN and NOT IN are read in any case, fields as they stand here. White space (space, tab, CR, LF) may
stand between any two of these and must only where two words meet.

What a value means depends on its field. A status is one of the API's names, in any case. A created_at is
an RFC 3339 time with a zone; images are created at whole seconds, so a time with a fraction other than
zero equals no image's and differs from every image's. Any text will do for the others; an image without
a name or a family has the empty one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias

from projections.errors import QuestionInvalid, shown
from projections.moments import NANOSECONDS, MomentInvalid, parse_time

TextField = Literal["id", "name", "family", "status"]
FilterField = TextField | Literal["created_at"]
OrderField = Literal["id", "name", "created_at"]
Value = str | int

STATUSES = ("CREATING", "READY", "ERROR", "DELETING")

_FILTER_FIELDS: dict[str, FilterField] = {
    "id": "id",
    "name": "name",
    "family": "family",
    "status": "status",
    "created_at": "created_at",
    "createdAt": "created_at",
}
_ORDER_FIELDS: dict[str, OrderField] = {
    "id": "id",
    "name": "name",
    "created_at": "created_at",
    "createdAt": "created_at",
}
_FIELDS_TEXT = "id, name, family, status or created_at"
_OPERATORS_TEXT = "=, !=, IN or NOT IN"
_VALUE_TEXT = "a value in double or single quotes"
_SPACE = " \t\r\n"
_SPACE_TO_BLANK = str.maketrans(dict.fromkeys(_SPACE, " "))
_SYMBOLS = "=!<>~:"
_ESCAPED = "\"'\\"
_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")


@dataclass(frozen=True, slots=True)
class Condition:
    """One field is (or, negated, is not) one of some values; created_at as int seconds, the others as text.

    `=` and `!=` are lists of one. Values do not repeat; there are none where no image could have one.
    """

    field: FilterField
    negated: bool
    values: tuple[Value, ...]


Filter: TypeAlias = tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """By which column a list is ordered; ids break ties in the same direction."""

    field: OrderField
    descending: bool


class FilterInvalid(QuestionInvalid):
    """A text that is no filter: `position_in_text` counts characters from 0 (the message from 1)."""

    def __init__(self, position_in_text: int, reason: str) -> None:
        super().__init__(field="filter", message=f"filter, character {position_in_text + 1}: {reason}")
        self.position_in_text = position_in_text
        self.reason = reason


class OrderInvalid(QuestionInvalid):
    """A text that names no order."""

    def __init__(self, reason: str) -> None:
        remedy = "write one of id, name or created_at, and asc or desc after it if wanted"
        super().__init__(field="order_by", message=f"order_by: {reason}; {remedy}")
        self.reason = reason


# Most of those who ask for a name ask for it again.
@lru_cache(maxsize=256)
def parse_filter(text: str) -> Filter:
    """The conditions of a filter, all of which must hold; an empty one has none.

    Linear in the text, whose length (at most 1000 characters in the API) the caller bounds, and with it
    the number of conditions and SQL parameters.
    Raises FilterInvalid.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FilterInvalid(error.start, "this is half a character; send valid UTF-8") from None
    cursor = _Cursor(text)
    if cursor.at_end():
        return ()
    conditions = [_condition(cursor)]
    while not cursor.at_end():
        if cursor.word().upper() != "AND":
            raise cursor.unexpected("AND or the end of the filter")
        cursor.take_word()
        conditions.append(_condition(cursor))
    return tuple(conditions)


def to_sql(conditions: Sequence[Condition], *, table: str) -> tuple[str, dict[str, Value]]:
    """An SQL expression over the columns of `table`, and its named parameters `f0`, `f1` and so on.

    Single values are compared with `=`, so that indexes serve them. No value is ever in the text; no
    condition gives `TRUE`. Needs columns named as the fields, none of them NULL, created_at in seconds.
    """
    if not table.isidentifier():
        raise AssertionError(f"{table!r} cannot name a table in SQL")
    parameters: dict[str, Value] = {}
    terms: list[str] = []
    for condition in conditions:
        names = []
        for value in condition.values:
            name = f"f{len(parameters)}"
            parameters[name] = value
            names.append(f":{name}")
        terms.append(_term(f"{table}.{condition.field}", condition, names))
    return " AND ".join(terms) or "TRUE", parameters


def matches(conditions: Sequence[Condition], row: Mapping[str, Value]) -> bool:
    """Whether a row meets every condition: what to_sql means, said in Python."""
    return all((row[condition.field] in condition.values) != condition.negated for condition in conditions)


def equality(conditions: Sequence[Condition], field: TextField) -> str | None:
    """The one value that a filter allows this field by the first `=` (or `IN` of one), if it does."""
    for condition in conditions:
        if condition.field == field and not condition.negated and len(condition.values) == 1:
            value = condition.values[0]
            return value if isinstance(value, str) else None
    return None


def parse_order(text: str) -> Order:
    """The order that a text names; by id if it is empty, ascending unless it says `desc` (in any case).

    Raises OrderInvalid.
    """
    if "," in text:
        raise OrderInvalid("a list is ordered by one column, and a comma asks for several")
    words = [word for word in text.translate(_SPACE_TO_BLANK).split(" ") if word]
    if not words:
        return Order("id", descending=False)
    field = _ORDER_FIELDS.get(words[0])
    if field is None:
        raise OrderInvalid(f"there is no order by {shown(words[0])}")
    direction = words[1] if len(words) > 1 else "asc"
    if direction.lower() not in ("asc", "desc"):
        raise OrderInvalid(f"{shown(direction)} is no direction")
    if len(words) > 2:
        raise OrderInvalid(f"{shown(words[2])} stands behind the direction, where nothing may")
    return Order(field, descending=direction.lower() == "desc")


class _Cursor:
    """A place in a text that only moves forward; between calls it never rests before white space."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._skip_space()

    def at_end(self) -> bool:
        return self.at == len(self.text)

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def word(self) -> str:
        """The word here, or the run of operator signs; empty where there is neither."""
        alphabet = _WORD if self.peek() in _WORD else _SYMBOLS
        end = self.at
        while end < len(self.text) and self.text[end] in alphabet:
            end += 1
        return self.text[self.at : end]

    def take_word(self) -> None:
        self.move_to(self.at + len(self.word()))

    def move_to(self, at: int) -> None:
        self.at = at
        self._skip_space()

    def unexpected(self, wanted: str) -> FilterInvalid:
        """The error for what stands here; `wanted` is what may."""
        found = "the filter ends" if self.at_end() else f"found {shown(self._piece())}"
        return FilterInvalid(self.at, f"{found} where {wanted} is expected")

    def _piece(self) -> str:
        """What a reader would call the thing here: a word, some signs, or all up to white space."""
        rest = self.text[self.at : self.at + 50].translate(_SPACE_TO_BLANK)
        return self.word() or rest.split(" ", 1)[0]

    def _skip_space(self) -> None:
        while self.at < len(self.text) and self.text[self.at] in _SPACE:
            self.at += 1


def _condition(cursor: _Cursor) -> Condition:
    field = _FILTER_FIELDS.get(cursor.word())
    if field is None:
        raise cursor.unexpected(f"a field ({_FIELDS_TEXT})")
    cursor.take_word()
    negated, listed = _operator(cursor)
    # A dict keeps the order and drops repeats, whose number the text's length alone would bound.
    values = dict.fromkeys(_list(cursor, field) if listed else [_value(cursor, field)])
    return Condition(field, negated, tuple(value for value in values if value is not None))


def _operator(cursor: _Cursor) -> tuple[bool, bool]:
    """Whether the operator here negates, and whether it takes a list."""
    word = cursor.word().upper()
    if word == "NOT":
        cursor.take_word()
        if cursor.word().upper() != "IN":
            raise cursor.unexpected("IN (the operator is NOT IN)")
    elif word not in ("=", "!=", "IN"):
        raise cursor.unexpected(f"an operator ({_OPERATORS_TEXT})")
    cursor.take_word()
    return word in ("!=", "NOT"), word in ("IN", "NOT")


def _list(cursor: _Cursor, field: FilterField) -> list[Value | None]:
    if cursor.peek() != "(":
        raise cursor.unexpected('a list in parentheses, ("a", "b"),')
    cursor.move_to(cursor.at + 1)
    values = [_value(cursor, field)]
    while cursor.peek() == ",":
        cursor.move_to(cursor.at + 1)
        values.append(_value(cursor, field))
    if cursor.peek() != ")":
        raise cursor.unexpected("a comma or a closing parenthesis")
    cursor.move_to(cursor.at + 1)
    return values


def _value(cursor: _Cursor, field: FilterField) -> Value | None:
    """The value here as its field means it; None if no image can have it."""
    start = cursor.at
    text = _quoted(cursor)
    convert = _CONVERT.get(field)
    return convert(start, text) if convert else text


def _quoted(cursor: _Cursor) -> str:
    quote, text, start = cursor.peek(), cursor.text, cursor.at
    if quote not in ('"', "'"):
        raise cursor.unexpected(_VALUE_TEXT)
    value: list[str] = []
    at = start + 1
    while at < len(text) and text[at] != quote:
        if text[at] == "\\" and at + 1 < len(text):
            at += 1
            if text[at] not in _ESCAPED:
                found = shown(text[at - 1 : at + 1])
                raise FilterInvalid(at - 1, f"{found} is no escape; \\\" \\' and \\\\ are")
        value.append(text[at])
        at += 1
    if at >= len(text):
        raise FilterInvalid(start, f"the value that begins here has no closing {quote}")
    cursor.move_to(at + 1)
    return "".join(value)


def _status(position_in_text: int, text: str) -> str:
    # Some letters beyond ASCII have an upper case within it.
    status = text.upper() if text.isascii() else text
    if status not in STATUSES:
        allowed = ", ".join(STATUSES)
        raise FilterInvalid(position_in_text, f"{shown(text)} is no status; these are: {allowed}")
    return status


def _created_at(position_in_text: int, text: str) -> int | None:
    try:
        seconds, rest = divmod(parse_time(text), NANOSECONDS)
    except MomentInvalid as error:
        raise FilterInvalid(position_in_text, f"{shown(text)} is no created_at: {error.reason}") from None
    return None if rest else seconds


_CONVERT: dict[FilterField, Callable[[int, str], Value | None]] = {
    "status": _status,
    "created_at": _created_at,
}


def _term(column: str, condition: Condition, names: list[str]) -> str:
    match names:
        case []:
            return "TRUE" if condition.negated else "FALSE"
        case [name]:
            return f"{column} {'!=' if condition.negated else '='} {name}"
        case _:
            return f"{column} {'NOT IN' if condition.negated else 'IN'} ({', '.join(names)})"
