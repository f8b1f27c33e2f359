"""Text through the front door: at once without an index, anywhere with one, near and far, in a small budget."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.golden import GOLDEN, assert_same, expected

import lazystore.streaming.dataset as dataset_module
from lazystore import ConfigError, FormatError, SourceChangedError, StreamingDataset
from lazystore.testing import ObjectStore

ROWS = [{"id": i, "text": f"{i} " * (i % 90)} for i in range(30_000)]
DATA = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LAZYSTORE_CACHE_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("texts")
    (root / "bucket").mkdir()
    (root / "bucket" / "rows.jsonl").write_bytes(DATA)
    (root / "bucket" / "rows.jsonl.gz").write_bytes(gzip.compress(DATA, 1))
    return root


@pytest.fixture(scope="module")
def store(root: Path) -> Iterator[ObjectStore]:
    pytest.importorskip("aiohttp")
    with ObjectStore(root) as running:
        yield running


FILES = ["rows.jsonl", "rows.jsonl.gz"]


@pytest.mark.parametrize("name", FILES)
def test_the_first_pass_needs_no_index_and_leaves_one(name: str, root: Path, cache: Path) -> None:
    with StreamingDataset(root / "bucket" / name, memory="4MB") as dataset:
        assert not list(cache.rglob("*.lzidx"))
        assert list(dataset) == ROWS
        assert len(list(cache.rglob("*.lzidx"))) == 1
        assert list(dataset) == ROWS
        assert len(dataset) == len(ROWS) and dataset[-1] == ROWS[-1]


@pytest.mark.parametrize("name", FILES)
def test_items_are_the_same_by_every_path(name: str, root: Path) -> None:
    with StreamingDataset(root / "bucket" / name, memory="6MB") as dataset:
        order = random.Random(1).sample(range(len(ROWS)), 40)
        assert [dataset[i] for i in order] == [ROWS[i] for i in order]
        assert dataset.get_many(order) == [ROWS[i] for i in order]
        assert list(dataset[17:-1:999]) == ROWS[17:-1:999]
        assert list(dataset.iter_from(29_990)) == ROWS[29_990:]
    with StreamingDataset(root / "bucket" / name, memory="6MB", shuffle=True, seed=3) as dataset:
        shuffled = list(dataset)
        assert shuffled != ROWS and sorted(row["id"] for row in shuffled) == list(range(len(ROWS)))
        half = iter(dataset)
        seen = [next(half) for _ in range(100)]
        state = dataset.state_dict(100, 0)
    with StreamingDataset(root / "bucket" / name, memory="6MB", shuffle=True, seed=3) as again:
        again.load_state_dict(state)
        assert sorted(row["id"] for row in [*seen, *again]) == list(range(len(ROWS)))


@pytest.mark.parametrize(("kind", "file"), [("jsonl", "lines.jsonl"), ("csv", "table.csv"), ("tsv", "table.tsv")])
def test_golden_texts(kind: str, file: str) -> None:
    with StreamingDataset(GOLDEN / "plain-text" / kind / "data" / file, memory="2MB") as dataset:
        assert_same(dataset, expected(f"plain-text/{kind}"))
        assert_same([dataset[i] for i in range(len(dataset))], expected(f"plain-text/{kind}"))


@pytest.mark.parametrize("budget", [800_000, 1_500_000])
def test_blocks_longer_than_half_of_the_frames_are_passed_by(budget: int, root: Path) -> None:
    with StreamingDataset(root / "bucket" / "rows.jsonl.gz", memory=budget, fallback="raise") as dataset:
        assert [dataset[i] for i in (0, 20, 15_000, 29_999, 3)] == [ROWS[i] for i in (0, 20, 15_000, 29_999, 3)]


def test_a_row_of_an_indexed_file_far_away_is_one_request(store: ObjectStore) -> None:
    url = store.http_url("bucket", "rows.jsonl")
    with StreamingDataset(url, memory="8MB") as dataset:
        assert len(dataset) == len(ROWS)
    with StreamingDataset(url, memory="8MB") as dataset:
        dataset[0]
        before = dataset.stats()["requests"]
        for n, i in enumerate((12_345, 29_000), 1):
            assert dataset[i] == ROWS[i]
            assert dataset.stats()["requests"] == before + n


@pytest.mark.parametrize("name", FILES)
def test_texts_far_away_stream_and_index(name: str, store: ObjectStore) -> None:
    with StreamingDataset(store.http_url("bucket", name), memory="8MB") as dataset:
        assert list(dataset) == ROWS
        assert list(dataset) == ROWS
        assert dataset[20_000] == ROWS[20_000]


def test_a_first_pass_goes_on_counting_when_the_text_is_indexed_meanwhile(root: Path) -> None:
    with StreamingDataset(root / "bucket" / "rows.jsonl", memory="6MB") as dataset:
        first = iter(dataset)
        seen = [next(first) for _ in range(10)]
        assert dataset[29_000] == ROWS[29_000]
        seen += [next(first) for _ in range(10)]
        state = dataset.state_dict()
        assert seen + list(first) == ROWS
        assert dataset.epoch == 2
    with StreamingDataset(root / "bucket" / "rows.jsonl", memory="6MB") as again:
        again.load_state_dict(state)
        assert list(again) == ROWS[20:]


def test_many_threads_index_a_text_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    make_memory = dataset_module.make_memory
    monkeypatch.setattr(dataset_module, "make_memory", lambda *args: made.append(args) or make_memory(*args))
    with StreamingDataset(root / "bucket" / "rows.jsonl", memory="6MB") as dataset:
        with ThreadPoolExecutor(6) as threads:
            assert list(threads.map(dataset.__getitem__, range(100, 106))) == ROWS[100:106]
        assert len(made) == 1


def test_a_forked_child_reads_on(root: Path) -> None:
    with StreamingDataset(root / "bucket" / "rows.jsonl", memory="6MB") as dataset:
        assert dataset[5] == ROWS[5]
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = 0 if dataset[25_000] == ROWS[25_000] and list(dataset) == ROWS else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert dataset[25_001] == ROWS[25_001]


def test_a_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n2\n{oops\n4\n")
    with StreamingDataset(tmp_path / "a.jsonl", memory="2MB") as dataset:
        assert dataset.get_many([0, 1, 3]) == [1, 2, 4]
        with pytest.raises(FormatError, match=r"a\.jsonl\[0:4\] \(chunk 0\), item 2: the line is not JSON"):
            dataset[2]


def test_a_file_that_changes_under_the_reader_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(DATA)
    with StreamingDataset(path, memory="1MB") as dataset:
        assert dataset[0] == ROWS[0]
        path.write_bytes(DATA[::-1])
        os.utime(path, ns=(7, 7))
        with pytest.raises(SourceChangedError):
            dataset[29_000]
    path.write_bytes(DATA[: DATA.find(b"\n") + 1])
    with StreamingDataset(path, memory="1MB") as dataset:
        assert dataset[:][0] == ROWS[0] and len(dataset) == 1


def test_several_files_by_a_pattern_or_a_directory(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"part-{k}.csv").write_text("n,k\n" + "".join(f"{i},{k}\n" for i in range(5)))
    wanted = [{"n": str(i), "k": str(k)} for k in range(3) for i in range(5)]
    for place in (tmp_path, tmp_path / "part-*.csv"):
        with StreamingDataset(place, memory="2MB") as dataset:
            assert list(dataset) == wanted
            assert [dataset[i] for i in range(len(dataset))] == wanted


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"raw": True}, b"a,b"),
        ({"format_options": {"header": ["x", "y"]}}, {"x": "a", "y": "b"}),
        ({"format": "lines"}, "a,b"),
    ],
)
def test_options_reach_the_format(options: dict[str, Any], first: Any, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"h,i\na,b\n" if "raw" in options else b"a,b\nc,d\n")
    with StreamingDataset(tmp_path / "a.csv", memory="2MB", **options) as dataset:
        assert dataset[0] == first and next(iter(dataset)) == first


def test_a_bare_file_name_is_in_front_of_what_is_wrong_with_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"1\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^a\.jsonl: columns="):
        StreamingDataset("a.jsonl", columns=["x"])
