"""The cases: what is done to a run, and what must hold afterwards.

Whatever happened, a run without a fault then ends with 0, and

- the tree equals an undisturbed one, but for times, run ids and request ids; nothing is left behind;
- between the runs no generation in place was torn;
- no answer whose bytes were on the disk is bought again;
- what is paid twice was in flight at a SIGKILL, or was named as not stored; with signals and twins, nothing.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash.lab import Done, Lab
from crash.world import ROWS, STAGES, Row, answers_on_disk, aside, lineages, staged, torn, tree
from genworker.core.ids import seed_for

ERRNOS = ("ENOSPC", "EIO", "EDQUOT", "EROFS", "EMFILE", "EACCES")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Case:
    """One point: a family, and the numbers that fix it."""

    family: str
    fault: dict[str, Any] = field(default_factory=dict)
    then: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __str__(self) -> str:
        facts = [*self.fault.items(), *(("then " + name, value) for name, value in self.then.items())]
        return f"{self.family}({', '.join(f'{name}={value}' for name, value in facts)}, seed={self.seed})"


def logged_answers(root: Path) -> set[str]:
    """Generations whose answer stands whole in a run's log."""
    found = set()
    for path in (root / ".genworker" / "runs").glob("*.answers-*"):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                try:
                    found.add(json.loads(line)["gen_id"])
                except ValueError:
                    continue
    return found


class Judge:
    """Looks at a case's disk and bill, and collects what is wrong."""

    def __init__(self, lab: Lab, reference: dict[str, Any], rows: Sequence[Row] = ROWS) -> None:
        self.lab = lab
        self.reference = reference
        self.names = {seed_for(row.gen_id): row.gen_id for row in rows}
        self.wrong: list[str] = []
        self.bought_again: set[str] = set()
        self.on_disk: set[str] = set()
        self.paid: set[str] = set()
        self.lost: set[str] = set()
        self.paid_twice_before: set[str] = set()

    def claim(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)

    def after_fault(self, done: Done, statuses: Sequence[int]) -> None:
        """A disturbed run has ended."""
        self.claim(done.status in statuses, f"exit {done.status}, not {statuses}: {done.output[-600:]}")
        self.claim("Traceback" not in done.output, f"a traceback: {done.output[-900:]}")
        self.lost |= {
            line.split()[2].rstrip(":") for line in done.output.splitlines() if line.startswith("NOT STORED")
        }
        self.settle_bill()
        self.wrong += torn(self.lab.root)
        self.on_disk |= logged_answers(self.lab.root) | answers_on_disk(self.lab.root, self.reference)

    def settle_bill(self) -> None:
        """Note which calls have been paid, once the server has heard of everyone's end."""
        server = self.lab.server
        server.wait_until(lambda it: not it.in_flight and not it.stats()["open_connections"])
        again = Counter(self.names[record.seed] for record in server.records if record.paid and record.seed)
        self.bought_again = {name for name, count in again.items() if count > 1}
        self.claim(
            not (self.bought_again - self.paid_twice_before) & self.on_disk,
            f"on disk, and bought again: {sorted((self.bought_again - self.paid_twice_before) & self.on_disk)}",
        )
        self.paid_twice_before = set(self.bought_again)
        self.paid = set(again)

    def finish(self, most_twice: int = 0) -> list[str]:
        """Run once more, without a fault, and judge everything."""
        done = self.lab.run()
        self.claim(done.status == 0, f"the last run: exit {done.status}: {done.output[-900:]}")
        self.settle_bill()
        root = self.lab.root
        self.wrong += torn(root)
        found = tree(root)
        differ = [name for name in {**found, **self.reference} if found.get(name) != self.reference.get(name)]
        self.claim(not differ, f"the tree differs: {differ[:6]}")
        self.claim(not staged(root), f"staging is left: {staged(root)}")
        self.claim(not aside(root), f"something was moved aside: {aside(root)}")
        left = [path.name for path in (root / ".genworker" / "runs").iterdir() if path.suffix != ".jsonl"]
        self.claim(not left, f"left in runs: {left}")
        twice = self.lab.server.paid_twice
        self.claim(
            twice <= most_twice, f"paid twice: {twice} ({sorted(self.bought_again)}), at most {most_twice}"
        )
        return self.wrong


