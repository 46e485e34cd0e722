"""`serve` that cannot: one line with thing and remedy, exit 1, and nothing changed on disk."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from eventstore.event import Event, Position, Version
from eventstore.log import EventLog
from eventstore.reader import LogReader
from tests.conformance.api import Api, Code, refused
from tests.harness import Server, serving
from tools import cli

SECOND_NS = 1_000_000_000
SERVE = [sys.executable, "-m", "tools.cli", "serve"]


class Told(NamedTuple):
    code: int
    stdout: str
    stderr: str


def serve(
    data: Path, *options: str, environment: dict[str, str] | None = None, by: Sequence[str] = ()
) -> Told:
    """What a start that is refused says; `by` is a command that runs it."""
    ended = subprocess.run(
        [*by, *SERVE, "--data", str(data), "--listen", "127.0.0.1:0", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return Told(ended.returncode, ended.stdout, ended.stderr)


def serve_here(capsys: pytest.CaptureFixture[str], data: Path, *options: str) -> Told:
    """The same in this process, which is faster: for what is refused before anything is opened."""
    code = cli.run(["serve", "--data", str(data), "--listen", "127.0.0.1:0", *options])
    return Told(code, *capsys.readouterr())


def contents(folder: Path) -> dict[str, str]:
    """Every file's digest. SQLite's -shm is left out: it holds locks and an index of the -wal, no content."""
    return {
        str(entry.relative_to(folder)): hashlib.sha256(entry.read_bytes()).hexdigest()
        if entry.is_file()
        else "folder"
        for entry in folder.rglob("*")
        if not entry.name.endswith("-shm")
    }


def check_refused(
    data: Path,
    code: str,
    *texts: str,
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
    by: Sequence[str] = (),
) -> None:
    before = contents(data.parent)
    told = serve(data, *options, environment=environment, by=by)
    assert (told.code, told.stdout) == (1, "")
    first, *remedy = told.stderr.splitlines()
    assert first.startswith(f"error: {code}: ")
    assert len(remedy) <= 1
    assert "Traceback" not in told.stderr
    for text in texts:
        assert text in told.stderr
    assert contents(data.parent) == before


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that a server has used and left; copy it."""
    data = tmp_path_factory.mktemp("used") / "data"
    with serving(data) as server, Api(server.address) as api:
        api.disk("folder")
    return data


@pytest.fixture
def data(used: Path, tmp_path: Path) -> Path:
    """A data directory of this test alone."""
    return Path(shutil.copytree(used, tmp_path / "data"))


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A mount for a block. Raises CalledProcessError where none is allowed."""
    subprocess.run(["mount", *options, str(folder)], capture_output=True, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def can_mount() -> bool:
    try:
        with tempfile.TemporaryDirectory() as folder, mounted(Path(folder), "-t", "tmpfs", "none"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


# Where a mount is not allowed, as in most containers, the system's answer is made up, and no test skipped.
CAN_MOUNT = can_mount()


def hooked(folder: Path, text: str) -> dict[str, str]:
    """The environment in which a Python process runs this text first."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(text)
    python_path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1"}


# The address.


def test_a_port_in_use(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        check_refused(data, "UNAVAILABLE", listen, "in use", "--listen", options=("--listen", listen))


def test_a_port_in_use_makes_no_directory(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        check_refused(tmp_path / "data", "UNAVAILABLE", options=("--listen", listen))


@pytest.mark.parametrize("listen", ["203.0.113.7:50051", "nobody.invalid:50051"])
def test_an_address_that_is_not_of_this_machine(data: Path, listen: str) -> None:
    check_refused(
        data, "UNAVAILABLE", f"cannot listen on {listen}", options=("--listen", listen, "--insecure")
    )


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--listen", "0.0.0.0:0"), id="beyond-loopback-without-tls"),
        pytest.param(("--listen", "50051"), id="no-host"),
        pytest.param(("--listen", "127.0.0.1:99999"), id="port-too-large"),
        pytest.param(("--advertise", "here"), id="advertise"),
        pytest.param(("--allow-source", "ftp://storage.example/"), id="scheme-of-a-source"),
        pytest.param(("--allow-source", "https://u:p@storage.example/"), id="user-in-a-source"),
        pytest.param(("--allow-source", "file:///"), id="every-file"),
        pytest.param(("--tls-cert", "cert.pem"), id="certificate-without-key"),
    ],
)
def test_options_that_make_no_sense(data: Path, options: tuple[str, ...]) -> None:
    check_refused(data, "INVALID_ARGUMENT", options[0], options=options)


