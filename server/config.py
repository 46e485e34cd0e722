"""What the server is told at start."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from server.bounds import Bounds

REASON_MAX = 256


class ConfigInvalid(Exception):
    """A start that is refused before anything is touched. The text names option, rule and remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The options of `serve`. `listen` and `advertise` are HOST:PORT; port 0 takes a free one.

    `min_free` is a share of the blobs' disk, 0 to 1; what ends in `_s` is in seconds.
    """

    data: Path
    listen: str
    tls_cert: Path | None = None
    tls_key: Path | None = None
    insecure: bool = False
    advertise: str | None = None
    allow_source: tuple[str, ...] = ()
    accept_clock: bool = False
    image_bytes_max: int = 10 * 1024**3
    blob_grace_s: float = 15 * 60
    min_free: float = 0.05
    checkpoint_key: Path | None = None
    rotate_checkpoint_key: bool = False
    checkpoint_interval_s: float = 60
    publish_checkpoints: Path | None = None
    accept_rollback: str | None = None
    read_only: bool = False
    projection_dir: Path | None = None
    in_flight_max: int = 2048
    bounds: Bounds = field(default_factory=Bounds)

    def check(self) -> None:
        """Raises ConfigInvalid."""
        host, _ = split_address(self.listen, option="--listen")
        if self.advertise is not None:
            split_address(self.advertise, option="--advertise")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigInvalid("--tls-cert and --tls-key belong together: give both or neither")
        if self.tls_cert is None and not self.insecure and not is_loopback(host):
            raise ConfigInvalid(
                f"--listen {self.listen} is beyond loopback and there is no TLS:"
                " give --tls-cert and --tls-key, or accept plain text with --insecure"
            )
        self._check_checkpoints()
        self._check_read_only()

    def _check_read_only(self) -> None:
        if self.projection_dir is not None and not self.read_only:
            raise ConfigInvalid(
                "--projection-dir is where --read-only keeps what it makes: leave it out, or give both"
            )
        writes = {
            "--allow-source": self.allow_source,
            "--accept-clock": self.accept_clock,
            "--accept-rollback": self.accept_rollback,
            "--checkpoint-key": self.checkpoint_key,
            "--rotate-checkpoint-key": self.rotate_checkpoint_key,
            "--publish-checkpoints": self.publish_checkpoints,
        }
        given = [name for name, value in writes.items() if value]
        if self.read_only and given:
            raise ConfigInvalid(
                f"--read-only writes nothing, and {given[0]} is for a server that does: leave it out"
            )

    def _check_checkpoints(self) -> None:
        if self.checkpoint_key is not None and self.rotate_checkpoint_key:
            raise ConfigInvalid(
                "--rotate-checkpoint-key makes a new key, and --checkpoint-key gives one:"
                " to change to another key of yours, give its file and nothing else"
            )
        if self.checkpoint_interval_s <= 0:
            raise ConfigInvalid("--checkpoint-interval must be more than 0, like 60s")
        published = self.publish_checkpoints
        if published is not None and published.resolve().is_relative_to(self.data.resolve()):
            raise ConfigInvalid(
                f"--publish-checkpoints {published} is in the data directory: whoever puts back an older copy"
                " of that puts back the checkpoints, too; give a folder elsewhere, best on another machine"
            )
        reason = self.accept_rollback
        if reason is not None and not (reason.strip() and len(reason) <= REASON_MAX):
            raise ConfigInvalid(f"--accept-rollback takes a reason of 1 to {REASON_MAX} characters: say why")


def split_address(address: str, *, option: str) -> tuple[str, int]:
    """Host and port of HOST:PORT or [IPV6]:PORT. Raises ConfigInvalid."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ConfigInvalid(f"{option} {address!r} must be HOST:PORT, like 127.0.0.1:50051 or [::1]:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
