"""Released bytes stay readable for ever: nothing regenerates these files, and a changed one fails here."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from eventstore.event import Event, decode, encode, load
from eventstore.merkle import leaf_hash

GOLDEN = Path(__file__).parents[2] / "golden" / "event"

# <type>.<schema>: the SHA-256 of the released file. A new schema adds a row; no row ever changes.
RELEASED = {
    "LogCreated.1": "facf1ff914714d894a4a7112208d53496a6ab541e2319fcddff7bf4a1f89564a",
    "ServerStarted.1": "12a02e9108e0f5c87cef89118d42948a696662b5f72f9f50e313737cd2a3b015",
    "ClockAccepted.1": "bbbe45f0776f5c3e653a5e9738ed1ed301d35c42ee2c7f235a4af16657f1b44b",
    "SourceRegistered.1": "7d14544132d9bb743048e0d74bf70972f6091c819f7e51015542ec8b2e12ea0a",
    "ImageCreationStarted.1": "10db7526874b343727d411a0b234cefb0d5dc8c2cfbe6e88d372a9d6a64f06e4",
    "ImageCreated.1": "bba6d601ff9059c14ee9991bcae1cae4aa669a35730ffcbd83e49edd161b94d6",
    "ImageCreationStarted.1-uri": "7cfb76503ac8b74cd8a82c508b37a1e9be198e9634f710d21c2cbbee7d108854",
    "ImageCreationFailed.1": "500ae5d5d2fe0c5098e8bb176506b5829b30ae61a84e4df232a5733dd0b8bd01",
    "ImageUpdated.1": "d7805d787068cf6b5196c3e7c04a6b96823e8f7fa32a4ff3b23b82305f63748c",
    "ImageUpdated.1-empty-mask": "b2bc63c31066762b6333f41fa6f9d78c7c40d320141214adced9ff5fe37a8527",
    "ImageDeleted.1": "3b7fcab2be4302182de548c702792e669a5495216bf54e955be51712c78d666d",
    "ImageCreationCancelled.1": "af93b0c6748fd41de16fd1233a9e9d304d0164f7ecb64536cc0dddacfa3c73e8",
    "CheckpointKeyAdded.1": "8a9c2b7b7cd001fce16cd902b4131f220c65abd7a8d6200705c6b6904ce53031",
    "LogRestored.1": "eb38e30a76ba1229a2ede4ae8864b95d81025051baaf0ec84f37945aed08dd0e",
    "LogRestored.1-published": "f3b1825c5858aeec920903ea09e8f39ccfc6d5c251f59d5810f9ea4272a415d6",
    "SourceRemoved.1": "92de2c1689e4ea9871f4d7b9b3adc8c7f2ddbed9aaf462105bb369edf05f6acf",
}


def released_event(described: dict[str, Any]) -> Event:
    if "request" in described:
        described["request"] = bytes.fromhex(described["request"])
    return Event(**{name: described.pop(name, None) for name in Event._fields}, **described)


@pytest.mark.parametrize("name", RELEASED)
def test_released_bytes(name: str) -> None:
    body = (GOLDEN / f"{name}.msgpack").read_bytes()
    assert sha256(body).hexdigest() == RELEASED[name], "a released golden file is never regenerated"
    described = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    event = released_event(described["event"])
    assert decode(body) == event
    assert load(body) == event
    assert encode(event) == body
    assert leaf_hash(body).hex() == described["leaf"]
    assert name.split(".")[0] == event.type


def test_every_golden_file_is_released() -> None:
    assert {file.name for file in GOLDEN.iterdir()} == {
        f"{name}.{kind}" for name in RELEASED for kind in ("msgpack", "json")
    }
