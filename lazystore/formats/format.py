"""What a format is: the one contract between stored bytes and the machinery that reads them.

A :class:`Format` recognises a dataset and opens it; what it returns, an :class:`Opened`, says where items
lie and how their bytes become objects. Everything else (memory, requests, orders, resuming) is done for it. No I/O
of its own: a format reads through the source it is given.

The machinery reads *chunks in the classic layout*: ``u32 n | u32 offset[n+1] | items``, offsets counted from the
chunk's first byte. A format whose files are not stored like that has two ways to present them so:

- bytes that need only be put together: a :class:`~lazystore.fetch.source.Source` that answers for objects
  which do not exist as such (:mod:`lazystore.fetch.segments`);
- bytes that must be worked on (inflated, decrypted, turned from columns into rows): :class:`Images`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from bisect import bisect_right
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, overload

from lazystore.errors import ConfigError

if TYPE_CHECKING:
    from lazystore._core.decode import DecodePlan
    from lazystore.fetch.source import Source
    from lazystore.formats.codecs import Codec

__all__ = [
    "Ahead",
    "Arrival",
    "BlockNames",
    "Files",
    "Format",
    "Image",
    "Images",
    "Opened",
    "Options",
    "Pause",
    "Place",
    "Size",
    "Step",
    "Unindexed",
    "Wait",
    "Want",
]

OFFSETS_AT = 4
OFFSET_WIDTH = 4

#: Fields of :class:`Options` that not every format heeds, and how the caller wrote them.
_ARGUMENTS = {
    "serializers": "serializers=",
    "encryption": "encryption=",
    "verify": "verify=",
    "validate_hash": "validate_hash=",
    "columns": "columns=",
    "raw": "raw=",
    "block_size": "item_loader=TokensLoader(...)",
}


@dataclass(frozen=True, slots=True)
class Want:
    """A step of a run: these stored bytes, please.

    Answered by a memoryview of exactly ``nbytes`` bytes; of fewer where the object ends before and its
    :class:`Size` was asked for in the same step.
    """

    name: str
    begin: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Size:
    """A step of a run: how many bytes has this object? Answered by an int."""

    name: str


@dataclass(frozen=True, slots=True)
class Ahead:
    """A step of a run: send for these stored bytes, which will be needed later on, and go on.

    Answered by whether they were sent for: not where there is no room. The run's ``scratch`` has them counted in
    already; the run takes that back. Until they came by :class:`Arrival`, no other ones can be sent for like this.
    """

    wants: list[Want]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A step of a run: what was sent for ahead, please. Answered like the wants themselves."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A step of a run: another run is fetching what this one needs; come back when something has arrived."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of a run: what the next image is made of is here; making it takes memory, and can wait until it is wanted.

    Attributes:
        growth: bytes that ``scratch`` grows by then.
    """

    growth: int


@dataclass(frozen=True, slots=True)
class Image:
    """A step of a run: a block's image in the classic layout, whole. Not answered, but where the run jumps.

    Attributes:
        block: its number.
        data: ``u32 n | u32 offset[n+1] | items``.
        opened: bytes that were inflated or decrypted to make it, for ``stats()``.
        jumps: the run can go on with any of its blocks; it is answered by its number, or by None for the next one.
    """

    block: int
    data: bytes | bytearray | memoryview
    opened: int = 0
    jumps: bool = False


#: Wants and sizes are asked for together, in one wave, and answered by a list in the same order.
Step: TypeAlias = "list[Want | Size] | Ahead | Arrival | Wait | Pause | Image"


class Images(Protocol):
    """Blocks of items that are made rather than stored.

    A block is what the machinery calls a chunk: some hundred KB of items that are made together. Blocks that can
    only be made one after the other (those of a compressed file, of a row group) form a *run*; where each can be
    made for itself, it is a run of its own. Several runs may be open at once, one generator a run.

    A run must not hold more than ``scratch(run)`` bytes at any time, what it wants included, the image it yields
    excluded; it keeps its state in the generator, and drops it when closed. Whatever is kept across runs
    (directories of files, keys) is bounded and said in the class's docstring.

    Threads: the machinery runs one step at a time. Fork: runs are dropped, the object is not. Pickling: none.
    """

    #: First block of each run, and the number of blocks: run r has blocks ``runs[r] .. runs[r + 1] - 1``.
    runs: array[int]

    def scratch(self, run: int) -> int:
        """Bytes the run may hold while it is open; may grow meanwhile, before the step that needs more."""
        ...

    def open(self, run: int, first: int) -> Generator[Step, Any, None]:
        """Make the images of blocks ``first`` (one of the run's) and on, in order, to the end of the run.

        Raises:
            FormatError and others: the block after the last one yielded cannot be made; messages name the file.
        """
        ...


@dataclass(frozen=True, slots=True)
class Files:
    """The dataset's own chunks, where blocks are parts of them: what orders by chunk and messages count by.

    Attributes:
        names, counts, hints: file name, items and stored bytes of each.
        blocks: number of the first block of each, and the number of all blocks.
    """

    names: Sequence[str]
    counts: array[int]
    hints: array[int]
    blocks: array[int]


class BlockNames(Sequence[str]):
    """File names by block: a list of str that takes no memory."""

    __slots__ = ("_files",)

    def __init__(self, files: Files) -> None:
        self._files = files

    def __len__(self) -> int:
        return self._files.blocks[-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[block] for block in range(*index.indices(len(self)))]
        block = range(len(self))[index]
        return self._files.names[bisect_right(self._files.blocks, block) - 1]


