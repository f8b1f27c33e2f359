"""``complete_dataset``: the index of a dataset whose writers came to an end and whose last step did not happen.

Each writer of a team leaves ``{rank}.index.json`` (LitData's, and lazystore's own), each node of a cluster
``{node}-index.json``; together they are the index. What was lost with a writer cannot be made up here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lazystore.errors import ConfigError, DatasetNotFoundError, FormatError
from lazystore.fetch import open_source
from lazystore.fetch.options import is_local
from lazystore.formats.chunk_files import Folder, open_folder
from lazystore.formats.dataset_folder import INDEX_NAME, Claim, finish_dataset
from lazystore.formats.index_writer import Part
from lazystore.formats.key_writer import KeyTable
from lazystore.parallel.writing.checkpoint import RUN_NAME
from lazystore.parallel.writing.stored import index_part, sizes, whole_file_suffix

__all__ = ["complete_dataset"]

_PART = re.compile(r"(\d+)([.-])index\.json")
_CHUNK = re.compile(r"chunk-.*\.bin")
#: names a message lists
_NAMED = 5


def complete_dataset(
    output_dir: str | os.PathLike[str],
    *,
    partial: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    timeout: float = 300.0,
) -> int:
    """Write the ``index.json`` of a dataset from what its writers left; does nothing where there is one.

    The parts are joined in natural order of their numbers. Every chunk they list must be there with the size they
    list. The index appears at once; the parts go afterwards.

    Parameters:
        output_dir: the folder or URL.
        partial: leave out chunks that no part lists: the work of a writer that died.
        storage_options: for the URL's filesystem, in its own names or boto3's.
        timeout: seconds one request may take, retries included.

    Returns the number of items.

    Raises:
        DatasetNotFoundError: there are no parts, or chunks are missing; names them.
        FormatError: parts that cannot be joined, or chunks of another size; names them.
        ConfigError: chunks that no part lists, unless ``partial``; an unfinished ``write_dataset``, which only
            continuing it can complete.
        FetchError, WriteError: the storage failed.

    Cost: one request a chunk for its size. Threads: the caller's.
    """
    folder = open_folder(output_dir, None if is_local(output_dir) else storage_options)
    names = folder.names()
    if INDEX_NAME in names:
        return index_part(folder.read(INDEX_NAME), f"{folder.url}/{INDEX_NAME}")[0].count
    if RUN_NAME in names:
        raise ConfigError(
            f"{folder.url} holds an unfinished run of write_dataset; call it again with use_checkpoint=True"
        )
    parts = _parts(folder, names)
    listed = {chunk["filename"]: chunk for _, part in parts for chunk in part.chunks}
    _refuse_missing(folder, sorted(listed.keys() - set(names)), len(listed))
    unlisted = [name for name in names if _CHUNK.fullmatch(name) and name not in listed]
    if unlisted and not partial:
        raise ConfigError(
            f"{folder.url}: no part lists {_some(unlisted)}: a writer died before it wrote its index, and its items "
            "would be missing. Write the dataset again, or leave them out with partial=True"
        )
    source = open_source(output_dir, storage_options)
    try:
        found = sizes(source, list(listed), timeout=timeout)
    finally:
        source.close()
    _refuse_torn(folder, parts, found)
    finish_dataset(folder, parts, claim=Claim(), keys=_keys(folder, names, parts))
    for name in folder.names():
        if re.fullmatch(r"\d+[.-]keys\.parquet", name):
            folder.delete(name)
    return sum(part.count for _, part in parts)


def _parts(folder: Folder, names: Sequence[str]) -> list[tuple[str, Part]]:
    """The parts by name, in natural order; a rank's that is in its node's already is left out."""
    found = []
    for name in names:
        match = _PART.fullmatch(name)
        if match is not None:
            part, _ = index_part(folder.read(name), f"{folder.url}/{name}")
            found.append((int(match[1]), match[2], name, part))
    if not found:
        raise DatasetNotFoundError(
            f"{folder.url} has neither {INDEX_NAME} nor parts of one (0.{INDEX_NAME}, ...): nothing was finished there"
        )
    of_nodes = {chunk["filename"] for _, sign, _, part in found if sign == "-" for chunk in part.chunks}
    return [
        (name, part)
        for _, sign, name, part in sorted(found, key=lambda entry: entry[:3])
        if sign == "-" or not of_nodes.issuperset(chunk["filename"] for chunk in part.chunks)
    ]


def _refuse_missing(folder: Folder, missing: Sequence[str], total: int) -> None:
    if missing:
        raise DatasetNotFoundError(
            f"{folder.url}: {len(missing)} of {total} chunks are missing: {_some(missing)}. Bring them back, or "
            "write the dataset again"
        )


def _refuse_torn(folder: Folder, parts: Sequence[tuple[str, Part]], found: Mapping[str, int]) -> None:
    """A chunk must have the size its part lists; of a file that is compressed as a whole, nobody noted the size."""
    torn = []
    for _, part in parts:
        for chunk in part.chunks:
            name, wanted = chunk["filename"], chunk.get("chunk_bytes")
            whole = whole_file_suffix(name, part.config) != ".bin"
            if not found[name] or (not whole and isinstance(wanted, int) and found[name] != wanted):
                torn.append(f"{name} ({found[name]} bytes instead of {'some' if whole else wanted})")
    if torn:
        raise FormatError(f"{folder.url}: {len(torn)} of {len(found)} chunks are damaged: {_some(torn)}")


def _keys(folder: Folder, names: Sequence[str], parts: Sequence[tuple[str, Part]]) -> KeyTable | None:
    """The items' keys, which each part has in a file of its own; None without."""
    files = {name: name.replace("index.json", "keys.parquet") for name, part in parts if part.chunks}
    missing = [keys for keys in files.values() if keys not in names]
    if len(missing) == len(files):
        return None
    if missing:
        raise DatasetNotFoundError(f"{folder.url}: the keys of some parts are missing: {_some(missing)}")
    whole = KeyTable()
    for name, part in parts:
        if part.chunks:
            data = folder.read(files[name])
            whole.extend(KeyTable.read([data], count=part.count, place=f"{folder.url}/{files[name]}"))
    return whole


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
