from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventstore.errors import ProofWrong
from eventstore.event import Position
from eventstore.merkle import LeafIndex, TreeSize, leaf_hash, node_hash
from eventstore.proofs import (
    HASHES_MAX,
    Proof,
    check_consistency,
    check_inclusion,
    consistency_proof,
    inclusion_proof,
)
from tests.unit.eventstore.trees import bodies_of, naive_path, naive_proof, naive_root, reader_of

SIZES = range(1, 101)
ROOTS = [naive_root(bodies_of(size)) for size in range(103)]
LEAVES = list(map(leaf_hash, bodies_of(100)))

# The leaves and roots that Certificate Transparency's implementations are tested with.
PUBLISHED = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "60616263646566676869")
]
PUBLISHED[-1] += bytes.fromhex("6a6b6c6d6e6f")
PUBLISHED_ROOTS = {
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    5: "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    6: "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    7: "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}
TO_8 = (
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
)
FIRST_FOUR = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
FIFTH = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
LAST_TWO = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
FIFTH_AND_SIXTH = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
SEVENTH = "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f"


def hashes_of(texts: tuple[str, ...]) -> Proof:
    return tuple(map(bytes.fromhex, texts))


def inclusion_holds(leaf: bytes, proof: Proof, *, index: int, size: int, expected: bytes) -> bool:
    try:
        check_inclusion(leaf, proof, index=LeafIndex(index), size=TreeSize(size), expected=expected)
    except ProofWrong:
        return False
    return True


def consistency_holds(proof: Proof, *, old_size: int, old_root: bytes, size: int, expected: bytes) -> bool:
    try:
        check_consistency(
            proof, old_size=TreeSize(old_size), old_root=old_root, size=TreeSize(size), expected=expected
        )
    except ProofWrong:
        return False
    return True


@pytest.mark.parametrize("size", SIZES)
def test_every_leaf_is_proven_as_the_rfc_defines_it(size: int) -> None:
    bodies, read = bodies_of(size), reader_of(bodies_of(size))
    for index in range(size):
        proof = inclusion_proof(LeafIndex(index), TreeSize(size), read)
        assert list(proof) == naive_path(index, bodies)
        assert inclusion_holds(LEAVES[index], proof, index=index, size=size, expected=ROOTS[size])


@pytest.mark.parametrize("size", SIZES)
def test_every_older_tree_is_proven_as_the_rfc_defines_it(size: int) -> None:
    bodies, read = bodies_of(size), reader_of(bodies_of(size))
    for old_size in range(1, size + 1):
        proof = consistency_proof(old_size=TreeSize(old_size), size=TreeSize(size), read=read)
        assert list(proof) == naive_proof(old_size, bodies)
        assert consistency_holds(
            proof, old_size=old_size, old_root=ROOTS[old_size], size=size, expected=ROOTS[size]
        )


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 100])
def test_a_proof_is_of_one_leaf_of_one_tree_only(size: int) -> None:
    read = reader_of(bodies_of(100))
    for index in range(size):
        proof = inclusion_proof(LeafIndex(index), TreeSize(size), read)
        for other in range(size):
            holds = inclusion_holds(LEAVES[index], proof, index=other, size=size, expected=ROOTS[size])
            assert holds is (other == index)
        for other_size in range(size + 2):
            at = {"index": index, "size": other_size}
            assert inclusion_holds(LEAVES[index], proof, **at, expected=ROOTS[other_size]) is (
                other_size == size
            )


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 100])
def test_a_consistency_proof_is_of_one_pair_of_trees_only(size: int) -> None:
    read = reader_of(bodies_of(100))
    for old_size in range(1, size + 1):
        proof = consistency_proof(old_size=TreeSize(old_size), size=TreeSize(size), read=read)
        for other in range(size + 1):
            at = {"old_size": other, "size": size, "expected": ROOTS[size]}
            # Any tree is consistent with itself, and the proof of that is empty.
            assert consistency_holds(proof, **at, old_root=ROOTS[other]) is (other == old_size)
        for other in range(size + 2):
            at = {"old_size": old_size, "size": other, "expected": ROOTS[other]}
            assert consistency_holds(proof, **at, old_root=ROOTS[old_size]) is (other == size)


