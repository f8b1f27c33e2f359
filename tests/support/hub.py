"""One local hub a test process, which `datasets` and `huggingface_hub` take for the Hugging Face Hub.

Where it is, they read once, when they are imported: the ``conftest.py`` of every folder of tests that use
them calls :func:`start` at its own import, before any module of tests is.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import shutil
import sys
import tempfile
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazystore.testing import LocalHub

#: Variables that would send requests elsewhere or with a token of the developer's.
DISTURBING = (
    "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_ENABLE_HF_TRANSFER", "HUGGINGFACE_HUB_CACHE",
)  # fmt: skip


@functools.cache
def start() -> LocalHub:
    """The hub of this process, running until it ends; the environment points at it."""
    early = [name for name in ("datasets", "huggingface_hub") if name in sys.modules]
    assert not early, f"{early[0]} was imported before the local hub was there"
    for name in DISTURBING:
        os.environ.pop(name, None)
    home = tempfile.mkdtemp(prefix="lazystore-hf-home-")
    owner = os.getpid()

    def clear() -> None:
        hub.close()
        if os.getpid() == owner:
            shutil.rmtree(home, ignore_errors=True)

    hub = LocalHub().start()
    atexit.register(clear)
    os.environ |= hub.environment(home)
    return hub


@contextlib.contextmanager
def stray_loops_collected() -> Iterator[None]:
    """`datasets` leaves an event loop unclosed for each pass over a folder of pictures or sounds; they go in here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            yield
        finally:
            gc.collect()


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """The hub of this process, calm and with its counters at zero; repositories stay from test to test."""
    found = start()
    found.calm()
    yield found
    found.calm()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` tries again at once instead of after seconds."""
    be_impatient(monkeypatch)


def be_impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `huggingface_hub` and `datasets` try again without the seconds they sleep in between."""
    import datasets.config
    import datasets.utils.file_utils
    import huggingface_hub.utils._http

    for module in (huggingface_hub.utils._http, datasets.utils.file_utils):
        monkeypatch.setattr(module, "time", _without_sleep(module.time))
    monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
    monkeypatch.setattr(datasets.config, "STREAMING_OPEN_MAX_RETRIES", 2)


def _without_sleep(time: Any) -> Any:
    no_sleep: Callable[[float], None] = lambda seconds: None  # noqa: E731
    return types.SimpleNamespace(**{name: getattr(time, name) for name in dir(time)} | {"sleep": no_sleep})
