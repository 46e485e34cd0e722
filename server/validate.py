"""Validates requests by the rules in their descriptors (imageledger/v1/rules.proto), and maps them to plain
values.

The rules of a message type are compiled once, to closures that only compare; a description is made where
something is wrong. No field is named here: a new field is a line in a .proto file.
"""

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor, OneofDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from eventstore.event import Value
from server.gen.google.protobuf import descriptor_pb2, field_mask_pb2
from server.gen.imageledger.v1 import rules_pb2

AnyMessage = TypeVar("AnyMessage", bound=Message)

# A refusal travels in gRPC trailers, twice (text and details), and clients stop at 8 KiB of them.
VIOLATIONS_MAX = 16
QUOTED_MAX = 64


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule. `field` is a path as in google.rpc.BadRequest: `access_bindings[3].role_id`."""

    field: str
    description: str


class RequestInvalid(Exception):
    """A request breaks rules: the first of them in `violations`; `omitted` counts the others."""

    def __init__(self, violations: tuple[Violation, ...], *, omitted: int = 0) -> None:
        super().__init__(violations)
        self.violations = violations
        self.omitted = omitted

    def __str__(self) -> str:
        lines = [f"{_for_people(v.field)}: {v.description}" for v in self.violations]
        more = [f"and {self.omitted} more"] if self.omitted else []
        return f"Request validation error: {'; '.join(lines + more)}"


class RequestUnreadable(RequestInvalid):
    """A request's bytes are no message of the type its method takes."""

    def __init__(self, message_type: str) -> None:
        super().__init__(())
        self.message_type = message_type

    def __str__(self) -> str:
        return f"Request validation error: the bytes are no {self.message_type} message"


def parse(message_class: type[AnyMessage], raw: bytes) -> AnyMessage:
    """The valid message in `raw`. Raises RequestUnreadable, RequestInvalid."""
    try:
        message = message_class.FromString(raw)
    except DecodeError:
        raise RequestUnreadable(message_class.DESCRIPTOR.full_name) from None
    check(message, raw)
    return message


def check(message: Message, raw: bytes) -> None:
    """Nothing, if the message that `raw` was read as keeps all rules of its type. Raises RequestInvalid."""
    found: list[Violation] = []
    plan = _plan(type(message))
    for asked in plan.fields:
        asked(message, "", found)
    for asked_once in plan.oneofs:
        asked_once(message, raw, found)
    if found:
        first = tuple(found[:VIOLATIONS_MAX])
        raise RequestInvalid(first, omitted=len(found) - len(first))


def fields(message: Message, *, keep: Collection[str] = ()) -> dict[str, Value]:
    """The message's fields as an event's `data` has them: defaults left out, except for fields in `keep`.

    Enums by their API name, set messages as maps even if empty, a FieldMask as its sorted paths without
    repeats. `keep` names fields of the message itself, not of the messages in it.
    """
    mappers = _plan(type(message)).mappers
    mapped = {field.name: mappers[field.name](value) for field, value in message.ListFields()}
    # A list is empty here only if it comes of a mask without paths, which says no more than none.
    made = {name: value for name, value in mapped.items() if value != []}
    for name in keep:
        if name not in made:
            made[name] = _default(message, name)
    return made


# Appends to the list what the first argument breaks. Of a value: its path. Of a message: the path of its
# fields up to their names, "" or "subject.".
Check: TypeAlias = Callable[[Any, str, list[Violation]], None]
OneofCheck: TypeAlias = Callable[[Message, bytes, list[Violation]], None]
Mapper: TypeAlias = Callable[[Any], Value]


class _Plan(NamedTuple):
    fields: tuple[Check, ...]
    oneofs: tuple[OneofCheck, ...]
    mappers: dict[str, Mapper]


_plans: dict[type[Message], _Plan] = {}


def _plan(message_class: type[Message]) -> _Plan:
    return _plans.get(message_class) or _plans.setdefault(message_class, _compiled(message_class))


def _compiled(message_class: type[Message]) -> _Plan:
    descriptor = cast(Descriptor, message_class.DESCRIPTOR)
    checks = (_field_check(field) for field in descriptor.fields)
    oneofs = (_oneof_check(oneof) for oneof in descriptor.oneofs if _exactly_one(oneof))
    mappers = {field.name: _mapper(field) for field in descriptor.fields}
    return _Plan(tuple(made for made in checks if made), tuple(oneofs), mappers)