@pytest.mark.parametrize(
    ("index", "size"), [(0, 1), (0, 2), (1, 2), (2, 3), (2, 5), (6, 7), (12, 13), (5, 8)]
)
def test_no_bit_of_an_inclusion_proof_may_differ(index: int, size: int) -> None:
    proof = inclusion_proof(LeafIndex(index), TreeSize(size), reader_of(bodies_of(size)))
    values = [LEAVES[index], ROOTS[size], *proof]
    for changed in every_bit_flipped(values):
        leaf, expected, *hashes = changed
        assert not inclusion_holds(leaf, tuple(hashes), index=index, size=size, expected=expected)


@pytest.mark.parametrize(
    ("old_size", "size"), [(1, 1), (1, 2), (2, 3), (3, 7), (4, 7), (6, 7), (6, 8), (5, 13)]
)
def test_no_bit_of_a_consistency_proof_may_differ(old_size: int, size: int) -> None:
    proof = consistency_proof(
        old_size=TreeSize(old_size), size=TreeSize(size), read=reader_of(bodies_of(size))
    )
    values = [ROOTS[old_size], ROOTS[size], *proof]
    for changed in every_bit_flipped(values):
        old_root, expected, *hashes = changed
        assert not consistency_holds(
            tuple(hashes), old_size=old_size, old_root=old_root, size=size, expected=expected
        )


def every_bit_flipped(values: list[bytes]) -> list[list[bytes]]:
    """Copies of some hashes with one bit flipped in each."""
    copies = []
    for at, value in enumerate(values):
        for bit in range(8 * len(value)):
            flipped = (int.from_bytes(value, "big") ^ 1 << bit).to_bytes(len(value), "big")
            copies.append([*values[:at], flipped, *values[at + 1 :]])
    return copies


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda proof: proof[:-1], id="without the last"),
        pytest.param(lambda proof: proof[1:], id="without the first"),
        pytest.param(lambda proof: (*proof, proof[-1]), id="the last twice"),
        pytest.param(lambda proof: (proof[0], *proof), id="the first twice"),
        pytest.param(lambda proof: (*proof, b""), id="an empty hash more"),
        pytest.param(lambda proof: proof[::-1], id="backwards"),
        pytest.param(lambda proof: (*proof[:-1], proof[-1][:31]), id="a hash too short"),
        pytest.param(lambda proof: (proof[0] + b"\0", *proof[1:]), id="a hash too long"),
        pytest.param(lambda proof: (proof[0] + proof[1], *proof[2:]), id="two hashes as one"),
        pytest.param(lambda proof: (), id="none"),
    ],
)
@pytest.mark.parametrize(("first", "size"), [(2, 5), (6, 11), (100, 100), (37, 100)])
def test_a_proof_of_another_shape_is_refused(change: Callable[[Proof], Proof], first: int, size: int) -> None:
    read = reader_of(bodies_of(size))
    index = first - 1
    proof = change(inclusion_proof(LeafIndex(index), TreeSize(size), read))
    assert not inclusion_holds(LEAVES[index], proof, index=index, size=size, expected=ROOTS[size])
    if first < size:
        proof = change(consistency_proof(old_size=TreeSize(first), size=TreeSize(size), read=read))
        assert not consistency_holds(
            proof, old_size=first, old_root=ROOTS[first], size=size, expected=ROOTS[size]
        )


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 1), (5, 5), (0, 2**63), (2**64, 2**65)])
def test_what_is_no_leaf_of_the_tree_is_refused(index: int, size: int) -> None:
    assert not inclusion_holds(LEAVES[0], (), index=index, size=size, expected=LEAVES[0])


@pytest.mark.parametrize(("old_size", "size"), [(0, 0), (0, 1), (2, 1), (-1, 1), (2**63, 2**63)])
def test_what_is_no_older_tree_is_refused(old_size: int, size: int) -> None:
    at = {"old_size": old_size, "size": size}
    assert not consistency_holds((), **at, old_root=ROOTS[1], expected=ROOTS[1])


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 1)])
def test_no_proof_is_made_of_what_is_no_leaf(index: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"no leaf {index}"):
        inclusion_proof(LeafIndex(index), TreeSize(size), reader_of(bodies_of(2)))


