"""`HFStream`: a `datasets.IterableDataset` as a feed that resumes exactly.

The library keeps where a pass is inside the nodes of its pipeline, so every reading gets nodes of its own. What tells
two pipelines apart is ``hf_identity``'s.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from copy import copy
from typing import TYPE_CHECKING, Any, Self

from lazystore.hub.feed import Feed, Mark, Reading
from lazystore.hub.hf_identity import nodes_of, pipeline_identity
from lazystore.hub.hub_errors import lacking
from lazystore.hub.readings import IteratorReading, digest

if TYPE_CHECKING:
    import asyncio

    from datasets import IterableDataset

    from lazystore.hub.hub_name import Origin

__all__ = ["HFStream"]

#: Since this version of the library the states of these nodes lead to exactly the next sample, however often a pass is
#: taken up: tested over chains of them (``tests/unit/hub/test_hf_stream.py``). Older ones lose or repeat samples of
#: Arrow files behind ``map`` and ``filter``, or do so when they are taken up twice.
STATES_SINCE = (5, 2)
STATES = frozenset({
    "ExamplesIterable", "ArrowExamplesIterable", "RebatchedArrowExamplesIterable", "SelectColumnsIterable",
    "StepExamplesIterable", "CyclingMultiSourcesExamplesIterable", "VerticallyConcatenatedMultiSourcesExamplesIterable",
    "HorizontallyConcatenatedMultiSourcesExamplesIterable", "RandomlyCyclingMultiSourcesExamplesIterable",
    "MappedExamplesIterable", "FilteredExamplesIterable", "SkipExamplesIterable", "RepeatExamplesIterable",
    "TakeExamplesIterable", "FormattedExamplesIterable",
})  # fmt: skip
#: Nodes at the end of a pipeline, whose files are read one after the other.
LEAVES = frozenset({
    "ExamplesIterable", "ShuffledDataSourcesExamplesIterable", "ArrowExamplesIterable",
    "ShuffledDataSourcesArrowExamplesIterable",
})  # fmt: skip
#: Nodes that make of each sample by itself another one or none, if they do not work on batches or numbers.
ONE_BY_ONE = frozenset({
    "RebatchedArrowExamplesIterable", "SelectColumnsIterable", "MappedExamplesIterable", "FilteredExamplesIterable",
    "FormattedExamplesIterable", "TypedExamplesIterable",
})  # fmt: skip
#: Nodes that can be cut into shards so that all shards together have every sample once.
DIVISIBLE = frozenset({
    *LEAVES, *ONE_BY_ONE, "VerticallyConcatenatedMultiSourcesExamplesIterable", "BufferShuffledExamplesIterable",
    "InterleavedShardsExamplesIterable",
})  # fmt: skip


class HFStream(Feed):
    """A ``datasets.IterableDataset``: any pipeline of it, any format; samples are what iterating over it gives.

    A pass goes on at any sample: from the nearest mark, by the library's own state where that of every node is known
    to be exact, or from the beginning of a file where samples are made one by one; else by reading again from the
    beginning of the pass (what a shuffle buffer held is in no state). Functions must give the same for the same sample.

    Parameters:
        dataset: copied, as far as a pass changes it: neither its own iterations nor its ``set_epoch`` touch this.
        origin: which way of which hub name this is.

    Threads: any number of readings at once. Fork, pickling, spawn: as the dataset; readings stay behind. Nothing to
    wait for when the interpreter exits.
    """

    def __init__(
        self, dataset: IterableDataset, *, name: str = "", identity: str = "", origin: Origin | None = None
    ) -> None:
        self.origin = origin
        self._epoch = int(dataset.epoch)
        self._dataset = _twin(dataset, self._epoch)
        self.name = name or str(getattr(dataset.info, "dataset_name", None) or "datasets.IterableDataset")
        self._identity = identity

    @property
    def identity(self) -> str:
        if not self._identity:
            self._identity = pipeline_identity(self._dataset)
        return self._identity

    @property
    def divided(self) -> bool:  # type: ignore[override]
        """Whether this is one rank's part already (``split_dataset_by_node``)."""
        return self._dataset._distributed is not None

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        found = _Pass(_twin(self._dataset, self._epoch))
        begin = 0
        if mark is not None and mark.position <= position and found.go_on(mark):
            begin = mark.position
        return IteratorReading(found.samples, position, skip=position - begin, mark=found.mark)

    @property
    def epoch(self) -> int:
        return self._epoch

    def set_epoch(self, epoch: int) -> bool:
        changed, self._epoch = epoch != self._epoch, epoch
        return changed

    def share(self, index: int, count: int) -> Self | None:
        dataset = self._dataset
        shards: int = getattr(dataset, "num_shards", None) or dataset.n_shards  # by its name before 3.1
        if shards < count or self.divided or not hasattr(dataset, "shard"):
            return None
        if not all(_divisible(node) for node in nodes_of(dataset._ex_iterable)):
            return None
        part = dataset.shard(num_shards=count, index=index)
        part._epoch = self._epoch
        named = digest(self._identity, index, count) if self._identity else ""
        return type(self)(part, name=f"{self.name} (part {index + 1} of {count})", identity=named)  # has no successor

    def close(self) -> None:
        """Nothing: what is open belongs to the readings."""