def _message_class(field: FieldDescriptor) -> type[Message]:
    return GetMessageClass(cast(Descriptor, field.message_type))


def _rule(field: FieldDescriptor) -> rules_pb2.Rule:
    # The runtime reads options with the default pool, which does not know our extension: read them again.
    options = descriptor_pb2.FieldOptions.FromString(field.GetOptions().SerializeToString())
    rule: rules_pb2.Rule = options.Extensions[rules_pb2.rule]
    return rule


def _exactly_one(oneof: OneofDescriptor) -> bool:
    options = descriptor_pb2.OneofOptions.FromString(oneof.GetOptions().SerializeToString())
    return bool(options.Extensions[rules_pb2.oneof_rule].exactly_one)


def _field_check(field: FieldDescriptor) -> Check | None:
    rule = _rule(field)
    if _is_map(field):
        return _map_check(field, rule)
    if field.is_repeated:
        return _items_check(field, rule)
    if field.has_presence:
        return _set_check(field, rule)
    asked, name = _value_check(field, rule), field.name
    if asked is None:
        return None

    def run(message: Any, prefix: str, found: list[Violation]) -> None:
        asked(getattr(message, name), prefix + name, found)

    return run


def _set_check(field: FieldDescriptor, rule: rules_pb2.Rule) -> Check | None:
    """Of a message or a oneof's member: its rules are asked only where it is set."""
    asked, name = _value_check(field, rule), field.name
    required = rule.required and field.containing_oneof is None
    if asked is None and not required:
        return None

    def run(message: Any, prefix: str, found: list[Violation]) -> None:
        if message.HasField(name):
            if asked is not None:
                asked(getattr(message, name), prefix + name, found)
        elif required:
            found.append(Violation(prefix + name, "is required"))

    return run


def _items_check(field: FieldDescriptor, rule: rules_pb2.Rule) -> Check | None:
    count, asked, name = _count_check(rule), _value_check(field, rule.item), field.name
    if count is None and asked is None:
        return None

    def run(message: Any, prefix: str, found: list[Violation]) -> None:
        items = getattr(message, name)
        if count is not None:
            count(len(items), prefix + name, found)
        if asked is not None:
            for index, item in enumerate(items):
                asked(item, f"{prefix}{name}[{index}]", found)

    return run


def _map_check(field: FieldDescriptor, rule: rules_pb2.Rule) -> Check | None:
    key, value = _entry(field)
    count, name = _count_check(rule), field.name
    sides = ((0, "key", _value_check(key, rule.map_key)), (1, "value", _value_check(value, rule.map_value)))
    asked = [(side, word, made) for side, word, made in sides if made]
    if count is None and not asked:
        return None

    def run(message: Any, prefix: str, found: list[Violation]) -> None:
        entries = getattr(message, name)
        if count is not None:
            count(len(entries), prefix + name, found)
        broken: list[Violation] = []
        for pair in entries.items():
            for side, word, pair_check in asked:
                of_pair: list[Violation] = []
                pair_check(pair[side], "", of_pair)
                path = f"{prefix}{name}[{_quoted(pair[0])}]" if of_pair else ""
                broken += [Violation(path, f"the {word} {v.description}") for v in of_pair]
        # A map has no order of its own; an answer should.
        found += sorted(broken, key=lambda v: v.field)

    return run


def _count_check(rule: rules_pb2.Rule) -> Check | None:
    least = rule.items_min
    most = rule.items_max if rule.HasField("items_max") else sys.maxsize
    if least == 0 and most == sys.maxsize:
        return None

    def run(count: int, path: str, found: list[Violation]) -> None:
        if not least <= count <= most:
            found.append(Violation(path, f"must have {_span(least, most)} items, but has {count}"))

    return run


def _value_check(field: FieldDescriptor, rule: rules_pb2.Rule) -> Check | None:
    """Of one value of the field, whether it stands alone or in a list or a map."""
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return _length_check(rule, "characters")
        case FieldDescriptor.TYPE_BYTES:
            return _length_check(rule, "bytes")
        case FieldDescriptor.TYPE_ENUM:
            return _enum_check(field, rule)
        case FieldDescriptor.TYPE_MESSAGE if rule.mask_paths:
            return _mask_check(rule)
        case FieldDescriptor.TYPE_MESSAGE:
            return _message_check(field)
        case _:
            return _range_check(rule)


