"""What an image may be imported from: presigned objects, and every trick at the allow-list, by Create."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from server.gen.yandex.cloud.compute.v1 import image_pb2
from tests.conformance.api import MIB, Api, Code, refused
from tests.conformance.s3 import S3, S3Unavailable, serving_s3
from tests.conformance.sites import Site, ended
from tests.harness import Server, image_of, serving
from tests.unit.server.disk_images import tiny_qcow2
from tests.unit.server.misbehaving import Answer, cut, redirect, rest

BODY = tiny_qcow2(10 * MIB)
# The server's own name lookups, but for two names: one that leads elsewhere the second time, and one that
# leads to a cloud's metadata service.
RESOLVER = """
import socket
asked, real = [], socket.getaddrinfo
def getaddrinfo(host, port, *rest, **named):
    if host == "rebinding.test":
        asked.append(host)
        host = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
    if host == "metadata.test":
        host = "169.254.169.254"
    return real(host, port, *rest, **named)
socket.getaddrinfo = getaddrinfo
"""


class Place(NamedTuple):
    """`evil` listens at the same port as `site`, on another address; `files` is allowed, `outside` is not."""

    server: Server
    site: Site
    evil: Site
    files: Path
    outside: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    root = tmp_path_factory.mktemp("sources")
    files, outside, python = root / "images", root / "images-outside", root / "python"
    for folder in (files, outside, files / "folder", python):
        folder.mkdir()
    (python / "sitecustomize.py").write_text(RESOLVER)
    (outside / "disk").write_bytes(BODY)
    (files / "disk").write_bytes(BODY)
    (files / "link").symlink_to(outside / "disk")
    (files / "near").symlink_to(files / "disk")
    (files / "folder-link").symlink_to(outside)
    os.mkfifo(files / "pipe")
    with Site() as site, Site(address="127.0.0.2", port=site.port) as evil:
        site.put("/images/disk", BODY)
        allowed = [site.prefix, files.as_uri() + "/"]
        allowed += [f"http://{name}.test:{site.port}/images/" for name in ("rebinding", "metadata")]
        # Its own data, too, by a mistake of the operator.
        allowed += [(root / "data").as_uri() + "/"]
        server = Server(
            root / "data",
            *(part for prefix in allowed for part in ("--allow-source", prefix)),
            environment={"PYTHONPATH": os.pathsep.join([str(python), os.environ.get("PYTHONPATH", "")])},
        ).start()
        try:
            yield Place(server, site, evil, files, outside)
        finally:
            server.stop()


@pytest.fixture
def api(place: Place) -> Iterator[Api]:
    with Api(place.server.address) as client:
        yield client


def test_a_presigned_object(tmp_path: Path, folder: str) -> None:
    with contextlib.ExitStack() as stack:
        try:
            s3: S3 = stack.enter_context(serving_s3(tmp_path / "s3"))
        except S3Unavailable as error:
            pytest.skip(str(error))
        s3.put("images", "golden/disk.qcow2", BODY)
        prefix = f"http://{s3.authority}/images/"
        server = stack.enter_context(serving(tmp_path / "data", "--allow-source", prefix))
        api = stack.enter_context(Api(server.address))
        done = ended(api, api.create(folder, uri=s3.presigned("images", "golden/disk.qcow2")).id)
        image = image_of(done)
        assert (image.status, image.size, image.storage_size) == (image_pb2.Image.READY, 10 * MIB, len(BODY))
        assert api.read(image.id)[1] == BODY
        for uri, why in (
            (s3.presigned("images", "golden/disk.qcow2", secret="wrong"), "answered 403"),
            (s3.presigned("images", "missing"), "answered 404"),
        ):
            assert why in ended(api, api.create(folder, uri=uri).id).error.message
        elsewhere = s3.presigned("other", "golden/disk.qcow2")
        assert refused(lambda: api.create(folder, uri=elsewhere)).code is Code.FAILED_PRECONDITION
        assert "X-Amz" not in server.stderr()


MALFORMED = Code.INVALID_ARGUMENT
OUTSIDE = Code.FAILED_PRECONDITION


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        pytest.param("http://127.0.0.1:{port}@127.0.0.2:{port}/images/disk", MALFORMED, id="userinfo"),
        pytest.param("http://u:p@127.0.0.1:{port}/images/disk", MALFORMED, id="password"),
        pytest.param("http://127.0.0.1:{port}\\@127.0.0.2:{port}/images/disk", MALFORMED, id="backslash"),
        pytest.param("http://127.0.0.1:{port}#@127.0.0.2:{port}/images/disk", MALFORMED, id="fragment"),
        pytest.param("http://127.0.0.1:{port}/images/../secret", MALFORMED, id="dots"),
        pytest.param("http://127.0.0.1:{port}/images/%2e%2e/secret", MALFORMED, id="escaped-dots"),
        pytest.param("http://127.0.0.1:{port}/images/.%2E/secret", MALFORMED, id="half-escaped-dots"),
        pytest.param("http://127.0.0.1:{port}/images/%252e%252e/secret", MALFORMED, id="escaped-twice"),
        pytest.param("http://127.0.0.1:{port}/images/..;a=b/secret", MALFORMED, id="dots-and-parameter"),
        pytest.param("http://127.0.0.1:{port}/images/..%2fsecret", MALFORMED, id="escaped-slash"),
        pytest.param("http://127.0.0.1:{port}/images/..%5csecret", MALFORMED, id="escaped-backslash"),
        pytest.param("http://127.0.0.1:{port}/images/%00", MALFORMED, id="nul"),
        pytest.param("http://127.0.0.1:{port}/images//disk", MALFORMED, id="two-slashes"),
        pytest.param("http://127.0.0.1:{port}/images/disk%0d%0aX-Evil:%20a", MALFORMED, id="escaped-crlf"),
        pytest.param("http://127.0.0.1:{port}/images/disk\r\nX-Evil: a", MALFORMED, id="crlf"),
        pytest.param("http://127.0.0.1:{port}/images/disk?a=b\r\nHost: evil", MALFORMED, id="crlf-in-query"),
        pytest.param("http://127.0.0.1:{port}/images/a disk", MALFORMED, id="space"),
        pytest.param(" http://127.0.0.1:{port}/images/disk", MALFORMED, id="leading-space"),
        pytest.param("http://127.0.0.1:{port}/images/d\u00efsk", MALFORMED, id="not-ascii"),
        pytest.param("http://127.0.0.1:{port}/images/100%", MALFORMED, id="bad-escape"),
        pytest.param("http://127.0.0.1.:{port}/images/disk", MALFORMED, id="trailing-dot"),
        pytest.param("http://rebinding.test.:{port}/images/disk", MALFORMED, id="trailing-dot-of-a-name"),
        pytest.param("http://2130706433:{port}/images/disk", MALFORMED, id="address-as-a-number"),
        pytest.param("http://0x7f.1:{port}/images/disk", MALFORMED, id="hex-address"),
        pytest.param("http://0177.0.0.1:{port}/images/disk", MALFORMED, id="octal-address"),
        pytest.param("http://127.1:{port}/images/disk", MALFORMED, id="short-address"),
        pytest.param("http://[::ffff:127.0.0.1]:{port}/images/disk", MALFORMED, id="mapped-address"),
        pytest.param("http://[fe80::1%25lo]:{port}/images/disk", MALFORMED, id="zone"),
        pytest.param("http://[::1:{port}/images/disk", MALFORMED, id="bracket"),
        pytest.param("http://127.0.0.1:{port}0000/images/disk", MALFORMED, id="port-too-large"),
        pytest.param("http://127.0.0.1:+{port}/images/disk", MALFORMED, id="signed-port"),
        pytest.param("http:///images/disk", MALFORMED, id="no-host"),
        pytest.param("//127.0.0.1:{port}/images/disk", MALFORMED, id="no-scheme"),
        pytest.param("images/disk", MALFORMED, id="relative"),
        pytest.param("file://127.0.0.1{files}/disk", MALFORMED, id="file-with-a-host"),
        pytest.param("file://{files}/../images-outside/disk", MALFORMED, id="file-dots"),
        pytest.param("file://{files}/%2e%2e/images-outside/disk", MALFORMED, id="file-escaped-dots"),
        pytest.param("file://{files}/disk?a", MALFORMED, id="file-with-a-query"),
        pytest.param("file:{files}/disk", MALFORMED, id="file-without-slashes"),
        pytest.param("http://127.0.0.1:{port}/images/" + "a" * 5000, MALFORMED, id="too-long"),
        pytest.param("http://[::1]:{port}/images/disk", OUTSIDE, id="ipv6"),
        pytest.param("http://127.0.0.2:{port}/images/disk", OUTSIDE, id="another-host"),
        pytest.param("http://127.0.0.1:1/images/disk", OUTSIDE, id="another-port"),
        pytest.param("http://127.0.0.1/images/disk", OUTSIDE, id="no-port"),
        pytest.param("https://127.0.0.1:{port}/images/disk", OUTSIDE, id="another-scheme"),
        pytest.param("http://127.0.0.1:{port}/images-evil/disk", OUTSIDE, id="half-a-segment"),
        pytest.param("http://127.0.0.1:{port}/IMAGES/disk", OUTSIDE, id="path-in-another-case"),
        pytest.param("http://127.0.0.1:{port}/secret?/images/", OUTSIDE, id="prefix-in-the-query"),
        pytest.param("http://127.0.0.1.evil.test:{port}/images/disk", OUTSIDE, id="prefix-in-the-name"),
        pytest.param("file://{outside}/disk", OUTSIDE, id="file-outside"),
        pytest.param("file:///etc/passwd", OUTSIDE, id="password-file"),
        pytest.param("ftp://127.0.0.1/images/disk", OUTSIDE, id="ftp"),
        pytest.param("gopher://127.0.0.1:{port}/images/disk", OUTSIDE, id="gopher"),
    ],
)
def test_refused_at_once_and_nothing_is_read(
    place: Place, api: Api, folder: str, uri: str, code: Code
) -> None:
    before = place.site.connections, place.evil.connections
    made = uri.replace("{port}", str(place.site.port))
    made = made.replace("{files}", str(place.files)).replace("{outside}", str(place.outside))
    told = refused(lambda: api.create(folder, uri=made))
    assert told.code is code
    assert told.reason in (("URI_MALFORMED", "REQUEST_INVALID") if code is MALFORMED else ("SOURCE_REFUSED",))
    assert told.fields == (["uri"] if code is MALFORMED else [])
    assert not api.names(folder)
    assert (place.site.connections, place.evil.connections) == before


@pytest.mark.parametrize(
    "lead",
    [
        pytest.param(lambda place: place.evil.uri("/images/disk"), id="another-host"),
        pytest.param(lambda place: "/secret/disk", id="out-of-the-prefix"),
        pytest.param(lambda place: "../secret/disk", id="dots"),
        pytest.param(lambda place: "%2e%2e/secret/disk", id="escaped-dots"),
        pytest.param(lambda place: f"//127.0.0.2:{place.site.port}/images/disk", id="no-scheme"),
        pytest.param(
            lambda place: f"http://127.0.0.1:{place.site.port}@127.0.0.2:{place.site.port}/images/disk",
            id="userinfo",
        ),
        pytest.param(lambda place: f"{place.files.as_uri()}/disk", id="to-a-file"),
        pytest.param(lambda place: "ftp://127.0.0.2/images/disk", id="ftp"),
        pytest.param(lambda place: "", id="nowhere"),
    ],
)
@pytest.mark.parametrize("hops", [0, 2])
def test_a_redirect_is_checked_again(
    place: Place, api: Api, folder: str, lead: Callable[[Place], str], hops: int
) -> None:
    site, name = place.site, uuid.uuid4().hex
    # Below /images/ the same for every hop, so that a relative one means the same at each.
    site.put(f"/images/{name}-0", redirect(lead(place)))
    for hop in range(hops):
        site.put(f"/images/{name}-{hop + 1}", redirect(f"/images/{name}-{hop}"))
    evil, requests = place.evil.connections, len(site.requests)
    done = ended(api, api.create(folder, uri=site.uri(f"/images/{name}-{hops}")).id)
    assert done.error.code == Code.FAILED_PRECONDITION.value[0]
    assert "redirect" in done.error.message or "without saying where to" in done.error.message
    assert place.evil.connections == evil
    assert len(site.requests) == requests + hops + 1
    assert all(request.target.startswith("/images/") for request in site.requests)


def test_a_redirect_within_the_prefix_is_followed_but_not_for_ever(
    place: Place, api: Api, folder: str
) -> None:
    place.site.put("/images/moved", redirect("disk"))
    place.site.put("/images/round", redirect("round"))
    assert image_of(ended(api, api.create(folder, uri=place.site.uri("/images/moved")).id)).size == 10 * MIB
    before = len(place.site.requests)
    done = ended(api, api.create(folder, uri=place.site.uri("/images/round")).id)
    assert "redirects more than" in done.error.message
    assert len(place.site.requests) - before < 10


@pytest.mark.parametrize(
    ("name", "why"),
    [
        pytest.param("link", "symbolic link", id="link"),
        pytest.param("near", "symbolic link", id="link-within"),
        pytest.param("folder-link/disk", "symbolic link", id="link-of-a-folder"),
        pytest.param("pipe", "a device, pipe or socket", id="pipe"),
        pytest.param("folder", "a folder", id="folder"),
        pytest.param("folder/", "a folder", id="folder-slash"),
        pytest.param("disk/x", "no folder", id="below-a-file"),
        pytest.param("missing", "no such file", id="missing"),
    ],
)
def test_what_is_no_plain_file_is_not_read(place: Place, api: Api, folder: str, name: str, why: str) -> None:
    done = ended(api, api.create(folder, uri=f"{place.files.as_uri()}/{name}").id)
    assert done.error.code == Code.FAILED_PRECONDITION.value[0]
    assert why in done.error.message


@pytest.mark.parametrize("name", ["log.db", "token.key", "blobs/incoming/x"])
def test_the_servers_own_files_are_never_a_source(place: Place, api: Api, folder: str, name: str) -> None:
    """SQLite's locks would end with the descriptor; and a key is no image."""
    done = ended(api, api.create(folder, uri=f"{place.server.data.as_uri()}/{name}").id)
    assert "this server's own data" in done.error.message


