"""Histories, differences and families, against what folding the log by hand gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventstore.search import LogSearch
from projections.changes import changes, image_json
from projections.diff import Difference, difference, touched
from projections.domain.evolve import MemoryState
from projections.history import FamilyAnswer, told
from projections.queries import Queries
from projections.rows import RowDamaged
from projections.store import open_queries
from tests.unit.projections.builders import (
    FAMILIES,
    FOLDERS,
    History,
    Stand,
    change,
    created,
    deleted,
    image,
    lossless,
    prefixes,
    registered,
    started,
    steps,
    updated,
)


@contextmanager
def projected(history: History) -> Iterator[tuple[LogSearch, Queries]]:
    """The log and its projection, on a disk."""
    with tempfile.TemporaryDirectory() as directory:
        stand = Stand(Path(directory))
        with closing(stand):
            history.write(stand.log)
            path = stand.open_live()
        with (
            LogSearch.open(Path(directory) / "log.db") as log,
            closing(open_queries(path, encode=lossless)) as queries,
        ):
            yield log, queries


def images_of(state: MemoryState, folder_id: str) -> dict[str, dict[str, Any]]:
    """The images of a folder, or of all, as JSON by id."""
    return {
        one["id"]: dict(image_json(one))
        for one in state.images.values()
        if not folder_id or one["folder_id"] == folder_id
    }


# Differences.


@settings(deadline=None, max_examples=40)
@given(
    steps(),
    st.lists(
        st.tuples(st.integers(0), st.integers(0), st.sampled_from(("", *FOLDERS))), min_size=1, max_size=8
    ),
)
def test_a_difference_leads_from_one_state_to_the_other(
    walk: list[tuple[str, int, int]], questions: list[tuple[int, int, str]]
) -> None:
    history = History(walk)
    states = {
        position: {folder_id: images_of(state, folder_id) for folder_id in ("", *FOLDERS)}
        for position, state in prefixes(history.events)
    }
    with projected(history) as (log, queries):
        for one, other, folder_id in questions:
            before, after = sorted((one % len(states), other % len(states)))
            found = differences(log, queries, folder_id, before, after)
            assert applied(states[before][folder_id], found) == states[after][folder_id]
            assert all(is_minimal(difference) for difference in found)


def differences(
    log: LogSearch, queries: Queries, folder_id: str, before: int, after: int
) -> list[Difference]:
    ids: set[str] = set()
    reached = before
    while reached < after:
        some, reached = touched(log, folder_id=folder_id, after=reached, until=after)
        ids |= some
    found = (difference(queries, image_id, before=before, after=after) for image_id in sorted(ids))
    return [one for one in found if one is not None]


def applied(images: dict[str, dict[str, Any]], found: list[Difference]) -> dict[str, dict[str, Any]]:
    """The images after the differences, of which a change may touch none but the fields that it names."""
    result = {image_id: dict(fields) for image_id, fields in images.items()}
    for one in found:
        old = {} if one.before is None else image_json(one.before)
        new = {} if one.after is None else image_json(one.after)
        fields = result.setdefault(one.image_id, {})
        for name in one.fields:
            assert fields.get(name) == old.get(name)
            fields[name] = new.get(name)
        result[one.image_id] = {name: value for name, value in fields.items() if value is not None}
        if one.after is None:
            assert not result.pop(one.image_id)
    return result


def is_minimal(found: Difference) -> bool:
    old = {} if found.before is None else image_json(found.before)
    new = {} if found.after is None else image_json(found.after)
    return bool(found.fields) and all(old.get(name) != new.get(name) for name in found.fields)


def test_what_comes_and_goes_between_is_no_difference(stand: Stand) -> None:
    stand.say([registered("s"), *image("a", name="a"), *image("b"), deleted("b"), updated("a", name="a")])
    with closing(stand.queries()) as queries, LogSearch.open(stand.log.path) as log:
        assert touched(log, folder_id="f", after=4, until=8) == ({"a", "b"}, 8)
        assert differences(log, queries, "f", 4, 8) == []
        assert [one.image_id for one in differences(log, queries, "f", 4, 6)] == ["b"]


def test_only_what_happened_between_is_looked_at(stand: Stand) -> None:
    stand.say([*image("a"), *image("b", folder_id="g"), updated("a", name="x")])
    with LogSearch.open(stand.log.path) as log:
        assert touched(log, folder_id="", after=5, until=6) == ({"a"}, 6)
        assert touched(log, folder_id="g", after=5, until=6) == (set(), 6)
        assert touched(log, folder_id="g", after=3, until=6) == ({"b"}, 6)


# Events of an image.


@settings(deadline=None, max_examples=40)
@given(steps())
def test_what_is_told_of_an_image_is_what_the_fold_changed(walk: list[tuple[str, int, int]]) -> None:
    events = History(walk).events
    state = MemoryState()
    folded = [(event, state.apply(event)) for event in events]
    for image_id in {event.resource_id for event in events if event.type == "ImageCreationStarted"}:
        own = [(event, change) for event, change in folded if event.resource_id == image_id]
        found = list(told(None, (event for event, _ in own)))
        assert [(one.event, one.before, one.after) for one in found] == [(e, *c) for e, c in own]
        assert [one.fields for one in found] == [
            [field for field, _, _ in changes(change.before, change.after)] for _, change in own
        ]


def test_a_history_goes_on_where_it_was_left() -> None:
    events = [*image("a", name="a"), updated("a", name="b"), updated("a", name="c")]
    whole = list(told(None, events))
    assert [*told(None, events[:3]), *told(whole[2].after, events[3:])] == whole


# Families.


def resolved(state: MemoryState, folder_id: str, family: str) -> str | None:
    ready = [
        one
        for one in state.images.values()
        if (one["folder_id"], one["family"], one["status"]) == (folder_id, family, "READY")
    ]
    return max(ready, key=lambda one: one["born"])["id"] if ready else None


def answered(states: list[tuple[int, str | None]]) -> list[FamilyAnswer]:
    """The answers by what the family resolved to at each position."""
    answers: list[FamilyAnswer] = []
    current: str | None = None
    for position, image_id in states:
        if image_id == current:
            continue
        if current is not None:
            answers[-1] = answers[-1]._replace(until=position)
        if image_id is not None:
            answers.append(FamilyAnswer(image_id, position, None))
        current = image_id
    return answers


@settings(deadline=None, max_examples=40)
@given(steps(), st.integers(0), st.integers(1, 3))
def test_a_familys_answers_are_what_it_resolved_to(
    walk: list[tuple[str, int, int]], moment: int, limit: int
) -> None:
    history = History(walk)
    families = [(folder_id, family) for folder_id in FOLDERS for family in FAMILIES if family]
    timelines: dict[tuple[str, str], list[tuple[int, str | None]]] = {key: [] for key in families}
    for position, state in prefixes(history.events):
        for key in families:
            timelines[key].append((position, resolved(state, *key)))
    head = history.events[-1].position
    with projected(history) as (_, queries):
        for folder_id, family in families:
            for at in (moment % (head + 1), head):
                found: list[FamilyAnswer] = []
                while page := queries.family_answers(
                    folder_id, family, at=at, after=found[-1].since if found else 0, limit=limit
                ):
                    assert len(page) <= limit
                    found += page
                assert found == answered(timelines[folder_id, family][: at + 1])


def test_a_damaged_answer_of_a_family_is_never_given(stand: Stand) -> None:
    stand.say([*image("a", family="web"), *image("b", family="web")])
    path = stand.open_live()
    change(path, "UPDATE family_latest SET image_id = 'c' WHERE since = 5")
    with closing(open_queries(path, encode=lossless)) as queries:
        assert queries.family_answers("f", "web", at=4, after=0, limit=9) == [FamilyAnswer("a", 3, None)]
        with pytest.raises(RowDamaged) as raised:
            queries.family_answers("f", "web", at=5, after=0, limit=9)
    assert raised.value.position == 5


def test_a_family_is_told_by_the_event_that_finished_the_image(stand: Stand) -> None:
    stand.say([started("a", family="web"), *image("b", family="web"), created("a"), deleted("b")])
    with closing(stand.queries()) as queries:
        found = queries.family_answers("f", "web", at=6, after=0, limit=9)
    # a was begun before b and finished after it, so it is no newer: the family falls back to it.
    assert found == [FamilyAnswer("b", 4, 6), FamilyAnswer("a", 6, None)]
