"""Items read alone: the guess, the tables, and neighbours in one request."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support import datasets
from support.benches import Bench
from support.sources import DiarySource

from lazystore.cache import sparse
from lazystore.errors import FormatError

PER_CHUNK, SIZE = 1500, 200


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chunks of ~410 kB, with a table of more than one block."""
    return datasets.write(tmp_path_factory.mktemp("sparse") / "d", 2 * PER_CHUNK, size=SIZE, chunk_size=PER_CHUNK)


def resized(folder: Path, factor: float) -> DiarySource:
    """The dataset with wrong sizes in its index."""
    source = DiarySource.of(folder)
    index = json.loads(source.objects["index.json"])
    for chunk in index["chunks"]:
        chunk["chunk_bytes"] = int(chunk["chunk_bytes"] * factor)
    source.objects["index.json"] = json.dumps(index).encode()
    return source


@pytest.mark.parametrize("factor", [0.5, 1.5, 2, 100])
def test_a_size_that_is_too_large_in_the_index_never_makes_an_item_unreadable(folder: Path, factor: float) -> None:
    # Frames of 4 KiB: a whole block of the table is no piece, so every guess is made anew, in an open chunk.
    bench = Bench(resized(folder, factor), 65536)
    order = random.Random(1).sample(range(2 * PER_CHUNK), 150)
    datasets.check((bench.reader.get(i) for i in order), order, SIZE)
    bench.check()


def test_items_of_one_size_are_guessed_right_every_time(tmp_path: Path) -> None:
    values = [i.to_bytes(8, "little") for i in range(3000)]
    folder = datasets.one_leaf(tmp_path / "d", "int", values)
    for i in range(171, 3000, 171):
        bench = Bench(DiarySource.of(folder))
        assert bench.reader.get(i) == i
        assert len(bench.source.waves) == 1


def test_long_items_are_not_guessed(tmp_path: Path) -> None:
    folder = datasets.one_leaf(tmp_path / "d", "bytes", [bytes([i]) * 300_000 for i in range(8)])
    bench = Bench(DiarySource.of(folder), 1 << 22)
    assert bench.reader.get(5) == bytes([5]) * 300_000
    first, _ = bench.source.waves
    assert sum(end - begin for _, begin, end in first) < 1000


def test_the_count_and_the_table_come_in_one_wave_with_the_guess(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder))
    bench.reader.get(100)
    first = bench.source.waves[0]
    assert ("chunk-0-0.bin", 0, 4 + 4 * (PER_CHUNK + 1)) in first
    assert len(first) == 2


def test_near_a_table_is_read_block_by_block(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder, local=True))
    bench.reader.get(1400)
    table = [end - begin for _, begin, end in bench.source.waves[0]]
    assert sum(table) < 4 * PER_CHUNK


def test_neighbours_of_a_batch_share_a_request(folder: Path) -> None:
    bench = Bench(DiarySource.of(folder))
    bench.reader.get_many([3, PER_CHUNK + 3])
    bench.source.waves.clear()
    wanted = [*range(100, 110), *range(900, 905), *range(PER_CHUNK + 50, PER_CHUNK + 60)]
    datasets.check(bench.reader.get_many(wanted), wanted, SIZE)
    assert [len(wave) for wave in bench.source.waves] == [3]


def test_a_batch_is_fetched_a_bounded_piece_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "BATCH_BYTES", 20_000)
    bench = Bench(DiarySource.of(folder), 65536)
    wanted = random.Random(2).sample(range(2 * PER_CHUNK), 400)
    datasets.check(bench.reader.get_many(wanted), wanted, SIZE)
    for wave in bench.source.waves[1:]:
        assert sum(end - begin for _, begin, end in wave) < 20_000 + 400 * sparse.REMOTE_GAP


def test_a_table_that_the_chunk_cuts_off_is_refused(folder: Path) -> None:
    source = DiarySource.of(folder)
    source.objects["chunk-0-1.bin"] = source.objects["chunk-0-1.bin"][:3000]
    bench = Bench(source)
    with pytest.raises(FormatError, match=r"chunk-0-1\.bin \(chunk 1\)"):
        bench.reader.get(PER_CHUNK + 1400)
    with pytest.raises(FormatError, match=r"chunk-0-1\.bin \(chunk 1\)"):
        bench.reader.get_many([5, PER_CHUNK + 1400])
    datasets.check(bench.reader.get_many([5, 6]), [5, 6], SIZE)
    bench.check()


def test_items_of_no_bytes_need_no_request_of_their_own(tmp_path: Path) -> None:
    folder = datasets.craft(tmp_path / "d", [[b""] * 50], [], data_spec=datasets.tree_spec("builtins.dict", "[]"))
    bench = Bench(DiarySource.of(folder))
    assert bench.reader.get_many([3, 7, 3]) == [{}] * 3
    assert len(bench.source.waves) == 1
    assert bench.reader.get(9) == {}
