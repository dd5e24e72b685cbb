"""A run with batches that is killed at any step, under any fate of the call that makes one: billed once, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from genworker.run.batch_money import batch_money
from support.batch_kills import FAULTS, Killer
from support.batch_server import BatchServer
from support.llm_server_answers import Prompt
from support.project import COHORT, Project, make_project, membership_rows, write_csv

FATES = ("ok", "lost", "never", "late:0.1", "500-made", "409")
WAYS = ("again", "moved", "other cohort", "two workers", "killed again", "stopped")
"""How the root is taken up after a kill; ``stopped``: instead of it, for longer than `SETTLE_S`, with a worker beside."""
SETTLE_S = 0.3
STRIDE = int(os.environ.get("BATCH_KILL_STRIDE", "23"))
"""Every so many steps; 1 for all of them: ``make crashtest``."""
SHIFT = int(os.environ.get("BATCH_KILL_SHIFT", "0"))
"""Which fate and which way meet a step; every number from 0 to 35 is another pairing."""
PART, PARTS = map(int, os.environ.get("BATCH_KILL_PART", "0/1").split("/"))
"""One of so many equal parts of the steps, so that a long campaign can be run in pieces."""
PRICES = (1.0, 5.0)
"""US dollars per million tokens of prompts and answers, in batches."""


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
    with Killer() as running:
        yield running


@pytest.fixture(scope="module")
def beside() -> Iterator[Killer]:
    with Killer() as running:
        yield running


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with BatchServer(work_s=0.02).in_thread() as running:
        assert isinstance(running, BatchServer)
        yield running


def configure(project: Project, server: BatchServer, kind: str) -> None:
    url = server.openai_url if kind == "openai" else server.anthropic_url
    project.configure(
        f'default_endpoint = "test"\n[endpoints.test]\nkind = "{kind}"\nbase_url = "{url}"\nbatch = true\n'
        "price = {input = 2, output = 10}\nmax_tokens = 900\nbatch_discount = 0.5\ntimeout_s = 5\n"
        f"[batches]\npoll_s = 0.02\nsettle_s = {SETTLE_S}\nlinger_s = 0.1\n"
    )


@pytest.fixture
def template(tmp_path: Path) -> Project:
    rows = membership_rows(drafts=("plain", "tagged"), essays=(), models=("alpha",))
    project = make_project(tmp_path / "template", rows)
    write_csv(
        project.paths.cohort_membership_csv("other"), [{**row, "cohort_id": "other"} for row in rows[:1]]
    )
    register = project.paths.templates_csv("draft")
    register.write_text(register.read_text().replace("essay_block", ""))
    return project


def copy_of(template: Project, directory: Path) -> Project:
    shutil.copytree(template.root, directory)
    return Project(directory)


def finish(killer: Killer, project: Project, server: BatchServer, cohort: str = COHORT) -> None:
    for _ in range(6):
        code, _ = killer.run(0, project.root, "run", cohort, "--plain")
        check_account(project, server)
        if code == 0:
            return
    raise AssertionError((project.root / "run.log").read_text()[-4000:])


def take_up(
    way: str, step: int, killer: Killer, beside: Killer, project: Project, server: BatchServer
) -> Project:
    """Bring a root to its end after a kill; returns where it is then."""
    if way == "moved":
        there = project.root.with_name(f"{project.root.name}-moved")
        shutil.move(project.root, there)
        project = Project(there)
    elif way == "other cohort":
        finish(killer, project, server, "other")
    elif way == "two workers":
        at_once(killer, beside, project)
    elif way == "killed again":
        killer.run(1 + step * 7 % 90, project.root, "run", COHORT, "--plain")
        check_account(project, server)
    finish(killer, project, server)
    return project


def at_once(killer: Killer, beside: Killer, project: Project, step: int = 0) -> None:
    """Two workers of one cohort."""
    arguments = ("run", COHORT, "--plain", "--if-locked", "share")
    other = threading.Thread(target=lambda: beside.run(0, project.root, *arguments))
    if not step:
        other.start()
        killer.run(step, project.root, *arguments)
    else:
        first = threading.Thread(target=lambda: killer.run(step, project.root, *arguments))
        first.start()
        time.sleep(0.4)
        other.start()
        first.join()
    other.join()


def check_account(project: Project, server: BatchServer) -> None:
    """The account is never below the provider's bill, whatever was killed."""
    bill = server.bill_usd(*PRICES)
    cohorts = (COHORT, "other")
    account = sum(float(batch_money(project.paths, cohort).total.most_usd) for cohort in cohorts)
    assert account >= bill - 1e-12, (account, bill)


def check(project: Project, server: BatchServer, rows: int) -> None:
    """Each row is in the store, each was billed once, and the account has what was billed."""
    billed = server.billed()
    assert sorted(billed.values()) == [1] * rows, (billed, server.calls)
    costs = []
    for path in project.paths.gens_root.glob("*/*/metadata.json"):
        facts = json.loads(path.read_text())
        costs.append(facts["cost_usd"])
        assert facts["batch"]["id"]
    assert len(costs) == rows
    settled = [json.loads(path.read_text()) for path in project.paths.batches_dir.glob("*/settled.json")]
    spent = sum(float(part["spent_usd"]) for each in settled for part in each["stages"].values())
    assert spent == pytest.approx(sum(map(float, costs)))
    left = [path.name for path in project.paths.batches_dir.glob("*/*") if path.name != "settled.json"]
    assert left == []


