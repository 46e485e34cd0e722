"""What a stream of bytes is: qcow2, VMDK or raw, its virtual size, or why it is refused.

The bytes come once, in order, in pieces of any size. The first 64 KiB decide; after them only what the header
points to (a qcow2's L1 table, a VMDK's footer) is looked at, and memory stays below 200 KiB beside the piece.
oslo.utils' `format_inspector` recognises the formats and judges backing files and descriptors; the checks
here add what it lets through, and say so. Data clusters are not followed: a cut between the last table of a
qcow2 and the end of its data is for the transport to notice.
"""

import logging
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from oslo_utils.imageutils import format_inspector

SIZE_MAX = 4_398_046_511_104
"""The largest virtual size the API can say, in bytes (4 TiB)."""

SUPPORTED = "qcow2, VMDK (stream-optimised or monolithic sparse) and raw"

_HEAD_BYTES = 65_536
_TAIL_BYTES = 1536
_SECTOR_BYTES = 512

# Its warnings quote the inspected bytes, which do not belong in a log; the refusal says the same.
logging.getLogger(format_inspector.__name__).setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Inspected:
    """A format the service accepts; `size` is virtual, `storage_size` what was fed, both in bytes."""

    format: str
    size: int
    storage_size: int


class FormatRefused(Exception):
    """The bytes are no image that this service takes."""

    def __init__(self, found: str, reason: str) -> None:
        super().__init__(f"found {found}: {reason}; supported are {SUPPORTED}")
        self.found = found
        self.reason = reason


class _Disk(Protocol):
    """A recognised format, from its head to the end of the stream."""

    @property
    def format(self) -> str: ...

    def see(self, piece: bytes, offset: int) -> None:
        """Look at the bytes from `offset` on; called for the whole stream, in order."""

    def finish(self, storage_size: int, tail: bytes) -> int:
        """Virtual size in bytes; `tail` is the stream's last 1536 bytes or fewer."""


class Inspector:
    """Inspects one stream. Memory is bounded, whatever a header claims."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = b""
        self._seen_bytes = 0
        self._disk: _Disk | None = None
        self._finished = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises FormatRefused as soon as it is certain, which ends the inspection."""
        if self._finished:
            raise AssertionError("feed() after the inspection ended")
        offset = self._seen_bytes
        self._seen_bytes += len(chunk)
        self._tail = (self._tail + chunk[-_TAIL_BYTES:])[-_TAIL_BYTES:]
        try:
            self._look(chunk, offset)
        except FormatRefused:
            self._finished = True
            raise

    def finish(self) -> Inspected:
        """What the whole stream was. Raises FormatRefused."""
        if self._finished:
            raise AssertionError("finish() after the inspection ended")
        self._finished = True
        disk = self._disk or self._decide()
        size = disk.finish(self._seen_bytes, self._tail)
        return Inspected(format=disk.format, size=size, storage_size=self._seen_bytes)

    def _look(self, chunk: bytes, offset: int) -> None:
        if self._disk is not None:
            self._disk.see(chunk, offset)
            return
        wanted = _HEAD_BYTES - len(self._head)
        self._head += chunk[:wanted]
        if len(self._head) == _HEAD_BYTES:
            self._decide().see(chunk[wanted:], _HEAD_BYTES)

    def _decide(self) -> _Disk:
        head = bytes(self._head)
        disk = _recognise(head)
        disk.see(head, 0)
        self._disk = disk
        self._head.clear()
        return disk


def _recognise(head: bytes) -> _Disk:
    """The format whose signature `head` bears; raw if it bears none. Raises FormatRefused."""
    if not head:
        raise FormatRefused("an empty file", "an image has at least 512 bytes")
    if head.startswith(b"QFI\xfb"):
        _check_only("qcow2", head)
        return _Qcow2(head)
    if head.startswith(b"KDMV"):
        _check_only("vmdk", head)
        return _Vmdk(head)
    for found in _foreign(head):
        raise FormatRefused(found, _foreign_remedy(found))
    return _Raw(head)


