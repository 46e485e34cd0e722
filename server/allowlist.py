"""Which URIs an image may come from: only what lies below a prefix that the operator named.

A URI is parsed by the rules here and nowhere else: what is compared with the prefixes is what is connected
to, asked for and shown. Whatever two parsers could read in two ways (`..`, `%2f`, `0x7f.1`, `host.`) is
refused, not repaired. Nothing here touches the network; only `open_file` touches the disk.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from server.config import ConfigInvalid

URI_LENGTH_MAX = 4096

_DEFAULT_PORTS = {"http": 80, "https": 443}
SHOWN_LENGTH_MAX = 300
_HOST_LENGTH_MAX = 253

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,30})://")
_FORBIDDEN = re.compile(r"[^!$&'()*+,;=:@/?%\[\]A-Za-z0-9._~-]")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPED_TWICE = re.compile(rb"%(?:2[eEfF5]|5[cC]|00)")
_SECRETS = re.compile(r"(?<=//)[^/@]*@|\?.*", re.DOTALL)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_PORT = re.compile(r"[0-9]{1,5}")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class SourceRefused(Exception):
    """A URI that no image is read from."""

    reason: str


class UriMalformed(SourceRefused):
    """The text is no clean absolute URI. The message quotes none of it: it may hold a password."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the URI {reason}")
        self.reason = reason


class SourceNotAllowed(SourceRefused):
    """A URI that is well formed, and outside of what the operator allows."""

    def __init__(self, shown: str, reason: str) -> None:
        super().__init__(f"{brief(shown)}: {reason}")
        self.shown = shown
        self.reason = reason


