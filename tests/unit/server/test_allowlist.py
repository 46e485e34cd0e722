"""Which URIs are admitted: every trick is refused from its text alone, before anything is read."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server.allowlist import (
    URI_LENGTH_MAX,
    AllowList,
    Location,
    SourceNotAllowed,
    SourceRefused,
    SourceUnreadable,
    UriMalformed,
    open_file,
)
from server.config import ConfigInvalid

ALLOWED = (
    "https://storage.example/images/",
    "http://127.0.0.1:8080/images/",
    "http://[2001:db8::1]/images/",
    "https://other.example/exact.qcow2",
    "file:///srv/images/",
)
ALLOWLIST = AllowList.parse(ALLOWED)


def below(folder: Path) -> AllowList:
    return AllowList.parse([folder.as_uri() + "/"])


# --- URIs ---


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        pytest.param("https://storage.example/images/a", "https://storage.example/images/a", id="plain"),
        pytest.param("HTTPS://Storage.EXAMPLE/images/a", "https://storage.example/images/a", id="case"),
        pytest.param("https://storage.example:443/images/a", "https://storage.example/images/a", id="port"),
        pytest.param(
            "https://storage.example:00443/images/a", "https://storage.example/images/a", id="zeros-port"
        ),
        pytest.param("https://storage.example/images/", "https://storage.example/images/", id="the-prefix"),
        pytest.param(
            "https://storage.example/%69mages/%61%7e%c3%a9%20",
            "https://storage.example/images/a~%C3%A9%20",
            id="escapes",
        ),
        pytest.param(
            "https://storage.example/images/a?X-Amz-Signature=s",
            "https://storage.example/images/a",
            id="query",
        ),
        pytest.param(
            "https://storage.example/images/a..b/...", "https://storage.example/images/a..b/...", id="dots"
        ),
        pytest.param("http://127.0.0.1:8080/images/a", "http://127.0.0.1:8080/images/a", id="ipv4"),
        pytest.param(
            "http://[2001:0DB8:0:0::0.0.0.1]:80/images/a", "http://[2001:db8::1]/images/a", id="ipv6"
        ),
        pytest.param(
            "https://other.example/exact.qcow2", "https://other.example/exact.qcow2", id="one-object"
        ),
        pytest.param("file:///srv/images/a", "file:///srv/images/a", id="file"),
        pytest.param("FILE://LocalHost/srv/images/a", "file:///srv/images/a", id="file-localhost"),
    ],
)
def test_what_is_allowed_has_one_spelling(uri: str, shown: str) -> None:
    location = ALLOWLIST.admit(uri)
    assert location.shown() == shown
    assert ALLOWLIST.admit(shown).shown() == shown


def test_the_query_is_kept_for_the_request_and_shown_nowhere() -> None:
    location = ALLOWLIST.admit("https://storage.example/images/a?b=%2f..&sig=secret?[x]")
    assert location.target() == "/images/a?b=%2f..&sig=secret?[x]"
    assert location.query == "b=%2f..&sig=secret?[x]"
    assert "secret" not in f"{location.shown()} {location} {location!r}"


MALFORMED = [
    pytest.param("", "absolute", id="empty"),
    pytest.param("images/a", "absolute", id="relative"),
    pytest.param("/images/a", "absolute", id="no-scheme"),
    pytest.param("//storage.example/images/a", "absolute", id="no-scheme-host"),
    pytest.param("https:/storage.example/images/a", "absolute", id="one-slash"),
    pytest.param("https:storage.example/images/a", "absolute", id="no-slash"),
    pytest.param("localhost:8080/images/a", "absolute", id="host-and-port"),
    pytest.param("file:/srv/images/a", "absolute", id="file-one-slash"),
    pytest.param("1https://storage.example/images/a", "absolute", id="bad-scheme"),
    pytest.param("ht\ntps://storage.example/images/a", "control", id="lf-in-scheme"),
    pytest.param("https://storage.example@evil.example/images/a", "user name", id="userinfo"),
    pytest.param("https://u:p@storage.example/images/a", "user name", id="password"),
    pytest.param("https://@storage.example/images/a", "user name", id="empty-userinfo"),
    pytest.param("https://evil.example\\@storage.example/images/a", "cannot hold", id="backslash-userinfo"),
    pytest.param("https://evil.example#@storage.example/images/a", "fragment", id="fragment-userinfo"),
    pytest.param("https://storage.example%40evil.example/images/a", "host", id="escaped-at"),
    pytest.param("https://storage.example/images/a#b", "fragment", id="fragment"),
    pytest.param("https://storage.example/images/a\r\nHost: evil", "control", id="crlf"),
    pytest.param("https://storage.example/images/a\n", "control", id="last-lf"),
    pytest.param("\thttps://storage.example/images/a", "control", id="first-tab"),
    pytest.param("https://storage.example/images/a b", "control", id="space"),
    pytest.param("https://storage.example/images/\x00", "control", id="nul"),
    pytest.param("https://storage.example/images/\x7f", "control", id="del"),
    pytest.param("https://storage.example/images/%0d%0aHost:evil", "control", id="escaped-crlf"),
    pytest.param("file:///srv/images/a%00.qcow2", "control", id="escaped-nul"),
    pytest.param("https:\\\\storage.example\\images\\a", "cannot hold", id="backslashes"),
    pytest.param("https://storage.example/images\\..\\a", "cannot hold", id="backslash-path"),
    pytest.param('https://storage.example/images/"', "cannot hold", id="quote"),
    pytest.param("https://storage.example/images/../secret", ". or ..", id="dotdot"),
    pytest.param("https://storage.example/images/./a", ". or ..", id="dot"),
    pytest.param("https://storage.example/images/..", ". or ..", id="last-dotdot"),
    pytest.param("https://storage.example/images/%2e%2e/secret", ". or ..", id="escaped-dotdot"),
    pytest.param("https://storage.example/images/.%2E/secret", ". or ..", id="half-escaped-dotdot"),
    pytest.param("https://storage.example/images/..;x=1/secret", ". or ..", id="dotdot-parameter"),
    pytest.param("https://storage.example/images/%252e%252e/a", "escape of an escape", id="twice-escaped"),
    pytest.param("https://storage.example/images/%25252e/a", "escape of an escape", id="thrice-escaped"),
    pytest.param("https://storage.example/images/a%2fb", "slash", id="escaped-slash"),
    pytest.param("https://storage.example/images/..%5csecret", "slash", id="escaped-backslash"),
    pytest.param("https://storage.example/images//a", "empty segment", id="double-slash"),
    pytest.param("https://storage.example//images/a", "empty segment", id="first-double-slash"),
    pytest.param("https://storage.example/images/[a]", "bracket", id="bracket"),
    pytest.param("https://storage.example/images/%zz", "hex digits", id="bad-escape"),
    pytest.param("https://storage.example/images/a%2", "hex digits", id="cut-escape"),
    pytest.param("https://storage.example/images/a?b=%", "hex digits", id="bad-escape-in-query"),
    pytest.param("https:///images/a", "no host", id="no-host"),
    pytest.param("https://:443/images/a", "no host", id="only-port"),
    pytest.param("https://storage.example:/images/a", "bad port", id="empty-port"),
    pytest.param("https://storage.example:0/images/a", "bad port", id="port-0"),
    pytest.param("https://storage.example:65536/images/a", "bad port", id="port-too-high"),
    pytest.param("https://storage.example:+443/images/a", "bad port", id="port-sign"),
    pytest.param("https://storage.example:443x/images/a", "bad port", id="port-letters"),
    pytest.param("https://storage.example./images/a", "dot", id="trailing-dot"),
    pytest.param("https://storage..example/images/a", "host name", id="empty-label"),
    pytest.param("https://.storage.example/images/a", "host name", id="leading-dot"),
    pytest.param("https://-storage.example/images/a", "host name", id="leading-hyphen"),
    pytest.param(f"https://{'a' * 64}.example/images/a", "host name", id="long-label"),
    pytest.param(f"https://{'a.' * 130}example/images/a", "host name", id="long-host"),
    pytest.param("https://stor%61ge.example/images/a", "host name", id="escaped-host"),
    pytest.param("https://störage.example/images/a", "not ASCII", id="non-ascii-host"),
    pytest.param("https://storage\u3002example/images/a", "not ASCII", id="ideographic-dot"),
    pytest.param("https://storage.example/images/\u2025/a", "not ASCII", id="two-dot-leader"),
    pytest.param("https://storage.example/images/\ud800", "not ASCII", id="surrogate"),
    pytest.param("http://１２７.0.0.1:8080/images/a", "not ASCII", id="fullwidth-digits"),
    pytest.param("http://0x7f.0.0.1:8080/images/a", "number", id="hex-octet"),
    pytest.param("http://0x7f000001:8080/images/a", "number", id="hex-ip"),
    pytest.param("http://2130706433:8080/images/a", "number", id="decimal-ip"),
    pytest.param("http://017700000001:8080/images/a", "number", id="octal-ip"),
    pytest.param("http://0177.0.0.1:8080/images/a", "number", id="octal-octet"),
    pytest.param("http://127.0.0.01:8080/images/a", "number", id="leading-zero"),
    pytest.param("http://127.1:8080/images/a", "number", id="short-ip"),
    pytest.param("http://127.0.0.256:8080/images/a", "number", id="octet-too-high"),
    pytest.param("http://127.0.0.1.:8080/images/a", "dot", id="ip-trailing-dot"),
    pytest.param("http://127.0.0.0x1:8080/images/a", "number", id="last-octet-hex"),
    pytest.param("http://[::ffff:127.0.0.1]:8080/images/a", "written as IPv6", id="ipv4-mapped"),
    pytest.param("http://[::ffff:7f00:1]:8080/images/a", "written as IPv6", id="ipv4-mapped-hex"),
    pytest.param("http://[2001:db8::1%25eth0]/images/a", "zone", id="ipv6-zone"),
    pytest.param("http://[2001:db8::1/images/a", "host name", id="ipv6-open"),
    pytest.param("http://[]/images/a", "IPv6", id="ipv6-empty"),
    pytest.param("http://[v1.x]/images/a", "IPv6", id="ip-future"),
    pytest.param("http://2001:db8::1/images/a", "host name", id="ipv6-bare"),
    pytest.param("file://host/srv/images/a", "names a host", id="file-host"),
    pytest.param("file://127.0.0.1/srv/images/a", "names a host", id="file-ip"),
    pytest.param("file://localhost:80/srv/images/a", "names a host", id="file-port"),
    pytest.param("file://u@localhost/srv/images/a", "names a host", id="file-userinfo"),
    pytest.param("file:////srv/images/a", "empty segment", id="file-four-slashes"),
    pytest.param("file:///srv/images/../../etc/shadow", ". or ..", id="file-dotdot"),
    pytest.param("file:///srv/images/%2e%2e/a", ". or ..", id="file-escaped-dotdot"),
    pytest.param("file:///srv/images/a?b", "query", id="file-query"),
    pytest.param("file:///srv/images/a?", "query", id="file-empty-query"),
    pytest.param("https://storage.example/images/" + "a" * URI_LENGTH_MAX, "characters", id="too-long"),
]

OUTSIDE = [
    pytest.param("https://evil.example/images/a", id="other-host"),
    pytest.param("http://storage.example/images/a", id="other-scheme"),
    pytest.param("https://storage.example:8443/images/a", id="other-port"),
    pytest.param("https://storage.example:80/images/a", id="the-other-default-port"),
    pytest.param("https://storage.example/images-evil/a", id="longer-segment"),
    pytest.param("https://storage.example/images", id="prefix-without-slash"),
    pytest.param("https://storage.example/Images/a", id="path-case"),
    pytest.param("https://storage.example", id="no-path"),
    pytest.param("https://storage.example?/images/a", id="path-in-query"),
    pytest.param("https://storage.example.evil.example/images/a", id="host-as-prefix"),
    pytest.param("https://evil-storage.example/images/a", id="host-as-suffix"),
    pytest.param("https://other.example/exact.qcow2x", id="longer-object"),
    pytest.param("http://localhost:8080/images/a", id="name-of-the-address"),
    pytest.param("http://[::1]:8080/images/a", id="other-loopback"),
    pytest.param("http://[::127.0.0.1]:8080/images/a", id="ipv4-compatible"),
    pytest.param("http://[2001:db8::2]/images/a", id="other-ipv6"),
    pytest.param("http://169.254.169.254/latest/meta-data/", id="metadata-service"),
    pytest.param("file:///etc/shadow", id="other-folder"),
    pytest.param("file:///srv/images-evil/a", id="longer-folder"),
    pytest.param("file:///srv/Images/a", id="folder-case"),
    pytest.param("ftp://storage.example/images/a", id="ftp"),
    pytest.param("s3://bucket/a", id="s3"),
    pytest.param("gopher://127.0.0.1:8080/images/a", id="gopher"),
]


@pytest.mark.parametrize(("uri", "reason"), MALFORMED)
def test_what_is_no_clean_uri_is_malformed(uri: str, reason: str) -> None:
    with pytest.raises(UriMalformed) as refused:
        ALLOWLIST.admit(uri)
    assert reason in str(refused.value)
    assert "evil" not in str(refused.value)
    assert str(refused.value).startswith("the URI ")
    assert str(refused.value).isascii()


@pytest.mark.parametrize("uri", OUTSIDE)
def test_what_no_prefix_covers_is_not_allowed(uri: str) -> None:
    with pytest.raises(SourceNotAllowed) as refused:
        ALLOWLIST.admit(uri + "?token=secret" if not uri.startswith("file") else uri)
    assert "secret" not in str(refused.value)
    for allowed in ("127.0.0.1:8080/images", "/srv/images/"):
        assert allowed not in refused.value.reason


def test_without_prefixes_every_uri_is_refused() -> None:
    with pytest.raises(SourceNotAllowed, match="No source prefix is allowed on this server"):
        AllowList().admit("https://storage.example/images/a")


def test_a_refusal_stays_short_enough_for_a_header() -> None:
    with pytest.raises(SourceNotAllowed) as refused:
        ALLOWLIST.admit("https://evil.example/" + "a" * 4000)
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize("uri", [pytest.param(row.values[0], id=row.id) for row in (*MALFORMED, *OUTSIDE)])
def test_no_trick_makes_a_connection_or_opens_a_file(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something was opened or resolved")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(SourceRefused):
        ALLOWLIST.admit(uri)


# --- Prefixes ---


@pytest.mark.parametrize(
    ("prefix", "admitted", "refused"),
    [
        pytest.param("https://h/images", "https://h/images/x", "https://h/images-evil/x", id="no-slash"),
        pytest.param("https://h/images", "https://h/images", "https://h/image", id="itself"),
        pytest.param("https://h", "https://h/anything", "https://h2/anything", id="host"),
        pytest.param("HTTPS://H:443/%69/", "https://h/i/x", "https://h/%49/x", id="normalised"),
        pytest.param("file:///srv/a%20b/", "file:///srv/a%20b/x", "file:///srv/a/x", id="file"),
        pytest.param("file:///srv/images", "file:///srv/images/x", "file:///srv/images2", id="file-no-slash"),
    ],
)
def test_a_prefix_covers_whole_segments(prefix: str, admitted: str, refused: str) -> None:
    allowlist = AllowList.parse([prefix])
    allowlist.admit(admitted)
    with pytest.raises(SourceNotAllowed):
        allowlist.admit(refused)


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        pytest.param("", "absolute", id="empty"),
        pytest.param("*", "absolute", id="star"),
        pytest.param("/srv/images/", "absolute", id="path"),
        pytest.param("ftp://h/images/", "only http", id="scheme"),
        pytest.param("https://", "no host", id="no-host"),
        pytest.param("https://*.h/", "host name", id="wildcard"),
        pytest.param("https://h/a/../b/", ". or ..", id="dotdot"),
        pytest.param("https://h/a/?token=secret", "no query", id="query"),
        pytest.param("https://u:secret@h/a/", "user name", id="userinfo"),
        pytest.param("file:///", "every file", id="root"),
        pytest.param("file://host/a/", "names a host", id="file-host"),
    ],
)
def test_a_bad_prefix_stops_the_start(prefix: str, reason: str) -> None:
    with pytest.raises(ConfigInvalid) as invalid:
        AllowList.parse(["https://good.example/", prefix])
    assert reason in str(invalid.value)
    assert "--allow-source" in str(invalid.value)
    assert "secret" not in str(invalid.value)


# --- Fuzz ---

SCHEMES = ["http://", "HTTPS://", "https://", "file://"]
HOSTS = ["storage.example", "Storage.Example:443", "127.0.0.1:8080", "[2001:DB8::1]", "localhost", "evil"]
PATHS = ["/images/", "/srv/images/", "images", "/", "a", "%41", "%c3%a9", ";", ":", "?", "~"]
TRICKS = [
    "..",
    ".",
    "//",
    "%2e",
    "%2F",
    "%5c",
    "%25",
    "%",
    "@",
    "#",
    "\\",
    "\r\n",
    " ",
    "é",
    "[",
    "]",
    "0x7f",
]
URIS = st.one_of(
    st.text(max_size=80),
    st.lists(st.sampled_from([*SCHEMES, *HOSTS, *PATHS, *TRICKS]), max_size=12).map("".join),
    st.tuples(
        st.sampled_from(SCHEMES),
        st.sampled_from(["", *HOSTS]),
        st.sampled_from(PATHS),
        st.lists(st.sampled_from([*PATHS, *TRICKS]), max_size=6).map("".join),
    ).map("".join),
)


@given(URIS)
@example("https://storage.example/images/a?/../../b")
@example("https://storage.example/images/%2541")
@example("file://localhost/srv/images/%41")
def test_whatever_is_admitted_lies_below_a_prefix_for_another_parser_too(uri: str) -> None:
    try:
        location = ALLOWLIST.admit(uri)
    except (UriMalformed, SourceNotAllowed):
        return
    assert ALLOWLIST.admit(location.shown()) == Location(
        location.scheme, location.host, location.port, location.path, ""
    )
    again = urlsplit(location.shown() + ("?" + location.query if location.query else ""))
    assert (again.username, again.password, again.fragment) == (None, None, "")
    for prefix in map(urlsplit, ALLOWED):
        if (again.scheme, again.netloc) == (prefix.scheme, prefix.netloc):
            assert os.path.normpath(again.path) == again.path.rstrip("/")
            if again.path == prefix.path or again.path.startswith(prefix.path):
                return
    raise AssertionError(f"{location.shown()} lies below no prefix")


@given(URIS)
def test_any_text_is_a_prefix_or_a_config_error(text: str) -> None:
    try:
        allowlist = AllowList.parse([text])
    except ConfigInvalid:
        return
    assert allowlist.admit(allowlist.prefixes[0].shown()) == allowlist.prefixes[0]


# --- Files ---


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of images, beside a file that must not be read."""
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "a b.raw").write_bytes(b"image")
    (folder / "sub" / "b.raw").write_bytes(b"deeper")
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


