"""The long form: ``PYTHONPATH=tests python -m crash [--points N] [--seed N] [--labs N]``."""

from __future__ import annotations

import argparse
import os
import time

from crash.campaign import count_steps, play
from crash.cases import all_cases
from crash.lab import open_labs


def main() -> int:
    parser = argparse.ArgumentParser(prog="crash")
    parser.add_argument("--points", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--labs", type=int, default=max(2, os.cpu_count() or 2))
    arguments = parser.parse_args()
    began = time.monotonic()
    with open_labs(arguments.labs) as labs:
        steps = count_steps(labs[0])
        print(
            f"{steps} steps in an undisturbed run; {arguments.points} points; seed {arguments.seed}",
            flush=True,
        )
        tally = play(labs, all_cases(steps, arguments.points, arguments.seed))
    for case, wrong in tally.wrong[:40]:
        print(f"WRONG {case}")
        for line in wrong:
            print(f"    {line}")
    print(tally.table())
    print(f"{time.monotonic() - began:.0f} s")
    return 1 if tally.wrong else 0


raise SystemExit(main())
