"""What becomes of datasets that cannot be read and of samples that cannot be processed: told, counted, exact."""

from __future__ import annotations

import json
import pickle
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from lazystore.errors import FetchError, HubAccessError, LoadTimeoutError, SampleError, SyntheticDataWarning
from lazystore.hub import registry
from lazystore.hub.multimodal import MultimodalDataset
from lazystore.hub.registry import register_dataset

COLUMNS = {"text": "body", "label": "kind"}


class Failing:
    """A stream of 30 rows that fails for good at one of them."""

    def __init__(self, at: int, error: Exception | None = None, name: str = "f") -> None:
        self.at, self.name = at, name
        self.error = error or HubAccessError("the repository is gated")

    def __call__(self) -> Iterator[dict[str, Any]]:
        for number in range(30):
            if number == self.at:
                raise self.error
            yield {"body": f"{self.name}{number}", "kind": number % 2}


class Bad:
    """A list whose rows 3 and 7 have no text."""

    def __call__(self) -> Iterator[dict[str, Any]]:
        return ({"kind": number} | ({} if number in (3, 7) else {"body": f"b{number}"}) for number in range(10))


@pytest.fixture(autouse=True)
def datasets() -> Iterator[None]:
    known = dict(registry._known)
    register_dataset("good", [{"body": f"g{number}", "kind": 0} for number in range(20)], columns=COLUMNS)
    register_dataset("start", Failing(0), columns=COLUMNS, task="x", labels=("no", "yes"))
    register_dataset("middle", Failing(12), columns=COLUMNS)
    register_dataset("bad", Bad(), columns=COLUMNS)
    register_dataset("bad_list", list(Bad()()), columns=COLUMNS)
    yield
    registry._known.clear()
    registry._known.update(known)


def made(*names: str, **options: Any) -> MultimodalDataset:
    options.setdefault("retries", 0)
    return MultimodalDataset(None, options.pop("tokenizer", None), dataset_name=list(names), **options)


def plain(samples: Any) -> list[Any]:
    return [(one["dataset"], one["text"], one["labels"], one.get("synthetic", False)) for one in samples]


def quiet(dataset: MultimodalDataset) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntheticDataWarning)
        return plain(dataset)


# -- made-up samples ------------------------------------------------------------------------


def test_a_dataset_that_cannot_be_read_is_made_up_and_says_so_once() -> None:
    with made("start", synthetic_size=8) as dataset:
        assert not dataset.is_synthetic
        with pytest.warns(SyntheticDataWarning, match=r"'start'.*HubAccessError: the repository is gated") as told:
            first = list(dataset)
            second = list(dataset)
        assert len(told) == 1
        assert told[0].filename == __file__
        assert plain(first) == plain(second)
        assert len(first) == 8
        assert all(one["synthetic"] is True and one["labels"] in (0, 1) and one["text"] for one in first)
        assert dataset.is_synthetic
        assert "synthetic" in repr(dataset)
        stats = dataset.stats()
        assert stats["synthetic"] == {"start": {"from": 0, "cause": "HubAccessError: the repository is gated"}}
        assert stats["synthetic_samples"] == 16
        json.dumps(stats)


def test_made_up_samples_have_numbers_and_a_length() -> None:
    with made("start", synthetic_size=8) as dataset:
        whole = quiet(dataset)
        assert len(dataset) == 8
        assert plain(dataset[number] for number in range(8)) == whole
        assert plain([dataset[-1]]) == whole[-1:]
        with pytest.raises(IndexError):
            dataset[8]


def test_the_first_thing_asked_of_it_may_be_a_number() -> None:
    with made("start", synthetic_size=8) as dataset, pytest.warns(SyntheticDataWarning):
        assert dataset[3]["synthetic"] is True
        assert len(dataset) == 8


def test_they_are_the_same_for_a_seed_and_others_for_another() -> None:
    found = []
    for seed in (1, 1, 2):
        with made("start", synthetic_size=8, seed=seed) as dataset:
            found.append(quiet(dataset))
    assert found[0] == found[1] != found[2]


