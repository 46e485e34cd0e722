"""`export --format tiles`: up to a signed checkpoint, and then what came since."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

import pytest

from eventstore.checkpoint import open_note
from eventstore.keys import load_vkey_file
from eventstore.reader import LogReader
from tests.harness import Client, Server
from tools.cli import run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a key, after two runs of a server."""
    directory = tmp_path_factory.mktemp("tiles") / "data"
    for _ in range(2):
        server = Server(directory).start()
        with Client(server.address) as client:
            client.disk("f")
        server.stop()
    return directory


def exported(data: Path, to: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    arguments = ["export", "--data", str(data), "--format", "tiles", "--to", str(to), "--json", *options]
    assert run(arguments) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_the_head_is_signed_where_the_key_is(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = exported(data, tmp_path, "--at", "4", capsys=capsys)
    late = exported(data, tmp_path, capsys=capsys)
    with LogReader.open(data / "log.db") as log:
        assert (early["position"], late["position"]) == (4, log.head())
    note = (tmp_path / "checkpoint").read_text()
    assert note == late["checkpoint"]
    checkpoint = open_note(note, load_vkey_file(data / "checkpoint.vkey"))
    assert (checkpoint.size, checkpoint.root.hex()) == (late["position"], late["root"])
    assert (tmp_path / f"tile/0/000.p/{late['position']}").stat().st_size == 32 * int(str(late["position"]))


def test_without_the_key_what_the_server_signed_is_taken(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = (data / "checkpoint.key").rename(tmp_path / "hidden")
    try:
        with LogReader.open(data / "log.db") as log:
            kept = log.newest_checkpoint()
        assert kept is not None
        assert exported(data, tmp_path / "to", capsys=capsys)["checkpoint"] == kept.note
        assert (
            run(
                [
                    "export",
                    "--data",
                    str(data),
                    "--format",
                    "tiles",
                    "--to",
                    str(tmp_path / "to"),
                    "--at",
                    "4",
                ]
            )
            == 1
        )
        assert "no checkpoint of 4 events is kept" in capsys.readouterr().err
    finally:
        hidden.rename(data / "checkpoint.key")


def test_two_do_not_write_into_one_folder(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        assert run(["export", "--data", str(data), "--format", "tiles", "--to", str(tmp_path)]) == 1
    finally:
        os.close(descriptor)
    assert "another export writes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", [("--folder", "f"), ("--from", "2"), ("--what", "images"), ("--overwrite",)]
)
def test_what_makes_no_sense_of_a_whole_log(data: Path, tmp_path: Path, option: tuple[str, ...]) -> None:
    assert run(["export", "--data", str(data), "--format", "tiles", "--to", str(tmp_path), *option]) == 2
