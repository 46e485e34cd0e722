"""Whether what clients saw of one folder can be explained by some order of their calls, one at a time.

The search is that of Wing and Gong, with the memory of points already seen that Lowe added: a call may come
next if it was asked before the first answer among those that have not come yet. Folders know nothing of each
other, and a history is linearizable if that of every folder is, so each is searched alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, assert_never

NEVER = 2**63  # Later than any moment of the monotonic clock.
NOT_FOUND = "NOT_FOUND"
ALREADY_EXISTS = "ALREADY_EXISTS"


class Image(NamedTuple):
    """An image as callers see it. `tag` is a label of its own that each Create gives."""

    tag: str
    name: str
    family: str
    description: str
    status: str = "READY"


# A folder: its images in the order in which they were created.
State = tuple[Image, ...]
# Images, or the status that refuses: the order of a list's images is that of their tags.
Answer = tuple[Image, ...] | str


@dataclass(frozen=True, slots=True)
class Create:
    tag: str
    name: str
    family: str


@dataclass(frozen=True, slots=True)
class Describe:
    """Update, with the mask `description`."""

    tag: str
    description: str


@dataclass(frozen=True, slots=True)
class Rename:
    """Update, with the mask `name`."""

    tag: str
    name: str


@dataclass(frozen=True, slots=True)
class Delete:
    tag: str


@dataclass(frozen=True, slots=True)
class Get:
    tag: str


@dataclass(frozen=True, slots=True)
class ListAll:
    pass


@dataclass(frozen=True, slots=True)
class ListNamed:
    name: str


@dataclass(frozen=True, slots=True)
class GetLatest:
    family: str


Write = Create | Describe | Rename | Delete
Read = Get | ListAll | ListNamed | GetLatest
Asked = Write | Read


@dataclass(frozen=True, slots=True)
class Call:
    """A call as its client saw it; times are nanoseconds of one monotonic clock.

    A write that was cut off and asked again with its key is one call, from the first attempt to the answer.
    Without an answer it returned at NEVER, and may have happened at any time since, or not at all.
    """

    asked: Asked
    invoked: int
    returned: int = NEVER
    answer: Answer | None = None


def step(state: State, asked: Asked) -> tuple[State, Answer]:
    """The model: what a folder becomes by a call, and what the call answers."""
    match asked:
        case Create():
            if _is_taken(state, asked.name):
                return state, ALREADY_EXISTS
            made = Image(asked.tag, asked.name, asked.family, "")
            return (*state, made), (made,)
        case Describe():
            return _update(state, asked.tag, "description", asked.description)
        case Rename():
            holder = next((image for image in state if asked.name and image.name == asked.name), None)
            if holder is not None and holder.tag != asked.tag and _tagged(state, asked.tag):
                return state, ALREADY_EXISTS
            return _update(state, asked.tag, "name", asked.name)
        case Delete():
            left = tuple(image for image in state if image.tag != asked.tag)
            return left, () if len(left) < len(state) else NOT_FOUND
        case _:
            return state, look(state, asked)


def look(state: State, asked: Read) -> Answer:
    """What a folder answers to a question."""
    match asked:
        case Get():
            return _tagged(state, asked.tag) or NOT_FOUND
        case ListAll():
            return tuple(sorted(state))
        case ListNamed():
            return tuple(image for image in state if image.name == asked.name)
        case GetLatest():
            ready = (image for image in reversed(state) if image.status == "READY")
            latest = next((image for image in ready if image.family == asked.family), None)
            return NOT_FOUND if latest is None else (latest,)
        case _ as never:
            assert_never(never)


def _is_taken(state: State, name: str) -> bool:
    return any(name and image.name == name for image in state)


def _tagged(state: State, tag: str) -> tuple[Image, ...]:
    return tuple(image for image in state if image.tag == tag)


def _update(state: State, tag: str, field: str, value: str) -> tuple[State, Answer]:
    found = _tagged(state, tag)
    if not found:
        return state, NOT_FOUND
    after = found[0]._replace(**{field: value})
    return tuple(after if image.tag == tag else image for image in state), (after,)


class Unexplained(NamedTuple):
    """As far as any order comes: how many calls it explains, the state then, and which do not fit."""

    explained: int
    state: State
    stuck: tuple[Call, ...]


class _Point(NamedTuple):
    """A state of the search. Calls before `base` have come, those of `beyond` and `maybe` have, too.

    Both are sets of bits: `beyond` of answered calls from `base` on, `maybe` of those without an answer.
    """

    base: int
    beyond: int
    maybe: int
    state: State


def unexplained(calls: Sequence[Call], *, begun: State = ()) -> Unexplained | None:
    """None if some order explains every answer, from the state `begun` on.

    A read that was cut off says nothing. Depth first; no point is looked at twice.
    """
    known = sorted((call for call in calls if call.returned < NEVER), key=lambda call: call.invoked)
    cut_off = [call for call in calls if call.returned == NEVER and isinstance(call.asked, Write)]
    search = _Search(known, cut_off)
    seen: set[_Point] = set()
    waiting = [_Point(0, 0, 0, begun)]
    furthest = waiting[0]
    while waiting:
        point = waiting.pop()
        if point in seen:
            continue
        seen.add(point)
        if point.base == len(known):
            return None
        if _come(point) > _come(furthest):
            furthest = point
        waiting.extend(search.next_points(point))
    stuck = tuple(known[index] for index in search.candidates(furthest))
    return Unexplained(_come(furthest), furthest.state, stuck)


def _come(point: _Point) -> int:
    return point.base + point.beyond.bit_count()


class _Search:
    """Answered calls in the order of their asking, and those without an answer."""

    def __init__(self, known: Sequence[Call], cut_off: Sequence[Call]) -> None:
        self._known = known
        self._cut_off = cut_off

    def candidates(self, point: _Point) -> list[int]:
        """The answered calls of which each may come next."""
        found = []
        horizon = NEVER
        for index in range(point.base, len(self._known)):
            if point.beyond >> (index - point.base) & 1:
                continue
            call = self._known[index]
            if call.invoked > horizon:
                break
            horizon = min(horizon, call.returned)
            found.append(index)
        return found

    def next_points(self, point: _Point) -> list[_Point]:
        """Where one more call leads, the likeliest last.

        A read or a refusal that fits may come at once: it changes nothing wherever it comes, so any order in
        which it comes later explains as much with it here. Of a write that happens to change nothing now this
        is not true: later it may be what undoes another one.
        """
        points = []
        candidates = self.candidates(point)
        for index in reversed(candidates):
            call = self._known[index]
            state, answer = step(point.state, call.asked)
            if answer != call.answer:
                continue
            after = self._after(point, index, state)
            if isinstance(call.answer, str) or not isinstance(call.asked, Write):
                return [after]
            points.append(after)
        return [*self._maybes(point, candidates), *points]

    def _after(self, point: _Point, index: int, state: State) -> _Point:
        base, beyond = point.base, point.beyond | 1 << (index - point.base)
        while beyond & 1:
            base, beyond = base + 1, beyond >> 1
        return _Point(base, beyond, point.maybe, state)

    def _maybes(self, point: _Point, candidates: Sequence[int]) -> Iterator[_Point]:
        horizon = min(self._known[index].returned for index in candidates)
        for index, call in enumerate(self._cut_off):
            if point.maybe >> index & 1 or call.invoked > horizon:
                continue
            state, _ = step(point.state, call.asked)
            if state != point.state:
                yield _Point(point.base, point.beyond, point.maybe | 1 << index, state)
