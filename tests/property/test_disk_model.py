"""The disk tier against a dict, and its Cython parts against plain Python: checksums, trees, segment files."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from models import crc32c as model_crc
from models import segment as model_segment
from models import tree as model_tree

from lazystore._core import checksum
from lazystore._core.tree import decode, encode
from lazystore.cache.disk import DiskTier
from lazystore.cache.packing import Codec, pack, unpack
from lazystore.errors import FormatError

CAP = 64 << 10
keys = st.sampled_from([b"", b"a", b"ab", b"b" * 500, *(b"key-%d" % i for i in range(12))])


@given(st.binary(max_size=2000), st.integers(0, 2**32 - 1))
def test_checksums_are_the_models(data: bytes, value: int) -> None:
    expected = model_crc.crc32c(data, value)
    assert checksum.crc32c(data, value) == expected
    assert checksum.crc32c_narrow(data, value) == expected
    assert checksum.crc32c_tables(data, value) == expected


anything = st.text(st.characters(exclude_categories=())) | st.binary() | st.integers() | st.floats() | st.booleans()
trees: st.SearchStrategy[Any] = st.recursive(
    anything | st.none(),
    lambda inside: (
        st.lists(inside, max_size=4)
        | st.lists(inside, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.none() | st.tuples(st.text()), inside, max_size=4)
    ),
    max_leaves=20,
)


def refused(value: object) -> Any:
    raise AssertionError(f"not plain: {value!r}")


def same(left: Any, right: Any) -> bool:
    """Equal, of the same types, in the same order."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        if left != left:
            return right != right
        return left == right and math.copysign(1, left) == math.copysign(1, right)
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


@given(trees)
def test_trees_are_written_as_the_model_does_and_come_back(value: Any) -> None:
    data = encode(value, refused)
    assert data == model_tree.encode(value)
    assert same(decode(data, refused), value)


@given(trees, st.data())
def test_damaged_trees_are_refused_or_read_never_worse(value: Any, data: st.DataObject) -> None:
    written = bytearray(encode(value, refused))
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] ^= 1 << data.draw(st.integers(0, 7))
    damaged = bytes(written[: data.draw(st.integers(0, len(written)))])
    try:
        decode(damaged, bytes)
    except FormatError:
        return
    assert damaged  # nothing is no value


@given(trees, st.sampled_from(["none", "zlib", "zstd:1"]), st.integers(0, 300))
def test_what_is_packed_comes_back(value: Any, codec: str, repeat: int) -> None:
    if codec.startswith("zstd"):
        pytest.importorskip("zstandard")
    value = [value] * repeat
    kind, buffers = pack(value, Codec(codec))
    assert same(unpack(kind, b"".join(map(bytes, buffers))), value)


class TierMachine(RuleBasedStateMachine):
    """Two tiers on one folder, one dict. What the tier evicted it may not have; what it has must be the newest."""

    @initialize()
    def make(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.now = 1000.0
        self.model: dict[bytes, tuple[int, bytes, float]] = {}
        self.tiers = [self.tier(), self.tier()]

    def tier(self) -> DiskTier:
        return DiskTier(Path(self.folder.name, "tier"), CAP)

    @rule(
        who=st.integers(0, 1),
        key=keys,
        size=st.sampled_from([0, 1, 7, 8, 300, 3000, 7900, 9000]),
        parts=st.integers(1, 3),
        lasts=st.sampled_from([0, 5, 50]),
        kind=st.integers(0, 4),
    )
    def put(self, who: int, key: bytes, size: int, parts: int, lasts: int, kind: int) -> None:
        payload = bytes(len(self.model) + i & 255 for i in range(size))
        buffers = [payload[i * size // parts : (i + 1) * size // parts] for i in range(parts)]
        expires = self.now + lasts if lasts else 0.0
        self.tiers[who]._look_around(self.tiers[who]._opened())  # so that it knows what it replaces
        if self.tiers[who].put(key, kind, buffers, created=self.now, expires=expires):
            self.model[key] = (kind, payload, expires)
        else:
            assert size > 7500

    @rule(who=st.integers(0, 1), key=keys)
    def get(self, who: int, key: bytes) -> None:
        tier = self.tiers[who]
        tier._next_look = 0.0
        found = tier.get(key, now=self.now)
        if found is None:
            expected = self.model.get(key)
            if expected is not None and 0 < expected[2] <= self.now:
                del self.model[key]
            return
        kind, payload, expires = self.model[key]
        assert (found.kind, found.payload, found.expires) == (kind, payload, expires)
        assert expires == 0 or expires > self.now

    @rule(who=st.integers(0, 1), key=keys)
    def delete(self, who: int, key: bytes) -> None:
        self.tiers[who].delete(key)
        self.model.pop(key, None)

    @rule(who=st.integers(0, 1), prefix=st.sampled_from([b"a", b"key-", b"key-1", b"nothing"]))
    def clear(self, who: int, prefix: bytes) -> None:
        self.tiers[who].clear(prefix)
        for key in [key for key in self.model if key.startswith(prefix)]:
            del self.model[key]

    @rule(who=st.integers(0, 1))
    def clear_all(self, who: int) -> None:
        self.tiers[who].clear()
        self.model.clear()

    @rule(seconds=st.sampled_from([1, 10]))
    def wait(self, seconds: int) -> None:
        self.now += seconds

    @rule(who=st.integers(0, 1))
    def reopen(self, who: int) -> None:
        self.tiers[who].close()
        self.tiers[who] = self.tier()

    @invariant()
    def stays_within_its_cap(self) -> None:
        sizes = [entry.stat().st_size for entry in Path(self.folder.name, "tier").iterdir()]
        assert sum(sizes) <= CAP

    @precondition(lambda self: len(self.model) < 6)
    @invariant()
    def files_are_as_the_model_reads_them(self) -> None:
        live: dict[bytes, int] = {}
        for file in Path(self.folder.name, "tier").glob("*.seg"):
            for record in model_segment.read(file.read_bytes()):
                live[record.key] = live.get(record.key, 0) + record.live
        assert all(count <= 1 for count in live.values()), "a replaced record was not killed"

    def teardown(self) -> None:
        if hasattr(self, "tiers"):
            for tier in self.tiers:
                assert tier.counters()["corrupt"] == 0
                assert tier.health().ok
                tier.close()
            self.folder.cleanup()


TestTier = TierMachine.TestCase
TestTier.settings = settings(max_examples=25, stateful_step_count=30)
