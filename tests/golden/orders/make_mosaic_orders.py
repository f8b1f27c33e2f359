"""Writes the golden sample orders of MosaicML Streaming: run with the Python of an installation of it.

    python make_mosaic_orders.py OUT.json

Not part of the test run; PROVENANCE.md says which version made the file that lies here.
"""

import hashlib
import json
import sys
import tempfile
import warnings
from importlib.metadata import version
from types import MethodType, SimpleNamespace

import numpy as np
from streaming import MDSWriter, StreamingDataset
from streaming.base.batching.random import generate_work_random_batching
from streaming.base.util import clean_stale_shared_memory
from streaming.base.world import World

warnings.simplefilter("ignore")

SIZES = {
    "three": [4, 3, 5],
    "holes": [0, 4, 0, 9, 1, 0],
    "one": [11],
    "even": [6] * 10,
    "large": [300, 1, 520, 256, 257, 40, 1025],
    "many": [(7 * i) % 23 + 1 for i in range(150)],
}
PRINTED = {"three", "holes"}  # orders in full; of the others a digest
ALGOS = ("py1e", "py1s", "py1br", "py2s", "naive")
SEED = 9176


def digest(orders):
    return hashlib.sha256(json.dumps(orders, separators=(",", ":")).encode()).hexdigest()


def fake_dataset(sizes, algo, seed, batch, canonical, block):
    """What the work of an epoch is made from, and no files."""
    counts = np.array(sizes, np.int64)
    dataset = SimpleNamespace(
        num_streams=1,
        shard_offset_per_stream=np.array([0]),
        shards_per_stream=np.array([len(sizes)]),
        samples_per_shard=counts,
        sample_offset_per_shard=counts.cumsum() - counts,
        streams=[SimpleNamespace(choose=int(counts.sum()))],
        epoch_size=int(counts.sum()),
        sampling_granularity=1,
        sampling_method="balanced",
        epoch_seed_change=True,
        shuffle=True,
        shuffle_algo=algo,
        shuffle_seed=seed,
        shuffle_block_size=block,
        num_canonical_nodes=canonical,
        initial_physical_nodes=None,
        partition_algo="orig",
        batch_size=batch,
        _shm_prefix_int=987654,
    )
    for name in ("resample_streams", "_resume", "_set_shuffle_block_size"):
        setattr(dataset, name, MethodType(getattr(StreamingDataset, name), dataset))
    return dataset


def orders_of(dataset, nodes, ranks, workers, epoch):
    """Sample numbers of every reader, rank after rank and worker after worker."""
    world = World(nodes, ranks, workers, 0)
    dataset._resume(world, epoch)  # fills in the defaults
    work = generate_work_random_batching(dataset, world, epoch, 0)
    return [
        [int(sample) for sample in work[node, rank, worker].flatten() if sample != -1]
        for node in range(nodes)
        for rank in range(ranks)
        for worker in range(workers)
    ]


def case(name, algo, *, nodes=1, ranks=1, workers=1, batch=1, epoch=0, canonical=None, block=None, seed=SEED):
    record = {"sizes": name, "algo": algo, "nodes": nodes, "ranks": ranks, "workers": workers, "batch": batch}
    record |= {"epoch": epoch, "canonical": canonical or 0, "block": block or 0, "seed": seed}
    try:
        orders = orders_of(fake_dataset(SIZES[name], algo, seed, batch, canonical, block), nodes, ranks, workers, epoch)
    except ValueError:
        return record | {"error": True}
    return record | ({"orders": orders} if name in PRINTED else {"sha256": digest(orders)})


def made_up():
    cases = [case("three", algo, canonical=2, block=8, epoch=1) for algo in ALGOS]
    turn = 0
    for name, sizes in SIZES.items():
        for algo in ALGOS:
            for nodes, canonical in ((1, None), (1, 1), (1, 3), (2, 2), (2, None), (2, 6), (4, 2), (6, 3), (3, 2), (4, 1)):
                for ranks, workers, batch in ((1, 1, 1), (2, 1, 3), (1, 2, 2), (3, 2, 4), (8, 3, 2)):
                    turn += 1  # not the whole product
                    if (turn + nodes) % 3 or nodes * ranks * workers > 24 and name != "three":
                        continue
                    block = (None, 1, 8, 100, 1000)[turn % 5]
                    options = {"nodes": nodes, "ranks": ranks, "workers": workers, "batch": batch, "block": block}
                    cases.append(case(name, algo, canonical=canonical, epoch=turn % 4, **options))
        cases += [case(name, algo, canonical=sum(sizes) + more) for algo in ALGOS for more in (-1, 0, 1, 5)]
        cases += [case(name, algo, seed=seed, epoch=2) for algo in ALGOS for seed in (0, 1, 2**32, 2**64 - 1)]
    return cases


def iterated():
    """The real thing, one reader: samples are numbered by what they hold."""
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        with MDSWriter(out=folder, columns={"n": "int"}, size_limit=600) as writer:
            for number in range(200):
                writer.write({"n": number})
        for algo in ALGOS:
            clean_stale_shared_memory()
            dataset = StreamingDataset(local=folder, shuffle=True, shuffle_algo=algo, batch_size=4)
            sizes = [int(size) for size in dataset.samples_per_shard]
            cases += [
                {"sizes": sizes, "algo": algo, "nodes": 1, "ranks": 1, "workers": 1, "batch": 4, "canonical": 0,
                 "block": 0, "seed": SEED, "epoch": epoch, "orders": [[int(sample["n"]) for sample in dataset]]}
                for epoch in range(2)
            ]  # fmt: skip
            assert dataset.shuffle_seed == SEED
    return cases


if __name__ == "__main__":
    head = {"streaming": version("mosaicml-streaming"), "numpy": np.__version__, "sizes": SIZES}
    cases = made_up() + iterated()
    with open(sys.argv[1], "w") as out:
        out.write(json.dumps(head, separators=(",", ":"))[:-1] + ',"cases":[\n')
        out.write(",\n".join(json.dumps(each, separators=(",", ":")) for each in cases) + "\n]}\n")
