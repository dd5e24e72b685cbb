"""What months of use cost a start: ``python -m bench.growth [--journal-mb 1000] [--concepts N] …``.

Each case is a data root that has grown in one way, and commands over a cohort of six rows: ``plan`` with a
cap, ``run`` with nothing to do, ``status`` of all cohorts. Seconds are the least of three starts; the first
after an upgrade, which folds the journals, stands apart.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from genworker.core.account import Fold
from genworker.core.completion import FinishReason, Usage
from genworker.core.events import Answered, Calling, Event, RunStarted
from genworker.core.stages import Stage
from genworker.paths import Paths
from genworker.store.answers import json_line
from genworker.store.ledger import keep_accounts

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.project import COHORT, Project, make_project, membership_rows


def base(root: Path) -> Project:
    """A cohort of six rows, made."""
    rows = membership_rows(models=("alpha",), essays=("rewrite",), replicates=2)
    project = make_project(root, rows)
    project.use_script()
    assert project.run("run", COHORT, "-q").returncode == 0
    return project


def seconds(project: Project, *arguments: str, times: int = 3) -> float:
    """The least of some starts."""
    took = []
    for _ in range(times):
        began = time.perf_counter()
        done = subprocess.run(project.command(*arguments), cwd=project.root, capture_output=True)
        took.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr.decode()
    return min(took)


def many_concepts(project: Project, count: int) -> None:
    """A catalogue that the cohort uses three concepts of; each tenth has a description."""
    with project.paths.concepts_csv.open("a", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerows((f"concept-{number}", f"Concept {number}", "True") for number in range(count))
    for number in range(0, count, 10):
        project.paths.concept_description(f"concept-{number}", "paragraph").write_text("All about it.")


def many_templates(project: Project, count: int) -> None:
    """As many templates of each stage, each with a file."""
    words = {"draft": "concepts", "essay": "draft_block", "evaluation": "response"}
    for stage in Stage:
        parser = "in_last_line" if stage is Stage.EVALUATION else ""
        with project.paths.templates_csv(stage).open("a", newline="") as stream:
            writer = csv.writer(stream)
            for number in range(count):
                name = f"{stage.value}-{number}"
                writer.writerow((name, name, "", parser, "llm", "True"))
                project.paths.template_file(stage, name).write_text(f"{{{{ {words[stage.value]} }}}}")


def many_cohorts(project: Project, count: int) -> None:
    """Cohorts that share every generation with the first."""
    content = project.membership.read_text()
    for number in range(count):
        copy = project.membership_of(f"copy-{number}")
        copy.parent.mkdir(parents=True)
        copy.write_text(content.replace(COHORT, f"copy-{number}"))


def long_journal(project: Project, size_bytes: int) -> None:
    """The journal of one run of the cohort that was killed."""
    path = project.paths.journal_path("20250101T000000Z-00000000")
    at, usage = "2025-01-01T00:00:00.000+00:00", Usage(2000, 800)
    with path.open("wb") as stream:
        stream.write(_line(at, RunStarted("20250101T000000Z-00000000", COHORT, "0", 9, 1, [])))
        number = 0
        while stream.tell() < size_bytes:
            number += 1
            name = f"old{number:013d}"
            events: list[Event] = [
                Calling(Stage.DRAFT, name, 1, "test", "alpha", "vendor/alpha", None, 3000),
                Answered(
                    Stage.DRAFT,
                    name,
                    1,
                    "test",
                    "vendor/alpha",
                    FinishReason.STOP,
                    usage,
                    None,
                    "id",
                    1.0,
                ),
            ]
            stream.write(b"".join(_line(at, event) for event in events))


def many_runs(project: Project, count: int) -> None:
    """Accounts of many ended runs, and their journals."""
    paths: Paths = project.paths
    accounts = []
    for number in range(count):
        run_id = f"20240101T000000Z-{number:08d}"
        fold = Fold(run_id)
        fold.add(RunStarted(run_id, COHORT, "0", 9, 1, []))
        fold.add(Calling(Stage.DRAFT, f"g{number}", 1, "test", "alpha", "vendor/alpha", None, 3000))
        accounts.append(fold.close())
        paths.journal_path(run_id).write_bytes(_line("t", RunStarted(run_id, COHORT, "0", 9, 1, [])))
    keep_accounts(paths, accounts)


def _line(at: str, event: Event) -> bytes:
    return json_line({"time": at, **event.to_json(), "event": event.word})


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="bench.growth")
    parser.add_argument("--journal-mb", type=int, default=100)
    parser.add_argument("--concepts", type=int, default=50_000)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--templates", type=int, default=3_000)
    parser.add_argument("--cohorts", type=int, default=300)
    options = parser.parse_args()
    capped = ("plan", COHORT, "--max-calls", "99999999")
    with tempfile.TemporaryDirectory() as place:

        def fresh(name: str) -> Project:
            return base(Path(place) / name)

        def show(name: str, grown: Project) -> None:
            commands = (capped, ("run", COHORT, "-q"), ("status",))
            took = [seconds(grown, *command) for command in commands]
            print(f"{name:<34}" + "".join(f"{each:>10.2f}" for each in took), flush=True)

        print(f"{'data root':<34}{'plan s':>10}{'run s':>10}{'status s':>10}")
        project = fresh("base")
        show("base", project)
        long_journal(project, options.journal_mb * 1_000_000)
        print(f"{'first start over that journal':<34}{seconds(project, *capped, times=1):>10.2f}", flush=True)
        show(f"one journal of {options.journal_mb} MB", project)
        wide, tall, runs, cohorts = (fresh(name) for name in ("wide", "tall", "runs", "cohorts"))
        many_concepts(wide, options.concepts)
        show(f"{options.concepts:,} concepts", wide)
        many_templates(tall, options.templates // len(Stage))
        show(f"{options.templates:,} templates", tall)
        many_cohorts(cohorts, options.cohorts)
        show(f"{options.cohorts:,} cohorts more that share all", cohorts)
        many_runs(runs, options.runs)
        show(f"{options.runs:,} ended runs", runs)


if __name__ == "__main__":
    main()
