"""Hub names: which way is taken, that all ways give the same samples, and what the hub's errors become."""

from __future__ import annotations

import pickle
import threading
import time
from typing import Any

import pytest
from support.hub import be_impatient
from support.hub_samples import READER, name_of, parquet, publish, rows

from lazystore.errors import (
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    HubAccessError,
    MissingExtraError,
    UnsupportedError,
)
from lazystore.hub.feed import Feed
from lazystore.hub.hf_stream import HFStream
from lazystore.hub.hf_table import HFTable
from lazystore.hub.hub_errors import translated
from lazystore.hub.hub_name import HubName, Section
from lazystore.hub.own_sources import DatasetFeed
from lazystore.hub.sources import fallback_of, feed_of
from lazystore.testing import LocalHub

MEMORY = 32 << 20
QUICK = {"memory": MEMORY, "timeout": 20.0}


def opened(name: str, **options: Any) -> Feed:
    return feed_of(name, **{**QUICK, **options})


def samples(feed: Feed, position: int = 0) -> list[Any]:
    reading = feed.open(position)
    try:
        return list(reading)
    finally:
        reading.close()


def test_plain_parquet_is_read_by_ourselves_and_the_rest_by_datasets(hub: LocalHub) -> None:
    publish(hub, "text")
    publish(hub, "json-lines")
    ours, theirs = opened(name_of("text")), opened(name_of("json-lines"))
    assert type(ours) is DatasetFeed and ours.keeps and ours.random and ours.length == 100
    assert ours.counters()["way"] == "lazystore"
    assert type(theirs) is HFStream and not theirs.keeps
    assert theirs.counters() == {"way": "datasets", "not_lazystore": theirs.counters()["not_lazystore"]}
    assert "jsonl" in theirs.counters()["not_lazystore"]
    ours.close()


def test_every_way_gives_the_same_samples_under_the_same_identity(hub: LocalHub) -> None:
    publish(hub, "text")
    feeds: list[Feed] = [opened(name_of("text"), columns=["text", "id"])]
    while (follower := fallback_of(feeds[-1])) is not None:
        feeds.append(follower)
    assert [type(feed) for feed in feeds] == [DatasetFeed, HFStream, HFTable]
    want = samples(feeds[0])
    assert len(want) == 100 and list(want[0]) == ["text", "id"]
    for feed in feeds:
        assert samples(feed) == want
        assert samples(feed, 97) == want[97:]
    assert len({feed.identity for feed in feeds}) == 1
    assert feeds[0].get(7) == feeds[2].get(7) == want[7]
    feeds[0].close()


def test_the_way_can_be_chosen(hub: LocalHub) -> None:
    publish(hub, "text")
    publish(hub, "json-lines")
    by_datasets = opened(name_of("text"), via="datasets")
    downloaded = opened(name_of("text"), streaming=False)
    direct = opened(name_of("text"), via="lazystore")
    assert (type(by_datasets), type(downloaded), type(direct)) == (HFStream, HFTable, DatasetFeed)
    assert samples(direct) == samples(by_datasets) == samples(downloaded)
    direct.close()
    with pytest.raises(ConfigError, match=r"via='lazystore'.*jsonl"):
        opened(name_of("json-lines"), via="lazystore")
    with pytest.raises(ConfigError, match="via="):
        opened(name_of("text"), via="elsewhere")
    with pytest.raises(ConfigError, match="streaming=False"):
        opened(name_of("text"), via="lazystore", streaming=False)


def test_who_takes_over_reads_the_commit_that_was_opened(hub: LocalHub) -> None:
    name = "feeds/moving"
    hub.add(name, {"train.parquet": parquet(rows(20))})
    feed = opened(name)
    want = samples(feed)
    hub.add(name, {"train.parquet": parquet(rows(20, first=1000))})
    follower = fallback_of(feed)
    assert follower is not None and follower.identity == feed.identity
    assert samples(follower) == want
    again = opened(name)
    assert again.identity != feed.identity
    assert samples(again) != want
    again.close()
    feed.close()


