from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.errors import ClosedError, ConfigError, ItemIndexError
from lazystore.hub.registry import ROWS, DatasetSpec
from lazystore.hub.samples import PROCESSORS, SYNTHETIC, process
from lazystore.hub.synthetic import SyntheticFeed
from lazystore.hub.tokenizing import encoder

TOKENS = encoder(lambda text: [len(word) for word in text.split()], 8)
QA = next(row for row in ROWS if row.name == "logicqa")


def plain(row: Any) -> Any:
    """A row as something that compares."""
    if isinstance(row, dict):
        return {key: plain(value) for key, value in row.items()}
    return np.asarray(row).tolist() if hasattr(row, "__array__") or hasattr(row, "__array_interface__") else row


@pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)
def test_rows_of_every_dataset_pass_its_processing_and_are_marked(spec: DatasetSpec) -> None:
    feed = SyntheticFeed(spec, 4)
    for index, row in enumerate(feed.open()):
        assert set(row) == {column if isinstance(column, str) else column[0] for column in spec.columns.values()} | {
            SYNTHETIC
        }
        sample = process(spec, row, index, TOKENS)
        assert sample["synthetic"] is True and sample["dataset"] == spec.name
        assert set(sample["modalities"]) == set(spec.modalities)
        assert ("input_ids" in sample) == ("text" in spec.modalities) and "labels" in sample
        if spec.labels and "label" in spec.columns:
            assert 0 <= sample["labels"] < len(spec.labels)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("modalities", [("text",), ("image",), ("text", "image", "audio")])
def test_a_dataset_without_columns_gets_those_of_its_processor(processor: str, modalities: tuple[str, ...]) -> None:
    spec = DatasetSpec(name="mine", path="me/mine", processor=processor, modalities=modalities)
    made = {name for need in PROCESSORS[processor].needs for name in (need,) if name in ("text", "image", "audio")}
    for row in SyntheticFeed(spec, 3).open():
        sample = process(spec, row, 0, TOKENS)
        assert sample["synthetic"] is True and made <= set(sample["modalities"])


def test_columns_of_a_function_are_made_by_their_roles() -> None:
    spec = DatasetSpec(
        name="mine",
        path="me/mine",
        columns={"image": "scan", "remark": "note"},
        processor=lambda *given: dict(given[1]),
    )
    row = SyntheticFeed(spec, 1).get(0)
    assert row["scan"].size == (64, 64) and isinstance(row["note"], str)


def test_nothing_can_be_made_up_for_a_function_that_names_no_columns() -> None:
    with pytest.raises(ConfigError, match=r"columns=.*fallback"):
        SyntheticFeed(DatasetSpec(name="mine", path="me/mine", processor=lambda *given: {}), 5)


@given(st.integers(0, 2**40), st.integers(1, 30), st.data())
@settings(max_examples=40, deadline=None)
def test_rows_are_numbered_and_the_same_however_they_are_read(seed: int, size: int, data: Any) -> None:
    feed = SyntheticFeed(QA, size, seed)
    rows = list(feed.open())
    assert len(rows) == feed.length == size
    position = data.draw(st.integers(0, size))
    reading = feed.open(position)
    assert reading.position == position
    rest = list(reading)
    assert rest == rows[position:] and reading.position == size
    assert [pickle.loads(pickle.dumps(feed)).get(index) for index in range(size)] == rows


def test_seeds_datasets_and_numbers_make_different_rows() -> None:
    text = {str(SyntheticFeed(QA, 9, seed).get(index)) for seed in (1, 2) for index in range(9)}
    other = DatasetSpec(name="other", path="x/y", columns=QA.columns, processor="qa")
    assert len(text | {str(SyntheticFeed(other, 9, 1).get(0))}) == 19


def test_rows_of_a_seed_are_those_of_every_version() -> None:
    """Written down: a change of these is a change of everybody's synthetic data."""
    spec = DatasetSpec(name="mine", path="x/y", columns={"text": "text", "label": "label"}, processor="classification")
    assert SyntheticFeed(spec, 2, 7).get(1) == {"text": ROW_TEXT, "label": ROW_LABEL, SYNTHETIC: True}


ROW_TEXT, ROW_LABEL = "Candle summer island river timber marble walnut planet bridge walnut oak.", 0


