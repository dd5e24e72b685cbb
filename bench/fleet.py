"""A fleet of modelled servers in virtual time: the shipped scheduler, and clients of a fixed number at once.

    python -m bench.fleet [--only NAME] [--seeds 3] [--check]

A client of fixed number has so many calls out, obeys its own hint and tries again; it knows nothing else.
`fine` is at most 1.15 times the ideal or 3 s more, no row lost; refused too much is 5 % of requests beyond
what the server refuses by chance. Nothing sleeps or opens a socket; equal seeds give equal results.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.fleet import FLEET, Case, Outcome, play_case, play_fixed

FIXED = (64, 256)


@dataclass(frozen=True, slots=True)
class Sum:
    """One client over the fleet."""

    fine: int
    mean: float
    excess: int
    lost: int


def total(played: list[Outcome]) -> Sum:
    """Counts, and the geometric mean of the times over the ideal."""
    return Sum(
        sum(one.is_fine for one in played),
        math.exp(sum(math.log(one.ratio) for one in played) / len(played)),
        sum(one.excess > 0.05 for one in played),
        sum(one.lost > 0 for one in played),
    )


def median(case: Case, seeds: int) -> Outcome:
    """The outcome with the median time, of several seeds."""
    found = sorted((play_case(case, seed) for seed in range(seeds)), key=lambda one: one.took_s)
    return found[len(found) // 2]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="scenarios whose name contains this")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="exit with 1 when the fleet's bounds are missed")
    options = parser.parse_args(arguments)
    cases = [case for case in FLEET if options.only in case.name]
    began = time.process_time()
    print(
        f"{'server':<46}{'calls':>7}{'ideal s':>9}{'took s':>9}{'x':>7}{'refused':>9}{'latency x':>10}",
        end="",
    )
    print("".join(f"{f'x of {number}':>10}" for number in FIXED))
    shipped: list[Outcome] = []
    fixed: dict[int, list[Outcome]] = {number: [] for number in FIXED}
    for case in cases:
        played = median(case, options.seeds)
        shipped.append(played)
        row = f"{case.name:<46}{case.calls:>7}{played.ideal_s:>9.1f}{played.took_s:>9.1f}{played.ratio:>7.2f}"
        row += f"{100 * played.refused:>8.1f}%{played.slowdown:>10.1f}"
        for number in FIXED:
            naive = play_fixed(case, number, 0)
            fixed[number].append(naive)
            row += f"{naive.ratio:>10.2f}"
        print(
            row + ("" if played.is_fine else "  *") + (f"  lost {played.lost}" if played.lost else ""),
            flush=True,
        )
    print()
    for name, found in (("shipped", shipped), *((f"fixed {number}", fixed[number]) for number in FIXED)):
        sums = total(found)
        print(
            f"{name:<10} fine {sums.fine} of {len(found)}; geometric mean x {sums.mean:.2f}; "
            f"refused more than 5 % beyond chance in {sums.excess}; rows lost in {sums.lost}"
        )
    slower = sum(
        own.took_s > 1.05 * naive.took_s + 1.0 for own, naive in zip(shipped, fixed[64], strict=True)
    )
    print(f"shipped slower than fixed 64 in {slower}; {time.process_time() - began:.0f} s of CPU")
    sums = total(shipped)
    missed = sums.fine < 0.8 * len(shipped) or sums.mean > 1.2 or sums.lost
    sys.exit(1 if options.check and missed else 0)


if __name__ == "__main__":
    main()
