"""Pipelines of `datasets` of every kind of node, small enough to be read from every position.

Importable without pytest, so that other versions of the library can be tried by hand:
``PYTHONPATH=.:tests python -m support.hf_pipelines``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from lazystore.hub.feed import Mark, Reading
from lazystore.hub.hf_stream import HFStream

Build = Callable[[], Any]


def rows(files: list[int]) -> Iterator[dict[str, Any]]:
    for file in files:
        for i in range(file % 10):  # of unequal length; the file 20 is empty
            yield {"a": file * 100 + i, "t": f"x{file}-{i}"}


def tables(files: list[int]) -> Iterator[tuple[str, Any]]:
    """Several Arrow tables a file, one of them empty."""
    import pyarrow as pa

    for file in files:
        for part, count in enumerate((2, 0, 4, 1)):
            values = [file * 100 + part * 10 + i for i in range(count)]
            yield f"{file}_{part}", pa.table({"a": pa.array(values, pa.int64()), "t": [f"t{v}" for v in values]})


def third(sample: dict[str, Any]) -> bool:
    return bool(sample["a"] % 3 != 1)


def thirds(batch: dict[str, Any]) -> list[bool]:
    return [a % 3 != 1 for a in batch["a"]]


def double(sample: dict[str, Any]) -> dict[str, Any]:
    return {"b": sample["a"] * 2}


async def double_async(sample: dict[str, Any]) -> dict[str, Any]:
    return {"b": sample["a"] * 2}


def doubles(batch: dict[str, Any]) -> dict[str, Any]:
    return {"b": [a * 2 for a in batch["a"]]}


def expanded(batch: dict[str, Any]) -> dict[str, Any]:
    return {"a": [a for a in batch["a"] for _ in range(a % 3)]}


def packed(batch: dict[str, Any]) -> dict[str, Any]:
    return {"a": [sum(batch["a"])], "n": [len(batch["a"])]}


def numbered(sample: dict[str, Any], index: int) -> dict[str, Any]:
    return {"i": index}


def leaves() -> dict[str, Build]:
    from datasets import Dataset, IterableDataset
    from datasets.iterable_dataset import ArrowExamplesIterable

    table = {"a": list(range(23)), "t": [f"v{i}" for i in range(23)]}
    return {
        "table": lambda: Dataset.from_dict(table).to_iterable_dataset(num_shards=3),
        "tables": lambda: IterableDataset(ArrowExamplesIterable(tables, {"files": [1, 2, 3]})),
        "rows": lambda: IterableDataset.from_generator(rows, gen_kwargs={"files": [14, 20, 35, 43]}),
        "one": lambda: IterableDataset.from_generator(rows, gen_kwargs={"files": [19]}),
    }


def steps() -> dict[str, Callable[[Any], Any]]:
    """Every operation that makes a node of its own kind, and the settings that change what a node does."""
    import datasets
    from datasets import concatenate_datasets as concatenated
    from datasets import interleave_datasets as interleaved
    from datasets.distributed import split_dataset_by_node as by_node

    return {
        "map": lambda d: d.map(double),
        "map_numbered": lambda d: d.map(numbered, with_indices=True),
        "map_batched": lambda d: d.map(doubles, batched=True, batch_size=4),
        "map_async": lambda d: d.map(double_async),
        "map_last_dropped": lambda d: d.map(doubles, batched=True, batch_size=4, drop_last_batch=True),
        "expand": lambda d: d.map(expanded, batched=True, batch_size=5, remove_columns=d.column_names or ["a", "t"]),
        "pack": lambda d: d.map(packed, batched=True, batch_size=5, remove_columns=d.column_names or ["a", "t"]),
        "filter": lambda d: d.filter(third),
        "filter_batched": lambda d: d.filter(thirds, batched=True, batch_size=4),
        "filter_all": lambda d: d.filter(lambda sample: False),
        "batch": lambda d: d.batch(4),
        "skip": lambda d: d.skip(5),
        "take": lambda d: d.take(11),
        "repeat": lambda d: d.repeat(3),
        "select": lambda d: d.select_columns(["a"]),
        "rename": lambda d: d.rename_column("t", "c"),
        "remove": lambda d: d.remove_columns("t"),
        "add": lambda d: d.add_column("z", list(range(100))),
        "cast": lambda d: d.cast_column("a", datasets.Value("string")),
        "numpy": lambda d: d.with_format("numpy"),
        "torch": lambda d: d.with_format("torch"),
        "arrow": lambda d: d.with_format("arrow"),
        "shuffle": lambda d: d.shuffle(seed=5, buffer_size=6),
        "shard": lambda d: d.shard(2, 1) if d.n_shards > 1 else d,
        "node": lambda d: by_node(d, 1, 2),
        "concatenate": lambda d: concatenated([d, d.map(double)]),
        "beside": lambda d: concatenated([d, d.select_columns("a").rename_column("a", "q")], axis=1),
        "interleave": lambda d: interleaved([d, d.take(3)], stopping_strategy="all_exhausted"),
        "weighted": lambda d: interleaved([d, d.take(7)], probabilities=[0.7, 0.3], seed=4),
        "epoch": at_epoch,
        "rebatch": rebatched,
        "reshard": lambda d: d.reshard(),
    }


def at_epoch(dataset: Any) -> Any:
    dataset.set_epoch(2)
    return dataset


def rebatched(dataset: Any) -> Any:
    """Tables of another length, which run over the ends of files: what shuffles and formats put in between."""
    from datasets import IterableDataset
    from datasets.iterable_dataset import RebatchedArrowExamplesIterable

    if dataset._ex_iterable.iter_arrow is None:
        raise TypeError("no tables")
    return IterableDataset(RebatchedArrowExamplesIterable(dataset._ex_iterable, batch_size=5)).with_format("numpy")


def pipeline(leaf: str, *names: str) -> Any:
    dataset = leaves()[leaf]()
    for name in names:
        dataset = steps()[name](dataset)
    return dataset


def shown(sample: Any) -> str:
    """Any format's sample as text to compare."""
    return repr(sample.to_pylist() if hasattr(sample, "to_pylist") else sample)


