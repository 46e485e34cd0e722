"""How much callers may hold of the server, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
REQUEST_BYTES_MAX = MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Times are in seconds. None of these is an option of `serve`; they differ for tests, which cannot wait.

    Together they keep the memory that callers can take below 1 GiB, whatever they do.
    """

    # An idle connection costs 11 to 35 KiB. Never more than half of the files that the process may open.
    connections_max: int = 2048
    # Until the peer's SETTINGS have come, TLS included.
    handshake_s: float = 20
    # Without a call. Clients open another when they need it.
    idle_s: float = 5 * 60
    # Requests that have begun and are not whole, each up to REQUEST_BYTES_MAX. Honest ones come in one piece:
    # with 2000 calls in flight no more than 29 were ever seen.
    arriving_max: int = 128
    arrival_s: float = 20
    # What answers hold until their callers have taken them, in all their copies.
    untaken_bytes_max: int = 256 * MIB
    # The time for an answer to be taken is this, and what it holds at the slowest rate.
    untaken_s: float = 120
    taken_bytes_per_s_min: int = 32 * KIB
    # The same while they hold more than half of what they may: then the slowest make way.
    make_way_s: float = 1
    making_way_bytes_per_s_min: int = 512 * KIB
    # Calls of one connection that end unanswered; each half second forgets half of them. Giving up all of its
    # hundred streams at once is anybody's right.
    faults_max: int = 300
    # The rate of an upload, over the time that we wait for it: at it, the largest message takes one window.
    upload_window_s: float = 60
    upload_window_bytes_min: int = MIB