@pytest.mark.parametrize(
    "options",
    [
        ("--nonsense",),
        ("--min-free", "100%"),
        ("--blob-grace", "soon"),
        ("--max-image-size", "-1"),
        ("extra",),
    ],
)
def test_wrong_usage(data: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    before = contents(data)
    told = serve_here(capsys, data, *options)
    assert (told.code, told.stdout) == (2, "")
    assert options[0] in told.stderr
    assert contents(data) == before


# TLS.


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pems")
    authority = trustme.CA()
    for name in ("one", "two"):
        issued = authority.issue_cert("localhost")
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        issued.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    key = load_pem_private_key((folder / "one.key").read_bytes(), None)
    (folder / "locked.key").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password"))
    )
    (folder / "text").write_text("hello")
    (folder / "broken.pem").write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return folder


@pytest.mark.parametrize(
    ("certificate", "key"),
    [
        pytest.param("one.pem", "two.key", id="of-two-pairs"),
        pytest.param("one.pem", "locked.key", id="key-with-a-password"),
        pytest.param("one.key", "one.pem", id="swapped"),
        pytest.param("text", "one.key", id="text"),
        pytest.param("broken.pem", "one.key", id="broken"),
        pytest.param("missing", "one.key", id="missing"),
    ],
)
def test_tls_files_that_do_not_fit(data: Path, pems: Path, certificate: str, key: str) -> None:
    options = ("--tls-cert", str(pems / certificate), "--tls-key", str(pems / key))
    check_refused(data, "INVALID_ARGUMENT", certificate, "--tls-cert and --tls-key", options=options)


def test_tls_files_that_fit(data: Path, pems: Path) -> None:
    with serving(data, "--tls-cert", str(pems / "one.pem"), "--tls-key", str(pems / "one.key")) as server:
        assert server.address


# The directory.


def test_a_directory_in_use_names_who_uses_it(data: Path) -> None:
    with serving(data) as server:
        assert server.process is not None
        names = contents(data).keys()
        told = serve(data)
        assert told.code == 1
        assert told.stderr.startswith("error: FAILED_PRECONDITION: ")
        assert f"pid {server.process.pid}, imageledger serve" in told.stderr
        # What is in them is the running server's affair: it keeps checkpoints when nobody writes, too.
        assert contents(data).keys() == names
        with Api(server.address) as api:
            assert api.disk("folder")


def test_a_file_in_the_directorys_place(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("hello")
    told = serve(tmp_path / "data")
    assert told.code == 2
    assert f"{tmp_path / 'data'}' is a file" in told.stderr
    check_refused(tmp_path / "data" / "below", "UNAVAILABLE", "Not a directory", "--data")


def test_a_directory_without_permission(data: Path) -> None:
    """Also for root, without the capability that lets it write everywhere."""
    by = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    data.chmod(0o500)
    check_refused(data, "PERMISSION_DENIED", str(data), "Permission denied", "check --data", by=by)


READ_ONLY = """
import os
real = os.statvfs
class ReadOnly:
    f_flag = os.ST_RDONLY
    def __init__(self, path):
        self.real = real(path)
    def __getattr__(self, name):
        return getattr(self.real, name)
os.statvfs = ReadOnly
"""


def test_a_directory_on_a_disk_that_is_read_only(data: Path, tmp_path: Path) -> None:
    texts = (str(data), "Read-only", "check --data")
    if not CAN_MOUNT:
        environment = hooked(tmp_path / "python", READ_ONLY)
        check_refused(data, "PERMISSION_DENIED", *texts, environment=environment)
        return
    with mounted(data, "--bind", str(data)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(data)], check=True)
        check_refused(data, "PERMISSION_DENIED", *texts)
        check_refused(data / "below", "PERMISSION_DENIED", *texts)


