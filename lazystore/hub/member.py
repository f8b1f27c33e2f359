"""`Member`: one dataset of several: what reads it, and what goes on in its place when it cannot be read.

Made-up samples are ``synthetic``'s, retries and going on in the middle of a pass the wrapper's. When members are read,
and what becomes of their samples, is not here.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lazystore.cache.retries import may_pass
from lazystore.errors import ConfigError, FormatError, LoadError, UnsupportedError
from lazystore.fetch.options import redacted
from lazystore.hub.registry import DatasetSpec
from lazystore.hub.synthetic import SyntheticFeed
from lazystore.hub.wrapper import StreamingDatasetWrapper
from lazystore.streaming.topology import detect

__all__ = ["Member", "Standin", "open_members"]

_log = logging.getLogger(__name__)

#: Reading failed: no connection, no access, no such repository, bytes or a form that cannot be read. Mistakes in
#: the arguments (ConfigError), packages that are missing and errors of a user's own code are no reason to go on.
_REASONS = (OSError, FormatError, LoadError, UnsupportedError)


def _unreadable(error: BaseException) -> bool:
    return not isinstance(error, ConfigError) and (isinstance(error, _REASONS) or may_pass(error))


class Standin:
    """Made-up samples that go on where a dataset could not be read; a wrapper asks it with ``on_error``.

    Parameters:
        spec: the dataset.
        size: samples to make up where it is not known how many there would have been.
        seed, config: see :class:`SyntheticFeed`.

    Attributes:
        began: the first sample that was made up; None: none was.
        cause: the error because of which, as text; None: the real samples are read.
        length: samples of the real dataset, where that is known.
        reader: what reads it.

    Threads: any; of two failures at once the later one is told. Fork: as it is. Pickling: another process finds out for
    itself.
    """

    def __init__(self, spec: DatasetSpec, size: int, seed: int, config: Any) -> None:
        self._spec, self._size, self._seed, self._config = spec, size, seed, config
        self.began: int | None = None
        self.cause: str | None = None
        self.length: int | None = None
        self.reader: weakref.ref[StreamingDatasetWrapper] | None = None

    def __call__(self, error: BaseException, position: int) -> Iterator[Any]:
        """Made-up samples from number ``position`` of what is read on: as many as the dataset has, else ``size``.

        Raises:
            The error, if it is not one of reading, or nobody knows what to make up.
        """
        reader = None if self.reader is None else self.reader()
        number, count = (0, 1) if reader is None else reader.part_read()
        feed = self.feed(error, position * count)
        return (feed if count == 1 else feed.share(number, count)).open(position)

    def feed(self, error: BaseException, position: int) -> SyntheticFeed:
        """Made-up samples of a whole pass, in place of what cannot be read at ``position``."""
        if not _unreadable(error):
            raise error
        began = self.began
        if began is None or position < began or position >= self.total:
            self.began = position
        try:
            found = SyntheticFeed(self._spec, max(1, self.total), self._seed, self._config)
        except ConfigError as unable:
            self.began = began
            error.add_note(str(unable))
            raise error from unable
        if self.cause is None:
            _log.warning(
                "%s: samples are made up from number %d on: %s", self._spec.name, position, redacted(str(error))
            )
        self.cause = redacted(f"{type(error).__name__}: {error}")
        return found

    @property
    def total(self) -> int:
        """Samples of a pass, the real ones before included."""
        return self._size + (self.began or 0) if self.length is None else self.length

    def reset(self, began: int | None = None) -> None:
        """The real samples are tried again; if they fail, as many are made up as if that had been at ``began``."""
        self.began, self.cause = began, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cause": None, "reader": None}


class Member:
    """One dataset of a mix, opened.

    Parameters:
        spec: the dataset.
        source, options: what a wrapper reads of it, and how.
        fallback: ``"synthetic"``: ``standin``; ``"local"``: ``datasets``, by downloading if need be; ``"raise"``.

    Attributes:
        recipe: the arguments, with the commit of the hub that is read.
        wrapper: what reads it; another one after :meth:`retry` and :meth:`go_on`.

    Threads: as the wrapper's, but one at a time for :meth:`retry` and :meth:`load`. Pickling: by
    ``recipe``; see :func:`open_members`.

    Raises:
        What opening raises, unless something goes on in its place.
    """

    def __init__(
        self, spec: DatasetSpec, source: Any, options: Mapping[str, Any], fallback: str, standin: Standin | None
    ) -> None:
        self.recipe = (spec, source, options, fallback, standin)
        self.name = spec.name
        self.standin = standin
        self._by_number: SyntheticFeed | None = None  # what goes on where samples by number cannot be read
        self._replaced = False  # what the wrapper reads is not the source
        self.wrapper = self._open()

    def _open(self) -> StreamingDatasetWrapper:
        spec, source, options, fallback, standin = self.recipe
        on_error: Any = {"synthetic": standin, "local": "fallback"}.get(fallback, "raise")
        self._replaced = False
        try:
            wrapper = StreamingDatasetWrapper(source, on_error=on_error, **options)
        except Exception as error:  # noqa: BLE001 - raised again unless something goes on in its place
            return self._instead(error, 0)
        self.recipe = (spec, source, {**options, **wrapper.commit}, fallback, standin)
        if standin is not None:
            standin.length, standin.reader = wrapper.length, weakref.ref(wrapper)
        return wrapper

    def _instead(self, error: Exception, position: int) -> StreamingDatasetWrapper:
        """What is read from now on, since the source cannot be, at ``position``; else raises the error."""
        _, source, options, fallback, standin = self.recipe
        if fallback == "local" and isinstance(source, str) and options["streaming"] and _unreadable(error):
            wrapper = StreamingDatasetWrapper(source, **{**options, "streaming": False})
        elif standin is not None:
            shared = {name: options[name] for name in ("cache_size", "memory", "timeout", "retries")}
            wrapper = StreamingDatasetWrapper(standin.feed(error, position), **shared)
        else:
            raise error
        self._replaced = True
        return wrapper

    def go_on(self, error: Exception, count: int) -> Iterator[Any]:
        """A pass that goes on after the first ``count`` samples of one whose source hangs; else raises the error."""
        readers = self.wrapper.part()[1]
        wrapper = self._instead(error, count * readers)
        iter(wrapper).close()  # now its state says which reader's it is
        wrapper.load_state_dict({**wrapper.state_dict(), "position": count})
        self.wrapper = wrapper  # the one before ends with its last pass
        return iter(wrapper)

    @property
    def failed(self) -> bool:
        """Whether samples are made up by now."""
        return self.standin is not None and self.standin.cause is not None

    @property
    def length(self) -> int | None:
        """Samples of a pass, over all ranks; None where that is not known."""
        length = self.wrapper.length
        if self.standin is not None:
            if self.standin.cause is not None:
                return self.standin.total
            self.standin.length = length
        return length

    @property
    def rank_length(self) -> int | None:
        """Samples of a pass on this rank."""
        length = self.length
        return length if length is None or detect()[1] == 1 or self.wrapper.length is None else len(self.wrapper)

    def get_many(self, numbers: Sequence[int]) -> list[Any]:
        """Raw samples by number."""
        if self._by_number is None:
            try:
                return self.wrapper.get_many(numbers)
            except Exception as error:
                if self.standin is None or isinstance(error, IndexError):
                    raise
                self._by_number = self.standin.feed(error, min(numbers))
        return self._by_number.get_many(numbers)

    def retry(self, began: int | None = None) -> None:
        """Try the real samples again; ``began``: see :meth:`Standin.reset`."""
        self._by_number = None
        if self.standin is not None:
            self.standin.reset(began)
        if self._replaced:
            epoch = self.wrapper.epoch
            self.wrapper.close()
            self.wrapper = self._open()
            self.wrapper.set_epoch(epoch)

    # -- position -----------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Where its latest pass stands, as plain JSON."""
        found: dict[str, Any] = {"state": self.wrapper.state_dict()}
        if self.failed and self.standin is not None:
            found["made_up_from"] = self.standin.began
        if self._replaced:
            found["replaced"] = True
        return found

    def load(self, state: Mapping[str, Any], force: bool = False) -> None:
        """Begin the next pass where ``state`` was taken, whether or not something else is read now, or was then."""
        self.wrapper.load_state_dict(state["state"], force=force or self._replaced or bool(state.get("replaced")))

    def rewind(self) -> None:
        """Begin the next pass at the beginning."""
        self.wrapper.load_state_dict({**self.wrapper.state_dict(), "position": 0, "mark": None})

    def close(self) -> None:
        """Let go of everything."""
        self.wrapper.close()


def open_members(recipes: Sequence[tuple[Any, ...]]) -> list[Member]:
    """Members of these arguments. Those of the hub are opened at once: each waits for the hub's answers.

    Raises:
        What opening the first one that cannot be opened raises; the others are closed.
    """
    remote = sum(isinstance(source, str) for _, source, *_ in recipes)
    with ThreadPoolExecutor(min(8, max(1, remote)), "lazystore-open") as pool:
        waited = [
            pool.submit(Member, *recipe) if remote > 1 and isinstance(recipe[1], str) else None for recipe in recipes
        ]
        members: list[Member] = []
        failures: list[Exception] = []
        for recipe, waiting in zip(recipes, waited, strict=True):
            try:
                members.append(Member(*recipe) if waiting is None else waiting.result())
            except Exception as error:  # noqa: BLE001 - raised below, when the others are closed
                failures.append(error)
    if failures:
        for member in members:
            member.close()
        raise failures[0]
    return members
