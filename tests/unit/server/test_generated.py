"""The committed server/gen is what the .proto files say, and keeps to itself."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool, json_format
from google.protobuf import timestamp_pb2 as default_timestamp_pb2

from server.gen.google.protobuf import any_pb2, timestamp_pb2
from server.gen.google.rpc import error_details_pb2, status_pb2
from server.gen.pool import POOL
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from server.proto import generate

ROOT = Path(__file__).parents[3]

IMPORT_ALL = """
import importlib, sys
from google.protobuf import descriptor_pool
for name in {names!r}:
    importlib.import_module(name)
taken = [m for m in sys.modules if m.split(".")[0] in ("yandex", "imageledger") or m.startswith("google.rpc")]
assert not taken, taken
import google, google.protobuf
assert not google.protobuf.__name__.startswith("server")
for file in {files!r}:
    try:
        descriptor_pool.Default().FindFileByName(file)
    except KeyError:
        continue
    raise AssertionError(file + " is in the default pool")
"""


def test_committed_is_what_is_generated(capsys: pytest.CaptureFixture[str]) -> None:
    assert generate.main(["--check"]) == 0, capsys.readouterr().out
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        pytest.param({"a.py": "1\n"}, {"a.py": "1\n"}, [], id="equal"),
        pytest.param({}, {"a.py": "1\n"}, ["a.py: missing"], id="missing"),
        pytest.param({"a.py": "1\n"}, {}, ["a.py: comes from no .proto file"], id="stale"),
        pytest.param(
            {"a.py": "1\n"},
            {"a.py": "2\n"},
            ["--- server/gen/a.py", "+++ new/a.py", "@@ -1 +1 @@", "-1", "+2"],
            id="changed",
        ),
    ],
)
def test_differences(before: dict[str, str], after: dict[str, str], shown: list[str]) -> None:
    assert generate.differences(before, after) == shown


def test_check_fails_on_a_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "committed", dict)

    assert generate.main(["--check"]) == 1
    assert "yandex/cloud/compute/v1/image_pb2.py: missing" in capsys.readouterr().out


def test_no_top_level_name_and_not_the_default_pool_is_taken() -> None:
    sources = generate.sources()
    names = ["server.gen." + name.removesuffix(".proto").replace("/", ".") + "_pb2" for name in sources]
    files = [name for name in sources if not name.startswith("google/protobuf/")]

    program = IMPORT_ALL.format(names=names, files=files)
    made = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)

    assert made.returncode == 0, made.stderr


def test_generated_stubs_and_modules_import_nothing_generated_from_the_top_level() -> None:
    for name, text in generate.committed().items():
        assert not generate.IMPORT.search(text), name


def test_pool_is_not_the_default_pool() -> None:
    assert image_pb2.Image.DESCRIPTOR.file.pool is POOL
    assert POOL is not descriptor_pool.Default()
    assert timestamp_pb2.Timestamp.DESCRIPTOR is not default_timestamp_pb2.Timestamp.DESCRIPTOR


def test_every_message_field_is_of_the_same_pool() -> None:
    created_at = image_pb2.Image.DESCRIPTOR.fields_by_name["created_at"]

    assert created_at.message_type is timestamp_pb2.Timestamp.DESCRIPTOR


def test_well_known_types_have_their_methods() -> None:
    image = image_pb2.Image(id="a")
    image.created_at.FromNanoseconds(1_500_000_000_000_000_001)
    packed, unpacked = any_pb2.Any(), image_pb2.Image()
    packed.Pack(image)

    assert image.created_at == timestamp_pb2.Timestamp(seconds=1_500_000_000, nanos=1)
    assert packed.type_url == "type.googleapis.com/yandex.cloud.compute.v1.Image"
    assert packed.Unpack(unpacked)
    assert unpacked == image


def test_status_carries_details_and_json_needs_the_pool() -> None:
    status = status_pb2.Status(code=3, message="m")
    status.details.add().Pack(error_details_pb2.RequestInfo(request_id="r"))
    detail = {"@type": "type.googleapis.com/google.rpc.RequestInfo", "requestId": "r"}

    made = json_format.MessageToDict(status, descriptor_pool=POOL)

    assert made == {"code": 3, "message": "m", "details": [detail]}


def test_enums_and_services_are_reachable() -> None:
    service = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"]

    assert image_pb2.Image.READY == 2
    assert image_pb2.Os.Type.Name(1) == "LINUX"
    assert service.methods_by_name["Get"].output_type is image_pb2.Image.DESCRIPTOR
