from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.errors import EnvelopeTooNew, EventMalformed
from eventstore.event import DEPTH_MAX, Event, Position, Version, decode, encode, load

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
name = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
number = st.integers(1, 2**63 - 1)
values = st.recursive(
    text | st.booleans() | st.integers(-(2**63), 2**64 - 1),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(text, inner, max_size=20),
    max_leaves=30,
)


@st.composite
def events(draw: st.DrawFn) -> Event:
    method = draw(st.none() | text)
    key = None if method is None else draw(st.none() | text)
    return Event(
        position=Position(draw(number)),
        stream=draw(name),
        version=Version(draw(number)),
        type=draw(name),
        schema=draw(number),
        at=draw(number),
        operation_id=draw(st.none() | text),
        resource_id=draw(st.none() | text),
        actor=draw(name),
        auth=draw(name),
        request_id=draw(st.none() | text),
        method=method,
        key=key,
        request=None if key is None else draw(st.binary(max_size=300)),
        reason=draw(st.none() | text),
        data=draw(st.dictionaries(text, values, max_size=20)),
    )


@given(events())
def test_every_event_comes_back_from_its_bytes(event: Event) -> None:
    body = encode(event)
    assert decode(body) == event
    assert load(body) == event


@given(events(), st.data())
def test_a_changed_byte_is_refused_or_is_another_canonical_event(event: Event, data: st.DataObject) -> None:
    body = bytearray(encode(event))
    index = data.draw(st.integers(0, len(body) - 1))
    body[index] ^= data.draw(st.integers(1, 255))
    try:
        changed = decode(bytes(body))
    except (EventMalformed, EnvelopeTooNew):
        return
    assert encode(changed) == body
    assert changed != event


@given(st.binary(max_size=200))
def test_decode_raises_nothing_but_malformed(body: bytes) -> None:
    with pytest.raises((EventMalformed, EnvelopeTooNew)):
        decode(body)


@given(events(), st.data())
def test_a_cut_or_longer_body_is_refused(event: Event, data: st.DataObject) -> None:
    body = encode(event)
    length = data.draw(st.integers(0, len(body) - 1))
    for wrong in (body[:length], body + b"\x00"):
        with pytest.raises(EventMalformed):
            decode(wrong)


def test_bytes_of_a_small_event() -> None:
    event = Event(
        position=Position(1),
        stream="log",
        version=Version(1),
        type="T",
        schema=1,
        at=300,
        operation_id=None,
        resource_id=None,
        actor="a",
        auth="dev",
        request_id=None,
        method=None,
        key=None,
        request=None,
        reason=None,
        data={"b": -1, "aa": True, "a": {}},
    )
    assert encode(event) == (
        b"\x8a\xa1v\x01\xa8position\x01\xa6stream\xa3log\xa7version\x01\xa4type\xa1T\xa6schema\x01"
        b"\xa2at\xcd\x01\x2c\xa5actor\xa1a\xa4auth\xa3dev\xa4data\x83\xa1a\x80\xa2aa\xc3\xa1b\xff"
    )


def nested(depth: int) -> dict[str, Any]:
    """A data map of that many levels."""
    data: dict[str, Any] = {}
    for _ in range(depth - 1):
        data = {"k": data}
    return data


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"position": 0}, id="position-zero"),
        pytest.param({"position": True}, id="position-bool"),
        pytest.param({"position": 2**63}, id="position-too-large"),
        pytest.param({"version": 0}, id="version-zero"),
        pytest.param({"schema": 0}, id="schema-zero"),
        pytest.param({"at": 0}, id="at-zero"),
        pytest.param({"at": 1.5}, id="at-float"),
        pytest.param({"stream": ""}, id="stream-empty"),
        pytest.param({"type": b"T"}, id="type-bytes"),
        pytest.param({"actor": None}, id="actor-absent"),
        pytest.param({"reason": 1}, id="reason-int"),
        pytest.param({"reason": "\ud800"}, id="surrogate"),
        pytest.param({"method": "m", "key": "k"}, id="key-without-request"),
        pytest.param({"method": "m", "request": b"r"}, id="request-without-key"),
        pytest.param({"key": "k", "request": b"r"}, id="key-without-method"),
        pytest.param({"method": "m", "key": "k", "request": "r"}, id="request-text"),
        pytest.param({"data": None}, id="data-absent"),
        pytest.param({"data": []}, id="data-list"),
        pytest.param({"data": {"a": None}}, id="nil"),
        pytest.param({"data": {"a": 1.0}}, id="float"),
        pytest.param({"data": {"a": b"x"}}, id="bytes"),
        pytest.param({"data": {"a": (1,)}}, id="tuple"),
        pytest.param({"data": {"a": Text("x")}}, id="subclass-of-text"),
        pytest.param({"data": {Text("a"): 1}}, id="key-of-a-subclass-of-text"),
        pytest.param({"data": {1: "a"}}, id="key-int"),
        pytest.param({"data": {"a": [{b"k": 1}]}}, id="key-bytes-below"),
        pytest.param({"data": {"a": 1, 2: 3}}, id="keys-mixed"),
        pytest.param({"data": {"\udfff": 1}}, id="key-surrogate"),
        pytest.param({"data": {"a": 2**64}}, id="int-too-large"),
        pytest.param({"data": {"a": -(2**63) - 1}}, id="int-too-small"),
        pytest.param({"data": {"a": msgpack.ExtType(1, b"")}}, id="ext"),
        pytest.param({"data": nested(DEPTH_MAX + 1)}, id="too-deep"),
    ],
)
def test_encode_refuses(make_event: Callable[..., Event], fields: dict[str, Any]) -> None:
    with pytest.raises(EventMalformed):
        encode(make_event(3)._replace(**fields))