class _Pass:
    """One pass over a pipeline of its own, and where it is.

    A mark holds what makes it meaningless elsewhere: the version of the library and the epoch.
    """

    def __init__(self, twin: Any) -> None:
        self._twin = twin
        self._nodes: Any = None
        self._leaf: Any = None  # where the pipeline makes samples one by one: the node that reads the files
        self._by_state = False
        self._file = self._position = 0  # the file being read, and the number of its first sample

    def go_on(self, mark: Mark) -> bool:
        """Begin at a mark instead; whether it is one of this pipeline."""
        state = mark.state
        if not isinstance(state, dict) or (state.get("datasets"), state.get("epoch")) != self._kind():
            return False
        if "state" in state:
            self._twin.load_state_dict(state["state"])
        else:
            self._file = state["file"]
        self._position = mark.position
        return True

    def mark(self, position: int) -> Mark | None:
        version, epoch = self._kind()
        state: dict[str, Any] = {"datasets": version, "epoch": epoch}
        if self._by_state:
            return Mark(position, state | {"state": self._twin.state_dict()})
        if self._leaf is not None and self._file:
            return Mark(self._position, state | {"file": self._file})
        return None

    def _kind(self) -> tuple[str, int]:
        import datasets

        return datasets.__version__, int(self._twin.epoch)

    def samples(self) -> Iterator[Any]:
        """What iterating over the dataset gives; all of it also in a DataLoader's worker."""
        from datasets import iterable_dataset

        if not hasattr(iterable_dataset, "FormattedExamplesIterable"):  # before 3.2: samples are not formatted by nodes
            return iter(self._twin)
        self._nodes = self._twin._prepare_ex_iterable_for_iteration()
        nodes = list(nodes_of(self._nodes))
        self._by_state = _version() >= STATES_SINCE and all(map(_has_state, nodes))
        if not self._by_state and type(nodes[-1]).__name__ in LEAVES and all(map(_is_one_by_one, nodes[:-1])):
            self._leaf = nodes[-1]
            self._leaf._state_dict["shard_idx"] = self._file
            return self._with_files()
        return self._plainly()

    def _plainly(self) -> Iterator[Any]:
        from datasets.formatting import get_formatter

        nodes, formatting = self._nodes, self._twin._formatting
        masked: BaseException | None = None
        try:
            if formatting and (nodes.iter_arrow or formatting.is_table):
                formatter = get_formatter(formatting.format_type, features=self._twin.features)
                for _, table in nodes.iter_arrow():
                    yield formatter.format_row(table)
            else:
                for _, sample in nodes:
                    yield sample
        except ImportError as error:
            masked = error
        except RuntimeError as error:
            # Of nodes with async functions: cleaning up fails in a thread without a loop, and hides what went wrong.
            masked = error.__context__
            if masked is None or not str(error).startswith("There is no current event loop"):
                raise
        finally:
            for node in nodes_of(nodes):
                for loop, tasks in node.__dict__.get("_owned_loops_and_tasks", ()):
                    _end(loop, tasks)
        if isinstance(masked, ImportError):  # torchcodec, for one
            raise lacking(str(self._twin.info.dataset_name or "datasets.IterableDataset"), masked) from masked
        if masked is not None:
            raise masked

    def _with_files(self) -> Iterator[Any]:
        """The same, noting which sample is the first of its file."""
        state, position = self._leaf._state_dict, self._position
        for sample in self._plainly():
            if state["shard_idx"] != self._file:
                self._file, self._position = state["shard_idx"], position
            position += 1
            yield sample


