"""The Merkle tree of RFC 6962 §2.1 (RFC 9162 §2.1) over the log: pure functions, nothing is read here.

Event p is leaf p - 1. Its row holds, one after the other, the hashes of all complete subtrees that end at p:
node (level, i) is bytes [32·level, 32·level + 32) of row (i + 1)·2^level. So a log needs no table of nodes,
and any node is one read away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Final, NamedTuple, NewType, TypeAlias

from eventstore.event import Position

LeafIndex = NewType("LeafIndex", int)
TreeSize = NewType("TreeSize", int)

HASH_SIZE_BYTES: Final = 32

# Gives the hashes of the row at a position.
RowReader: TypeAlias = Callable[[Position], bytes]


class Frontier(NamedTuple):
    """The complete subtrees that together cover the first `size` leaves, largest first: one per set bit."""

    size: TreeSize
    nodes: tuple[bytes, ...]


EMPTY: Final = Frontier(TreeSize(0), ())


def leaf_index(position: Position) -> LeafIndex:
    """The index of an event's leaf, counted from 0."""
    return LeafIndex(position - 1)


def position_of(index: LeafIndex) -> Position:
    """The position of the event of a leaf. Inverse: leaf_index."""
    return Position(index + 1)


def leaf_hash(body: bytes) -> bytes:
    """The leaf of an event's canonical bytes. Source: RFC 6962 §2.1."""
    return sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The node above two others. Source: RFC 6962 §2.1."""
    return sha256(b"\x01" + left + right).digest()


def node_position(level: int, index: int) -> Position:
    """The position whose row holds a node: that of the last leaf below it."""
    return Position((index + 1) << level)


def node_of(hashes: bytes, level: int) -> bytes:
    """The node of one level among the hashes of a row. Raises ValueError where the row ends before it."""
    node = hashes[HASH_SIZE_BYTES * level : HASH_SIZE_BYTES * (level + 1)]
    if len(node) != HASH_SIZE_BYTES:
        raise ValueError(f"{len(hashes)} bytes of hashes hold no node of level {level}")
    return node


def levels_of(position: Position) -> int:
    """The number of complete subtrees that end at a position: of the hashes in its row."""
    return (position & -position).bit_length()


def extend(frontier: Frontier, leaves: Iterable[bytes]) -> tuple[Frontier, list[bytes]]:
    """The frontier after these leaves, and for each of them the hashes of its row, lowest level first.

    One more hash a leaf on average. The frontier given stays as it is: keep it until the leaves are durable.
    """
    size = int(frontier.size)
    nodes = list(frontier.nodes)
    rows = []
    for leaf in leaves:
        node = row = leaf
        index = size
        while index & 1:
            node = sha256(b"\x01" + nodes.pop() + node).digest()
            row += node
            index >>= 1
        nodes.append(node)
        rows.append(row)
        size += 1
    return Frontier(TreeSize(size), tuple(nodes)), rows


def load_frontier(size: TreeSize, read: RowReader) -> Frontier:
    """The frontier of the first `size` leaves, from one row for each set bit of size.

    Raises ValueError where a row is too short.
    """
    return Frontier(
        size, tuple(node_of(read(position), level) for level, position in frontier_positions(size))
    )


def frontier_positions(size: TreeSize) -> list[tuple[int, Position]]:
    """The level of each node of a frontier and the position whose row holds it, largest subtree first."""
    return [
        (level, node_position(level, (size >> level) - 1))
        for level in reversed(range(size.bit_length()))
        if size >> level & 1
    ]


def damaged_row(position: Position, read: RowReader) -> Position | None:
    """The row that is to blame where the nodes of a row are not made of those below them; None if they are.

    Needs rows of the right length, whose leaves are known to be right. Reads one row for each node of this
    one, and O(log² size) of them to find the one to blame, which is this one or one on its left.
    Raises ValueError where a row is too short.
    """
    row = read(position)
    for level in range(1, levels_of(position)):
        left = Position(position - (1 << (level - 1)))
        node = node_hash(node_of(read(left), level - 1), node_of(row, level - 1))
        if node != node_of(row, level):
            return damaged_row(left, read) or position
    return None


def root(frontier: Frontier) -> bytes:
    """The root hash of the tree that a frontier covers. Source: RFC 6962 §2.1."""
    if not frontier.nodes:
        return sha256(b"").digest()
    *rest, node = frontier.nodes
    for left in reversed(rest):
        node = node_hash(left, node)
    return node
