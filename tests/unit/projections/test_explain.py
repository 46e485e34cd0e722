"""Which answers two projections of one log give otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgpack
import pytest

from eventstore import database
from projections.build import build
from projections.changes import Change
from projections.explain import Difference, NotComparable, differences
from tests.unit.projections.builders import Stand, change, image, lossless, registered, updated

Files = tuple[Path, Path]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    """Two files of one log, equal so far."""
    with closing(Stand(tmp_path)) as stand:
        stand.say([registered("d"), *image("a", family="web"), updated("a", description="new"), *image("b")])
        yield (
            build(stand.files, stand.log, encode=lossless),
            build(stand.files, stand.log, encode=lossless),
        )


def test_equal_files_differ_in_nothing(files: Files) -> None:
    assert list(differences(*files)) == []


def test_another_field_of_an_image_is_told_as_an_answer_has_it(files: Files) -> None:
    in_state(files[1], 5, lambda state: {**state, "description": "newer"})
    assert list(differences(*files)) == [Difference("image", "a", 5, [Change("description", "new", "newer")])]


def test_a_private_field_is_told_by_its_name(files: Files) -> None:
    in_state(files[1], 5, lambda state: {**state, "operation_id": "other"})
    [found] = differences(*files)
    assert [one.field for one in found.fields] == ["operation_id"]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_row_that_one_of_them_lacks(files: Files, missing: int) -> None:
    change(files[missing], "DELETE FROM image WHERE since = 5")
    [found] = differences(*files)
    assert (found.table, found.what, found.position) == ("image", "a", 5)
    side = [one.new if missing else one.old for one in found.fields]
    assert set(side) == {None}


def test_another_answer_of_a_family(files: Files) -> None:
    change(files[1], "UPDATE family_latest SET image_id = 'b'")
    assert list(differences(*files)) == [
        Difference("family_latest", "f web", 4, [Change("image_id", "a", "b")])
    ]


def test_pages_follow_one_another(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projections.explain.PAGE_ROWS", 1)
    assert list(differences(*files)) == []
    change(files[0], "DELETE FROM operation WHERE since = (SELECT max(since) FROM operation)")
    assert [found.table for found in differences(*files)] == ["operation"]


def test_files_with_other_tables_cannot_be_compared(files: Files) -> None:
    change(files[0], "ALTER TABLE source RENAME TO origin")
    with pytest.raises(NotComparable, match="source"):
        list(differences(*files))


def in_state(path: Path, since: int, make: Callable[[dict[str, object]], dict[str, object]]) -> None:
    connection = database.connect(path, access="write", synchronous="OFF")
    try:
        [state] = connection.execute("SELECT state FROM image WHERE since = ?", (since,)).fetchone()
        packed = msgpack.packb(make(msgpack.unpackb(state)))
        connection.execute("UPDATE image SET state = ? WHERE since = ?", (packed, since))
    finally:
        connection.close()