def test_the_deepest_data(make_event: Callable[..., Event]) -> None:
    event = make_event(3, data=nested(DEPTH_MAX))
    assert decode(encode(event)) == event


def envelope(event: Event) -> dict[str, Any]:
    return {"v": 1, **{key: value for key, value in event._asdict().items() if value is not None}}


def swapped(fields: dict[str, Any]) -> bytes:
    return msgpack.packb(dict(sorted(fields.items())))


def long_integer(fields: dict[str, Any]) -> bytes:
    return msgpack.packb(fields).replace(b"\xa7version\x02", b"\xa7version\xcc\x02")


def long_length(fields: dict[str, Any]) -> bytes:
    return msgpack.packb(fields).replace(b"\xa1s", b"\xd9\x01s")


def long_map(fields: dict[str, Any]) -> bytes:
    body = msgpack.packb(fields)
    assert body[0] == 0x80 | len(fields)
    return b"\xde\x00" + bytes([len(fields)]) + body[1:]


def repeated_key(fields: dict[str, Any]) -> bytes:
    body = msgpack.packb(fields)
    return bytes([body[0] + 1]) + body[1:3] + body[1:]


@pytest.mark.parametrize(
    "bytes_of",
    [
        swapped,
        long_integer,
        long_length,
        long_map,
        repeated_key,
        pytest.param(lambda fields: msgpack.packb(fields) + b"\xc0", id="trailing"),
        pytest.param(lambda fields: msgpack.packb(fields | {"v": 0}), id="v-zero"),
        pytest.param(lambda fields: msgpack.packb(fields | {"v": "2"}), id="v-text"),
        pytest.param(lambda fields: msgpack.packb(fields | {"v": True}), id="v-bool"),
        pytest.param(lambda fields: msgpack.packb(fields | {"v": 1.0}), id="v-float"),
        pytest.param(lambda fields: msgpack.packb(fields | {"extra": 1}), id="unknown-key"),
        pytest.param(lambda fields: msgpack.packb({**fields, "data": {"b": 1, "a": 2}}), id="unsorted-data"),
        pytest.param(lambda fields: msgpack.packb({**fields, "data": {"a": None}}), id="nil-in-data"),
        pytest.param(lambda fields: msgpack.packb({**fields, "data": {"a": b""}}), id="bin-in-data"),
        pytest.param(
            lambda fields: msgpack.packb({**fields, "data": {"a": msgpack.Timestamp(1)}}), id="timestamp"
        ),
        pytest.param(lambda fields: msgpack.packb(list(fields.items())), id="array"),
        pytest.param(lambda fields: b"\x81" * 100_000, id="nested-maps"),
        pytest.param(lambda fields: b"\x91" * 100_000, id="nested-arrays"),
        pytest.param(lambda fields: b"\xdd\xff\xff\xff\xff", id="huge-array"),
        pytest.param(
            lambda fields: msgpack.packb(fields).replace(b"someone", b"some\xed\xa0\x80"), id="utf-8"
        ),
    ],
)
def test_decode_refuses(
    make_event: Callable[..., Event], bytes_of: Callable[[dict[str, Any]], bytes]
) -> None:
    fields = envelope(make_event(3))
    assert decode(msgpack.packb(fields)) == make_event(3)
    body = bytes_of(fields)
    assert body != msgpack.packb(fields)
    with pytest.raises(EventMalformed):
        decode(body)


@pytest.mark.parametrize(
    "key", ["v", "position", "stream", "version", "type", "schema", "at", "actor", "auth", "data"]
)
def test_decode_names_the_missing_key_and_the_position(make_event: Callable[..., Event], key: str) -> None:
    fields = envelope(make_event(3))
    del fields[key]
    with pytest.raises(EventMalformed) as refused:
        decode(msgpack.packb(fields))
    assert key in str(refused.value)
    assert refused.value.position == (None if key == "position" else 3)


@pytest.mark.parametrize("read", [load, decode])
def test_an_envelope_of_newer_software_is_told_apart(
    make_event: Callable[..., Event], read: Callable[[bytes], Event]
) -> None:
    with pytest.raises(EnvelopeTooNew) as refused:
        read(msgpack.packb(envelope(make_event(3)) | {"v": 2}))
    assert refused.value.args == (3, 2, 1)
    with pytest.raises(EnvelopeTooNew) as refused:
        read(msgpack.packb({"v": 7, "another": "layout"}))
    assert refused.value.args == (None, 7, 1)


@pytest.mark.parametrize("v", [0, -1, True, 1.0, "1", b"1", [1]])
def test_load_refuses_an_unknown_version_with_the_position(
    make_event: Callable[..., Event], v: object
) -> None:
    with pytest.raises(EventMalformed) as refused:
        load(msgpack.packb(envelope(make_event(3)) | {"v": v}))
    assert refused.value.position == 3


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x80", b"\x81\xa1v\x01", b"\x93\x01\x02\x03"])
def test_load_refuses_what_is_no_event(body: bytes) -> None:
    with pytest.raises(EventMalformed):
        load(body)