@pytest.mark.parametrize("count", [2, 3])
def test_parts_of_a_directly_read_split_have_every_sample_once_and_successors(hub: LocalHub, count: int) -> None:
    publish(hub, "text")
    whole = opened(name_of("text"))
    want = samples(whole)
    parts = [whole.share(index, count) for index in range(count)]
    assert sum((samples(part) for part in parts if part is not None), []) == want  # noqa: RUF017 - three of them
    part = parts[1]
    assert part is not None and part.length == len(samples(part))
    follower = fallback_of(part)
    assert type(follower) is Section
    assert samples(follower, 5) == samples(part, 5)
    assert follower.length == part.length
    last = fallback_of(follower)
    assert type(last) is Section and last.get(3) == samples(part)[3]
    assert samples(last, 3) == samples(part, 3)
    assert fallback_of(last) is None
    whole.close()


def test_a_part_goes_on_from_its_own_marks(hub: LocalHub) -> None:
    publish(hub, "text")
    stream = opened(name_of("text"), via="datasets")
    part = Section(stream, range(40, 90))
    want = samples(stream)[40:90]
    reading = part.open()
    assert reading.take(30) == want[:30]
    mark = reading.mark()
    reading.close()
    assert mark is None or mark.position <= 30
    assert part.open(30, mark).take(99) == want[30:]
    assert part.open(50).take(9) == []


