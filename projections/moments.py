"""Moments in text: a position, an RFC 3339 time or `head`; and times written back as text.

All arithmetic is on integers, so nine digits of a second survive both ways.
"""

import re
from dataclasses import dataclass
from datetime import date
from typing import Literal, overload

from projections.errors import QuestionInvalid, shown

INT64_MAX = 2**63 - 1
NANOSECONDS = 10**9

_DAY_SECONDS = 86_400
_EPOCH_DAY = date(1970, 1, 1).toordinal()

# Looser than RFC 3339 in the fraction and the zone, so that what is wrong there gets its own reason.
# Every part begins with a character that the part before it cannot take: no backtracking.
_TIME = re.compile(
    r"(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})[Tt]"
    r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
    r"(?:\.(?P<fraction>[0-9]+))?"
    r"(?P<zone>[Zz]|[+-][0-9]{2}:[0-9]{2})?"
)


@dataclass(frozen=True, slots=True)
class AtPosition:
    """The state after this event; 0 is the empty state."""

    position: int


@dataclass(frozen=True, slots=True)
class AtTime:
    """The state after the last event at or before this many nanoseconds since the Unix epoch."""

    ns: int


@dataclass(frozen=True, slots=True)
class AtHead:
    """The newest state there is."""


Moment = AtPosition | AtTime | AtHead


class MomentInvalid(QuestionInvalid):
    """A text that is no moment: `text` as it was sent, `reason` which rule it broke."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(field="x-as-of", message=f"{shown(text)} is not a moment: {reason}")
        self.text = text
        self.reason = reason


class TimeBeyondLogs(MomentInvalid):
    """A well-formed time that no log can hold: before 1970, or so late that it is certainly in the future."""

    def __init__(self, text: str, *, is_past: bool) -> None:
        allowed = f"{format_time(0)} to {format_time(INT64_MAX)}"
        super().__init__(text, f"the time is outside what a log can hold, {allowed}")
        self.is_past = is_past


@overload
def parse_moment(text: str) -> AtPosition | AtTime: ...
@overload
def parse_moment(text: str, *, head: Literal[False]) -> AtPosition | AtTime: ...
@overload
def parse_moment(text: str, *, head: bool) -> Moment: ...
def parse_moment(text: str, *, head: bool = False) -> Moment:
    """The moment that a text names; `head` is one only where the caller admits it.

    Nothing is trimmed. Whether the log has come that far is for the caller to check.
    Raises MomentInvalid.
    """
    if head and text == "head":
        return AtHead()
    if text.isascii() and text.isdigit():
        return AtPosition(_position(text))
    if text[:1].isdecimal() and "-" in text:
        return AtTime(parse_time(text))
    allowed = "a position (1234) or an RFC 3339 time with a zone (2026-11-23T10:00:00Z)"
    raise MomentInvalid(text, f"it must be {allowed}{', or head' if head else ''}")


def parse_time(text: str) -> int:
    """Nanoseconds since the Unix epoch of an RFC 3339 time, from 1970 to April 2262.

    A leap second (`:60`) is refused: Unix time has no number for it. `-00:00` is UTC.
    Raises MomentInvalid. Source: RFC 3339 §5.6.
    """
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise MomentInvalid(text, "a time is written as RFC 3339 has it, 2026-11-23T10:00:00Z")
    fraction = parts["fraction"] or ""
    if len(fraction) > 9:
        raise MomentInvalid(text, f"a second has at most 9 decimal digits, this one {len(fraction)}")
    day = _day(text, int(parts["year"]), int(parts["month"]), int(parts["day"]))
    second = _second(text, int(parts["hour"]), int(parts["minute"]), int(parts["second"]))
    seconds = day * _DAY_SECONDS + second - _offset_seconds(text, parts["zone"])
    ns = seconds * NANOSECONDS + int(fraction.ljust(9, "0"))
    if not 0 <= ns <= INT64_MAX:
        raise TimeBeyondLogs(text, is_past=ns < 0)
    return ns


def format_time(ns: int) -> str:
    """RFC 3339 in UTC with exactly nine digits, `2026-11-23T10:00:00.000000000Z`. Inverse of parse_time.

    Any int64 has a text; a number beyond the years 1 to 9999 raises ValueError or OverflowError.
    """
    seconds, rest = divmod(ns, NANOSECONDS)
    return f"{_date_and_time(seconds)}.{rest:09d}Z"


def format_seconds(seconds: int) -> str:
    """RFC 3339 in UTC without a fraction, `2026-11-23T10:00:00Z`, as the API's JSON has whole seconds."""
    return f"{_date_and_time(seconds)}Z"


def _position(text: str) -> int:
    if len(text) > 1 and text[0] == "0":
        raise MomentInvalid(text, "a position has no leading zeros")
    # The length first: int() refuses thousands of digits with an error of its own.
    if len(text) > 19 or int(text) > INT64_MAX:
        raise MomentInvalid(text, f"a position is at most {INT64_MAX}")
    return int(text)


def _day(text: str, year: int, month: int, day: int) -> int:
    try:
        return date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError as error:
        raise MomentInvalid(text, f"there is no such date ({error})") from None


def _second(text: str, hour: int, minute: int, second: int) -> int:
    if hour > 23 or minute > 59 or second > 60:
        raise MomentInvalid(text, "there is no such time of day; 00:00:00 to 23:59:59 are")
    if second == 60:
        raise MomentInvalid(text, "leap seconds have no number in Unix time; ask for second 59")
    return hour * 3600 + minute * 60 + second


def _offset_seconds(text: str, zone: str | None) -> int:
    if zone is None:
        raise MomentInvalid(text, "the time has no zone; end it with Z or an offset such as +03:00")
    if zone in ("Z", "z"):
        return 0
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    if hours > 23 or minutes > 59:
        raise MomentInvalid(text, f"there is no zone {zone}; -23:59 to +23:59 are offsets")
    offset = hours * 3600 + minutes * 60
    return -offset if zone[0] == "-" else offset


def _date_and_time(seconds: int) -> str:
    days, second = divmod(seconds, _DAY_SECONDS)
    minutes, second = divmod(second, 60)
    hour, minute = divmod(minutes, 60)
    return f"{date.fromordinal(_EPOCH_DAY + days).isoformat()}T{hour:02d}:{minute:02d}:{second:02d}"
