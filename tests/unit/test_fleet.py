"""The law of limits on modelled servers: bounds on time and refusals. `python -m bench.fleet` has the whole."""

from __future__ import annotations

import math

import pytest

from support.fleet import FLEET, play_case

BY_NAME = {case.name: case for case in FLEET}
BOUNDS = {
    # name: (time over the ideal, share refused beyond chance)
    "free, 0.3 s": (1.8, 0.0),
    "900 rpm": (1.12, 0.05),
    "900 rpm, announced": (1.08, 0.02),
    "900 a minute": (1.15, 0.06),
    "24 at once": (1.1, 0.06),
    "24 at once, refused in 2 ms": (1.1, 0.05),
    "queues past 24": (1.15, 0.0),
    "5 % by chance": (2.2, 0.02),
    "50 % by chance": (6.0, 0.05),
    "10 % of 503": (1.4, 0.0),
    "900 rpm, two lanes": (1.15, 0.09),
    "40 s of 503": (1.3, 0.0),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_a_server_is_met_within_its_bounds(name: str) -> None:
    played = play_case(BY_NAME[name])
    ratio, excess = BOUNDS[name]
    assert played.lost == 0
    assert played.ratio <= ratio
    assert played.excess <= excess


def test_a_small_server_that_queues_is_not_flooded() -> None:
    assert play_case(BY_NAME["queues past 4"]).slowdown <= 6.0
    assert play_case(BY_NAME["queues past 24"]).slowdown <= 2.5


def test_every_scenario_has_a_name_of_its_own_and_an_end() -> None:
    assert len(BY_NAME) == len(FLEET)
    assert all(case.calls > 0 and math.isfinite(case.model.latency_s) for case in FLEET)
