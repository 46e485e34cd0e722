"""An image's bytes to a file or to stdout, checked against its digest."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from eventstore.database import fsync_directory
from server.gen.imageledger.v1 import blob_service_pb2 as pb
from tools.client import BLOBS, CallFailed, Client
from tools.errors import CommandFailed
from tools.output import note, size_text
from tools.progress import Progress

CHUNK_BYTES = 1024 * 1024


class BytesWrong(CommandFailed):
    """All bytes came, and they are not those that the server announced."""

    def __init__(self, image_id: str, what: str) -> None:
        super().__init__(
            "DATA_LOSS",
            f"the bytes of image {image_id} arrived damaged: {what}",
            remedy="try again; if it happens again, the server's store or the network is broken",
        )


def download_to_stdout(client: Client, image_id: str) -> None:
    """Raises CommandFailed, also when the bytes that were written are not the image's."""
    info, chunks = _read(client, image_id, offset=0)
    _copy(image_id, info, chunks, sys.stdout.buffer, done_bytes=0, digest=hashlib.sha256())
    sys.stdout.buffer.flush()


def download_to_file(client: Client, image_id: str, path: Path, *, overwrite: bool) -> pb.BlobInfo:
    """What is now in the file. Raises CommandFailed, and leaves the file as it was then."""
    _check_free(path, overwrite=overwrite)
    part = path.with_name(path.name + ".part")
    try:
        info = _fill(client, image_id, part)
    except (KeyboardInterrupt, CommandFailed, OSError):
        _tell_what_stays(part)
        raise
    _check_free(path, overwrite=overwrite)
    part.replace(path)
    fsync_directory(path.parent)
    # The file is durable from here on.
    return info


def _tell_what_stays(part: Path) -> None:
    size = part.stat().st_size if part.exists() else 0
    if size:
        note(f"{part} keeps {size_text(size)}: the same command goes on from there")
    else:
        part.unlink(missing_ok=True)


def _check_free(path: Path, *, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise CommandFailed(
            "ALREADY_EXISTS", f"{path} is there already", remedy="give another --to, or --overwrite"
        )


def _fill(client: Client, image_id: str, part: Path) -> pb.BlobInfo:
    """Bring the part to its end; one that turns out to be of other bytes is begun anew, once."""
    if part.exists():
        try:
            return _fill_once(client, image_id, part)
        except BytesWrong:
            pass
        except CallFailed as error:
            # Too long a part: anything else, a moment beyond the head say, is no reason to drop it.
            if error.fields != ("offset",):
                raise
        note(f"{part} does not belong to this image: it is downloaded from the start")
        part.unlink()
    try:
        return _fill_once(client, image_id, part)
    except CommandFailed as error:
        if error.code == "DATA_LOSS":
            part.unlink(missing_ok=True)
        raise


def _fill_once(client: Client, image_id: str, part: Path) -> pb.BlobInfo:
    digest, done_bytes = _hashed(part)
    info, chunks = _read(client, image_id, offset=done_bytes)
    # Not before the server has said that there is something to download.
    with part.open("ab") as file:
        _copy(image_id, info, chunks, file, done_bytes=done_bytes, digest=digest)
        file.flush()
        os.fsync(file.fileno())
    return info


def _hashed(part: Path) -> tuple[hashlib._Hash, int]:
    """Digest and number of the bytes that are there."""
    digest, count = hashlib.sha256(), 0
    if part.exists():
        with part.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                count += len(chunk)
    return digest, count


def _read(client: Client, image_id: str, *, offset: int) -> tuple[pb.BlobInfo, Iterator[bytes]]:
    """What the server says of the bytes, and those from `offset` on."""
    request = pb.ReadBlobRequest(image_id=image_id, offset=offset)
    answers = client.download(f"{BLOBS}/Read", request, pb.ReadBlobResponse)
    first = next(answers, None)
    if first is None:
        raise CommandFailed("INTERNAL", f"the server sent nothing for image {image_id}")
    return first.info, (answer.chunk for answer in answers)


def _copy(
    image_id: str,
    info: pb.BlobInfo,
    chunks: Iterator[bytes],
    into: BinaryIO,
    *,
    done_bytes: int,
    digest: hashlib._Hash,
) -> None:
    """Write the chunks and check the whole. `digest` is of the `done_bytes` before them."""
    with Progress("downloading", total_bytes=info.storage_size) as progress:
        for chunk in chunks:
            into.write(chunk)
            digest.update(chunk)
            done_bytes += len(chunk)
            progress.show(done_bytes)
    if done_bytes != info.storage_size:
        raise BytesWrong(image_id, f"{done_bytes} bytes instead of {info.storage_size}")
    if digest.hexdigest() != info.sha256:
        raise BytesWrong(image_id, f"SHA-256 {digest.hexdigest()} instead of {info.sha256}")