# --- What is recognised in order to be refused ---

_CONVERT = "convert it with `qemu-img convert -O qcow2`"
_UNPACK = "unpack it and send the disk image inside"

_SIGNATURES: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\x1f\x8b\x08", "a gzip archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "a zip archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a rar archive"),
    (0, b"\x04\x22\x4d\x18", "an lz4 archive"),
    (257, b"ustar", "a tar archive (OVA files are one, too)"),
    (0, b"LUKS\xba\xbe", "a LUKS encrypted disk"),
    (0, b"vhdxfile", "a VHDX disk"),
    (0, b"conectix", "a VHD disk"),
    (64, b"\x7f\x10\xda\xbe", "a VDI disk"),
    (0, b"QED\x00", "a QED disk"),
    (0, b"COWD", "a VMDK disk of the COWD kind"),
    (0, b"\xbe\xba\xfe\xca\x00\x00\x00\x00", "a VMDK disk of the SE sparse kind"),
    (0, b"WithoutFreeSpace", "a Parallels disk"),
    (0, b"WithouFreSpacExt", "a Parallels disk"),
    (0, b"Bochs Virtual HD Image", "a Bochs disk"),
    (0, b"\x3a\xff\x26\xed", "an Android sparse image"),
    (0, b"MSWIM\x00\x00\x00", "a Windows WIM archive"),
)
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_MARKUP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(?:\?xml|!doctype|html|head|body|error)\b", re.IGNORECASE)
_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"[ -~]*"\s*:')
# How qemu recognises a descriptor without a sparse header: comments and blank lines, then the version.
_DESCRIPTOR = re.compile(rb"#\s*Disk DescriptorFile|(?:#[^\n]*\n| *\r?\n)*version=[1-3]\s", re.IGNORECASE)
_CREATE_TYPE = re.compile(rb'createType\s*=\s*"([A-Za-z0-9]{1,40})"', re.IGNORECASE)


def _foreign(head: bytes) -> Iterator[str]:
    """Names of the unsupported things that `head` begins like, the surest first."""
    for offset, magic, found in _SIGNATURES:
        if head.startswith(magic, offset):
            yield found
    if _BZIP2.match(head):
        yield "a bzip2 archive"
    # oslo looks at sector 16 only; a plain UDF disc says NSR in a later volume descriptor.
    if any(head[at + 1 : at + 6] in (b"CD001", b"NSR02", b"NSR03") for at in range(32_768, 65_536, 2048)):
        yield "an ISO 9660 or UDF disc"
    if _DESCRIPTOR.match(head):
        kind = _CREATE_TYPE.search(head)
        yield f"a VMDK descriptor ({kind[1].decode() if kind else 'unknown kind'}) without its extents"
    if _MARKUP.match(head):
        yield "an XML or HTML document"
    if _JSON.match(head):
        yield "a JSON document"
    for name in sorted(_oslo_matches(head)):
        yield f"a disk of format {name}"


def _foreign_remedy(found: str) -> str:
    if "archive" in found:
        return f"archives and compressed files are not opened, {_UNPACK}"
    if "document" in found:
        return "it is not a disk image but perhaps an error page, see what its source answers"
    if "LUKS" in found:
        return "encrypted disks are not taken"
    if "disc" in found:
        return "installation media are not disk images, install from it and send the disk"
    if "without its extents" in found:
        return "the disk consists of several files, make one with `qemu-img convert -O qcow2`"
    return f"the format is not taken, {_CONVERT}"


