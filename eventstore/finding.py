"""What a check of everything finds: the words that `log verify` and `scrub` share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

# What stands there is not what was written.
EDIT: Final = "EDIT"
# Something that was there is missing.
TRUNCATION: Final = "TRUNCATION"
REORDER: Final = "REORDER"
# Something is there that was not written, or that stands twice.
INSERTION: Final = "INSERTION"
# The bytes are right, and what repeats them for indexes is not.
COLUMN: Final = "COLUMN"

RESTORE: Final = "restore the log from a backup"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not what was written. Without a position the message names a file."""

    kind: str
    position: int | None
    message: str
    remedy: str = RESTORE