def test_a_name_that_leads_elsewhere_the_second_time_is_not_followed(
    place: Place, api: Api, folder: str
) -> None:
    answers: list[Answer] = [cut(BODY, 1000), rest(BODY)]
    place.site.put("/images/rebinding", lambda request, connection: answers.pop(0)(request, connection))
    place.evil.put("/images/rebinding", rest(BODY))
    before = place.evil.connections
    uri = f"http://rebinding.test:{place.site.port}/images/rebinding"
    done = ended(api, api.create(folder, uri=uri).id)
    assert len(answers) == 1
    assert "resolves to other addresses than at the start" in done.error.message
    assert place.evil.connections == before


def test_a_name_that_leads_to_a_metadata_service_is_refused(place: Place, api: Api, folder: str) -> None:
    done = ended(api, api.create(folder, uri=f"http://metadata.test:{place.site.port}/images/disk").id)
    assert "resolves to a link-local" in done.error.message


def test_what_is_allowed_is_read_in_any_spelling_that_means_the_same(
    place: Place, api: Api, folder: str
) -> None:
    """Else the tests before would prove nothing."""
    for uri in (f"HtTp://127.0.0.1:{place.site.port}/images/%64isk", f"FILE://localhost{place.files}/disk"):
        assert image_of(ended(api, api.create(folder, uri=uri).id)).size == 10 * MIB


def test_without_a_prefix_there_is_no_source(folder: str, tmp_path: Path, place: Place) -> None:
    before = place.site.connections
    with serving(tmp_path / "data") as server, Api(server.address) as api:
        for uri in (place.site.uri("/images/disk"), f"{place.files.as_uri()}/disk"):
            told = refused(lambda uri=uri: api.create(folder, uri=uri))  # type: ignore[misc]
            assert told.code is Code.FAILED_PRECONDITION
            assert "--allow-source" in told.message
    assert place.site.connections == before
