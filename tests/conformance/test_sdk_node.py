"""The official Node SDK against a real server over TLS, each scenario in a process of its own.

What the SDK itself rules out: it exchanges `oauthToken` and `serviceAccountJson` at an address from a list of
its own, and trusts the system's roots there, whatever `ssl.rootCerts` and the endpoint given to `client()`
say. So only `iamToken` works against another server. It never dials without TLS. An error that came after
initial metadata, which we send early to callers who name a request or trace id, becomes an `ApiError`: that
has the request id, but the status only in its text, and the SDK does not retry it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.tls import TlsServer, serving_over_tls
from tests.unit.server.disk_images import tiny_qcow2

PROJECT = Path(__file__).parent / "node"
# The SDK's package asks for 22.15, of which npm only warns; it runs on what Debian 12 has, too.
NODE_MAJOR_MIN = 18
NPM_OPTIONS = (
    *("--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error"),
    *("--ignore-scripts", "--no-package-lock", "--prefer-offline"),
)
INSTALL_TIMEOUT_S = 240
SCENARIO_TIMEOUT_S = 120
VIRTUAL_BYTES = 16 * 2**20


@pytest.fixture(scope="session")
def node_modules(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A node_modules with the SDK: in pytest's cache, made once and again when package.json changes."""
    _check_node()
    cache = getattr(pytestconfig, "cache", None)  # pytest -p no:cacheprovider has none.
    folder = tmp_path_factory.mktemp("node") if cache is None else cache.mkdir("node-sdk")
    wanted, installed = (PROJECT / "package.json").read_bytes(), folder / "installed.json"
    if installed.exists() and installed.read_bytes() == wanted:
        return folder / "node_modules"
    installed.unlink(missing_ok=True)
    (folder / "package.json").write_bytes(wanted)
    try:
        made = subprocess.run(
            ["npm", "install", *NPM_OPTIONS],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm has not installed the Node SDK in {INSTALL_TIMEOUT_S} s")
    if made.returncode != 0:
        pytest.skip(f"npm cannot install the Node SDK: {made.stderr.strip()[:300]}")
    installed.write_bytes(wanted)
    return folder / "node_modules"


def _check_node() -> None:
    for command in ("node", "npm"):
        if shutil.which(command) is None:
            pytest.skip(f"{command} is not installed (Debian: apt-get install nodejs npm)")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.lstrip("v").partition(".")[0]) < NODE_MAJOR_MIN:
        pytest.skip(f"node is {version}, and the SDK runs on {NODE_MAJOR_MIN} or later")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the server may import from."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "disk.qcow2").write_bytes(tiny_qcow2(VIRTUAL_BYTES))
    (folder / "letter.txt").write_text("no image\n")
    return folder


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory, sources: Path) -> Iterator[TlsServer]:
    """One server for all scenarios; each works in a folder of its own."""
    folder = tmp_path_factory.mktemp("tls")
    with serving_over_tls(folder, "--allow-source", f"{sources.as_uri()}/") as running:
        yield running


@pytest.mark.parametrize(
    "scenario", ["lifecycle", "pages", "update", "failure", "request_ids", "status_codes"]
)
def test_the_sdk_works_unchanged(
    scenario: str, node_modules: Path, sources: Path, tls_server: TlsServer, tmp_path: Path
) -> None:
    config = {
        "endpoint": tls_server.endpoint,
        "root_certificates": str(tls_server.ca_file),
        "folder_id": scenario.replace("_", "-"),
        "uri": (sources / "disk.qcow2").as_uri(),
        "uri_of_no_image": (sources / "letter.txt").as_uri(),
        "uri_not_allowed": (sources.parent / "elsewhere" / "disk.qcow2").as_uri(),
        "virtual_bytes": VIRTUAL_BYTES,
        "stored_bytes": (sources / "disk.qcow2").stat().st_size,
    }
    config_file = tmp_path / "config.json"
    config_file.write_text(json.dumps(config), "utf-8")

    made = subprocess.run(
        ["node", str(PROJECT / "scenario.js"), scenario, str(config_file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=SCENARIO_TIMEOUT_S,
        # A proxy has no business on this machine's own address.
        env={**os.environ, "NODE_PATH": str(node_modules), "no_grpc_proxy": "localhost,127.0.0.1"},
    )

    if made.returncode != 0:
        pytest.fail(f"{made.stderr}\n{tls_server.server.stderr()}", pytrace=False)
