"""Errors are lazystore's own and Python's at the same time, and travel between processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from lazystore import errors
from lazystore.errors import FetchError, FetchTimeoutError, LazyStoreError, SourceChangedError

BUILTINS = {
    "ConfigError": ValueError,
    "BudgetTooSmallError": ValueError,
    "CursorError": ValueError,
    "CursorExpiredError": ValueError,
    "CursorMismatchError": ValueError,
    "CursorTamperedError": ValueError,
    "UnhashableKeyError": TypeError,
    "DatasetNotFoundError": FileNotFoundError,
    "HubAccessError": PermissionError,
    "FormatError": ValueError,
    "UnsafeDataError": ValueError,
    "DecryptionError": ValueError,
    "ChecksumError": ValueError,
    "ItemIndexError": IndexError,
    "KeyNotFoundError": KeyError,
    "ClosedError": ValueError,
    "ArenaFullError": MemoryError,
    "FetchError": OSError,
    "FetchTimeoutError": TimeoutError,
    "SourceChangedError": OSError,
    "MissingExtraError": ImportError,
    "UnsupportedError": NotImplementedError,
    "WorkerError": RuntimeError,
    "WorkerDiedError": RuntimeError,
    "ItemTimeoutError": TimeoutError,
    "TransportError": TypeError,
    "WriteError": OSError,
    "DiskTierError": OSError,
    "LoadError": RuntimeError,
    "LoadCancelledError": RuntimeError,
    "ReentrantLoadError": RuntimeError,
    "LoadTimeoutError": TimeoutError,
    "SampleError": ValueError,
}


def test_every_error_is_listed_here() -> None:
    assert set(errors.__all__) == BUILTINS.keys() | {"LazyStoreError", "SyntheticDataWarning"}


@pytest.mark.parametrize("name", BUILTINS)
def test_an_error_is_caught_as_ours_and_as_pythons(name: str) -> None:
    kind = getattr(errors, name)
    for caught in (LazyStoreError, BUILTINS[name], Exception):
        with pytest.raises(caught):
            raise kind("what, where, and what to do")


@pytest.mark.parametrize("name", BUILTINS)
def test_an_error_prints_its_message_and_nothing_else(name: str) -> None:
    assert str(getattr(errors, name)("what, where, and what to do")) == "what, where, and what to do"


@pytest.mark.parametrize("name", BUILTINS)
def test_an_error_goes_through_pickle_and_copy(name: str) -> None:
    error = getattr(errors, name)("message")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == "message"


@pytest.mark.parametrize("name", BUILTINS)
def test_a_place_can_be_put_in_front_of_a_message(name: str) -> None:
    placed = errors.with_place(getattr(errors, name)("what and why"), "where")
    assert type(placed) is getattr(errors, name) and str(placed) == "where: what and why"


def test_an_error_with_a_place_tells_what_it_told() -> None:
    fetch = errors.with_place(FetchTimeoutError("late", url="u", begin=3, end=9, attempts=2, elapsed=1.5), "chunk 1")
    assert (fetch.url, fetch.begin, fetch.end, fetch.attempts, fetch.elapsed) == ("u", 3, 9, 2, 1.5)
    assert errors.with_place(errors.BudgetTooSmallError("no", needed=7), "chunk 1").needed == 7


@pytest.mark.parametrize("kind", [FetchError, FetchTimeoutError, SourceChangedError])
def test_a_fetch_error_keeps_what_it_knows_on_its_way(kind: type[FetchError]) -> None:
    error = kind("message", url="s3://b/k", begin=5, end=9, attempts=3, elapsed=1.5)
    twin = pickle.loads(pickle.dumps(error))
    assert (twin.url, twin.begin, twin.end, twin.attempts, twin.elapsed) == ("s3://b/k", 5, 9, 3, 1.5)
    assert str(twin) == "message"


def test_a_fetch_error_of_a_whole_object_has_no_range() -> None:
    error = FetchError("message", url="u")
    assert (error.begin, error.end, error.attempts, error.elapsed) == (-1, -1, 0, 0.0)


def test_the_particular_is_caught_as_the_general() -> None:
    assert issubclass(errors.BudgetTooSmallError, errors.ConfigError)
    assert issubclass(errors.UnsafeDataError, errors.FormatError)
    assert issubclass(errors.FetchTimeoutError, errors.FetchError)
    assert issubclass(errors.SourceChangedError, errors.FetchError)
    assert not issubclass(errors.DatasetNotFoundError, errors.FetchError)


def test_a_place_is_put_in_front_and_what_else_an_error_tells_stays() -> None:
    error = errors.FetchError("is gone", url="u", begin=3, end=9, attempts=2)
    placed = errors.with_place(error, "chunk 7")
    assert type(placed) is errors.FetchError and str(placed) == "chunk 7: is gone"
    assert (placed.url, placed.begin, placed.end, placed.attempts) == ("u", 3, 9, 2)


def test_an_error_that_is_kept_holds_no_frames() -> None:
    try:
        try:
            raise ValueError("first")
        except ValueError:
            raise errors.FormatError("second") from None
    except errors.FormatError as error:
        kept = errors.without_trace(error)
    assert kept.__traceback__ is None
    assert kept.__context__ is not None and kept.__context__.__traceback__ is None
