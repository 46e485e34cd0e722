from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from projections.moments import (
    INT64_MAX,
    NANOSECONDS,
    AtHead,
    AtPosition,
    AtTime,
    Moment,
    MomentInvalid,
    format_seconds,
    format_time,
    parse_moment,
    parse_time,
)

NS_2026 = 1_795_428_000 * NANOSECONDS  # 2026-11-23T10:00:00Z


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        pytest.param("0", AtPosition(0), id="the-empty-state"),
        pytest.param("1234", AtPosition(1234), id="position"),
        pytest.param("20261123", AtPosition(20261123), id="digits-alone-are-a-position"),
        pytest.param("9223372036854775807", AtPosition(INT64_MAX), id="last-position"),
        pytest.param("2026-11-23T10:00:00Z", AtTime(NS_2026), id="utc"),
        pytest.param("2026-11-23t10:00:00z", AtTime(NS_2026), id="lower-case"),
        pytest.param("2026-11-23T13:00:00+03:00", AtTime(NS_2026), id="east"),
        pytest.param("2026-11-22T23:30:00-10:30", AtTime(NS_2026), id="west-and-the-day-before"),
        pytest.param("2026-11-23T10:00:00-00:00", AtTime(NS_2026), id="zone-unknown-is-utc"),
        pytest.param("2026-11-23T10:00:00.5Z", AtTime(NS_2026 + 500_000_000), id="one-digit"),
        pytest.param("2026-11-23T10:00:00.000000001Z", AtTime(NS_2026 + 1), id="nine-digits"),
        pytest.param("1970-01-01T00:00:00Z", AtTime(0), id="first-time"),
        pytest.param("1969-12-31T23:00:00-01:00", AtTime(0), id="first-time-from-the-west"),
        pytest.param("2262-04-11T23:47:16.854775807Z", AtTime(INT64_MAX), id="last-time"),
        pytest.param("2024-02-29T00:00:00Z", AtTime(1_709_164_800 * NANOSECONDS), id="leap-day"),
    ],
)
def test_moment(text: str, moment: Moment) -> None:
    assert parse_moment(text) == moment
    assert parse_moment(text, head=True) == moment


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("", "it must be a position", id="empty"),
        pytest.param(" 1", "it must be", id="blank-before"),
        pytest.param("1 ", "it must be", id="blank-behind"),
        pytest.param("1\n", "it must be", id="line-end-behind"),
        pytest.param("+1", "it must be", id="plus"),
        pytest.param("-1", "it must be", id="minus"),
        pytest.param("1.0", "it must be", id="decimal"),
        pytest.param("1_000", "it must be", id="underscore"),
        pytest.param("١", "it must be", id="digit-beyond-ascii"),
        pytest.param("²", "it must be", id="superscript"),
        pytest.param("HEAD", "it must be", id="head-in-capitals"),
        pytest.param("yesterday", "it must be", id="word"),
        pytest.param("01", "leading zeros", id="leading-zero"),
        pytest.param("00", "leading zeros", id="two-zeros"),
        pytest.param("9223372036854775808", "at most", id="position-beyond-int64"),
        pytest.param("1" * 10_000, "at most", id="position-of-10000-digits"),
        pytest.param("2026-11-23", "as RFC 3339 has it", id="date-alone"),
        pytest.param("2026-11-23T10:00Z", "as RFC 3339 has it", id="no-seconds"),
        pytest.param("2026-11-23 10:00:00Z", "as RFC 3339 has it", id="blank-for-T"),
        pytest.param("2026-11-23T10:00:00.Z", "as RFC 3339 has it", id="empty-fraction"),
        pytest.param("2026-11-23T10:00:00,5Z", "as RFC 3339 has it", id="decimal-comma"),
        pytest.param("2026-11-23T10:00:00+0300", "as RFC 3339 has it", id="zone-without-colon"),
        pytest.param("2026-11-23T10:00:00Z\n", "as RFC 3339 has it", id="time-and-line-end"),
        pytest.param("2026-11-23T10:00:0٠Z", "as RFC 3339 has it", id="time-digit-beyond-ascii"),
        pytest.param("2026-11-23T10:00:00", "no zone", id="no-zone"),
        pytest.param("2026-11-23T10:00:00.0000000001Z", "at most 9", id="ten-digits"),
        pytest.param("2026-02-29T10:00:00Z", "no such date", id="no-leap-year"),
        pytest.param("2026-13-01T10:00:00Z", "no such date", id="month-13"),
        pytest.param("0000-01-01T10:00:00Z", "no such date", id="year-0"),
        pytest.param("2026-11-23T24:00:00Z", "no such time of day", id="hour-24"),
        pytest.param("2026-11-23T10:60:00Z", "no such time of day", id="minute-60"),
        pytest.param("2026-11-23T10:00:61Z", "no such time of day", id="second-61"),
        pytest.param("2016-12-31T23:59:60Z", "leap seconds", id="leap-second"),
        pytest.param("2026-11-23T10:00:00+24:00", "no zone +24:00", id="zone-24"),
        pytest.param("2026-11-23T10:00:00-03:60", "no zone -03:60", id="zone-minute-60"),
        pytest.param("1969-12-31T23:59:59.999999999Z", "outside", id="before-the-epoch"),
        pytest.param("1970-01-01T00:00:00+00:01", "outside", id="before-the-epoch-from-the-east"),
        pytest.param("2262-04-11T23:47:16.854775808Z", "outside", id="beyond-int64"),
        pytest.param("9999-12-31T23:59:59Z", "outside", id="year-9999"),
    ],
)
def test_no_moment(text: str, reason: str) -> None:
    with pytest.raises(MomentInvalid) as caught:
        parse_moment(text)
    assert reason in caught.value.reason
    assert caught.value.text == text
    assert caught.value.field == "x-as-of"
    assert len(caught.value.message) < 250


def test_head_is_a_moment_only_where_it_is_admitted() -> None:
    assert parse_moment("head", head=True) == AtHead()
    with pytest.raises(MomentInvalid, match=r"RFC 3339 time with a zone \(2026-11-23T10:00:00Z\)$"):
        parse_moment("head")


def test_format() -> None:
    assert format_time(NS_2026 + 5) == "2026-11-23T10:00:00.000000005Z"
    assert format_seconds(NS_2026 // NANOSECONDS) == "2026-11-23T10:00:00Z"
    assert format_time(-1) == "1969-12-31T23:59:59.999999999Z"


@given(st.integers(0, INT64_MAX))
@example(0)
@example(INT64_MAX)
def test_every_time_of_a_log_comes_back_exactly(ns: int) -> None:
    assert parse_time(format_time(ns)) == ns
    assert parse_moment(format_seconds(ns // NANOSECONDS)) == AtTime(ns - ns % NANOSECONDS)


@given(
    st.datetimes(datetime(1970, 1, 2), datetime(2262, 4, 10)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_agrees_with_datetime(local: datetime, offset_minutes: int) -> None:
    time = local.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    microseconds = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert parse_time(time.isoformat()) == microseconds * 1000


@given(
    st.text()
    | st.text("0123456789-+:.TZtz ", max_size=40)
    | st.from_regex(
        r"[0-9]{4}-[0-1][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]*)?", fullmatch=True
    )
)
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    with suppress(MomentInvalid):
        moment = parse_moment(text, head=True)
        assert not isinstance(moment, AtPosition) or str(moment.position) == text
