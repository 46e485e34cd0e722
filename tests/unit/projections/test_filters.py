import sqlite3
from collections.abc import Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projections.filters import (
    STATUSES,
    Condition,
    Filter,
    FilterField,
    FilterInvalid,
    Order,
    OrderInvalid,
    TextField,
    Value,
    equality,
    matches,
    parse_filter,
    parse_order,
    to_sql,
)

SECONDS_2026 = 1_795_428_000  # 2026-11-23T10:00:00Z


def one(field: FilterField, *values: Value, negated: bool = False) -> Filter:
    return (Condition(field, negated, values),)


@pytest.mark.parametrize(
    ("text", "conditions"),
    [
        pytest.param("", (), id="empty"),
        pytest.param(" \t\r\n ", (), id="white-space"),
        pytest.param('name = "web"', one("name", "web"), id="equal"),
        pytest.param('name="web"', one("name", "web"), id="no-white-space"),
        pytest.param(' name\t=\n"web" ', one("name", "web"), id="much-white-space"),
        pytest.param("name = 'web'", one("name", "web"), id="single-quotes"),
        pytest.param('name != "web"', one("name", "web", negated=True), id="not-equal"),
        pytest.param('name = ""', one("name", ""), id="empty-value"),
        pytest.param('name IN ("a","b")', one("name", "a", "b"), id="in"),
        pytest.param("name in( 'a' , \"b\" )", one("name", "a", "b"), id="in-lower-case"),
        pytest.param('name In("a")', one("name", "a"), id="in-of-one"),
        pytest.param('name NOT IN ("a")', one("name", "a", negated=True), id="not-in"),
        pytest.param('name nOt\n iN ("a","b")', one("name", "a", "b", negated=True), id="not-in-any-case"),
        pytest.param('name IN ("b","a","b")', one("name", "b", "a"), id="repeats-dropped-order-kept"),
        pytest.param(r'name = "a\"b\'c\\d"', one("name", "a\"b'c\\d"), id="escapes-in-double"),
        pytest.param(r"name = 'a\"b\'c\\d'", one("name", "a\"b'c\\d"), id="escapes-in-single"),
        pytest.param('name = "it\'s"', one("name", "it's"), id="the-other-quote-needs-none"),
        pytest.param('name = "a AND b = (c), "', one("name", "a AND b = (c), "), id="words-in-a-value"),
        pytest.param('name = "имя\x00"', one("name", "имя\x00"), id="any-character-in-a-value"),
        pytest.param('id = "fd8"', one("id", "fd8"), id="id"),
        pytest.param('family = "x"', one("family", "x"), id="family"),
        pytest.param('status = "READY"', one("status", "READY"), id="status"),
        pytest.param('status IN ("ready","Creating")', one("status", "READY", "CREATING"), id="status-case"),
        pytest.param('created_at = "2026-11-23T10:00:00Z"', one("created_at", SECONDS_2026), id="created-at"),
        pytest.param(
            'createdAt = "2026-11-23T13:00:00.000+03:00"', one("created_at", SECONDS_2026), id="camel"
        ),
        pytest.param(
            'created_at = "2026-11-23T10:00:00.5Z"', one("created_at"), id="fraction-equals-nothing"
        ),
        pytest.param(
            'created_at NOT IN ("2026-11-23T10:00:00.5Z", "2026-11-23T10:00:00Z")',
            one("created_at", SECONDS_2026, negated=True),
            id="fraction-in-a-list",
        ),
        pytest.param(
            "name != 'a' and family = 'x' AND name!='b'",
            one("name", "a", negated=True) + one("family", "x") + one("name", "b", negated=True),
            id="three-conditions",
        ),
        pytest.param('name="a"AND id="b"', one("name", "a") + one("id", "b"), id="quote-ends-a-value"),
    ],
)
def test_filter(text: str, conditions: Filter) -> None:
    assert parse_filter(text) == conditions