def _message_check(field: FieldDescriptor) -> Check | None:
    plan = _plan(_message_class(field))
    if plan.oneofs:
        raise AssertionError(f"{field.full_name}: exactly_one is only read at the top of a request")
    asked = plan.fields
    if not asked:
        return None

    def run(message: Any, path: str, found: list[Violation]) -> None:
        for one in asked:
            one(message, f"{path}.", found)

    return run


def _length_check(rule: rules_pb2.Rule, unit: str) -> Check | None:
    least = max(rule.length_min, int(rule.required))
    most = rule.length_max if rule.HasField("length_max") else sys.maxsize
    matches = re.compile(rule.pattern).fullmatch if rule.pattern else None
    if least == 0 and most == sys.maxsize and matches is None:
        return None

    def run(value: Any, path: str, found: list[Violation]) -> None:
        if least <= len(value) <= most and (matches is None or matches(value)):
            return
        found += [Violation(path, text) for text in _length_refusals(rule, unit, value)]

    return run


def _length_refusals(rule: rules_pb2.Rule, unit: str, value: Any) -> Iterator[str]:
    if rule.required and not value:
        yield "is required"
        return
    most = rule.length_max if rule.HasField("length_max") else sys.maxsize
    if not rule.length_min <= len(value) <= most:
        yield f"must have {_span(rule.length_min, most)} {unit}, but has {len(value)}"
    if rule.pattern and not re.fullmatch(rule.pattern, value):
        seen = "" if rule.secret else f", but is {_quoted(value)}"
        yield rule.pattern_refusal or f"must match the pattern {rule.pattern}{seen}"


def _span(least: int, most: int) -> str:
    if most == sys.maxsize:
        return f"at least {least}"
    return f"{least} to {most}" if least else f"at most {most}"


def _enum_check(field: FieldDescriptor, rule: rules_pb2.Rule) -> Check:
    numbers = {number: name for name, number in _enum(field).items() if number or not rule.required}
    known, names = frozenset(numbers), ", ".join(numbers.values())

    def run(number: int, path: str, found: list[Violation]) -> None:
        if number not in known:
            seen = f"must be one of {names}, but is {number}" if number else f"is required: one of {names}"
            found.append(Violation(path, seen))

    return run


def _range_check(rule: rules_pb2.Rule) -> Check | None:
    if rule.required:
        raise AssertionError("required is no rule of numbers: they have a range")
    if not rule.HasField("range"):
        return None
    asked = rule.range
    least = asked.min if asked.HasField("min") else -sys.maxsize - 1
    most = asked.max if asked.HasField("max") else sys.maxsize
    zero_is_unset = asked.zero_is_unset
    text = f"at least {least}" if most == sys.maxsize else f"from {least} to {most}"

    def run(value: int, path: str, found: list[Violation]) -> None:
        if not (least <= value <= most or (zero_is_unset and value == 0)):
            found.append(Violation(path, f"must be {text}, but is {value}"))

    return run


def _mask_check(rule: rules_pb2.Rule) -> Check:
    known = frozenset(rule.mask_paths)
    names = ", ".join(rule.mask_paths)

    def run(mask: Any, path: str, found: list[Violation]) -> None:
        if not known.issuperset(mask.paths):
            found += [
                Violation(path, f"must hold only {names}, but holds {_quoted(unknown)}")
                for unknown in sorted(set(mask.paths) - known)
            ]

    return run


def _oneof_check(oneof: OneofDescriptor) -> OneofCheck:
    name, members = oneof.name, {_tag(field): field.name for field in oneof.fields}
    names = ", ".join(members.values())

    def run(message: Message, raw: bytes, found: list[Violation]) -> None:
        if message.WhichOneof(name) is None:
            found.append(Violation(name, f"is required: exactly one of {names}"))
            return
        # The parser keeps the last member and forgets the others, so the message cannot tell.
        sent = _sent(raw, members)
        if sent is None:
            raise RequestUnreadable(message.DESCRIPTOR.full_name)
        if len(sent) > 1:
            both = " and ".join(sorted(sent))
            found.append(Violation(name, f"must be exactly one of {names}, but is {both}"))

    return run


