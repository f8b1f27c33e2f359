"""What the caller's own thread does for `imap`."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazystore import parallel
from lazystore.parallel.scheduling.caller import warn


@pytest.mark.parametrize("module", ["mapper.py", "scheduling/engine.py"])
def test_a_warning_points_at_the_line_that_asked_for_a_result(module: str) -> None:
    """Whichever modules of the package lie between."""
    inside = str(Path(parallel.__file__).parent / module)
    names: dict[str, object] = {"warn": warn}
    exec(compile("def step(): warn('threads instead')", inside, "exec"), names)
    with pytest.warns(RuntimeWarning, match="threads instead") as told:
        names["step"]()  # type: ignore[operator]
    assert told[0].filename == __file__
