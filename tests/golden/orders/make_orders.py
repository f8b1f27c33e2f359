"""Writes the golden sample orders: run with the Python of an installation of LitData.

    python make_orders.py shuffles OUT.json     # the shuffler class of LitData over made-up chunk lists
    python make_orders.py datasets OUT.json     # StreamingDataset over datasets written by LitData's optimize()
    python make_orders.py subsets OUT.json      # subsample, train_test_split and subset

Not part of the test run; PROVENANCE.md says which versions made the files that lie here.
"""

import hashlib
import json
import sys
import tempfile
from types import SimpleNamespace

import numpy as np
from litdata import StreamingDataset, optimize, train_test_split
from litdata.__about__ import __version__
from litdata.streaming import dataset as dataset_module
from litdata.streaming.item_loader import Interval
from litdata.streaming.shuffle import FullShuffle, NoShuffle
from litdata.utilities.env import _DistributedEnv, _WorkerEnv

BY_GLOBAL_CHUNK = tuple(int(part) for part in __version__.split(".")[:3]) >= (0, 2, 71)

SIZES = {
    "eight": [5, 3, 8, 1, 7, 2, 6, 4],
    "holes": [0, 4, 0, 9, 1, 0],
    "one": [11],
    "even": [6] * 10,
    "blocks": [300, 1, 520, 256, 257, 40, 1025],
    "many": [(7 * i) % 23 + 1 for i in range(150)],
}
PRINTED = {"eight"}  # orders in full; of the others a digest
SEED = 42


def intervals(sizes):
    ends = np.cumsum(sizes).tolist()
    return [Interval(end - size, end - size, end, end) for size, end in zip(sizes, ends)]


def fake_cache(sizes, max_cache_size):
    config = SimpleNamespace(_chunks=[{"chunk_bytes": 10 * size} for size in sizes])
    reader = SimpleNamespace(_config=config, _max_cache_size=max_cache_size)
    return SimpleNamespace(get_chunk_intervals=lambda: intervals(sizes), _reader=reader)


def orders_of(sizes, *, world, nodes, workers, batch, drop_last, epoch, shuffle, max_cache_size=0, seed=SEED):
    """Global item numbers of every (rank, worker), as StreamingDataset.__next__ walks its intervals."""
    kind = FullShuffle if shuffle else NoShuffle
    shuffler = kind(fake_cache(sizes, max_cache_size), seed, drop_last)
    everyone = []
    for rank in range(world):
        env = _DistributedEnv(world, rank, nodes)
        chunks, parts = shuffler.get_chunks_and_intervals_per_workers(env, workers, batch, epoch)
        for worker in range(workers):
            own_chunks, own_parts = chunks[rank * workers + worker], parts[rank * workers + worker]
            order = []
            for position, (chunk, part) in enumerate(zip(own_chunks, own_parts)):
                about = (len(sizes), epoch, int(chunk)) if BY_GLOBAL_CHUNK else (len(own_chunks), epoch, position)
                order += [int(item) for item in shuffler(np.arange(part[1], part[2]), *about)]
            everyone.append(order)
    return everyone


def digest(orders):
    return hashlib.sha256(json.dumps(orders, separators=(",", ":")).encode()).hexdigest()


def case(name, shuffle=True, **options):
    orders = orders_of(SIZES[name], shuffle=shuffle, **options)
    record = {"sizes": name, **({} if shuffle else {"shuffle": False}), **options}
    return {**record, "orders": orders} if name in PRINTED else {**record, "sha256": digest(orders)}


def shuffles():
    cases = []
    for name in SIZES:
        for world in (1, 2, 3, 4):
            for workers in (1, 2, 3):
                for batch in (1, 2, 3, 4) if name != "many" else (3,):
                    for drop_last in (False, True):
                        # not the whole product: one epoch of three for each combination, in turn
                        epoch = 1 + (world + workers + batch + drop_last) % 3
                        options = {"world": world, "workers": workers, "batch": batch, "drop_last": drop_last}
                        cases.append(case(name, nodes=1, epoch=epoch, **options))
                        if world in (2, 4) and name != "one":
                            nodes = 2 if batch % 2 else world
                            cases.append(case(name, nodes=nodes, epoch=1 + workers, **options))
    if BY_GLOBAL_CHUNK:  # a node's share larger than its cache
        cases += [
            case("eight", world=4, nodes=2, workers=2, batch=2, drop_last=False, epoch=epoch, max_cache_size=60)
            for epoch in (1, 2, 3)
        ]
        cases += [  # one of these is just the largest share
            case("eight", world=4, nodes=2, workers=1, batch=1, drop_last=True, epoch=2, max_cache_size=size)
            for size in range(170, 270, 10)
        ]
    cases += [
        case("blocks", world=2, nodes=1, workers=2, batch=4, drop_last=False, epoch=2, seed=seed)
        for seed in (0, 1, 123456789, 2**32 - 1)
    ]
    return {"sizes": SIZES, "cases": cases}


