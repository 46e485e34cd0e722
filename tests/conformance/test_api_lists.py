"""Lists: filters, orders and pages."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from server.gen.imageledger.v1 import source_service_pb2
from server.gen.yandex.cloud.compute.v1 import image_pb2
from tests.conformance.api import Api, Code, as_of, refused
from tests.harness import Server, image_of
from tests.unit.server.disk_images import tiny_qcow2

pytestmark = pytest.mark.usefixtures("quiet")

Source = source_service_pb2.Source
PAGE_BYTES_MAX = 3_670_016
FOLDER = "filtered"


@pytest.fixture(scope="module")
def filtered(api: Api, disk: Source) -> list[image_pb2.Image]:
    """A folder of images with names and families, made in the order of neither."""
    rows = (("web-2", "web"), ("db", "base"), ("", "web"), ("web-1", "web"), ("", ""), ("app", ""))
    made = [api.image(FOLDER, disk_id=disk.id, name=name, family=family) for name, family in rows]
    api.delete(api.image(FOLDER, disk_id=disk.id, name="gone", family="web").id)
    return made


def matching(filtered: list[image_pb2.Image], names: list[str]) -> list[str]:
    """The ids of images of these names, in order of id; several nameless ones for `""`."""
    return sorted(image.id for image in filtered if image.name in names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["web-2", "db", "", "web-1", "app"]),
        ("   ", ["web-2", "db", "", "web-1", "app"]),
        ('name = "web-1"', ["web-1"]),
        ("name = 'web-1'", ["web-1"]),
        ("name='web-1'", ["web-1"]),
        ("name != 'web-1'", ["web-2", "db", "", "app"]),
        ("name = ''", [""]),
        ("name != ''", ["web-2", "db", "web-1", "app"]),
        ("name IN ('web-1', \"db\")", ["web-1", "db"]),
        ("name IN ('web-1')", ["web-1"]),
        ("name in ('web-1')", ["web-1"]),
        ("name NOT IN ('web-1','db','')", ["web-2", "app"]),
        ("name not  in ('web-1','db','')", ["web-2", "app"]),
        ("name IN ('web-1','web-1')", ["web-1"]),
        ("family = 'web' AND name != ''", ["web-2", "web-1"]),
        ("family = 'web' and name = 'web-2' And status = 'ready'", ["web-2"]),
        ("name = 'web-1' AND name = 'web-2'", []),
        ("family = 'base'", ["db"]),
        ("status = 'READY'", ["web-2", "db", "", "web-1", "app"]),
        ("status != 'READY'", []),
        ("status IN ('CREATING', 'ready')", ["web-2", "db", "", "web-1", "app"]),
        ("name = 'gone'", []),
        (r"name = 'we\'b'", []),
        (r'name = "\"\\"', []),
        ("created_at = '2001-01-01T00:00:00Z'", []),
        ("created_at != '2001-01-01T00:00:00Z'", ["web-2", "db", "", "web-1", "app"]),
        ("id = 'fd8'", []),
        ("\tname\n=\r'web-1' ", ["web-1"]),
    ],
)
def test_filter(api: Api, filtered: list[image_pb2.Image], text: str, names: list[str]) -> None:
    assert [image.id for image in api.list(FOLDER, filter=text).images] == matching(filtered, names)


@pytest.mark.parametrize(
    ("text", "names"), [("name = 'web-1'", ["web-1"]), ("family != 'web'", ["db", "app"])]
)
def test_filter_of_the_past(
    api: Api, filtered: list[image_pb2.Image], folder: str, disk: Source, text: str, names: list[str]
) -> None:
    made = [api.image(folder, disk_id=disk.id, name=i.name, family=i.family) for i in filtered if i.name]
    position = api.list(folder).images and _head(api, folder)
    for image in made:
        api.delete(image.id)

    assert sorted(api.names(folder, as_of(position), filter=text)) == sorted(names)


def _head(api: Api, folder: str) -> int:
    from server.gen.yandex.cloud.compute.v1 import image_service_pb2
    from tests.conformance.api import position_of
    from tests.harness import IMAGES

    request = image_service_pb2.ListImagesRequest(folder_id=folder)
    answer = image_service_pb2.ListImagesResponse
    return position_of(api.full_call(IMAGES, "List", request, answer)[1])


def test_filter_by_id(api: Api, filtered: list[image_pb2.Image]) -> None:
    wanted = filtered[0]

    assert list(api.list(FOLDER, filter=f"id = '{wanted.id}'").images) == [wanted]


def test_a_filter_does_not_reach_into_other_folders(
    api: Api, filtered: list[image_pb2.Image], folder: str
) -> None:
    assert not api.list(folder, filter=f"id = '{filtered[0].id}'").images


@pytest.mark.parametrize("field", ["created_at", "createdAt"])
def test_filter_by_created_at(api: Api, filtered: list[image_pb2.Image], field: str) -> None:
    second = filtered[0].created_at.seconds
    text = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    found = api.list(FOLDER, filter=f"{field} = '{text}'").images

    assert {image.id for image in found} == {i.id for i in filtered if i.created_at.seconds == second}


ORDERS: list[tuple[str, Any, bool]] = [
    ("", lambda image: image.id, False),
    ("id", lambda image: image.id, False),
    ("id desc", lambda image: image.id, True),
    ("name", lambda image: (image.name, image.id), False),
    ("name asc", lambda image: (image.name, image.id), False),
    ("name DESC", lambda image: (image.name, image.id), True),
    ("createdAt", lambda image: (image.created_at.seconds, image.id), False),
    ("createdAt desc", lambda image: (image.created_at.seconds, image.id), True),
    ("created_at  desc ", lambda image: (image.created_at.seconds, image.id), True),
]


@pytest.mark.parametrize("page_size", [1, 2, 5, 6, 7])
@pytest.mark.parametrize(("order_by", "key", "descending"), ORDERS, ids=[order for order, _, _ in ORDERS])
def test_pages_in_order(
    api: Api, filtered: list[image_pb2.Image], order_by: str, key: Any, descending: bool, page_size: int
) -> None:
    found = pages(api, FOLDER, page_size=page_size, order_by=order_by)

    assert found == [image.id for image in sorted(filtered, key=key, reverse=descending)]


def pages(api: Api, folder: str, **fields: Any) -> list[str]:
    """The ids on all pages. Each but an only one has something on it."""
    token, found = "", []
    while True:
        page = api.list(folder, page_token=token, **fields)
        assert page.images or not page.next_page_token
        found += [image.id for image in page.images]
        token = page.next_page_token
        assert len(token) <= 100
        if not token:
            return found


def test_pages_of_a_filtered_list(api: Api, filtered: list[image_pb2.Image]) -> None:
    found = pages(api, FOLDER, page_size=1, filter="family = 'web'", order_by="name desc")

    assert found == [
        image.id
        for image in sorted(filtered, key=lambda image: (image.name, image.id), reverse=True)
        if image.family == "web"
    ]


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param({"filter": "family = 'web'"}, id="filter"),
        pytest.param({"order_by": "name"}, id="order"),
        pytest.param({"folder_id": "another"}, id="folder"),
        pytest.param({"metadata": as_of(1)}, id="as-of"),
    ],
)
def test_a_token_of_another_question(
    api: Api, filtered: list[image_pb2.Image], changed: dict[str, Any]
) -> None:
    token = api.list(FOLDER, page_size=1).next_page_token
    asked: dict[str, Any] = {"folder_id": FOLDER, "page_size": 1, "page_token": token, **changed}

    refusal = refused(lambda: api.list(**asked))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["page_token"])


def test_a_token_of_a_list_of_sources(api: Api, folder: str, disk: Source) -> None:
    for _ in range(2):
        api.create(folder, disk_id=disk.id)
        api.source(tiny_qcow2(512), folder_id=folder)
    token = api.sources(folder, page_size=1).next_page_token

    refusal = refused(lambda: api.list(folder, page_size=1, page_token=token))

    assert (refusal.code, refusal.fields) == (Code.INVALID_ARGUMENT, ["page_token"])


def test_a_token_cut_or_changed_anywhere(api: Api, filtered: list[image_pb2.Image]) -> None:
    token = api.list(FOLDER, page_size=1).next_page_token
    cut = [token[:size] for size in range(1, len(token))]
    changed = [token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :] for at in range(len(token))]
    longer = [token + "A", token + "=", " " + token]

    with ThreadPoolExecutor(8) as threads:
        refusals = list(
            threads.map(
                lambda text: refused(lambda: api.list(FOLDER, page_token=text)), cut + changed + longer
            )
        )

    assert {(refusal.code, *refusal.fields) for refusal in refusals} == {
        (Code.INVALID_ARGUMENT, "page_token")
    }


def test_another_page_size_does_not_hurt_a_token(api: Api, filtered: list[image_pb2.Image]) -> None:
    token = api.list(FOLDER, page_size=1).next_page_token

    rest = api.list(FOLDER, page_size=1000, page_token=token)

    assert len(rest.images) == len(filtered) - 1
    assert not rest.next_page_token


@pytest.mark.parametrize("order_by", ["id", "id desc", "name", "createdAt desc"])
def test_pages_neither_skip_nor_repeat_while_others_write(
    api: Api, disk: Source, folder: str, order_by: str
) -> None:
    for number in range(6):
        api.create(folder, disk_id=disk.id, name=f"n{number}")
    first = api.list(folder, page_size=100, order_by=order_by)

    found: list[image_pb2.Image] = []
    token = ""
    while True:
        page = api.list(folder, page_size=2, page_token=token, order_by=order_by)
        found += page.images
        token = page.next_page_token
        if not token:
            break
        # The anchor goes, another is renamed past the anchor, and a new one comes.
        api.delete(page.images[-1].id)
        survivor = page.images[0].id
        api.update(survivor, ["name"], name=f"z{len(found)}")
        api.create(folder, disk_id=disk.id, name=f"a{len(found)}")

    assert found == list(first.images)


def test_pages_go_on_while_writers_never_rest(api: Api, disk: Source, folder: str) -> None:
    for _ in range(30):
        api.create(folder, disk_id=disk.id)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            api.delete(api.image(folder, disk_id=disk.id).id)

    with ThreadPoolExecutor(2) as threads:
        writers = [threads.submit(write) for _ in range(2)]
        try:
            counts = {
                len(found) - len(set(found)) for found in (pages(api, folder, page_size=7) for _ in range(5))
            }
        finally:
            stop.set()
        for writer in writers:
            writer.result()

    assert counts == {0}


def test_the_default_page_has_a_hundred(api: Api, disk: Source, folder: str) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: api.create(folder, disk_id=disk.id), range(101)))

    first = api.list(folder)

    assert len(first.images) == 100
    assert len(api.list(folder, page_token=first.next_page_token).images) == 1
    assert len(api.list(folder, page_size=1000).images) == 101


def test_a_page_that_is_just_full_has_no_token(api: Api, disk: Source, folder: str) -> None:
    for _ in range(3):
        api.create(folder, disk_id=disk.id)

    page = api.list(folder, page_size=3)

    assert (len(page.images), page.next_page_token) == (3, "")


@pytest.fixture(scope="module")
def big(api: Api, disk: Source) -> str:
    """A folder of more bytes than fit one answer: 480 images of over 9 KiB."""
    labels = {
        f"{number:02}".translate(str.maketrans("0123456789", "abcdefghij")) + "k" * 61: "v" * 63
        for number in range(64)
    }
    fields = {"labels": labels, "description": "\U0001f600" * 256, "disk_id": disk.id}
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: api.create("big", **fields), range(480)))
    return "big"


def test_a_page_ends_before_clients_stop_reading(api: Api, big: str) -> None:
    first = api.list(big, page_size=1000)
    second = api.list(big, page_size=1000, page_token=first.next_page_token)

    assert first.ByteSize() <= PAGE_BYTES_MAX + 200
    assert first.ByteSize() > PAGE_BYTES_MAX - 20_000
    assert len(first.images) + len(second.images) == 480
    assert not second.next_page_token


def test_a_page_of_the_past_ends_there_too(api: Api, disk: Source, big: str) -> None:
    position = _head(api, big)
    api.create("elsewhere", disk_id=disk.id)

    first = api.list(big, as_of(position), page_size=1000)

    assert PAGE_BYTES_MAX - 20_000 < first.ByteSize() <= PAGE_BYTES_MAX + 200


def test_a_page_of_operations_ends_there_too(api: Api, big: str) -> None:
    image = api.list(big, page_size=1).images[0]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: api.update(image.id, ["name"], name=f"n{n}"), range(450)))

    first = api.operations(image.id, page_size=1000)
    second = api.operations(image.id, page_size=1000, page_token=first.next_page_token)

    assert PAGE_BYTES_MAX - 20_000 < first.ByteSize() <= PAGE_BYTES_MAX + 200
    assert len(first.operations) + len(second.operations) == 451


def test_pages_of_sources(api: Api, folder: str) -> None:
    made = [api.source(tiny_qcow2(512), folder_id=folder, name=f"s{n}") for n in range(3)]

    first = api.sources(folder, page_size=2)
    api.remove_source(made[2].id)
    second = api.sources(folder, page_size=2, page_token=first.next_page_token)

    assert [*first.sources, *second.sources] == made
    assert [source.id for source in api.sources(folder).sources] == [source.id for source in made[:2]]


def test_an_answer_is_whole_after_many_updates(api: Api, disk: Source, folder: str) -> None:
    image = api.image(folder, disk_id=disk.id)
    for number in range(20):
        image = image_of(api.update(image.id, ["labels"], labels={f"k{number}": "v"}))

    assert list(api.list(folder).images) == [image]


def test_the_server_lives(server: Server) -> None:
    assert server.process is not None
    assert server.process.poll() is None
