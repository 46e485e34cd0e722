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
TIME_MAX = 2 ** (5 * TIME_CHARACTERS) - 1
_PAIRS = [one + other for one in ALPHABET for other in ALPHABET]
_PLACES = range(70, -10, -10)


def make(prefix: str, *, now_ns: int, random_bytes: bytes) -> str:
    """A new id. Needs a prefix of 3 characters and 5 random bytes."""
    if len(prefix) != 3 or len(random_bytes) != RANDOM_BYTES:
        raise ValueError(
            f"an id needs 3 characters and {RANDOM_BYTES} bytes, not {prefix!r}, {len(random_bytes)}"
        )
    milliseconds = now_ns // 1_000_000 & TIME_MAX
    number = milliseconds << 8 * RANDOM_BYTES | int.from_bytes(random_bytes, "big")
    # Seventeen characters: one, then eight pairs.
    return prefix + ALPHABET[number >> 80] + "".join([_PAIRS[number >> place & 1023] for place in _PLACES])
