from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.event import Position
from eventstore.merkle import (
    EMPTY,
    TreeSize,
    damaged_row,
    extend,
    leaf_hash,
    leaf_index,
    load_frontier,
    node_of,
    node_position,
    position_of,
    root,
)
from tests.unit.eventstore.trees import bodies_of, naive_root

SIZES = range(101)


def rows_of(size: int) -> list[bytes]:
    return extend(EMPTY, map(leaf_hash, bodies_of(size)))[1]


@pytest.mark.parametrize("size", SIZES)
def test_root_is_that_of_the_rfc(size: int) -> None:
    frontier, _ = extend(EMPTY, map(leaf_hash, bodies_of(size)))
    assert frontier.size == size
    assert root(frontier) == naive_root(bodies_of(size))


@pytest.mark.parametrize(
    ("bodies", "expected"),
    [
        pytest.param([], "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", id="empty"),
        pytest.param([b""], "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d", id="one"),
        pytest.param(
            [b"", b"\x00"], "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125", id="two"
        ),
    ],
)
def test_published_roots(bodies: list[bytes], expected: str) -> None:
    """The vectors of the Certificate Transparency reference implementation."""
    assert root(extend(EMPTY, map(leaf_hash, bodies))[0]).hex() == expected


@pytest.mark.parametrize("size", SIZES)
def test_a_frontier_is_loaded_with_one_read_for_each_set_bit(size: int) -> None:
    rows = rows_of(size)
    reads: list[int] = []

    def read(position: Position) -> bytes:
        reads.append(position)
        return rows[leaf_index(position)]

    loaded = load_frontier(TreeSize(size), read)
    assert loaded == extend(EMPTY, map(leaf_hash, bodies_of(size)))[0]
    assert len(reads) == size.bit_count()


def test_a_row_holds_every_complete_subtree_that_ends_there() -> None:
    bodies = bodies_of(100)
    rows = rows_of(100)
    for position in range(1, 101):
        levels = (position & -position).bit_length()
        assert len(rows[position - 1]) == 32 * levels
        for level in range(levels):
            node = node_of(rows[position - 1], level)
            assert node == naive_root(bodies[position - 2**level : position])
            assert node_position(level, (position >> level) - 1) == position
        assert position_of(leaf_index(Position(position))) == position


def test_a_short_row_is_refused() -> None:
    with pytest.raises(ValueError, match="level 1"):
        load_frontier(TreeSize(2), lambda _: bytes(32))


@pytest.mark.parametrize("position", range(1, 101))
def test_a_right_row_is_checked_with_one_read_for_each_node(position: int) -> None:
    rows = rows_of(100)
    reads: list[int] = []

    def read(position: Position) -> bytes:
        reads.append(position)
        return rows[leaf_index(position)]

    assert damaged_row(Position(position), read) is None
    assert len(reads) == (position & -position).bit_length()


@pytest.mark.parametrize(
    ("damaged", "level"),
    [(64, 6), (64, 1), (64, 4), (32, 5), (48, 4), (56, 3), (62, 1)],
)
def test_the_damaged_row_is_the_one_named(damaged: int, level: int) -> None:
    rows = rows_of(100)
    row = bytearray(rows[damaged - 1])
    row[32 * level + 7] ^= 1
    rows[damaged - 1] = bytes(row)
    assert damaged_row(Position(64), lambda position: rows[leaf_index(position)]) == damaged


@given(st.lists(st.integers(0, 20), max_size=12))
def test_batches_make_no_difference(sizes: list[int]) -> None:
    leaves = list(map(leaf_hash, bodies_of(sum(sizes))))
    frontier, rows, start = EMPTY, [], 0
    for size in sizes:
        frontier, more = extend(frontier, leaves[start : start + size])
        rows += more
        start += size
    assert (frontier, rows) == extend(EMPTY, leaves)