def test_a_dataset_that_fails_later_goes_on_at_the_very_next_sample() -> None:
    with made("middle", synthetic_size=5) as dataset:
        found = quiet(dataset)
        assert [text for _, text, _, made_up in found if not made_up] == [f"f{number}" for number in range(12)]
        assert [made_up for *_, made_up in found] == [False] * 12 + [True] * 5
        assert dataset.stats()["synthetic"]["middle"]["from"] == 12
        assert dataset.stats()["synthetic_samples"] == 5


def test_only_the_dataset_that_failed_is_made_up() -> None:
    with made("good", "start", synthetic_size=6, weights=[1, 1]) as dataset:
        found = quiet(dataset)
    assert [text for name, text, *_ in found if name == "good"] == [f"g{number}" for number in range(20)]
    assert {(name, made_up) for name, _, _, made_up in found} == {("good", False), ("start", True)}
    assert len(found) == 26


@pytest.mark.parametrize("names", [("start",), ("middle",), ("good", "middle"), ("start", "middle", "good")])
def test_a_state_goes_on_exactly_among_made_up_samples(names: tuple[str, ...]) -> None:
    with made(*names, synthetic_size=6) as dataset:
        whole = quiet(dataset)
    for position in range(0, len(whole), 3):
        with made(*names, synthetic_size=6) as dataset, made(*names, synthetic_size=6) as other:
            run = iter(dataset)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SyntheticDataWarning)
                for _ in range(position):
                    next(run)
            other.load_state_dict(json.loads(json.dumps(dataset.state_dict())))
            assert quiet(other) == whole[position:]


class Healing:
    """Fails as often as it was told, then gives its rows."""

    failures = 0

    def __call__(self) -> Iterator[dict[str, Any]]:
        if type(self).failures:
            type(self).failures -= 1
            raise HubAccessError("not yet")
        return ({"body": f"h{number}", "kind": 0} for number in range(4))


def test_another_epoch_tries_the_real_samples_again() -> None:
    Healing.failures = 1
    register_dataset("healing", Healing(), columns=COLUMNS)
    with made("healing", synthetic_size=3) as dataset:
        assert [made_up for *_, made_up in quiet(dataset)] == [True] * 3
        assert [made_up for *_, made_up in quiet(dataset)] == [True] * 3
        dataset.set_epoch(7)
        assert not dataset.is_synthetic
        assert quiet(dataset) == [("healing", f"h{number}", 0, False) for number in range(4)]


def test_what_fails_again_much_later_is_made_up_there_too() -> None:
    failing = Failing(3)
    register_dataset("later", failing, columns=COLUMNS)
    with made("later", synthetic_size=2) as dataset:
        run = iter(dataset)
        with pytest.warns(SyntheticDataWarning):
            for _ in range(4):
                next(run)
        state = dataset.state_dict()
    failing.at = 20
    with made("later", synthetic_size=2) as dataset:
        dataset.load_state_dict(state)
        found = quiet(dataset)
        assert [text for _, text, _, made_up in found if not made_up] == [f"f{number}" for number in range(4, 20)]
        assert [made_up for *_, made_up in found][-2:] == [True, True]


def test_with_raise_the_error_comes_where_its_sample_would_be() -> None:
    with made("middle", fallback="raise") as dataset:
        run = iter(dataset)
        assert [next(run)["text"] for _ in range(12)] == [f"f{number}" for number in range(12)]
        with pytest.raises(HubAccessError, match="gated"):
            next(run)
        assert list(run) == []
        assert not dataset.is_synthetic


def test_errors_of_the_users_own_code_are_never_hidden() -> None:
    register_dataset("mistaken", Failing(2, KeyError("a typo")), columns=COLUMNS)
    with made("mistaken") as dataset:
        run = iter(dataset)
        next(run)
        next(run)
        with pytest.raises(KeyError, match="a typo"):
            next(run)
        assert not dataset.is_synthetic


