"""``DatasetWriter``: samples into a dataset in LitData's classic format, at a path or URL.

One process; teams of processes are ``parallel``'s. What an item's bytes are is decided in ``sample_encoder``, a
chunk's in ``packing``; ``dataset_folder`` makes the result visible.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from lazystore.errors import ClosedError, ConfigError, WriteError
from lazystore.formats.chunk_files import open_folder
from lazystore.formats.dataset_folder import Claim, check_same_key, claim, finish_dataset
from lazystore.formats.key_writer import KeyTable
from lazystore.formats.shard_writer import KeyFunction, ShardWriter
from lazystore.formats.write_settings import BATCH_SIZE, Encrypting, WriteSettings, write_settings

__all__ = ["DatasetWriter", "keys_of", "means_tokens", "settings_to_append"]


class DatasetWriter:
    """Write samples to a dataset folder that lazystore and LitData read.

    A context manager: leaving the block completes the dataset by writing ``index.json`` last; leaving it through an
    exception removes what was written. Samples are dicts (also OrderedDicts), lists, tuples and deques of str, bytes,
    bool, int, float, None, numpy arrays, torch tensors and PIL images, or one such value. The first sample fixes the
    structure; later ones with other keys, lengths or types are refused by number, dicts with another order of keys
    are put in the first one's.

    Files appear under their final names whole. Whenever the process dies there is the old dataset or the new one;
    before ``index.json`` takes its place all files are synced, so that this holds for power cuts as well (a local
    disk; object stores keep what they acknowledge). Holds the items of one chunk in memory, and once more their bytes
    while they are compressed, encrypted or sent to a URL. The same samples and arguments give the same bytes, but
    for ``updated_at`` and for what encryption adds.

    LitData 0.2.76 and 0.2.61 read what is written; ``compression_level`` "batch" and "sample" need 0.2.74.

    Belongs to the thread and the process that made it; does not pickle.

    Parameters:
        output_dir: a local path, made if missing, or any URL fsspec can write.
        chunk_bytes: close a chunk before its items exceed this many bytes: an int, or "64MB" (decimal) or "64MiB".
            A larger item gets a chunk of its own. Default 64 MB.
        chunk_size: instead of ``chunk_bytes``, close a chunk at this many items (tokens, for tokens). In both cases
            a chunk also closes before 4 GiB, where the format's offsets end.
        compression: None, ``"zstd"`` or ``"zstd:LEVEL"`` (1 to 22).
        compression_level: what is one zstd frame: "chunk" (the file), "batch" (items together, for random access)
            or "sample".
        compression_batch_size: items of a frame with "batch".
        encryption: :class:`~lazystore.FernetEncryption` and the like; its ``level`` says whether samples or chunks
            are encrypted. Not with "batch", "sample" or tokens.
        mode: None: there must be no dataset in the folder. "append": add chunks to the one that is there, if any;
            compression, encryption and structure must be the dataset's (``compression=None`` takes them over).
            "overwrite": take the place of the one that is there, which stays readable until then.
        key_fn: an int or str for each sample, unlike all others, for ``get_by_key``. Takes some 130 bytes of memory
            a key.
        checksums: record a BLAKE2b digest of each chunk file in ``index.json``.
        tokens: samples are 1-D arrays of tokens, to be read as blocks with ``TokensLoader``.
        item_loader: LitData's way to say so: a ``TokensLoader``.
        allow_pickle: pickle what has no encoding of its own, instead of refusing it.
        storage_options: for the URL's filesystem, in its own names or boto3's.

    Raises:
        ConfigError: an argument that cannot work, or a dataset that is in the way.
        FormatError: the dataset to add to is damaged.
        MissingExtraError: compression without the ``zstd`` extra, keys without ``arrow``, a URL without its own.
        WriteError: the folder cannot be listed or made.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        *,
        chunk_bytes: int | str | None = None,
        chunk_size: int | None = None,
        compression: str | None = None,
        compression_level: str = "chunk",
        compression_batch_size: int = BATCH_SIZE,
        encryption: Encrypting | None = None,
        mode: str | None = None,
        key_fn: KeyFunction | None = None,
        checksums: bool = True,
        tokens: bool = False,
        item_loader: object = None,
        allow_pickle: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
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
        self._closed = True  # until there is something to close
        self._folder = open_folder(output_dir, storage_options)
        self._claim = claim(self._folder, mode)
        self._keys = keys_of(self._claim, self._folder.url, wanted=key_fn is not None)
        self._shard = ShardWriter(
            self._folder,
            settings_to_append(settings, self._claim),
            claim=self._claim,
            start=self._claim.part.count,
            key_fn=key_fn,
            keys=self._keys,
        )
        check_same_key(self._folder, self._claim.part, encryption)
        self._folder.prepare()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        counts = f"{self.num_items} items, {len(self._shard.part.chunks)} chunks"
        return f"DatasetWriter({self._folder.url!r}, {counts}, {state})"

    @property
    def num_items(self) -> int:
        """Samples accepted so far."""
        return self._shard.num_items

    @property
    def bytes_written(self) -> int:
        """Bytes of the chunk files written so far, as they are stored."""
        return self._shard.bytes_written

    def write(self, sample: object) -> None:
        """Append one sample. The first fixes the structure; a refused sample leaves the writer usable.

        Raises:
            FormatError: the sample's structure or a leaf's type differs from the first sample's, the format cannot
                keep it, or its key is not new; names the sample and the key.
            ClosedError: the writer is closed.
            WriteError: a chunk could not be written; the sample was not taken, and may be written again.
        """
        self._require_open()
        self._shard.write(sample)

    def close(self) -> None:
        """Write the last chunk, then ``index.json``. Closing twice is fine.

        Raises:
            ConfigError: no sample was written, so there is no format to record (adding none is fine).
            WriteError: a file could not be written; what this writer wrote is removed, an old dataset is as it was.
        """
        if self._closed:
            return
        if not self.num_items:
            self._closed = True
            if self._claim.part.chunks:
                return
            raise ConfigError(f"no sample was written to {self._folder.url}: a dataset's format comes from its samples")
        try:
            self._shard.flush()
            finish_dataset(self._folder, [("the new chunks", self._shard.part)], claim=self._claim, keys=self._keys)
        except BaseException as error:
            self._abort(error)
            raise
        self._closed = True

    def __enter__(self) -> Self:
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed:
            self._abort(error)

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError(f"the writer of {self._folder.url} is closed; make a new one")

    def _abort(self, error: BaseException) -> None:
        """Close without an index, and take back the chunks this writer made (only those).

        Parameters:
            error: why; where chunks cannot be removed, it is told so in a note rather than replaced.
        """
        self._closed = True
        try:
            self._shard.take_back()
        except WriteError as left:
            error.add_note(f"chunks that were written already could not be removed: {left}")


