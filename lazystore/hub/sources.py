"""`feed_of`: any source as a feed; and the feeds of plain Python: sequences, iterables, functions.

What the Hugging Face library's objects are is ``hf_stream``'s and ``hf_table``'s, hub names ``hub_name``'s, our own
datasets and stores ``own_sources``'s.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

from lazystore.errors import ConfigError, ItemIndexError, UnsupportedError
from lazystore.hub.feed import Feed, Mark, Reading
from lazystore.hub.readings import IteratorReading, digest

__all__ = ["IterableFeed", "OneShotFeed", "SequenceFeed", "fallback_of", "feed_of"]

#: Options of hub names and their defaults: for any other source they mean nothing, and giving one is a mistake.
HUB_OPTIONS: dict[str, Any] = {
    "config": None, "split": "train", "columns": None, "revision": None, "token": None, "via": "auto",
    "streaming": True,
}  # fmt: skip


def feed_of(
    source: Any,
    *,
    config: str | None = None,
    split: str = "train",
    columns: Sequence[str] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    via: str = "auto",
    streaming: bool = True,
    memory: int | None = None,
    timeout: float = 60.0,
    retries: int = 3,
) -> Feed:
    """The feed of a source.

    Parameters:
        source: a hub name (``"org/name"``), a ``datasets.IterableDataset`` or ``Dataset``, a
            :class:`~lazystore.StreamingDataset`, a :class:`~lazystore.LazyStore`, a sequence, an iterable, or a
            function without arguments that makes one of these. Functions and generator functions are called once here,
            and again for every pass after the first.
        config, split, columns, revision, token, via, streaming: of hub names; see
            :class:`~lazystore.hub.StreamingDatasetWrapper`.
        memory: bytes that a reader which the feed opens itself may hold.
        timeout: seconds; retries: of requests. Both of hub names only.

    Raises:
        ConfigError: no source of samples, or options that it does not take. Of hub names: DatasetNotFoundError,
        HubAccessError, FetchError, MissingExtraError.

    Cost: of hub names one or two requests to the hub; of anything else none.
    """
    options: dict[str, Any] = {
        "config": config, "split": split, "columns": columns, "revision": revision, "token": token, "via": via,
        "streaming": streaming,
    }  # fmt: skip
    if isinstance(source, str):
        from lazystore.hub.hub_name import open_name

        return open_name(source, **options, memory=memory, timeout=timeout, retries=retries)
    given = [name for name, value in options.items() if value != HUB_OPTIONS[name]]
    if given:
        raise ConfigError(
            f"{', '.join(given)}: for hub names only, and this source is a {type(source).__name__}; "
            "choose them where the source is made"
        )
    return _known(source) or _plain(source)


def fallback_of(feed: Feed) -> Feed | None:
    """What goes on where a hub name's feed failed: the next way of reading the same samples; None: there is none.

    Raises:
        What opening it raises.
    """
    if "lazystore.hub.hub_name" not in sys.modules:
        return None
    from lazystore.hub.hub_name import next_way

    return next_way(feed)


def _known(source: Any) -> Feed | None:
    """The feed of what we or ``datasets`` made; nothing is imported to find out, as whoever made it has done so."""
    datasets = sys.modules.get("datasets")
    if datasets is not None:
        if isinstance(source, datasets.IterableDataset):
            from lazystore.hub.hf_stream import HFStream

            return HFStream(source)
        if isinstance(source, datasets.Dataset):
            from lazystore.hub.hf_table import HFTable

            return HFTable(source)
        if isinstance(source, (datasets.DatasetDict, datasets.IterableDatasetDict)):
            raise ConfigError(
                f"a {type(source).__name__} is several splits: give one, of {', '.join(map(repr, source))}"
            )
    streaming = sys.modules.get("lazystore.streaming.dataset")
    if streaming is not None and isinstance(source, streaming.StreamingDataset):
        from lazystore.hub.own_sources import DatasetFeed

        return DatasetFeed(source)
    lazy = sys.modules.get("lazystore.lazy.store")
    if lazy is not None and isinstance(source, lazy.LazyStore):
        from lazystore.hub.own_sources import StoreFeed

        return StoreFeed(source)
    return None


def _plain(source: Any) -> Feed:
    if isinstance(source, (bytes, bytearray, memoryview, Mapping)):
        raise ConfigError(f"a {type(source).__name__} is no sequence of samples; give a list, or list(it.values())")
    if isinstance(source, os.PathLike):
        raise ConfigError(f"{os.fspath(source)!r} is a path; give lazystore.StreamingDataset({os.fspath(source)!r})")
    if isinstance(source, Iterator):
        return OneShotFeed(source)
    if _is_sequence(source):
        return SequenceFeed(source)
    if isinstance(source, Iterable) or (hasattr(type(source), "__getitem__") and not callable(source)):
        return IterableFeed(lambda: source, source)
    if isinstance(source, AsyncIterable) or inspect.iscoroutinefunction(source) or inspect.isasyncgenfunction(source):
        raise ConfigError(
            f"{_name(source)} is asynchronous; give lazystore.LazyStore.from_stream(it), which reads it from threads"
        )
    if callable(source):
        return _made_by(source)
    raise ConfigError(
        f"a {type(source).__name__} is no source of samples: give a hub name, a dataset, a store, a sequence, an "
        "iterable, or a function that makes one of these"
    )


def _is_sequence(source: Any) -> bool:
    """Whether it has numbered samples: by what it can, where torch's stream kinds are none though they can ``len``."""
    if isinstance(source, Sequence):
        return True
    if not (hasattr(type(source), "__len__") and hasattr(type(source), "__getitem__")):
        return False
    stream = getattr(sys.modules.get("torch.utils.data"), "IterableDataset", None)
    return stream is None or not issubclass(type(source), stream)