def test_media_are_as_the_config_has_them() -> None:
    spec = DatasetSpec(
        name="mine", path="x/y", columns={"image": "image", "audio": "audio"}, modalities=("image", "audio"),
        processor="multimodal",
    )  # fmt: skip
    row = SyntheticFeed(spec, 1, config={"image_size": (20, 30), "sampling_rate": 100}).get(0)
    assert row["image"].size == (30, 20) and row["image"].mode == "RGB"
    assert row["audio"]["sampling_rate"] == 100 and 10 <= len(row["audio"]["array"]) <= 50
    assert row["audio"]["array"].dtype == np.float32 and np.abs(row["audio"]["array"]).max() <= 1
    assert SyntheticFeed(spec, 1, config=SimpleNamespace(image_size=8)).get(0)["image"].size == (8, 8)
    assert SyntheticFeed(spec, 1, config=SimpleNamespace(image_size=None)).get(0)["audio"]["sampling_rate"] == 16000


def test_all_of_a_recording_and_an_image_follow_the_seed() -> None:
    spec = next(row for row in ROWS if row.name == "luma")
    assert plain(SyntheticFeed(spec, 3, 5).get(2)) == plain(SyntheticFeed(spec, 9, 5).get(2))
    assert plain(SyntheticFeed(spec, 3, 5).get(2)) != plain(SyntheticFeed(spec, 3, 6).get(2))


@pytest.mark.parametrize(
    "config",
    [{"image_size": 0}, {"image_size": "big"}, {"image_size": (1, 2, 3)}, {"sampling_rate": 0}, {"sampling_rate": 1.5}],
)
def test_a_config_that_cannot_be_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"config.{next(iter(config))}"):
        SyntheticFeed(QA, 5, config=config)


@pytest.mark.parametrize(("size", "seed"), [(0, 1), (-1, 1), (1.5, 1), (5, -1), (5, "x")])
def test_a_size_or_seed_that_cannot_be_is_refused(size: Any, seed: Any) -> None:
    with pytest.raises(ConfigError):
        SyntheticFeed(QA, size, seed)


@given(st.integers(1, 40), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
@settings(max_examples=40, deadline=None)
def test_shares_of_shares_are_every_row_once(size: int, counts: list[int], data: Any) -> None:
    whole = SyntheticFeed(QA, size)
    parts = [whole]
    for count in counts:
        parts = [part.share(index, count) for part in parts for index in range(count)]
    found = [str(row) for part in parts for row in part.open()]
    assert sorted(found) == sorted(str(row) for row in whole.open())
    assert [len(list(part.open())) for part in parts] == [part.length for part in parts]
    assert len({part.identity for part in parts}) == len(parts)


def test_the_identity_is_that_of_the_rows() -> None:
    feed = SyntheticFeed(QA, 5, 1)
    assert feed.identity == SyntheticFeed(QA, 5, 1).identity == pickle.loads(pickle.dumps(feed)).identity
    others = (
        SyntheticFeed(QA, 6, 1),
        SyntheticFeed(QA, 5, 2),
        SyntheticFeed(ROWS[0], 5, 1),
        SyntheticFeed(QA, 5, 1, {"sampling_rate": 9}),
    )
    assert len({feed.identity, *(other.identity for other in others)}) == 5


@pytest.mark.parametrize("index", [5, 6, -1, 10**9])
def test_there_is_nothing_beyond_the_end(index: int) -> None:
    feed = SyntheticFeed(QA, 5)
    with pytest.raises(ItemIndexError, match="of 5"):
        feed.get(index)
    assert feed.open(max(index, 5)).take(3) == []


def test_a_mark_is_a_position_and_readings_end_when_closed() -> None:
    feed = SyntheticFeed(QA, 5)
    reading = feed.open()
    first = reading.take(2)
    mark = reading.mark()
    assert mark is not None and mark.position == 2
    assert first + list(feed.open(mark.position, mark)) == list(feed.open())
    reading.close()
    reading.close()
    assert list(reading) == []


def test_a_closed_feed_is_closed() -> None:
    feed = SyntheticFeed(QA, 5)
    feed.close()
    with pytest.raises(ClosedError):
        feed.open()
    with pytest.raises(ClosedError):
        feed.get(0)
