"""Settings all tests share: how hypothesis searches.

No deadline per example: on a loaded machine slowness is not a fault, and hangs end by pytest-timeout.
``HYPOTHESIS_PROFILE=long`` searches deeper; ``ci`` is the same on every run.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.register_profile("long", parent=settings.get_profile("dev"), max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))
