"""MosaicML's datasets: MDS shards, and the door to its JSON and XSV shards (``mosaic_text.py``).

A plain MDS shard is a chunk in the classic layout with some bytes between its offset table and its first item, so
it is read as it lies; a compressed one becomes a chunk when it is inflated.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping
from typing import Any, ClassVar

from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError, DatasetNotFoundError, FormatError
from lazystore.fetch.segments import SegmentedSource
from lazystore.formats.codecs import Codec
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT, Format, Opened, Options, Place
from lazystore.formats.mds_leaves import column_leaf
from lazystore.formats.mosaic_codec import MixedCodec
from lazystore.formats.mosaic_files import MAX_SHARD_BYTES, about, stored_forms, verified
from lazystore.formats.mosaic_index import TEXT_FORMATS, Columns, MosaicIndex, StoredFile, parse_index
from lazystore.formats.stream_codecs import codec_for

__all__ = ["MdsFormat"]


class MdsFormat(Format):
    """Datasets written by MosaicML Streaming: an index.json of version 2 and its shards.

    ``serializers`` decode columns by their name or their encoding. ``raw=True`` gives every column as its stored bytes
    (the writer stores bytes as they are under any encoding). ``verify=True`` checks each shard against the first hash
    of the index that can be computed here, ``validate_hash`` against the one that is named; what is checked is the
    file that is read, for compressed shards the compressed one. Each is read once more in whole for that, before
    anything of it is used.

    With compression, plain shards are read where they are on a local disk in their full length, compressed ones
    otherwise. Shards without samples are passed over. Nothing is ever written or deleted.
    """

    name: ClassVar[str] = "mds"

    def recognises(self, index: Mapping[str, Any]) -> bool:
        return "shards" in index

    def open(self, place: Place, options: Options) -> Opened:
        """See :class:`~lazystore.formats.format.Format`.

        Raises:
            UnsupportedError: besides unknown compressions, shards of different columns in one (merged) index.
            UnsafeDataError: (at the item) a ``pkl`` column without ``allow_pickle``.
        """
        options.refuse_all_but("serializers", "verify", "validate_hash", "raw", format=self.name)
        if options.extra:
            raise ConfigError(f"format {self.name!r} has no format_options; given were {sorted(options.extra)}")
        url = f"{place.url}/index.json"
        if not place.index:
            raise DatasetNotFoundError(f"{url} does not exist; a MosaicML dataset has one")
        index = parse_index(place.index, place=url)
        if index.kind in TEXT_FORMATS:
            from lazystore.formats.mosaic_text import open_text

            return open_text(index, place, options)
        return _open_shards(index, place, options)


def _open_shards(index: MosaicIndex, place: Place, options: Options) -> Opened:
    forms = stored_forms(index, place)
    files: list[StoredFile] = []
    for i, (shard, form) in enumerate(zip(index.shards, forms, strict=True)):
        nbytes = shard.raw.nbytes
        if nbytes > MAX_SHARD_BYTES:
            raise FormatError(
                f"{place.url}: shard {i} ({shard.raw.name}) has {nbytes} bytes, beyond what its 32-bit offsets reach: "
                "they have wrapped around; write it again with a size_limit below 4 GiB"
            )
        if nbytes < OFFSETS_AT + OFFSET_WIDTH * (shard.samples + 1):
            raise FormatError(
                f"{place.url}: shard {i} ({shard.raw.name}) has {shard.samples} samples in {nbytes} bytes"
            )
        stored = shard.zipped if form else shard.raw
        assert stored is not None
        files.append(stored)
    source = verified((f for f, shard in zip(files, index.shards, strict=True) if shard.samples), options, place)
    hints = array("Q", [shard.raw.nbytes for shard in index.shards])
    codec: Codec | None = None
    algorithms = {form.partition(":")[0] for form in forms}
    if len(algorithms) > 1:
        codec = mixed = MixedCodec(forms, max(hints))
        source = SegmentedSource(
            source, {file.name: mixed.segments(form, file) for file, form in zip(files, forms, strict=True)}
        )
    elif any(forms):
        codec = codec_for(forms[0], largest=max(hints))
    return Opened(
        format="mds",
        source=source,
        names=[file.name for file in files],
        counts=array("Q", [shard.samples for shard in index.shards]),
        hints=hints,
        plan=compile_columns(index.columns, options),
        exact=True,
        codec=codec,
        version=hashlib.blake2b(place.index, digest_size=16).hexdigest(),
        about=about(index, forms),
    )


def compile_columns(columns: Columns, options: Options) -> DecodePlan:
    """The plan of MDS items: a dict of columns, those of fixed length without a size before them.

    Raises:
        FormatError: an encoding nobody knows, or one of another length than the index says.
    """
    leaves = [
        column_leaf(
            name, encoding, size,
            allow_pickle=options.allow_pickle, serializers=options.serializers, raw=options.raw,
        )
        for name, encoding, size in zip(columns.names, columns.encodings, columns.sizes, strict=True)
    ]  # fmt: skip
    tree: list[tuple[Any, ...]] = [("leaf",)] * len(leaves)
    return DecodePlan(leaves, [*tree, ("dict", columns.names)], names=columns.names)
