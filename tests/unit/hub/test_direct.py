"""A hub dataset of Parquet files read by our own reader: the samples that `datasets` streams, in few requests."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
from support import hub_samples

from lazystore.errors import (
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    HubAccessError,
    SampleError,
)
from lazystore.hub.direct import CONVERTED, NotDirect, open_direct
from lazystore.streaming.dataset import StreamingDataset
from lazystore.testing import Faults, LocalHub, dependent_waves

Published = Callable[[str], str]
MEMORY = "16MB"


def streamed(name: str, config: str | None = None, split: str = "train", **options: Any) -> list[Any]:
    """What `datasets` streams."""
    import datasets

    return list(datasets.load_dataset(name, config, split=split, streaming=True, **options))


def read(name: str, **options: Any) -> list[Any]:
    with open_direct(name, memory=MEMORY, **options) as dataset:
        return list(dataset)


# -- the same samples --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "options"),
    [
        ("text", {}),
        ("text", {"split": "validation"}),
        ("text", {"columns": ["label", "text"]}),
        ("carded", {}),
        ("carded", {"config": "first"}),
        ("carded", {"config": "first", "split": "test"}),
        ("carded", {"config": "first", "columns": ["score"]}),
        ("types", {}),
        ("wide", {"columns": ["column_3", "column_11"]}),
        ("wide", {"split": "test"}),
        ("folders", {}),
        ("unsplit", {}),
        ("images", {}),
        ("images", {"columns": ["label"]}),
        ("featured", {"columns": ["label", "tags", "text"]}),
    ],
    ids=str,
)
def test_samples_are_those_that_datasets_streams(published: Published, sample: str, options: dict[str, Any]) -> None:
    name = published(sample)
    rows = read(name, **options)
    assert rows == streamed(name, **options)
    assert rows


def test_cells_have_the_types_that_datasets_gives(published: Published) -> None:
    name = published("types")
    for mine, theirs in zip(read(name), streamed(name), strict=True):
        assert {key: type(value) for key, value in mine.items()} == {key: type(theirs[key]) for key in mine}


def test_nanoseconds_are_kept(hub: LocalHub) -> None:
    import pyarrow as pa

    moment, span = 1_709_209_815_123_456_789, 123_456_789
    table = pa.table(
        {
            "at": pa.array([moment, None], pa.timestamp("ns")),
            "zoned": pa.array([moment, None], pa.timestamp("ns", "UTC")),
            "spans": pa.array([[span], []], pa.list_(pa.duration("ns"))),
            "nested": pa.array([{"at": moment}, None], pa.struct([("at", pa.timestamp("ns"))])),
        }
    )
    hub.add("t/nanos", {"data/train.parquet": hub_samples.parquet(table)})
    (mine, nulls), theirs = read("t/nanos"), streamed("t/nanos")
    assert [mine, nulls] == theirs
    assert (mine["at"].value, mine["spans"][0].value, mine["nested"]["at"].value) == (moment, span, moment)
    assert {key: type(value) for key, value in mine.items()} == {key: type(theirs[0][key]) for key in mine}


def test_files_that_differ_in_ways_that_do_not_show_are_read(hub: LocalHub) -> None:
    import pyarrow as pa

    one = pa.table({"a": pa.array([1, 2], pa.int64()), "b": pa.array(["x", "y"], pa.string())})
    other = pa.table({"b": pa.array(["z"], pa.large_string()), "a": pa.array([3], pa.int16())})
    hub.add("t/kin", {"train-0.parquet": hub_samples.parquet(one), "train-1.parquet": hub_samples.parquet(other)})
    assert read("t/kin") == streamed("t/kin")


def test_infos_that_older_versions_wrote_beside_the_files(hub: LocalHub) -> None:
    import json

    import pyarrow as pa

    features = {"n": hub_samples.value("int64"), "picture": {"_type": "Image", "decode": True, "id": None}}
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table(
        {"n": [1, 2], "picture": pa.array([{"bytes": hub_samples.image(i), "path": None} for i in (1, 2)], kind)}
    )
    two = {"default": {"features": features}, "other": {"features": {}}}
    for infos, config in (({"t--old": {"features": features}}, None), (two, "default")):
        files = {"dataset_infos.json": json.dumps(infos).encode(), "data/train.parquet": hub_samples.parquet(table)}
        hub.add("t/old", files)
        rows = read("t/old", config=config)
        assert rows == streamed("t/old", config)
        assert rows[1]["picture"].size == (10, 6)
    assert read("t/old") == streamed("t/old")  # which of two is meant is not told: neither
    hub.add("t/old", files | {"dataset_infos.json": b"[1]"})
    with pytest.raises(NotDirect, match="no mapping of infos"):
        open_direct("t/old", memory=MEMORY)


def test_sounds_come_as_arrays(published: Published) -> None:
    import numpy as np

    rows = read(published("audio"))
    assert [row["audio"]["sampling_rate"] for row in rows] == [hub_samples.RATE] * 5
    assert [row["audio"]["path"] for row in rows] == [f"{i}.wav" for i in range(5)]
    for i, row in enumerate(rows):
        tone = np.sin(2 * np.pi * (220 + 20 * i) * np.arange(100 + i) / hub_samples.RATE) * 20_000 / 32_768
        assert row["audio"]["array"].dtype == np.float32
        np.testing.assert_allclose(row["audio"]["array"], tone, atol=1e-4)


def test_converted_branches_have_a_config_a_folder(published: Published) -> None:
    name = published("converted")
    assert read(name, revision=CONVERTED) == hub_samples.rows(10)
    assert read(name, revision=CONVERTED, split="test") == hub_samples.rows(5, 10)
    assert read(name, revision=CONVERTED, config="other") == hub_samples.rows(5, 50)
    with pytest.raises(ConfigError, match=r"'default', 'other' \(did you mean 'other'"):
        open_direct(name, revision=CONVERTED, config="othr")


def test_random_access_and_length(published: Published) -> None:
    with open_direct(published("text"), memory=MEMORY) as dataset:
        assert isinstance(dataset, StreamingDataset)
        assert len(dataset) == 100
        assert [dataset[i]["id"] for i in (99, 0, -1, 57)] == [99, 0, 99, 57]


def test_a_pickled_one_reads_the_same_without_asking_what_there_is(hub: LocalHub, published: Published) -> None:
    with open_direct(published("images"), memory=MEMORY) as dataset:
        expected = list(dataset)
        frozen = pickle.dumps(dataset)
    hub.reset()
    with pickle.loads(frozen) as again:
        assert list(again) == expected
    assert "info" not in hub.traffic()["kinds"]


def test_images_pass_through_batches_of_lists(published: Published) -> None:
    with open_direct(published("images"), memory=MEMORY) as dataset:
        batches = [row for batch in dataset.batches(3, "list") for row in batch]
        assert batches == list(dataset)


# -- few requests ------------------------------------------------------------------------------


def test_first_sample_comes_in_four_round_trips(hub: LocalHub) -> None:
    import random

    import pyarrow as pa

    noise = random.Random(1)
    table = pa.table({"text": [noise.randbytes(400).hex() for _ in range(2000)]})
    files = {f"data/train-{i:05d}-of-00003.parquet": hub_samples.parquet(table, group=500) for i in range(3)}
    hub.add("t/long", files)
    hub.set(latency_ms=100)
    hub.reset()
    with open_direct("t/long", memory=MEMORY) as dataset:
        assert next(iter(dataset)) == {"text": table["text"][0].as_py()}
        found = hub.traffic()
    answered = [request for request in found["log"] if request["finished"] is not None]
    assert dependent_waves(answered) == 4  # the hub, the redirect, the footer, the pages
    assert (found["kinds"]["info"], found["kinds"]["resolve"]) == (1, 3)
    assert not {"tree", "paths", "other"} & set(found["kinds"])


def test_row_groups_are_fetched_ahead(hub: LocalHub) -> None:
    import random

    import pyarrow as pa

    noise = random.Random(2)
    rows = [{"data": noise.randbytes(4000)} for _ in range(2400)]
    hub.add("t/groups", {"train.parquet": hub_samples.parquet(pa.Table.from_pylist(rows), group=200)})  # 12 of 800 KB
    hub.set(latency_ms=60)
    hub.reset()
    with open_direct("t/groups", memory="64MB") as dataset:
        assert list(dataset) == rows
    found = hub.traffic()
    assert dependent_waves(found["log"]) <= 9  # three for the footer; the more are begun, the longer one reads on
    assert found["bytes"] < 11_000_000  # nothing is fetched twice


def test_columns_of_large_row_groups_are_fetched_together(hub: LocalHub) -> None:
    import random

    import pyarrow as pa

    noise = random.Random(3)
    table = pa.table(
        {"id": list(range(4000)), "short": [noise.randbytes(30) for _ in range(4000)],
         "long": [noise.randbytes(1500) for _ in range(4000)]}
    )  # fmt: skip
    hub.add("t/large", {"train.parquet": hub_samples.parquet(table, group=4000)})  # 6.1 MB, 2.5 at a time
    hub.set(latency_ms=60)
    hub.reset()
    with open_direct("t/large", memory="20MB") as dataset:
        assert list(dataset) == table.to_pylist()
    assert dependent_waves(hub.traffic()["log"]) <= 12


def test_small_files_come_whole_in_three_round_trips(hub: LocalHub, published: Published) -> None:
    name = published("text")
    hub.set(latency_ms=50)
    hub.reset()
    rows = read(name)
    found = hub.traffic()
    assert rows == hub_samples.rows(100)
    assert dependent_waves(found["log"]) == 3
    assert found["kinds"] == {"info": 1, "resolve": 3, "cdn": 3}


def test_columns_that_are_not_wanted_are_not_fetched(hub: LocalHub) -> None:
    import random

    import pyarrow as pa

    noise = random.Random(1)
    wide = {f"c{c}": [noise.randbytes(600) for _ in range(400)] for c in range(8)}
    hub.add("t/noise", {"train.parquet": hub_samples.parquet(pa.table(wide), group=100)})
    hub.reset()
    assert len(read("t/noise", columns=["c5"])) == 400
    assert hub.traffic()["bytes"] < 700_000  # of 1.9 MB


def test_links_that_run_out_in_the_middle_are_asked_for_again(hub: LocalHub) -> None:
    import pyarrow as pa

    rows = [{"id": i, "text": f"{i * i:0300d}"} for i in range(30_000)]
    packed = hub_samples.parquet(pa.Table.from_pylist(rows), group=1000, compression="none", use_dictionary=False)
    hub.add("t/links", {"train.parquet": packed})
    with open_direct("t/links", memory="4MB") as dataset:
        found = iter(dataset)
        first = next(found)
        hub.reset()
        hub.expire_links()
        assert [first, *found] == rows
    assert hub.traffic()["statuses"]["403"] > 0
    assert hub.traffic()["kinds"]["resolve"] > 0


def test_a_revision_is_one_commit_to_the_end(hub: LocalHub) -> None:
    def files(begin: int) -> dict[str, bytes]:
        return {"train.parquet": hub_samples.parquet(hub_samples.rows(40, begin))}

    old = hub.add("t/moving", files(0))
    with open_direct("t/moving", memory=MEMORY) as dataset:
        hub.add("t/moving", files(1000))
        assert list(dataset) == hub_samples.rows(40)
    assert read("t/moving") == hub_samples.rows(40, 1000)
    assert read("t/moving", revision=old) == hub_samples.rows(40)


def test_accidents_on_the_way_do_not_show(hub: LocalHub, published: Published) -> None:
    name = published("text")
    hub.set(faults=Faults(error_503=0.2, cut=0.2, seed=3))
    assert read(name) == hub_samples.rows(100)


# -- what is not for us ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ("json-lines", "not all Parquet"),
        ("csv", "not all Parquet"),
        ("image-folder", "not all Parquet"),
        ("image-captions", "not all Parquet"),
        ("audio-folder", "not all Parquet"),
        ("featured", "Array2D"),
        ("script", "made by a script"),
        ("empty", "no data files"),
        ("nothing", "no data files"),
    ],
)
def test_what_is_not_plain_parquet_says_so(published: Published, sample: str, reason: str) -> None:
    with pytest.raises(NotDirect, match=reason):
        open_direct(published(sample), memory=MEMORY)


def test_files_that_would_have_to_be_cast_are_refused(hub: LocalHub) -> None:
    import pyarrow as pa

    one, other = pa.table({"a": [1, 2]}), pa.table({"a": ["x"]})
    hub.add("t/cast", {"train-0.parquet": hub_samples.parquet(one), "train-1.parquet": hub_samples.parquet(other)})
    with pytest.raises(NotDirect, match=r"column 'a' of train-1\.parquet is string, not int64"):
        open_direct("t/cast", memory=MEMORY)
    told = "dataset_info:\n  features:\n  - name: a\n    dtype: string"
    hub.add("t/cast2", {"README.md": hub_samples.card(told), "train-0.parquet": hub_samples.parquet(one)})
    with pytest.raises(NotDirect, match="is int64, not string"):
        open_direct("t/cast2", memory=MEMORY)
    hub.add("t/more", {"train-0.parquet": hub_samples.parquet(one.append_column("b", [[1, 2]])),
                       "train-1.parquet": hub_samples.parquet(one)})  # fmt: skip
    with pytest.raises(NotDirect, match="has the columns"):
        open_direct("t/more", memory=MEMORY)


def test_folders_of_that_name_are_not_the_hub(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own" / "data").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotDirect, match="a folder here"):
        open_direct("own/data")


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "trian"}, r"no split 'trian', it has 'train', 'validation', 'test' \(did you mean 'train'"),
        ({"split": "train[:10%]"}, r"split='train\[:10%\]' must be one of 'train', 'val.*slicing"),
        ({"config": "nothing"}, "no config 'nothing', it has only one"),
        ({"columns": "text"}, "columns='text' must be a list of column names"),
        ({"columns": []}, r"columns=\[\] must be a list of column names"),
        ({"columns": ["txt"]}, r"no column 'txt', it has id, text, score, label \(did you mean 'text'"),
    ],
)
def test_names_that_are_not_there(published: Published, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        open_direct(published("text"), memory=MEMORY, **options)


def test_columns_that_a_card_does_not_have(hub: LocalHub, published: Published) -> None:
    name = published("carded")
    hub.reset()
    with pytest.raises(ConfigError, match=r"no column 'lable', it has id, text, score, label \(did you mean 'label'"):
        open_direct(name, config="first", columns=["lable"], memory=MEMORY)
    assert "resolve" not in hub.traffic()["kinds"]


def test_gated_datasets(hub: LocalHub, published: Published) -> None:
    name = published("gated")
    with pytest.raises(HubAccessError, match=r"refuses access to samples/gated.*log in"):
        open_direct(name, memory=MEMORY)
    hub.reset()
    assert read(name, token=hub_samples.READER) == hub_samples.rows(9)
    found = hub.traffic()
    assert found["kinds"]["resolve"] == 1
    assert set(found["statuses"]) <= {"200", "206", "302"}  # the CDN refuses whoever shows it the token


def test_token_of_the_environment(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    name = published("private")
    with pytest.raises(DatasetNotFoundError, match=r"or it is private.*token="):
        open_direct(name, memory=MEMORY)
    monkeypatch.setenv("HF_TOKEN", hub_samples.READER)
    assert read(name) == hub_samples.rows(9)
    with pytest.raises(DatasetNotFoundError):
        open_direct(name, token=False, memory=MEMORY)


def test_hub_that_goes_down_behind_its_description(hub: LocalHub, published: Published) -> None:
    name = published("text")
    hub.set(fail_after_requests=1)
    with pytest.raises(FetchError):
        open_direct(name, memory=MEMORY, timeout=5)
    hub.set()
    assert len(read(name)) == 100


def test_cells_that_are_no_images(hub: LocalHub) -> None:
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = [{"bytes": hub_samples.image(1), "path": None}, {"bytes": b"no image", "path": None}]
    table = pa.table({"picture": pa.array(cells, kind)})
    features = {"picture": {"_type": "Image"}}
    hub.add("t/broken", {"train.parquet": hub_samples.parquet(table, features=features)})
    with open_direct("t/broken", memory=MEMORY) as dataset:
        rows = iter(dataset)
        assert next(rows)["picture"].size == (9, 6)
        with pytest.raises(SampleError, match=r"t/broken: column 'picture'") as caught:
            next(rows)
        assert caught.value.dataset == "t/broken"