def _oslo_matches(head: bytes) -> dict[str, format_inspector.FileInspector]:
    """oslo's inspectors that recognise `head`, by name; a partition table is no format of its own."""
    matches = {}
    for name, kind in format_inspector.ALL_FORMATS.items():
        if name in ("raw", "gpt"):
            continue
        inspector = kind()
        # Hostile bytes make these parsers fail in any way; one that fails does not recognise them.
        try:
            inspector.eat_chunk(head)
            if inspector.format_match:
                matches[name] = inspector
        except Exception:
            continue
    return matches


def _check_only(name: str, head: bytes) -> None:
    """Refuse a file that two formats claim: readers would disagree about what is in it."""
    others = sorted(set(_oslo_matches(head)) - {name})
    if others:
        raise FormatRefused(f"{name} and {' and '.join(others)} in one file", "what it holds is ambiguous")


def _oslo_safety(name: str, *pieces: bytes, ours: frozenset[str] = frozenset()) -> None:
    """Run oslo's safety checks over `pieces`, except those named in `ours`. Raises FormatRefused."""
    inspector = format_inspector.ALL_FORMATS[name]()
    try:
        for piece in pieces:
            inspector.eat_chunk(piece)
        inspector.finish()
        inspector.safety_check()
    except format_inspector.SafetyCheckFailed as failed:
        for check, why in failed.failures.items():
            if check not in ours:
                raise FormatRefused(name, f"it is unsafe or damaged, {why} ({check})") from failed
    # Hostile bytes reach struct and text parsers in there; none of their errors may pass for ours.
    except Exception as error:
        raise FormatRefused(name, "its header is damaged") from error


def _check_size(name: str, size: int) -> int:
    if not 0 < size <= SIZE_MAX:
        raise FormatRefused(name, f"its virtual size is {size} bytes, and must be from 1 to {SIZE_MAX}")
    return size


def _truncated(name: str, *, needs: int, has: int) -> FormatRefused:
    return FormatRefused(name, f"it is truncated, its header needs {needs} bytes and {has} came")


# --- raw ---


class _Raw:
    format = "raw"

    def __init__(self, head: bytes) -> None:
        sample = head[:4096]
        self._text = all(byte in b"\t\n\r\f" or 32 <= byte < 127 for byte in sample)

    def see(self, piece: bytes, offset: int) -> None:
        if offset + len(piece) > SIZE_MAX:
            raise FormatRefused("raw bytes", f"there are more than {SIZE_MAX}, the largest size of a disk")

    def finish(self, storage_size: int, tail: bytes) -> int:
        # A fixed VHD is a raw disk with a footer, which oslo does not look for; an Apple disk image likewise.
        for magic, found in ((b"conectix", "a VHD disk (fixed size)"), (b"koly", "an Apple disk image")):
            if tail[-_SECTOR_BYTES:].startswith(magic):
                raise FormatRefused(found, f"the format is not taken, {_CONVERT}")
        rest = storage_size % _SECTOR_BYTES
        if rest:
            found = "a text document" if self._text else "no known signature"
            reason = f"{storage_size} bytes are not a whole number of 512-byte sectors ({rest} over)"
            raise FormatRefused(found, reason)
        return _check_size("raw bytes", storage_size)


# --- qcow2, docs/interop/qcow2.txt of QEMU: big-endian ---

_QCOW2_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_MORE = struct.Struct(">QQQII")
_DIRTY, _CORRUPT, _DATA_FILE, _COMPRESSION, _EXTENDED_L2 = (1 << bit for bit in range(5))
# The most that QEMU opens.
_L1_ENTRIES_MAX = (32 << 20) // 8
_REFCOUNTS_BYTES_MAX = 8 << 20
_SNAPSHOTS_MAX = 65_536
_L1_OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00