def test_a_direct_split_is_read_whole_in_a_loaders_worker(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    publish(hub, "text")
    feed = opened(name_of("text"))
    want = samples(feed)
    info = torch_data._utils.worker.WorkerInfo(id=1, num_workers=2, seed=0, dataset=None)
    monkeypatch.setattr(torch_data._utils.worker, "_worker_info", info)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert samples(feed) == want
    monkeypatch.undo()
    feed.close()


WAYS = [{"via": "auto"}, {"via": "datasets"}, {"streaming": False}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("wrong", "error", "told"),
    [
        ({"split": "trian"}, ConfigError, r"no split 'trian'.*did you mean 'train'"),
        ({"columns": ["txt"]}, ConfigError, r"no column 'txt'.*did you mean 'text'"),
        ({"revision": "nope"}, DatasetNotFoundError, "nope"),
        ({"config": "nope"}, ConfigError, "no config 'nope'"),
    ],
)
def test_what_there_is_not_is_named_with_what_there_is(
    hub: LocalHub, way: dict[str, Any], wrong: dict[str, Any], error: type[Exception], told: str
) -> None:
    publish(hub, "text")
    with pytest.raises(error, match=told):
        opened(name_of("text"), **way, **wrong)


@pytest.mark.parametrize("way", WAYS)
def test_repositories_that_are_not_there_or_refuse_are_told_apart(hub: LocalHub, way: dict[str, Any]) -> None:
    publish(hub, "gated")
    publish(hub, "private")
    with pytest.raises(DatasetNotFoundError, match="samples/absent"):
        opened("samples/absent", **way)
    with pytest.raises(HubAccessError, match=r"refuses access.*log in"):
        opened(name_of("gated"), **way)
    with pytest.raises(DatasetNotFoundError, match="token"):
        opened(name_of("private"), **way)
    for name in ("gated", "private"):
        feed = opened(name_of(name), token=READER, **way)
        assert samples(feed)
        feed.close()


@pytest.mark.parametrize("name", ["a/b.parquet", "https://host/x", "s3://bucket/data", "lines.jsonl"])
def test_what_is_a_place_and_no_name_of_the_hub_is_sent_to_streaming_dataset(name: str) -> None:
    with pytest.raises(ConfigError, match="StreamingDataset"):
        opened(name)


@pytest.mark.parametrize("wrong", [{"split": ""}, {"split": None}, {"columns": "text"}])
def test_arguments_that_cannot_work_are_refused_before_the_hub_is_asked(hub: LocalHub, wrong: dict[str, Any]) -> None:
    hub.reset()
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        opened(name_of("text"), **wrong)
    assert hub.traffic()["requests"] == 0


def test_scripts_and_empty_repositories_say_what_to_do(hub: LocalHub) -> None:
    publish(hub, "script")
    publish(hub, "nothing")
    with pytest.raises(UnsupportedError, match="refs/convert/parquet"):
        opened(name_of("script"))
    with pytest.raises(DatasetNotFoundError, match="nothing to read"):
        opened(name_of("nothing"))


def test_a_script_s_converted_branch_is_read(hub: LocalHub) -> None:
    publish(hub, "converted")
    feed = opened(name_of("converted"), revision="refs/convert/parquet")
    assert samples(feed)
    feed.close()


@pytest.mark.parametrize("via", ["auto", "datasets"])
def test_a_hub_that_is_down_is_a_fetch_error_in_time(hub: LocalHub, via: str, monkeypatch: pytest.MonkeyPatch) -> None:
    be_impatient(monkeypatch)
    publish(hub, "csv")
    hub.set(down=True)
    try:
        with pytest.raises(FetchError, match=name_of("csv")):
            opened(name_of("csv"), via=via, timeout=1.0, retries=2)
    finally:
        hub.set(down=False)


def test_a_local_folder_is_read_by_datasets(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.csv").write_text("a,b\n1,x\n2,y\n")
    monkeypatch.chdir(tmp_path)
    feed = opened("folder")
    assert type(feed) is HFStream
    assert samples(feed) == [{"a": 1, "b": "x"}, {"a": 2, "b": "y"}]


class _Answer(Exception):
    """As the library's errors are: with the hub's answer."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.response = type("Response", (), {"status_code": status})()


@pytest.mark.parametrize(
    ("error", "attempts", "kind"),
    [
        (_Answer("busy", 503), 3, FetchError),
        (_Answer("slow down", 429), 3, FetchError),
        (_Answer("no", 403), 1, HubAccessError),
        (_Answer("bad", 400), 1, _Answer),
        (ConnectionError("reset"), 3, FetchError),
        (TimeoutError("late"), 3, FetchError),
        (ValueError("something else"), 1, ValueError),
        (KeyError("x"), 1, KeyError),
        (FileNotFoundError("no file"), 1, DatasetNotFoundError),
    ],
)
def test_only_what_may_pass_is_tried_again(error: Exception, attempts: int, kind: type[Exception]) -> None:
    tried: list[int] = []

    def load() -> None:
        tried.append(1)
        raise error

    with pytest.raises(kind) as caught:
        translated(load, HubName("org/name", None, "train", None, None, None, MEMORY, 60.0, retries=2))
    assert len(tried) == attempts
    assert caught.value is error or caught.value.__cause__ is error
    if kind is FetchError:
        assert caught.value.attempts == 3  # type: ignore[attr-defined]
        assert "org/name" in str(caught.value)


def test_without_the_package_the_line_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r'pip install "lazystore\[hf\]"'):
        opened("samples/text", via="datasets")


def test_names_pickle() -> None:
    name = HubName("org/name", None, "train", ("a",), None, None, MEMORY, 60.0, 3)
    assert pickle.loads(pickle.dumps(name)) == name


def test_a_way_that_does_not_open_is_passed_over(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, "text")
    feed = opened(name_of("text"))
    want, by_datasets = samples(feed), HubName._by_datasets

    def failing(self: HubName, way: Any, why: str) -> Feed:
        if way in broken:
            raise FetchError(f"{way} is down: https://host/a?Signature=secret")
        return by_datasets(self, way, why)

    monkeypatch.setattr(HubName, "_by_datasets", failing)
    broken = {"datasets"}
    follower = fallback_of(feed)
    assert isinstance(follower, HFTable)
    assert samples(follower) == want
    broken = {"datasets", "download"}
    with pytest.raises(FetchError, match="download is down"):
        fallback_of(feed)
    assert fallback_of(follower) is None
    feed.close()


def test_what_hangs_is_not_waited_for() -> None:
    hub = HubName("a/b", None, "train", None, None, None, MEMORY, timeout=0.2, retries=3)
    answered = threading.Event()
    try:
        with pytest.raises(FetchTimeoutError, match=r"a/b could not be opened by datasets within 0.2 s"):
            translated(lambda: answered.wait(60), hub)
        assert translated(lambda: time.sleep(0.4) or 5, hub, bounded=False) == 5
    finally:
        answered.set()


def test_a_way_that_cannot_be_opened_is_passed_by_whatever_it_raises(
    hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "text")
    feed = opened(name_of("text"))
    by_datasets = HubName._by_datasets

    def unable(self: HubName, way: Any, why: str) -> Feed:
        if way == "datasets":
            raise ValueError("no stream today")
        return by_datasets(self, way, why)

    monkeypatch.setattr(HubName, "_by_datasets", unable)
    assert type(fallback_of(feed)) is HFTable
    feed.close()
