"""A disk that is really full, and faults of all kinds at random."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from server.gen.imageledger.v1 import source_service_pb2
from tests.conformance.api import MIB, Code, refused
from tests.conformance.sites import until
from tests.conformance.test_start import CAN_MOUNT, mounted
from tests.crash.faults import FOLDER, Ask, Attempt, Service, check_refusal, done, some_bytes
from tests.failing_disk import EIO, ENOSPC, Fault, compiled

DISK_MIB = 24
# Left free at first: so the disk is full in the middle of this or that.
FREE_BYTES = (0, 16 * 1024, 100_000, 400_000)
WRITES_MAX = 500


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    if not CAN_MOUNT:
        pytest.skip("needs the right to mount")
    folder = tmp_path / "disk"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none"):
        yield folder


def fill(disk: Path, *, free_bytes: int) -> Path:
    filler = disk / "filler"
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - free_bytes)
    return filler


def test_a_full_disk_refuses_writes_and_nothing_else_until_there_is_room(disk: Path, tmp_path: Path) -> None:
    with Service(disk / "data", tmp_path, compiled(tmp_path)) as service:
        for free_bytes in FREE_BYTES:
            filler = fill(disk, free_bytes=free_bytes)
            pending = until_it_is_full(service)
            service.check_reads()
            refused_upload = service.attempt(service.upload(some_bytes(MIB // 2)))
            assert refused_upload.refusal is not None
            filler.unlink()
            attempts = [refused_upload, *(future.result() for future in pending)]
            until(service.is_healthy)
            service.check_files()
            service.again(attempts)
        too_large = refused(lambda: upload(service, DISK_MIB * MIB))
        assert (too_large.code, too_large.reason) == (Code.RESOURCE_EXHAUSTED, "DISK_FULL")
        done(service.attempt(service.update))
        service.check_end()


def until_it_is_full(service: Service) -> list[Future[Attempt]]:
    """Writes until one is not done at once: it is refused, or waits for the log to be opened again."""
    for _ in range(WRITES_MAX):
        begun = service.begin(service.update)
        until(lambda: begun[0].done() or not service.is_healthy())  # noqa: B023
        if not begun[0].done() or begun[0].result().refusal is not None:
            return begun
    raise AssertionError("the disk never was full")


def upload(service: Service, size_bytes: int) -> source_service_pb2.Source:
    header = source_service_pb2.SourceHeader(folder_id=FOLDER, kind=source_service_pb2.DISK)
    return service.api.upload(header, (some_bytes(MIB // 2) for _ in range(2 * size_bytes // MIB)))


ROUNDS = 12
DATABASES = ("*/log.db-wal", "*/log.db-wal", "*/projections-*.db-wal", "*/log.db", "*/projections-*.db")
CALLS_OF_DATABASES = ("write", "write", "fsync", "create", "truncate")
CALLS_OF_BLOBS = ("create", "write", "fsync", "mkdir", "rename", "unlink")


def test_no_fault_makes_an_answer_wrong(tmp_path: Path) -> None:
    """Three faults at a time, anywhere, under writes of every kind, and a kill now and then."""
    seed = int(os.environ.get("IMAGELEDGER_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"IMAGELEDGER_TEST_SEED={seed}")
    choices = random.Random(seed)
    with Service(tmp_path / "data", tmp_path, compiled(tmp_path)) as service:
        for number in range(ROUNDS):
            faults = [random_fault(choices) for _ in range(3)]
            asked = [ask for _ in range(2) for ask in every_kind(service)]
            with service.disk.failing(*faults):
                attempts = [future.result() for future in service.begin(*asked)]
            for attempt in attempts:
                if attempt.refusal is not None:
                    check_refusal(attempt.refusal)
            service.check_files()
            service.again(attempts)
            if number % 4 == 3:
                service.kill()
                service.start()
        # Otherwise nothing was tested.
        assert len(service.disk.hits()) > ROUNDS // 4
        service.check_end()


def every_kind(service: Service) -> list[Ask]:
    return [service.create, service.update, service.delete(), service.upload(), service.update]


def random_fault(choices: random.Random) -> Fault:
    is_blob = choices.random() < 0.25
    return Fault(
        choices.choice(CALLS_OF_BLOBS if is_blob else CALLS_OF_DATABASES),
        "*/blobs*" if is_blob else choices.choice(DATABASES),
        choices.choice((EIO, ENOSPC)),
        choices.choice(("before", "half", "after")),
        skip=choices.choice((0, 0, 1, 5, 20)),
        times=choices.choice((1, 2)),
    )
