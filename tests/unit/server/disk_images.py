"""Disk images built by hand, byte by byte, so that tests need no qemu-img; QEMU reads them, too."""

import struct

VMDK_DESCRIPTOR = """# Disk DescriptorFile
version=1
CID=646e9bf4
parentCID=ffffffff
createType="{kind}"

# Extent description
RW {sectors} SPARSE "disk.vmdk"

# The Disk Data Base
#DDB

ddb.virtualHWVersion = "4"
ddb.adapterType = "ide"
"""


def patched(data: bytes, offset: int, layout: str, *values: object) -> bytes:
    """`data` with `values` packed over it at `offset`; a lie in an otherwise good header."""
    piece = struct.pack(layout, *values)
    return data[:offset] + piece + data[offset + len(piece) :]


def tiny_qcow2(size: int, *, version: int = 3, cluster_bits: int | None = None, salt: bytes = b"") -> bytes:
    """An empty qcow2 of `size` virtual bytes (1 to 4 TiB): 2 KiB for up to 2 MiB, 8 KiB for up to 128 MiB.

    `salt` makes images of one size differ in their bytes. Four clusters: header, refcount table, refcount
    block, L1 table.
    """
    if cluster_bits is None:
        cluster_bits = next(bits for bits in range(9, 22) if size <= (1 << 3 * bits) // 64)
    cluster = 1 << cluster_bits
    l1_entries = -(-size // (cluster * cluster // 8))
    header = struct.pack(
        ">4sIQIIQIIQQIIQ",
        *(b"QFI\xfb", version, 0, 0, cluster_bits, size),
        *(0, l1_entries, 3 * cluster, cluster, 1, 0, 0),
    )
    if version >= 3:
        header += struct.pack(">QQQII", 0, 0, 0, 4, 104)
    refcount_table = struct.pack(">Q", 2 * cluster)
    refcount_block = struct.pack(">4H", 1, 1, 1, 1)
    clusters = (header, refcount_table, refcount_block, bytes(8 * l1_entries))
    data = b"".join(part.ljust(cluster, b"\0") for part in clusters)
    return data + salt.ljust(-(-len(salt) // cluster) * cluster, b"\0")


def tiny_vmdk(
    size: int,
    *,
    kind: str = "streamOptimized",
    descriptor: str | None = None,
    footer: bool = False,
    salt: bytes = b"",
) -> bytes:
    """An empty sparse VMDK of `size` virtual bytes, a multiple of 512, in 64 KiB or more.

    With a `footer`, as VMware writes streams: the header defers to a copy of itself near the end.
    """
    sectors = size // 512
    compressed = kind == "streamOptimized"
    directory = 21
    text = (descriptor or VMDK_DESCRIPTOR).format(kind=kind, sectors=sectors).encode()

    def header(directory_offset: int) -> bytes:
        fields = (b"KDMV", 3 if compressed else 1, 0x30001 if compressed else 1)
        offsets = (sectors, 128, 1, 20, 512, 0, directory_offset, 128)
        tail = (0, *b"\n \r\n", int(compressed))
        return struct.pack("<4sIIQQQQIQQQ5BH", *fields, *offsets, *tail).ljust(512, b"\0")

    tables = -(-sectors // (128 * 512))
    body = text.ljust(20 * 512, b"\0") + bytes(4 * tables)
    first = header(2**64 - 1 if footer else directory)
    data = (first + body).ljust(128 * 512, b"\0") + salt.ljust(-(-len(salt) // 512) * 512, b"\0")
    if footer:
        marker = struct.pack("<QII", 1, 0, 3).ljust(512, b"\0")
        data += marker + header(directory) + bytes(512)
    return data


def tiny_raw(size: int, *, partition_table: bool = False, salt: bytes = b"") -> bytes:
    """`size` bytes of a raw disk, if asked with an MBR naming one Linux partition; salt in the last ones."""
    data = bytearray(size)
    if partition_table:
        data[446:462] = struct.pack("<B3BB3BII", 0x80, 0, 2, 0, 0x83, 0, 0, 0, 1, max(1, size // 512 - 1))
        data[510:512] = b"\x55\xaa"
    if salt:
        data[-len(salt) :] = salt
    return bytes(data)
