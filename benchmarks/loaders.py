"""The child side of the DataLoader bench: each library behind torch's loader, and what is timed on it.

``LOADERS`` holds one function a library, which returns something that makes a pass each time it is iterated.
Batches are torch's default ones. Imports happen inside the functions: a child imports its own library only.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker import Run

__all__ = ["LOADERS", "passes"]

#: Where in a pass memory is looked at.
LOOKS = (0.2, 0.5, 0.8)


def lazystore(run: Run) -> Iterable[Any]:
    """lazystore in torch's own DataLoader; the budget is spec["memory"] bytes for all workers together."""
    from torch.utils.data import DataLoader

    from lazystore import StreamingDataset

    ready(run)
    spec = run.spec
    dataset = StreamingDataset(
        spec["path"], memory=spec["memory"], shuffle=spec.get("shuffle", False), batch_size=spec["batch"]
    )
    return DataLoader(dataset, spec["batch"], num_workers=spec["workers"])


def lazystore_streaming(run: Run) -> Iterable[Any]:
    """lazystore's StreamingDataLoader."""
    import torch  # noqa: F401 - its absence is to be reported as such

    from lazystore import StreamingDataset
    from lazystore.adapters.torch import StreamingDataLoader

    ready(run)
    spec = run.spec
    dataset = StreamingDataset(spec["path"], memory=spec["memory"], shuffle=spec.get("shuffle", False))
    return StreamingDataLoader(dataset, spec["batch"], num_workers=spec["workers"])


def lazystore_batches(run: Run) -> Iterable[Any]:
    """lazystore without torch: ``ds.batches``, one process."""
    from lazystore import StreamingDataset

    ready(run)
    spec = run.spec
    return _Batches(StreamingDataset(spec["path"], memory=spec["memory"], shuffle=spec.get("shuffle", False)), spec)


class _Batches:
    """Each iteration is a pass."""

    def __init__(self, dataset: Any, spec: dict[str, Any]) -> None:
        self._dataset = dataset
        self._batch = spec["batch"]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._dataset.batches(self._batch))


def litdata(run: Run) -> Iterable[Any]:
    """LitData's StreamingDataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset

    ready(run)
    spec = run.spec
    dataset = StreamingDataset(spec["path"], shuffle=spec.get("shuffle", False), drop_last=False)
    return StreamingDataLoader(dataset, batch_size=spec["batch"], num_workers=spec["workers"])


def hf_map(run: Run) -> Iterable[Any]:
    """Hugging Face datasets by index, which its batched ``__getitems__`` makes fast; arr in its numpy format."""
    return _hf(run, lambda dataset: dataset)


def hf_iterable(run: Run) -> Iterable[Any]:
    """Hugging Face's iterable dataset, a shard for each worker."""
    return _hf(run, lambda dataset: dataset.to_iterable_dataset(num_shards=run.spec["workers"]))


def _hf(run: Run, form: Callable[[Any], Any]) -> Iterable[Any]:
    import datasets
    from torch.utils.data import DataLoader

    ready(run)
    spec = run.spec
    datasets.disable_progress_bars()
    dataset = datasets.load_from_disk(spec["path"])
    if spec["kind"] == "arr":
        dataset = dataset.with_format("numpy")
    return DataLoader(form(dataset), spec["batch"], num_workers=spec["workers"])


def mosaicml(run: Run) -> Iterable[Any]:
    """MosaicML's StreamingDataset in torch's own DataLoader."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    ready(run)
    spec = run.spec
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=spec["path"], batch_size=spec["batch"], shuffle=spec.get("shuffle", False))
    return DataLoader(dataset, spec["batch"], num_workers=spec["workers"])


LOADERS: dict[str, Callable[[Run], Iterable[Any]]] = {
    "lazystore": lazystore,
    "lazystore_streaming": lazystore_streaming,
    "lazystore_batches": lazystore_batches,
    "litdata": litdata,
    "hf_map": hf_map,
    "hf_iterable": hf_iterable,
    "mosaicml": mosaicml,
}


def ready(run: Run) -> None:
    """Imports are done: note the memory of this process, which the workers will share."""
    import torch.utils.data  # noqa: F401 - some libraries import it late

    run.ready()
    run.result["pss_after_import"] = pss([os.getpid()])


def passes(run: Run) -> None:
    """Whole passes; the first batch by itself; then memory of all processes; then the samples are checked."""
    loader = LOADERS[run.spec["library"]](run)
    count = run.spec["count"]
    first: list[float] = []

    def one_pass() -> Iterator[Any]:
        begin = time.perf_counter()
        batches = iter(loader)
        batch = next(batches)
        first.append(time.perf_counter() - begin)
        yield batch
        yield from batches

    run.passes(one_pass, count)
    run.result["first_batch"] = statistics.median(first)
    run.result["pss"] = _memory_of_a_pass(loader, -(-count // run.spec["batch"]))
    run.result["digest"] = _digest(loader, count)


def _memory_of_a_pass(loader: Iterable[Any], batches: int) -> int:
    """The most memory that this process and all below it took at some points of a pass, bytes."""
    looks = {max(1, int(batches * share)) for share in LOOKS}
    return max(pss(_family()) for number, _ in enumerate(loader) if number in looks)


def _family() -> list[int]:
    """This process and its descendants."""
    found = [os.getpid()]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def pss(pids: Iterable[int]) -> int:
    """Proportional set size: shared pages count once over all processes, bytes."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:")) * 1024
    return total


def _digest(loader: Iterable[Any], count: int) -> str:
    """The hash over the probe samples, whatever order they come in; also counts the items."""
    from samples import digest, probe_indices

    wanted = set(probe_indices(count))
    found: dict[int, dict[str, Any]] = {}
    seen = 0
    for batch in loader:
        numbers = [int(number) for number in batch["id" if "id" in batch else "y"]]
        seen += len(numbers)
        for at, number in enumerate(numbers):
            if number in wanted:
                found[number] = {key: column[at] for key, column in batch.items()}
    if seen != count:
        raise RuntimeError(f"{seen} items in a pass over {count}")
    return digest(sorted(found.items()))
