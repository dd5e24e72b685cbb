"""The short form of the harness, and the proof that it sees: `make crashtest` plays the long one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from crash.campaign import count_steps, play
from crash.cases import ERRNOS, Case, all_cases
from crash.lab import Lab, open_lab
from crash.mutants import ALL

POINTS = 150
PARTS = 6  # of the cases, so that several workers play them at once


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with open_lab() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_whatever_happens_nothing_is_lost_torn_or_paid_twice(lab: Lab, part: int) -> None:
    cases = list(all_cases(count_steps(lab), POINTS))
    assert len(cases) >= POINTS
    tally = play([lab], cases[part::PARTS])
    print(tally.table())
    assert tally.counts.total() == len(cases[part::PARTS])
    assert not tally.wrong, "\n".join(f"{case}: {wrong}" for case, wrong in tally.wrong)


def _kills(steps: range, kind: str = "kill-after") -> list[Case]:
    return [Case("kill", {"kind": kind, "step": step}) for step in steps]


def _each(family: str, count: int) -> list[Case]:
    return [Case(family, seed=seed) for seed in range(count)]


CATCHES: dict[str, list[Case]] = {
    "no_staging": _kills(range(45, 90, 2)),
    "metadata_last": [
        Case("kill", {"kind": "kill-after", "step": step, "names": ["renameat2"]}) for step in range(4, 10)
    ],
    "no_sync": _each("order", 1),
    "no_directory_sync": _each("order", 1),
    "no_lock": _each("twins", 6),
    "blind_sweep": _each("twins", 90)[2::3],
    "drain_off": _each("signal", 20),
    "no_claim": _each("cousins", 8),
    "parse_first": _each("kill in the parser", 2),
    "no_salvage": _kills(range(50, 90, 2)),
    "sweep_deletes": _kills(range(50, 90, 2)),
    "no_log": _kills(range(50, 90, 2)),
    "errors_swallowed": [
        Case(
            "errno once",
            {"kind": "errno", "step": step, "names": ["write"], "contains": ".run-", "errno": ERRNOS[0]},
        )
        for step in range(1, 5)
    ],
    "gives_up_at_once": _each("healed", 4),
    "keeps_buying": _each("stops buying", 2),
    "replaced_is_deleted": [Case("kill in a retry", seed=seed) for seed in (200, 201)],
    "replaced_in_two_steps": _each("kill in a retry", 46)[30:],
    "replacement_goes_aside": _each("kill in a command", 360)[0::6],
    "repair_deletes": _each("kill in a command", 360)[3::6],
    "init_in_place": _each("kill in a command", 360)[5::6],
    "build_in_place": _each("kill in a command", 360)[4::6],
    "every_signal_counts": _each("signal twice", 60),
    "reparse_deletes": _each("kill in a command", 360)[2::6],
}
"""For each bug the cases of which at least one must go wrong, and does go right without it."""


@pytest.mark.slow
@pytest.mark.parametrize("mutant", ALL)
def test_a_seeded_bug_is_seen(lab: Lab, mutant: str) -> None:
    tally = play([lab], CATCHES[mutant], mutants=[mutant], stop_at=1)
    assert tally.wrong, f"{mutant} went unseen in {tally.counts.total()} cases"