class _Qcow2:
    format = "qcow2"

    def __init__(self, head: bytes) -> None:
        header = _qcow2_header(head)
        # oslo reads feature bits in version 2, which has none, and takes extended L2 entries for unknown.
        _oslo_safety("qcow2", head, ours=frozenset({"data_file", "unknown_features"}))
        self._size: int = header.size
        self._cluster_bytes = header.cluster_bytes
        self._l1 = range(header.l1_offset, header.l1_offset + 8 * header.l1_entries)
        self._l1_rest = b""
        self._needs_bytes = max(self._l1.stop, header.last_table_offset + 1)

    def see(self, piece: bytes, offset: int) -> None:
        """Note how far into the file the L1 table's entries point."""
        if offset >= self._l1.stop or offset + len(piece) <= self._l1.start:
            return
        entries = self._l1_rest + piece[max(0, self._l1.start - offset) : self._l1.stop - offset]
        whole = len(entries) // 8 * 8
        self._l1_rest = entries[whole:]
        for (entry,) in struct.iter_unpack(">Q", entries[:whole]):
            table = entry & _L1_OFFSET_MASK
            if table == 0:
                continue
            if table % self._cluster_bytes:
                raise _damaged_qcow2("its L1 table points between clusters")
            self._needs_bytes = max(self._needs_bytes, table + self._cluster_bytes)

    def finish(self, storage_size: int, tail: bytes) -> int:
        if storage_size < self._needs_bytes:
            raise _truncated("qcow2", needs=self._needs_bytes, has=storage_size)
        return self._size


@dataclass(frozen=True, slots=True)
class _Qcow2Header:
    size: int
    cluster_bytes: int
    l1_entries: int
    l1_offset: int
    last_table_offset: int