def _made_by(function: Callable[[], Any]) -> Feed:
    """The feed of what a function makes: called anew for every pass if that is an iterator."""
    try:
        inspect.signature(function).bind()
    except TypeError as error:
        raise ConfigError(
            f"{_name(function)} is to be called without arguments: {error}; bind them (partial)"
        ) from None
    except ValueError:
        pass  # a builtin without a signature: the call tells
    made = function()
    if inspect.isawaitable(made):
        close = getattr(made, "close", None)
        if close is not None:
            close()
        raise ConfigError(f"{_name(function)} is asynchronous; give a function that returns what it makes")
    if isinstance(made, Iterator):
        return IterableFeed(function, function, first=made)
    if callable(made) and not isinstance(made, Iterable):
        raise ConfigError(f"{_name(function)} made a {type(made).__name__}, which is no source of samples")
    return feed_of(made)


def _name(thing: Any) -> str:
    """``qualified_name`` of a function, partial or object: the same in every process."""
    while hasattr(thing, "func") and hasattr(thing, "args"):
        thing = thing.func
    return getattr(thing, "__qualname__", None) or type(thing).__qualname__


class SequenceFeed(Feed):
    """Anything with ``len`` and ``[i]``: read in place, by number; nothing is copied. Its threads are its own."""

    random = True
    keeps = True

    def __init__(self, sequence: Any) -> None:
        self._sequence = sequence
        self.name = _name(sequence)
        self._many = getattr(sequence, "get_many", None) or getattr(sequence, "__getitems__", None)

    @property
    def length(self) -> int:  # type: ignore[override]
        return len(self._sequence)

    @property
    def identity(self) -> str:
        return digest("sequence", self.name, self.length)

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        return IteratorReading(lambda: map(self._sequence.__getitem__, range(position, self.length)), position)

    def get(self, index: int) -> Any:
        if not 0 <= index < self.length:
            raise ItemIndexError(f"{self.name}: sample {index} is not in 0..{self.length - 1}")
        return self._sequence[index]

    def get_many(self, indices: Sequence[int]) -> list[Any]:
        return [self.get(index) for index in indices] if self._many is None else list(self._many(list(indices)))

    def share(self, index: int, count: int) -> Self | None:
        return type(self)(_Stride(self._sequence, index, count))

    def close(self) -> None:
        """Nothing: the sequence was given."""


class _Stride(Sequence[Any]):
    """Every ``count``-th sample of a sequence."""

    def __init__(self, sequence: Any, index: int, count: int) -> None:
        self._sequence = sequence
        self._numbers = range(index, len(sequence), count)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: Any) -> Any:
        return self._sequence[self._numbers[index]]


class IterableFeed(Feed):
    """An iterable, or a function that gives an iterator: every reading begins at its beginning.

    Parameters:
        make: gives what is iterated over.
        named: what stands for it in messages and in the identity.
        first: an iterator that ``make`` gave already: for the first reading.
    """

    def __init__(self, make: Callable[[], Iterable[Any]], named: Any, first: Iterator[Any] | None = None) -> None:
        self._make = make
        self._first = first
        self._named = named
        self.name = _name(named)

    @property
    def length(self) -> int | None:  # type: ignore[override]
        try:
            return len(self._named)
        except (TypeError, NotImplementedError):  # a function; what has __len__ for form's sake
            return None

    @property
    def identity(self) -> str:
        return digest("iterable", self.name)

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        return IteratorReading(self._begin, position, skip=position)

    def _begin(self) -> Iterable[Any]:
        first, self._first = self._first, None
        return self._make() if first is None else first

    def close(self) -> None:
        first, self._first = self._first, None
        close = getattr(first, "close", None)
        if close is not None:
            close()


class OneShotFeed(Feed):
    """An iterator: one pass, from where it stands; a reading goes on where the one before it stopped."""

    again = False

    def __init__(self, iterator: Iterator[Any]) -> None:
        self._iterator = iterator
        self.name = _name(iterator)
        self._read = 0

    @property
    def identity(self) -> str:
        return digest("iterator", self.name)

    def open(self, position: int = 0, mark: Mark | None = None) -> Reading:
        if position < self._read:
            raise UnsupportedError(
                f"{self.name} is an iterator that has given its first {self._read} samples: sample {position} cannot "
                "be read again; give a function that makes the iterator"
            )
        return IteratorReading(self._rest, position, skip=position - self._read)

    def _rest(self) -> Iterator[Any]:
        for sample in self._iterator:
            self._read += 1
            yield sample

    def close(self) -> None:
        """Nothing: the iterator was given."""