@pytest.mark.parametrize(
    ("text", "position_in_text", "reason"),
    [
        pytest.param("name", 4, "the filter ends where an operator (=, !=, IN or NOT IN)", id="field-alone"),
        pytest.param("name =", 6, "the filter ends where a value in double or single quotes", id="no-value"),
        pytest.param("name = web", 7, "found 'web' where a value in double", id="unquoted"),
        pytest.param("name = 5", 7, "found '5' where a value", id="number"),
        pytest.param("name = “web”", 7, "found '“web”' where a value", id="typographic-quotes"),
        pytest.param('name = ("web")', 7, "found '(\"web\")' where a value", id="list-for-equal"),
        pytest.param('name == "web"', 5, "found '==' where an operator", id="two-equals"),
        pytest.param('name > "web"', 5, "found '>' where an operator", id="greater"),
        pytest.param('name LIKE "web"', 5, "found 'LIKE' where an operator", id="like"),
        pytest.param('name "web"', 5, "where an operator", id="no-operator"),
        pytest.param('name NOT = "web"', 9, "found '=' where IN", id="not-equal-in-words"),
        pytest.param('name NOTIN ("web")', 5, "found 'NOTIN' where an operator", id="notin"),
        pytest.param("name NOT", 8, "the filter ends where IN", id="not-alone"),
        pytest.param('nameIN ("web")', 0, "found 'nameIN' where a field", id="field-and-word-together"),
        pytest.param('Name = "web"', 0, "(id, name, family, status or created_at)", id="field-in-capitals"),
        pytest.param('folder_id = "x"', 0, "found 'folder_id' where a field", id="unknown-field"),
        pytest.param('labels.a = "x"', 0, "found 'labels' where a field", id="label"),
        pytest.param('имя = "x"', 0, "found 'имя' where a field", id="field-beyond-ascii"),
        pytest.param('= "web"', 0, "found '=' where a field", id="no-field"),
        pytest.param('"web" = name', 0, "found '\"web\"' where a field", id="value-first"),
        pytest.param("name IN", 7, "the filter ends where a list in parentheses", id="in-alone"),
        pytest.param('name IN "a"', 8, "where a list in parentheses", id="in-without-list"),
        pytest.param("name IN ()", 9, "found ')' where a value", id="empty-list"),
        pytest.param('name IN ("a",)', 13, "found ')' where a value", id="comma-behind"),
        pytest.param('name IN (,"a")', 9, "where a value", id="comma-before"),
        pytest.param('name IN ("a" "b")', 13, "where a comma or a closing parenthesis", id="no-comma"),
        pytest.param('name IN ("a"', 12, "the filter ends where a comma or a closing", id="list-not-closed"),
        pytest.param('name IN ("a",', 13, "the filter ends where a value", id="list-ends-in-comma"),
        pytest.param('name IN (("a"))', 9, "where a value", id="list-in-a-list"),
        pytest.param("name IN (a)", 9, "found 'a' where a value", id="unquoted-in-a-list"),
        pytest.param('name = "web', 7, 'has no closing "', id="unterminated"),
        pytest.param("name = \"web'", 7, 'has no closing "', id="closed-by-the-other-quote"),
        pytest.param('name = "web\\"', 7, 'has no closing "', id="closing-quote-escaped"),
        pytest.param('name = "web\\', 7, 'has no closing "', id="ends-in-backslash"),
        pytest.param(r'name = "a\nb"', 9, r"is no escape; \" \' and \\ are", id="other-escape"),
        pytest.param('name = "a" "b"', 11, "where AND or the end of the filter", id="garbage-behind"),
        pytest.param('name = "a",', 10, "found ',' where AND", id="comma-at-the-end"),
        pytest.param('name = "a";', 10, "found ';' where AND", id="semicolon"),
        pytest.param('name = "a" OR name = "b"', 11, "found 'OR' where AND", id="or"),
        pytest.param('name = "a" && name = "b"', 11, "found '&&' where AND", id="ampersands"),
        pytest.param('name = "a" AND', 14, "the filter ends where a field", id="and-at-the-end"),
        pytest.param('name = "a" AND AND id = "b"', 15, "found 'AND' where a field", id="two-ands"),
        pytest.param('AND name = "a"', 0, "found 'AND' where a field", id="and-first"),
        pytest.param('name = "a" ANDid = "b"', 11, "found 'ANDid' where AND", id="and-and-field-together"),
        pytest.param('(name = "a")', 0, "where a field", id="parentheses"),
        pytest.param('NOT name = "a"', 0, "found 'NOT' where a field", id="not-first"),
        pytest.param('name\u00a0= "a"', 4, "where an operator", id="no-break-space"),
        pytest.param('status = "BAD"', 9, "CREATING, READY, ERROR, DELETING", id="unknown-status"),
        pytest.param('status = ""', 9, "'' is no status", id="empty-status"),
        pytest.param('status = "STATUS_UNSPECIFIED"', 9, "is no status", id="unspecified-status"),
        pytest.param('status = "CREATıNG"', 9, "is no status", id="status-with-dotless-i"),
        pytest.param('status IN ("READY", "BAD")', 20, "'BAD' is no status", id="second-status"),
        pytest.param('created_at = "2026-11-23"', 13, "no created_at: a time is written", id="date-alone"),
        pytest.param('created_at = "2026-11-23T10:00:00"', 13, "has no zone", id="time-without-zone"),
        pytest.param('created_at = "1234"', 13, "no created_at", id="position-for-a-time"),
        pytest.param('name = "\ud800"', 8, "send valid UTF-8", id="lone-surrogate"),
    ],
)
def test_no_filter(text: str, position_in_text: int, reason: str) -> None:
    with pytest.raises(FilterInvalid) as caught:
        parse_filter(text)
    assert reason in caught.value.reason
    assert caught.value.position_in_text == position_in_text
    assert caught.value.field == "filter"
    assert caught.value.message.startswith(f"filter, character {position_in_text + 1}: ")


