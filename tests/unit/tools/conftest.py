"""A server for all tests of the command line, and two ways to run a command against it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Client, Server
from tools.cli import run

# A shell that runs the tests in the background has taught its children to ignore Ctrl-C.
COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from tools.cli import main
main()
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]
Spawn = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    served = Server(tmp_path_factory.mktemp("served") / "data").start()
    yield served
    served.stop()


@pytest.fixture(scope="session")
def caller(server: Server) -> Iterator[Client]:
    """Raw calls to the same server, to prepare what a command then meets."""
    with Client(server.address) as client:
        yield client


@pytest.fixture
def imageledger(server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process. `endpoint=` names another server, further keywords set variables."""

    def ended(*arguments: str, endpoint: str = server.address, **environment: str) -> Ended:
        with monkeypatch.context() as patch:
            patch.setenv("IMAGELEDGER_ENDPOINT", endpoint)
            for name, value in environment.items():
                patch.setenv(name, value)
            capsys.readouterr()
            code = run(arguments)
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return ended


@pytest.fixture
def spawn(server: Server) -> Iterator[Spawn]:
    """Starts a command in a process of its own, with pipes of bytes; Popen's settings may follow."""
    started: list[subprocess.Popen[bytes]] = []

    def begun(*arguments: str | bytes, endpoint: str = server.address, **settings: Any) -> Any:
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *arguments],
            env={**os.environ, "IMAGELEDGER_ENDPOINT": endpoint},
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **settings},
        )
        started.append(process)
        return process

    yield begun
    for process in started:
        process.kill()
        with process:
            pass


@pytest.fixture
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path
