"""Who runs the items in the black-box tests of ``imap``, and what becomes of a run that fails now and then."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

KINDS = ["auto", "serial", "thread", "process", "executor"]
WORKING = ["thread", "process", "executor"]

everywhere = pytest.mark.parametrize("options", KINDS, indirect=True)
by_workers = pytest.mark.parametrize("options", WORKING, indirect=True)


@contextmanager
def chosen(kind: str) -> Iterator[dict[str, Any]]:
    """Arguments of ``imap`` for one of them."""
    if kind == "executor":
        with ThreadPoolExecutor(2) as executor:
            yield {"backend": executor}
    elif kind in ("auto", "serial"):
        yield {"backend": kind}
    else:
        yield {"backend": kind, "n_jobs": 2}


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def drained(results: Iterator[Any]) -> tuple[list[Any], list[BaseException]]:
    """All results and all errors of an iterator that goes on after an error."""
    found, errors = [], []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found, errors
        except Exception as error:  # noqa: BLE001 (all of them are what is looked at)
            errors.append(error)
            assert len(errors) < 1000, error  # raised again and again
