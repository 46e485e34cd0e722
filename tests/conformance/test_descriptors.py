"""Our yandex.* packages against the official ones: a client must not notice a difference."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROTO_DIR = ROOT / "server" / "proto"

# "<full name>.<member>" -> why ours is not as the official one.
DEVIATIONS: dict[str, str] = {}


def run(python: str, script: str, *arguments: str) -> str:
    """What a script beside this file prints, with the repository importable."""
    made = subprocess.run(
        [python, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    if made.returncode != 0:
        pytest.fail(f"{script} {' '.join(arguments)}: {made.stderr}", pytrace=False)
    return made.stdout


@pytest.fixture(scope="module")
def files() -> list[str]:
    return sorted(path.relative_to(PROTO_DIR).as_posix() for path in (PROTO_DIR / "yandex").rglob("*.proto"))


@pytest.fixture(scope="module")
def ours(files: list[str]) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(run(sys.executable, "dump_descriptors.py", "server.gen.", *files))
    return made


@pytest.fixture(scope="module")
def official(files: list[str], sdk_python: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(run(sdk_python, "dump_descriptors.py", "", *files))
    return made


def differences(ours: dict[str, Any], official: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, how) of every member that one side lacks or that differs, in all that we declare."""
    for file, things in ours.items():
        for name, members in things.items():
            theirs = official[file].get(name)
            if theirs is None:
                yield name, f"is not declared by the official {file}"
                continue
            for member in members.keys() | theirs.keys():
                if members.get(member) != theirs.get(member):
                    yield f"{name}.{member}", f"ours {members.get(member)}, official {theirs.get(member)}"


def test_every_declaration_is_the_official_one(ours: dict[str, Any], official: dict[str, Any]) -> None:
    unexplained = {what: how for what, how in differences(ours, official) if what not in DEVIATIONS}

    assert unexplained == {}


def test_no_deviation_is_explained_that_does_not_exist(
    ours: dict[str, Any], official: dict[str, Any]
) -> None:
    assert DEVIATIONS.keys() <= {what for what, _ in differences(ours, official)}


def test_all_services_that_clients_call_are_declared(ours: dict[str, Any]) -> None:
    declared = {name for things in ours.values() for name in things}

    assert declared >= {
        "yandex.cloud.compute.v1.ImageService",
        "yandex.cloud.operation.OperationService",
        "yandex.cloud.endpoint.ApiEndpointService",
        "yandex.cloud.iam.v1.IamTokenService",
    }


def test_a_difference_would_be_seen() -> None:
    ours = {"f": {"M": {"a": 1, "b": 2}, "N": {}}}
    official = {"f": {"M": {"a": 1, "b": 3, "c": 4}}}

    assert sorted(what for what, _ in differences(ours, official)) == ["M.b", "M.c", "N"]


@pytest.mark.parametrize(
    "order",
    [
        pytest.param(("", "server.gen."), id="official-first"),
        pytest.param(("server.gen.", ""), id="ours-first"),
    ],
)
def test_both_packages_live_in_one_process(sdk_python: str, order: tuple[str, str]) -> None:
    run(sdk_python, "both_packages.py", *order)
