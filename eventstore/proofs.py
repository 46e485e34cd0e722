"""Inclusion and consistency proofs of RFC 6962 §2.1.1 and §2.1.2 (RFC 9162 §2.1.3 and §2.1.4).

Pure functions; rows are read through an argument. Making and checking, of both kinds, is one walk: from a
complete subtree up to the root, past the subtrees beside the way. For inclusion it starts at the leaf. For
consistency it starts at the last complete subtree of the older tree, which the newer one has as well: those
beside it on the left make up the rest of the older tree, those on the right are what came since.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

from eventstore.errors import ProofWrong
from eventstore.event import INTEGER_MAX, Position
from eventstore.merkle import (
    HASH_SIZE_BYTES,
    Frontier,
    LeafIndex,
    RowReader,
    TreeSize,
    frontier_positions,
    levels_of,
    node_hash,
    node_of,
    root,
)

# Hashes from the deepest to the one below the root.
Proof: TypeAlias = tuple[bytes, ...]

# A tree of 2**63 - 1 leaves has proofs no longer than this.
HASHES_MAX: Final = 64


class _Beside(NamedTuple):
    """A subtree beside the way up: its leaves from `low` up to but not including `high`."""

    low: int
    high: int
    is_left: bool


def inclusion_proof(index: LeafIndex, size: TreeSize, read: RowReader) -> Proof:
    """That a leaf is in the tree of the first `size` leaves.

    Needs 0 <= index < size. Reads O(log size) rows, none of them after position `size`.
    Raises ValueError, also where a row is too short.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}: they are counted from 0")
    return tuple(_subtree(beside.low, beside.high, read) for beside in _way_up(0, index, size))


def consistency_proof(*, old_size: TreeSize, size: TreeSize, read: RowReader) -> Proof:
    """That the tree of the first `old_size` leaves is the beginning of that of the first `size`.

    Needs 1 <= old_size <= size. Reads O(log size) rows, none of them after position `size`.
    Raises ValueError, also where a row is too short.
    """
    if not 1 <= old_size <= size:
        raise ValueError(f"a tree of {size} leaves begins with none of {old_size}")
    if old_size == size:
        return ()
    level, index = _last_subtree(old_size)
    # Where it is the whole older tree, its hash is that tree's root, which the one who checks has already.
    first = () if index == 0 else (node_of(read(Position(old_size)), level),)
    return (
        *first,
        *(_subtree(beside.low, beside.high, read) for beside in _way_up(level, index, size)),
    )


def check_inclusion(
    leaf: bytes, proof: Sequence[bytes], *, index: LeafIndex, size: TreeSize, expected: bytes
) -> None:
    """Returns if the proof shows a leaf hash at this index of the tree whose root is `expected`.

    Raises ProofWrong for everything else, whatever the values are.
    """
    if not 0 <= index < size <= INTEGER_MAX:
        raise ProofWrong("inclusion", f"a tree of {size} leaves has no leaf {index}, counted from 0")
    way = tuple(_way_up(0, index, size))
    _check_shape("inclusion", (leaf, expected), proof, len(way), f"leaf {index} in a tree of {size} leaves")
    node = leaf
    for beside, other in zip(way, proof, strict=True):
        node = node_hash(other, node) if beside.is_left else node_hash(node, other)
    if node != expected:
        raise ProofWrong("inclusion", f"it leads to the root {node.hex()}, not to {expected.hex()}")


def check_consistency(
    proof: Sequence[bytes], *, old_size: TreeSize, old_root: bytes, size: TreeSize, expected: bytes
) -> None:
    """Returns if the proof shows that a tree begins with an older one; `expected` is the newer root.

    Raises ProofWrong for everything else, whatever the values are.
    """
    if not 1 <= old_size <= size <= INTEGER_MAX:
        raise ProofWrong("consistency", f"a tree of {size} leaves begins with none of {old_size}")
    level, index = _last_subtree(old_size)
    way = () if old_size == size else tuple(_way_up(level, index, size))
    sends_first = bool(way) and index != 0
    where = f"from {old_size} to {size} leaves"
    _check_shape("consistency", (old_root, expected), proof, len(way) + sends_first, where)
    old = new = proof[0] if sends_first else old_root
    for beside, other in zip(way, proof[int(sends_first) :], strict=True):
        if beside.is_left:
            old, new = node_hash(other, old), node_hash(other, new)
        else:
            new = node_hash(new, other)
    if old != old_root:
        raise ProofWrong("consistency", f"it leads to the older root {old.hex()}, not to {old_root.hex()}")
    if new != expected:
        raise ProofWrong("consistency", f"it leads to the newer root {new.hex()}, not to {expected.hex()}")


def _way_up(level: int, index: int, size: int) -> Iterator[_Beside]:
    """What lies beside the way from a complete subtree up to the root of the tree of `size` leaves.

    Where nothing lies beside it, on the right edge, the subtree is that of the next level as it stands.
    """
    while 1 << level < size:
        low = (index ^ 1) << level
        if low < size:
            yield _Beside(low, min(low + (1 << level), size), is_left=bool(index & 1))
        level += 1
        index >>= 1


def _last_subtree(size: TreeSize) -> tuple[int, int]:
    """Level and index of the last complete subtree of a tree; index 0 where it is the whole tree."""
    level = levels_of(Position(size)) - 1
    return level, (size >> level) - 1


def _subtree(low: int, high: int, read: RowReader) -> bytes:
    """The hash over some leaves that begin where a complete subtree of their number or more begins.

    One row where they are a complete subtree. At most one subtree of a proof is not: the last one.
    """
    size = TreeSize(high - low)
    nodes = (node_of(read(Position(low + position)), level) for level, position in frontier_positions(size))
    return root(Frontier(size, tuple(nodes)))


def _check_shape(kind: str, hashes: Sequence[bytes], proof: Sequence[bytes], length: int, where: str) -> None:
    """Raises ProofWrong for another number of hashes than these trees have, and for what is no hash."""
    if len(proof) != length:
        raise ProofWrong(kind, f"it has {len(proof)} hashes, that of {where} has {length}")
    for node in (*hashes, *proof):
        if len(node) != HASH_SIZE_BYTES:
            raise ProofWrong(kind, f"a hash has {HASH_SIZE_BYTES} bytes, one of these has {len(node)}")