def read(reading: Reading, count: int | None = None) -> list[str]:
    found = reading.take(1 << 30 if count is None else count)
    return [shown(sample) for sample in found]


def mark_of(reading: Reading) -> Mark | None:
    """Its mark after a round trip through JSON, as a state on disk has it."""
    mark = reading.mark()
    if mark is None:
        return None
    assert mark.position <= reading.position
    return Mark(mark.position, json.loads(json.dumps(mark.state)))


def check_resume(feed: HFStream, want: list[str], positions: list[int], rng: random.Random) -> int:
    """Go on at each position, then once more and once more from there; the number of marks that were used."""
    used = 0
    for position in positions:
        reading = feed.open()
        assert read(reading, position) == want[:position]
        at = position
        for _ in range(3):
            mark = mark_of(reading)
            used += mark is not None
            reading.close()
            rest = feed.open(at, mark)
            assert rest.position == at
            assert read(rest) == want[at:], f"rest from {at} by {mark}"
            rest.close()
            reading = feed.open(at, mark)
            step = rng.randint(0, 4)
            assert read(reading, step) == want[at : at + step]
            at = min(len(want), at + step)
        reading.close()
    return used


def main() -> None:
    import sys
    import warnings

    import datasets

    warnings.filterwarnings("ignore")
    datasets.logging.set_verbosity_error()
    rng = random.Random(7)
    single = [(leaf, name) for leaf in leaves() for name in steps()]
    double = [(leaf, rng.choice(list(steps())), rng.choice(list(steps()))) for leaf in leaves() for _ in range(60)]
    triple = [(leaf, *rng.choices(list(steps()), k=3)) for leaf in leaves() for _ in range(30)]
    done, marked, refused = 0, 0, 0
    for case in [(leaf,) for leaf in leaves()] + single + double + triple:
        try:
            want = [shown(sample) for sample in pipeline(*case)]
        except Exception as error:  # noqa: BLE001 - what this version cannot do
            refused += 1
            if len(case) == 2:
                print("cannot", case, type(error).__name__, str(error)[:60])
            continue
        if len(want) > 200:
            continue
        feed = HFStream(pipeline(*case))
        positions = rng.sample(range(len(want) + 1), min(6, len(want) + 1))
        try:
            marked += bool(check_resume(feed, want, positions, rng))
        except Exception as error:  # noqa: BLE001 - reported
            print("WRONG", case, type(error).__name__, str(error)[:300])
        done += 1
    print(f"datasets {datasets.__version__}: {done} pipelines, {marked} with marks, {refused} that it cannot do")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
