"""`imageledger image`: create, read, change, delete and download images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from server.gen.imageledger.v1 import blob_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2, image_service_pb2
from server.gen.yandex.cloud.operation import operation_pb2
from tools.client import BLOBS, IMAGES, Client, pages, reader_options, writer_options
from tools.download import download_to_file, download_to_stdout
from tools.operation import image_of, print_operation, state_of, wait_for
from tools.options import (
    description_option,
    folder_option,
    json_option,
    label_option,
    name_option,
    option,
    size_option,
)
from tools.output import (
    Table,
    document,
    exact_size_text,
    note,
    print_json,
    print_json_line,
    print_pairs,
    size_text,
)

SOURCES = {"image_id": "--image-id", "disk_id": "--disk-id", "snapshot_id": "--snapshot-id", "uri": "--uri"}
VERIFY_TIMEOUT_S = 3600.0  # Gigabytes are read from a disk.
UPDATABLE = ("name", "description", "min_disk_size")


@click.group()
def image() -> None:
    """Images: create, read as of any moment, change, delete, download."""


@image.command()
@folder_option
@name_option
@description_option
@label_option
@option("--family", help="The family it becomes the latest image of.")
@size_option
@option(
    "--os",
    type=click.Choice(["linux", "windows"], case_sensitive=False),
    help="Else what the source image has, else linux.",
)
@option("--product-id", "product_ids", multiple=True, metavar="ID", help="Repeat it for more products.")
@option("--pooled", is_flag=True, help="Keep it in a pool for fast disk creation.")
@option("--image-id", metavar="ID", help="Create it from this image.")
@option("--disk-id", metavar="ID", help="Create it from this disk: see `imageledger source add`.")
@option("--snapshot-id", metavar="ID", help="Create it from this snapshot.")
@option("--uri", help="Import it from this address, which the server must allow.")
@option("--async", "is_async", is_flag=True, help="Print the operation instead of waiting for the image.")
@json_option
@writer_options
def create(client: Client, is_async: bool, as_json: bool, **values: Any) -> None:
    """Create an image from one source, wait until it is ready and print it.

    \b
    Example:
      imageledger image create --folder standard-images --name web-1 --family web --disk-id ID
    """
    begun = client.call(f"{IMAGES}/Create", _create_request(values), operation_pb2.Operation)
    if is_async:
        print_operation(begun, as_json=as_json)
        return
    print_image(image_of(wait_for(client, begun)), as_json=as_json)


def _create_request(values: dict[str, Any]) -> image_service_pb2.CreateImageRequest:
    given = {name: value for name, value in values.items() if value is not None}
    sources = [spelled for name, spelled in SOURCES.items() if name in given]
    if len(sources) != 1:
        what = "none is given" if not sources else f"{' and '.join(sources)} are given"
        raise click.UsageError(f"an image has exactly one source, {', '.join(SOURCES.values())}; {what}")
    if "os" in given:
        given["os"] = image_pb2.Os(type=given["os"].upper())
    return image_service_pb2.CreateImageRequest(**given)


@image.command()
@click.argument("image_id", metavar="ID")
@json_option
@reader_options
def get(client: Client, image_id: str, as_json: bool) -> None:
    """Print an image, as it is or as it was.

    \b
    Example:
      imageledger image get ID --as-of 2026-11-23T10:00:00Z
    """
    request = image_service_pb2.GetImageRequest(image_id=image_id)
    print_image(client.call(f"{IMAGES}/Get", request, image_pb2.Image), as_json=as_json)


@image.command()
@click.argument("family", metavar="FAMILY")
@folder_option
@json_option
@reader_options
def latest(client: Client, family: str, folder_id: str, as_json: bool) -> None:
    """Print the image that a family resolves to: the newest one that is ready.

    \b
    Example:
      imageledger image latest web --folder standard-images
    """
    request = image_service_pb2.GetImageLatestByFamilyRequest(folder_id=folder_id, family=family)
    print_image(client.call(f"{IMAGES}/GetLatestByFamily", request, image_pb2.Image), as_json=as_json)


@image.command("list")
@folder_option
@option("--filter", "filter_text", metavar="TEXT", help="""Like `family = "web" AND name != "web-1"`.""")
@option("--order-by", metavar="TEXT", help="Like `createdAt desc`; without it, by id.")
@option("--limit", type=click.IntRange(min=1), help="Print at most so many images.")
@json_option
@reader_options
def list_images(
    client: Client,
    folder_id: str,
    filter_text: str | None,
    order_by: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Print the images of a folder; with --json one a line.

    \b
    Example:
      imageledger image list --folder standard-images --filter 'family = "web"' --order-by 'createdAt desc'
    """

    def ask(page_size: int, page_token: str) -> tuple[Sequence[image_pb2.Image], str]:
        request = image_service_pb2.ListImagesRequest(
            folder_id=folder_id,
            page_size=page_size,
            page_token=page_token,
            filter=filter_text,
            order_by=order_by,
        )
        answer = client.call(f"{IMAGES}/List", request, image_service_pb2.ListImagesResponse)
        return answer.images, answer.next_page_token

    table = Table("ID", "NAME", "FAMILY", "STATUS", "SIZE", "CREATED_AT")
    count = 0
    for images in pages(ask, limit=limit):
        count += len(images)
        if as_json:
            for found in images:
                print_json_line(document(found))
        else:
            table.print([_row(found) for found in images])
    if not count:
        note(f"no images in folder {folder_id}" + (" match the filter" if filter_text else ""))


