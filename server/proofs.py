"""Receipts of events, all of one answer led to one checkpoint, as messages of imageledger.v1."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from eventstore.checkpoint import KeptCheckpoint
from eventstore.event import Position
from eventstore.lineage import Lineage, lineage
from eventstore.reader import LogReader
from eventstore.receipt import prove_all
from server.checkpoints import Checkpoints
from server.gen.imageledger.v1 import proof_service_pb2 as pb
from server.logs import Logs
from server.readers import Readers

PAGE_RECEIPTS = 32
Done = TypeVar("Done")


class Proofs:
    """Reads in the reading threads, so that a proof from a large log holds up nobody. For the event loop."""

    def __init__(self, checkpoints: Checkpoints, readers: Readers, logs: Logs) -> None:
        self._checkpoints = checkpoints
        self._readers = readers
        self._logs = logs
        self._said: Lineage | None = None

    async def newest(self, position: int) -> KeptCheckpoint:
        """A checkpoint that covers this position, which is applied. Raises CallRefused, EventStoreError."""
        return await self._checkpoints.covering(position)

    async def receipts(self, positions: Iterable[int], note: str, *, deadline: float) -> list[pb.Receipt]:
        """The receipts of events that the checkpoint of a note covers, in the order given.

        A page at a time, so that no thread is kept from others for long.
        """
        wanted, found = list(positions), []
        for first in range(0, len(wanted), PAGE_RECEIPTS):
            page = wanted[first : first + PAGE_RECEIPTS]
            found += await self.run(lambda log: _receipts(log, page, note), deadline=deadline)  # noqa: B023
        return found

    async def said(self, *, deadline: float) -> Lineage:
        """What the log says of its keys: it says no more of them while a server runs."""
        if self._said is None:
            self._said = await self.run(lineage, deadline=deadline)
        return self._said

    async def run(self, step: Callable[[LogReader], Done], *, deadline: float) -> Done:
        return await self._readers.run(lambda _: step(self._logs.get()), deadline=deadline)


def _receipts(log: LogReader, positions: Iterable[int], note: str) -> list[pb.Receipt]:
    return [
        pb.Receipt(position=receipt.position, event=receipt.body, proof=receipt.proof)
        for receipt in prove_all(log, map(Position, positions), note)
    ]
