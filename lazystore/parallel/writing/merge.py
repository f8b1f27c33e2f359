"""``merge_datasets``: several datasets copied into one, in the order given."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lazystore.errors import ConfigError, FormatError
from lazystore.formats.chunk_files import Folder, open_folder
from lazystore.formats.dataset_folder import Claim, claim, finish_dataset
from lazystore.formats.index_writer import Part, same_schema
from lazystore.formats.key_writer import KeyTable
from lazystore.parallel.writing.stored import StoredDataset, whole_file_suffix
from lazystore.progress import Progress

__all__ = ["merge_datasets"]


def merge_datasets(
    input_dirs: Sequence[str | os.PathLike[str]],
    output_dir: str | os.PathLike[str],
    *,
    keys: bool = True,
    checksums: bool = True,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 300.0,
    progress: bool = True,
) -> int:
    """Put datasets together: their chunks are copied to a new folder, under new names.

    The datasets must be of one schema: the same leaves, containers, compression, encryption and loader; limits of
    chunks may differ. Whether two encrypted datasets have one key cannot be seen: they must. LitData's and lazystore's
    own are understood, whatever is inside the chunks. The index comes last, so that the new dataset is seen whole or
    not at all; what was copied is removed when something fails.

    Parameters:
        input_dirs: folders or URLs, in the order their items will have; those without items are passed over.
        output_dir: a folder or URL without a dataset.
        keys: carry on the items' keys, which all or none of the datasets must have. False: leave them out.
        checksums: record a digest of each chunk. Those the datasets have are checked in any case.
        storage_options: for all URLs among the folders, in the filesystem's own names or boto3's.
        timeout: seconds one read may take, retries included.
        progress: show it on a terminal.

    Returns the number of items.

    Raises:
        ConfigError: no datasets, schemas that differ, keys in some of them only, or a dataset in ``output_dir``.
        DatasetNotFoundError: one is not there, or a chunk of it.
        FormatError: an index that is none, a chunk with another digest than its index has, or one key twice.
        FetchError, WriteError: a storage failed.

    Cost: reads and writes all bytes once, 32 MiB at a time from local folders to local ones; a URL is written chunk by
    chunk. Threads: the caller's. Keys: all in memory.
    """
    if isinstance(input_dirs, (str, os.PathLike)) or not input_dirs:
        raise ConfigError("input_dirs must be a list of at least one folder or URL")
    folder = _open(output_dir, storage_options)
    hold = claim(folder, None)
    with contextlib.ExitStack() as stack:
        datasets = []
        for url in input_dirs:
            dataset = StoredDataset(url, storage_options, timeout=timeout)
            stack.callback(dataset.close)
            datasets.append(dataset)
        datasets = [dataset for dataset in datasets if dataset.part.chunks]
        if not datasets:
            raise ConfigError("none of the datasets has an item; there is nothing to merge")
        _check_schemas(datasets)
        table = _joined_keys(datasets) if keys else None
        folder.prepare()
        total = sum(len(dataset.part.chunks) for dataset in datasets)
        show = stack.enter_context(Progress(total, "merge_datasets", unit="chunks")) if progress else None
        merged: list[tuple[str, Part]] = []
        try:
            for dataset in datasets:
                part = Part(config=_config(datasets))
                merged.append((dataset.url, part))
                _copy(dataset, folder, hold, merged, checksums=checksums, show=show)
            finish_dataset(folder, merged, claim=hold, keys=table)
        except BaseException:
            if "index.json" not in folder.names():
                for _, part in merged:
                    for chunk in part.chunks:
                        folder.delete(chunk["filename"])
            raise
    return sum(part.count for _, part in merged)


def _open(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> Folder:
    """The options are for the URLs among the folders."""
    from lazystore.fetch.options import is_local

    return open_folder(url, None if is_local(url) else storage_options)


def _check_schemas(datasets: Sequence[StoredDataset]) -> None:
    first = datasets[0]
    for dataset in datasets:
        config = dataset.part.config
        if config is None or first.part.config is None:
            raise FormatError(f"{dataset.url} has chunks and no config: its writer did not finish")
        difference = same_schema(first.part.config, config)
        if config.get("temporal_schema") != first.part.config.get("temporal_schema"):
            difference = difference or "temporal_schema"
        if difference:
            raise ConfigError(f"{dataset.url} cannot be merged with {first.url}: they differ in {difference}")


def _config(datasets: Sequence[StoredDataset]) -> dict[str, Any]:
    """The config of them all. ``types`` describes rows for the writer's own use; where it varies it says nothing."""
    first = dict(datasets[0].part.config or {})
    if any((dataset.part.config or {}).get("types") != first.get("types") for dataset in datasets):
        first.pop("types", None)
    return first


def _joined_keys(datasets: Sequence[StoredDataset]) -> KeyTable | None:
    without = [dataset.url for dataset in datasets if "keys" not in dataset.extra]
    if len(without) == len(datasets):
        return None
    if without:
        raise ConfigError(f"{without[0]} has no keys, and others have; keys=False leaves all of them out")
    whole = KeyTable()
    for dataset in datasets:
        entry = dataset.extra["keys"]
        shards = entry.get("num_shards") if isinstance(entry, dict) else None
        if type(shards) is not int or not 0 < shards < 100_000:
            raise FormatError(f'{dataset.url}: the index has "keys": {entry!r}')
        files = (dataset.read(f"keys/shard-{shard:05d}.parquet") for shard in range(shards))
        whole.extend(KeyTable.read(files, count=dataset.part.count, place=dataset.url))
    return whole


def _copy(
    dataset: StoredDataset,
    folder: Folder,
    hold: Claim,
    merged: list[tuple[str, Part]],
    *,
    checksums: bool,
    show: Progress | None,
) -> None:
    """Copy a dataset's chunks into the part that is last in ``merged``."""
    source, target = dataset.part, merged[-1][1]
    number = sum(len(part.chunks) for _, part in merged)
    for chunk in source.chunks:
        old = chunk["filename"]
        new = hold.chunk_name(0, number, whole_file_suffix(old, source.config))
        known = source.digests.get(old, "")
        # listed first, so that it is removed whatever happens while it is written
        target.chunks.append({**chunk, "filename": new})
        written = folder.write(new, dataset.pieces(old), digest=checksums or bool(known))
        if known and written.digest != known:
            raise FormatError(
                f"{dataset.url}/{old} is damaged: its digest is {written.digest}, its index has {known}; nothing was "
                "merged. Copy it anew from where it came from"
            )
        if checksums:
            target.digests[new] = written.digest
        number += 1
        if show is not None:
            show.update()
