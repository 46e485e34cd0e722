"""The key that signs checkpoints: which one it is, and how a new one comes into the log and into its file.

A new key is made in `checkpoint.key.next`, durably. Then the log says that it is the key, in one batch with
what else a start has to say. Only then does it take the place of `checkpoint.key`, and it signs nothing
before. A crash before the event leaves a key that nobody knows, and the next start takes it; a crash after it
leaves the file to be renamed by the next start. So there is never a key too many, and none that the log does
not name.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from eventstore.database import fsync_directory
from eventstore.errors import KeyFileRefused
from eventstore.keys import Signer, Verifier, create_key_file, format_vkey, generate_key, load_key_file
from eventstore.lineage import Lineage

KEY_FILE = "checkpoint.key"
NEXT_KEY_FILE = "checkpoint.key.next"
PUBLIC_KEY_FILE = "checkpoint.vkey"


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """Where a server's key is: in its data directory, or in a file that the operator gives."""

    directory: Path
    given: Path | None = None

    def find(self, said: Lineage, log_id: str | None, *, rotate: bool) -> Signer | None:
        """The key to sign with; None where a new one must be made. Nothing is written.

        `said` is what the log says of its keys, and `log_id` None where there is no log yet. Raises
        KeyFileRefused.
        """
        if self.given is not None:
            return _checked(self.given, said, log_id)
        following = self._load(NEXT_KEY_FILE, said, log_id)
        if following is not None and following.verifier == newest_key(said):
            # A crash came between the event and the file's last name.
            return following
        present = None if rotate else self._load(KEY_FILE, said, log_id)
        return present or following

    def is_lost(self, said: Lineage, signer: Signer | None) -> bool:
        """Whether the key that the log names is not here, and another one signs because of that."""
        if self.given is not None or (self.directory / KEY_FILE).exists():
            return False
        newest = newest_key(said)
        return newest is not None and (signer is None or signer.verifier != newest)

    def make(self, log_id: str, random_bytes: bytes) -> Signer:
        """A new key of 32 random bytes, durably where `settle` finds it. Raises KeyFileRefused."""
        signer = generate_key(log_id, random_bytes)
        create_key_file(self.directory / NEXT_KEY_FILE, signer)
        return signer

    def settle(self, signer: Signer) -> None:
        """Gives the key its last name, now that the log names it, and writes its public part beside it.

        A key that it takes the place of is gone with that. Raises OSError, KeyFileRefused.
        """
        for draft in self.directory.glob(f".{NEXT_KEY_FILE}.*"):
            draft.unlink()  # Of a start that was killed while it made a key.
        following = self.directory / NEXT_KEY_FILE
        if following.exists():
            if self.given is None and load_key_file(following).verifier == signer.verifier:
                following.replace(self.directory / KEY_FILE)
            else:
                following.unlink()  # The log never named it.
            fsync_directory(self.directory)
        _write(self.directory / PUBLIC_KEY_FILE, format_vkey(signer.verifier) + "\n")

    def _load(self, name: str, said: Lineage, log_id: str | None) -> Signer | None:
        path = self.directory / name
        return _checked(path, said, log_id) if path.exists() else None


def newest_key(said: Lineage) -> Verifier | None:
    """The key that the log says signs now."""
    return said.keys[-1].verifier if said.keys else None


def _checked(path: Path, said: Lineage, log_id: str | None) -> Signer:
    """The key in a file, if it may sign for this log. Raises KeyFileRefused."""
    signer = load_key_file(path)
    if log_id is None:
        raise KeyFileRefused(
            path,
            f"is the key of log {signer.name}, and there is no log here",
            "put that log back; or, for a new one, move the key away: it gets a key of its own",
        )
    if signer.name != log_id:
        raise KeyFileRefused(
            path,
            f"is the key of log {signer.name}, and this is {log_id}",
            "put that log back, or give the key of this log",
        )
    for key in said.keys[:-1]:
        if key.verifier == signer.verifier and signer.verifier != newest_key(said):
            raise KeyFileRefused(
                path,
                f"was the key of this log until position {key.until} and is none any more",
                "give the one that came after it, or move this one away: a new one is made",
            )
    return signer


def _write(path: Path, text: str) -> None:
    """Puts a text into a file in one step, unless it is there. Raises OSError."""
    if path.is_file() and path.read_bytes() == text.encode():
        return
    draft = path.with_name(path.name + ".new")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    fsync_directory(path.parent)
