"""The hub that the documents' hub datasets are read from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import hub as the_hub

from lazystore.testing import LocalHub

the_hub.start()


@pytest.fixture
def hub() -> Iterator[LocalHub]:
    found = the_hub.start()
    found.calm()
    yield found
    found.calm()
