"""The hub that these tests read from, in the state it had at its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support import hub as the_hub
from support import hub_samples

from lazystore.testing import LocalHub

the_hub.start()


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    """The hub of this process, calm and with its counters at zero; repositories stay from test to test."""
    found = the_hub.start()
    found.calm()
    yield found
    found.calm()


@pytest.fixture
def published(hub: LocalHub) -> Callable[[str], str]:
    """``published("text")`` is the name of that sample repository (support/hub_samples.py), there to be read."""
    return lambda sample: hub_samples.publish(hub, sample)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` tries again at once instead of after seconds."""
    the_hub.be_impatient(monkeypatch)


@pytest.fixture
def stray_loops() -> Iterator[None]:
    """For tests that have `datasets` read a folder of pictures or sounds: the event loops it forgets are no error."""
    with the_hub.stray_loops_collected():
        yield
