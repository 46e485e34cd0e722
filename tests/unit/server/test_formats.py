"""What is an image, what is none, and that neither the pieces nor hostile bytes change the answer."""

import bz2
import gzip
import io
import logging
import lzma
import shutil
import struct
import subprocess
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.formats import SIZE_MAX, SUPPORTED, FormatRefused, Inspected, Inspector
from tests.unit.server.disk_images import VMDK_DESCRIPTOR, patched, tiny_qcow2, tiny_raw, tiny_vmdk

MIB = 1 << 20
QCOW2 = tiny_qcow2(4 * MIB)
VMDK = tiny_vmdk(4 * MIB)
VMDK_FOOTER = tiny_vmdk(4 * MIB, footer=True)
needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def pieces(data: bytes, piece_bytes: int) -> Iterator[bytes]:
    for start in range(0, len(data), piece_bytes):
        yield data[start : start + piece_bytes]


def inspect(data: bytes, piece_bytes: int = MIB) -> Inspected:
    inspector = Inspector()
    for piece in pieces(data, piece_bytes):
        inspector.feed(piece)
    return inspector.finish()


def verdict(data: bytes, piece_bytes: int) -> Inspected | str:
    try:
        return inspect(data, piece_bytes)
    except FormatRefused as refused:
        return str(refused)


def descriptor(old: str, new: str) -> str:
    assert old in VMDK_DESCRIPTOR
    return VMDK_DESCRIPTOR.replace(old, new)


def at_footer(data: bytes, offset: int, layout: str, *values: object) -> bytes:
    return patched(data, len(data) - 1536 + offset, layout, *values)


def iso() -> bytes:
    return patched(bytes(64 * 1024), 32 * 1024, "6s", b"\x01CD001")


def udf() -> bytes:
    return patched(patched(bytes(64 * 1024), 32 * 1024, "6s", b"\x00BEA01"), 34 * 1024, "6s", b"\x00NSR03")


def tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        archive.addfile(tarfile.TarInfo("disk.ovf"))
    return out.getvalue()


def zip_archive() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("disk.raw", bytes(512))
    return out.getvalue()


ACCEPTED = [
    pytest.param(tiny_qcow2(512), "qcow2", 512, id="qcow2-smallest"),
    pytest.param(tiny_qcow2(4 * MIB, version=2), "qcow2", 4 * MIB, id="qcow2-version-2"),
    pytest.param(QCOW2, "qcow2", 4 * MIB, id="qcow2-version-3"),
    pytest.param(tiny_qcow2(1000), "qcow2", 1000, id="qcow2-size-not-in-sectors"),
    pytest.param(tiny_qcow2(4 * MIB, cluster_bits=16), "qcow2", 4 * MIB, id="qcow2-l1-after-the-head"),
    pytest.param(tiny_qcow2(SIZE_MAX), "qcow2", SIZE_MAX, id="qcow2-largest"),
    pytest.param(patched(QCOW2, 80, ">Q", 1), "qcow2", 4 * MIB, id="qcow2-compatible-feature"),
    pytest.param(
        patched(tiny_qcow2(4 * MIB, cluster_bits=16), 72, ">Q", 16), "qcow2", 4 * MIB, id="qcow2-extended-l2"
    ),
    # Version 2 has no feature bits: what stands there is an extension, here a backing format without a file.
    pytest.param(
        patched(tiny_qcow2(4 * MIB, version=2), 72, ">II5s", 0xE2792ACA, 5, b"qcow2"),
        "qcow2",
        4 * MIB,
        id="qcow2-version-2-extension",
    ),
    pytest.param(VMDK, "vmdk", 4 * MIB, id="vmdk-stream-optimised"),
    pytest.param(VMDK_FOOTER, "vmdk", 4 * MIB, id="vmdk-stream-optimised-footer"),
    pytest.param(tiny_vmdk(4 * MIB, kind="monolithicSparse"), "vmdk", 4 * MIB, id="vmdk-monolithic-sparse"),
    pytest.param(tiny_vmdk(4 * MIB, descriptor=descriptor("\n", "\r\n")), "vmdk", 4 * MIB, id="vmdk-crlf"),
    pytest.param(tiny_raw(512), "raw", 512, id="raw-smallest"),
    pytest.param(tiny_raw(MIB, partition_table=True), "raw", MIB, id="raw-partition-table"),
    pytest.param(b"A" * 4096, "raw", 4096, id="raw-letters"),
]