def number(index):
    return {"n": index, "pad": b"x" * 16}


def write_dataset(folder, count, chunk_size):
    optimize(fn=number, inputs=list(range(count)), output_dir=folder, num_workers=1, chunk_size=chunk_size)


def datasets():
    """The real thing end to end: every reader of every rank, its environment put in by hand."""
    cases = []
    for count, chunk_size in ((50, 7), (1200, 400)):
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(folder, count, chunk_size)
            for world, workers, batch, drop_last, epochs in (
                (1, 1, 1, False, 3),
                (1, 2, 4, False, 2),
                (2, 1, 3, True, 2),
                (2, 3, 2, False, 2),
                (3, 2, 4, True, 3),
            ):
                orders = {}
                for rank in range(world):
                    for worker in range(workers):
                        _DistributedEnv.detect = classmethod(lambda cls, w=world, r=rank: cls(w, r, 1))
                        _WorkerEnv.detect = classmethod(lambda cls, f=None, w=workers, i=worker: cls(w, i))
                        dataset = StreamingDataset(folder, shuffle=True, seed=7, drop_last=drop_last)
                        dataset.set_batch_size(batch)
                        dataset.set_num_workers(workers)
                        for epoch in range(1, epochs + 1):
                            dataset.set_epoch(epoch)
                            order = [int(item["n"]) for item in dataset]
                            assert type(dataset.shuffler) is FullShuffle
                            orders.setdefault(epoch, []).append(order)
                for epoch, everyone in orders.items():
                    sizes = [chunk_size] * (count // chunk_size) + [count % chunk_size] * (count % chunk_size > 0)
                    record = {"sizes": sizes, "seed": 7, "world": world, "workers": workers, "batch": batch}
                    record |= {"drop_last": drop_last, "epoch": epoch}
                    small = count <= 50
                    cases.append(record | ({"orders": everyone} if small else {"sha256": digest(everyone)}))
    return {"cases": cases}


def items_of(dataset):
    return [int(dataset[index]["n"]) for index in range(len(dataset))]


def subsets():
    """What a selection holds, in its own order of indexes: through LitData's public calls."""
    _DistributedEnv.detect = classmethod(lambda cls: cls(1, 0, 1))
    _WorkerEnv.detect = classmethod(lambda cls, f=None: cls(1, 0))
    count, chunk_size = 50, 7
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(folder, count, chunk_size)
        for shuffle in (False, True):
            for fraction in (0.1, 0.35, 0.5, 0.98, 1.0, 1.5, 2.0, 2.7):
                for seed in (42, 7):
                    dataset = StreamingDataset(folder, shuffle=shuffle, subsample=fraction, seed=seed)
                    record = {"call": "subsample", "shuffle": shuffle, "fraction": fraction, "seed": seed}
                    epoch = [int(item["n"]) for item in dataset]
                    dataset = StreamingDataset(folder, shuffle=shuffle, subsample=fraction, seed=seed)
                    cases.append(record | {"items": items_of(dataset), "epoch": epoch})
            for splits in ([0.8, 0.1, 0.1], [0.5, 0.25], [1.0], [0.3, 0.3, 0.3]):
                parts = train_test_split(StreamingDataset(folder), splits, seed=42, shuffle=shuffle)
                record = {"call": "split", "shuffle": shuffle, "splits": splits, "seed": 42}
                cases.append(record | {"items": [items_of(part) for part in parts]})
        if hasattr(StreamingDataset, "subset"):
            for indices in ([0, 1, 2, 30, 31, 7, 6, 5], list(range(5, 20)), [13, 14, 14, 13]):
                dataset = StreamingDataset(folder).subset(indices)
                cases.append({"call": "subset", "indices": indices, "items": items_of(dataset)})
    return {"chunk_size": chunk_size, "count": count, "cases": cases}


if __name__ == "__main__":
    what, out = sys.argv[1:]
    made = {"shuffles": shuffles, "datasets": datasets, "subsets": subsets}[what]()
    made = {"litdata": __version__, "numpy": np.__version__, "seed": SEED, **made}
    cases = made.pop("cases")
    with open(out, "w") as file:
        head = json.dumps(made, separators=(",", ":"))[:-1]
        lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in cases)
        file.write(f'{head},"cases":[\n{lines}\n]}}\n')
