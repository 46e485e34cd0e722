"""Whether answers are those of the very positions that they name.

The log puts all writes in one order. Of an event only its position, time, type, operation and key are
believed; what it means is said by the model, from what the client with that key had asked.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eventstore.event import Event
from projections.moments import AtTime, parse_moment
from tests.crash.linear import Answer, Asked, Create, Read, State, Write, look, step
from tests.crash.recorded import FOLDERS, Seen


@dataclass(frozen=True, slots=True)
class Wrote:
    """What one key has led to: the last position, and what the model answers there."""

    position: int
    answer: Answer


class Prefixes:
    """Every state that every folder was ever in, by position."""

    def __init__(self, events: Iterable[Event], seen: Iterable[Seen]) -> None:
        """Raises AssertionError where the log has what nobody asked for, or what the model refuses."""
        self._asked = {one.key: one for one in seen if one.key}
        self._keys: dict[str, str] = {}
        self._times: list[int] = []
        self._positions: dict[str, list[int]] = {folder: [0] for folder in FOLDERS}
        self._states: dict[str, list[State]] = {folder: [()] for folder in FOLDERS}
        self.wrote: dict[str, Wrote] = {}
        for event in events:
            self._times.append(event.at)
            if event.stream.removeprefix("folder/") in FOLDERS:
                self._add(event)

    def _add(self, event: Event) -> None:
        operation_id = event.operation_id or ""
        if event.key is not None:
            assert event.key not in self._keys.values(), f"position {event.position} repeats a key"
            self._keys[operation_id] = event.key
        one = self._asked[self._keys[operation_id]]
        folder = event.stream.removeprefix("folder/")
        assert folder == one.folder
        before = self._states[folder][-1]
        state, answer = _evolved(before, one.call.asked, event)
        self._states[folder].append(state)
        self._positions[folder].append(event.position)
        self.wrote[one.key] = Wrote(event.position, answer)

    def state(self, folder: str, position: int) -> State:
        return self._states[folder][bisect_right(self._positions[folder], position) - 1]

    def resolved(self, as_of: str) -> int:
        """The position that a moment names."""
        moment = parse_moment(as_of)
        # Stamps never fall along the positions, which begin at 1.
        return bisect_right(self._times, moment.ns) if isinstance(moment, AtTime) else moment.position


def _evolved(state: State, asked: Asked, event: Event) -> tuple[State, Answer]:
    if event.type == "ImageCreated":
        assert isinstance(asked, Create)
        born = tuple(image._replace(status="READY") if image.tag == asked.tag else image for image in state)
        return born, tuple(image for image in born if image.tag == asked.tag)
    after, answer = step(state, asked)
    assert not isinstance(answer, str), f"position {event.position}: {asked} is answered {answer}"
    if event.type == "ImageCreationStarted":
        after = (*after[:-1], after[-1]._replace(status="CREATING"))
    return after, answer


def wrong_answers(prefixes: Prefixes, seen: Sequence[Seen]) -> list[str]:
    """Answers that are not those of the state after exactly the position that they name or were asked for."""
    return [wrong for one in seen if (wrong := _wrong(prefixes, one)) is not None]


def _wrong(prefixes: Prefixes, one: Seen) -> str | None:
    asked, answer = one.call.asked, one.call.answer
    if isinstance(asked, Write):
        wrote = prefixes.wrote.get(one.key)
        if one.position is None:
            refused = wrote is None or answer is None
            return None if refused else f"{one} is in the log, and was refused"
        expected = wrote is not None and (wrote.position, wrote.answer) == (one.position, answer)
        return None if expected else f"{one}: the log and the model have {wrote}"
    position = prefixes.resolved(one.as_of) if one.as_of else one.position
    if position is None:
        return None  # A refusal of now names no position; the search for an order judges it.
    right = look(prefixes.state(one.folder, position), asked)
    if one.position not in (None, position) or answer != right:
        return f"{one}: as of position {position} it is {right}"
    return None


def changed_answers(seen: Iterable[Seen]) -> list[str]:
    """Questions about the past that were answered in two ways."""
    first: dict[tuple[str, Asked, str], Seen] = {}
    changed = []
    for one in seen:
        if not one.as_of:
            continue
        told = first.setdefault((one.folder, one.call.asked, one.as_of), one)
        if (told.call.answer, told.position, told.wire) != (one.call.answer, one.position, one.wire):
            changed.append(f"{told} was answered later by {one}")
    return changed


def steps_back(seen: Sequence[Seen]) -> list[str]:
    """Answers of now whose position is before one that was told before they were asked for.

    The log is one for all folders. A write's position is its own, so it is greater than all told before.
    """
    now = [one for one in seen if one.position is not None and not one.as_of]
    by_return = sorted(now, key=lambda one: one.call.returned)
    told = [0, *itertools.accumulate((one.position or 0 for one in by_return), max)]
    returns = [one.call.returned for one in by_return]
    back = []
    for one in now:
        before = told[bisect_right(returns, one.call.invoked - 1)]
        least = before + 1 if isinstance(one.call.asked, Write) else before
        if (one.position or 0) < least:
            back.append(f"{one}: position {before} was told before that was asked")
    return back


def questions_of(seen: Iterable[Seen]) -> list[tuple[str, Read, str]]:
    """Every question about the past, once."""
    asked = ((one.folder, one.call.asked, one.as_of) for one in seen if one.as_of)
    return [question for question in dict.fromkeys(asked) if not isinstance(question[1], Write)]  # type: ignore[misc]