def means_tokens(tokens: bool, item_loader: object) -> bool:
    """Whether these arguments say that samples are tokens: by the loader's class name, as LitData has it.

    Raises:
        ConfigError: a loader that says nothing about writing.
    """
    if item_loader is None:
        return tokens
    kind = item_loader if isinstance(item_loader, type) else type(item_loader)
    names = {base.__name__ for base in kind.__mro__}
    if "TokensLoader" in names:
        return True
    if names.isdisjoint({"PyTreeLoader", "InMemoryItemLoader"}):
        raise ConfigError(f"item_loader={item_loader!r} is not a TokensLoader or PyTreeLoader; leave it out")
    return tokens


def settings_to_append(settings: WriteSettings, claim: Claim) -> WriteSettings:
    """The settings for a folder: where chunks are added, the dataset's compression unless one was asked for."""
    config = claim.part.config
    if config is None or settings.compression is not None or config.get("compression") is None:
        return settings
    return dataclasses.replace(
        settings,
        compression=config["compression"],
        compression_level=config.get("compression_level") or "chunk",
        compression_batch_size=config.get("compression_batch_size") or BATCH_SIZE,
    )


def keys_of(claim: Claim, place: str, *, wanted: bool) -> KeyTable | None:
    """The table new keys go to, with those of the dataset that is added to; None for a dataset without.

    Raises:
        ConfigError: some items would have keys, and others not.
        FormatError: the keys of the dataset cannot be read.
    """
    count = claim.part.count
    has_keys = "keys" in claim.extra
    if count and wanted != has_keys:
        had, remedy = ("keys", "give key_fn") if has_keys else ("no keys", "leave key_fn out")
        raise ConfigError(f"the dataset in {place} has {had}, and all its items must be alike: {remedy}")
    if not wanted:
        return None
    return KeyTable.read(claim.keys.values(), count=count, place=place) if count else KeyTable()