ALMOST_FULL = """
import shutil
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**9, 10**9, {free_bytes})
"""


@pytest.mark.parametrize(
    ("exists", "free_bytes"), [pytest.param(False, 0, id="new"), pytest.param(True, 100 * 4096, id="used")]
)
def test_a_full_disk(data: Path, tmp_path: Path, exists: bool, free_bytes: int) -> None:
    disk, environment = tmp_path / "disk", {}
    disk.mkdir()
    with contextlib.ExitStack() as stack:
        if CAN_MOUNT:
            stack.enter_context(mounted(disk, "-t", "tmpfs", "-o", "size=3m", "none"))
        else:
            environment = hooked(tmp_path / "python", ALMOST_FULL.format(free_bytes=free_bytes))
        if exists:
            shutil.copytree(data, disk / "data")
        if CAN_MOUNT:
            with (disk / "filler").open("wb") as filler:
                filler.write(bytes(max(0, shutil.disk_usage(disk).free - free_bytes)))
        texts = (str(disk), f"only {free_bytes} bytes are free", "and start again")
        check_refused(disk / "data", "RESOURCE_EXHAUSTED", *texts, environment=environment)


# The clock.


def write_ahead(data: Path, seconds: int) -> int:
    """The log's newest stamp, after an event from so far in the future."""
    with EventLog.open(data / "log.db") as log:
        newest = log.event(log.head())
        at = time.time_ns() + seconds * SECOND_NS
        started = [event for event in log.events() if event.type == "ServerStarted"][-1]
        version = Version(log.stream_version("log") + 1)
        position = Position(newest.position + 1)
        log.append(
            [started._replace(position=position, version=version, at=at)], expected_head=newest.position
        )
        return at


def events(data: Path) -> list[Event]:
    with LogReader.open(data / "log.db") as log:
        return list(log.events())


def test_a_clock_an_hour_behind_is_refused_and_can_be_accepted(data: Path) -> None:
    at = write_ahead(data, 3600)
    head = len(events(data))
    check_refused(data, "FAILED_PRECONDITION", "behind the log", "--accept-clock")
    with serving(data, "--accept-clock") as server, Api(server.address) as api:
        api.disk("folder")
    accepted, *others = events(data)[head:]
    assert accepted.type == "ClockAccepted"
    assert abs(int(accepted.data["clock"]) - time.time_ns()) < 60 * SECOND_NS
    assert [event.type for event in others] == ["ServerStarted", "SourceRegistered"]
    assert at < accepted.at < others[0].at < others[1].at
    # It is still behind.
    check_refused(data, "FAILED_PRECONDITION", "--accept-clock")


def test_an_accepted_clock_that_is_right_is_no_event(data: Path) -> None:
    with serving(data, "--accept-clock"):
        pass
    assert "ClockAccepted" not in [event.type for event in events(data)]


def test_a_clock_two_minutes_behind_is_warned_of(data: Path) -> None:
    at = write_ahead(data, 120)
    head = len(events(data))
    with serving(data) as server, Api(server.address) as api:
        for _ in range(3):
            api.disk("folder")
        assert "WARNING" in server.stderr()
        assert "the clock is behind the log" in server.stderr()
    stamps = [event.at for event in events(data)[head:]]
    assert len(stamps) == 4
    assert [at, *stamps] == sorted({at, *stamps})


def test_a_refused_clock_leaves_an_unmerged_log_as_it_is(used: Path, tmp_path: Path) -> None:
    """After a kill there is a -wal, which a look must not merge."""
    server = Server(Path(shutil.copytree(used, tmp_path / "data"))).start()
    with Api(server.address) as api:
        api.disk("folder")
    server.kill()
    assert (server.data / "log.db-wal").stat().st_size
    text = "import time\nreal = time.time_ns\ntime.time_ns = lambda: real() - 3600 * 10**9\n"
    environment = hooked(tmp_path / "python", text)
    check_refused(server.data, "FAILED_PRECONDITION", "behind the log", environment=environment)


