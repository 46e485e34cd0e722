"""A server that is killed again and again while clients write and images are imported.

Nothing acknowledged is lost; what was not acknowledged has one outcome, which is told to whoever asks again
with its key; no image stays CREATING; no blob in use is gone, and none that nothing uses stays.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from server.gen.yandex.cloud.compute.v1 import image_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.conformance.api import Api
from tests.conformance.sites import Site, until
from tests.crash import planted
from tests.crash.callers import Place, check_callers, joined
from tests.crash.watching import Watch, stored_blobs
from tests.crash.writers import (
    CANCELLED,
    FAILED_PRECONDITION,
    IMPORT_FOLDERS,
    QUERY,
    Importing,
    Keyed,
    Writing,
)
from tests.harness import Client, Server

KILLS = 50
WRITERS = 8
IMPORTERS = 2
LOAD_S_MAX = 0.3
START_S = 0.2, 0.6
GRACE_S = 0.2
# Of what was told before the last kill, so many operations are asked for again after each.
OLD_ASKED = 20


class Kills:
    """A server and the clients that write to it; what has to hold is checked after each kill and at the end.

    From the first kill on `program` is what serves. The end waits so long for what has to come.
    """

    def __init__(
        self, folder: Path, site: Site, seed: int, *, program: Sequence[str], patience_s: float
    ) -> None:
        self.files = folder / "files"
        self.files.mkdir()
        allowed = ("--allow-source", site.prefix, "--allow-source", f"{self.files.as_uri()}/")
        self.server = Server(folder / "data", *allowed, "--blob-grace", f"{GRACE_S}s")
        self.site = site
        self.program = program
        self.patience_s = patience_s
        self.seed = seed
        self.choices = random.Random(seed)
        self.place = Place()
        self.watch = Watch(self.server.data)
        self.writers: list[Writing] = []
        self.importers: list[Importing] = []
        self.callers: list[Keyed] = []
        self.kills = 0
        self.orphans_seen = 0
        self._checked: dict[str, operation_pb2.Operation] = {}

    def begin(self) -> None:
        self.server.start()
        self.server.program = self.program
        self.place.move_to(self.server.address)
        with Client(self.server.address) as client:
            disk_id = client.disk("sources")
        self.writers = [
            Writing(self.place, f"writer-{number}", self.seed, disk_id=disk_id) for number in range(WRITERS)
        ]
        self.importers = [
            Importing(self.place, f"importer-{number}", self.seed, site=self.site, files=self.files)
            for number in range(IMPORTERS)
        ]
        self.callers = [*self.writers, *self.importers]
        for caller in self.callers:
            caller.start()

    def wait_for_answer(self) -> None:
        """However slow the machine is, each server has something to lose."""

        def answers() -> int:
            return sum(len(caller.operation_of) for caller in self.callers)

        before = answers()
        until(lambda: answers() > before or any(caller.failure for caller in self.callers))

    def kill(self) -> None:
        self.wait_for_answer()
        # Not a wait for something: the moment of the kill is the input of this test.
        time.sleep(self.choices.uniform(0, LOAD_S_MAX))
        self.server.kill()
        self.kills += 1
        check_callers(self.callers)
        self.watch.look()
        self.check_acknowledged()
        self.orphans_seen += self.watch.check_blobs()
        for caller in self.callers:
            # Nobody is told anything before the server is up again.
            if (key := caller.pending) in self.watch.operation_of:
                caller.settled[key] = self.watch.operation_of[key]
        if self.choices.random() < 0.2:
            self.kill_starting()
        self.server.start()
        self.check_done()
        self.place.move_to(self.server.address)

    def kill_starting(self) -> None:
        """Kill the next server, too, before or about when it begins to answer."""

        def kill() -> None:
            if self.server.process is not None:
                self.server.process.kill()

        timer = threading.Timer(self.choices.uniform(*START_S), kill)
        timer.start()
        with suppress(AssertionError):
            self.server.start()
        timer.join()
        self.server.kill()
        self.kills += 1

    def check_acknowledged(self) -> None:
        for caller in self.callers:
            self.watch.check_acknowledged(dict(caller.method_of), dict(caller.operation_of))

    def check_done(self) -> None:
        """What is new since the last kill, and some of what is old."""
        done = {key: value for caller in self.callers for key, value in dict(caller.done).items()}
        new = {key: value for key, value in done.items() if key not in self._checked}
        old = self.choices.sample(sorted(self._checked), min(OLD_ASKED, len(self._checked)))
        self.watch.check_operations(new | {key: self._checked[key] for key in old})
        self._checked |= new

    def end(self) -> None:
        """Let the clients end and every import, then check all there is, with the server up and stopped."""
        self.place.end()
        joined(self.callers)
        api = Api(self.server.address)
        with api:
            for importer in self.importers:
                self.wait_for_imports(importer)
            self.check_images(api)
            self.check_operations(api)
            self.wait_for_sweep()
            self.check_bytes(api)
        assert self.server.stop() == 0
        self.watch.look()
        self.check_acknowledged()
        self.watch.check_blobs()
        assert not self.watch.running
        self.watch.check_operations(self._checked)
        check_digests(self.server.data)

    def wait_for_imports(self, importer: Importing) -> None:
        def all_ended() -> bool:
            for operation_id in list(importer.begun):
                importer.look(operation_id)
            return not importer.begun

        importer.client = Client(self.server.address)
        with importer.client:
            self.comes("imports end", all_ended)

    def wait_for_sweep(self) -> None:
        self.watch.look()
        blobs = self.server.data / "blobs"
        used = set(self.watch.used.values())
        self.comes("all blobs in use stay, and no others", lambda: set(stored_blobs(blobs.parent)) == used)
        self.comes("no incoming file stays", lambda: not list((blobs / "incoming").iterdir()))

    def comes(self, what: str, look: Callable[[], bool]) -> None:
        try:
            until(look, seconds=self.patience_s)
        except AssertionError:
            raise AssertionError(f"it did not come true that {what}") from None

    def check_images(self, api: Api) -> None:
        """Each folder holds what its clients were told, and nothing else."""
        for writer in self.writers:
            assert listed(api, [writer.name]) == writer.images
        imported = {key: image for importer in self.importers for key, image in importer.images.items()}
        assert listed(api, IMPORT_FOLDERS) == imported
        assert {image.status for image in imported.values()} == {image_pb2.Image.READY}

    def check_bytes(self, api: Api) -> None:
        for importer in self.importers:
            for image_id in importer.images:
                info, body = api.read(image_id)
                assert info.sha256 == importer.sha256_of[image_id] == hashlib.sha256(body).hexdigest()

    def check_operations(self, api: Api) -> None:
        self.check_done()
        for operation_id in self.choices.sample(sorted(self._checked), min(200, len(self._checked))):
            assert api.operation(operation_id) == self._checked[operation_id]

    def close(self) -> None:
        self.place.end()
        self.server.stop()
        for caller in self.callers:
            if caller.is_alive():
                caller.join()


def listed(api: Api, folders: Sequence[str]) -> dict[str, image_pb2.Image]:
    found: dict[str, image_pb2.Image] = {}
    for folder in folders:
        token = ""
        while True:
            page = api.list(folder, page_size=1000, page_token=token)
            found |= {image.id: image for image in page.images}
            token = page.next_page_token
            if not token:
                break
    return found


def check_digests(data: Path) -> None:
    command = [*Server.program, "rebuild", "--data", str(data), "--json"]
    rebuilt = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert rebuilt["digest_before"] == rebuilt["digest_after"] is not None


def killed(
    folder: Path, *, kills: int, program: Sequence[str] = Server.program, patience_s: float = 20
) -> Kills:
    """The run, ended and found to be right. Raises AssertionError for what is not."""
    seed = int(os.environ.get("IMAGELEDGER_TEST_SEED", random.SystemRandom().randrange(2**32)))
    print(f"IMAGELEDGER_TEST_SEED={seed}")
    with Site() as site:
        run = Kills(folder, site, seed, program=program, patience_s=patience_s)
        try:
            run.begin()
            while run.kills < kills:
                run.kill()
            run.end()
        finally:
            run.close()
    return run


def test_what_was_acknowledged_survives_every_kill(tmp_path: Path) -> None:
    run = killed(tmp_path, kills=KILLS)
    errors = run.server.stderr()
    assert "Traceback" not in errors
    assert QUERY.partition("=")[2] not in errors
    # Otherwise this test would have tested nothing.
    assert all(len(writer.operation_of) > KILLS for writer in run.writers)
    assert all(writer.asked_again > KILLS // 2 for writer in run.writers)
    codes = {one.error.code for importer in run.importers for one in importer.done.values()}
    assert codes == {0, CANCELLED, FAILED_PRECONDITION}
    assert sum(len(importer.images) + len(importer.gone) for importer in run.importers) > KILLS // 5
    assert sum(importer.ended_after_a_kill for importer in run.importers) > 0
    assert run.orphans_seen > 0


@pytest.mark.parametrize(
    ("faults", "found"),
    [
        pytest.param([planted.acknowledge_first], "was acknowledged", id="acknowledged-before-it-is-durable"),
        pytest.param(
            [planted.forget_keys, planted.slow_answer],
            "done twice|repeats a key|was refused: Image .* not found",
            id="keys-forgotten",
        ),
        pytest.param([planted.resume_nothing], "imports end", id="imports-not-resumed"),
        pytest.param([planted.sweep_nothing], "no others", id="orphans-not-swept"),
        pytest.param([planted.reap_used], "lost its blob|blobs in use stay", id="blobs-in-use-removed"),
    ],
)
def test_a_planted_fault_is_found(tmp_path: Path, faults: list[Callable[[], None]], found: str) -> None:
    with pytest.raises(AssertionError, match=found):
        killed(tmp_path, kills=5, program=planted.program(*faults), patience_s=3)
