"""What all tests share."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

# No deadline: how long an example takes says more about the machine's load than about the code. The same
# examples every time: a red run can be repeated, and a green one does not depend on luck.
settings.register_profile("genworker", deadline=None, derandomize=True)
settings.load_profile("genworker")

# Under `nohup`, or behind `&` in a script, these are ignored, and a child would inherit that; a handler that
# does nothing keeps the tests alive as well, and a child begins with what is usual.
for _number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow ones: several workers then end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two workers more than cores: many tests wait for a clock, a socket or a disk."""
    return min((os.cpu_count() or 2) + 2, 8)
