"""LitData's format as the machinery reads it: which way a dataset goes, and with which plan.

Chunks are read where they lie if they are classic, as a stream if they are compressed as a whole, and as images of
blocks if they may be anything else. The index only hints at that; datasets where it may mislead are looked at when
they are opened (the ends of the first and the last chunk).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lazystore._core.decode import DecodePlan
from lazystore.errors import ConfigError, DatasetNotFoundError, FormatError, UnsupportedError
from lazystore.fetch.source import Read
from lazystore.formats.arrow_rows import RowsSchema, require_pyarrow
from lazystore.formats.compression import item_inflater
from lazystore.formats.encryption import Encryption, check_encryption, item_opener
from lazystore.formats.format import OFFSET_WIDTH, OFFSETS_AT, Format, Opened, Options, Place
from lazystore.formats.keys import KeyIndex
from lazystore.formats.leaves import leaf_operation
from lazystore.formats.litdata import FRAMED_MAGIC, INDEX_NAME, ROWS_MAGIC, LitDataIndex, parse_index
from lazystore.formats.numbering import number_items
from lazystore.formats.pytree import compile_tree, leaf_names

if TYPE_CHECKING:
    from lazystore.fetch.source import Source
    from lazystore.formats.codecs import Codec

__all__ = ["LitDataFormat", "may_hold_rows"]

SNIFF = ("auto", "all", "none")
#: Leaves of a first row whose chunk may have been stored as Arrow rows.
_ROW_TAGS = {"str", "int", "float", "bool", "bytes", "json", "pickle"}
#: Rows that are dicts.
_ROW_TYPES = ("builtins.dict", "collections.OrderedDict", "collections.defaultdict")
#: The mark of a row that names its columns itself.
LOOSE_MARK = b"\xfe\xff\xff\xff"

#: Smaller budgets find no row group of keys small enough: nothing is set aside for them.
LEAST_FOR_KEYS = 1 << 20


class LitDataFormat(Format):
    """Datasets written by LitData of any version, or by lazystore.

    ``serializers`` decode leaves by their tags. ``encryption`` takes :class:`~lazystore.FernetEncryption` and
    :class:`~lazystore.RSAEncryption`, LitData's own objects, or any with ``algorithm``, ``level`` and
    ``decrypt(bytes)``. ``verify=True`` checks chunks against the checksums that lazystore's writer adds to the index.

    Options (``format_options``): ``{"sniff": "auto" | "all" | "none"}``. LitData's index does not say which chunks are
    classic, Arrow rows or framed zstd, and one dataset can hold them all. "auto" looks at the first and the last chunk
    of datasets that may hold Arrow rows; "all" looks at every chunk when it is first read (for merged datasets whose
    parts were written by different versions); "none" believes that all are classic.
    """

    name: ClassVar[str] = "litdata"

    def recognises(self, index: Mapping[str, Any]) -> bool:
        return "chunks" in index

    def open(self, place: Place, options: Options) -> Opened:
        """See :class:`~lazystore.formats.format.Format`.

        Raises:
            UnsupportedError: besides what the index cannot tell, TemporalArrayLoader and ParquetLoader datasets.
        """
        _check(options)
        url = f"{place.url}/{INDEX_NAME}"
        if not place.index:
            raise DatasetNotFoundError(f"{url} does not exist; a LitData dataset has one")
        index = parse_index(place.index, place=url)
        encryption = check_encryption(options.encryption, index.encryption)
        if index.tokens and (encryption is not None or index.compression_level):
            raise UnsupportedError(
                f"{url} is a token dataset that is encrypted, or compressed inside its chunks; LitData writes none"
            )
        if options.block_size and not index.tokens:
            raise ConfigError("TokensLoader reads datasets written with TokensLoader; this one stores whole items")
        source = _verified(index, place, options) if options.verify else place.source
        images = _needs_images(index, place, options.extra.get("sniff", "auto"))
        plan, rows = _plan(index, options, encryption, images, place.budget)
        keys = KeyIndex(index.keys, sum(index.counts), place=place.url, budget=place.budget)
        opened = Opened(
            self.name, source, index.names, index.counts, index.hints, plan,
            version=repr((index.tags, index.data_spec, index.updated_at)), key_index=keys,
            reserved=keys.reserved if index.keys is not None and place.budget >= LEAST_FOR_KEYS else 0,
            about=_about(index, images),
        )  # fmt: skip
        if images:
            _make_images(opened, index, rows, encryption, place.budget)
        else:
            opened.codec = _codec(index)
            opened.counts, opened.stride = number_items(index, options.block_size, place.source, place.timeout)
            opened.documents = index.counts if opened.stride else None
        return opened


def _check(options: Options) -> None:
    options.refuse_all_but("serializers", "encryption", "verify", "block_size", format="litdata")
    unknown = [key for key in options.extra if key != "sniff"]
    if unknown or options.extra.get("sniff", "auto") not in SNIFF:
        raise ConfigError(
            f'format_options={dict(options.extra)!r}: LitData\'s format has {{"sniff": {" | ".join(SNIFF)}}}'
        )


def _verified(index: LitDataIndex, place: Place, options: Options) -> Source:
    from lazystore.fetch.verify import VerifyingSource

    if index.checksums is None:
        raise ConfigError(
            f"verify=True: {place.url}/{INDEX_NAME} has no checksums (LitData writes none); write the dataset with "
            "lazystore, or leave verify= out"
        )
    missing = [name for name in index.names if name not in index.checksums.files]
    if missing:
        raise FormatError(f"the index has checksums, but none for {missing[0]} and {len(missing) - 1} others")
    algorithm = index.checksums.algorithm
    digests = {name: (algorithm, digest) for name, digest in index.checksums.files.items()}
    return VerifyingSource(place.source, digests, timeout=place.timeout, memory=place.budget // 16)


def _codec(index: LitDataIndex) -> Codec | None:
    if not index.compression:
        return None
    from lazystore.formats.stream_codecs import codec_for

    return codec_for(index.compression)


def _about(index: LitDataIndex, images: bool) -> dict[str, Any]:
    return {
        "compression": index.compression or ("zstd" if index.compression_level else None),
        "compression_level": ("chunk" if index.compression else index.compression_level) or None,
        "encryption": dict(zip(("algorithm", "level"), index.encryption, strict=True)) if index.encryption else None,
        "schema": leaf_names(index.data_spec, index.tags),
        "types": index.types,
        "tokens": index.tokens,
        "keys": index.keys is not None,
        "checksums": index.checksums is not None,
        "random_access": not index.compression and (index.encryption or ("", ""))[1] != "chunk",
        "made_of": "blocks" if images else "chunks",
    }


# -- plans ----------------------------------------------------------------------------------


def _plan(
    index: LitDataIndex, options: Options, encryption: Encryption | None, images: bool, budget: int
) -> tuple[DecodePlan, RowsSchema]:
    """How items become objects, and how Arrow rows become such items."""
    leaves = [
        leaf_operation(tag, allow_pickle=options.allow_pickle, serializers=options.serializers, old=index.old)
        for tag in index.tags
    ]
    opener = _opener(index, encryption, budget)
    if index.tokens:
        plan = DecodePlan(leaves, [("leaf",)], names=index.tags, headless=True, opener=opener)
        return plan, RowsSchema(None)
    tree = compile_tree(index.data_spec, len(index.tags))
    names = leaf_names(index.data_spec, index.tags)
    if not images:
        return DecodePlan(leaves, tree, names=names, opener=opener), RowsSchema(None)
    nullable = [(op, argument, {"nullable": True}) for op, argument in leaves]
    opener = None if opener is None else _unless_loose(opener)
    plan = DecodePlan(nullable, tree, names=names, opener=opener, loose=True)
    flat = [step[0] for step in tree[:-1]] == ["leaf"] * len(leaves) and tree[-1][0] == "dict"
    # Encrypted items are opened; Arrow rows were never encrypted one by one, and only loose ones can be told apart.
    columns = [(key, *leaf) for key, leaf in zip(tree[-1][1], leaves, strict=True)] if flat else None
    if opener is not None or (columns and not all(isinstance(key, str) for key, _, _ in columns)):
        columns = None
    return plan, RowsSchema(columns)


def _opener(index: LitDataIndex, encryption: Encryption | None, budget: int) -> Callable[[bytes], bytes] | None:
    """What is done with an item's bytes before they are decoded."""
    if encryption is not None and encryption.level == "sample":
        return item_opener(encryption)
    return item_inflater(budget) if index.compression_level == "sample" else None


