"""Compressed chunks: inflated once forward, within the budget, and refused when damaged."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from support import datasets

from lazystore import (
    ArenaFullError,
    DatasetNotFoundError,
    FormatError,
    LazyStoreError,
    SourceChangedError,
    StreamingDataset,
)

zstandard = pytest.importorskip("zstandard")

COUNT, PER_CHUNK, SIZE = 900, 300, 300


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three chunks of ~140 kB."""
    place = tmp_path_factory.mktemp("inflated") / "good"
    return datasets.write(place, COUNT, size=SIZE, chunk_size=PER_CHUNK, compression="zstd")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return datasets.copy(good, tmp_path / "dataset")


def chunk(folder: Path, k: int) -> Path:
    return folder / f"chunk-0-{k}.zstd.bin"


def stored(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.bin"))


@pytest.mark.parametrize("memory", [620_000, "8MB"])
def test_every_path_reads_the_same_items(good: Path, memory: int | str) -> None:
    order = random.Random(1).sample(range(COUNT), 60)
    with StreamingDataset(good, memory=memory) as dataset:
        datasets.check(dataset, range(COUNT), SIZE)
        datasets.check((dataset[i] for i in order), order, SIZE)
        datasets.check(dataset.get_many(order), order, SIZE)
        datasets.check(dataset[COUNT:0:-50], range(COUNT)[COUNT:0:-50], SIZE)
        with dataset.view(77) as lease:
            assert bytes(lease) == dataset.get_bytes(77)


def test_iterating_inflates_each_chunk_once(good: Path) -> None:
    with StreamingDataset(good, memory=700_000) as dataset:
        before = dataset.stats()["bytes_fetched"]
        datasets.check(dataset, range(COUNT), SIZE)
        assert dataset.stats()["bytes_fetched"] - before == stored(good)
        assert dataset.stats()["high_water_mark"] <= 700_000


def test_what_is_resident_is_not_inflated_again(good: Path) -> None:
    with StreamingDataset(good, memory="8MB") as dataset:
        list(dataset)
        fetched = dataset.stats()["bytes_fetched"]
        datasets.check(dataset, range(COUNT), SIZE)
        datasets.check(dataset.get_many(range(0, COUNT, 2)), range(0, COUNT, 2), SIZE)
        assert dataset.stats()["bytes_fetched"] == fetched
        assert dataset.get_memory_stats()["chunks"][0]["complete"]


def test_a_batch_inflates_forward_whatever_order_is_asked(good: Path) -> None:
    order = random.Random(2).sample(range(COUNT), 300)
    with StreamingDataset(good, memory=700_000) as dataset:
        datasets.check(dataset.get_many(order), order, SIZE)
        assert dataset.stats()["bytes_fetched"] <= 3 * stored(good)


def test_many_threads_share_one_stream(good: Path) -> None:
    wrong: list[object] = []
    with StreamingDataset(good, memory=620_000) as dataset:

        def work(seed: int) -> None:
            chance = random.Random(seed)
            try:
                for _ in range(25):
                    i = chance.randrange(COUNT)
                    datasets.check([dataset[i]], [i], SIZE)
                start = chance.randrange(3) * 200
                datasets.check(dataset[start : start + 100], range(start, start + 100), SIZE)
            except BaseException as error:  # noqa: BLE001 - reported by the main thread
                wrong.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert wrong == []


def test_a_table_longer_than_a_part_stays_while_its_chunk_is_read(tmp_path: Path) -> None:
    """In an arena smaller than the chunk; to have it again would mean to inflate from the start."""
    folder = datasets.write(tmp_path / "d", 8000, size=60, chunk_size=2000, compression="zstd")
    with StreamingDataset(folder, memory=700_000) as dataset:
        before = dataset.stats()["bytes_fetched"]
        datasets.check(dataset, range(8000), 60)
        assert dataset.stats()["bytes_fetched"] - before == stored(folder)
        assert dataset.stats()["pins"] == 0


def test_few_free_frames_are_enough_to_read_forward(tmp_path: Path) -> None:
    """What would be good to keep on the way gives way to what is wanted."""
    folder = datasets.write(tmp_path / "d", 9000, size=20, chunk_size=3000, compression="zstd")
    with StreamingDataset(folder, memory=620_000) as dataset:
        leases = []
        with pytest.raises(ArenaFullError):
            for i in range(9000):
                leases.append(dataset.view(i))
        store = dataset._memory.store
        while sum(1 for row in store.contents() if not row[5]) < 2:
            leases.pop(0).release()
        datasets.check(dataset.get_many([8999, 8990]), [8999, 8990], 20)
        for lease in leases:
            lease.release()


# -- damage ---------------------------------------------------------------------------------


def others() -> list[int]:
    return [*range(PER_CHUNK), *range(2 * PER_CHUNK, COUNT)]


@pytest.mark.parametrize("memory", [620_000, "8MB"])
@pytest.mark.parametrize("damage", ["empty", "head only", "half", "last byte gone", "not zstd", "plain"])
def test_a_damaged_chunk_is_named_and_the_others_are_read(folder: Path, damage: str, memory: int | str) -> None:
    path = chunk(folder, 1)
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "head only": data[:12],
            "half": data[: len(data) // 2],
            "last byte gone": data[:-1],
            "not zstd": b"x" * len(data),
            "plain": zstandard.ZstdDecompressor().decompress(data),
        }[damage]
    )
    with StreamingDataset(folder, memory=memory) as dataset:
        last = 2 * PER_CHUNK - 1
        for read in (lambda: dataset[last], lambda: dataset.get_many([last]), lambda: dataset.view(last)):
            with pytest.raises(FormatError, match=r"chunk-0-1\.zstd\.bin \(chunk 1\)") as raised:
                read()
            assert str(raised.value).count("chunk-0-1") == 1, "the place is told more than once"
        items = iter(dataset)
        datasets.check([next(items) for _ in range(PER_CHUNK)], range(PER_CHUNK), SIZE)
        with pytest.raises(FormatError, match=r"chunk-0-1"):
            list(items)
        datasets.check((dataset[i] for i in others()[::40]), others()[::40], SIZE)
        assert dataset.stats()["fallbacks"] == 0


