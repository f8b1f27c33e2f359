from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lazystore import testing


def test_every_exported_name_is_there():
    for name in testing.__all__:
        assert getattr(testing, name).__name__ == name
        assert name in dir(testing)
    with pytest.raises(AttributeError, match="NoSuchThing"):
        testing.NoSuchThing  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    script = "import sys, lazystore.testing; print([m for m in ('asyncio', 'fsspec', 'http') if m in sys.modules])"
    home = str(Path(testing.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": home},
        timeout=60,
    )
    assert done.stdout == "[]\n", done.stderr