def _end(loop: asyncio.AbstractEventLoop, tasks: list[asyncio.Task[Any]]) -> None:
    """What async functions of ``map`` have under way, and their loop: the library leaves both open."""
    import asyncio

    if loop.is_closed() or loop.is_running():
        return
    for task in tasks:
        task.cancel()
    if tasks:  # of none gather would make another loop
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


def _version() -> tuple[int, ...]:
    import datasets

    return tuple(int(part) for part in datasets.__version__.split(".")[:2])


def _kind(node: Any) -> str:
    """The name of the library's node; of somebody else's nothing is known."""
    return type(node).__name__ if type(node).__module__ == "datasets.iterable_dataset" else ""


def _has_state(node: Any) -> bool:
    """Whether the state of the node is exact."""
    # Functions of tables may skip a batch; of async ones it is not known with hundreds under way.
    of_tables = "function" in node.__dict__ and node.formatting and node.formatting.is_table
    return _kind(node) in STATES and not of_tables and not _is_async(node)


def _is_one_by_one(node: Any) -> bool:
    if "function" in node.__dict__:
        return _kind(node) in ONE_BY_ONE and not (node.batched or node.with_indices or _is_async(node))
    return _kind(node) in ONE_BY_ONE and getattr(node, "batch_size", 1) == 1


def _is_async(node: Any) -> bool:
    return inspect.iscoroutinefunction(getattr(node, "function", None))


def _divisible(node: Any) -> bool:
    whole = getattr(node, "with_indices", False) or getattr(node, "drop_last_batch", False)
    return _kind(node) in DIVISIBLE and not whole


def _twin(dataset: IterableDataset, epoch: int) -> IterableDataset:
    """The same pipeline with nodes of its own, at the beginning of this epoch."""
    twin = object.__new__(type(dataset))
    twin.__dict__.update(dataset.__dict__)  # not copy(): the library's would share one dict with the original
    twin._ex_iterable = _own(dataset._ex_iterable)
    twin._starting_state_dict = None
    twin._epoch = epoch
    return twin


def _own(node: Any) -> Any:
    """A copy of a node and of all below it, without what a pass left in them."""
    own = copy(node)
    own._state_dict = None
    if hasattr(own, "_owned_loops_and_tasks"):
        own._owned_loops_and_tasks = []
    if getattr(own, "_sleep_on_threads_shutdown", False):
        # datasets >= 5.1 sleeps 5 s wherever a pass over several files ends, in case the interpreter exits next while
        # pyarrow's threads still read (apache/arrow#45214): ours are closed in the middle of a program's life too
        own._sleep_on_threads_shutdown = False
    if "ex_iterable" in own.__dict__:
        own.ex_iterable = _own(own.ex_iterable)
    if "ex_iterables" in own.__dict__:
        own.ex_iterables = [_own(child) for child in own.ex_iterables]
    return own
