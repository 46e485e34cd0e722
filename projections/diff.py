"""What differs between two positions, by the events between them: what did not change costs nothing."""

from __future__ import annotations

from typing import NamedTuple

from eventstore.search import LogSearch

from .changes import changes
from .domain.command import Image, folder_stream
from .domain.refusals import NotFound
from .queries import Queries


class Difference(NamedTuple):
    """An image that differs: None on the side where it is not there, and the public fields, in order."""

    image_id: str
    before: Image | None
    after: Image | None
    fields: list[str]


def touched(log: LogSearch, *, folder_id: str, after: int, until: int) -> tuple[set[str], int]:
    """Ids of resources, images among them, with events from after + 1 on, and how far this step looked.

    An empty folder_id is all folders.
    """
    return log.resources(stream=folder_stream(folder_id) if folder_id else None, after=after, until=until)


def difference(queries: Queries, image_id: str, *, before: int, after: int) -> Difference | None:
    """How an image differs; None where it does not, or the id is that of no image. Raises RowDamaged."""
    old, new = _image(queries, image_id, before), _image(queries, image_id, after)
    fields = [change.field for change in changes(old, new)]
    return Difference(image_id, old, new, fields) if fields else None


def _image(queries: Queries, image_id: str, at: int) -> Image | None:
    try:
        return queries.image_state(image_id, at=at)
    except NotFound:
        return None