def forget(server: BatchServer) -> None:
    server.batches.clear()
    server.files.clear()
    server.bill.clear()
    server.billed_tokens = [0, 0]
    server.asked.clear()
    server.calls.clear()
    server.creates.clear()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_kill_at_each_step(
    kind: str, killer: Killer, beside: Killer, server: BatchServer, template: Project, tmp_path: Path
) -> None:
    configure(template, server, kind)
    code, steps = killer.run(0, copy_of(template, tmp_path / "whole").root, "run", COHORT, "--plain")
    assert code == 0
    assert steps > 100
    forget(server)
    stories: Counter[str] = Counter()
    for step in range(1 + len(kind) % STRIDE if STRIDE > 1 else 1, steps + 1, STRIDE):
        if step * PARTS // (steps + 1) != PART:
            continue
        project = copy_of(template, tmp_path / f"step-{step}")
        way = WAYS[(step // (STRIDE if STRIDE > 1 else 1) + SHIFT) % len(WAYS)]
        server.creates.append(FATES[(step + SHIFT // len(WAYS)) % len(FATES)])
        if way == "stopped":
            at_once(killer, beside, project, -step)
        else:
            code, _ = killer.run(step, project.root, "run", COHORT, "--plain")
            assert code in (-9, 0), (project.root / "run.log").read_text()[-4000:]
        check_account(project, server)
        project = take_up(way, step, killer, beside, project, server)
        check(project, server, rows=2)
        stories[way] += 1
        forget(server)
        shutil.rmtree(project.root)
    print(f"{kind}: {steps} steps, {sum(stories.values())} stories:", dict(stories))


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("fate", [*FATES, "hang", "429"])
def test_each_fate_of_a_create(
    kind: str, fate: str, killer: Killer, server: BatchServer, template: Project
) -> None:
    configure(template, server, kind)
    text = template.config.read_text()
    template.configure(text.replace("timeout_s = 5", "timeout_s = 0.5"))
    server.creates.append(fate)
    finish(killer, template, server)
    check(template, server, rows=2)


Story = Callable[[Callable[..., int], BatchServer], bool]
"""Plays runs by the function that it is given, and says whether each row was asked for once."""


def once(server: BatchServer) -> bool:
    return sorted(server.billed().values()) == [1, 1]


def lost_create(run: Callable[..., int], server: BatchServer) -> bool:
    server.creates.append("lost")
    return run() == 0 and once(server)


def late_create(run: Callable[..., int], server: BatchServer) -> bool:
    server.creates.append("late:0.2")
    code = run()
    time.sleep(0.3)
    return code == 0 and once(server)


def failed_create(run: Callable[..., int], server: BatchServer) -> bool:
    server.creates.append("500-made")
    return run() == 0 and once(server)


def line_separators(run: Callable[..., int], server: BatchServer) -> bool:
    server.separator = " \u2028 and \x85 so on"
    return run() == 0 and once(server)


def refused_row(run: Callable[..., int], server: BatchServer) -> bool:
    asked: Counter[str] = Counter()

    def fate(prompt: Prompt, number: int) -> str:
        asked[prompt.key] += 1
        return "400" if prompt.key == min(asked) else "ok"

    server.rows = fate
    run()
    return sorted(asked.values()) == [1, 1]


def left_out(run: Callable[..., int], server: BatchServer) -> bool:
    server.work_s = 1000.0
    codes = [run("--detach"), run("--detach")]
    server.advance(2000.0)
    return codes == [5, 5] and len(server.batches) == 1 and run() == 0 and once(server)


STORIES: dict[str, Story] = {
    "no line before the call": lost_create,
    "an empty listing is believed": late_create,
    "splitlines": line_separators,
    "the error file is not read": refused_row,
    "the SDK tries again": failed_create,
    "claims only": left_out,
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", STORIES)
def test_what_a_careless_writer_does_is_caught(
    fault: str, killer: Killer, server: BatchServer, template: Project, tmp_path: Path
) -> None:
    assert set(STORIES) == set(FAULTS)
    configure(template, server, "openai")
    for planted in ([], [f"fault={fault.replace(' ', '_')}"]):
        project = copy_of(template, tmp_path / f"planted-{len(planted)}")

        def run(*options: str, planted: list[str] = planted, project: Project = project) -> int:
            return killer.run(0, project.root, *planted, "run", COHORT, "--plain", *options)[0]

        assert STORIES[fault](run, server) is not bool(planted), (project.root / "run.log").read_text()
        forget(server)
        server.work_s, server.separator, server.offset_s = 0.02, "", 0.0
        server.rows = lambda prompt, asked: "ok"
