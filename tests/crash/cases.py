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
        left = [path.name for path in root.glob(".genworker/runs/*") if path.suffix != ".jsonl"]
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
    _only_d1_is_new(judge, reference, arrived)
    judge.claim(not staged(lab.root), f"staging is left: {staged(lab.root)}")
    copies = 1 + len([name for name in aside(lab.root) if name.endswith("/raw.txt")])
    judge.claim(copies == (2 if arrived else 1), f"{copies} versions are left, arrived: {arrived}")
    return judge.wrong


def _only_d1_is_new(judge: Judge, reference: dict[str, Any], arrived: bool) -> None:
    """The one generation that was asked again, with another seed, is new and of one piece; all else is as before."""
    found = tree(judge.lab.root)
    differ = {name for name in {**found, **reference} if found.get(name) != reference.get(name)}
    new = {f"draft/d1/{name}" for name in ("raw.txt", "parsed.txt", "metadata.json")} if arrived else set()
    judge.claim(differ == new, f"the tree differs: {sorted(differ ^ new)[:6]}")
    judge.claim(found["draft/d1/raw.txt"] == found["draft/d1/parsed.txt"], "d1 is of two pieces")


# Commands beside `run`


TEMPLATES = "1_raw/templates"


def _spoil(lab: Lab) -> None:
    """Damage that `verify --repair` mends: a digest that is wrong, and an answer that can be parsed now."""
    (lab.root / "gens/essay/e1/parsed.txt").write_text("not what was written")


def _new_template(lab: Lab) -> None:
    path = lab.root / TEMPLATES / "draft/dt.txt"
    path.write_text("Write anew on {% for c in concepts %}{{ c.name }}: {{ c.content }} {% endfor %}")


def _new_parser(lab: Lab) -> None:
    """Evaluations are taken as they came, instead of for their score."""
    path = lab.root / "1_raw/evaluation_templates.csv"
    path.write_text(path.read_text().replace("in_last_line", "identity"))


def _describe(lab: Lab) -> None:
    """Concepts as a build wants them."""
    for name in ("a", "b"):
        path = lab.root / f"1_raw/concepts/descriptions-paragraph/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"All about {name}.")


def _nothing(_lab: Lab) -> None:
    pass


@dataclass(frozen=True)
class Verb:
    """A command whose kills are played after a whole run."""

    argv: tuple[str, ...]
    prepare: Callable[[Lab], None] = _nothing
    statuses: tuple[int, ...] = (0,)


VERBS = {
    "retry": Verb(("retry", "c1", "--only", "d1")),
    "refresh": Verb(("run", "c1", "--refresh", "stale"), _new_template),
    "reparse": Verb(("reparse", "c1"), _new_parser),
    "repair": Verb(("verify", "c1", "--repair"), _spoil, (0, 1)),
    "build": Verb(("cohort", "build", "c2", "--k-max", "2"), _describe),
    "init": Verb(("init", "new")),
}


def _command(lab: Lab, verb: Verb, **request: Any) -> Done:
    return lab.run(*verb.argv[1:], verb=verb.argv[0], cohort="", bare=verb.argv[0] == "init", **request)


def _texts(lab: Lab) -> Counter[bytes]:
    """Every answer that is anywhere: in place, aside, or in a log."""
    found: Counter[bytes] = Counter()
    for base in (lab.root / "gens", lab.root / ".genworker" / "aside"):
        found.update(path.read_bytes() for path in base.rglob("raw.txt"))
    return found


def count_command_steps(lab: Lab, name: str) -> int:
    """Steps of one undisturbed command."""
    verb = VERBS[name]
    _whole(lab, verb)
    trace = lab.base / "trace"
    done = _command(lab, verb, fault={"trace": str(trace)}, **_root(lab, name))
    assert done.status in verb.statuses, done.output
    return len(json.loads(trace.read_text()))


def _root(lab: Lab, name: str) -> dict[str, Any]:
    return {"root": str(lab.root.parent / "new")} if name == "init" else {}


def _whole(lab: Lab, verb: Verb) -> Done:
    lab.fresh()
    done = lab.run()
    verb.prepare(lab)
    return done


_STEPS: dict[str, int] = {}