@pytest.mark.parametrize(("old_size", "size"), [(0, 1), (2, 1), (-1, 1)])
def test_no_proof_is_made_of_what_is_no_older_tree(old_size: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"none of {old_size}"):
        consistency_proof(old_size=TreeSize(old_size), size=TreeSize(size), read=reader_of(bodies_of(2)))


def test_equal_sizes_prove_nothing_about_other_roots() -> None:
    at = {"old_size": 5, "size": 5, "expected": ROOTS[5]}
    assert consistency_holds((), **at, old_root=ROOTS[5])
    assert not consistency_holds((), **at, old_root=ROOTS[6])
    assert not consistency_holds((ROOTS[5],), **at, old_root=ROOTS[5])


def test_a_refusal_says_what_is_wrong() -> None:
    at = {"index": LeafIndex(2), "size": TreeSize(5), "expected": ROOTS[5]}
    proof = inclusion_proof(LeafIndex(2), TreeSize(5), reader_of(bodies_of(5)))
    with pytest.raises(ProofWrong, match="it has 2 hashes, that of leaf 2 in a tree of 5 leaves has 3"):
        check_inclusion(LEAVES[2], proof[1:], **at)
    with pytest.raises(ProofWrong, match=f"it leads to the root [0-9a-f]{{64}}, not to {ROOTS[5].hex()}"):
        check_inclusion(LEAVES[1], proof, **at)
    with pytest.raises(ProofWrong, match="a hash has 32 bytes, one of these has 31"):
        check_inclusion(LEAVES[2][:31], proof, **at)


class TestPublishedVectors:
    """Made by Certificate Transparency's implementations; leaves are counted from 0 here."""

    @pytest.mark.parametrize(
        ("index", "size", "texts"),
        [
            pytest.param(0, 1, (), id="only"),
            pytest.param(0, 8, TO_8, id="first-of-8"),
            pytest.param(5, 8, (FIFTH, LAST_TWO, FIRST_FOUR), id="sixth-of-8"),
            pytest.param(2, 3, (PUBLISHED_ROOTS[2],), id="last-of-3"),
            pytest.param(1, 5, (PUBLISHED_ROOTS[1], TO_8[1], FIFTH), id="second-of-5"),
        ],
    )
    def test_inclusion(self, index: int, size: int, texts: tuple[str, ...]) -> None:
        expected = bytes.fromhex(PUBLISHED_ROOTS[size])
        proof = inclusion_proof(LeafIndex(index), TreeSize(size), reader_of(PUBLISHED))
        assert proof == hashes_of(texts)
        leaf = leaf_hash(PUBLISHED[index])
        assert inclusion_holds(leaf, proof, index=index, size=size, expected=expected)

    @pytest.mark.parametrize(
        ("old_size", "size", "texts"),
        [
            pytest.param(1, 1, (), id="1-1"),
            pytest.param(1, 8, TO_8, id="1-8"),
            pytest.param(6, 8, (FIFTH_AND_SIXTH, LAST_TWO, FIRST_FOUR), id="6-8"),
            pytest.param(2, 5, (TO_8[1], FIFTH), id="2-5"),
            pytest.param(6, 7, (FIFTH_AND_SIXTH, SEVENTH, FIRST_FOUR), id="6-7"),
        ],
    )
    def test_consistency(self, old_size: int, size: int, texts: tuple[str, ...]) -> None:
        proof = consistency_proof(old_size=TreeSize(old_size), size=TreeSize(size), read=reader_of(PUBLISHED))
        assert proof == hashes_of(texts)
        old_root, expected = (bytes.fromhex(PUBLISHED_ROOTS[each]) for each in (old_size, size))
        assert consistency_holds(proof, old_size=old_size, old_root=old_root, size=size, expected=expected)


