"""How fast a long reading goes, by a clock that only waiting and working move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pace import BURST_S, Pace

RATE = 1000


class Time:
    """A monotonic clock, and all the waits there were."""

    def __init__(self) -> None:
        self.now = 50.0
        self.waited: list[float] = []

    def clock(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def pace(time: Time) -> Pace:
    return Pace(RATE, wait=time.wait, clock=time.clock)


def test_what_was_read_in_no_time_is_waited_for(time: Time, pace: Pace) -> None:
    for _ in range(10):
        pace.took(500)
    assert time.now == pytest.approx(50 + 10 * 500 / RATE)


def test_time_that_was_spent_reading_counts(time: Time, pace: Pace) -> None:
    """Half of what the rate asks for was spent already, and the other half is waited for."""
    time.now += 0.25
    pace.took(500)
    assert sum(time.waited) == pytest.approx(0.5 - min(BURST_S, 0.25))


def test_idle_time_is_not_saved_up(time: Time, pace: Pace) -> None:
    """Of a pause of a minute, no more than a tenth of a second is caught up."""
    pace.took(0)
    time.now += 60
    time.waited.clear()
    pace.took(0)
    [rest] = time.waited
    for _ in range(10):
        pace.took(500)
    assert time.now - (50 + 60 + rest) >= 10 * 500 / RATE - BURST_S


def test_it_rests_as_long_as_it_worked(time: Time, pace: Pace) -> None:
    """However little was read: others need the process, too."""
    for worked in (0.001, 0.02, 3.0):
        time.now += worked
        pace.took(1)
        assert time.waited[-1] == pytest.approx(worked)


@given(st.lists(st.tuples(st.floats(0, 0.3), st.integers(0, 400)), max_size=50))
def test_the_rate_is_never_exceeded(steps: list[tuple[float, int]]) -> None:
    """From the beginning on, and from any step on, but for what the bucket holds."""
    time = Time()
    pace = Pace(RATE, wait=time.wait, clock=time.clock)
    ends: list[tuple[float, int]] = [(time.now, 0)]
    for worked, size_bytes in steps:
        time.now += worked
        pace.took(size_bytes)
        ends.append((time.now, ends[-1][1] + size_bytes))
    for place, (since, before) in enumerate(ends):
        for until, read in ends[place:]:
            assert read - before <= RATE * (until - since + BURST_S) + 1e-3


def test_what_the_wait_raises_ends_it(time: Time) -> None:
    def give_up(seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Pace(RATE, wait=give_up, clock=time.clock).took(1)


def test_the_default_clock_does_not_go_back() -> None:
    waits: list[float] = []
    wait: Callable[[float], None] = waits.append
    Pace(10**12, wait=wait).took(1)
    assert waits[0] >= 0
