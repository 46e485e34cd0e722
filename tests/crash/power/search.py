"""Power cuts, chosen by a seed, until enough distinct states were found to be right, or one is wrong."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.crash.power.checker import History, check, place
from tests.crash.power.disk import DATA_SURVIVE, NAMES_SURVIVE, Cut, State, after
from tests.crash.power.recording import Moment, Recording

# States are made in the order of their moments, a round at a time: each then continues the one before it.
ROUND = 100
# Most calls are writes; what a cut leaves differs most around the others.
WRITES = ("write", "pwrite64")


@dataclass(frozen=True, slots=True)
class Finding:
    """A state that is not what was promised."""

    moment: Moment
    cut: Cut
    state: State
    error: Exception

    def __str__(self) -> str:
        return f"{self.cut} in {self.moment.call}: {type(self.error).__name__}: {self.error}"


@dataclass(slots=True)
class Search:
    """The states of one recording. `checked` counts the distinct ones so far."""

    recording: Recording
    history: History
    choices: random.Random
    checked: int = 0
    # What was checked: a state, and after how many answers.
    _seen: set[tuple[bytes, int]] = field(default_factory=set)
    _marks: set[bytes] = field(default_factory=set)

    def some(self, count: int) -> Iterator[Finding]:
        """What is wrong with `count` distinct states, chosen among all."""
        while self.checked < count:
            yield from self._wrong(self._chosen(min(ROUND, count - self.checked)))

    def at_every_moment(self, count: int) -> Iterator[Finding]:
        """What is wrong where at every moment all and nothing survives, and so many other cuts are made."""
        return self._wrong(
            (moment, cut)
            for moment in self.recording.moments
            for cut in (
                Cut(moment.line, "all", "all", 0),
                Cut(moment.line, "none", "none", 0),
                *(self._cut(moment) for _ in range(count)),
            )
        )

    def _wrong(self, cuts: Iterable[tuple[Moment, Cut]]) -> Iterator[Finding]:
        """What is wrong with the states of these cuts, each of which is checked once."""
        with tempfile.TemporaryDirectory(prefix="power-", dir=place()) as folder:
            for number, (moment, cut) in enumerate(cuts):
                told = self.recording.told_before(moment)
                state = after(self.recording.root, cut)
                if not self._is_new(state, len(told)):
                    continue
                try:
                    check(state, told, self.history, folder=Path(folder) / str(number))
                except Exception as error:
                    yield Finding(moment, cut, state, error)

    def _is_new(self, state: State, told: int) -> bool:
        mark = fingerprint(state)
        is_new = (mark, told) not in self._seen
        self._seen.add((mark, told))
        self._marks.add(mark)
        self.checked = len(self._marks)
        return is_new

    def _chosen(self, count: int) -> Iterator[tuple[Moment, Cut]]:
        moments = self.recording.moments
        edges = [moment for moment in moments if moment.call not in WRITES]
        chosen = [self.choices.choice(self.choices.choice((moments, edges))) for _ in range(count)]
        for moment in sorted(chosen, key=lambda one: one.line):
            yield moment, self._cut(moment)

    def _cut(self, moment: Moment) -> Cut:
        names, data = self.choices.choice(NAMES_SURVIVE), self.choices.choice(DATA_SURVIVE)
        return Cut(moment.line, names, data, self.choices.getrandbits(32))


def fingerprint(state: State) -> bytes:
    """Equal exactly for equal states."""
    digest = hashlib.blake2b(digest_size=16)
    for path, (content, mode) in state.items():
        digest.update(f"{path}\0{mode}\0{-1 if content is None else len(content)}\0".encode())
        digest.update(content or b"")
    return digest.digest()