_LENGTH_TYPES = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE)


def _tag(field: FieldDescriptor) -> int:
    if field.type not in _LENGTH_TYPES:
        raise AssertionError(f"{field.full_name}: only members with a length are looked for in the bytes")
    return field.number << 3 | 2


def _sent(raw: bytes, members: Mapping[int, str]) -> set[str] | None:
    """Which members stand in the bytes, at the top level; None if these are not the bytes of a message.

    Source: protobuf.dev, Encoding. A tag of another wire type is an unknown field, as the parser sees it.
    """
    sent: set[str] = set()
    at = depth = 0
    try:
        while at < len(raw):
            tag, at = _varint(raw, at)
            if depth == 0 and tag in members:
                sent.add(members[tag])
            match tag & 7:
                case 0:
                    _, at = _varint(raw, at)
                case 1:
                    at += 8
                case 2:
                    length, at = _varint(raw, at)
                    at += length
                case 3:
                    depth += 1
                case 4:
                    depth -= 1
                case 5:
                    at += 4
                case _:
                    return None
    except IndexError:
        return None
    return sent if at == len(raw) and depth == 0 else None


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, and where the next byte after it is. Raises IndexError at the end of the bytes."""
    number = shift = 0
    while raw[at] & 0x80:
        number |= (raw[at] & 0x7F) << shift
        shift += 7
        at += 1
    return number | raw[at] << shift, at + 1


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _entry(field: FieldDescriptor) -> tuple[FieldDescriptor, FieldDescriptor]:
    """Of a map: what its keys and its values are."""
    entry = cast(Descriptor, field.message_type).fields_by_name
    return entry["key"], entry["value"]


def _enum(field: FieldDescriptor) -> dict[str, int]:
    enum = field.enum_type
    if enum is None:
        raise AssertionError(f"{field.full_name} is no enum")
    return {value.name: value.number for value in enum.values}


def _mapper(field: FieldDescriptor) -> Mapper:
    if _is_map(field):
        entry = _item_mapper(_entry(field)[1])
        return lambda entries: {key: entry(value) for key, value in entries.items()}
    item = _item_mapper(field)
    if field.is_repeated:
        return lambda items: [item(value) for value in items]
    return item


def _item_mapper(field: FieldDescriptor) -> Mapper:
    match field.type:
        case FieldDescriptor.TYPE_MESSAGE if _message_class(field) is field_mask_pb2.FieldMask:
            return lambda mask: sorted(set(mask.paths))
        case FieldDescriptor.TYPE_MESSAGE:
            return fields
        case FieldDescriptor.TYPE_ENUM:
            names = {number: name for name, number in _enum(field).items()}
            return lambda number: names[number]
        case _:
            return _plain


def _plain(value: Any) -> Value:
    if not isinstance(value, str | int):
        raise AssertionError(f"an event's data has no {type(value).__name__}")
    return value


def _default(message: Message, name: str) -> Value:
    plan = _plan(type(message))
    if name not in plan.mappers:
        raise AssertionError(f"{message.DESCRIPTOR.full_name} has no field {name}")
    return plan.mappers[name](getattr(type(message)(), name))


def _quoted(text: str) -> str:
    """The text in double quotes, escaped to printable ASCII as JSON does, cut at QUOTED_MAX characters."""
    shown = ""
    for character in text[:QUOTED_MAX]:
        piece = json.dumps(character)[1:-1]
        if len(shown) + len(piece) > QUOTED_MAX:
            return f'"{shown}..."'
        shown += piece
    return f'"{shown}"' if len(text) <= QUOTED_MAX else f'"{shown}..."'


def _for_people(path: str) -> str:
    """The path in CamelCase, what stands in quotes unchanged: `AccessBindings[3].RoleId`, `Labels["a_b"]`."""
    parts = re.split(r'("(?:\\.|[^"\\])*")', path)
    parts[::2] = [re.sub(r"(?:^|_|(?<=\.))([a-z])", lambda m: m[1].upper(), part) for part in parts[::2]]
    return "".join(parts)