@pytest.fixture
def descriptors() -> Iterator[None]:
    """Fails if a descriptor is left open."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def read(path: Path, allowlist: AllowList) -> bytes:
    with open_file(allowlist.admit(path.as_uri()), allowlist) as file:
        return file.read()


@pytest.mark.usefixtures("descriptors")
def test_a_regular_file_is_opened(images: Path) -> None:
    assert read(images / "a b.raw", below(images)) == b"image"
    assert read(images / "sub" / "b.raw", below(images)) == b"deeper"


def test_a_prefix_may_be_a_single_file(images: Path) -> None:
    allowlist = AllowList.parse([(images / "a b.raw").as_uri()])
    assert read(images / "a b.raw", allowlist) == b"image"
    with pytest.raises(SourceNotAllowed):
        read(images / "sub" / "b.raw", allowlist)


def test_a_name_that_is_not_utf8_is_opened(images: Path) -> None:
    (images / os.fsdecode(b"\xff.raw")).write_bytes(b"odd")
    allowlist = below(images)
    with open_file(allowlist.admit(f"{images.as_uri()}/%FF.raw"), allowlist) as file:
        assert file.read() == b"odd"


def test_the_prefix_itself_may_lead_through_a_link(images: Path) -> None:
    link = images.parent / "link"
    link.symlink_to(images)
    assert read(link / "a b.raw", below(link)) == b"image"


@pytest.mark.usefixtures("descriptors")
@pytest.mark.parametrize(
    ("target", "uri"),
    [
        pytest.param("../secret", "link", id="out"),
        pytest.param("a b.raw", "link", id="inside"),
        pytest.param("..", "link/secret", id="folder-out"),
        pytest.param("sub", "link/b.raw", id="folder-inside"),
        pytest.param("nowhere", "link", id="dangling"),
        pytest.param("/proc/self/fd/0", "link", id="proc"),
    ],
)
def test_no_link_below_a_prefix_is_followed(images: Path, target: str, uri: str) -> None:
    (images / "link").symlink_to(target)
    with pytest.raises(SourceNotAllowed, match="symbolic link"):
        read(images / uri, below(images))


@pytest.mark.usefixtures("descriptors")
def test_a_link_that_appears_after_the_look_is_not_followed(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = os.stat

    def swapping(name: str, **options: object) -> os.stat_result:
        found = look(name, **options)  # type: ignore[arg-type]
        if name == "a b.raw":
            (images / name).unlink()
            (images / name).symlink_to("../secret")
        return found

    monkeypatch.setattr(os, "stat", swapping)
    with pytest.raises(SourceUnreadable, match="symbolic link"):
        read(images / "a b.raw", below(images))


@pytest.mark.usefixtures("descriptors")
def test_only_regular_files_are_opened(images: Path) -> None:
    os.mkfifo(images / "fifo")
    with pytest.raises(SourceUnreadable, match="device, pipe or socket"):
        read(images / "fifo", below(images))
    with pytest.raises(SourceUnreadable, match="it is a folder"):
        read(images / "sub", below(images))
    allowlist = below(images)
    for uri in (f"{images.as_uri()}/", f"{images.as_uri()}/sub/", f"{images.as_uri()}/a%20b.raw/"):
        with pytest.raises(SourceUnreadable, match="names a folder"):
            open_file(allowlist.admit(uri), allowlist)
    with pytest.raises(SourceUnreadable, match="device"):
        read(Path("/dev/zero"), AllowList.parse(["file:///dev/"]))


@pytest.mark.usefixtures("descriptors")
def test_what_cannot_be_opened_says_why(images: Path) -> None:
    with pytest.raises(SourceUnreadable, match="no such file"):
        read(images / "missing", below(images))
    with pytest.raises(SourceUnreadable, match="no such file"):
        read(images / "missing" / "x", below(images / "missing"))
    with pytest.raises(SourceUnreadable, match="is no folder"):
        read(images / "a b.raw" / "x", below(images))
    with pytest.raises(SourceUnreadable, match="too long"):
        read(images / ("x" * 300), below(images))


@pytest.mark.usefixtures("descriptors")
def test_the_servers_own_files_are_no_source(images: Path) -> None:
    data = images / "sub"
    for prefix in (images, data, images.parent):
        allowlist = AllowList.parse([prefix.as_uri() + "/"], private=data)
        with pytest.raises(SourceNotAllowed, match="own data"):
            read(data / "b.raw", allowlist)
    assert read(images / "a b.raw", AllowList.parse([images.as_uri()], private=data)) == b"image"


def test_an_open_needs_a_prefix_of_its_own_list(images: Path) -> None:
    location = below(images).admit((images / "a b.raw").as_uri())
    with pytest.raises(SourceNotAllowed):
        open_file(location, AllowList())
