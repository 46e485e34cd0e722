"""The trees that tests of proofs are made over, and the definitions of RFC 6962 §2.1, as they stand there."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from eventstore.event import Position
from eventstore.merkle import EMPTY, RowReader, extend, leaf_hash, leaf_index


def bodies_of(size: int) -> list[bytes]:
    return [b"event %d" % index for index in range(size)]


def reader_of(bodies: Iterable[bytes], reads: list[int] | None = None) -> RowReader:
    """Reads the rows of a log of these bodies, and notes down which."""
    rows = extend(EMPTY, map(leaf_hash, bodies))[1]

    def read(position: Position) -> bytes:
        if reads is not None:
            reads.append(position)
        return rows[leaf_index(position)]

    return read


def naive_root(bodies: list[bytes]) -> bytes:
    """MTH(D[n])."""
    if not bodies:
        return sha256(b"").digest()
    if len(bodies) == 1:
        return sha256(b"\x00" + bodies[0]).digest()
    split = _split(len(bodies))
    return sha256(b"\x01" + naive_root(bodies[:split]) + naive_root(bodies[split:])).digest()


def naive_path(index: int, bodies: list[bytes]) -> list[bytes]:
    """PATH(m, D[n])."""
    if len(bodies) == 1:
        return []
    split = _split(len(bodies))
    if index < split:
        return [*naive_path(index, bodies[:split]), naive_root(bodies[split:])]
    return [*naive_path(index - split, bodies[split:]), naive_root(bodies[:split])]


def naive_proof(old_size: int, bodies: list[bytes], *, is_known: bool = True) -> list[bytes]:
    """PROOF(m, D[n]), which is SUBPROOF(m, D[n], true)."""
    if old_size == len(bodies):
        return [] if is_known else [naive_root(bodies)]
    split = _split(len(bodies))
    if old_size <= split:
        return [*naive_proof(old_size, bodies[:split], is_known=is_known), naive_root(bodies[split:])]
    return [*naive_proof(old_size - split, bodies[split:], is_known=False), naive_root(bodies[:split])]


def _split(size: int) -> int:
    """The largest power of two smaller than a size."""
    split = 1
    while split * 2 < size:
        split *= 2
    return split
