"""Key sidecars: every key finds its item, others none, with few requests and bounded memory."""

from __future__ import annotations

import copy
import io
import pickle
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sources import DiarySource

import lazystore
from lazystore.errors import (
    BudgetTooSmallError,
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FormatError,
    KeyNotFoundError,
    LazyStoreError,
    UnsupportedError,
)
from lazystore.formats.keys import KeyIndex, shard_of

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

ONE = {"version": 1, "num_shards": 1, "sharding": "none"}
FIRST = "keys/shard-00000.parquet"


def parquet(
    keys: Sequence[Any], items: Sequence[int], *, order: bool = True, group: int = 1000, **options: Any
) -> bytes:
    rows = sorted(zip(keys, items, strict=True)) if order else list(zip(keys, items, strict=True))
    columns = {
        "key": [key for key, _ in rows],
        "index": pa.array([item for _, item in rows], pa.int64()),
        "chunk_index": pa.array([0] * len(rows), pa.int32()),
        "chunk_offset": pa.array([item for _, item in rows], pa.int32()),
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd", row_group_size=group, **options)
    return sink.getvalue()


def sharded(keys: Sequence[Any], shards: int) -> dict[str, bytes]:
    found: dict[int, list[tuple[Any, int]]] = {shard: [] for shard in range(shards)}
    for item, key in enumerate(keys):
        found[shard_of(key, shards)].append((key, item))
    kind = pa.int64() if keys and isinstance(keys[0], int) else pa.string()
    files = {}
    for shard, rows in found.items():
        rows.sort()
        table = pa.table(
            {"key": pa.array([k for k, _ in rows], kind), "index": pa.array([i for _, i in rows], pa.int64())}
        )
        sink = io.BytesIO()
        pq.write_table(table, sink)
        files[f"keys/shard-{shard:05d}.parquet"] = sink.getvalue()
    return files


def index_of(keys: Any = ONE, *, total: int = 10**6, budget: int = 64 << 20) -> KeyIndex:
    return KeyIndex(keys, total, place="memory://d", budget=budget)


# -- finding --------------------------------------------------------------------------------


TEXTS = st.lists(st.text(max_size=6), unique=True, max_size=60)
INTEGERS = st.lists(st.integers(-(1 << 63), (1 << 63) - 1), unique=True, max_size=60)


@given(TEXTS | INTEGERS, st.sampled_from([1, 3, 16, 1000]), st.booleans())
@settings(max_examples=60)
def test_every_key_finds_its_item_and_no_other_is_found(keys: list[Any], group: int, order: bool) -> None:
    keys = [key for key in keys if not isinstance(key, str) or key.isprintable()]
    if not keys:
        return
    source = DiarySource({FIRST: parquet(keys, range(len(keys)), group=group, order=order)})
    index = index_of()
    for item, key in enumerate(keys):
        assert index(key, source, 5.0) == item
    for other in ("no such key", 12345678901, "", -1):
        if other not in keys:
            with pytest.raises(KeyNotFoundError, match="no item with the key"):
                index(other, source, 5.0)


@pytest.mark.parametrize("kind", [str, int])
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_shards_are_chosen_by_hash(kind: type, shards: int) -> None:
    keys = [kind(1000 + i) for i in range(200)]
    source = DiarySource(sharded(keys, shards))
    index = index_of({"version": 1, "num_shards": shards, "sharding": "hash" if shards > 1 else "none"})
    assert [index(key, source, 5.0) for key in keys] == list(range(200))


def test_the_hash_is_litdatas() -> None:
    # blake2b of the key's text, 8 bytes, little-endian
    assert [shard_of(key, 7) for key in ("a", "b", 5, -5, "ü")] == [
        shard_of(str(key), 7) for key in ("a", "b", 5, -5, "ü")
    ]
    assert shard_of("abc", 1 << 64) == int.from_bytes(bytes.fromhex("d8bb14d833d59559"), "little")


def test_keys_of_numpy_are_keys() -> None:
    source = DiarySource({FIRST: parquet([5, 6], [0, 1])})
    assert index_of()(np.int32(6), source, 5.0) == 1


@pytest.mark.parametrize("key", [True, None, 1.5, b"x", ["x"]])
def test_keys_are_text_or_integers(key: Any) -> None:
    with pytest.raises(ConfigError, match="key"):
        index_of()(key, DiarySource({FIRST: parquet(["a"], [0])}), 5.0)


def test_a_key_of_the_other_kind_is_not_found() -> None:
    for keys, other in ((["1", "2"], 1), ([1, 2], "1"), ([1, 2], 1 << 70)):
        with pytest.raises(KeyNotFoundError):
            index_of()(other, DiarySource({FIRST: parquet(keys, [0, 1])}), 5.0)


def test_datasets_of_before_the_index_told_of_keys() -> None:
    data = parquet(["a", "b"], [4, 7])
    for name in (FIRST, "keys.parquet"):
        source, index = DiarySource({name: data}), index_of(None)
        assert [index(key, source, 5.0) for key in ("a", "b", "a")] == [4, 7, 4]
    with pytest.raises(DatasetNotFoundError, match=r"keys\.parquet.*key_fn"):
        index_of(None)("a", DiarySource({}), 5.0)
    with pytest.raises(DatasetNotFoundError, match=r"shard-00000"):
        index_of()("a", DiarySource({"keys.parquet": data}), 5.0)


# -- cost -----------------------------------------------------------------------------------


def _bytes_read(source: DiarySource) -> int:
    return sum(end - begin for wave in source.waves for _, begin, end in wave)


def test_a_lookup_bisects_the_row_groups() -> None:
    data = parquet([f"key {i:06d}" for i in range(100_000)], range(100_000), group=5000)
    source, index = DiarySource({FIRST: data}), index_of(budget=16 << 20)
    assert index("key 054321", source, 5.0) == 54321
    assert len(source.waves) <= 2 + 6  # the size, the footer; of 20 row groups, those that bisecting meets
    assert _bytes_read(source) < len(data) // 2
    source.waves.clear()
    assert index("key 054322", source, 5.0) == 54322
    assert source.waves == []  # kept
    assert index("key 058000", source, 5.0) == 58000
    assert len(source.waves) <= 5 and _bytes_read(source) < len(data) // 3


def test_a_long_row_group_is_read_up_to_the_key() -> None:
    keys = list(range(0, 600_000, 2))
    source, index = DiarySource({FIRST: parquet(keys, range(len(keys)), group=len(keys))}), index_of()
    assert index(200_000, source, 5.0) == 100_000
    assert len(index._blocks) > 2  # those that were passed
    source.waves.clear()
    assert [index(key, source, 5.0) for key in (0, 50_000, 199_998)] == [0, 25_000, 99_999]
    assert source.waves == []
    assert index(599_998, source, 5.0) == 299_999


def test_a_shard_is_looked_through_for_the_first_key_it_has_not() -> None:
    data = parquet([f"key {i:06d}" for i in range(20_000)], range(20_000), group=5000)
    source, index = DiarySource({FIRST: data}), index_of()
    for _ in range(2):
        with pytest.raises(KeyNotFoundError):
            index("key 004999x", source, 5.0)
        kept, source.waves = source.waves, []
    assert kept == []
    with pytest.raises(KeyNotFoundError):
        index(7, source, 5.0)  # of another kind
    assert source.waves == []


@pytest.mark.parametrize("group", [1, 7, 1000])
def test_shards_that_are_not_sorted_are_looked_through(group: int) -> None:
    keys = [f"key {i * 7919 % 1009:04d}" for i in range(1009)]
    source, index = DiarySource({FIRST: parquet(keys, range(1009), group=group, order=False)}), index_of()
    assert [index(keys[item], source, 5.0) for item in range(0, 1009, 101)] == list(range(0, 1009, 101))
    with pytest.raises(KeyNotFoundError):
        index("key", source, 5.0)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.int32(), pa.uint64()], ids=str)
