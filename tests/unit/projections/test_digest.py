"""The digest as of a position, of a file that others write meanwhile: what it was, whatever came since."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from projections import digest as module
from projections.build import build
from projections.damage import ProjectionDamaged
from projections.domain.command import Image
from projections.opening import bring_up, digest_beside, digest_of
from projections.rows import folder_row
from tests.unit.projections.builders import (
    History,
    Stand,
    change,
    deleted,
    image,
    lossless,
    registered,
    removed,
    steps,
    updated,
)


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is written between two pages is seen in these short histories."""
    monkeypatch.setattr(module, "PAGE_ROWS", 2)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps())
def test_it_is_what_the_digest_was_then(walk: list[tuple[str, int, int]]) -> None:
    history = History(walk)
    with TemporaryDirectory() as directory, closing(Stand(Path(directory))) as stand:
        first, *others = history.batches
        stand.log.append(first, expected_head=stand.log.head())
        path, then = stand.open_live(), {}
        for batch in others:
            stand.log.append(batch, expected_head=stand.log.head())
            bring_up(path, stand.log, batch[0].position - 1, encode=lossless)
            then[stand.log.head()] = digest_of(path, encode=lossless)
        assert {at: digest_beside(path, at, encode=lossless) for at in then} == then


@pytest.fixture
def filled(stand: Stand) -> Stand:
    """Images a, c and e, one that was deleted, b, and sources d and s."""
    some = [event for name in "abc" for event in image(name, family="web", name=name)]
    stand.say([registered("d"), *some, *image("e", folder_id="g"), registered("s"), updated("a", name="z")])
    stand.say([deleted("b"), updated("c", description="x")])
    return stand


def test_what_is_written_while_it_reads_makes_no_difference(filled: Stand) -> None:
    path = filled.open_live()
    at, before = filled.log.head(), digest_of(path, encode=lossless)
    # As each current image is looked at, the writer goes on: every page comes from another state of the file.
    coming: Iterator[Any] = iter(
        [[updated("c", description="y"), deleted("a")], [removed("s")], [*image("f"), deleted("e")]]
    )

    def encode(one: Image) -> bytes:
        for events in coming:
            applied = filled.log.head()
            filled.say(events)
            bring_up(path, filled.log, applied, encode=lossless)
            break
        return lossless(one)

    assert digest_beside(path, at, encode=encode) == before
    assert next(coming, None) is None
    assert digest_of(path) != before


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("DELETE FROM image WHERE id = 'a' AND until IS NOT NULL", id="version"),
        pytest.param("DELETE FROM image_life WHERE id = 'b'", id="life"),
        pytest.param("DELETE FROM family_latest WHERE until IS NOT NULL", id="family"),
        pytest.param("DELETE FROM operation WHERE id = 'op-a'", id="operation"),
        pytest.param("DELETE FROM source WHERE id = 's'", id="source"),
        pytest.param("DELETE FROM blob_use WHERE id = 'a'", id="use"),
        pytest.param("UPDATE blob_use SET crc = 1 WHERE id = 'a'", id="use-crc"),
        pytest.param(
            "INSERT INTO blob_use SELECT sha256, 'x', crc FROM blob_use LIMIT 1", id="use-of-nobody"
        ),
        pytest.param("DELETE FROM folder WHERE folder_id = 'g'", id="folder"),
        pytest.param("UPDATE folder SET changed = 3, crc = 1 WHERE folder_id = 'g'", id="folder-crc"),
        pytest.param("DELETE FROM listing WHERE folder_id = 'g'", id="listing"),
        pytest.param("UPDATE image SET wire = x'80' WHERE id = 'a' AND until IS NULL", id="wire"),
        pytest.param("UPDATE operation SET crc = 1 WHERE id = 'op-a'", id="operation-crc"),
    ],
)
@pytest.mark.parametrize("written", [False, True], ids=["as-it-stands", "written-since"])
def test_a_wrong_row_is_noticed(filled: Stand, sql: str, written: bool) -> None:
    path = filled.open_live()
    at, right = filled.log.head(), digest_of(path)
    if written:
        filled.say([updated("c", name="q"), *image("h", name="h", family="web")])
        bring_up(path, filled.log, at, encode=lossless)
        assert digest_beside(path, at, encode=lossless) == right
    change(path, sql)
    assert outcome(lambda: digest_beside(path, at, encode=lossless)) != right


def test_a_folder_that_changed_at_another_position_is_noticed(filled: Stand) -> None:
    path = filled.open_live()
    change(path, "UPDATE folder SET changed = ?, crc = ? WHERE folder_id = ?", 3, folder_row("g", 3)[2], "g")
    with pytest.raises(ProjectionDamaged, match="table folder at position 3"):
        digest_beside(path, filled.log.head())


def outcome(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except ProjectionDamaged as error:
        return str(error)


def test_an_index_that_leads_back_is_not_followed_for_ever(
    filled: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled.open_live()
    leads_back = module.OPERATIONS.replace("ORDER BY id, since", "ORDER BY id DESC")
    monkeypatch.setattr(module, "OPERATIONS", leads_back)
    with pytest.raises(ProjectionDamaged, match="out of order"):
        digest_beside(path, filled.log.head())


def test_a_projection_that_has_not_come_so_far_has_none(filled: Stand) -> None:
    path = filled.open_live()
    with pytest.raises(ProjectionDamaged, match="has not applied position 99 yet"):
        digest_beside(path, 99)


def test_a_file_built_of_a_longer_log_has_it_too(filled: Stand) -> None:
    at, before = filled.log.head(), digest_of(filled.open_live())
    filled.say([deleted("a"), updated("c", name="n")])
    assert digest_beside(build(filled.files, filled.log, encode=lossless), at) == before