def _qcow2_header(head: bytes) -> _Qcow2Header:
    version = int.from_bytes(head[4:8], "big")
    if len(head) >= 8 and version not in (2, 3):
        raise FormatRefused(f"qcow version {version}", f"only versions 2 and 3 are taken, {_CONVERT}")
    if len(head) < _SECTOR_BYTES:
        raise _truncated("qcow2", needs=_SECTOR_BYTES, has=len(head))
    fields = _QCOW2_HEADER.unpack_from(head)
    _, _, backing, _, cluster_bits, size, encryption, l1_entries, l1_offset, *more = fields
    refcounts, ref_clusters, snapshots, snapshots_offset = more
    if not 9 <= cluster_bits <= 21:
        raise _damaged_qcow2(f"clusters of 2^{cluster_bits} bytes, must be 2^9 to 2^21")
    cluster_bytes = 1 << cluster_bits
    # oslo does not look at the encryption method at all.
    if encryption:
        raise FormatRefused("an encrypted qcow2", f"encrypted disks are not taken, {_CONVERT}")
    if backing:
        raise FormatRefused("qcow2 with a backing file", f"an image must be whole in itself, {_CONVERT}")
    extended_l2 = version == 3 and _has_extended_l2(head, cluster_bytes)
    covers = cluster_bytes * (cluster_bytes // (16 if extended_l2 else 8))
    needed = -(-_check_size("qcow2", size) // covers)
    if not needed <= l1_entries <= _L1_ENTRIES_MAX:
        limits = f"{needed} to {_L1_ENTRIES_MAX}"
        raise _damaged_qcow2(f"its L1 table has {l1_entries} entries, its size needs {limits}")
    if not l1_offset or not refcounts or l1_offset % cluster_bytes or refcounts % cluster_bytes:
        raise _damaged_qcow2("its L1 or refcount table is missing or not aligned to a cluster")
    if not 0 < ref_clusters * cluster_bytes <= _REFCOUNTS_BYTES_MAX:
        raise _damaged_qcow2(f"its refcount table has {ref_clusters} clusters")
    if snapshots and (snapshots > _SNAPSHOTS_MAX or not snapshots_offset or snapshots_offset % cluster_bytes):
        raise _damaged_qcow2(f"it says that its {snapshots} snapshots are listed at byte {snapshots_offset}")
    listed_at = snapshots_offset if snapshots else 0
    return _Qcow2Header(size, cluster_bytes, l1_entries, l1_offset, max(refcounts, listed_at))


def _damaged_qcow2(what: str) -> FormatRefused:
    return FormatRefused("qcow2", f"its header is damaged, {what}")


def _has_extended_l2(head: bytes, cluster_bytes: int) -> bool:
    """Whether a version 3 header has extended L2 entries. Raises FormatRefused for features not taken."""
    incompatible, _, _, refcount_order, header_bytes = _QCOW2_MORE.unpack_from(head, 72)
    if not 104 <= header_bytes <= cluster_bytes or header_bytes % 8 or refcount_order > 6:
        raise _damaged_qcow2(
            f"it says {header_bytes} bytes of header and refcounts of 2^{refcount_order} bits"
        )
    if incompatible & _DATA_FILE:
        raise FormatRefused(
            "qcow2 with an external data file", f"an image must be whole in itself, {_CONVERT}"
        )
    if incompatible & _CORRUPT:
        raise FormatRefused("qcow2 marked corrupt", "repair it with `qemu-img check -r all`, then convert it")
    # Its writer has not closed it: it may be a copy of a disk in use, and an image is for ever.
    if incompatible & _DIRTY:
        raise FormatRefused("qcow2 marked dirty", "close the disk, then `qemu-img check -r all` it")
    unknown = incompatible & ~(_COMPRESSION | _EXTENDED_L2)
    if unknown:
        raise FormatRefused("qcow2", f"it uses unknown incompatible features {unknown:#x}, {_CONVERT}")
    compression = head[104] if header_bytes > 104 else 0
    if compression > 1 or bool(compression) != bool(incompatible & _COMPRESSION):
        raise _damaged_qcow2(f"compression type {compression} does not fit its feature bits")
    return bool(incompatible & _EXTENDED_L2)


# --- VMDK, "Virtual Disk Format 5.0" of VMware: sectors of 512 bytes, little-endian ---

_VMDK_HEADER = struct.Struct("<4sIIQQQQIQQQBBBBBH")
_GD_AT_END = 0xFFFF_FFFF_FFFF_FFFF
_KINDS = {"streamoptimized", "monolithicsparse"}
_EXTENT_LINE = re.compile(r"^[^\S\n]*((?:rw|rdonly|noaccess)\b.*)$", re.MULTILINE)
_EXTENT = re.compile(r'(?:rw|rdonly)\s+\d{1,20}\s+sparse\s+"(?!\.{1,2}")[^"/\\:]{1,255}"\s*')


@dataclass(frozen=True, slots=True)
class _Sparse:
    """A sparse extent's header, which a footer repeats; offsets and sizes in sectors."""

    version: int
    capacity: int
    grain: int
    descriptor_offset: int
    descriptor_size: int
    entries_per_table: int
    directory_offset: int
    overhead: int
    compression: int

    @property
    def directory_end_bytes(self) -> int:
        tables = -(-self.capacity // (self.grain * self.entries_per_table))
        return self.directory_offset * _SECTOR_BYTES + 4 * tables


class _Vmdk:
    format = "vmdk"

    def __init__(self, head: bytes) -> None:
        self._head = head
        self._header = header = _sparse_header(head)
        self._size = header.capacity * _SECTOR_BYTES
        end = (header.descriptor_offset + header.descriptor_size) * _SECTOR_BYTES
        if end > _HEAD_BYTES:
            raise FormatRefused("VMDK", f"its descriptor ends at byte {end}, at most {_HEAD_BYTES} is taken")
        if len(head) < end:
            raise _truncated("VMDK", needs=end, has=len(head))
        _check_descriptor(head[header.descriptor_offset * _SECTOR_BYTES : end])
        # A footer is judged when it has come; oslo's other check, of the descriptor, can be made now.
        if header.directory_offset != _GD_AT_END:
            _oslo_safety("vmdk", head)
            self._head = b""

    def see(self, piece: bytes, offset: int) -> None:
        """Nothing between the descriptor and the footer says more about the disk."""

    def finish(self, storage_size: int, tail: bytes) -> int:
        header = self._header
        if header.directory_offset == _GD_AT_END:
            needs = (header.descriptor_offset + header.descriptor_size) * _SECTOR_BYTES + _TAIL_BYTES
            if storage_size < needs:
                raise _truncated("VMDK", needs=needs, has=storage_size)
            header = self._check_footer(tail)
        needs = max(header.directory_end_bytes, header.overhead * _SECTOR_BYTES)
        if storage_size < needs:
            raise _truncated("VMDK", needs=needs, has=storage_size)
        return self._size

    def _check_footer(self, tail: bytes) -> _Sparse:
        """The footer, which readers follow instead of the header. Raises FormatRefused."""
        _oslo_safety("vmdk", self._head, tail)
        footer = _sparse_header(tail[_SECTOR_BYTES:])
        # oslo compares where the descriptor is, but lets a footer say another virtual size.
        if (footer.capacity, footer.grain) != (self._header.capacity, self._header.grain):
            raise FormatRefused(
                "VMDK", f"its header says {self._size} bytes, its footer another size or grain"
            )
        return footer


def _sparse_header(data: bytes) -> _Sparse:
    if len(data) < _SECTOR_BYTES:
        raise _truncated("VMDK", needs=_SECTOR_BYTES, has=len(data))
    magic, version, _, *fields = _VMDK_HEADER.unpack_from(data)
    capacity, grain, descriptor, sectors, entries, _, directory, overhead, *_, compression = fields
    if magic != b"KDMV" or version not in (1, 2, 3):
        raise FormatRefused("VMDK", f"its header or footer is damaged or of unknown version {version}")
    # With a capacity of 0, QEMU opens the files that the descriptor names.
    _check_size("VMDK", capacity * _SECTOR_BYTES)
    if not 1 <= entries <= 512 or not 1 <= grain <= 1 << 16 or compression > 1:
        raise FormatRefused("VMDK", f"its header is damaged: grains of {grain} sectors, tables of {entries}")
    if descriptor != 1 or not sectors:
        raise FormatRefused("VMDK without a descriptor of its own", f"it is part of another disk, {_CONVERT}")
    if directory == 0:
        raise FormatRefused("VMDK", "its header is damaged: it has no grain directory")
    return _Sparse(version, capacity, grain, descriptor, sectors, entries, directory, overhead, compression)


def _check_descriptor(data: bytes) -> None:
    """Refuse any text from which a reader could open a second file."""
    text = data.split(b"\x00", 1)[0].decode("latin-1").lower()
    if not text.isascii():
        raise FormatRefused("VMDK", "its descriptor is not ASCII text")
    kinds = set(re.findall(r'createtype\s*=\s*"?([^"\s]{0,40})', text))
    if len(kinds) != 1 or not kinds <= _KINDS:
        found = ", ".join(ascii(kind) for kind in sorted(kinds)[:3]) or "no createType"
        raise FormatRefused(f"VMDK of kind {found}", f"this kind is not taken, {_CONVERT}")
    # QEMU searches the whole text for these two words, comments included, and opens the hinted parent even
    # if parentCID says that there is none. oslo looks at neither.
    parents = set(re.findall(r"parentcid\s*=\s*(\w*)", text))
    if "parentfilenamehint" in text or parents != {"ffffffff"}:
        raise FormatRefused("VMDK that needs a parent disk", f"an image must be whole in itself, {_CONVERT}")
    extents = [line.strip() for line in _EXTENT_LINE.findall(text)]
    if len(extents) != 1:
        raise FormatRefused(f"VMDK with {len(extents)} extents", f"one file must hold it all, {_CONVERT}")
    if not _EXTENT.fullmatch(extents[0]):
        raise FormatRefused("VMDK", "its extent is not sparse, or is named by a path")
