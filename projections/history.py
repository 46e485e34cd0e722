"""What happened to an image, event by event, and what a family resolved to, from when to when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, cast

from eventstore.database import Connection
from eventstore.event import Event
from eventstore.upcast import upcast

from .changes import changes
from .domain.command import Image
from .domain.evolve import IMAGE_EVENTS
from .domain.image import evolve_image
from .domain.upcasters import UPCASTERS
from .rows import FAMILY, check, expect
from .snapshot import is_over

FAMILY_ANSWERS = f"""
SELECT {FAMILY}
FROM family_latest
WHERE folder_id = :folder_id AND family = :family AND since > :after AND since <= :at
ORDER BY since
LIMIT :limit
"""


class Told(NamedTuple):
    """An event of an image, the image before and after it, and the public fields that differ, in order."""

    event: Event
    before: Image | None
    after: Image | None
    fields: list[str]


class FamilyAnswer(NamedTuple):
    """From `since` to `until`, or still where that is None, the family resolved to this image."""

    image_id: str
    since: int
    until: int | None


def told(image: Image | None, events: Iterable[Event]) -> Iterator[Told]:
    """What each event made of the image; `image` is what all those before them had left.

    The events must be all of the image's. Raises SchemaTooNew.
    """
    for event in events:
        after = evolve_image(image, upcast(event, UPCASTERS))
        yield Told(event, image, after, [change.field for change in changes(image, after)])
        image = after


def is_of_image(event: Event) -> bool:
    """Whether an event's resource is an image, not a disk or a snapshot."""
    return event.type in IMAGE_EVENTS


def family_answers(
    connection: Connection, *, folder_id: str, family: str, at: int, after: int, limit: int
) -> list[FamilyAnswer]:
    """The family's answers that began from after + 1 to `at`, oldest first, as of `at`. Raises RowDamaged."""
    asked = {"folder_id": folder_id, "family": family, "at": at, "after": after, "limit": limit}
    answers = []
    for row in connection.execute(FAMILY_ANSWERS, asked).fetchall():
        found_folder, found_family, since, image_id, until, _ = row
        check(row, table="family_latest", position=since)
        is_next = (found_folder, found_family) == (folder_id, family) and after < since <= at
        expect(is_next, table="family_latest", position=since)
        answers.append(FamilyAnswer(cast("str", image_id), since, until if is_over(until, at) else None))
        after = since
    return answers
