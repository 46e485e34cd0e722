"""What differs between two moments: asked for page by page, then as JSON, or as a diff for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from projections.changes import IMAGE_FIELDS, Change
from projections.moments import Moment
from server.gen.imageledger.v1 import history_service_pb2 as pb
from server.gen.yandex.cloud.compute.v1 import image_pb2
from tools.client import HISTORY, Client
from tools.events_json import changes_json, value_text
from tools.moments import moment_message
from tools.output import document, shown


@dataclass(slots=True)
class Diff:
    """The two positions, and the images that differ, each kind in order of their ids."""

    from_position: int = 0
    to_position: int = 0
    added: list[image_pb2.Image] = field(default_factory=list)
    removed: list[image_pb2.Image] = field(default_factory=list)
    changed: list[pb.ChangedImage] = field(default_factory=list)


def read_diff(client: Client, from_moment: Moment, to_moment: Moment, *, folder_id: str | None) -> Diff:
    """Raises CallFailed."""
    request = pb.DiffRequest(
        from_moment=moment_message(from_moment),
        to_moment=moment_message(to_moment),
        folder_id=folder_id or "",
    )
    found = Diff()
    for answer in client.download(f"{HISTORY}/Diff", request, pb.DiffResponse):
        found.from_position, found.to_position = answer.from_position, answer.to_position
        found.added.extend(answer.added)
        found.removed.extend(answer.removed)
        found.changed.extend(answer.changed)
    return found


def changes_of(change: pb.ImageChange) -> list[Change]:
    """The fields as the image's JSON has them, None where one is absent."""
    old, new = document(change.old), document(change.new)
    return [Change(name, old.get(name), new.get(name)) for name in change.fields]


def diff_json(found: Diff) -> dict[str, Any]:
    return {
        "from": found.from_position,
        "to": found.to_position,
        "added": [document(image) for image in found.added],
        "removed": [document(image) for image in found.removed],
        "changed": [{"id": one.id, "changes": changes_json(changes_of(one.change))} for one in found.changed],
    }


def diff_lines(found: Diff) -> Iterator[str]:
    """As `diff -u` has it: what was there before after a -, what is there now after a +."""
    yield f"--- position {found.from_position}"
    yield f"+++ position {found.to_position}"
    for image in found.removed:
        yield from _whole("-", image)
    for image in found.added:
        yield from _whole("+", image)
    for one in found.changed:
        yield shown(f"@@ image {one.id}")
        for change in changes_of(one.change):
            if change.old is not None:
                yield f"-  {change.field}: {value_text(change.old)}"
            if change.new is not None:
                yield f"+  {change.field}: {value_text(change.new)}"
    yield f"{len(found.added)} added, {len(found.removed)} removed, {len(found.changed)} changed"


def _whole(sign: str, image: image_pb2.Image) -> Iterator[str]:
    values = document(image)
    yield shown(f"@@ image {image.id}")
    for name in IMAGE_FIELDS:
        if name != "id" and name in values:
            yield f"{sign}  {name}: {value_text(values[name])}"
