"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# No deadline: how long an example takes says more about the machine's load than about the code. The same
# examples every time: a red run can be repeated, and a green one does not depend on luck.
settings.register_profile("genworker", deadline=None, derandomize=True)
settings.load_profile("genworker")
