"""What does one call cost when its bytes are resident? Micro costs of the public calls, by pytest-benchmark.

    python benchmarks/bench_core.py [arguments of pytest-benchmark]

On the small data, made when missing. For finding out what became slower, not for comparing libraries.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import harness
import pytest
from data import Data

from lazystore import StreamingDataset

CALLS: dict[str, Callable[[StreamingDataset], object]] = {
    "item": lambda dataset: dataset[1234],
    "item_from_the_end": lambda dataset: dataset[-1],
    "bytes": lambda dataset: dataset.get_bytes(1234),
    "slice_of_256": lambda dataset: dataset[1000:1256],
    "many_of_256": lambda dataset: dataset.get_many(range(0, 1536, 6)),
    "view": lambda dataset: _leased(dataset),
    "pass": lambda dataset: sum(1 for _ in dataset),
    "memory_stats": lambda dataset: dataset.get_memory_stats(),
}


def _leased(dataset: StreamingDataset) -> int:
    with dataset.view(1234) as lease:
        return len(lease)


@pytest.fixture(params=["text", "arr", "blob"])
def dataset(request: pytest.FixtureRequest) -> Iterator[StreamingDataset]:
    """A dataset of that kind, read once so that everything is resident."""
    data = Data.of(harness.parser("").parse_args(["--quick"]))
    with StreamingDataset(data.classic(request.param), memory=data.profile.resident) as opened:
        for _ in opened:
            pass
        yield opened


@pytest.mark.parametrize("call", CALLS)
def test_cost_of_one_call(benchmark: Any, dataset: StreamingDataset, call: str) -> None:
    """Only measures; the answers are checked by the test suite."""
    benchmark(CALLS[call], dataset)


if __name__ == "__main__":
    # The test suite's settings are not ours: no configuration file.
    here = os.path.dirname(os.path.abspath(__file__))
    sys.exit(pytest.main(["-c", os.devnull, "--rootdir", here, __file__, *sys.argv[1:]]))
