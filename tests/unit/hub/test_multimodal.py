"""Datasets of a task as one stream: which samples come, in which order, by number, in threads and after a resume."""

from __future__ import annotations

import itertools
import json
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazystore.errors import ClosedError, ConfigError, FormatError, ItemIndexError
from lazystore.hub import registry
from lazystore.hub.multimodal import MultimodalDataset
from lazystore.hub.registry import DatasetSpec, register_dataset


def tokens(text: str) -> list[int]:
    return [ord(letter) for letter in text]


class Rows:
    """A stream of known rows; a picklable function that makes an iterator."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def __call__(self) -> Iterator[dict[str, Any]]:
        return ({"body": f"{self.name}{number}", "kind": number % 3} for number in range(self.count))


def listed(name: str, count: int) -> list[dict[str, Any]]:
    return list(Rows(name, count)())


COLUMNS = {"text": "body", "label": "kind"}


@pytest.fixture(autouse=True)
def datasets() -> Iterator[None]:
    """Datasets a, b and c of the task letters: 40 and 20 samples that can be read by number, 30 that are streamed."""
    known = dict(registry._known)
    register_dataset("a", listed("a", 40), columns=COLUMNS, task="letters")
    register_dataset("b", {"train": listed("b", 20), "test": listed("t", 5)}, columns=COLUMNS, task="letters")
    register_dataset("c", Rows("c", 30), columns=COLUMNS, task="streams")
    yield
    registry._known.clear()
    registry._known.update(known)


def made(*names: str, **options: Any) -> MultimodalDataset:
    options.setdefault("tokenizer", tokens)
    return MultimodalDataset(None, dataset_name=list(names), **options)


def texts(samples: Any) -> list[str]:
    return [sample["text"] for sample in samples]


def of(name: str, found: list[str]) -> list[str]:
    return [text for text in found if text.startswith(name)]


# -- samples --------------------------------------------------------------------------------


def test_a_sample_is_one_dict_with_what_it_has() -> None:
    with made("a", tokenizer=tokens, max_length=2) as dataset:
        sample = next(iter(dataset))
    assert (sample["task"], sample["dataset"], sample["modalities"]) == ("letters", "a", ("text",))
    assert (sample["text"], sample["labels"]) == ("a0", 0)
    assert sample["input_ids"].tolist() == [ord("a"), ord("0")]
    assert sample["attention_mask"].tolist() == [1, 1]
    assert not {"image", "audio", "synthetic", "error"} & set(sample)


def test_without_a_tokenizer_there_are_no_tokens() -> None:
    with made("a", tokenizer=None) as dataset:
        assert "input_ids" not in dataset[0]


def test_the_config_says_how_many_tokens_a_sample_has() -> None:
    with MultimodalDataset({"max_seq_length": 1}, tokens, dataset_name="a") as dataset:
        assert dataset[0]["input_ids"].tolist() == [ord("a")]
    with MultimodalDataset({"max_seq_length": 1}, tokens, dataset_name="a", max_length=5) as dataset:
        assert len(dataset[0]["input_ids"]) == 2


def test_process_sample_may_be_overridden() -> None:
    class Shouting(MultimodalDataset):
        def _process_sample(self, sample: Any, spec: DatasetSpec, index: int) -> dict[str, Any]:
            return {**super()._process_sample(sample, spec, index), "loud": sample["body"].upper(), "index": index}

    with Shouting(None, None, dataset_name="a") as dataset:
        assert [(one["loud"], one["index"]) for one in dataset][:2] == [("A0", 0), ("A1", 1)]


def test_a_transform_is_applied_last() -> None:
    with made("a", transform=lambda sample: sample["text"]) as dataset:
        assert next(iter(dataset)) == dataset[0] == "a0"


def test_one_dataset_comes_in_its_own_order() -> None:
    with made("a") as dataset, made("c") as stream:
        assert texts(dataset) == [f"a{number}" for number in range(40)]
        assert texts(stream) == [f"c{number}" for number in range(30)]


def test_all_datasets_of_a_task_come_interleaved_each_sample_once() -> None:
    with MultimodalDataset(None, None, dataset_name="all", task_type="letters") as dataset:
        found = texts(dataset)
        assert len(dataset) == len(found) == 60
    assert of("a", found) == [f"a{number}" for number in range(40)]
    assert of("b", found) == [f"b{number}" for number in range(20)]
    half = Counter(text[0] for text in found[:30])
    assert abs(half["b"] - 10) <= 2  # in proportion to the lengths


def test_without_all_lengths_they_come_equally_often() -> None:
    with made("a", "c") as dataset:
        found = texts(dataset)
    assert len(found) == 70
    assert abs(Counter(text[0] for text in found[:40])["a"] - 20) <= 3


def test_weights_say_how_often_each_comes() -> None:
    for weights in ([1, 3], {"b": 3, "a": 1}):
        with made("a", "b", weights=weights) as dataset:
            found = texts(dataset)
        assert abs(Counter(text[0] for text in found[:20])["b"] - 15) <= 2
        assert len(found) == 60


def test_stop_first_ends_with_the_first_dataset() -> None:
    with made("a", "b", weights=[1, 1], stop="first") as dataset:
        found = texts(dataset)
        assert len(found) == len(dataset)
    assert of("b", found) == [f"b{number}" for number in range(20)]
    assert len(of("a", found)) in range(17, 24)
    with made("a", "c", stop="first") as stream:
        found = texts(stream)
    assert len(of("c", found)) == 30
    assert len(of("a", found)) in range(26, 35)


def test_a_seed_is_an_order() -> None:
    orders = []
    for seed in (1, 1, 2):
        with made("a", "b", seed=seed) as dataset:
            orders.append(texts(dataset))
    assert orders[0] == orders[1] != orders[2]


def test_a_split_may_be_a_source_of_its_own() -> None:
    with made("b", split="test") as dataset:
        assert texts(dataset) == [f"t{number}" for number in range(5)]


# -- by number ------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("c",), ("a", "b", "c")])
@pytest.mark.parametrize("stop", ["all", "first"])
def test_number_i_is_the_i_th_of_a_pass(names: tuple[str, ...], stop: str) -> None:
    with made(*names, stop=stop, cache_size=2000) as dataset:
        whole = texts(dataset)
        assert texts(dataset[number] for number in range(len(whole))) == whole
        assert texts(dataset.get_many([5, 1, 5, 0])) == [whole[5], whole[1], whole[5], whole[0]]
        assert texts(dataset.__getitems__([3, 2])) == [whole[3], whole[2]]
        with pytest.raises(IndexError):
            dataset[len(whole)]


def test_negative_numbers_and_slices_count_from_the_end() -> None:
    with made("a", "b") as dataset:
        whole = texts(dataset)
        assert dataset[-1]["text"] == whole[-1]
        assert texts(dataset[-3:]) == whole[-3:]
        assert texts(dataset[5:20:4]) == whole[5:20:4]
        assert dataset[100:] == []
        with pytest.raises(ItemIndexError, match="sample -61 of 60"):
            dataset[-61]


def test_what_is_streamed_has_numbers_too_before_its_length_is_known() -> None:
    with made("a", "c") as dataset:
        with pytest.raises(TypeError, match="not known"):
            len(dataset)
        with pytest.raises(IndexError, match="not known"):
            dataset[-1]
        later = dataset[65]["text"]  # after the end of c, which has to be found first
        assert texts(dataset)[65] == later
        with pytest.raises(IndexError):
            dataset[70]


# -- threads --------------------------------------------------------------------------------


def test_threads_that_share_a_pass_get_each_sample_once() -> None:
    register_dataset("many", Rows("m", 1500), columns=COLUMNS)
    register_dataset("more", listed("n", 700), columns=COLUMNS)
    found: list[list[str]] = [[] for _ in range(8)]
    with made("many", "more", tokenizer=None) as dataset:
        run = iter(dataset)
        threads = [threading.Thread(target=lambda own: own.extend(texts(run)), args=(own,)) for own in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert Counter(text for own in found for text in own) == Counter(
        [f"m{number}" for number in range(1500)] + [f"n{number}" for number in range(700)]
    )
    for own in found:
        assert of("m", own) == sorted(of("m", own), key=lambda text: int(text[1:]))


def test_states_may_be_taken_while_threads_read() -> None:
    register_dataset("many", Rows("m", 1500), columns=COLUMNS)
    seen: list[int] = []
    with made("many", "a", "b", tokenizer=None) as dataset:
        run = iter(dataset)
        readers = [threading.Thread(target=lambda: list(run)) for _ in range(3)]
        for thread in readers:
            thread.start()
        while any(thread.is_alive() for thread in readers):
            seen.append(sum(one["count"] for one in dataset.state_dict()["datasets"]))
        for thread in readers:
            thread.join(60)
        *during, last = [*seen, sum(one["count"] for one in dataset.state_dict()["datasets"])]
    assert last == 0  # of the next pass
    while during and not during[-1]:
        during.pop()
    assert during == sorted(during)


def test_each_pass_has_all_samples_whatever_others_do() -> None:
    with made("a", "c") as dataset:
        one, other = iter(dataset), iter(dataset)
        mixed = [next(one)["text"], next(other)["text"], next(other)["text"]]
        assert mixed[0] == mixed[1]
        assert Counter([mixed[0], *texts(one)]) == Counter([*mixed[1:], *texts(other)])


def test_a_pass_that_is_closed_is_over() -> None:
    with made("a", "c") as dataset:
        with iter(dataset) as run:
            next(run)
        assert list(run) == []
        assert len(texts(dataset)) == 70


def test_no_thread_is_left_by_passes_that_are_dropped() -> None:
    before = set(threading.enumerate())
    register_dataset("endless", Rows("e", 10**9), columns=COLUMNS)
    for _ in range(20):
        dataset = made("endless", "c", prefetch=64)
        for sample in dataset:
            if sample["text"].endswith("9"):
                break
        dataset.close()
    left = set(threading.enumerate()) - before
    for thread in left:
        thread.join(30)
    assert not set(threading.enumerate()) - before


def test_ranks_share_the_samples_of_each_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        with made("a", "b", "c") as dataset:
            own = texts(dataset)
            assert {text[0] for text in own} == {"a", "b", "c"}
            state = None
            run = iter(dataset)
            for _ in range(len(own) // 2):
                next(run)
            state = dataset.state_dict()
            dataset.load_state_dict(state)
            assert texts(dataset) == own[len(own) // 2 :]
        with made("a", "b") as dataset:
            assert len(dataset) == len(texts(dataset))
        found += own
    assert sorted(found) == sorted(texts(listed_all()))


def listed_all() -> list[dict[str, Any]]:
    return [{"text": row["body"]} for row in (*listed("a", 40), *listed("b", 20), *listed("c", 30))]


# -- position -------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("stop", ["all", "first"])
def test_a_state_at_any_position_goes_on_with_the_rest(names: tuple[str, ...], stop: str) -> None:
    with made(*names, stop=stop) as dataset, made(*names, stop=stop) as other:
        whole = texts(dataset)
        run = iter(dataset)
        for position in range(len(whole)):
            state = json.loads(json.dumps(dataset.state_dict()))
            other.load_state_dict(state)
            rest = iter(other)
            assert next(rest)["text"] == whole[position]
            if position % 7 == 0:
                assert texts(rest) == whole[position + 1 :]
            assert next(run)["text"] == whole[position]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_resuming_again_and_again_loses_and_repeats_nothing(steps: list[int]) -> None:
    with made("a", "b", "c") as dataset:
        whole = texts(dataset)
    found: list[str] = []
    state = None
    for step in [*steps, 100]:
        with made("a", "b", "c") as dataset:
            if state is not None:
                dataset.load_state_dict(state)
            run = iter(dataset)
            found += texts(itertools.islice(run, step)) if step < 100 else texts(run)
            state = dataset.state_dict()
    assert (found * 2)[: len(whole)] == whole[: 2 * len(found)]


@pytest.mark.parametrize("stop", ["all", "first"])
def test_after_a_complete_pass_the_next_one_begins_at_the_beginning(stop: str) -> None:
    with made("a", "b", "c", stop=stop) as dataset:
        whole = texts(dataset)
        state = dataset.state_dict()
        assert texts(dataset) == whole
        dataset.load_state_dict(state)
        assert texts(dataset) == whole
        run = iter(dataset)
        for _ in range(30):
            next(run)
        dataset.load_state_dict(dataset.state_dict())
        assert texts(dataset) == whole[30:]
        assert texts(dataset) == whole


def test_a_pass_that_is_begun_again_begins_where_the_state_was_loaded() -> None:
    with made("a", "b", "c") as dataset:
        whole = texts(dataset)
        run = iter(dataset)
        for _ in range(80):
            next(run)
        state = dataset.state_dict()
        dataset.load_state_dict(state)
        for _ in range(3):
            begun = iter(dataset)
            assert texts(next(begun) for _ in range(4)) == whole[80:84]
        dataset.set_epoch(5)
        assert texts(dataset) == whole


def test_the_position_goes_along_when_it_is_pickled() -> None:
    with made("a", "b", "c") as dataset:
        whole = texts(dataset)
        run = iter(dataset)
        for _ in range(50):
            next(run)
        dataset.load_state_dict(dataset.state_dict())
        with pickle.loads(pickle.dumps(dataset)) as copy:
            assert texts(copy) == whole[50:]


def test_states_of_others_are_refused() -> None:
    with made("a", "b") as dataset, made("b", "a") as turned, made("a", "b", seed=1) as seeded:
        state = dataset.state_dict()
        with pytest.raises(ConfigError, match="of the datasets a, b; here are b, a"):
            turned.load_state_dict(state)
        with pytest.raises(ConfigError, match="force=True"):
            seeded.load_state_dict(state)
        seeded.load_state_dict(state, force=True)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: None,
        lambda state: [],
        lambda state: {},
        lambda state: {**state, "version": 99},
        lambda state: {**state, "epoch": -1},
        lambda state: {**state, "epoch": "1"},
        lambda state: {**state, "datasets": 3},
        lambda state: {**state, "datasets": [3]},
        lambda state: {**state, "datasets": [{**one, "count": -1} for one in state["datasets"]]},
        lambda state: {**state, "datasets": [{"name": one["name"]} for one in state["datasets"]]},
        lambda state: {**state, "shares": [1]},
        lambda state: {**state, "shares": [0, 1]},
        lambda state: {name: value for name, value in state.items() if name != "identity"},
    ],
)
def test_what_is_no_state_is_refused(spoil: Callable[[dict[str, Any]], Any]) -> None:
    with made("a", "b") as dataset:
        next(iter(dataset))
        before = dataset.state_dict()
        with pytest.raises(FormatError):
            dataset.load_state_dict(spoil(before))
        assert dataset.state_dict() == before


# -- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dataset_name": "open_platipus"}, "did you mean 'open_platypus'"),
        ({"dataset_name": []}, "at least one"),
        ({"dataset_name": ["a", "a"]}, "twice"),
        ({"task_type": "letter"}, "did you mean 'letters'"),
        ({"dataset_name": "b", "split": "tset"}, "did you mean 'test'"),
        ({"split": ""}, "split=''"),
        ({"split": None}, "split=None"),
        ({"cache_size": 0}, "cache_size=0 must be a whole number, at least 1"),
        ({"cache_size": -5}, "cache_size=-5"),
        ({"cache_size": 1.5}, "cache_size=1.5"),
        ({"tokenizer": 7}, "no tokenizer"),
        ({"weights": [1]}, "1 weights are given for 2"),
        ({"weights": [1, 0]}, "above zero"),
        ({"weights": {"a": 1}}, "none for b"),
        ({"weights": {"a": 1, "b": 1, "d": 1}}, "has 'd'"),
        ({"weights": 3}, "one number a dataset"),
        ({"columns": ["body"]}, "datasets of the hub"),
        ({"columns": []}, "at least one"),
        ({"columns": "body"}, "names of columns"),
        ({"columns": {"humaneval": ["prompt"]}}, "none of the datasets a, b"),
        ({"dataset_name": "humaneval", "columns": ["promt"]}, "'prompt'"),
        ({"stop": "never"}, "'all', 'first'"),
        ({"fallback": "none"}, "'synthetic', 'local', 'raise'"),
        ({"on_bad_sample": "ignore"}, "'raise', 'skip', 'yield'"),
        ({"synthetic_size": 0}, "synthetic_size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"memory": 0}, "memory"),
        ({"timeout": 0}, "timeout=0"),
        ({"max_length": 0}, "max_length=0"),
        ({"transform": 3}, "transform=3"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        MultimodalDataset(None, **{"tokenizer": tokens, "dataset_name": ["a", "b"], **options})
    assert told in str(raised.value)


def test_a_spec_that_cannot_work_is_refused_at_once() -> None:
    register_dataset("odd", [{"x": 1}], processor="instruktion")
    with pytest.raises(ConfigError, match="instruction"):
        made("odd")


def test_a_closed_dataset_says_so() -> None:
    dataset = made("a", "c")
    next(iter(dataset))
    dataset.close()
    dataset.close()
    with pytest.raises(ClosedError):
        next(iter(dataset))
    with pytest.raises(ClosedError):
        dataset[0]


# -- deprecated -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "returned"),
    [
        ("_load_data", (), []),
        ("_ensure_local_dataset", ("a",), None),
        ("_load_single_dataset", ("a", {"path": "x"}), []),
    ],
)
def test_old_methods_warn_and_return_nothing(
    name: str, arguments: tuple[Any, ...], returned: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with made("a") as dataset:
        with pytest.warns(DeprecationWarning, match=f"{name}.*deprecated"):
            assert getattr(dataset, name)(*arguments) == returned
    assert f"{name}() is deprecated" in caplog.text