REFUSED = [
    pytest.param(b"", "an empty file", id="empty"),
    pytest.param(bytes(511), "511 bytes are not a whole number", id="raw-too-short"),
    pytest.param(bytes(MIB + 3), r"1048579 bytes .* \(3 over\)", id="raw-odd-length"),
    pytest.param(b"not an image\n", "a text document", id="text"),
    pytest.param(iso(), "ISO 9660", id="iso"),
    pytest.param(tiny_raw(32 * 1024, partition_table=True) + iso()[32 * 1024 :], "ISO 9660", id="iso-hybrid"),
    pytest.param(udf(), "UDF", id="udf"),
    pytest.param(b"conectix".ljust(4096, b"\0"), "VHD", id="vhd-dynamic"),
    pytest.param(bytes(4096) + b"conectix".ljust(512, b"\0"), "VHD", id="vhd-fixed"),
    pytest.param(bytes(4096) + b"koly".ljust(512, b"\0"), "Apple", id="dmg"),
    pytest.param(b"vhdxfile".ljust(4096, b"\0"), "VHDX", id="vhdx"),
    pytest.param(patched(bytes(4096), 64, "<I", 0xBEDA107F), "VDI", id="vdi"),
    pytest.param(b"QED\0".ljust(4096, b"\0"), "QED", id="qed"),
    pytest.param(b"LUKS\xba\xbe\0\x01".ljust(4096, b"\0"), "LUKS", id="luks-1"),
    pytest.param(b"LUKS\xba\xbe\0\x02".ljust(4096, b"\0"), "LUKS", id="luks-2"),
    pytest.param(b"WithoutFreeSpace".ljust(4096, b"\0"), "Parallels", id="parallels"),
    pytest.param(gzip.compress(QCOW2).ljust(4096, b"\0"), "gzip", id="gzip"),
    pytest.param(lzma.compress(QCOW2), "xz", id="xz"),
    pytest.param(bz2.compress(QCOW2), "bzip2", id="bzip2"),
    pytest.param(b"\x28\xb5\x2f\xfd".ljust(4096, b"\0"), "zstd", id="zstd"),
    pytest.param(zip_archive(), "zip", id="zip"),
    pytest.param(tar(), "tar", id="ova"),
    pytest.param(b"<?xml version='1.0'?><Error/>".ljust(512), "XML", id="xml"),
    pytest.param(b"\xef\xbb\xbf\r\n<!DOCTYPE html>", "HTML", id="html"),
    pytest.param(b"<html>".ljust(MIB), "HTML", id="html-in-sectors"),
    pytest.param(b'{"code": 403}', "JSON", id="json"),
    pytest.param(b"QFI\xfb\0\0\0\x01".ljust(4096, b"\0"), "qcow version 1", id="qcow1"),
    pytest.param(b"QFI\xfb", "truncated", id="qcow2-magic-only"),
    pytest.param(QCOW2[:511], "truncated", id="qcow2-half-a-header"),
    pytest.param(QCOW2[:3100], "truncated, its header needs", id="qcow2-cut-before-l1"),
    pytest.param(
        patched(QCOW2, 3072, ">Q", 4096), "truncated, its header needs 5120", id="qcow2-cut-before-l2"
    ),
    pytest.param(patched(QCOW2, 3072, ">Q", 512), "between clusters", id="qcow2-l1-unaligned"),
    pytest.param(patched(QCOW2, 4, ">I", 4), "qcow version 4", id="qcow2-version-4"),
    pytest.param(patched(QCOW2, 8, ">QI", 512, 9), "backing file", id="qcow2-backing"),
    pytest.param(patched(QCOW2, 20, ">I", 8), "clusters of", id="qcow2-clusters-small"),
    pytest.param(patched(QCOW2, 20, ">I", 2**32 - 1), "clusters of", id="qcow2-clusters-huge"),
    pytest.param(patched(QCOW2, 24, ">Q", 0), "virtual size is 0", id="qcow2-size-0"),
    pytest.param(tiny_qcow2(SIZE_MAX + 512), "virtual size is 4398046511616", id="qcow2-too-large"),
    pytest.param(patched(QCOW2, 24, ">Q", 2**64 - 1), "virtual size is", id="qcow2-size-huge"),
    pytest.param(patched(QCOW2, 32, ">I", 1), "encrypted", id="qcow2-aes"),
    pytest.param(patched(QCOW2, 32, ">I", 2), "encrypted", id="qcow2-luks"),
    pytest.param(patched(QCOW2, 36, ">I", 0), "L1 table has 0", id="qcow2-l1-none"),
    pytest.param(patched(QCOW2, 36, ">I", 2**32 - 1), "L1 table has", id="qcow2-l1-huge"),
    pytest.param(patched(QCOW2, 40, ">Q", 2**63), "truncated", id="qcow2-l1-far"),
    pytest.param(patched(QCOW2, 40, ">Q", 100), "not aligned", id="qcow2-l1-offset"),
    pytest.param(patched(QCOW2, 48, ">Q", 0), "refcount table", id="qcow2-refcounts-none"),
    pytest.param(patched(QCOW2, 56, ">I", 2**31), "refcount table has", id="qcow2-refcounts-huge"),
    pytest.param(
        patched(QCOW2, 60, ">IQ", 1, 100), "snapshots are listed at", id="qcow2-snapshots-unaligned"
    ),
    pytest.param(patched(QCOW2, 60, ">IQ", 1, 1 << 40), "truncated", id="qcow2-snapshots-far"),
    pytest.param(patched(QCOW2, 72, ">Q", 1), "dirty", id="qcow2-dirty"),
    pytest.param(patched(QCOW2, 72, ">Q", 2), "corrupt", id="qcow2-corrupt"),
    pytest.param(patched(QCOW2, 72, ">Q", 4), "external data file", id="qcow2-data-file"),
    pytest.param(patched(QCOW2, 72, ">Q", 8), "compression", id="qcow2-compression-lie"),
    pytest.param(patched(QCOW2, 72, ">Q", 32), "unknown incompatible features 0x20", id="qcow2-feature"),
    pytest.param(patched(QCOW2, 72, ">Q", 1 << 63), "unknown incompatible", id="qcow2-feature-high"),
    pytest.param(patched(QCOW2, 100, ">I", 2**31), "bytes of header", id="qcow2-header-length"),
    pytest.param(
        patched(tiny_qcow2(4 * MIB, cluster_bits=16), 32 * 1024, "6s", b"\x01CD001"),
        "qcow2 and iso in one file",
        id="qcow2-polyglot",
    ),
    pytest.param(VMDK_DESCRIPTOR.encode(), "descriptor .* without its extents", id="vmdk-text"),
    pytest.param(
        descriptor("{kind}", "twoGbMaxExtentSparse").encode().ljust(512, b"\n"),
        r"descriptor \(twoGbMaxExtentSparse\)",
        id="vmdk-text-two-gb",
    ),
    pytest.param(
        b"# note\n\nversion=1\n".ljust(512, b"\n"), "VMDK descriptor", id="vmdk-text-as-qemu-sees-it"
    ),
    pytest.param(b"COWD".ljust(512, b"\0"), "COWD", id="vmdk-cowd"),
    pytest.param(VMDK[:100], "truncated", id="vmdk-half-a-header"),
    pytest.param(VMDK[:4096], "truncated", id="vmdk-cut-descriptor"),
    pytest.param(VMDK[:32768], "truncated", id="vmdk-cut-grains"),
    pytest.param(patched(VMDK, 4, "<I", 4), "unknown version 4", id="vmdk-version-4"),
    pytest.param(patched(VMDK, 12, "<Q", 0), "virtual size is 0", id="vmdk-size-0"),
    pytest.param(patched(VMDK, 12, "<Q", SIZE_MAX // 512 + 1), "virtual size", id="vmdk-too-large"),
    pytest.param(patched(VMDK, 12, "<Q", 2**64 - 1), "virtual size", id="vmdk-size-huge"),
    pytest.param(patched(VMDK, 20, "<Q", 0), "grains of 0", id="vmdk-grain-0"),
    pytest.param(patched(VMDK, 28, "<Q", 0), "without a descriptor", id="vmdk-no-descriptor"),
    pytest.param(patched(VMDK, 28, "<Q", 9), "without a descriptor", id="vmdk-descriptor-elsewhere"),
    pytest.param(patched(VMDK, 36, "<Q", 2**60), "descriptor ends at", id="vmdk-descriptor-huge"),
    pytest.param(patched(VMDK, 44, "<I", 0), "tables of 0", id="vmdk-tables-0"),
    pytest.param(patched(VMDK, 56, "<Q", 2**63), "truncated", id="vmdk-directory-far"),
    pytest.param(tiny_vmdk(MIB, kind="monolithicFlat"), "of kind 'monolithicflat'", id="vmdk-flat"),
    pytest.param(tiny_vmdk(MIB, kind="twoGbMaxExtentSparse"), "of kind 'twogb", id="vmdk-two-gb"),
    pytest.param(tiny_vmdk(MIB, descriptor="version=1\n"), "no createType", id="vmdk-no-kind"),
    pytest.param(
        tiny_vmdk(MIB, descriptor=descriptor("ffffffff", "646e9bf4")), "needs a parent", id="vmdk-delta"
    ),
    pytest.param(
        tiny_vmdk(MIB, descriptor='# parentFileNameHint="/etc/passwd"\n' + VMDK_DESCRIPTOR),
        "needs a parent",
        id="vmdk-hinted-parent",
    ),
    pytest.param(
        tiny_vmdk(MIB, descriptor=descriptor("disk.vmdk", "/etc/passwd")),
        "by a path",
        id="vmdk-absolute-extent",
    ),
    pytest.param(
        tiny_vmdk(MIB, descriptor=descriptor("disk.vmdk", "..\\\\disk")),
        "by a path",
        id="vmdk-backslash-extent",
    ),
    pytest.param(
        tiny_vmdk(MIB, descriptor=descriptor("SPARSE", "FLAT")), "extent is not sparse", id="vmdk-flat-extent"
    ),
    pytest.param(
        tiny_vmdk(MIB, descriptor=descriptor("\nRW", '\nRW 9 SPARSE "b.vmdk"\nRW')),
        "with 2 extents",
        id="vmdk-two-extents",
    ),
    pytest.param(tiny_vmdk(MIB, descriptor=descriptor("RW", "#")), "with 0 extents", id="vmdk-no-extent"),
    pytest.param(
        tiny_vmdk(MIB, descriptor=VMDK_DESCRIPTOR + "run me\n"), "unsafe or damaged", id="vmdk-strange-line"
    ),
    pytest.param(
        tiny_vmdk(MIB, descriptor=VMDK_DESCRIPTOR + "# диск\n"), "not ASCII", id="vmdk-descriptor-utf-8"
    ),
    pytest.param(VMDK_FOOTER[:-512], "unsafe or damaged|damaged", id="vmdk-cut-footer"),
    pytest.param(VMDK_FOOTER[: 21 * 512 + 100], "truncated", id="vmdk-footer-missing"),
    pytest.param(at_footer(VMDK_FOOTER, 512 + 12, "<Q", 1), "footer another size", id="vmdk-footer-size"),
    pytest.param(at_footer(VMDK_FOOTER, 512 + 12, "<Q", 0), "virtual size is 0", id="vmdk-footer-size-0"),
    pytest.param(at_footer(VMDK_FOOTER, 512 + 56, "<Q", 2**64 - 1), "another footer", id="vmdk-footer-again"),
    pytest.param(at_footer(VMDK_FOOTER, 512 + 28, "<Q", 9), "descriptor", id="vmdk-footer-descriptor"),
]


@pytest.mark.parametrize(("data", "name", "size"), ACCEPTED)
def test_accepted(data: bytes, name: str, size: int) -> None:
    assert inspect(data) == Inspected(format=name, size=size, storage_size=len(data))


@pytest.mark.parametrize(("data", "says"), REFUSED)
def test_refused(data: bytes, says: str) -> None:
    with pytest.raises(FormatRefused, match=says) as refused:
        inspect(data)
    assert refused.value.found
    assert str(refused.value).endswith(SUPPORTED)


@pytest.mark.parametrize("piece_bytes", [1, 7, 511, 4096, 65_535, 65_536, 65_537])
def test_pieces_do_not_change_the_answer(piece_bytes: int) -> None:
    for row in ACCEPTED + REFUSED:
        data = row.values[0]
        if piece_bytes > 1 or len(data) <= 100_000:
            assert verdict(data, piece_bytes) == verdict(data, len(data) or 1), row.id


def test_a_certain_refusal_comes_before_the_end() -> None:
    inspector = Inspector()
    with pytest.raises(FormatRefused, match="gzip"):
        inspector.feed(b"\x1f\x8b\x08" + bytes(65_533))


def test_raw_beyond_the_largest_size() -> None:
    inspector = Inspector()
    inspector.feed(bytes(65_536))
    inspector._seen_bytes = SIZE_MAX - 512
    inspector.feed(bytes(512))
    with pytest.raises(FormatRefused, match="largest size"):
        inspector.feed(b"\0")


def test_a_refusal_is_final() -> None:
    inspector = Inspector()
    inspector.feed(patched(tiny_qcow2(4 * MIB, cluster_bits=16), 3 << 16, ">Q", 512)[: 3 << 16])
    with pytest.raises(FormatRefused, match="between clusters"):
        inspector.feed(struct.pack(">Q", 512))
    with pytest.raises(AssertionError):
        inspector.finish()


def test_feeding_after_the_end_is_a_bug() -> None:
    inspector = Inspector()
    inspector.feed(bytes(512))
    inspector.finish()
    with pytest.raises(AssertionError):
        inspector.feed(b"")


def test_refused_bytes_stay_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    verdict(tiny_vmdk(MIB, descriptor=VMDK_DESCRIPTOR + "password is hunter2\n"), MIB)
    assert "hunter2" not in caplog.text


def test_memory_stays_bounded() -> None:
    chunk = bytes(256 * 1024)
    # The L1 table claims 32 MiB, the most that QEMU reads.
    huge_table = patched(tiny_qcow2(4 * MIB, cluster_bits=16), 36, ">I", 4 * MIB)
    for head in (huge_table, VMDK_FOOTER[:-1536], bytes(65_536)):
        tracemalloc.start()
        inspector = Inspector()
        inspector.feed(head)
        for _ in range(40):
            inspector.feed(chunk)
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 2 * MIB


@given(st.binary(max_size=2048), st.sampled_from([b"", b"QFI\xfb\0\0\0\x03", b"KDMV\x01\0\0\0", b"vhdxfile"]))
@settings(max_examples=300, deadline=2000)
def test_random_bytes_are_judged(data: bytes, magic: bytes) -> None:
    verdict(magic + data, 1000)


@given(
    st.sampled_from([QCOW2, tiny_qcow2(4 * MIB, cluster_bits=16), VMDK, VMDK_FOOTER]),
    st.lists(st.tuples(st.integers(0, 1100), st.binary(min_size=1, max_size=8)), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(1, 1536), st.binary(min_size=1, max_size=8)), max_size=2),
    st.integers(0, 2**18),
)
@settings(max_examples=400, deadline=2000)
def test_mutated_headers_are_judged(
    data: bytes, front: list[tuple[int, bytes]], back: list[tuple[int, bytes]], cut: int
) -> None:
    for offset, change in front + [(len(data) - offset, change) for offset, change in back]:
        data = data[:offset] + change + data[offset + len(change) :]
    data = data[: len(data) - cut] if cut < len(data) else data
    whole = verdict(data, len(data) or 1)
    assert verdict(data, 4097) == whole
    if isinstance(whole, Inspected):
        assert 0 < whole.size <= SIZE_MAX
        assert whole.storage_size == len(data)


@pytest.mark.parametrize(
    "filler",
    [
        pytest.param(b" ", id="spaces"),
        pytest.param(b"\n", id="newlines"),
        pytest.param(b"# \n", id="comments"),
        pytest.param(b'{"', id="json"),
        pytest.param(b'createType="', id="kinds"),
        pytest.param(b"parentCID=", id="parents"),
        pytest.param(b"rw ", id="extents"),
    ],
)
def test_no_text_takes_long(filler: bytes) -> None:
    text = filler * (60_000 // len(filler))
    started = time.monotonic()
    verdict(text, MIB)
    verdict(patched(VMDK, 36, "<Q", 120)[:512] + text[:60_000].ljust(64_000, b"\0"), MIB)
    assert time.monotonic() - started < 2


def qemu_img(*arguments: str, cwd: Path) -> None:
    subprocess.run(["qemu-img", *arguments], cwd=cwd, check=True, capture_output=True, timeout=60)


def content() -> bytes:
    data = bytearray(tiny_raw(5 * MIB, partition_table=True))
    data[MIB : 2 * MIB] = b"".join(struct.pack(">Q", n * 0x9E3779B97F4A7C15 % 2**64) for n in range(MIB // 8))
    return bytes(data)


@needs_qemu_img
@pytest.mark.parametrize(
    ("target", "options"),
    [
        pytest.param("qcow2", ("-o", "compat=0.10"), id="qcow2-0.10"),
        pytest.param("qcow2", ("-o", "compat=1.1"), id="qcow2-1.1"),
        pytest.param("qcow2", ("-c",), id="qcow2-compressed"),
        pytest.param("qcow2", ("-c", "-o", "compression_type=zstd"), id="qcow2-zstd"),
        pytest.param("qcow2", ("-o", "cluster_size=512"), id="qcow2-small-clusters"),
        pytest.param("qcow2", ("-o", "cluster_size=2M"), id="qcow2-large-clusters"),
        pytest.param("qcow2", ("-o", "extended_l2=on"), id="qcow2-extended-l2"),
        pytest.param("qcow2", ("-o", "lazy_refcounts=on"), id="qcow2-lazy-refcounts"),
        pytest.param("qcow2", ("-o", "preallocation=metadata"), id="qcow2-preallocated"),
        pytest.param("vmdk", ("-o", "subformat=streamOptimized"), id="vmdk-stream-optimised"),
        pytest.param("vmdk", ("-o", "subformat=monolithicSparse"), id="vmdk-monolithic-sparse"),
        pytest.param("raw", (), id="raw"),
    ],
)
def test_qemu_images_accepted(tmp_path: Path, target: str, options: tuple[str, ...]) -> None:
    (tmp_path / "disk.raw").write_bytes(content())
    qemu_img("convert", "-f", "raw", "-O", target, *options, "disk.raw", "disk.out", cwd=tmp_path)
    data = (tmp_path / "disk.out").read_bytes()
    assert inspect(data) == Inspected(format=target, size=5 * MIB, storage_size=len(data))
    assert inspect(data, 4099) == inspect(data)


@needs_qemu_img
@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        pytest.param("qcow", (), "qcow version 1", id="qcow1"),
        pytest.param("qed", (), "QED", id="qed"),
        pytest.param("vdi", (), "VDI", id="vdi"),
        pytest.param("vhdx", (), "VHDX", id="vhdx"),
        pytest.param("vpc", ("-o", "subformat=dynamic"), "VHD", id="vhd-dynamic"),
        pytest.param("vpc", ("-o", "subformat=fixed"), "VHD", id="vhd-fixed"),
        pytest.param("parallels", (), "Parallels", id="parallels"),
        pytest.param("vmdk", ("-o", "subformat=monolithicFlat"), "monolithicFlat", id="vmdk-flat"),
        pytest.param("vmdk", ("-o", "subformat=twoGbMaxExtentSparse"), "twoGbMax", id="vmdk-two-gb"),
        pytest.param("qcow2", ("-o", "data_file=x.data"), "external data file", id="qcow2-data-file"),
        pytest.param(
            "qcow2",
            (
                "--object",
                "secret,id=s,data=x",
                "-o",
                "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
            ),
            "encrypted",
            id="qcow2-luks",
        ),
    ],
)
def test_qemu_images_refused(tmp_path: Path, target: str, options: tuple[str, ...], says: str) -> None:
    qemu_img("create", "-f", target, *options, "disk.out", "5M", cwd=tmp_path)
    with pytest.raises(FormatRefused, match=says):
        inspect((tmp_path / "disk.out").read_bytes())


@needs_qemu_img
@pytest.mark.parametrize("target", ["qcow2", "vmdk"])
def test_qemu_overlays_refused(tmp_path: Path, target: str) -> None:
    qemu_img("create", "-f", target, "base.img", "5M", cwd=tmp_path)
    qemu_img("create", "-f", target, "-b", "base.img", "-F", target, "disk.out", cwd=tmp_path)
    with pytest.raises(FormatRefused, match="whole in itself"):
        inspect((tmp_path / "disk.out").read_bytes())


@needs_qemu_img
@pytest.mark.parametrize(
    ("target", "data"),
    [
        pytest.param("qcow2", tiny_qcow2(1 << 30, version=2, salt=b"x"), id="qcow2-version-2"),
        pytest.param("qcow2", tiny_qcow2(SIZE_MAX), id="qcow2-version-3"),
        pytest.param("vmdk", VMDK, id="vmdk-stream-optimised"),
        pytest.param("vmdk", VMDK_FOOTER, id="vmdk-footer"),
    ],
)
def test_qemu_reads_the_images_built_here(tmp_path: Path, target: str, data: bytes) -> None:
    (tmp_path / "disk.img").write_bytes(data)
    qemu_img("check", "-f", target, "disk.img", cwd=tmp_path)


@needs_qemu_img
def test_a_qcow2_with_a_snapshot_inside(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "disk.out", "5M", cwd=tmp_path)
    qemu_img("snapshot", "-c", "before", "disk.out", cwd=tmp_path)
    assert inspect((tmp_path / "disk.out").read_bytes()).size == 5 * MIB


@needs_qemu_img
def test_a_qcow2_cut_before_its_last_table(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_bytes(content())
    qemu_img("convert", "-O", "qcow2", "-o", "cluster_size=4k", "disk.raw", "disk.out", cwd=tmp_path)
    data = (tmp_path / "disk.out").read_bytes()
    with pytest.raises(FormatRefused, match="truncated"):
        inspect(data[: 16 * 1024])
