"""The hub that these tests read from, in the state it had at its start."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from support import hub as the_hub
from support import hub_samples
from support.hub import hub as hub
from support.hub import impatient as impatient

from lazystore.testing import LocalHub

the_hub.start()


@pytest.fixture
def published(hub: LocalHub) -> Callable[[str], str]:
    """``published("text")`` is the name of that sample repository (support/hub_samples.py), there to be read."""
    return lambda sample: hub_samples.publish(hub, sample)


@pytest.fixture
def stray_loops() -> Iterator[None]:
    """For tests that have `datasets` read a folder of pictures or sounds: the event loops it forgets are no error."""
    with the_hub.stray_loops_collected():
        yield
