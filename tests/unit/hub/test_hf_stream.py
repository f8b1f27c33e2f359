"""`HFStream`: what iterating over a `datasets.IterableDataset` gives, from any sample on, whatever the pipeline."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

datasets = pytest.importorskip("datasets")

from support.hf_pipelines import (  # noqa: E402
    check_resume,
    double,
    leaves,
    mark_of,
    pipeline,
    read,
    rows,
    shown,
    steps,
    third,
)  # fmt: skip

from lazystore.errors import ConfigError, MissingExtraError  # noqa: E402
from lazystore.hub import hf_stream  # noqa: E402
from lazystore.hub.feed import Mark  # noqa: E402
from lazystore.hub.hf_identity import UNSEEDED  # noqa: E402
from lazystore.hub.hf_stream import HFStream  # noqa: E402
from lazystore.hub.sources import feed_of  # noqa: E402

#: Interleaving starts threads and sleeps when it is closed: at fewer positions.
SLOW = frozenset({"interleave", "weighted", "map_async", "shuffle"})


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    """Event loops that a test made: the library leaves those of its own iterations open."""
    made: list[asyncio.AbstractEventLoop] = []
    make = asyncio.new_event_loop

    def noted() -> asyncio.AbstractEventLoop:
        made.append(make())
        return made[-1]

    monkeypatch.setattr(asyncio, "new_event_loop", noted)
    yield made
    for loop in made:
        if not (loop.is_closed() or loop.is_running()):
            if tasks := asyncio.all_tasks(loop):
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.close()


def wanted(*case: str) -> list[str]:
    try:
        return [shown(sample) for sample in pipeline(*case)]
    except Exception as error:  # noqa: BLE001 - whatever this version of the library cannot do
        pytest.skip(f"datasets {datasets.__version__}: {type(error).__name__}: {error}")


@pytest.mark.parametrize("step", ["", *steps()])
@pytest.mark.parametrize("leaf", list(leaves()))
def test_a_pass_goes_on_exactly_at_any_sample_over_every_kind_of_node(leaf: str, step: str) -> None:
    case = (leaf, step) if step else (leaf,)
    want = wanted(*case)
    rng = random.Random(f"{leaf} {step}")
    check_resume(HFStream(pipeline(*case)), want, [rng.randint(0, len(want))], rng)


@pytest.mark.parametrize("step", ["", *steps()])
def test_with_older_versions_it_does_so_too(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_stream, "STATES_SINCE", (999, 0))  # whose states are not exact
    case = ("tables", step) if step else ("tables",)
    want = wanted(*case)
    positions = [len(want) // 2] if step in SLOW else [len(want) // 4, len(want) // 2, len(want) * 3 // 4]
    check_resume(HFStream(pipeline(*case)), want, positions, random.Random(step))


@pytest.mark.parametrize("seed", range(20))
def test_a_pass_goes_on_exactly_over_chains_of_nodes(seed: int) -> None:
    rng = random.Random(seed)
    case = (rng.choice(list(leaves())), *rng.choices(sorted(set(steps()) - SLOW), k=rng.choice((2, 2, 3))))
    want = wanted(*case)
    check_resume(HFStream(pipeline(*case)), want, [rng.randint(0, len(want))], rng)


@pytest.mark.parametrize("case", [("table", "map", "filter"), ("tables", "rename", "numpy"), ("rows", "filter", "map")])
def test_with_older_versions_marks_are_at_files(case: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_stream, "STATES_SINCE", (999, 0))
    want = wanted(*case)
    rng = random.Random(1)
    assert check_resume(HFStream(pipeline(*case)), want, list(range(len(want) + 1)), rng) > 0


def test_a_mark_in_a_later_file_spares_the_files_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_stream, "STATES_SINCE", (999, 0))
    opened: list[int] = []

    def noted(files: list[int]) -> Iterator[dict[str, Any]]:
        opened.extend(files)
        yield from rows(files)

    feed = HFStream(datasets.IterableDataset.from_generator(noted, gen_kwargs={"files": [14, 35, 43]}))
    reading = feed.open()
    read(reading, 6)
    mark = reading.mark()
    assert mark is not None and mark.position == 4
    opened.clear()
    assert read(feed.open(6, mark)) == [shown(sample) for sample in rows([14, 35, 43])][6:]
    assert opened == [35, 43]


def test_a_mark_spares_the_functions_of_the_pipeline() -> None:
    called: list[int] = []

    def noted(sample: dict[str, Any]) -> dict[str, Any]:
        called.append(sample["a"])
        return sample

    feed = HFStream(pipeline("table").map(noted))
    reading = feed.open()
    read(reading, 15)
    mark = mark_of(reading)
    assert mark is not None
    called.clear()
    read(feed.open(15, mark))
    assert called == list(range(mark.position, 23))
    assert mark.position == 15 or tuple(map(int, datasets.__version__.split(".")[:2])) < hf_stream.STATES_SINCE


def test_what_a_shuffle_buffer_held_is_neither_lost_nor_repeated() -> None:
    dataset = pipeline("table").shuffle(seed=3, buffer_size=9)
    want = [shown(sample) for sample in dataset]
    feed = HFStream(dataset)
    reading = feed.open()
    head = read(reading, 8)
    assert reading.mark() is None
    assert head + read(feed.open(8)) == want
    assert sorted(head + read(feed.open(8))) == sorted(map(shown, pipeline("table")))


def test_a_mark_of_another_epoch_or_version_or_of_nothing_known_is_not_trusted() -> None:
    feed = HFStream(pipeline("table", "map"))
    want = read(feed.open())
    reading = feed.open()
    read(reading, 9)
    mark = reading.mark()
    assert mark is not None
    for other in ({"epoch": 1}, {"datasets": "1.0.0"}):
        assert read(feed.open(9, Mark(mark.position, {**mark.state, **other}))) == want[9:]
    assert read(feed.open(9, Mark(7, {"way": "elsewhere"}))) == want[9:]
    assert read(feed.open(9, Mark(7, None))) == want[9:]
    assert read(feed.open(2, mark)) == want[2:]  # behind it: from the beginning


@pytest.mark.parametrize("since", [hf_stream.STATES_SINCE, (999, 0)])
def test_a_mark_is_of_its_epoch_only(since: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_stream, "STATES_SINCE", since)
    feed = HFStream(pipeline("tables"))  # whose files have another order in every epoch, since version 5
    reading = feed.open()
    read(reading, 9)
    mark = reading.mark()
    assert mark is not None
    feed.set_epoch(2)
    assert read(feed.open(9, mark)) == read(feed.open())[9:]
    feed.set_epoch(0)
    assert read(feed.open(9, mark)) == read(feed.open())[9:]


def test_a_finished_a_failed_and_a_closed_reading_give_no_mark() -> None:
    feed = HFStream(pipeline("table"))
    reading = feed.open()
    assert reading.mark() is None
    read(reading)
    assert reading.mark() is None
    other = feed.open()
    read(other, 3)
    assert other.mark() is not None
    other.close()
    assert other.mark() is None
    assert list(other) == []
    other.close()


@pytest.mark.parametrize("case", [("tables", "filter", "map_batched", "take"), ("rows", "map"), ("table", "numpy")])
def test_readings_touch_neither_each_other_nor_the_dataset_that_was_given(case: tuple[str, ...]) -> None:
    dataset = pipeline(*case)
    want = [shown(sample) for sample in dataset]
    feed = HFStream(dataset)
    users = iter(dataset)
    got = [shown(next(users))]
    one, two = feed.open(), feed.open(2)
    assert read(one, 2) == want[:2]
    assert read(two, 3) == want[2:5]
    mark = one.mark()
    assert mark is None or read(feed.open(2, mark)) == want[2:]
    got += [shown(next(users))]
    state = dataset.state_dict()
    assert read(one) == want[2:]
    assert read(two) == want[5:]
    assert dataset.state_dict() == state
    other = pipeline(*case)
    list(other)
    again = iter(other)
    next(again), next(again)
    assert other.state_dict() == state  # as if nobody else had read it
    assert got + [shown(sample) for sample in users] == want
    dataset.set_epoch(3)
    assert read(feed.open()) == want
    assert dataset.epoch == 3 and feed.epoch == 0


def test_epochs_shuffle_as_the_library_does() -> None:
    dataset = pipeline("table").shuffle(seed=3, buffer_size=9)
    feed = HFStream(dataset)
    before = feed.identity
    assert feed.set_epoch(2)
    assert not feed.set_epoch(2)
    again = pipeline("table").shuffle(seed=3, buffer_size=9)
    again.set_epoch(2)
    assert read(feed.open()) == [shown(sample) for sample in again]
    assert read(feed.open(7)) == [shown(sample) for sample in again][7:]
    assert feed.identity == before
    assert HFStream(again).epoch == 2


@pytest.mark.parametrize("kind", [None, "numpy", "torch", "arrow"])
def test_samples_have_the_format_that_was_asked_for(kind: str | None) -> None:
    if kind == "torch":
        pytest.importorskip("torch")
    dataset = pipeline("table").with_format(kind)
    sample, same = next(feed_of(dataset).open()), next(iter(dataset))
    assert type(sample) is type(same)
    assert type(sample["a"]) is type(same["a"])
    assert shown(sample) == shown(same)


def test_a_reading_is_the_whole_pass_in_a_loaders_worker_too(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_data = pytest.importorskip("torch.utils.data")
    want = [shown(sample) for sample in pipeline("table", "map")]
    feed = HFStream(pipeline("table", "map"))
    info = torch_data._utils.worker.WorkerInfo(id=1, num_workers=2, seed=0, dataset=None)
    monkeypatch.setattr(torch_data._utils.worker, "_worker_info", info)
    assert len(list(pipeline("table", "map"))) < len(want)
    assert read(feed.open()) == want


def test_an_error_of_the_source_comes_at_its_position_and_the_pass_can_go_on_after_it() -> None:
    broken = [True]

    def make() -> Iterator[dict[str, Any]]:
        for i in range(9):
            if i == 5 and broken[0]:
                raise OSError("gone")
            yield {"a": i}

    feed = HFStream(datasets.IterableDataset.from_generator(make).map(double))
    reading = feed.open()
    assert [sample["a"] for sample in reading.take(3)] == [0, 1, 2]
    assert [sample["a"] for sample in reading.take(9)] == [3, 4]
    assert reading.position == 5
    with pytest.raises(OSError, match="gone"):
        reading.take(9)
    broken[0] = False
    assert [sample["b"] for sample in feed.open(5)] == [10, 12, 14, 16]


def test_async_functions_leave_nothing_under_way(loops: list[asyncio.AbstractEventLoop]) -> None:
    wanted("table", "map_async")
    before = len(loops)
    reading = HFStream(pipeline("table", "map_async")).open()
    assert len(reading.take(2)) == 2
    assert len(loops) > before and not loops[-1].is_closed()
    reading.close()
    assert all(loop.is_closed() for loop in loops[before:])


# -- identity -----------------------------------------------------------------------------


def test_equal_pipelines_have_one_identity_and_others_another() -> None:
    def builds() -> list[Any]:
        table, rows_ = pipeline("table"), pipeline("rows")
        return [
            table, rows_, table.map(double), table.filter(third), table.map(lambda s: {"b": 1}),
            table.map(lambda s: {"b": 2}), table.take(3), table.take(4), table.skip(3), table.shuffle(seed=1),
            table.shuffle(seed=2), table.shuffle(seed=1, buffer_size=7), table.with_format("numpy"),
            table.select_columns(["a"]), datasets.concatenate_datasets([table, table]), table.batch(2), table.batch(3),
            datasets.IterableDataset.from_generator(rows, gen_kwargs={"files": [14]}),
            datasets.distributed.split_dataset_by_node(table, 0, 2), table.filter(_above(3)), table.filter(_above(4)),
        ]  # fmt: skip

    first = [HFStream(dataset).identity for dataset in builds()]
    assert first == [HFStream(dataset).identity for dataset in builds()]
    assert len(set(first)) == len(first)
    assert not any(one.endswith(UNSEEDED) for one in first)


def _above(limit: int) -> Any:
    return lambda sample: sample["a"] > limit


def test_a_shuffle_without_a_seed_is_exact_here_and_no_other_process_is_taken_for_it() -> None:
    dataset = pipeline("table").shuffle(buffer_size=5)
    feed = HFStream(dataset)
    assert feed.identity.endswith(UNSEEDED)
    assert HFStream(dataset).identity == feed.identity
    assert HFStream(pipeline("table").shuffle(buffer_size=5)).identity != feed.identity
    assert read(feed.open())[3:] == read(HFStream(dataset).open(3))


def test_reading_does_not_change_the_identity() -> None:
    dataset = pipeline("rows", "map", "shuffle")
    feed, later = HFStream(dataset), HFStream(dataset)
    before = feed.identity
    list(dataset)
    read(later.open(), 3)
    assert later.identity == before == HFStream(dataset).identity


# -- parts --------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [(), ("map",), ("filter",), ("map_batched", "select"), ("shuffle",), ("numpy",)])
@pytest.mark.parametrize("count", [2, 3])
def test_parts_have_every_sample_once(case: tuple[str, ...], count: int) -> None:
    feed = HFStream(pipeline("rows", *case))
    parts = [feed.share(index, count) for index in range(count)]
    if not hasattr(pipeline("rows"), "shard"):
        pytest.skip("this version cannot shard")
    got = [read(part.open()) for part in parts if part is not None]
    assert len(got) == count
    assert sorted(itertools.chain(*got)) == sorted(read(feed.open()))
    assert len({part.identity for part in parts if part is not None}) == count


@pytest.mark.parametrize("case", [("take",), ("skip",), ("map_numbered",), ("node",), ("beside",), ("interleave",)])
def test_what_would_have_other_samples_in_parts_is_not_divided(case: tuple[str, ...]) -> None:
    assert HFStream(pipeline("rows", *case)).share(0, 2) is None


def test_more_readers_than_files_are_no_parts() -> None:
    assert HFStream(pipeline("rows")).share(0, 99) is None


def test_a_part_of_a_rank_says_so() -> None:
    assert HFStream(pipeline("rows", "node")).divided
    assert not HFStream(pipeline("rows")).divided


def test_several_splits_are_no_source() -> None:
    with pytest.raises(ConfigError, match="'train', 'test'"):
        feed_of(datasets.IterableDatasetDict({"train": pipeline("table"), "test": pipeline("table")}))


def test_what_was_divided_among_ranks_already_is_not_divided_again(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from datasets.distributed import split_dataset_by_node

    from lazystore.hub import StreamingDatasetWrapper

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole = datasets.Dataset.from_dict({"n": range(40)}).to_iterable_dataset(num_shards=4)
    part = split_dataset_by_node(whole, rank=1, world_size=2)
    with StreamingDatasetWrapper(part) as wrapper, StreamingDatasetWrapper(whole) as other:
        found = [sample["n"] for sample in wrapper]
        assert found == [sample["n"] for sample in part] and len(found) == 20
        assert len(wrapper) == 20  # known since the pass has ended
        assert len(list(other)) == 20


def test_a_reading_does_not_sleep_where_it_ends_and_the_users_own_pipeline_stays_as_it_is(
    published: Callable[[str], str],
) -> None:
    import datasets

    shuffled = datasets.load_dataset(published("text"), split="train", streaming=True).shuffle(seed=1, buffer_size=5)
    sleeps = bool(getattr(shuffled._ex_iterable, "sleep_on_threads_shutdown", False))
    own = hf_stream._twin(shuffled, 0)
    assert not getattr(own._ex_iterable, "sleep_on_threads_shutdown", False)
    assert len(list(HFStream(shuffled).open())) == 100
    assert bool(getattr(shuffled._ex_iterable, "sleep_on_threads_shutdown", False)) == sleeps


async def same(sample: dict[str, Any]) -> dict[str, Any]:
    return sample


def broken() -> Iterator[dict[str, Any]]:
    raise ConnectionError("gone")
    yield {"id": 0}


def test_what_went_wrong_before_an_async_function_is_told_in_threads_too() -> None:
    feed = HFStream(datasets.IterableDataset.from_generator(broken).map(same))
    caught: list[BaseException] = []

    def work() -> None:
        reading = feed.open()
        try:
            next(reading)
        except Exception as error:  # noqa: BLE001 - to be looked at
            caught.append(error)
        finally:
            reading.close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [(type(error), str(error)) for error in caught] == [(ConnectionError, "gone")]


def without_a_package() -> Iterator[dict[str, Any]]:
    raise ImportError("To support decoding audio data, please install 'torchcodec'.")
    yield {"id": 0}


def test_a_package_that_datasets_lacks_is_named_with_the_line_that_installs_it() -> None:
    reading = HFStream(datasets.IterableDataset.from_generator(without_a_package)).open()
    with pytest.raises(MissingExtraError, match="pip install torchcodec"):
        next(reading)
    reading.close()
