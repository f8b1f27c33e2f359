"""The reader that travels to workers: reads by what is open where it was made, and opens its own once elsewhere."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from lazystore.parallel.dataset_items import DatasetReader, items_of

opened: list[tuple[str, int]] = []


def reopen(name: str, workers: int) -> Callable[[Sequence[int]], list[str]]:
    opened.append((name, workers))
    time.sleep(0.01)
    return lambda keys: [f"{name} {key}" for key in keys]


def here(keys: Sequence[int]) -> list[str]:
    return [f"here {key}" for key in keys]


def test_where_it_was_made_it_reads_by_what_is_open() -> None:
    opened.clear()
    reader = DatasetReader(reopen, ("data",), read=here)
    assert reader([3, 1]) == ["here 3", "here 1"]
    assert opened == []


def test_a_copy_opens_its_own_when_it_is_first_called_with_the_number_of_workers() -> None:
    opened.clear()
    reader = DatasetReader(reopen, ("data",), read=here)
    reader.workers = 4
    copy = pickle.loads(pickle.dumps(reader))
    assert opened == [] and "4 workers" in repr(copy)
    assert copy([2]) == ["data 2"] and copy([5, 6]) == ["data 5", "data 6"]
    assert opened == [("data", 4)]


def test_many_threads_open_it_once() -> None:
    opened.clear()
    copy = pickle.loads(pickle.dumps(DatasetReader(reopen, ("data",), read=here)))
    found: list[list[str]] = []
    threads = [threading.Thread(target=lambda: found.append(copy([1]))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["data 1"]] * 8
    assert len(opened) == 1


class Odd:
    """Says that it is a dataset only to those who ask its class."""

    def __init__(self) -> None:
        self._lazystore_items_ = 3

    def __iter__(self) -> Iterator[int]:
        return iter([1])


def test_what_is_no_dataset_is_iterated() -> None:
    for data in ([1, 2], range(3), (x for x in "ab"), {"a": 1}, Odd()):
        assert items_of(data) is None
