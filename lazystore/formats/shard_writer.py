"""``ShardWriter``: samples to chunk files of one writer, with what an index has to say about them.

What a lone ``DatasetWriter`` and each rank of a team have in common: encoding, the rule by which chunks close, and
the files. Which dataset the chunks become part of is ``dataset_folder``'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lazystore._core.encode import FlatEncoder, ItemBuffer
from lazystore.errors import ConfigError, FormatError
from lazystore.formats.chunk_files import Folder
from lazystore.formats.dataset_folder import Claim
from lazystore.formats.index_writer import Part, same_schema
from lazystore.formats.key_writer import KeyTable
from lazystore.formats.packing import MAX_CHUNK_BYTES, PACKED_EMPTY, PACKED_ITEM, Packer
from lazystore.formats.sample_encoder import SampleEncoder, TokenEncoder
from lazystore.formats.write_settings import WriteSettings

__all__ = ["KeyFunction", "ShardWriter"]

KeyFunction = Callable[[Any], int | str]


class ShardWriter:
    """Write samples as chunks ``chunk-{rank}-{k}``; no index.

    Parameters:
        folder: where to.
        settings: how.
        rank: this writer's number in its team.
        claim: what :func:`~lazystore.formats.dataset_folder.claim` found: names that are free, and the schema of
            the dataset that is added to.
        start: number of the first sample, for messages.
        key_fn: a sample's key.
        keys: where they are collected; needed with ``key_fn``.

    Belongs to the thread and the process that made it; does not pickle. Memory: the items of one chunk, and their
    compressed or encrypted form, or what goes to a URL, while they are written.
    """

    def __init__(
        self,
        folder: Folder,
        settings: WriteSettings,
        *,
        rank: int = 0,
        claim: Claim | None = None,
        start: int = 0,
        key_fn: KeyFunction | None = None,
        keys: KeyTable | None = None,
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._packer = Packer(settings)
        self._rank = rank
        self._claim = claim or Claim()
        self._start = start
        self._key_fn = key_fn
        self._keys = keys
        self._encoder: SampleEncoder | TokenEncoder | None = None
        #: the quick way, where nothing has to be done to an item but packing it
        self._quick: FlatEncoder | None = None
        if self._claim.part.config is not None:
            self._freeze(_encoder_of(self._claim.part.config, settings))
        self._items = self._empty()
        #: what was written so far; complete after :meth:`flush`
        self.part = Part()
        #: samples accepted so far
        self.num_items = 0
        #: bytes of the chunk files written so far, as they are stored
        self.bytes_written = 0

    def _empty(self) -> ItemBuffer:
        settings = self._settings
        return ItemBuffer(
            max_bytes=MAX_CHUNK_BYTES if settings.chunk_bytes is None else settings.chunk_bytes,
            max_count=MAX_CHUNK_BYTES if settings.chunk_size is None else settings.chunk_size,
            max_packed=MAX_CHUNK_BYTES,
        )

    def write(self, sample: object) -> None:
        """Append one sample. The first fixes the structure; a refused sample leaves the writer usable.

        Raises:
            FormatError: the sample's structure or a leaf's type differs from the first sample's, or the format
                cannot keep it, or its key is not new; names the sample and the key.
            WriteError: a chunk could not be written; the sample was not taken, and may be written again.
        """
        if self._quick is not None:
            taken = self._items.add_flat(self._quick, sample)
            if taken > 0:
                self.num_items += 1
                return
            if not taken:
                self.flush()
        number = self._start + self.num_items
        encoder = self._encoder or self._frozen(sample, number)
        item = self._packer.seal(encoder.encode(sample, number=number), number)
        nbytes = len(item)
        packed = PACKED_ITEM + self._packer.worst(nbytes)
        if packed > MAX_CHUNK_BYTES - PACKED_EMPTY or not nbytes:
            self._refuse(nbytes, number)
        key = None if self._keys is None or self._key_fn is None else self._keys.check(self._key_fn(sample))
        count = nbytes // encoder.token_bytes or 1 if encoder.token_bytes else 1
        if not self._items.add(item, count=count, packed=packed):
            self.flush()
            self._items.add(item, count=count, packed=packed)
        if key is not None and self._keys is not None:
            self._keys.add(key)
        if self._encoder is None:
            self._freeze(encoder)
        self.num_items += 1

    def _freeze(self, encoder: SampleEncoder | TokenEncoder | None) -> None:
        settings = self._settings
        self._encoder = encoder
        plain = self._keys is None and settings.encrypts != "sample" and settings.compression_level != "sample"
        self._quick = encoder.flat if plain and isinstance(encoder, SampleEncoder) else None

    def _refuse(self, nbytes: int, number: int) -> None:
        """Say why an item of this size cannot be written; return if it can."""
        if nbytes:
            raise FormatError(
                f"sample {number}: its {nbytes} bytes do not fit in a chunk, whose offsets end at 4 GiB; "
                "split the sample"
            )
        if self._settings.in_file and self._settings.compression_level == "batch":
            raise FormatError(f"sample {number}: it has no bytes at all, and frames of such items cannot be read back")

    def _frozen(self, sample: object, number: int) -> SampleEncoder | TokenEncoder:
        if self._settings.tokens:
            encoder = TokenEncoder(sample, number=number)
            config = self._claim.part.config
            if config is not None and encoder.data_format != config["data_format"]:
                raise FormatError(
                    f"sample {number}: tokens of encoding {encoder.data_format}; those of the dataset have "
                    f"{config['data_format']}"
                )
            return encoder
        return SampleEncoder(sample, number=number, allow_pickle=self._settings.allow_pickle)

    def flush(self) -> None:
        """Write the items at hand as a chunk, if there are any.

        Raises:
            WriteError: it could not be written; may be tried again.
            FormatError: the chunk cannot be encrypted.
        """
        encoder, items = self._encoder, self._items
        if not len(items) or encoder is None:
            return
        name = self._claim.chunk_name(self._rank, len(self.part.chunks), self._packer.suffix)
        with self._packer.packed(items) as (size, pieces):
            written = self._folder.write(name, pieces, digest=self._settings.checksums)
        tokens = items.nbytes // encoder.token_bytes if encoder.token_bytes else None
        self.part.chunks.append({"chunk_bytes": size, "chunk_size": len(items), "dim": tokens, "filename": name})
        if written.digest:
            self.part.digests[name] = written.digest
        if self.part.config is None:
            self.part.config = self._settings.config(encoder.data_format, encoder.data_spec)
        self.bytes_written += written.nbytes
        items.clear()

    def take_back(self) -> None:
        """Remove the chunks written so far, and forget the items at hand."""
        self._items = self._empty()  # the old one's views may live in a traceback
        for chunk in self.part.chunks:
            self._folder.delete(chunk["filename"])
        self.part = Part()


def _encoder_of(config: dict[str, Any], settings: WriteSettings) -> SampleEncoder | None:
    """The encoder that goes on with a dataset; None for tokens, which have their first new sample's."""
    difference = same_schema(config, settings.config(config["data_format"], config["data_spec"]))
    if difference:
        raise ConfigError(f"the dataset cannot be added to like this: it and the arguments differ in {difference}")
    if settings.tokens:
        return None
    return SampleEncoder.from_schema(config["data_format"], config["data_spec"], allow_pickle=settings.allow_pickle)
