"""Ids: 20 characters of [a-v0-9], a prefix for the kind, then time, then chance.

The time comes first so that what is made together lies together in an index; clients read nothing from it.
"""

from __future__ import annotations

ALPHABET = "0123456789abcdefghijklmnopqrstuv"
IMAGE = "fd8"
OPERATION = "fdo"
SOURCE = {"DISK": "fdd", "SNAPSHOT": "fds"}
TIME_CHARACTERS = 9  # 45 bits of milliseconds: past the year 3000.
RANDOM_BYTES = 5  # 40 bits, 8 characters.


def make(prefix: str, *, now_ns: int, random_bytes: bytes) -> str:
    """A new id. Needs a prefix of 3 characters and 5 random bytes."""
    if len(prefix) != 3 or len(random_bytes) != RANDOM_BYTES:
        raise ValueError(
            f"an id needs 3 characters and {RANDOM_BYTES} bytes, not {prefix!r}, {len(random_bytes)}"
        )
    return (
        prefix
        + _text(now_ns // 1_000_000, TIME_CHARACTERS)
        + _text(int.from_bytes(random_bytes, "big"), RANDOM_BYTES * 8 // 5)
    )


def _text(number: int, characters: int) -> str:
    return "".join(ALPHABET[number >> 5 * place & 31] for place in reversed(range(characters)))
