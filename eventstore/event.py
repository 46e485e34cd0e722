"""The event and its canonical bytes: what is stored, hashed and exported.

The bytes are a msgpack map, its keys in the order of the fields of `Event` after a leading `v`, absent ones
left out; the keys of every map below it sorted by their UTF-8 bytes; every number and length in its shortest
form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, NewType, TypeAlias, cast

import msgpack

from eventstore.errors import EnvelopeTooNew, EventMalformed, EventStoreError
from eventstore.packing import packer

Position = NewType("Position", int)
Version = NewType("Version", int)

Value: TypeAlias = "str | int | bool | list[Value] | dict[str, Value]"
Data: TypeAlias = dict[str, Value]

ENVELOPE_VERSION: Final = 1

# Room for any message of the API, and far from what a recursive reader in another language survives.
DEPTH_MAX: Final = 32

INTEGER_MAX: Final = 2**63 - 1


class Event(NamedTuple):
    """One immutable fact.

    A named tuple and not a frozen dataclass: creating one is several times cheaper, and a rebuild creates one
    for every event there is. The fields stand in the order of the canonical bytes; None means left out.
    """

    position: Position
    stream: str
    version: Version
    type: str
    schema: int
    at: int  # Nanoseconds since the Unix epoch, UTC.
    operation_id: str | None
    resource_id: str | None
    actor: str
    auth: str
    request_id: str | None
    method: str | None
    key: str | None
    request: bytes | None
    reason: str | None
    data: Data


_REQUIRED = ("v", "position", "stream", "version", "type", "schema", "at", "actor", "auth", "data")
_FIELDS = Event._fields
_KEYS = frozenset(("v", *_FIELDS))
_SCALARS = frozenset((str, int, bool))

_pack = packer(strict_types=True)
_unpack: Callable[..., Any] = msgpack.unpackb
_new = tuple.__new__


def encode(event: Event) -> bytes:
    """The canonical bytes of an event.

    Raises EventMalformed for a value of a kind, range or depth that the canonical bytes do not have.
    Inverse: decode.
    """
    fault = _envelope_fault(event)
    if fault is not None:
        raise _malformed(event, fault)
    try:
        return _pack(_envelope(event))
    except (ValueError, TypeError, OverflowError) as error:
        raise _malformed(event, _pack_fault(error)) from error


def decode(body: bytes) -> Event:
    """The event of these bytes, which may come from anywhere.

    Raises EventMalformed for all but the bytes that encode gives for the event returned: for another order of
    keys, a repeated or unknown key, a longer form of a number or length, trailing bytes, another `v`; and
    EnvelopeTooNew for a later `v`.
    """
    try:
        fields = _unpack(body, strict_map_key=True)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise EventMalformed(None, f"these bytes are not one msgpack value: {error}") from error
    event = _event_of(fields)
    again = encode(event)
    if again != body:
        raise _malformed(event, f"the bytes are not canonical from byte {_first_difference(again, body)} on")
    return event


def load(body: bytes) -> Event:
    """The event of bytes whose leaf hash was just checked: the fast path of every read.

    It trusts that encode once gave these bytes, and checks only `v`. Raises EventMalformed, EnvelopeTooNew.
    """
    try:
        m = _unpack(body)
        get = m.get
        v = m["v"]
        if v != ENVELOPE_VERSION or type(v) is not int:
            raise _unknown_version(m)
        return _new(
            Event,
            (
                m["position"],
                m["stream"],
                m["version"],
                m["type"],
                m["schema"],
                m["at"],
                get("operation_id"),
                get("resource_id"),
                m["actor"],
                m["auth"],
                get("request_id"),
                get("method"),
                get("key"),
                get("request"),
                get("reason"),
                m["data"],
            ),
        )
    except (ValueError, TypeError, AttributeError, KeyError, msgpack.UnpackException) as error:
        raise EventMalformed(None, f"these bytes are no event: {error!r}") from error


def canonical(data: Mapping[str, Value]) -> Data:
    """The same data with the keys of every map in canonical order, as decode would give it back.

    Folding what was just decided then gives the same state as replaying it. Raises EventMalformed.
    """
    try:
        return cast("Data", _canonical(dict(data), 1))
    except ValueError as error:
        raise EventMalformed(None, str(error)) from error


def _envelope(event: Event) -> dict[str, Any]:
    """The map that the canonical bytes are, in their order."""
    envelope: dict[str, Any] = {"v": ENVELOPE_VERSION}
    for name, value in zip(_FIELDS, event, strict=True):
        if value is not None:
            envelope[name] = value
    envelope["data"] = _canonical(event.data, 1)
    return envelope


def _canonical(value: Any, depth: int) -> Any:
    """The same value with the keys of every map sorted.

    Raises ValueError for a kind or depth that the bytes do not have. Sorting by code point is sorting by
    UTF-8 bytes, for every text that has UTF-8 bytes at all. Loops and not comprehensions, which are calls.
    """
    if depth > DEPTH_MAX:
        raise ValueError(f"data is nested deeper than {DEPTH_MAX} levels")
    if type(value) is dict:
        fields = {}
        for key in _sorted_keys(value):
            item = value[key]
            fields[key] = item if type(item) in _SCALARS else _canonical(item, depth + 1)
        return fields
    if type(value) is list:
        for item in value:
            if type(item) not in _SCALARS:
                return [item if type(item) in _SCALARS else _canonical(item, depth + 1) for item in value]
        return value
    raise ValueError(
        f"data holds a {type(value).__name__}, it may hold text, integers, booleans, lists and maps"
    )


def _sorted_keys(value: dict[Any, Any]) -> list[str]:
    """The keys of a map, in order. Raises ValueError for one that is not text."""
    try:
        keys = sorted(value)
        "".join(keys)  # The fastest test that all are text.
    except TypeError as error:
        raise ValueError("a map has a key that is not text") from error
    return keys


def _envelope_fault(event: Event) -> str | None:
    """The first rule of the envelope that an event breaks, or None.

    Unrolled, and on local names: it runs for every event that is written.
    """
    (
        position,
        stream,
        version,
        type_,
        schema,
        at,
        operation_id,
        resource_id,
        actor,
        auth,
        request_id,
        method,
        key,
        request,
        reason,
        data,
    ) = event
    if not (type(position) is int and type(version) is int and type(schema) is int and type(at) is int):
        return "position, version, schema and at must be integers"
    if not (
        0 < position <= INTEGER_MAX
        and 0 < version <= INTEGER_MAX
        and 0 < schema <= INTEGER_MAX
        and 0 < at <= INTEGER_MAX
    ):
        return f"position {position}, version {version}, schema {schema}, at {at}: each from 1 to 2**63 - 1"
    if not (type(stream) is str and type(type_) is str and type(actor) is str and type(auth) is str):
        return "stream, type, actor and auth must be text"
    if not (stream and type_ and actor and auth):
        return f"stream {stream!r}, type {type_!r}, actor {actor!r} and auth {auth!r} must not be empty"
    for text in (operation_id, resource_id, request_id, method, key, reason):
        if text is not None and type(text) is not str:
            return (
                "operation_id, resource_id, request_id, method, key and reason must be text where they apply"
            )
    if request is not None and type(request) is not bytes:
        return "request must be bytes where it applies"
    if (key is None) is not (request is None):
        return "key and request must both be there, or neither"
    if key is not None and method is None:
        return "key and request need method beside them"
    if type(data) is not dict:
        return "data must be a map"
    return None


def _event_of(fields: Any) -> Event:
    """The event of an unpacked envelope, its values still unchecked."""
    if type(fields) is not dict:
        raise EventMalformed(None, f"the envelope is of type {type(fields).__name__}, it must be a map")
    if type(fields.get("v")) is not int or fields["v"] != ENVELOPE_VERSION:
        raise _unknown_version(fields)
    position = _position_of(fields)
    for key in fields:
        if key not in _KEYS:
            raise EventMalformed(position, f"unknown key {key!r} in the envelope")
        if fields[key] is None:
            raise EventMalformed(position, f"{key} is nil: what does not apply must be left out")
    for key in _REQUIRED:
        if key not in fields:
            raise EventMalformed(position, f"{key} is missing")
    return Event._make(fields.get(name) for name in _FIELDS)


def _position_of(fields: dict[Any, Any]) -> int | None:
    position = fields.get("position")
    return position if type(position) is int else None


def _unknown_version(fields: dict[Any, Any]) -> EventStoreError:
    found = fields.get("v")
    if type(found) is int and found > ENVELOPE_VERSION:
        return EnvelopeTooNew(_position_of(fields), found, ENVELOPE_VERSION)
    return EventMalformed(
        _position_of(fields), f"the envelope has v = {found!r}, this software reads v = {ENVELOPE_VERSION}"
    )


def _malformed(event: Event, reason: str) -> EventMalformed:
    return EventMalformed(event.position if type(event.position) is int else None, reason)


def _pack_fault(error: Exception) -> str:
    match error:
        case UnicodeEncodeError():
            return f"text has no UTF-8 form: {error.reason}"
        case OverflowError():
            return f"an integer must lie between -2**63 and 2**64 - 1: {error}"
        case _:
            return str(error)


def _first_difference(left: bytes, right: bytes) -> int:
    for index, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return index
    return min(len(left), len(right))
