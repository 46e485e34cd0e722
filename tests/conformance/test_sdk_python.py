"""The official Python SDK against a real server over TLS, each scenario in an interpreter of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tests.conformance.tls import TlsServer, serving_over_tls
from tests.harness import IMAGES

SCENARIO = Path(__file__).parent / "sdk_scenario.py"
SCENARIO_TIMEOUT_S = 120
VIRTUAL_BYTES = 16 * 2**20
CHUNK_BYTES = 256 * 1024


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsServer]:
    """One server for all scenarios; each works in a folder of its own."""
    with serving_over_tls(tmp_path_factory.mktemp("tls")) as running:
        yield running


@pytest.fixture(scope="module")
def qcow2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real disk file with some data in it."""
    for command in ("qemu-img", "qemu-io"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed (Debian: apt-get install qemu-utils)")
    path = tmp_path_factory.mktemp("disk") / "disk.qcow2"
    for arguments in (
        ["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(VIRTUAL_BYTES)],
        ["qemu-io", "-f", "qcow2", "-c", "write -P 0x5a 1M 3M", str(path)],
    ):
        subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.mark.parametrize(
    "scenario", ["lifecycle", "pages", "update", "repeats", "oauth_token", "service_account_key"]
)
def test_the_sdk_works_unchanged(
    scenario: str, sdk_python: str, qcow2: Path, tls_server: TlsServer, tmp_path: Path
) -> None:
    folder_id = scenario.replace("_", "-")
    config = {
        "endpoint": tls_server.endpoint,
        "root_certificates": str(tls_server.ca_file),
        "folder_id": folder_id,
        "disk_id": upload(tls_server, qcow2, folder_id=folder_id),
        "disk_virtual_bytes": VIRTUAL_BYTES,
        "disk_stored_bytes": qcow2.stat().st_size,
    }
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps(config), "utf-8")

    made = subprocess.run(
        [sdk_python, str(SCENARIO), scenario, str(config_file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SCENARIO_TIMEOUT_S,
        # Nothing of ours may be importable there, and a proxy has no business on this machine's own address.
        env={**os.environ, "PYTHONPATH": "", "no_grpc_proxy": "localhost,127.0.0.1"},
    )

    if made.returncode != 0:
        pytest.fail(f"{made.stderr}\n{tls_server.server.stderr()}", pytrace=False)


def upload(tls_server: TlsServer, path: Path, *, folder_id: str) -> str:
    """The id of the disk that our own client made of a file."""
    header = source_service_pb2.SourceHeader(folder_id=folder_id, kind=source_service_pb2.DISK, name="disk")
    content = path.read_bytes()
    chunks = (content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES))
    with tls_server.client() as client:
        return client.upload(header, chunks).id


def test_the_snippet_of_the_readme(sdk_python: str, tls_server: TlsServer, tmp_path: Path) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    with tls_server.client() as client:
        disk_id = client.disk("standard-images")
        request = image_service_pb2.CreateImageRequest(
            folder_id="standard-images", name="readme", family="web", disk_id=disk_id
        )
        client.call(IMAGES, "Create", request, operation_pb2.Operation)
    (tmp_path / "ca.pem").write_bytes(tls_server.ca_file.read_bytes())

    made = subprocess.run(
        [sdk_python, "-c", found[1].replace("images.example.com:50051", tls_server.endpoint)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=SCENARIO_TIMEOUT_S,
        env={**os.environ, "PYTHONPATH": "", "no_grpc_proxy": "localhost,127.0.0.1"},
    )

    assert made.returncode == 0, made.stderr
    assert 'name: "readme"' in made.stdout
