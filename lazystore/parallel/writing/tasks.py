"""One task: some contiguous inputs, run through the user's function into chunk files of their own.

Module-level and picklable throughout, so that any executor can carry it to any machine that reaches the output
folder. What comes back is small: entries for the index, never samples.
"""

from __future__ import annotations

import base64
import contextlib
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from lazystore.errors import LazyStoreError
from lazystore.formats.chunk_files import Folder
from lazystore.formats.dataset_folder import Claim
from lazystore.formats.index_writer import Part
from lazystore.formats.key_writer import KeyTable
from lazystore.formats.shard_writer import ShardWriter
from lazystore.formats.write_settings import WriteSettings
from lazystore.parallel.failures import Failed

__all__ = ["Done", "Job", "Outcome", "Parcel", "Task", "run_task"]

#: ranks of tasks that an executor may run twice at once have this many digits of chance
_CHANCE = 10**9


@dataclass(frozen=True, slots=True)
class Job:
    """What all tasks of a run share.

    Attributes:
        fn, key_fn: the user's.
        folder, settings, claim: where to, how, and under which names.
        twice: a task may be run a second time while its first worker still lives.
        settle: a task's chunks must outlive a power cut before it counts as done; else the end of the run sees to that.
    """

    fn: Callable[[Any], Any]
    folder: Folder
    settings: WriteSettings
    claim: Claim
    key_fn: Callable[[Any], Any] | None = None
    twice: bool = False
    settle: bool = False


@dataclass(frozen=True, slots=True)
class Parcel:
    """Some inputs, pickled."""

    data: bytes


@dataclass(slots=True)
class Task:
    """Some contiguous inputs.

    Attributes:
        number: in order of the inputs; also the rank in its chunks' names.
        first, count: of its inputs.
        parcels: the inputs in slices, each a sequence or a :class:`Parcel` of one.
        digest: of the inputs, "" when nobody asks.
        like: the config of an index whose schema the samples must have; None: the first sample's.
    """

    number: int
    first: int
    count: int
    parcels: list[Parcel | Sequence[Any]]
    digest: str = ""
    like: dict[str, Any] | None = None


@dataclass(slots=True)
class Done:
    """What a task gave.

    Attributes:
        first, count, digest: of its inputs.
        part: its chunks.
        fill: how many chunks it filled: 2.5 are two whole ones and a half.
        keys: of its items, in order; None without a key function.
    """

    first: int
    count: int
    digest: str
    part: Part
    fill: float
    keys: KeyTable | None = None

    @property
    def files(self) -> list[str]:
        """Names of its chunks."""
        return [str(chunk["filename"]) for chunk in self.part.chunks]

    def as_json(self) -> dict[str, Any]:
        """For a checkpoint."""
        keys = None if self.keys is None else base64.b64encode(self.keys.part_file()).decode("ascii")
        part = {"chunks": self.part.chunks, "config": self.part.config, "digests": self.part.digests}
        head = {"first": self.first, "count": self.count, "digest": self.digest, "fill": self.fill}
        return {**head, "part": part, "keys": keys}


Outcome: TypeAlias = Done | Failed


@dataclass(slots=True)
class _Spot:
    """Where a task is, for messages."""

    number: int
    value: object = None
    sample: int = 0


def run_task(job: Job, task: Task, note: Callable[[int], None] | None = None) -> Outcome:
    """Run a task; whatever ``fn`` raises is part of the outcome.

    Parameters:
        note: called with each input's number before it is worked on.
    """
    spot = _Spot(task.first)
    writer = None
    try:
        keys = None if job.key_fn is None else KeyTable()
        writer = _writer(job, task, keys)
        for value in _inputs(task, spot):
            if note is not None:
                note(spot.number)
            result = job.fn(value)
            if isinstance(result, Iterator):
                for spot.sample, sample in enumerate(result):
                    writer.write(sample)
            elif result is not None:
                writer.write(result)
            spot.number += 1
            spot.sample = 0
        spot.value = None
        writer.flush()
        if job.settle:
            job.folder.settle(chunk["filename"] for chunk in writer.part.chunks)
    except (Exception, SystemExit) as error:  # noqa: BLE001 (it is raised again in the calling process)
        if writer is not None:
            with contextlib.suppress(LazyStoreError):  # the error under way says more; leftovers are swept at the end
                writer.take_back()
        return Failed(error, spot.number, spot.value, "write_dataset: input", spot.sample)
    return Done(task.first, task.count, task.digest, writer.part, _fill(writer.part, job.settings), keys)


def _writer(job: Job, task: Task, keys: KeyTable | None) -> ShardWriter:
    rank = task.number * _CHANCE + random.SystemRandom().randrange(_CHANCE) if job.twice else task.number
    claim = job.claim if task.like is None else replace(job.claim, part=Part(config=task.like))
    return ShardWriter(job.folder, job.settings, rank=rank, claim=claim, start=task.first, key_fn=job.key_fn, keys=keys)


def _fill(part: Part, settings: WriteSettings) -> float:
    """How many chunks a part would fill."""
    if not part.chunks:
        return 0.0
    *whole, last = part.chunks
    if whole:
        return len(whole) + int(last["chunk_size"]) * len(whole) / sum(int(chunk["chunk_size"]) for chunk in whole)
    if settings.chunk_size is not None:
        return int(last["dim"] if settings.tokens else last["chunk_size"]) / settings.chunk_size
    # less than the truth where items are compressed; the next, larger tasks show it
    return int(last["chunk_bytes"]) / settings.chunk_bytes if settings.chunk_bytes else 0.0


def _inputs(task: Task, spot: _Spot) -> Iterator[Any]:
    for parcel in task.parcels:
        spot.value = None
        inputs = pickle.loads(parcel.data) if isinstance(parcel, Parcel) else parcel
        for spot.value in inputs:
            yield spot.value