def test_keys_may_be_of_any_text_or_integer_type(kind: Any) -> None:
    plain = [f"{i:03d}" if "string" in str(kind) else i for i in range(300)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": pa.array(plain, kind), "index": pa.array(range(300), pa.int32())}), sink)
    source, index = DiarySource({FIRST: sink.getvalue()}), index_of()
    assert [index(key, source, 5.0) for key in plain] == list(range(300))


def test_kept_keys_are_bounded() -> None:
    keys = [f"key {i:06d}" for i in range(200_000)]
    source, index = DiarySource({FIRST: parquet(keys, range(len(keys)), group=10_000)}), index_of(budget=16 << 20)
    for item in range(0, 200_000, 5_000):
        assert index(keys[item], source, 5.0) == item
    assert 0 < sum(len(block._image) for block in index._blocks.values()) == index._held <= 1 << 20


def test_a_row_group_beyond_the_budget_says_what_would_do() -> None:
    keys = [f"key {i:06d}" for i in range(200_000)]
    source = DiarySource({FIRST: parquet(keys, range(len(keys)), group=200_000, use_dictionary=False)})
    with pytest.raises(BudgetTooSmallError, match="memory=") as error:
        index_of(budget=1 << 20)("key 000001", source, 5.0)
    (memory,) = re.findall(r"memory=(\d+)", str(error.value))
    assert index_of(budget=int(memory))("key 000001", source, 5.0) == 1


def test_threads_look_up_at_once() -> None:
    keys = [f"k{i}" for i in range(5000)]
    source, index = DiarySource(sharded(keys, 4)), index_of({"version": 1, "num_shards": 4, "sharding": "hash"})
    wrong: list[Any] = []

    def look(start: int) -> None:
        for item in range(start, 5000, 97):
            if index(keys[item], source, 5.0) != item:
                wrong.append(item)

    threads = [threading.Thread(target=look, args=(start,)) for start in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_it_is_not_pickled() -> None:
    for act in (pickle.dumps, copy.copy):
        with pytest.raises(TypeError, match="pickled"):
            act(index_of())


# -- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys", [5, {}, {"num_shards": 0}, {"num_shards": True}, {"num_shards": "1"}, {"num_shards": 10**9}]
)
def test_an_index_that_names_no_shards_is_refused(keys: Any) -> None:
    with pytest.raises(FormatError, match='"keys"'):
        index_of(keys)("a", DiarySource({}), 5.0)


@pytest.mark.parametrize(
    "keys",
    [{"num_shards": 1, "version": 2}, {"num_shards": 2, "sharding": "range"}, {"num_shards": 2, "sharding": "none"}],
)
def test_other_divisions_are_told(keys: Any) -> None:
    with pytest.raises(UnsupportedError, match='"keys"'):
        index_of(keys)("a", DiarySource({}), 5.0)


@pytest.mark.parametrize("item", [-1, 10, 1 << 40])
def test_items_that_do_not_exist_are_refused(item: int) -> None:
    table = pa.table({"key": ["a"], "index": pa.array([item], pa.int64())})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    with pytest.raises(FormatError, match="there are 10"):
        index_of(total=10)("a", DiarySource({FIRST: sink.getvalue()}), 5.0)


@pytest.mark.parametrize(
    "columns",
    [
        {"key": ["a"]}, {"index": [1]}, {"key": [1.5], "index": [1]}, {"key": ["a"], "index": ["1"]},
        {"key": [["a"]], "index": [1]}, {"key": [None], "index": [1]},
    ],
)  # fmt: skip
def test_files_without_the_columns_are_refused(columns: dict[str, Any]) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    with pytest.raises(FormatError, match="shard-00000"):
        index_of()("a", DiarySource({FIRST: sink.getvalue()}), 5.0)


def test_rows_without_a_key_are_refused() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": ["a", None], "index": [0, 1]}), sink)
    with pytest.raises(FormatError, match="without a key"):
        index_of()("a", DiarySource({FIRST: sink.getvalue()}), 5.0)


def test_an_error_of_the_storage_stays_one() -> None:
    source = DiarySource({FIRST: parquet(["a"], [0])})

    def broken(reads: Any) -> None:
        raise FetchError("the storage is away")

    source.before = broken
    with pytest.raises(FetchError, match="away"):
        index_of()("a", source, 5.0)
    source.before = lambda reads: None
    assert index_of()("a", source, 5.0) == 0


def test_keys_that_are_no_text_are_damage() -> None:
    sink = io.BytesIO()
    table = pa.table({"key": pa.array([b"\xff\xfe"]).cast(pa.binary()), "index": [0]})
    bad = pa.table({"key": pa.StringArray.from_buffers(1, *table["key"].chunk(0).buffers()[1:]), "index": [0]})
    pq.write_table(bad, sink)
    with pytest.raises(FormatError, match="shard-00000"):
        index_of()("key", DiarySource({FIRST: sink.getvalue()}), 5.0)


def test_thousands_of_damaged_shards_end_no_process() -> None:
    # in a process of its own: what pyarrow does with a footer that it trusts cannot be caught
    program = """
        import random, sys
        from support.sources import DiarySource
        from lazystore.errors import LazyStoreError
        from lazystore.formats.keys import KeyIndex

        sound, any_number = bytes.fromhex(sys.stdin.read()), random.Random(5)
        ends = 0
        for _ in range(2000):
            data = bytearray(sound)
            for _ in range(any_number.randint(1, 3)):
                at = len(data) - 1 - any_number.randrange(len(data) if any_number.random() < 0.3 else 900)
                data[at] = any_number.choice((data[at] ^ 1 << any_number.randrange(8), any_number.randrange(256), 0x80))
            index = KeyIndex({"num_shards": 1, "sharding": "none"}, 50, place="memory://d", budget=64 << 20)
            try:
                index("key 33", DiarySource({"keys/shard-00000.parquet": bytes(data)}), 5.0)
            except LazyStoreError:
                ends += 1
        print(ends)
    """
    paths = [str(path) for path in (Path(__file__).parents[2], Path(lazystore.__file__).parents[1])]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}\n{textwrap.dedent(program)}"],
        input=SOUND.hex(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 500


SOUND = parquet([f"key {i}" for i in range(50)], range(50), group=20)


@given(st.data())
@settings(max_examples=150)
def test_damaged_shards_are_an_error_of_ours(data: st.DataObject) -> None:
    changed = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "extend", "huge"])):
            case "flip":
                changed[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del changed[at + 1 :]
            case "extend":
                changed += bytes(3)
            case _:
                changed[at : at + 4] = b"\xff\xff\xff\x7f"
    try:
        found = index_of(total=50)("key 33", DiarySource({FIRST: bytes(changed)}), 5.0)
    except LazyStoreError:
        return
    assert 0 <= found < 50