def test_a_connection_that_stays_broken_is_made_up_after_its_retries() -> None:
    register_dataset("broken", Failing(1, ConnectionResetError("reset")), columns=COLUMNS)
    with made("broken", synthetic_size=2, retries=1) as dataset:
        found = quiet(dataset)
        assert [made_up for *_, made_up in found] == [False, True, True]
        assert "reset" in dataset.stats()["synthetic"]["broken"]["cause"]
    with made("broken", fallback="raise", retries=1) as dataset:
        run = iter(dataset)
        next(run)
        with pytest.raises(FetchError, match="reset"):
            next(run)


def test_a_pickled_copy_finds_out_for_itself() -> None:
    with made("start", synthetic_size=4) as dataset:
        whole = quiet(dataset)
        with pickle.loads(pickle.dumps(dataset)) as copy, pytest.warns(SyntheticDataWarning):
            assert plain(copy) == whole


def test_a_source_that_hangs_is_made_up_from_there_on() -> None:
    released = threading.Event()

    def hanging() -> Iterator[dict[str, Any]]:
        yield from ({"body": f"h{number}", "kind": 0} for number in range(3))
        released.wait(60)

    register_dataset("hanging", hanging, columns=COLUMNS)
    try:
        with made("hanging", timeout=0.2, synthetic_size=4) as dataset:
            found = quiet(dataset)
            assert [made_up for *_, made_up in found] == [False] * 3 + [True] * 4
            assert dataset.stats()["synthetic"]["hanging"]["from"] == 3
            assert "LoadTimeoutError" in dataset.stats()["synthetic"]["hanging"]["cause"]
            run = iter(dataset)
            for _ in range(5):
                next(run)
            state = dataset.state_dict()
            with made("hanging", timeout=0.2, synthetic_size=4) as other:
                other.load_state_dict(state)
                assert quiet(other) == found[5:]
        with made("hanging", timeout=0.2, fallback="raise") as dataset:
            run = iter(dataset)
            for _ in range(3):
                next(run)
            with pytest.raises(LoadTimeoutError):
                next(run)
            released.set()
            assert list(run) == []
    finally:
        released.set()


# -- samples that cannot be processed -------------------------------------------------------


@pytest.mark.parametrize("name", ["bad", "bad_list"])
def test_raise_names_the_sample_and_the_next_one_follows(name: str) -> None:
    with made(name) as dataset:
        run = iter(dataset)
        assert [next(run)["text"] for _ in range(3)] == ["b0", "b1", "b2"]
        with pytest.raises(SampleError, match="'body'") as raised:
            next(run)
        assert (raised.value.dataset, raised.value.index) == (name, 3)
        assert next(run)["text"] == "b4"
        assert dataset.stats()["bad_samples"] == 1
        with pytest.raises(SampleError):
            dataset[7]


@pytest.mark.parametrize("name", ["bad", "bad_list"])
def test_skip_leaves_them_out_and_counts_them(name: str) -> None:
    with made(name, on_bad_sample="skip") as dataset:
        assert [one["text"] for one in dataset] == [f"b{number}" for number in (0, 1, 2, 4, 5, 6, 8, 9)]
        assert dataset.stats()["bad_samples"] == 2
        assert dataset.stats()["samples"] == 8
        with pytest.raises(SampleError):
            dataset[3]


@pytest.mark.parametrize("name", ["bad", "bad_list"])
def test_yield_gives_what_could_be_had_with_the_error(name: str) -> None:
    with made(name, on_bad_sample="yield") as dataset:
        found = list(dataset)
        assert len(found) == 10
        assert [number for number, one in enumerate(found) if "error" in one] == [3, 7]
        assert found[3]["labels"] == 3
        assert found[3]["modalities"] == ()
        assert "'body'" in found[3]["error"]
        assert (found[3]["dataset"], found[3]["task"]) == (name, "text")
        assert dataset[7]["error"] == found[7]["error"]


@pytest.mark.parametrize("policy", ["raise", "skip", "yield"])
@pytest.mark.parametrize("names", [("bad",), ("good", "bad")])
def test_positions_are_exact_whatever_becomes_of_bad_samples(policy: str, names: tuple[str, ...]) -> None:
    def taken(run: Iterator[Any], most: int) -> list[str]:
        found: list[str] = []
        while len(found) < most:
            try:
                one = next(run)
            except SampleError as error:
                found.append(f"error {error.index}")
            except StopIteration:
                break
            else:
                found.append(one.get("text") or f"error in {one['labels']}")
        return found

    with made(*names, on_bad_sample=policy) as dataset:
        whole = taken(iter(dataset), 100)
    for position in range(len(whole)):
        with made(*names, on_bad_sample=policy) as dataset, made(*names, on_bad_sample=policy) as other:
            taken(iter(dataset), position)
            other.load_state_dict(dataset.state_dict())
            assert taken(iter(other), 100) == whole[position:]