def _row(found: image_pb2.Image) -> tuple[str, ...]:
    return (
        found.id,
        found.name,
        found.family,
        image_pb2.Image.Status.Name(found.status),
        size_text(found.size),
        found.created_at.ToJsonString(),
    )


@image.command()
@click.argument("image_id", metavar="ID")
@name_option
@description_option
@size_option
@label_option
@option("--clear-labels", is_flag=True, help="Remove all labels.")
@json_option
@writer_options
def update(
    client: Client,
    image_id: str,
    labels: dict[str, str],
    clear_labels: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Change what is given, and print the image. An empty value clears: `--name ''`.

    The labels given replace the whole set.

    \b
    Example:
      imageledger image update ID --description 'golden' --label env=prod --reason 'ticket 17'
    """
    if labels and clear_labels:
        raise click.UsageError("--label and --clear-labels contradict each other: give one of them")
    given = {name: values[name] for name in UPDATABLE if values[name] is not None}
    if labels or clear_labels:
        given["labels"] = labels
    if not given:
        raise click.UsageError(
            "nothing to change: give --name, --description, --min-disk-size, --label or --clear-labels"
        )
    request = image_service_pb2.UpdateImageRequest(image_id=image_id, **given)
    request.update_mask.paths.extend(given)
    begun = client.call(f"{IMAGES}/Update", request, operation_pb2.Operation)
    print_image(image_of(wait_for(client, begun)), as_json=as_json)


@image.command()
@click.argument("image_id", metavar="ID")
@json_option
@writer_options
def delete(client: Client, image_id: str, as_json: bool) -> None:
    """Delete an image, and print the operation. What it was can still be asked with --as-of.

    \b
    Example:
      imageledger image delete ID --reason 'replaced by web-2'
    """
    request = image_service_pb2.DeleteImageRequest(image_id=image_id)
    begun = client.call(f"{IMAGES}/Delete", request, operation_pb2.Operation)
    print_operation(begun, as_json=as_json)


@image.command()
@click.argument("image_id", metavar="ID")
@json_option
@reader_options
def operations(client: Client, image_id: str, as_json: bool) -> None:
    """Print the operations on an image, newest first; with --json one a line.

    \b
    Example:
      imageledger image operations ID --json
    """

    def ask(page_size: int, page_token: str) -> tuple[Sequence[operation_pb2.Operation], str]:
        request = image_service_pb2.ListImageOperationsRequest(
            image_id=image_id, page_size=page_size, page_token=page_token
        )
        answer = client.call(
            f"{IMAGES}/ListOperations", request, image_service_pb2.ListImageOperationsResponse
        )
        return answer.operations, answer.next_page_token

    table = Table("ID", "DESCRIPTION", "CREATED_AT", "CREATED_BY", "STATE")
    for found in pages(ask):
        if as_json:
            for operation in found:
                print_json_line(document(operation))
        else:
            table.print([_operation_row(operation) for operation in found])


def _operation_row(found: operation_pb2.Operation) -> tuple[str, ...]:
    return (found.id, found.description, found.created_at.ToJsonString(), found.created_by, state_of(found))


@image.command()
@click.argument("image_id", metavar="ID")
@option(
    "--to",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Where to; - is stdout.",
)
@option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@json_option
@reader_options
def download(client: Client, image_id: str, to: Path, overwrite: bool, as_json: bool) -> None:
    """Download an image's bytes and check them against its digest.

    They arrive in FILE.part, which becomes FILE when it is whole and right; the same command goes on with a
    FILE.part that an interruption left.

    \b
    Example:
      imageledger image download ID --to web.qcow2
    """
    if str(to) == "-":
        if as_json:
            raise click.UsageError("with --to - stdout holds the image's bytes, so --json has no place there")
        download_to_stdout(client, image_id)
        return
    info = download_to_file(client, image_id, to, overwrite=overwrite)
    if as_json:
        print_json(document(info))
    else:
        print(f"{to}: {exact_size_text(info.storage_size)} {info.format}, SHA-256 {info.sha256}")


@image.command()
@click.argument("image_id", metavar="ID")
@json_option
@reader_options
def verify(client: Client, image_id: str, as_json: bool) -> None:
    """Have the server read an image's stored bytes again and compare their digest; exit 1 if it differs.

    \b
    Example:
      imageledger image verify ID
    """
    request = blob_service_pb2.VerifyBlobRequest(image_id=image_id)
    answer = client.call(
        f"{BLOBS}/Verify", request, blob_service_pb2.VerifyBlobResponse, timeout_s=VERIFY_TIMEOUT_S
    )
    if as_json:
        print_json(document(answer.info))
    else:
        info = answer.info
        print(
            f"{image_id}: {exact_size_text(info.storage_size)} {info.format}, SHA-256 {info.sha256}, verified"
        )


def print_image(found: image_pb2.Image, *, as_json: bool) -> None:
    if as_json:
        print_json(document(found))
        return
    labels = ", ".join(f"{key}={value}" for key, value in sorted(found.labels.items()))
    print_pairs(
        (
            ("id", found.id),
            ("folder_id", found.folder_id),
            ("name", found.name),
            ("description", found.description),
            ("labels", labels),
            ("family", found.family),
            ("status", image_pb2.Image.Status.Name(found.status)),
            ("created_at", found.created_at.ToJsonString()),
            ("size", exact_size_text(found.size)),
            ("storage_size", exact_size_text(found.storage_size)),
            ("min_disk_size", exact_size_text(found.min_disk_size)),
            ("os", image_pb2.Os.Type.Name(found.os.type)),
            ("product_ids", ", ".join(found.product_ids)),
            ("pooled", "true" if found.pooled else ""),
        )
    )
