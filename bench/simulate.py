"""Plays cohorts in virtual time with the shipped scheduler: `python bench/simulate.py`. Prints tables.

Makespans stand against the bound max(sum of latencies / calls at once, longest lineage), which no scheduler
that does not know the latencies can reach.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from genworker.core.scheduler import WINDOW
from support.simulation import Model, Played, play

HEAVY = Model(latency_s=0.8, sigma=0.8)


def ratio(played: Played) -> float:
    return played.makespan_s / played.bound_s


def show_orders(seeds: int) -> None:
    print(f"Makespan / bound; latencies lognormal, median 0.8 s, sigma 0.8; 256 at once; seeds 0-{seeds - 1}")
    print("The lane starts at 16 calls at once and finds the 256 by itself.\n")
    print(
        f"{'lineages':>8}  {'ready queue':<22}" + "".join(f"{seed:>7}" for seed in range(seeds)) + "   median"
    )
    for lineages in (2000, 10_000):
        for name, window, barrier in (
            (f"default (window {WINDOW})", WINDOW, False),
            ("latest stage first", 0, False),
            ("earliest stage first", 10**9, False),
            ("barrier between stages", 10**9, True),
        ):
            found = [
                ratio(play([HEAVY], lineages=lineages, seed=seed, window=window, barrier=barrier))
                for seed in range(seeds)
            ]
            middle = sorted(found)[len(found) // 2]
            row = "".join(f"{value:7.2f}" for value in found)
            print(f"{lineages:>8}  {name:<22}{row}  {middle:7.2f}")


def show_limits() -> None:
    print("\nOne stage, 600 calls; ideal is the time that the limit itself needs\n")
    print(f"{'endpoint':<52}{'latency':>8}{'ideal s':>9}{'took s':>8}{'x':>6}{'refused':>9}")
    halving = ((0.0, 1.0), (10.0, 0.5), (20.0, 1.0))
    for latency in (0.05, 0.5):
        for name, model, ideal in (
            ("1200 rpm, 429 + Retry-After 1", Model(latency, rpm=1200), 30.0),
            ("the same, announced in headers", Model(latency, rpm=1200, announce=True), 30.0),
            ("840,000 tpm, 429 + Retry-After 1", Model(latency, tpm=840_000), 30.0),
            ("the same, announced in headers", Model(latency, tpm=840_000, announce=True), 30.0),
            (
                "1200 rpm that halves at 10 s, doubles at 20 s",
                Model(latency, rpm=1200, schedule=halving),
                35.0,
            ),
        ):
            played = play([model], lineages=600, stages=1)
            print(
                f"{name:<52}{latency:>8}{ideal:>9.1f}{played.makespan_s:>8.1f}"
                f"{played.makespan_s / ideal:>6.2f}{100 * played.refused_share:>8.1f}%"
            )
    print("\n3000 calls; best is the time at the server's best concurrency\n")
    print(f"{'endpoint':<52}{'best s':>8}{'took s':>8}{'x':>6}{'refused':>9}{'latency / floor':>17}")
    for sigma in (0.0, 0.8):
        for name, model, slots in (
            ("takes 40 at once, 429 + Retry-After 1", Model(0.5, sigma, at_once=40), 40),
            ("takes 40 at once, 429 without a hint", Model(0.5, sigma, at_once=40, hint_s=None), 40),
            ("never refuses, slows down past 32 at once", Model(0.5, sigma, slow_above=32), 32),
        ):
            played = play([model], lineages=3000, stages=1)
            server = played.servers[0]
            best = sum(server.floor) / slots
            print(
                f"{name + f', sigma {sigma}':<52}{best:>8.1f}{played.makespan_s:>8.1f}"
                f"{played.makespan_s / best:>6.2f}{100 * played.refused_share:>8.1f}%"
                f"{sum(server.latencies) / sum(server.floor):>17.2f}"
            )


def show_fairness() -> None:
    print("\nTwo endpoints of 64 at once, 1500 lineages each; seconds until each has done its last call\n")
    alone = play([HEAVY], lineages=1500, concurrency=64).makespan_s
    print(f"{'alone':<44}{alone:>8.1f}")
    for name, other in (
        ("beside one that works", HEAVY),
        ("beside one that answers 503 for 60 s", Model(0.8, 0.8, failing=(0, 60))),
        ("beside one that answers 429 for 60 s", Model(0.8, 0.8, failing=(0, 60), fails_with_429=True)),
        ("beside one that allows 60 requests a minute", Model(0.8, 0.8, rpm=60, announce=True)),
    ):
        lineages = 3000 if other.rpm is None else 600
        played = play([HEAVY, other], lineages=lineages, concurrency=64)
        first, second = played.lane_ends_s
        if lineages == 600:
            alone = play([HEAVY], lineages=300, concurrency=64).makespan_s
            name += f" (300 each, alone {alone:.1f})"
        print(f"{name:<44}{first:>8.1f}   the other {second:>8.1f}")


def show_cost() -> None:
    began = time.perf_counter()
    played = play([HEAVY], lineages=10_000)
    spent = time.perf_counter() - began
    each = spent / played.steps * 1e6
    print(f"\n{played.steps} calls played in {spent:.1f} s: {each:.0f} µs each, the model included")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = parser.parse_args().seeds
    show_orders(seeds)
    show_limits()
    show_fairness()
    show_cost()


if __name__ == "__main__":
    main()
