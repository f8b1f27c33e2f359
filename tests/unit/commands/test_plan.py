"""``plan``: what it predicts is what a real epoch over the local object store takes.

Tolerances: bytes 2 % (5 % for blocks of tokens), requests 30 % (or a few of them), round trips to the first item one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import datasets

import lazystore
from lazystore import cli
from lazystore._core.frames import FrameStore
from lazystore.commands.footsteps import frames_of
from lazystore.commands.forecast import forecast
from lazystore.commands.plan import foresee
from lazystore.streaming.division import Division, in_flight_bytes
from lazystore.streaming.order import Shape
from lazystore.testing import ObjectStore, dependent_waves

ITEMS = 6000
SHUFFLES = [False, True, "chunk", "global"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    pytest.importorskip("aiohttp")
    root = tmp_path_factory.mktemp("plan")
    datasets.write(root / "small", ITEMS, size=600, chunk_bytes="700kB")
    datasets.write(root / "many", ITEMS // 4, size=200, chunk_size=40)
    with lazystore.DatasetWriter(root / "tokens", tokens=True, chunk_bytes="300kB") as writer:
        for number in range(200):
            writer.write(np.arange(number % 7 * 400 + 500, dtype="i4"))
    with ObjectStore({"b": root}) as running:
        yield running


def predicted(dataset: lazystore.StreamingDataset, shuffle: bool | str, workers: int = 1) -> dict[str, Any]:
    return foresee(dataset, workers=workers, batch=1, shuffle=shuffle, seed=42, latency=0.02, bandwidth=10**8)


def near(found: int, wanted: int, share: float, least: int = 0) -> bool:
    return abs(found - wanted) <= max(least, share * wanted)


@pytest.mark.parametrize("name", ["small", "many"])
@pytest.mark.parametrize("memory", ["2MB", "8MB", "64MB"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_requests_and_bytes_are_those_of_a_real_epoch(
    shuffle: bool | str, memory: str, name: str, store: ObjectStore
) -> None:
    url = store.http_url("b", name)
    with lazystore.StreamingDataset(url, memory=memory, shuffle=shuffle, rank=0, world_size=1) as dataset:
        told = predicted(dataset, shuffle)
        store.reset()
        assert sum(1 for _ in dataset) == told["items"]
        seen = store.stats()
    assert near(told["bytes"], seen["bytes_sent"], 0.02), (told["bytes"], seen["bytes_sent"])
    assert near(told["requests"], seen["gets"], 0.3, 5), (told["requests"], seen["gets"])


def first_item(url: str, shuffle: bool | str, store: ObjectStore) -> tuple[dict[str, Any], int]:
    """What was told of the way to the first item, and the dependent waves that it took."""
    store.configure(latency_ms=100)
    try:
        store.reset()
        begin = time.monotonic()
        with lazystore.StreamingDataset(url, memory="8MB", shuffle=shuffle, rank=0, world_size=1) as dataset:
            items = iter(dataset)
            next(items)
            seconds = time.monotonic() - begin + 0.03  # the store's clock was set a little before
            log = store.stats()["log"]
            told = predicted(dataset, shuffle)
            del items
    finally:
        store.configure(latency_ms=0)
    done = [entry for entry in log if entry["finished"] is not None and entry["finished"] <= seconds]
    return told, dependent_waves(done)


@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_round_trips_to_the_first_item_are_those_of_a_real_run(shuffle: bool | str, store: ObjectStore) -> None:
    for _ in range(3):  # on a busy machine requests of two waves may overlap: seen once in hundreds
        told, waves = first_item(store.http_url("b", "small"), shuffle, store)
        if told["round_trips_to_first"] in (waves, waves - 1):  # what is read ahead may have made a longer chain
            break
    assert told["round_trips_to_first"] in (waves, waves - 1)
    assert told["seconds_to_first"] == pytest.approx(0.02 * told["round_trips_to_first"])


def test_workers_share_budget_and_items(store: ObjectStore) -> None:
    url = store.http_url("b", "small")
    with lazystore.StreamingDataset(url, memory="8MB", rank=0, world_size=1) as dataset:
        alone, four = predicted(dataset, True), predicted(dataset, True, workers=4)
    assert four["memory_per_worker"]["budget"] == 2_000_000
    assert four["requests"] > alone["requests"]
    assert near(four["bytes"], alone["bytes"], 0.05)


def division_of(budget: int) -> Division:
    """That of plain chunks far away."""
    flight, tables = 2 * in_flight_bytes(budget), budget // 32
    return Division(budget, budget - flight - tables, flight, tables, 0, 0)


@pytest.mark.parametrize("memory", ["1MB", "8MB"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
def test_blocks_of_tokens_are_foreseen_too(shuffle: bool | str, memory: str, store: ObjectStore) -> None:
    url = store.http_url("b", "tokens")
    loader = lazystore.TokensLoader(128)
    with lazystore.StreamingDataset(
        url, item_loader=loader, memory=memory, shuffle=shuffle, rank=0, world_size=1
    ) as dataset:
        told = predicted(dataset, shuffle)
        store.reset()
        assert sum(1 for _ in dataset) == told["items"]
        seen = store.stats()
    assert near(told["bytes"], seen["bytes_sent"], 0.05), (told["bytes"], seen["bytes_sent"])
    assert near(told["requests"], seen["gets"], 0.3, 8), (told["requests"], seen["gets"])


def shape_of(chunks: int, items: int, nbytes: int) -> Shape:
    return Shape([items] * chunks, [nbytes] * chunks)


@pytest.mark.parametrize(
    ("kind", "low", "high"), [("sequential", 0, 0.01), ("window", 0.8, 1.05), ("global", 0.97, 1.03)]
)
def test_neighbours_distance_tells_a_shuffle_from_none(kind: str, low: float, high: float) -> None:
    epoch = forecast(shape_of(64, 1024, 262_144), kind, division_of(4 << 20), workers=1, batch=1)
    assert low <= epoch.neighbour_distance <= high


def test_larger_windows_hold_more_and_shuffle_better() -> None:
    found = [
        forecast(shape_of(64, 1024, 1 << 20), "window", division_of(n << 20), workers=1, batch=1)
        for n in (4, 16, 64, 256)
    ]
    shares = [epoch.window_share for epoch in found]
    assert shares == sorted(shares) and shares[-1] == 1.0 and shares[0] < 0.1
    assert found[0].neighbour_distance < found[-1].neighbour_distance


@pytest.mark.parametrize("kind", ["sequential", "window", "global"])
def test_long_epochs_are_told_from_a_part_of_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = shape_of(100, 500, 500_000)
    division = division_of(8 << 20)
    monkeypatch.setattr("lazystore.commands.footsteps.MOST_LISTED", 1 << 40)
    whole = forecast(shape, kind, division, workers=1, batch=1)
    monkeypatch.setattr("lazystore.commands.forecast.MOST_ITEMS", 5000)
    part = forecast(shape, kind, division, workers=1, batch=1)
    assert whole.walked == 1.0 and 0.09 <= part.walked < 0.8
    assert whole.requests is not None and part.requests is not None and whole.nbytes and part.nbytes
    assert near(part.nbytes, whole.nbytes, 0.2)
    if kind != "sequential":  # reading ahead of a long scan makes shorter requests than at its beginning
        assert near(part.requests, whole.requests, 0.3)


@given(st.integers(100_000, 300_000_000))
def test_frames_are_those_of_the_arena(arena: int) -> None:
    store = FrameStore(arena)
    assert frames_of(Division(arena, arena, 0, 0, 0, 0)) == (store.frame_bytes, store.n_frames)


def test_command_prints_what_is_foreseen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(datasets.write(tmp_path / "d", 200))
    line = ["plan", folder, "--memory", "4MB", "--workers", "2", "--batch", "8", "--shuffle"]
    assert cli.main([*line, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["items"] == 200 and told["memory"] == 4_000_000 and told["requests"] > 0
    assert told["batches_handed_out"] == 2 * 2 * 8 * (told["bytes"] // 200) or told["batches_handed_out"] > 0
    assert cli.main([*line, "--latency-ms", "50", "--bandwidth", "1GB"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(told) and "items                  200" in out
    assert cli.main(["plan", folder, "--bandwidth", "much"]) == 1
    assert "--bandwidth" in capsys.readouterr().err


def test_compressed_chunks_have_no_forecast_of_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("zstandard")
    folder = str(datasets.write(tmp_path / "d", 200, compression="zstd"))
    assert cli.main(["plan", folder, "--json", "--shuffle"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["requests"] is None and told["bytes"] is None and told["seconds_at_least"] is None
    assert np.isfinite(told["shuffle_distance"])
