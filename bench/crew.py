"""Plays many workers against the shipped coordinator; messages get lost: `python -m bench.crew`.

Time is virtual; what is measured is the processor time of the coordinator, which workers share, and its part
of all. Workers are models that cost less than real ones (`tests/support/crew.py`).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from genworker.core.coordinator import Coordinator, Question, Reply
from support.crew import Play, World


def show(crew: int, rows: int) -> None:
    spent_s, messages = 0.0, 0
    sync = Coordinator.sync

    def timed(coordinator: Coordinator, question: Question, now_s: float) -> Reply | None:
        nonlocal spent_s, messages
        began = time.thread_time()
        reply = sync(coordinator, question, now_s)
        spent_s += time.thread_time() - began
        messages += 1
        return reply

    world = World(
        rows=rows,
        shard_rows=max(50, min(1000, rows // 50 // crew)),
        crew=crew,
        places=20 * crew,
        per_s=40.0 * crew,
        latency_s=0.4,
        step_s=0.125,
        lease_s=5.0,
        timeout_s=20.0,
        loss=0.05,
        repeat=0.05,
        late_s=0.3,
        kills=0.5,
        restarts=0.02,
        faults_end_s=1e9,
        watch=False,
    )
    Coordinator.sync = timed  # type: ignore[assignment]
    try:
        play = Play(world)
        began = time.process_time()
        end_s = play.run(1e9)
        took_s = time.process_time() - began
    finally:
        Coordinator.sync = sync  # type: ignore[method-assign]
    ideal_s = rows / world.per_s
    print(
        f"{crew:>7}{rows:>11,}{play.born - crew:>7}{play.restarts:>9}{end_s:>9.0f}{end_s / ideal_s:>7.2f}"
        f"{messages:>10,}{1e6 * spent_s / messages:>9.0f}{took_s:>8.1f}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--crews", type=int, nargs="+", default=[2, 20, 200])
    options = parser.parse_args(arguments)
    print("5 % of messages lost, 5 % twice, all up to 0.3 s late; a kill every 2 s; x: to ideal")
    print("workers       rows  kills restarts  virt. s      x questions   µs each   CPU s")
    for crew in options.crews:
        show(crew, options.rows * crew // max(options.crews))


if __name__ == "__main__":
    main()
