"""What errors of `datasets` and `huggingface_hub` mean, told as ours: what to open, and why it did not.

Errors while samples are read reach the reader as they are; whether those may pass is ``recovery``'s business.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from lazystore.cache.retries import Retries, may_pass
from lazystore.errors import (
    ConfigError,
    DatasetNotFoundError,
    FetchError,
    FetchTimeoutError,
    LazyStoreError,
    MissingExtraError,
    UnsupportedError,
)
from lazystore.hub.near import near

if TYPE_CHECKING:
    from lazystore.hub.hub_name import HubName

__all__ = ["translated"]

R = TypeVar("R")
_QUOTED = re.compile(r"'([^']+)'")
#: By name: the packages that define them are not imported to ask.
_REFUSED = frozenset({"GatedRepoError", "DisabledRepoError"})
_ABSENT = frozenset({
    "DatasetNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError", "EmptyDatasetError",
    "DataFilesNotFoundError",
})  # fmt: skip
_TRANSIENT = frozenset({
    "ConnectionError", "ConnectError", "ConnectTimeout", "ReadTimeout", "ReadError", "RemoteProtocolError", "Timeout",
    "TimeoutException", "ChunkedEncodingError", "ClientError", "ServerDisconnectedError", "ClientConnectorError",
    "LocalEntryNotFoundError",
})  # fmt: skip


def translated(load: Callable[[], R], hub: HubName, *, bounded: bool = True) -> R:
    """What ``load`` gives; failures that may pass are tried again, within the name's ``timeout`` and ``retries``.

    Parameters:
        bounded: give up after ``timeout`` though it still goes on; a download takes as long as it takes.

    Raises:
        DatasetNotFoundError, HubAccessError, ConfigError, UnsupportedError, FetchError: with the cause chained.
        Anything else as it is.
    """
    retries = Retries(attempts=1 + hub.retries, base_s=0.2, retryable=_may_pass)
    began, attempt = time.monotonic(), 0
    while True:
        attempt += 1
        try:
            return _in_time(load, hub, began + hub.timeout - time.monotonic()) if bounded else load()
        except LazyStoreError:
            raise
        except Exception as error:
            wait = retries.delay(attempt, error, began + hub.timeout - time.monotonic())
            if wait is None:
                found = _meaning(error, hub, attempt, time.monotonic() - began)
                if found is None:
                    raise
                raise found from error
        time.sleep(wait)


def _in_time(load: Callable[[], R], hub: HubName, left: float) -> R:
    """What ``load`` gives within so many seconds: it asks the hub often, and waits for minutes if nobody answers.

    One that does not come back is left to itself, in a thread that ends with it.
    """
    given: list[R] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            given.append(load())
        except BaseException as error:  # noqa: BLE001 - it is raised to the one who waits
            failed.append(error)

    thread = threading.Thread(target=run, name=f"lazystore-open-{hub.name}"[:64], daemon=True)
    thread.start()
    thread.join(max(0.001, left))
    if given:
        return given[0]
    if failed:
        raise failed[0]
    raise FetchTimeoutError(
        f"{hub.name} could not be opened by datasets within {hub.timeout:g} s; look whether the hub answers, or give "
        "more timeout="
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it."""
    led: BaseException | None = error
    seen: set[int] = set()
    while led is not None and id(led) not in seen:
        seen.add(id(led))
        yield led
        led = led.__cause__ or led.__context__


def _names(error: BaseException) -> frozenset[str]:
    return frozenset(kind.__name__ for kind in type(error).__mro__)


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _may_pass(error: BaseException) -> bool:
    if "OfflineModeIsEnabled" in {type(one).__name__ for one in _chain(error)}:
        return False
    status = next((found for found in map(_status, _chain(error)) if found), 0)
    if status:
        return status in (408, 429) or status >= 500
    if _names(error) & _ABSENT:
        return False
    return may_pass(error) or bool(_names(error) & _TRANSIENT)


def _meaning(error: Exception, hub: HubName, attempts: int, elapsed: float) -> LazyStoreError | None:
    """The error of ours that says the same; None: there is none."""
    from lazystore.hub.repository import access_error

    text = str(error)
    chain = list(_chain(error))
    statuses = [found for found in map(_status, chain) if found]
    gated = any(_names(one) & _REFUSED for one in chain) or "is a gated dataset" in text
    if gated or (statuses and statuses[0] in (401, 403) and "RepositoryNotFoundError" not in _all_names(chain)):
        return access_error(hub.name, token=isinstance(hub.token, str), detail=text)
    if _names(error) & _ABSENT:
        is_there = _names(error) & {"EmptyDatasetError", "DataFilesNotFoundError"}
        remedy = "there is nothing to read" if is_there else "check name and revision, or give a token= that may see it"
        return DatasetNotFoundError(f"{hub.name}: {text.rstrip('.')}: {remedy}")
    if "scripts are no longer supported" in text:
        return UnsupportedError(
            f"{hub.name} is made by a script, which is not run; many such have been converted by the hub: "
            "revision='refs/convert/parquet'"
        )
    missing = next((one for one in chain if isinstance(one, ImportError)), None)
    if missing is not None:
        return lacking(hub.name, missing)
    if isinstance(error, ValueError):
        return _of_arguments(text, hub)
    if "OfflineModeIsEnabled" in _all_names(chain):
        return FetchError(f"{hub.name}: HF_HUB_OFFLINE is set, and it is not in the cache: {text}")
    if _may_pass(error):
        return FetchError(
            f"{hub.name} could not be opened in {attempts} attempts and {elapsed:.1f} s: {text}; look whether the hub "
            "answers, or give more timeout= and retries=",
            attempts=attempts, elapsed=elapsed,
        )  # fmt: skip
    if isinstance(error, FileNotFoundError):
        return DatasetNotFoundError(f"{hub.name}: {text}")
    return None


def lacking(name: str, error: ImportError) -> MissingExtraError:
    """What to say where ``datasets`` lacks a package that it needs for these samples."""
    package = next(iter(re.findall(r"'([\w.-]+)'", str(error))), error.name or "what it names")
    return MissingExtraError(f"{name}: datasets needs a package for its samples ({error}): pip install {package}")


def _all_names(chain: list[BaseException]) -> set[str]:
    return {name for one in chain for name in _names(one)}


def _of_arguments(text: str, hub: HubName) -> LazyStoreError | None:
    """What a ValueError of ``load_dataset`` says of config and split."""
    if "BuilderConfig" in text and "not found" in text:
        known = _QUOTED.findall(text.partition("Available:")[2])
        return ConfigError(
            f"{hub.name} has no config {hub.config!r}, it has {', '.join(known)}{near(hub.config, known)}"
        )
    if "Config name is missing" in text:
        known = _QUOTED.findall(text.partition("\n")[0])
        return ConfigError(f"{hub.name} has several configs, say which one with config=: {', '.join(known)}")
    if "Bad split" in text or "Unknown split" in text:
        known = _QUOTED.findall(re.split(r"Available splits:|Should be one of", text)[-1])
        remedy = "; parts of splits need streaming=False" if "[" in hub.split else near(hub.split, known)
        return ConfigError(f"{hub.name} has no split {hub.split!r}, it has {', '.join(known)}{remedy}")
    return None