def run_case(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """What is wrong after one case; nothing, one hopes."""
    return _FAMILIES[case.family](lab, case, reference)


def _in_flight(judge: Judge) -> int:
    """Calls that were paid and whose answer had not reached the disk."""
    return len(judge.paid - judge.on_disk)


def _kill(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    lab.fresh()
    judge = Judge(lab, reference)
    done = lab.run(fault=case.fault)
    judge.after_fault(done, (-9, 0))
    bound = _in_flight(judge)
    judge.claim(bound <= 2, f"{bound} answers were in flight")
    if case.then:
        judge.after_fault(lab.run(fault=case.then), (-9, 0))
        bound += max(_in_flight(judge), 0)
    return judge.finish(most_twice=bound)


def _errno(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    lab.fresh()
    judge = Judge(lab, reference)
    done = lab.run(fault=case.fault)
    judge.after_fault(done, (0, 1, 2))
    if done.status:
        judge.claim(
            "error:" in done.output or "NOT STORED" in done.output or "journal" in done.output,
            f"no clear error: {done.output}",
        )
    return judge.finish(most_twice=len(judge.lost - judge.on_disk))


def _signal(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    dice = random.Random(case.seed)
    lab.fresh()
    judge = Judge(lab, reference)
    number = SIGNALS[case.seed % len(SIGNALS)]
    child = lab.start()
    if case.seed % 4:  # while calls are out; else at any time
        lab.server.wait_until(lambda it: it.received >= dice.randint(1, 6))
        time.sleep(dice.uniform(0, 0.006))
    else:
        time.sleep(dice.uniform(0, 0.35))
    child.kill(number)
    done = child.wait()
    early = not lab.server.received
    judge.after_fault(done, (128 + number, 0, *((-number,) if early else ())))
    return judge.finish()


def _twins(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    dice = random.Random(case.seed)
    mode = ("leave", "wait", "share")[case.seed % 3]
    lab.fresh()
    judge = Judge(lab, reference)
    first = lab.start()
    lab.server.wait_until(lambda it: it.received >= 1)
    time.sleep(dice.uniform(0, 0.03))
    second = lab.start("--if-locked", mode).wait()
    one = first.wait()
    judge.after_fault(one, (0,))
    if mode == "leave":
        judge.after_fault(second, (4, 0))
        judge.claim(
            second.status == 0
            or all(word in second.output for word in (f"pid {first.pid}", "host", "user", "for ")),
            f"the holder is not named: {second.output}",
        )
        judge.claim(second.status == 4 or "No calls made" in second.output, "the second worker did not leave")
    else:
        judge.after_fault(second, (0,))
    return judge.finish()


SHARED = lineages(2)


def _cousins(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """Two cohorts that share drafts and essays, at the same time; one may be killed."""
    dice = random.Random(case.seed)
    other = [
        Row(
            row.stage,
            row.gen_id + ("b" if row.stage == "evaluation" else ""),
            row.parent,
            row.template,
            row.replicate,
        )
        for row in SHARED
    ]
    lab.fresh()
    lab.cohort("c2", other)
    judge = Judge(lab, reference, [*ROWS, *other])
    first = lab.start()
    second = lab.start(cohort="c2")
    bound = 0
    if case.fault.get("kill"):
        lab.server.wait_until(lambda it: it.received >= dice.randint(1, 5))
        time.sleep(dice.uniform(0, 0.01))
        first.kill(signal.SIGKILL)
        bound = 2
        judge.claim(first.wait().status in (-9, 0), "the first was not killed")
        judge.claim(second.wait().status == 0, f"the second: {second.wait.__name__}")
    else:
        for child in (first, second):
            done = child.wait()
            judge.claim(done.status == 0, f"exit {done.status}: {done.output[-800:]}")
            judge.claim("Traceback" not in done.output, done.output[-800:])
    done = lab.run(cohort="c2")
    judge.claim(done.status == 0 and "No calls made" in done.output, f"c2 is not whole: {done.output}")
    # The second cohort's own rows are no part of the reference.
    for stage in STAGES:
        for path in (lab.root / "gens" / stage).glob("*b"):
            for file in path.iterdir():
                file.unlink()
            path.rmdir()
    # The metadata of what they share name whichever cohort came first.
    judge.reference = reference
    wrong = judge.finish(most_twice=bound)
    return [
        line for line in wrong if not line.startswith("the tree differs") or not _only_cohort(lab, reference)
    ]


def _only_cohort(lab: Lab, reference: dict[str, Any]) -> bool:
    found = tree(lab.root)
    if found.keys() != reference.keys():
        return False
    drop = ("cohort_id", "task_id")
    for name, value in found.items():
        expected = reference[name]
        if isinstance(value, dict):
            value = {key: inner for key, inner in value.items() if key not in drop}
            expected = {key: inner for key, inner in expected.items() if key not in drop}
        if value != expected:
            return False
    return True


def _parse(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """A kill in the parser, one call at a time: the answer is on the disk by then."""
    lab.fresh(concurrency=1)
    judge = Judge(lab, reference)
    trace = lab.root.parent / "trace"
    fault = {"kind": "kill-before", "step": case.seed % 6 + 1, "names": ["parse"], "trace": str(trace)}
    judge.after_fault(lab.run(fault=fault), (-9,))
    parsed = json.loads(trace.read_text())[-1][1].rpartition("/")[2]
    # A copy costs nothing, so it needs no log.
    judge.claim(parsed in judge.on_disk or parsed == "copy1", f"{parsed} was parsed before it was on disk")
    return judge.finish(most_twice=1)


def _healed(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """The disk refuses one write, sync or rename of a commit, once: the run itself gets over it."""
    lab.fresh()
    judge = Judge(lab, reference)
    name = ("write", "open", "syncfs", "renameat2")[case.seed % 4]
    place = {"write": ".run-", "open": ".run-", "syncfs": "gens/", "renameat2": "gens/"}[name]
    # The first three renames try the way from staging into place, before anything is sent.
    step = case.seed // 4 % 5 + (4 if name == "renameat2" else 1)
    fault = {
        "kind": "errno",
        "step": step,
        "names": [name],
        "contains": place,
        "errno": ERRNOS[case.seed % 3],
    }
    judge.after_fault(lab.run(fault=fault), (0,))
    return judge.finish()


MANY = tuple(Row("draft", f"d{number}", "", "dt", number) for number in range(1, 17))


def _stops_buying(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """The disk refuses everything from some commit on: no call begins after that."""
    lab.fresh(MANY)
    judge = Judge(lab, {}, MANY)
    fault = {
        "kind": "errno-for-good",
        "step": 3 + case.seed % 3,
        "names": ["write"],
        "contains": (".run-", ".jsonl")[case.seed % 2],
        "errno": ERRNOS[case.seed % 4],
    }
    done = lab.run(fault=fault, pauses=(0.1, 0.2))
    judge.after_fault(done, (1, 2))
    judge.claim(
        lab.server.paid <= 8, f"{lab.server.paid} calls were paid, though the disk refused the second"
    )
    judge.claim("cannot be" in done.output, f"no clear error: {done.output}")
    lost = len(judge.lost - judge.on_disk)
    judge.claim(lab.run().status == 0, "no recovery")
    judge.claim(lab.server.paid_twice <= lost, f"paid twice: {lab.server.paid_twice}, at most {lost}")
    return judge.wrong


def _retry(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """A kill while a good generation is replaced: one of the two versions is in place, none is lost."""
    lab.fresh()
    judge = Judge(lab, reference)
    judge.claim(lab.run().status == 0, "the first run failed")
    fault = {
        "kind": ("kill-before", "kill-after")[case.seed % 2],
        "step": case.seed // 2 + 1,
        "contains": "d1",
    }
    done = lab.run("--only", "d1", verb="retry", fault=fault)
    judge.claim(done.status in (-9, 0), f"retry: {done.status} {done.output[-600:]}")
    judge.wrong += torn(lab.root)
    judge.claim(
        (lab.root / "gens/draft/d1/parsed.txt").exists(), "for a moment there was no version in place"
    )
    arrived = done.status == 0 or bool(aside(lab.root)) or "d1" in logged_answers(lab.root)
    judge.claim(lab.run().status == 0, "the last run failed")
    judge.claim(tree(lab.root) == reference, "the tree differs")
    judge.claim(not staged(lab.root), f"staging is left: {staged(lab.root)}")
    copies = 1 + len([name for name in aside(lab.root) if name.endswith("/raw.txt")])
    judge.claim(copies == (2 if arrived else 1), f"{copies} versions are left, arrived: {arrived}")
    return judge.wrong


def _order(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """The order of system calls that survives a power cut, which no kill of a process can show.

    Before a generation is renamed into place its files have been synced after their last write, and after
    it the stage directory is synced, before the next journal line of this generation could be trusted.
    """
    lab.fresh()
    judge = Judge(lab, reference)
    trace = lab.root.parent / "trace"
    judge.after_fault(lab.run(fault={"trace": str(trace)}), (0,))
    steps = [tuple(step) for step in json.loads(trace.read_text())]
    for number, (name, path) in enumerate(steps):
        parts = path.split("/")
        if name != "renameat2" or len(parts) != 3 or parts[2].startswith("."):
            continue
        _, stage, gen_id = parts
        staged_part = f"/{gen_id}/"
        writes = [k for k in range(number) if steps[k][0] == "write" and staged_part in steps[k][1]]
        last = max(writes, default=-1)
        judge.claim(last >= 0, f"{gen_id}: nothing was written into staging")
        between = steps[last + 1 : number]
        files = {steps[k][1] for k in writes}
        synced = {where for what, where in between if what == "fsync"}
        is_synced = any(what == "syncfs" for what, _ in between) or files <= synced
        judge.claim(is_synced, f"{gen_id}: renamed before its files were synced")
        judge.claim(
            ("fsync", f"gens/{stage}") in steps[number:], f"gens/{stage} was not synced after {gen_id}"
        )
    return judge.finish()


_FAMILIES: dict[str, Callable[[Lab, Case, dict[str, Any]], list[str]]] = {
    "kill": _kill,
    "kill in recovery": _kill,
    "errno once": _errno,
    "errno for good": _errno,
    "short write": _errno,
    "signal": _signal,
    "twins": _twins,
    "cousins": _cousins,
    "kill in the parser": _parse,
    "healed": _healed,
    "stops buying": _stops_buying,
    "kill in a retry": _retry,
    "order": _order,
}


def all_cases(steps: int, points: int, seed: int = 0) -> Iterator[Case]:
    """About `points` cases, spread evenly over the steps of a run of `steps` steps."""
    dice = random.Random(seed)
    kills = int(points * 0.45)
    for index in range(kills):
        step = 1 + (index * steps // kills if kills < 2 * steps else index // 2 % steps)
        yield Case("kill", {"kind": "kill-before" if index % 2 else "kill-after", "step": step}, seed=index)
    for index in range(int(points * 0.13)):
        yield Case(
            "kill in recovery",
            {"kind": "kill-before", "step": dice.randint(steps // 6, steps)},
            {"kind": "kill-after" if index % 2 else "kill-before", "step": dice.randint(1, steps // 2)},
            index,
        )
    for index in range(int(points * 0.14)):
        fault = {"kind": "errno", "step": dice.randint(1, steps), "errno": ERRNOS[index % len(ERRNOS)]}
        yield Case("errno once", fault, seed=index)
    for index in range(int(points * 0.1)):
        fault = {
            "kind": "errno-for-good",
            "step": dice.randint(1, steps),
            "errno": ERRNOS[index % len(ERRNOS)],
        }
        yield Case("errno for good", fault, seed=index)
    for index in range(int(points * 0.02) + 1):
        yield Case(
            "short write",
            {"kind": "short-write", "step": dice.randint(1, 50), "names": ["write"]},
            seed=index,
        )
    yield Case("order")
    for index in range(int(points * 0.02) + 1):
        yield Case("kill in the parser", seed=index)
        yield Case("healed", seed=index)
        yield Case("stops buying", seed=index)
        yield Case("kill in a retry", seed=index * 40 // (int(points * 0.02) + 1))
    for index in range(int(points * 0.08) + 1):
        yield Case("signal", seed=index + 1000 * seed)
    for index in range(int(points * 0.04) + 1):
        yield Case("twins", seed=index + 1000 * seed)
    for index in range(int(points * 0.04) + 1):
        yield Case("cousins", {"kill": index % 2 == 1}, seed=index + 1000 * seed)