def _kill_command(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """A kill of another command: what it was about is done by the next one, and no text is lost or bought twice."""
    name = list(VERBS)[case.seed % len(VERBS)]
    verb = VERBS[name]
    mutants, lab.mutants = lab.mutants, []
    steps = _STEPS.get(name) or _STEPS.setdefault(name, count_command_steps(lab, name))
    judge = Judge(lab, reference)
    judge.claim(_whole(lab, verb).status == 0, "the first run failed")
    lab.mutants = mutants
    before, paid = _texts(lab), lab.server.paid
    step = 1 + case.seed // len(VERBS) * 7 % steps
    kind = ("kill-before", "kill-after")[case.seed // len(VERBS) % 2]
    done = _command(lab, verb, fault={"kind": kind, "step": step}, **_root(lab, name))
    judge.claim(done.status in (-9, *verb.statuses), f"{name}: {done.status} {done.output[-600:]}")
    judge.claim("Traceback" not in done.output, f"a traceback: {done.output[-900:]}")
    if name != "repair":  # which finds the store torn, as that is what it is for
        judge.wrong += torn(lab.root)
    logged = logged_answers(lab.root)
    lab.server.wait_until(lambda it: not it.in_flight and not it.stats()["open_connections"])
    _after_command(lab, judge, name, verb, logged, case)
    lost = [text[:60] for text, count in (before - _texts(lab)).items() if count]
    judge.claim(not lost, f"{name}: texts are gone: {lost}")
    most = {"retry": 1, "refresh": 6}.get(name, 0)
    in_flight = 2 if done.status == -9 and most else 0
    judge.claim(
        lab.server.paid - paid <= most + in_flight, f"{name}: {lab.server.paid - paid} calls, at most {most}"
    )
    left = [path.name for path in (lab.root / ".genworker" / "runs").iterdir() if path.suffix != ".jsonl"]
    judge.claim(not left, f"left in runs: {left}")
    judge.claim(not staged(lab.root), f"staging is left: {staged(lab.root)}")
    return judge.wrong


def _after_command(lab: Lab, judge: Judge, name: str, verb: Verb, logged: set[str], case: Case) -> None:
    root = lab.root
    if name == "retry":
        arrived = "d1" in logged or bool(aside(root))
        paid = lab.server.paid
        if case.seed % 3 == 0:  # the recovery is killed as well
            fault = {"kind": "kill-after", "step": 5 + case.seed % 60}
            judge.claim(lab.run(fault=fault).status in (-9, 0), "the killed recovery")
        judge.claim(lab.run().status == 0, "the run behind it failed")
        judge.claim(lab.server.paid == paid, "the run behind it bought something")
        runs = {json.loads(path.read_text())["run_id"] for path in root.glob("gens/*/*/metadata.json")}
        judge.claim(
            len(runs) == (2 if arrived else 1), f"the paid answer is not in place: {len(runs)}, {arrived}"
        )
        _only_d1_is_new(judge, judge.reference, arrived)
        return
    again = _command(lab, verb, **_root(lab, name))
    if name == "init":
        again = lab.run("new", "--force", verb="init", cohort="", bare=True)
        done = {path.name for path in (root.parent / "new").rglob("*") if path.is_file()}
        fresh = lab.run("other", verb="init", cohort="", bare=True)
        judge.claim(fresh.status == 0, fresh.output)
        for path in (root.parent / "other").rglob("*"):
            if path.is_file():
                twin = root.parent / "new" / path.relative_to(root.parent / "other")
                judge.claim(twin.is_file() and twin.read_bytes() == path.read_bytes(), f"{twin.name} is torn")
        judge.claim(bool(done), "nothing was written")
    judge.claim(again.status in verb.statuses, f"{name} again: {again.status} {again.output[-600:]}")
    if name == "refresh":
        for path in root.glob("gens/draft/*/prompt.txt"):
            judge.claim("Write anew" in path.read_text(), f"{path.parent.name} is of the old template")
    elif name == "reparse":
        for path in root.glob("gens/evaluation/*/parsed.txt"):
            raw = path.with_name("raw.txt").read_text()
            judge.claim(path.read_text() == raw, f"{path.parent.name} is not parsed anew")
            earlier = list(root.glob(f".genworker/aside/evaluation/{path.parent.name}/*/parsed.txt"))
            judge.claim(bool(earlier), f"{path.parent.name}: what it said before is gone")
    elif name == "repair":
        judge.claim(lab.run().status == 0, "the run behind it failed")
        judge.claim(tree(root) == judge.reference, "the tree differs")
        judge.claim("not what was written" in _damaged_aside(root), "the damaged text is gone")
    elif name == "build":
        place = root / "cohorts/c2/membership.csv"
        lines = place.read_text().splitlines() if place.exists() else []
        combos = (root / "combo_mappings.csv").read_text().splitlines()
        judge.claim(len(lines) == len(set(lines)) > 3, f"the membership: {lines[:4]}")
        judge.claim(len(combos) == len(set(combos)), f"combos twice: {combos}")
        hidden = [path.name for path in (root / "cohorts/c2").iterdir() if path.name.startswith(".")]
        judge.claim(not hidden, f"left: {hidden}")


def _damaged_aside(root: Path) -> str:
    return "".join(path.read_text() for path in (root / ".genworker/aside").rglob("parsed.txt"))


def _signal_twice(lab: Lab, case: Case, reference: dict[str, Any]) -> list[str]:
    """One request on two ways, as make and systemd send it: nothing that is in flight is abandoned."""
    dice = random.Random(case.seed)
    lab.fresh()
    judge = Judge(lab, reference)
    number = (signal.SIGTERM, signal.SIGINT)[case.seed % 2]
    child = lab.start()
    lab.server.wait_until(lambda it: it.received >= dice.randint(1, 5))
    child.kill(number)
    time.sleep(dice.choice((0.0003, dice.uniform(0.0005, 0.1))))
    child.kill(number)
    done = child.wait()
    judge.after_fault(done, (128 + number, 0))
    abandoned = [
        path for path in lab.root.glob(".genworker/runs/*.jsonl") if b'"abandoned"' in path.read_bytes()
    ]
    judge.claim(not abandoned, "calls in flight were abandoned")
    return judge.finish()


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
    "kill in a command": _kill_command,
    "signal twice": _signal_twice,
    "order": _order,
}


def all_cases(steps: int, points: int, seed: int = 0) -> Iterator[Case]:
    """About `points` cases, spread evenly over the steps of a run of `steps` steps."""
    dice = random.Random(seed)
    kills = int(points * 0.4)
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
        yield Case("signal twice", seed=index)
        yield Case("kill in a retry", seed=index * 40 // (int(points * 0.02) + 1))
    for index in range(int(points * 0.1) + 1):
        yield Case("kill in a command", seed=index + 1000 * seed)
    for index in range(int(points * 0.08) + 1):
        yield Case("signal", seed=index + 1000 * seed)
    for index in range(int(points * 0.04) + 1):
        yield Case("twins", seed=index + 1000 * seed)
    for index in range(int(points * 0.04) + 1):
        yield Case("cousins", {"kill": index % 2 == 1}, seed=index + 1000 * seed)
