"""A run with batches that is killed at any step, under any fate of the call that makes one: billed once, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.batch_kills import Killer
from support.batch_server import BatchServer
from support.project import COHORT, Project, make_project, membership_rows

FATES = ("ok", "lost", "never", "late:0.1", "500-made", "409")
SETTLE_S = 0.3
STRIDE = int(os.environ.get("BATCH_KILL_STRIDE", "11"))
"""Every so many steps; 1 for all of them: ``make crashtest``."""


@pytest.fixture(scope="module")
def killer() -> Iterator[Killer]:
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
    register = project.paths.templates_csv("draft")
    register.write_text(register.read_text().replace("essay_block", ""))
    return project


def copy_of(template: Project, directory: Path) -> Project:
    shutil.copytree(template.root, directory)
    return Project(directory)


def finish(killer: Killer, project: Project, server: BatchServer) -> None:
    for _ in range(6):
        code, _ = killer.run(0, project.root, "run", COHORT, "--plain")
        if code == 0:
            return
    raise AssertionError((project.root / "run.log").read_text()[-4000:])


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
    server.asked.clear()
    server.calls.clear()
    server.creates.clear()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_a_kill_at_each_step(
    kind: str, killer: Killer, server: BatchServer, template: Project, tmp_path: Path
) -> None:
    configure(template, server, kind)
    step, last = 1 if STRIDE == 1 else 1 + len(kind) % STRIDE, 10_000
    while step <= last:
        project = copy_of(template, tmp_path / f"step-{step}")
        server.creates.append(FATES[step % len(FATES)])
        code, _ = killer.run(step, project.root, "run", COHORT, "--plain")
        if code != -9:
            assert code == 0, (project.root / "run.log").read_text()[-4000:]
            last = step
        finish(killer, project, server)
        check(project, server, rows=2)
        forget(server)
        shutil.rmtree(project.root)
        step += STRIDE
    assert last > 50


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