@pytest.mark.parametrize(
    "text", ["x" * 100_000, "name = " + "x" * 100_000, 'status = "' + "x" * 100_000 + '"']
)
def test_a_message_stays_short(text: str) -> None:
    with pytest.raises(FilterInvalid) as caught:
        parse_filter(text)
    assert len(caught.value.message) < 250


@pytest.mark.parametrize(
    ("text", "sql", "parameters"),
    [
        pytest.param("", "TRUE", {}, id="no-condition"),
        pytest.param("name = 'a'", "v.name = :f0", {"f0": "a"}, id="equal"),
        pytest.param("name IN ('a')", "v.name = :f0", {"f0": "a"}, id="in-of-one"),
        pytest.param("name NOT IN ('a')", "v.name != :f0", {"f0": "a"}, id="not-in-of-one"),
        pytest.param(
            "name = 'a' AND family NOT IN ('x', 'y') AND createdAt = '2026-11-23T10:00:00Z'",
            "v.name = :f0 AND v.family NOT IN (:f1, :f2) AND v.created_at = :f3",
            {"f0": "a", "f1": "x", "f2": "y", "f3": SECONDS_2026},
            id="three-conditions",
        ),
        pytest.param("created_at = '2026-11-23T10:00:00.5Z'", "FALSE", {}, id="equals-nothing"),
        pytest.param("created_at != '2026-11-23T10:00:00.5Z'", "TRUE", {}, id="differs-from-all"),
    ],
)
def test_sql(text: str, sql: str, parameters: dict[str, Value]) -> None:
    assert to_sql(parse_filter(text), table="v") == (sql, parameters)


def test_a_table_is_a_plain_name() -> None:
    with pytest.raises(AssertionError):
        to_sql((), table="v; DROP TABLE image")


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        pytest.param("name = 'a'", "name", "a", id="equal"),
        pytest.param("name = ''", "name", "", id="empty"),
        pytest.param("name IN ('a', 'a')", "name", "a", id="in-of-one"),
        pytest.param("id = 'x' AND name = 'a' AND name = 'b'", "name", "a", id="the-first"),
        pytest.param("name IN ('a', 'b')", "name", None, id="in-of-two"),
        pytest.param("name != 'a'", "name", None, id="not-equal"),
        pytest.param("name = 'a'", "family", None, id="another-field"),
        pytest.param("", "name", None, id="no-condition"),
    ],
)
def test_equality(text: str, field: TextField, value: str | None) -> None:
    assert equality(parse_filter(text), field) == value


TEXTS = st.sampled_from(["", "a", "b", "A", "web", "'", '"', "\\", "\x00", "a\x00b", "имя", "%"]) | st.text(
    max_size=5
)
TIMES = st.sampled_from([0, 1, SECONDS_2026, SECONDS_2026 + 1])
ROW = st.fixed_dictionaries(
    {
        "id": TEXTS,
        "name": TEXTS,
        "family": TEXTS,
        "status": st.sampled_from(STATUSES),
        "created_at": TIMES,
    }
)


def values_of(field: FilterField) -> st.SearchStrategy[Value]:
    match field:
        case "status":
            return st.sampled_from(STATUSES)
        case "created_at":
            return TIMES
        case _:
            return TEXTS


FIELDS: tuple[FilterField, ...] = ("id", "name", "family", "status", "created_at")
CONDITION = st.sampled_from(FIELDS).flatmap(
    lambda field: st.builds(
        Condition,
        st.just(field),
        st.booleans(),
        st.lists(values_of(field), max_size=4, unique=True).map(tuple),
    )
)
CONDITIONS = st.lists(CONDITION, max_size=4).map(tuple)


@given(CONDITIONS, st.lists(ROW, min_size=1, max_size=6))
def test_sql_and_python_mean_the_same(conditions: Filter, rows: list[Mapping[str, Value]]) -> None:
    database = sqlite3.connect(":memory:")
    try:
        database.execute(
            "CREATE TABLE image (number INTEGER PRIMARY KEY, id TEXT NOT NULL, name TEXT NOT NULL,"
            " family TEXT NOT NULL, status TEXT NOT NULL, created_at INTEGER NOT NULL) STRICT"
        )
        database.executemany(
            "INSERT INTO image VALUES (:number, :id, :name, :family, :status, :created_at)",
            [{"number": number, **row} for number, row in enumerate(rows)],
        )
        sql, parameters = to_sql(conditions, table="v")
        found = database.execute(f"SELECT number FROM image AS v WHERE {sql} ORDER BY number", parameters)
        numbers = [number for (number,) in found]
    finally:
        database.close()
    assert numbers == [number for number, row in enumerate(rows) if matches(conditions, row)]