def test_a_missing_chunk_is_named(folder: Path) -> None:
    chunk(folder, 1).unlink()
    with StreamingDataset(folder) as dataset:
        with pytest.raises(DatasetNotFoundError, match=r"chunk-0-1\.zstd\.bin"):
            dataset[PER_CHUNK]
        datasets.check((dataset[i] for i in others()), others(), SIZE)


def test_a_chunk_of_another_count_is_refused(folder: Path) -> None:
    plain = zstandard.ZstdDecompressor().decompress(chunk(folder, 1).read_bytes())
    chunk(folder, 1).write_bytes(zstandard.ZstdCompressor().compress(b"\7\0\0\0" + plain[4:]))
    with StreamingDataset(folder) as dataset, pytest.raises(FormatError, match="7 items, the index says 300"):
        dataset[PER_CHUNK]


@pytest.mark.parametrize("declared", [2**20, 2**40, 2**61])
def test_a_forged_length_is_not_believed(folder: Path, declared: int) -> None:
    """The frame header says how long the content is; what does not come is an error, not memory."""
    data = chunk(folder, 1).read_bytes()
    plain = zstandard.ZstdDecompressor().decompress(data)
    blocks = zstandard.ZstdCompressor(write_content_size=False).compress(plain)
    # magic | descriptor: 8-byte content size, no single segment | window 2 MiB | content size | blocks
    forged = blocks[:4] + bytes([0b11000000, (21 - 10) << 3]) + declared.to_bytes(8, "little") + blocks[6:]
    chunk(folder, 1).write_bytes(forged)
    with StreamingDataset(folder, memory="9MB") as dataset:
        try:
            datasets.check(dataset[PER_CHUNK : 2 * PER_CHUNK], range(PER_CHUNK, 2 * PER_CHUNK), SIZE)
        except FormatError as error:
            assert "chunk-0-1" in str(error)
        datasets.check((dataset[i] for i in others()[::50]), others()[::50], SIZE)


def test_a_chunk_whose_frame_does_not_tell_its_length_is_read(folder: Path) -> None:
    for k in range(3):
        plain = zstandard.ZstdDecompressor().decompress(chunk(folder, k).read_bytes())
        chunk(folder, k).write_bytes(zstandard.ZstdCompressor(write_content_size=False).compress(plain))
    with StreamingDataset(folder, memory="9MB") as dataset:
        datasets.check(dataset, range(COUNT), SIZE)
        datasets.check((dataset[i] for i in range(0, COUNT, 100)), range(0, COUNT, 100), SIZE)


def test_a_chunk_rewritten_while_it_is_read_is_an_error_never_wrong_data(folder: Path) -> None:
    import os

    with StreamingDataset(folder, memory=620_000) as dataset:
        datasets.check([dataset[0]], [0], SIZE)
        path = chunk(folder, 0)
        later = path.stat().st_mtime_ns + 10**9
        path.write_bytes(chunk(folder, 1).read_bytes())
        os.utime(path, ns=(later, later))
        list(dataset[PER_CHUNK:])  # what was resident of it is gone
        for i in range(PER_CHUNK):
            try:
                datasets.check([dataset[i]], [i], SIZE)
            except SourceChangedError:
                break
        else:
            assert all(dataset.is_item_available(i) for i in range(PER_CHUNK))


def test_one_flipped_byte_anywhere_is_an_error_or_another_content_never_a_crash(folder: Path) -> None:
    data = chunk(folder, 1).read_bytes()
    chance = random.Random(3)
    for _ in range(60):
        damaged = bytearray(data)
        damaged[chance.choice([chance.randrange(40), chance.randrange(len(data))])] ^= chance.randrange(1, 256)
        chunk(folder, 1).write_bytes(damaged)
        with StreamingDataset(folder, memory=620_000) as dataset:
            for i in (PER_CHUNK, 2 * PER_CHUNK - 1, PER_CHUNK + 50):
                try:
                    dataset[i]
                except LazyStoreError as error:
                    assert "chunk-0-1" in str(error)
            datasets.check([dataset[5]], [5], SIZE)