class TestExampleOfTheRfc:
    """The tree of seven leaves in RFC 6962 §2.1.3, its nodes by the letters they have there."""

    READ = staticmethod(reader_of(bodies_of(7)))
    a, b, c, d, e, f, j = LEAVES[:7]
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l = node_hash(g, h), node_hash(i, j)  # noqa: E741

    @pytest.mark.parametrize(
        ("index", "nodes"), [(0, (b, h, l)), (3, (c, g, l)), (4, (f, j, k)), (6, (i, k))]
    )
    def test_inclusion(self, index: int, nodes: Proof) -> None:
        assert inclusion_proof(LeafIndex(index), TreeSize(7), self.READ) == nodes

    @pytest.mark.parametrize(("old_size", "nodes"), [(3, (c, d, g, l)), (4, (l,)), (6, (i, j, k))])
    def test_consistency(self, old_size: int, nodes: Proof) -> None:
        assert consistency_proof(old_size=TreeSize(old_size), size=TreeSize(7), read=self.READ) == nodes


class TestReads:
    """A node at (level, index) is made up here, so that a tree may have any size: it need not exist."""

    @staticmethod
    def read(position: Position) -> bytes:
        levels = (position & -position).bit_length()
        return b"".join(sha256(b"%d %d" % (level, position)).digest() for level in range(levels))

    @given(st.integers(1, 2**63 - 1), st.data())
    def test_inclusion_takes_a_read_for_each_level_twice_at_most(
        self, size: int, data: st.DataObject
    ) -> None:
        index = data.draw(st.integers(0, size - 1))
        reads: list[int] = []
        proof = inclusion_proof(LeafIndex(index), TreeSize(size), self.counting(reads))
        assert len(reads) <= 2 * size.bit_length()
        assert all(1 <= position <= size for position in reads)
        assert len(proof) <= min(size.bit_length(), HASHES_MAX)

    @given(st.integers(1, 2**63 - 1), st.data())
    def test_consistency_takes_a_read_for_each_level_twice_at_most(
        self, size: int, data: st.DataObject
    ) -> None:
        old_size = data.draw(st.integers(1, size))
        reads: list[int] = []
        proof = consistency_proof(old_size=TreeSize(old_size), size=TreeSize(size), read=self.counting(reads))
        assert len(reads) <= 2 * size.bit_length() + 1
        assert all(1 <= position <= size for position in reads)
        assert len(proof) <= min(size.bit_length() + 1, HASHES_MAX)

    def counting(self, reads: list[int]) -> Callable[[Position], bytes]:
        def read(position: Position) -> bytes:
            reads.append(position)
            return self.read(position)

        return read


@given(st.lists(st.binary(max_size=3), min_size=1, max_size=70), st.data())
def test_any_leaves_and_sizes(bodies: list[bytes], data: st.DataObject) -> None:
    size = data.draw(st.integers(1, len(bodies)))
    index, old_size = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    read, expected = reader_of(bodies), naive_root(bodies[:size])
    path = inclusion_proof(LeafIndex(index), TreeSize(size), read)
    assert list(path) == naive_path(index, bodies[:size])
    assert inclusion_holds(leaf_hash(bodies[index]), path, index=index, size=size, expected=expected)
    proof = consistency_proof(old_size=TreeSize(old_size), size=TreeSize(size), read=read)
    assert list(proof) == naive_proof(old_size, bodies[:size])
    old_root = naive_root(bodies[:old_size])
    assert consistency_holds(proof, old_size=old_size, old_root=old_root, size=size, expected=expected)


@given(
    st.lists(st.binary(min_size=32, max_size=32), max_size=7).map(tuple),
    st.binary(min_size=32, max_size=32),
    st.integers(-1, 100),
    st.integers(-1, 100),
)
def test_made_up_proofs_prove_nothing(proof: Proof, leaf: bytes, index: int, size: int) -> None:
    expected = ROOTS[size] if 0 <= size <= 100 else ROOTS[1]
    assert not inclusion_holds(leaf, proof, index=index, size=size, expected=expected)
    assert index == size or not consistency_holds(
        proof, old_size=index, old_root=leaf, size=size, expected=expected
    )
