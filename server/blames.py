"""Blames of images, each kept as of the newest position that was asked for: only what came since is read."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass

from eventstore.search import LogSearch
from projections.blame import Blame, Setter, begun, is_settled, updates

KEPT_MAX = 4096
# Most fields were set of late; whoever goes further back has to go far.
EVENTS_MIN = 16
EVENTS_MAX = 1024
GROWTH = 4


@dataclass(slots=True)
class Search:
    """How far a blame has come: events from `at` down to `until` are read, those behind `after` wanted."""

    image_id: str
    at: int
    begun: Blame
    is_finished: bool
    after: int
    until: int
    found: dict[str, Setter]
    limit: int = EVENTS_MIN

    @property
    def is_done(self) -> bool:
        return is_settled(self.found) or self.until <= self.after


class Blames:
    """Used by several threads, each with a reader of its own."""

    def __init__(self, *, kept_max: int = KEPT_MAX) -> None:
        self._kept_max = kept_max
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[int, Blame]] = OrderedDict()

    def begin(self, log: LogSearch, image_id: str, *, at: int) -> Search:
        """Needs an image that is there as of `at`."""
        with self._lock:
            kept = self._kept.get(image_id)
        if kept is not None and kept[0] <= at:
            return Search(image_id, at, kept[1], True, kept[0], at, {})
        events = log.events_of_resource(image_id, until=at, limit=2)
        after = events[-1].position
        return Search(image_id, at, begun(events), len(events) > 1, after, at, {})

    def go_on(self, log: LogSearch, search: Search) -> None:
        """Read some more of the updates, in milliseconds."""
        search.until = updates(
            log,
            search.image_id,
            search.found,
            after=search.after,
            until=search.until,
            limit=search.limit,
        )
        search.limit = min(search.limit * GROWTH, EVENTS_MAX)

    def result(self, search: Search) -> Blame:
        """The blame of a search that is done."""
        blame = {**search.begun, **search.found}
        if search.is_finished:
            self._keep(search.image_id, search.at, blame)
        return blame

    def _keep(self, image_id: str, at: int, blame: Blame) -> None:
        with self._lock:
            kept = self._kept.pop(image_id, None)
            self._kept[image_id] = kept if kept is not None and kept[0] > at else (at, blame)
            if len(self._kept) > self._kept_max:
                self._kept.popitem(last=False)
