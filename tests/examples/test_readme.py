"""The README's examples, executed as a reader would: a server, a shell, and the commands in order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.harness import Server
from tests.unit.server.disk_images import tiny_qcow2

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


# In the order of the README, each with what the ones before it have set.
BLOCKS = ("first-five-minutes", "history", "proofs")


def block(marker: str) -> str:
    found = re.search(rf"<!-- {marker} -->\n```sh\n(.*?)```", README, re.DOTALL)
    if found is None:
        raise AssertionError(f"the README has no block marked {marker}")
    return found[1]


def command_directory(tmp_path: Path) -> Path:
    """A folder whose `imageledger` is this tree's, whatever is installed elsewhere."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "imageledger"
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m tools.cli "$@"\n')
    script.chmod(0o755)
    return directory


def test_the_first_five_minutes(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    disk = work / "disk.qcow2"
    if shutil.which("qemu-img") is None:
        disk.write_bytes(tiny_qcow2(64 * 1024**2))
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    server = Server(work / "imageledger-data").start()
    try:
        shell = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", "".join(map(block, BLOCKS))],
            cwd=work,
            env={
                **os.environ,
                "PATH": f"{command_directory(tmp_path)}:{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "IMAGELEDGER_ENDPOINT": server.address,
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        server.stop()
    assert shell.returncode == 0, shell.stderr + shell.stdout
    assert shell.stdout.count("rebuilt on Friday") >= 2
    assert "ImageUpdated" in shell.stdout
    assert "CVE-2026-1234" in shell.stdout
    assert (work / "snapshot" / "manifest.json").is_file()
    assert "the first event after which the command fails" in shell.stdout
    assert shell.stdout.count("proven     event") == 3
    assert "kept checkpoints  1" in shell.stdout
    assert (work / "tiles" / "checkpoint").is_file()


def test_every_room_that_the_readme_names_has_a_readme() -> None:
    for room in re.findall(r"\(([a-z]+/README\.md)\)", README):
        assert (ROOT / room).is_file(), room


def test_the_config_file_has_options_of_serve(tmp_path: Path) -> None:
    """The README's file, with paths and ports that this machine has."""
    found = re.search(r"```toml\n(.*?)```", README, re.DOTALL)
    assert found is not None
    config = tmp_path / "imageledger.toml"
    changed = found[1].replace("/var/lib/imageledger", str(tmp_path / "data")).replace("0.0.0.0", "127.0.0.1")
    lines = [line for line in changed.splitlines() if not line.startswith(("tls-", "listen"))]
    config.write_text("\n".join(lines) + "\n")
    assert {line.split(" =")[0] for line in found[1].splitlines()} >= {"tls-cert", "tls-key", "listen"}
    server = Server(tmp_path / "data", "--config", str(config)).start()
    assert server.stop() == 0


def test_the_shell_examples_name_options_that_are_there() -> None:
    for line in re.findall(r"^imageledger ([a-z ]+?)(?: --| /|$)", README, re.MULTILINE):
        words = line.split()
        helped = subprocess.run(
            [
                sys.executable,
                "-m",
                "tools.cli",
                *words[: 2 if words[0] in ("image", "source", "operation", "history", "log") else 1],
                "--help",
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert helped.returncode == 0, line