class SourceUnreadable(SourceRefused):
    """An allowed file that cannot be read as an image."""

    def __init__(self, shown: str, reason: str) -> None:
        super().__init__(f"{brief(shown)}: {reason}")
        self.shown = shown
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed, normalised URI; made by `AllowList.admit`.

    `host` is a lower-case name, an IPv4 address or a compressed IPv6 one without brackets; empty for `file`,
    whose `port` is 0. `path` is percent-encoded, `query` verbatim: it may hold a signature.
    """

    scheme: str
    host: str
    port: int
    path: str
    query: str

    def __repr__(self) -> str:
        return f"Location({self.shown()!r})"

    def shown(self) -> str:
        """The URI without its query: what may be logged and stored, and is admitted as the same location."""
        return f"{self.scheme}://{self.authority()}{self.path}"

    def authority(self) -> str:
        """Host and port as the Host header has them: no default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS.get(self.scheme, 0) else f"{host}:{self.port}"

    def target(self) -> str:
        """What an HTTP request line asks for."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def file_path(self) -> str:
        """The path on disk of a `file` location."""
        return os.fsdecode(unquote_to_bytes(self.path))

    def is_below(self, prefix: Location) -> bool:
        """Whether this is `prefix` or lies below it, by whole segments."""
        if (self.scheme, self.host, self.port) != (prefix.scheme, prefix.host, prefix.port):
            return False
        return self.path == prefix.path or self.path.startswith(prefix.path.rstrip("/") + "/")


@dataclass(frozen=True, slots=True)
class AllowList:
    """The prefixes, longest path first, and a folder whose files are never a source: the server's own.

    SQLite's locks end when any descriptor of a database is closed in the process, so an image import must
    not open one, not even by an operator's mistake.
    """

    prefixes: tuple[Location, ...] = ()
    private: Path | None = None

    @classmethod
    def parse(cls, prefixes: Sequence[str], *, private: Path | None = None) -> AllowList:
        """Raises ConfigInvalid, naming the prefix and what is wrong with it."""
        parsed = [_parse_prefix(prefix) for prefix in prefixes]
        return cls(tuple(sorted(parsed, key=lambda prefix: -len(prefix.path))), private)

    def admit(self, uri: str) -> Location:
        """The location that `uri` names. Raises UriMalformed, SourceNotAllowed."""
        location = _parse(uri)
        self.prefix_of(location)
        return location

    def prefix_of(self, location: Location) -> Location:
        """The longest prefix that covers `location`. Raises SourceNotAllowed."""
        for prefix in self.prefixes:
            if location.is_below(prefix):
                return prefix
        if not self.prefixes:
            reason = "No source prefix is allowed on this server; its operator can name one (--allow-source)"
        else:
            reason = "no allowed prefix covers it; ask the operator of this server which sources are allowed"
        raise SourceNotAllowed(location.shown(), reason)


def brief(shown: str) -> str:
    """At most 300 characters: an error travels in headers, which clients limit."""
    return shown if len(shown) <= SHOWN_LENGTH_MAX else f"{shown[:SHOWN_LENGTH_MAX]}..."


# --- Parsing ---


def _parse_prefix(text: str) -> Location:
    try:
        prefix = _parse(text)
    except SourceRefused as error:
        raise ConfigInvalid(
            f"--allow-source {brief(_SECRETS.sub('', text))!r}: {error};"
            " give http://HOST[:PORT]/PATH/, https://HOST[:PORT]/PATH/ or file:///FOLDER/"
        ) from None
    if "?" in text:
        raise ConfigInvalid(f"--allow-source {brief(prefix.shown())!r}: a prefix has no query; leave it out")
    if prefix.scheme == "file" and prefix.path == "/":
        raise ConfigInvalid("--allow-source 'file:///' is every file of this machine; name a folder")
    return prefix


def _parse(uri: str) -> Location:
    """Raises UriMalformed, and SourceNotAllowed for a scheme that is no source."""
    if len(uri) > URI_LENGTH_MAX:
        raise UriMalformed(f"has {len(uri)} characters; at most {URI_LENGTH_MAX} are taken")
    _check_characters(uri)
    scheme, authority, path, query = _split(uri)
    if scheme == "file":
        return _file(authority, _normalise_path(path), has_query="?" in uri)
    host, port = _split_authority(authority, scheme)
    return Location(scheme, _normalise_host(host), port, _normalise_path(path), query)


def _check_characters(uri: str) -> None:
    if "#" in uri:
        raise UriMalformed("has a fragment (#), which names no part of an image; leave it out")
    found = _FORBIDDEN.search(uri)
    if found is None:
        return
    character = found.group()
    at = f"at character {found.start() + 1}"
    if not character.isascii():
        raise UriMalformed(f"is not ASCII {at}; percent-encode a path, write a host name as xn--")
    if not character.isprintable() or character == " ":
        raise UriMalformed(f"has a space or a control character {at}; percent-encode it")
    raise UriMalformed(f"has {character!r} {at}, which a URI cannot hold; percent-encode it")


def _split(uri: str) -> tuple[str, str, str, str]:
    """Scheme, authority, path and query."""
    found = _SCHEME.match(uri)
    if found is None:
        raise UriMalformed("must be absolute and begin with http://, https:// or file:///")
    scheme = found.group(1).lower()
    if scheme not in ("http", "https", "file"):
        raise SourceNotAllowed(f"{scheme}://", "only http, https and file URIs can be a source of images")
    before, _, query = uri[found.end() :].partition("?")
    if _BAD_ESCAPE.search(uri):
        raise UriMalformed("has a % without two hex digits; write it as %25")
    authority, slash, path = before.partition("/")
    return scheme, authority, slash + path or "/", query


def _file(authority: str, path: str, *, has_query: bool) -> Location:
    if authority.lower() not in ("", "localhost"):
        raise UriMalformed("names a host for a file; write file:/// and an absolute path")
    if has_query:
        raise UriMalformed("has a query, which a file does not take; percent-encode a ? of its name")
    return Location("file", "", 0, path, "")


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    if "@" in authority:
        raise UriMalformed("has a user name before its host (@); no credentials are taken in a URI")
    host, colon, port = authority, "", ""
    if not authority.endswith("]"):
        host, colon, port = authority.rpartition(":") if ":" in authority else (authority, "", "")
    if not host:
        raise UriMalformed("has no host")
    if not colon:
        return host, _DEFAULT_PORTS[scheme]
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise UriMalformed("has a bad port; a port is a number from 1 to 65535")
    return host, int(port)


def _normalise_host(host: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        return _normalise_ipv6(host[1:-1])
    name = host.lower()
    labels = name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return str(IPv4Address(name))
        except AddressValueError:
            raise UriMalformed("has a host that is a number; write an IPv4 address as 192.0.2.1") from None
    if name.endswith("."):
        raise UriMalformed("has a host that ends in a dot; leave the dot out")
    if len(name) > _HOST_LENGTH_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise UriMalformed("has a bad host name; it is made of letters, digits, hyphens and dots")
    return name


def _normalise_ipv6(text: str) -> str:
    try:
        address = IPv6Address(text)
    except AddressValueError:
        raise UriMalformed("has a bad IPv6 address") from None
    if address.scope_id is not None:
        raise UriMalformed("has an IPv6 address with a zone, which means nothing here")
    if address.ipv4_mapped is not None:
        raise UriMalformed("has an IPv4 address written as IPv6; write it as 192.0.2.1")
    return address.compressed


def _normalise_path(path: str) -> str:
    """`path` with unreserved characters decoded and upper-case escapes. Raises UriMalformed."""
    if "[" in path or "]" in path:
        raise UriMalformed("has a bracket in its path; percent-encode it")
    segments = path.split("/")[1:]
    for segment in segments:
        _check_segment(unquote_to_bytes(segment))
    if "" in segments[:-1]:
        raise UriMalformed("has an empty segment (//) in its path; write a single slash")
    return _ESCAPE.sub(_normalise_escape, path)


def _check_segment(decoded: bytes) -> None:
    # Some servers cut ";…" off a segment before they look at it.
    if decoded.partition(b";")[0] in (b".", b".."):
        raise UriMalformed("has a . or .. segment in its path; write the path that is meant")
    if b"/" in decoded or b"\\" in decoded:
        raise UriMalformed("has an escaped slash or backslash in its path, which could end a segment")
    if any(byte < 0x20 or byte == 0x7F for byte in decoded):
        raise UriMalformed("has an escaped control character in its path")
    if _ESCAPED_TWICE.search(decoded):
        raise UriMalformed("has an escape of an escape (%25) in its path, which could mean .. or a slash")


def _normalise_escape(found: re.Match[str]) -> str:
    byte = int(found.group(1), 16)
    return chr(byte) if byte in _UNRESERVED else found.group().upper()


# --- Files ---


def open_file(location: Location, allowlist: AllowList) -> BinaryIO:
    """The file, open for unbuffered reading; the caller closes it.

    The prefix's own path may hold symbolic links, because the operator wrote it. Below it none is followed,
    wherever it leads, and nothing but a regular file is opened.
    Raises SourceNotAllowed, SourceUnreadable.
    """
    prefix = allowlist.prefix_of(location)
    shown = location.shown()
    top = prefix.file_path()
    if location.path.endswith("/"):
        raise SourceUnreadable(shown, "it ends in a slash, which names a folder; an image is a regular file")
    names = location.file_path()[len(top) :].lstrip("/").split("/")
    if names == [""]:
        # The prefix is the file itself.
        top, _, name = top.rpartition("/")
        names = [name]
    try:
        return _open_below(Path(top or "/"), names, shown, allowlist.private)
    except OSError as error:
        raise SourceUnreadable(shown, _explain(error)) from error


def _open_below(top: Path, names: list[str], shown: str, private: Path | None) -> BinaryIO:
    with ExitStack() as folders:
        folder = os.open(top, _FOLDER_FLAGS)
        folders.callback(os.close, folder)
        if private is not None and Path(os.path.realpath(top)).is_relative_to(os.path.realpath(private)):
            raise _private(shown)
        for name in names[:-1]:
            _check_not_link(name, folder, shown)
            folder = os.open(name, _FOLDER_FLAGS | os.O_NOFOLLOW, dir_fd=folder)
            folders.callback(os.close, folder)
            if private is not None and os.path.samestat(os.fstat(folder), private.stat()):
                raise _private(shown)
        # Looked at before it is opened, because opening a device can already do something.
        _check_regular(_check_not_link(names[-1], folder, shown), shown)
        descriptor = os.open(names[-1], _FILE_FLAGS, dir_fd=folder)
    try:
        _check_regular(os.fstat(descriptor), shown)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=0)


def _check_not_link(name: str, folder: int, shown: str) -> os.stat_result:
    found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        raise SourceNotAllowed(
            shown, "there is a symbolic link below the allowed prefix, and none is followed; name the file"
        )
    return found


def _check_regular(found: os.stat_result, shown: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, pipe or socket"
        raise SourceUnreadable(shown, f"it is {what}; an image is a regular file")


def _private(shown: str) -> SourceNotAllowed:
    return SourceNotAllowed(shown, "it lies in this server's own data, which is no source of images")


def _explain(error: OSError) -> str:
    match error.errno:
        case errno.ENOENT:
            return "there is no such file on this server's machine"
        case errno.EACCES | errno.EPERM:
            return "the server may not read it; its user needs read permission"
        case errno.ENOTDIR:
            return "a part of its path is no folder"
        case errno.ELOOP:
            return "a symbolic link appeared in its path while it was opened"
        case _:
            return f"it cannot be opened: {error.strerror}"