def fails_on_7(text: str) -> list[int]:
    if "7" in text:
        raise RuntimeError("no sevens")
    return [1, 2, 3]


def test_a_tokenizer_that_raises_is_the_samples_error_and_the_rest_of_it_is_there() -> None:
    with made("good", tokenizer=fails_on_7) as dataset:
        with pytest.raises(SampleError, match="no sevens"):
            list(dataset)
    with made("good", tokenizer=fails_on_7, on_bad_sample="yield") as dataset:
        sample = dataset[7]
        assert (sample["text"], sample["labels"], sample["modalities"]) == ("g7", 0, ("text",))
        assert "input_ids" not in sample
        assert "no sevens" in sample["error"]
    with made("good", tokenizer=fails_on_7, on_bad_sample="skip") as dataset:
        assert len(list(dataset)) == 18


def test_what_ones_own_processing_raises_is_the_samples_error_too() -> None:
    class Strict(MultimodalDataset):
        def _process_sample(self, sample: Any, spec: Any, index: int) -> dict[str, Any]:
            if index == 4:
                raise KeyError("wanted")
            return super()._process_sample(sample, spec, index)

    with Strict(None, None, dataset_name="good", on_bad_sample="yield") as dataset:
        assert "KeyError: 'wanted'" in dataset[4]["error"]
        assert dataset[4]["text"] == "g4"
    with Strict(None, None, dataset_name="good") as dataset:
        with pytest.raises(SampleError, match="sample 4: KeyError") as raised:
            dataset[4]
        assert isinstance(raised.value.__cause__, KeyError)


def test_what_a_transform_raises_is_the_samples_error_too() -> None:
    def picky(sample: dict[str, Any]) -> dict[str, Any]:
        if sample["text"] == "g2":
            raise ValueError("not this one")
        return sample

    with made("good", transform=picky, on_bad_sample="skip") as dataset:
        assert len(list(dataset)) == 19
        assert dataset.stats()["bad_samples"] == 1


def test_rows_that_are_no_mappings_are_bad_samples() -> None:
    register_dataset("numbers", [1, 2, 3], columns=COLUMNS)
    with made("numbers", on_bad_sample="yield") as dataset:
        assert ["error" in one for one in dataset] == [True] * 3
    with made("numbers") as dataset, pytest.raises(SampleError, match="mapping"):
        dataset[0]


def test_an_image_that_does_not_decode_leaves_the_text_and_the_label() -> None:
    register_dataset(
        "pictures",
        [{"picture": {"bytes": b"no image", "path": None}, "caption": "a cat", "kind": 1}],
        columns={"image": "picture", "text": "caption", "label": "kind"},
        modalities=("image", "text"),
        processor="image_classification",
    )
    with made("pictures", on_bad_sample="yield") as dataset:
        (sample,) = dataset
    assert (sample["text"], sample["labels"], sample["modalities"]) == ("a cat", 1, ("text",))
    assert "image" not in sample
    assert "error" in sample


@pytest.mark.parametrize("at", [0, 12, 29])
def test_ranks_that_read_all_of_a_stream_share_what_is_made_up_too(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    register_dataset("shared", Failing(at), columns=COLUMNS)
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        with made("shared", synthetic_size=40) as dataset:
            parts.append(quiet(dataset))
    real = [[sample[1] for sample in part if not sample[3]] for part in parts]
    assert real == [[f"f{number}" for number in range(rank, at, 2)] for rank in range(2)]
    made_up = [[sample for sample in part if sample[3]] for part in parts]
    assert sorted(map(len, made_up)) == [20, 20]
    assert len({sample[1] for part in made_up for sample in part}) == 40