def test_the_longest_filter_runs() -> None:
    """1000 characters hold fewer conditions and values than SQLite's limits on depth and parameters."""
    row: dict[str, Value] = {"id": "", "name": "", "family": "", "status": "READY", "created_at": 0}
    longest = (
        "AND ".join(['id=""'] * 111),
        "id in(" + ",".join(f"'{chr(0x4E00 + number)}'" for number in range(248)) + ")",
    )
    for text in longest:
        assert 950 < len(text) <= 1000
        sql, parameters = to_sql(parse_filter(text), table="v")
        assert not any(character in sql for character in "'\"")
        database = sqlite3.connect(":memory:")
        try:
            found = database.execute(f"SELECT {sql} FROM (SELECT '' AS id) AS v", parameters).fetchone()
        finally:
            database.close()
        assert found == (matches(parse_filter(text), row),)


def written(condition: Condition) -> str:
    """A condition as text; what parse_filter undoes."""
    quoted = []
    for value in condition.values:
        text = f"1970-01-01T00:00:{value:02d}Z" if isinstance(value, int) else value
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        quoted.append(f'"{escaped}"')
    return f"{condition.field} {'NOT ' if condition.negated else ''}IN ({', '.join(quoted)})"


@given(CONDITIONS)
def test_written_conditions_come_back(conditions: Filter) -> None:
    writable = tuple(
        condition
        for condition in conditions
        if condition.values and not any(isinstance(value, int) and value > 59 for value in condition.values)
    )
    assert parse_filter(" AND ".join(map(written, writable))) == writable


PIECES = st.sampled_from(
    [
        "name",
        "id",
        "status",
        "createdAt",
        " ",
        "=",
        "!=",
        "IN",
        "not",
        "AND",
        "(",
        ")",
        ",",
        '"',
        "'",
        "\\",
        '"a"',
    ]
)


@given(st.text() | st.lists(PIECES, max_size=20).map(" ".join) | st.lists(PIECES, max_size=20).map("".join))
def test_any_text_is_a_filter_or_refused(text: str) -> None:
    with suppress(FilterInvalid):
        to_sql(parse_filter(text), table="v")


@pytest.mark.parametrize(
    ("text", "order"),
    [
        pytest.param("", Order("id", descending=False), id="empty"),
        pytest.param(" \t ", Order("id", descending=False), id="white-space"),
        pytest.param("id", Order("id", descending=False), id="id"),
        pytest.param("id desc", Order("id", descending=True), id="id-desc"),
        pytest.param("name", Order("name", descending=False), id="name"),
        pytest.param(" name\tASC ", Order("name", descending=False), id="name-asc"),
        pytest.param("createdAt desc", Order("created_at", descending=True), id="created-at-camel"),
        pytest.param("created_at  DeSc", Order("created_at", descending=True), id="created-at-snake"),
    ],
)
def test_order(text: str, order: Order) -> None:
    assert parse_order(text) == order


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        pytest.param("id,name", "one column", id="two-columns"),
        pytest.param("id,", "one column", id="comma-behind"),
        pytest.param(",", "one column", id="comma"),
        pytest.param("family", "no order by 'family'", id="unknown-column"),
        pytest.param("Name", "no order by 'Name'", id="column-in-capitals"),
        pytest.param("desc", "no order by 'desc'", id="direction-alone"),
        pytest.param("-id", "no order by '-id'", id="minus"),
        pytest.param("id descending", "'descending' is no direction", id="unknown-direction"),
        pytest.param("id name", "'name' is no direction", id="two-columns-without-comma"),
        pytest.param("id desc nulls", "'nulls' stands behind", id="third-word"),
        pytest.param("id\u00a0desc", "no order by", id="no-break-space"),
    ],
)
def test_no_order(text: str, reason: str) -> None:
    with pytest.raises(OrderInvalid) as caught:
        parse_order(text)
    assert reason in caught.value.reason
    assert caught.value.field == "order_by"
    assert caught.value.message.endswith(
        "write one of id, name or created_at, and asc or desc after it if wanted"
    )


@given(
    st.text() | st.lists(st.sampled_from(["id", "name", "asc", "DESC", ",", " "]), max_size=5).map(" ".join)
)
def test_any_text_is_an_order_or_refused(text: str) -> None:
    with suppress(OrderInvalid):
        parse_order(text)
