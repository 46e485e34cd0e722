"""`imageledger source`: files uploaded as disks and snapshots, from which images are created."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from io import FileIO

import click

from server.gen.imageledger.v1 import source_service_pb2 as pb
from server.gen.yandex.cloud.operation import operation_pb2
from tools.client import SOURCES, Client, pages, reader_options, writer_options
from tools.operation import print_operation
from tools.options import folder_option, json_option, name_option, option
from tools.output import Table, document, note, print_json, print_json_line, size_text
from tools.progress import Progress

CHUNK_BYTES = 256 * 1024


@click.group()
def source() -> None:
    """Disks and snapshots that images can be created from."""


@source.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True), metavar="FILE")
@option(
    "--kind",
    required=True,
    type=click.Choice(["disk", "snapshot"], case_sensitive=False),
    help="What the file is a copy of; it decides which option of `image create` takes the id.",
)
@folder_option
@name_option
@json_option
@writer_options
def add(client: Client, file: str, kind: str, folder_id: str, name: str | None, as_json: bool) -> None:
    """Upload a qcow2, VMDK or raw file (- is stdin) as a source, and print its id.

    \b
    Example:
      id=$(imageledger source add disk.qcow2 --kind disk --folder standard-images)
      imageledger image create --folder standard-images --name web-1 --disk-id $id
    """
    # Unbuffered: gRPC reads in a thread of its own, which must hold no lock of stdin when Ctrl-C ends us.
    with FileIO(0, closefd=False) if file == "-" else FileIO(file) as opened:
        header = pb.SourceHeader(
            folder_id=folder_id, kind=kind.upper(), name=name or "", size_bytes=_size(opened)
        )
        with Progress("uploading", total_bytes=header.size_bytes) as progress:
            made = client.upload(f"{SOURCES}/Upload", _parts(header, opened, progress), pb.Source)
    if as_json:
        print_json(document(made))
    else:
        print(made.id)


def _size(file: FileIO) -> int:
    """Bytes that are left to read in a regular file; 0, unknown, for a pipe."""
    status = os.fstat(file.fileno())
    return max(0, status.st_size - file.tell()) if stat.S_ISREG(status.st_mode) else 0


def _parts(header: pb.SourceHeader, file: FileIO, progress: Progress) -> Iterator[pb.UploadSourceRequest]:
    yield pb.UploadSourceRequest(header=header)
    sent = 0
    while chunk := file.read(CHUNK_BYTES):
        yield pb.UploadSourceRequest(chunk=chunk)
        sent += len(chunk)
        progress.show(sent)


@source.command("list")
@folder_option
@json_option
@reader_options
def list_sources(client: Client, folder_id: str, as_json: bool) -> None:
    """Print the sources of a folder; with --json one a line.

    \b
    Example:
      imageledger source list --folder standard-images
    """

    def ask(page_size: int, page_token: str) -> tuple[Sequence[pb.Source], str]:
        request = pb.ListSourcesRequest(folder_id=folder_id, page_size=page_size, page_token=page_token)
        answer = client.call(f"{SOURCES}/List", request, pb.ListSourcesResponse)
        return answer.sources, answer.next_page_token

    table = Table("ID", "KIND", "NAME", "FORMAT", "SIZE", "CREATED_AT")
    count = 0
    for found in pages(ask):
        count += len(found)
        if as_json:
            for each in found:
                print_json_line(document(each))
        else:
            table.print([_row(each) for each in found])
    if not count:
        note(f"no sources in folder {folder_id}")


def _row(found: pb.Source) -> tuple[str, ...]:
    return (
        found.id,
        pb.SourceKind.Name(found.kind),
        found.name,
        found.format,
        size_text(found.size),
        found.created_at.ToJsonString(),
    )


@source.command()
@click.argument("source_id", metavar="ID")
@json_option
@writer_options
def remove(client: Client, source_id: str, as_json: bool) -> None:
    """Remove a source, and print the operation. Images made of it stay.

    \b
    Example:
      imageledger source remove ID
    """
    request = pb.RemoveSourceRequest(source_id=source_id)
    print_operation(client.call(f"{SOURCES}/Remove", request, operation_pb2.Operation), as_json=as_json)
