"""Settings all tests share: how hypothesis searches, and what collections of garbage need not look at.

No deadline per example: on a loaded machine slowness is not a fault, and hangs end by pytest-timeout.
``HYPOTHESIS_PROFILE=long`` searches deeper; ``ci`` is the same on every run.
"""

from __future__ import annotations

import gc
import os
import signal

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile("long", parent=settings.get_profile("dev"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


# A shell that starts a job in the background has it ignore Ctrl-C, nohup a hang-up; children would inherit that.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Ten thousand tests stay until the end: each full collection of garbage would look at all of them again."""
    gc.collect()
    gc.freeze()
