"""``write_dataset``: a function over many inputs, run by many workers, into one dataset in input order.

What the caller sees, and the order of things; how inputs are cut is in ``cutting``, who works in ``crew`` and
``workers``, what a worker does in ``tasks``, what survives a kill in ``checkpoint``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sized
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

from lazystore.errors import ConfigError
from lazystore.fetch.options import is_local, local_path
from lazystore.formats.chunk_files import open_folder
from lazystore.formats.write_settings import Encrypting, write_settings
from lazystore.formats.writer import means_tokens
from lazystore.parallel.cpus import usable_cpus
from lazystore.parallel.workers.executor_backend import executor_workers
from lazystore.parallel.writing.checkpoint import Checkpoint, fingerprint
from lazystore.parallel.writing.crew import CallingThread, Crew, ExecutorCrew
from lazystore.parallel.writing.cutting import Cutter
from lazystore.parallel.writing.run import Run
from lazystore.parallel.writing.target import Target
from lazystore.parallel.writing.tasks import Job
from lazystore.parallel.writing.workers import ProcessCrew
from lazystore.progress import Progress

__all__ = ["write_dataset"]


def write_dataset(
    fn: Callable[[Any], Any],
    inputs: Iterable[Any],
    output_dir: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
    executor: Executor | None = None,
    inputs_per_task: int | None = None,
    use_checkpoint: bool = False,
    chunk_bytes: int | str | None = None,
    chunk_size: int | None = None,
    compression: str | None = None,
    compression_level: str = "chunk",
    compression_batch_size: int = 256,
    encryption: Encrypting | None = None,
    tokens: bool = False,
    item_loader: object = None,
    mode: str | None = None,
    key_fn: Callable[[Any], Any] | None = None,
    checksums: bool = True,
    allow_pickle: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> int:
    """Run ``fn`` on every input and write what it gives, in input order.

    Inputs go to workers in tasks of many contiguous ones; a worker writes its tasks' chunks itself, and the index
    that makes them a dataset comes last. So whoever looks, and whenever a process dies, there is the old dataset
    (or none) or the new one.

    - A worker that dies (killed, out of memory) is replaced and its task done again; a task that kills three
      workers ends the run. An executor that breaks ends the run.
    - An exception in ``fn`` ends the run; it is raised as it is, with a note that names the input.
    - Without ``use_checkpoint`` a run that ends like this takes its files back.

    Tasks are sized so that a task fills up to four chunks, by what earlier tasks gave; each task's last chunk is a
    short one, and so are those of the first, trial tasks. Where the inputs give less than some four chunks a worker,
    tasks are smaller, for balance, but not below a quarter of a chunk. The layout depends on the inputs and the
    number of workers only, not on timing, and a run that was continued gives the same one.

    Parameters:
        fn: gives one sample, an iterator of samples (a generator function), or None for nothing. Worker
            processes import it: a function of a module; where that is a script, call ``write_dataset`` under
            ``if __name__ == "__main__":``.
        inputs: any iterable; lists, tuples and ranges are sliced, others are read ahead by no more than is under way.
        output_dir: a local folder or any URL fsspec can write.
        num_workers: worker processes, default one a CPU; 0: the calling thread does the work. With an executor, the
            number of tasks it runs at a time, if it does not say so itself.
        executor: any ``concurrent.futures.Executor`` instead of own processes: threads, a process pool, Dask's
            ``client.get_executor()``, mpi4py's ``MPIPoolExecutor``. Its workers must reach ``output_dir``.
        inputs_per_task: instead of automatic sizes.
        use_checkpoint: keep what was done when the run ends early; the same call then continues, and every item is
            there once. The arguments must be the same (``fn`` by name, inputs as far as they are plain values), the
            workers may be others.
        chunk_bytes, chunk_size, compression, compression_level, compression_batch_size, encryption, tokens,
            item_loader, mode, key_fn, checksums, allow_pickle, storage_options: see :class:`~lazystore.DatasetWriter`.
        progress: show it on a terminal.

    Returns the number of items written.

    Raises:
        ConfigError: an argument that cannot work; ``fn`` or an input that cannot be sent to a worker; another
            unfinished run in the folder; no items at all.
        FormatError: a sample that does not fit the first one, with a note that names the input.
        WorkerError: workers died too often, or the executor broke.
        WriteError: the storage refused.

    Memory: what is under way: up to three tasks a worker, of at most 16 MiB of pickled inputs each, and 200 bytes a
    chunk for the index; keys all at once. A worker holds one chunk. Threads: the caller's only. Not in a fork's child.
    """
    settings = write_settings(
        chunk_bytes=chunk_bytes,
        chunk_size=chunk_size,
        compression=compression,
        compression_level=compression_level,
        compression_batch_size=compression_batch_size,
        encryption=encryption,
        tokens=means_tokens(tokens, item_loader),
        checksums=checksums,
        allow_pickle=allow_pickle,
    )
    if inputs_per_task is not None and (isinstance(inputs_per_task, bool) or inputs_per_task < 1):
        raise ConfigError(f"{inputs_per_task=} must be at least 1")
    workers = _workers(num_workers, executor)
    # workers may have another current directory
    url = os.path.abspath(local_path(output_dir)) if is_local(output_dir) else output_dir
    folder = open_folder(url, storage_options)
    total = len(inputs) if isinstance(inputs, Sized) else None
    options = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    checkpoint = Checkpoint(folder, fingerprint(fn, total, {**options, "mode": mode, "key_fn": key_fn}))
    target = Target(folder, mode, checkpoint, keyed=key_fn is not None, use_checkpoint=use_checkpoint)
    if target.finished:
        return target.finish_clearing()
    job = Job(fn, folder, target.settings(settings), target.names, key_fn, settle=use_checkpoint)
    crew = _crew(job, executor, workers)
    target.begin()
    notes = checkpoint if use_checkpoint else None
    with contextlib.ExitStack() as stack:
        stack.callback(crew.close)
        show = _nothing
        if progress:
            show = stack.enter_context(Progress(total, "write_dataset", unit="inputs")).update
        cutter = Cutter(inputs, crew.pack, digests=use_checkpoint, meanwhile=crew.look)
        try:
            results = Run(crew, cutter, notes, total, inputs_per_task, target.like, show).finish()
            crew.close()
            return target.publish(results)
        except BaseException:
            crew.close()
            target.take_back()
            raise


def _nothing(count: int) -> None:
    """Nobody watches."""


def _workers(num_workers: int | None, executor: Executor | None) -> int:
    if num_workers is None:
        return usable_cpus() if executor is None else executor_workers(executor)
    if isinstance(num_workers, bool) or not isinstance(num_workers, int) or num_workers < 0:
        raise ConfigError(f"{num_workers=} must be 0 or more")
    return num_workers


def _crew(job: Job, executor: Executor | None, workers: int) -> Crew:
    if executor is None and workers:
        return ProcessCrew(job, workers=workers)
    here = executor is None or isinstance(executor, ThreadPoolExecutor)
    return ExecutorCrew(
        executor or CallingThread(), job if here else dataclasses.replace(job, twice=True), workers=max(1, workers)
    )
