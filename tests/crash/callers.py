"""Clients that go on while the server is killed and started again elsewhere."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

import grpc

from tests.harness import Client

# The caller does not know what became of the call.
UNKNOWN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
COMES_BACK_S = 60


class Over(Exception):
    """The server is gone, and the callers shall not go on."""


@dataclass
class Place:
    """Where the server is now, and whether the callers shall go on."""

    address: str = ""
    # Counted, because a new server may happen to get the old one's port.
    moves: int = 0
    is_over: bool = False
    moved: threading.Condition = field(default_factory=threading.Condition)

    def move_to(self, address: str) -> None:
        with self.moved:
            self.address = address
            self.moves += 1
            self.moved.notify_all()

    def end(self) -> None:
        with self.moved:
            self.is_over = True
            self.moved.notify_all()

    def after(self, moves: int) -> tuple[int, str]:
        """How often the server has moved, once that is more, and where to. Raises Over if it will not."""
        with self.moved:
            came = self.moved.wait_for(lambda: self.moves > moves or self.is_over, timeout=COMES_BACK_S)
            if not came:
                raise AssertionError("the server did not come back")
            if self.moves == moves:
                raise Over
            return self.moves, self.address


class Caller(threading.Thread):
    """One client. `turn` is run again and again until the place is over; what it raises is its `failure`."""

    def __init__(self, place: Place, name: str, seed: int) -> None:
        super().__init__(name=name)
        self.place = place
        self.choices = random.Random(f"{seed} {name}")
        self.moves = place.moves
        self.client = Client(place.address)
        self.failure: BaseException | None = None

    def turn(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        try:
            while not self.place.is_over:
                self.turn()
        except Over:
            pass
        except BaseException as error:
            self.failure = error
        finally:
            self.client.channel.close()

    def follow(self) -> None:
        """Go where the server is, once it is elsewhere."""
        self.client.channel.close()
        self.moves, address = self.place.after(self.moves)
        self.client = Client(address)


def check_callers(callers: Sequence[Caller]) -> None:
    """Raises what one of them has failed with."""
    for caller in callers:
        if caller.failure is not None:
            raise caller.failure


def joined(callers: Sequence[Caller]) -> None:
    """Once all of them have ended. Raises what one of them has failed with."""
    for caller in callers:
        caller.join(COMES_BACK_S)
    check_callers(callers)
    assert not [caller for caller in callers if caller.is_alive()]
