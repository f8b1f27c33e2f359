"""Which of a MosaicML shard's files are read, the plain or the compressed ones, and what they are checked against.

The index cannot tell: with compression, shards are stored compressed, but a reader that ran in the same directory
leaves plain ones beside them, or instead. As MosaicML does, plain files are read where they are on a local disk, and
compressed ones otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from lazystore.errors import ConfigError, DatasetNotFoundError, MissingExtraError, UnsupportedError
from lazystore.fetch.source import Source
from lazystore.fetch.verify import VerifyingSource, hasher
from lazystore.formats.format import Options, Place
from lazystore.formats.mosaic_index import MosaicIndex, Shard, StoredFile

__all__ = ["MAX_SHARD_BYTES", "about", "stored_forms", "verified"]

#: A shard's offsets have 32 bits.
MAX_SHARD_BYTES = (1 << 32) - 1


def stored_forms(index: MosaicIndex, place: Place) -> list[str]:
    """The compression of each shard as it will be read, "" for a plain one.

    Cost: on a local disk an open file for each shard that might be there plain; nothing elsewhere.
    """
    return [
        "" if shard.compression and place.source.local and _is_plain(shard, place) else shard.compression
        for shard in index.shards
    ]


def _is_plain(shard: Shard, place: Place) -> bool:
    """Whether a compressed shard is there as a plain one, whole."""
    files = [file for file in (shard.raw, shard.raw_meta) if file is not None]
    try:
        sizes = place.source.run((), stat=[file.name for file in files], timeout=place.timeout)
    except DatasetNotFoundError:
        return False
    return all(sizes[file.name] == file.nbytes for file in files)


def verified(files: Iterable[StoredFile], options: Options, place: Place) -> Source:
    """The place's source; with ``verify`` or ``validate_hash`` one that checks these files against the index.

    Raises:
        ConfigError: the index has no hash of a file, or not that one.
        MissingExtraError, UnsupportedError: nothing here computes it.
    """
    if not options.verify and not options.validate_hash:
        return place.source
    digests = {file.name: _digest(file, options, place) for file in files}
    return VerifyingSource(place.source, digests, timeout=place.timeout, memory=place.budget // 16)


def _digest(file: StoredFile, options: Options, place: Place) -> tuple[str, str]:
    """Algorithm and hex digest a file is checked by."""
    wanted = options.validate_hash
    if wanted and wanted not in file.hashes:
        raise ConfigError(
            f"validate_hash={wanted!r}: the index of {place.url} has no such hash of {file.name} "
            f"({', '.join(sorted(file.hashes)) or 'it has none at all'})"
        )
    if not file.hashes:
        raise ConfigError(f"verify=True: the index of {place.url} has no hashes of {file.name}; open it without")
    refused: Exception | None = None
    for algorithm in [wanted] if wanted else sorted(file.hashes):
        try:
            hasher(algorithm, file.hashes[algorithm])
        except (MissingExtraError, UnsupportedError) as error:
            refused = refused or error
        else:
            return algorithm, file.hashes[algorithm]
    assert refused is not None
    raise refused


def about(index: MosaicIndex, forms: Sequence[str]) -> dict[str, Any]:
    """What ``lazystore info`` says of a dataset whose shards are read in these forms."""
    return {
        "kind": index.kind,
        "columns": dict(zip(index.columns.names, index.columns.encodings, strict=True)),
        "compression": sorted({form for form in forms if form}),
        "hashes": sorted({algorithm for shard in index.shards for algorithm in shard.raw.hashes}),
        "stored_bytes": sum(
            shard.zipped.nbytes if form and shard.zipped else shard.raw.nbytes
            for shard, form in zip(index.shards, forms, strict=True)
        ),
    }