# What is in the directory.


def foreign_database(data: Path) -> None:
    (data / "log.db").unlink()
    with closing(sqlite3.connect(data / "log.db")) as connection:
        connection.execute("CREATE TABLE pet (name TEXT)")
        connection.commit()


def foreign_wal_database(data: Path) -> None:
    foreign_database(data)
    with closing(sqlite3.connect(data / "log.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


def newer_format(data: Path) -> None:
    with closing(sqlite3.connect(data / "log.db")) as connection:
        connection.execute("PRAGMA user_version = 99")


def folder_for_a_log(data: Path) -> None:
    (data / "log.db").unlink()
    (data / "log.db").mkdir()


def folder_for_a_key(data: Path) -> None:
    (data / "token.key").unlink()
    (data / "token.key").mkdir()


def another_log(data: Path) -> None:
    """The projection, by then, is of a log that is not here."""
    another_logs_key(data)
    (data / "checkpoint.key").unlink()


def another_logs_key(data: Path) -> None:
    (data / "log.db").unlink()
    with EventLog.open(data / "log.db") as log:
        log.create_if_empty(log_id="imageledger-" + "0" * 32, at=time.time_ns())


@pytest.mark.parametrize(
    ("damage", "code", "texts"),
    [
        pytest.param(foreign_database, "NOT_FOUND", ("log.db", "another application"), id="foreign-database"),
        pytest.param(
            foreign_wal_database, "NOT_FOUND", ("log.db", "another application"), id="foreign-wal-database"
        ),
        pytest.param(
            lambda data: (data / "log.db").write_text("hello " * 1000),
            "NOT_FOUND",
            ("log.db", "not a SQLite database"),
            id="text",
        ),
        pytest.param(folder_for_a_log, "NOT_FOUND", ("log.db", "not a file"), id="folder"),
        pytest.param(newer_format, "FAILED_PRECONDITION", ("disk format 99", "later"), id="newer-format"),
        pytest.param(
            lambda data: (data / "token.key").write_bytes(b"short"),
            "DATA_LOSS",
            ("token.key", "5 bytes"),
            id="short-token-key",
        ),
        pytest.param(folder_for_a_key, "UNAVAILABLE", ("token.key", "directory"), id="folder-for-a-key"),
        pytest.param(
            lambda data: (data / "tokens.revoked").write_bytes(b"\xff\xfe"),
            "DATA_LOSS",
            ("tokens.revoked", "damaged"),
            id="damaged-revocations",
        ),
        pytest.param(
            lambda data: (data / "CURRENT").write_text("projections-99.sqlite"),
            "FAILED_PRECONDITION",
            ("CURRENT", "rebuild"),
            id="foreign-current",
        ),
        pytest.param(another_log, "FAILED_PRECONDITION", ("projections-1.db", "rebuild"), id="another-log"),
        pytest.param(
            another_logs_key, "FAILED_PRECONDITION", ("checkpoint.key", "put that log back"), id="another-key"
        ),
    ],
)
def test_what_is_no_data_of_ours_is_left_alone(
    data: Path, damage: Callable[[Path], None], code: str, texts: tuple[str, ...]
) -> None:
    damage(data)
    if code == "NOT_FOUND":
        # Not even the lock of a server that never ran here.
        (data / "lock").unlink()
    check_refused(data, code, *texts)


def test_a_refusal_was_the_only_thing_in_the_way(data: Path) -> None:
    key = (data / "token.key").read_bytes()
    (data / "token.key").write_bytes(b"short")
    check_refused(data, "DATA_LOSS")
    (data / "token.key").write_bytes(key)
    with serving(data) as server, Api(server.address) as api:
        assert api.disk("folder")


def test_what_a_crash_left_of_a_logs_creation_is_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "log.db").touch()
    with closing(sqlite3.connect(tmp_path / "data" / "log.db")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    with serving(tmp_path / "data") as server, Api(server.address) as api:
        assert api.disk("folder")


# The file of options.


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(
            "listn = 'x'", "'listn', which is no option of serve; there are accept-clock", id="name"
        ),
        pytest.param("listen =", "cannot read", id="no-toml"),
        pytest.param("insecure = 'maybe'", "'insecure'", id="flag"),
        pytest.param("listen = ['a', 'b']", "'listen'", id="list"),
        pytest.param("tls-cert = true", "'tls-cert'", id="boolean"),
        pytest.param("[listen]\nhost = 'a'", "'listen'", id="table"),
        pytest.param("allow-source = [5]", "'allow-source'", id="list-of-numbers"),
        pytest.param("allow-source = []\nallow_source = []", "twice", id="twice"),
        pytest.param("config = 'other.toml'", "'config'", id="another-file"),
        pytest.param("min-free = '200%'", "no percentage", id="value"),
    ],
)
def test_a_file_of_options_that_is_wrong(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    (tmp_path / "serve.toml").write_text(text)
    before = contents(data)
    told = serve_here(capsys, data, "--config", str(tmp_path / "serve.toml"))
    assert (told.code, told.stdout) == (2, "")
    assert says in told.stderr
    assert contents(data) == before


def test_a_file_of_options_that_is_not_there(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = serve_here(capsys, data, "--config", str(tmp_path / "missing.toml"))
    assert told.code == 2
    assert "missing.toml" in told.stderr


@pytest.mark.parametrize(
    ("environment", "options", "taken"),
    [
        pytest.param({}, (), "file", id="file"),
        pytest.param(
            {"IMAGELEDGER_ALLOW_SOURCE": "file:///environment/"}, (), "environment", id="environment"
        ),
        pytest.param(
            {"IMAGELEDGER_ALLOW_SOURCE": "file:///environment/"},
            ("--allow-source", "file:///flag/"),
            "flag",
            id="flag",
        ),
    ],
)
def test_the_environment_goes_before_the_file_and_the_command_line_before_both(
    data: Path, tmp_path: Path, environment: dict[str, str], options: tuple[str, ...], taken: str
) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        'allow-source = "file:///file/"\nmax-image-size = "1K"\nblob-grace = 5\nlog_format = "json"'
    )
    if taken == "flag":
        environment = {**environment, "IMAGELEDGER_CONFIG": str(file)}
    else:
        options = (*options, "--config", str(file))
    server = Server(data, *options, environment=environment).start()
    try:
        with Api(server.address) as api:
            for name in ("file", "environment", "flag"):
                if name != taken:
                    told = refused(lambda name=name: api.create("folder", uri=f"file:///{name}/x"))  # type: ignore[misc]
                    assert told.code is Code.FAILED_PRECONDITION
            assert not api.create("folder", uri=f"file:///{taken}/x").done
            told = refused(lambda: api.source(bytes(2048)))
            assert "at most 1024 bytes" in told.message
    finally:
        assert server.stop() == 0


# Log lines.


def test_json_log_lines_are_json(data: Path) -> None:
    write_ahead(data, 100)
    server = Server(
        data, "--log-format", "json", "--blob-grace", "0s", environment={"PYTHONWARNINGS": "ignore"}
    )
    server.start()
    with Api(server.address) as api:
        source = api.source(bytes(1024))
        api.remove_source(source.id)
        deadline = time.monotonic() + 10
        while "was removed" not in server.stderr() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert server.process is not None
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(30) == 0
    server.process = None
    lines = [json.loads(line) for line in server.stderr().splitlines()]
    by_message = {line["message"]: line for line in lines}
    warned = next(line for message, line in by_message.items() if message.startswith("the clock is behind"))
    assert warned["level"] == "WARNING"
    assert warned["logger"] == "server.start"
    assert warned["at"].endswith("Z")
    assert len(warned["at"]) == len("2026-11-24T10:00:00.123456789Z")
    removed = by_message["an unused blob was removed"]
    assert removed["level"] == "INFO"
    assert removed["sha256"] == hashlib.sha256(bytes(1024)).hexdigest()
