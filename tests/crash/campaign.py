"""Plays many cases on several labs at once and counts."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from crash.cases import Case, run_case
from crash.lab import Lab


@dataclass
class Tally:
    """What was played and what went wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[Case, list[str]]] = field(default_factory=list)
    paid_twice: Counter[str] = field(default_factory=Counter)
    """Beyond the first, by family: for kills the calls that were in flight."""

    def table(self) -> str:
        bad = Counter(case.family for case, _ in self.wrong)
        lines = [f"{'family':<18}{'points':>8}{'wrong':>7}{'paid twice':>12}"]
        lines += [
            f"{name:<18}{count:>8}{bad[name]:>7}{self.paid_twice[name]:>12}"
            for name, count in self.counts.items()
        ]
        lines.append(f"{'all':<18}{self.counts.total():>8}{len(self.wrong):>7}{self.paid_twice.total():>12}")
        return "\n".join(lines)


def count_steps(lab: Lab) -> int:
    """Steps of an undisturbed run."""
    lab.fresh()
    trace = lab.root.parent / "trace"
    done = lab.run(fault={"trace": str(trace)})
    assert done.status == 0, done.output
    return len(json.loads(trace.read_text()))


def play(
    labs: Sequence[Lab], cases: Iterable[Case], *, mutants: Sequence[str] = (), stop_at: int | None = None
) -> Tally:
    """Run the cases, as many at once as there are labs; `stop_at` wrong ones are enough."""
    tally, lock, queue = Tally(), threading.Lock(), iter(cases)

    def work(lab: Lab) -> None:
        while True:
            with lock:
                case = None if stop_at is not None and len(tally.wrong) >= stop_at else next(queue, None)
            if case is None:
                return
            reference = lab.reference  # of an unbroken run
            lab.mutants = list(mutants)
            wrong = run_case(lab, case, reference)
            lab.mutants = []
            with lock:
                tally.counts[case.family] += 1
                tally.paid_twice[case.family] += lab.server.paid_twice
                if wrong:
                    tally.wrong.append((case, wrong))

    with ThreadPoolExecutor(len(labs)) as pool:
        for future in [pool.submit(work, lab) for lab in labs]:
            future.result()
    return tally
