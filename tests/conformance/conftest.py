"""A server for all tests of the API, and where the official SDK is: tests that need it run it in its own
interpreter."""

import importlib.util
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gen.imageledger.v1 import source_service_pb2
from tests.conformance.api import MIB, Api
from tests.harness import Server, serving
from tests.unit.server.disk_images import tiny_qcow2

DISK_SIZE = 10 * MIB


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that no test stops."""
    with serving(tmp_path_factory.mktemp("api") / "data") as running:
        yield running


@pytest.fixture(scope="session")
def api(server: Server) -> Iterator[Api]:
    with Api(server.address) as client:
        yield client


@pytest.fixture
def folder() -> str:
    """A folder that no other test uses."""
    return f"folder-{uuid.uuid4().hex[:20]}"


@pytest.fixture(scope="session")
def disk(api: Api) -> source_service_pb2.Source:
    """A disk whose virtual size, 10 MiB, differs from its bytes' and is no multiple of 4 MiB."""
    return api.source(tiny_qcow2(DISK_SIZE))


@pytest.fixture
def quiet(server: Server) -> Iterator[None]:
    """The test fails if the server logs an error meanwhile: no caller's mistake is one."""
    before = server.stderr_path.stat().st_size
    yield
    with server.stderr_path.open("rb") as stderr:
        stderr.seek(before)
        logged = stderr.read().decode()
    assert "Traceback" not in logged, logged
    assert " ERROR " not in logged, logged


@pytest.fixture(scope="session")
def sdk_python(pytestconfig: pytest.Config) -> str:
    """A Python interpreter that can import yandexcloud.

    IMAGELEDGER_SDK_PYTHON if set; this one if it can; else a venv in pytest's cache, made once.
    """
    named = os.environ.get("IMAGELEDGER_SDK_PYTHON")
    if named:
        return named
    if importlib.util.find_spec("yandexcloud") is not None:
        return sys.executable
    cache = pytestconfig.cache
    if cache is None:
        pytest.skip("no interpreter with yandexcloud, and no cache to make one in")
    return str(_installed(cache.mkdir("yandexcloud")))


def _installed(folder: Path) -> Path:
    python, complete = folder / "venv" / "bin" / "python", folder / "complete"
    if complete.exists():
        return python
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder / "venv")],
        [str(python), "-m", "pip", "install", "--quiet", "yandexcloud"],
    ):
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode != 0:
            pytest.skip(f"cannot install yandexcloud: {made.stderr.strip()[-300:]}")
    complete.touch()
    return python
