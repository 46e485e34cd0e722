"""Events, and what they changed, as messages of imageledger.v1.HistoryService."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from eventstore.event import Event
from eventstore.search import Record
from projections.blame import Blame, Setter
from projections.changes import IMAGE_FIELDS
from projections.diff import Difference
from projections.domain.command import Image
from projections.history import FamilyAnswer, Told
from server.encode import NANOS, frame, image_bytes, image_message, image_part
from server.gen.imageledger.v1 import history_service_pb2 as pb

UNREADABLE = "newer software wrote its envelope, and this server passes it on as it is"


def event_frame(record: Record) -> bytes:
    """The event as one element of ReadEventsResponse.events and of WatchResponse.events."""
    event = record.event
    if event is None:
        message = pb.Event(position=record.position, body=record.body, unreadable=UNREADABLE)
    else:
        message = pb.Event(
            position=event.position,
            body=record.body,
            stream=event.stream,
            version=event.version,
            type=event.type,
            schema=event.schema,
            operation_id=event.operation_id or "",
            resource_id=event.resource_id or "",
            actor=event.actor,
            auth=event.auth,
            request_id=event.request_id or "",
            method=event.method or "",
            idempotency_key=event.key or "",
            reason=event.reason or "",
            request=event.request or b"",
        )
        message.at.seconds, message.at.nanos = divmod(event.at, NANOS)
    return frame(message.SerializeToString())


def image_event_frame(told: Told) -> bytes:
    """The event as one element of ImageHistoryResponse.events; the same bytes whenever it is asked for."""
    event = told.event
    message = pb.ImageEvent(
        position=event.position,
        type=event.type,
        actor=event.actor,
        reason=event.reason or "",
        operation_id=event.operation_id or "",
    )
    message.at.seconds, message.at.nanos = divmod(event.at, NANOS)
    _fill_change(message.change, told.before, told.after, told.fields)
    return frame(message.SerializeToString(deterministic=True))


def family_frame(answer: FamilyAnswer, since: Event) -> bytes:
    """The answer as one element of FamilyHistoryResponse.answers; `since` is the event that made it so."""
    message = pb.FamilyAnswer(
        image_id=answer.image_id,
        since=answer.since,
        until=answer.until or 0,
        actor=since.actor,
        operation_id=since.operation_id or "",
    )
    message.at.seconds, message.at.nanos = divmod(since.at, NANOS)
    return frame(message.SerializeToString())


def diff_bytes(differences: Iterable[Difference], *, before: int, after: int) -> bytes:
    """A DiffResponse between two positions."""
    parts = [pb.DiffResponse(from_position=before, to_position=after).SerializeToString()]
    for difference in differences:
        old, new = difference.before, difference.after
        if old is None and new is not None:
            parts.append(frame(image_bytes(new), 3))
        elif old is not None and new is None:
            parts.append(frame(image_bytes(old), 4))
        else:
            changed = pb.ChangedImage(id=difference.image_id)
            _fill_change(changed.change, old, new, difference.fields)
            parts.append(frame(changed.SerializeToString(deterministic=True), 5))
    return b"".join(parts)


def blame_bytes(image: Image, blame: Blame) -> bytes:
    """A BlameResponse without its position."""
    message = pb.BlameResponse(
        image=image_message(image),
        fields=[_field_blame(field, blame[field]) for field in IMAGE_FIELDS],
    )
    return message.SerializeToString(deterministic=True)


def _field_blame(field: str, setter: Setter) -> pb.FieldBlame:
    message = pb.FieldBlame(
        field=field, position=setter.position, actor=setter.actor, operation_id=setter.operation_id
    )
    message.at.seconds, message.at.nanos = divmod(setter.at, NANOS)
    return message


def _fill_change(
    message: pb.ImageChange, before: Image | None, after: Image | None, fields: Sequence[str]
) -> None:
    message.fields.extend(fields)
    if before is not None:
        message.old.CopyFrom(image_part(before, fields))
    if after is not None:
        message.new.CopyFrom(image_part(after, fields))
