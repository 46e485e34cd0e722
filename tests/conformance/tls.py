"""A real server with a certificate of a private authority, as the official SDK needs it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import trustme

from tests.harness import Client, Server

HOST = "localhost"


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A running server, where clients find it, and whom they have to trust."""

    server: Server
    endpoint: str
    ca_file: Path

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca_file.read_bytes())

    def client(self) -> Client:
        return Client(self.endpoint, credentials=self.credentials())


@contextlib.contextmanager
def serving_over_tls(folder: Path, *options: str) -> Iterator[TlsServer]:
    """A server that names itself by a host name, with its data and certificates below `folder`."""
    authority = trustme.CA()
    issued = authority.issue_cert(HOST, "127.0.0.1")
    ca_file, cert_file, key_file = (folder / name for name in ("ca.pem", "cert.pem", "key.pem"))
    authority.cert_pem.write_to_path(ca_file)
    issued.private_key_pem.write_to_path(key_file)
    for part in issued.cert_chain_pems:
        part.write_to_path(cert_file, append=True)
    port = free_port()
    server = Server(
        folder / "data",
        *("--listen", f"127.0.0.1:{port}", "--advertise", f"{HOST}:{port}"),
        *("--tls-cert", str(cert_file), "--tls-key", str(key_file)),
        *options,
    ).start()
    try:
        yield TlsServer(server, f"{HOST}:{port}", ca_file)
    finally:
        server.stop()


def free_port() -> int:
    """A port that nobody listens on now: --advertise has to know it before the server is started."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