@dataclass(slots=True)
class Opened:
    """A dataset as the machinery reads it.

    Attributes:
        format: the format's name.
        source: what to read through from now on: the one that was given, or one that wraps it.
        names: object of each chunk; for images, the file a block belongs to (for messages).
        counts: items of each chunk (``array('Q')``).
        hints: bytes of each chunk or image (``array('Q')``); 0: unknown. Only for planning, unless ``exact``.
        plan: how an item's bytes become an object.
        exact: a chunk of another size than its hint is damaged.
        tables_near: offset tables are on a local disk whatever the items are: looking one up costs no round trip.
        codec: whole chunks are stored encoded (compressed, encrypted); see :mod:`lazystore.formats.codecs`.
        images: chunks are made, not read; then ``names``, ``counts`` and ``hints`` are those of blocks.
        stride: bytes an item when all have one length and no offsets are needed (token blocks), else 0.
        documents: with ``stride``: entries of each chunk's offset table, where ``counts`` are those of blocks.
        files: with ``images``: the dataset's own chunks.
        version: of the dataset's contents; part of what resuming checks.
        key_index: finds an item's number by its key, or None: ``key_index(key, source, timeout) -> int``. Its
            ``reset_after_fork()``, if it has one, is called in forked children.
        reserved: bytes that the format keeps itself, out of the budget.
        about: what ``lazystore info`` says: plain JSON (schema, compression, ...).
        transform: what every item goes through before the caller's own; None: nothing.
    """

    format: str
    source: Source
    names: Sequence[str]
    counts: array[int]
    hints: array[int]
    plan: DecodePlan
    exact: bool = False
    tables_near: bool = False
    codec: Codec | None = None
    images: Images | None = None
    stride: int = 0
    documents: array[int] | None = None
    files: Files | None = None
    version: str = "0"
    key_index: Callable[[Any, Source, float], int] | None = None
    reserved: int = 0
    about: dict[str, Any] = field(default_factory=dict)
    transform: Callable[[Any], Any] | None = None

    def transform_before(self, further: Callable[[Any], Any] | None) -> Callable[[Any], Any] | None:
        """The format's own transform, and the caller's behind it."""
        own = self.transform
        if own is None or further is None:
            return own or further
        return lambda item: further(own(item))

    def table_end(self, chunk: int) -> int:
        """First byte after the offset table of a chunk: where its first item may begin."""
        return OFFSETS_AT + OFFSET_WIDTH * (self.stored_counts[chunk] + 1)

    @property
    def stored_counts(self) -> array[int]:
        """Items that each chunk says it has."""
        return self.counts if self.documents is None else self.documents

    @property
    def opaque(self) -> bool:
        """Chunks have no random access: they are encoded as a whole, or made."""
        return self.codec is not None or self.images is not None


class Unindexed(ABC):
    """A dataset whose items were not counted yet: read from the beginning at once, and opened after a pass."""

    plan: DecodePlan

    @abstractmethod
    def build(self) -> Opened:
        """Read everything once, remember where items lie, and open. Shows progress."""

    @abstractmethod
    def stream(self) -> Generator[bytes, None, None]:
        """The items' stored bytes in order; bounded memory. Reaching the end remembers where they lie, too."""

    @abstractmethod
    def close(self) -> None:
        """Close the source."""


@dataclass(slots=True)
class Place:
    """Where a dataset is.

    Attributes:
        source: the directory, or the parent of the file that was named.
        url: of the directory or file, for messages.
        names: files, if one or a pattern was named or the directory was listed; with their sizes in bytes
            (-1: unknown). Empty for a directory with an ``index.json``.
        index: contents of ``index.json`` if there is one, else b"".
        timeout: seconds one read may take.
        budget: bytes the dataset may use in all, for choosing sizes of things that count as memory.
    """

    source: Source
    url: str
    names: Mapping[str, int]
    index: bytes | bytearray
    timeout: float
    budget: int


@dataclass(slots=True)
class Options:
    """What the caller of :class:`~lazystore.StreamingDataset` said about reading; see there.

    Attributes:
        extra: ``format_options``: each format documents and checks its own.
    """

    allow_pickle: bool = False
    serializers: Mapping[str, Any] | None = None
    encryption: Any = None
    verify: bool = False
    validate_hash: str | None = None
    columns: Sequence[str] | None = None
    raw: bool = False
    block_size: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def refuse_all_but(self, *understood: str, format: str) -> None:
        """Refuse what was said and means nothing in a format, rather than pass over it.

        Parameters:
            understood: fields the format heeds. It checks ``extra`` itself, and ``allow_pickle`` asks for nothing.
            format: its name, for messages.

        Raises:
            ConfigError: names the argument.
        """
        for name, argument in _ARGUMENTS.items():
            value = getattr(self, name)
            given = value is not None if name == "columns" else bool(value)
            if given and name not in understood:
                raise ConfigError(f"{argument} is not for datasets in format {format!r}; leave it out")


class Format(ABC):
    """One way datasets are stored. Stateless; one instance is made when it is first needed.

    To add one: subclass, and name the class in the entry point group ``lazystore.formats`` of your package; then
    let :func:`lazystore.testing.examine_format` put it through its exam.
    """

    #: What ``format=`` calls it.
    name: ClassVar[str]
    #: Ends of the file names it reads, lower case (".jsonl", ".jsonl.gz"); () for formats with an index.json only.
    suffixes: ClassVar[tuple[str, ...]] = ()
    #: Sizes in bytes of the files that are the dataset, of an instance that brings them along: nothing is listed.
    files: Mapping[str, int] | None = None

    def recognises(self, index: Mapping[str, Any]) -> bool:
        """Whether this is the format's ``index.json``, of which the chunk list is left out (its key is there)."""
        return False

    @abstractmethod
    def open(self, place: Place, options: Options) -> Opened | Unindexed:
        """Open a dataset.

        Raises:
            DatasetNotFoundError, FormatError, UnsupportedError, MissingExtraError, ConfigError; FetchError.
        """