def _unless_loose(opener: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    return lambda item: item if item[:4] == LOOSE_MARK else opener(item)


def _make_images(
    opened: Opened, index: LitDataIndex, rows: RowsSchema, encryption: Encryption | None, budget: int
) -> None:
    from lazystore.formats.litdata_images import LitDataImages

    whole = encryption if encryption is not None and encryption.level == "chunk" else None
    images = LitDataImages(index, rows=rows, encryption=whole, budget=budget)
    opened.images, opened.files = images, images.files
    opened.names, opened.counts, opened.hints = images.names, images.counts, images.hints


# -- which way ------------------------------------------------------------------------------


def may_hold_rows(index: LitDataIndex) -> bool:
    """Whether LitData 0.2.74 or later may have stored chunks as Arrow rows, by what the index says.

    Rows must be dicts of plain values. Since that version indexes have ``types``; a merged one, without a date, has
    the first part's config and may hold others' chunks.
    """
    if index.tokens or (index.types is None and index.dated):
        return False
    try:
        kind = json.loads(index.data_spec or "")[1]["type"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    return kind in _ROW_TYPES and all(tag.partition(":")[0] in _ROW_TAGS for tag in index.tags)


def _needs_images(index: LitDataIndex, place: Place, sniff: str) -> bool:
    """Whether chunks cannot be read where they lie, nor as one compressed stream."""
    if index.compression_level == "batch" or (index.encryption or ("", ""))[1] == "chunk":
        return True
    if index.tokens or not index.counts or sniff == "none":
        return False
    if sniff == "all":
        return True
    if index.compression:
        # Arrow rows among them are stored without the compression in their names.
        return not index.names.all_end_with(f".{index.compression}.bin")
    if not may_hold_rows(index):
        return False
    kinds = _look_at_ends(index, place.source, place.timeout)
    if "rows" in kinds:
        require_pyarrow()
        if index.encryption is not None:
            warnings.warn(
                f"{place.url} is encrypted item by item, but LitData stored rows of it in plain text beside that "
                "(as Arrow rows): anyone who has the files can read them",
                stacklevel=2,
            )
    # A field of mixed types ends Arrow rows midway: any chunk before that may hold them.
    return kinds != {"classic"} or (index.types is not None and _mixes(index.types))


def _mixes(types: Any) -> bool:
    """Whether a field is of the kind ``json``, which Arrow rows cannot hold."""
    left = [types]
    while left:
        kind = left.pop()
        if kind == "json":
            return True
        if isinstance(kind, Mapping):
            left.extend(kind.values())
    return False


def _look_at_ends(index: LitDataIndex, source: Source, timeout: float) -> set[str]:
    """The forms of the first and the last chunk: "classic", "rows", "framed", or "" for none of them."""
    filled = [chunk for chunk in (0, len(index.counts) - 1) if index.counts[chunk]]
    return {_form_of(index, chunk, source, timeout) for chunk in set(filled)}


def _form_of(index: LitDataIndex, chunk: int, source: Source, timeout: float) -> str:
    name, count = index.names[chunk], index.counts[chunk]
    size = source.run([], stat=[name], timeout=timeout)[name]
    wanted = {"head": (0, 8), "last": (OFFSETS_AT + OFFSET_WIDTH * count, OFFSET_WIDTH), "tail": (size - 12, 12)}
    if any(begin < 0 or begin + nbytes > size for begin, nbytes in wanted.values()):
        return ""
    reads = {key: Read(name, begin, memoryview(bytearray(nbytes))) for key, (begin, nbytes) in wanted.items()}
    source.run(list(reads.values()), timeout=timeout)
    head, last, tail = (bytes(reads[key].view) for key in wanted)
    if head == FRAMED_MAGIC:
        return "framed"
    if int.from_bytes(head[:4], "little") != count:
        return ""
    end, blob = int.from_bytes(last, "little"), int.from_bytes(tail[:4], "little")
    if tail[4:] == ROWS_MAGIC and blob and end <= size - 12 - blob:
        return "rows"
    return "classic" if end == size else ""
