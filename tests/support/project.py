"""A small project on disk for tests: catalogue, membership, configuration, and the CLI as a subprocess."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genworker.core.ids import (
    combo_id,
    draft_task_id,
    essay_salt,
    essay_task_id,
    evaluation_task_id,
    gen_id,
    replicate_salt,
)
from genworker.core.stages import Stage
from genworker.paths import Paths

COHORT = "trial"
CONCEPTS = ("kites", "locks", "moss")
COMBO = combo_id(CONCEPTS, "paragraph", 3)
MODELS = ("alpha", "beta")
Row = dict[str, str]


def write(path: Path, text: str) -> None:
    """Write a text file and its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_csv(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Write a CSV with the columns of its first row."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_catalog(root: Path) -> None:
    """Three concepts, two draft templates, two essay templates (one copies), two evaluations, two models."""
    raw = root / "1_raw"
    write_csv(
        raw / "concepts_metadata.csv",
        [{"concept_id": name, "name": name.title(), "active": "True"} for name in CONCEPTS],
    )
    for name in CONCEPTS:
        write(raw / "concepts" / "descriptions-paragraph" / f"{name}.txt", f"All about {name}.")
    for stage, entries in {
        "draft": [("plain", "", "llm"), ("tagged", "essay_block", "llm")],
        "essay": [("rewrite", "", "llm"), ("keep", "", "copy")],
        "evaluation": [("novelty", "in_last_line", "llm"), ("rigour", "complex", "llm")],
    }.items():
        write_csv(
            raw / f"{stage}_templates.csv",
            [
                {
                    "template_id": name,
                    "template_name": name.title(),
                    "description": "",
                    "parser": parser,
                    "generator": generator,
                    "active": "True",
                }
                for name, parser, generator in entries
            ],
        )
    listing = "{% for concept in concepts %}{{ concept.name }}: {{ concept.content }}\n{% endfor %}"
    write(raw / "templates/draft/plain.txt", f"Write.\n{listing}")
    write(raw / "templates/draft/tagged.txt", f"Write between <essay> tags.\n{listing}")
    write(raw / "templates/essay/rewrite.txt", "Rewrite:\n{{ draft_block }}")
    write(raw / "templates/evaluation/novelty.txt", "Novelty? End with SCORE: N\n{{ response }}")
    write(raw / "templates/evaluation/rigour.txt", "Rigour? End with SCORE: N\n{{ response }}")
    write_csv(
        raw / "llm_models.csv",
        [
            {
                "id": name,
                "model": f"vendor/{name}",
                "provider": "vendor",
                "display_name": name.title(),
                "for_generation": "True",
                "for_evaluation": "True",
            }
            for name in MODELS
        ],
    )
    write_csv(
        root / "combo_mappings.csv",
        [
            {
                "combo_id": COMBO,
                "version": "v1",
                "concept_id": name,
                "description_level": "paragraph",
                "k_max": "3",
                "created_at": "2026-01-01T00:00:00+00:00",
            }
            for name in CONCEPTS
        ],
    )


def membership_rows(
    *,
    cohort: str = COHORT,
    drafts: Iterable[str] = ("plain",),
    essays: Iterable[str] = ("rewrite", "keep"),
    evaluations: Iterable[str] = ("novelty", "rigour"),
    models: Iterable[str] = MODELS,
    replicates: int = 2,
) -> list[Row]:
    """The full product, made as the contract says, independently of genworker's own compiler."""
    rows: dict[Stage, list[Row]] = {stage: [] for stage in Stage}

    def add(stage: Stage, task: str, salt: str | None, replicate: int, **cells: str) -> str:
        identity = gen_id(stage, task, cohort, salt)
        rows[stage].append(
            {
                "stage": stage.value,
                "gen_id": identity,
                "cohort_id": cohort,
                "parent_gen_id": cells.get("parent", ""),
                "combo_id": COMBO,
                "template_id": cells["template"],
                "llm_model_id": cells["model"],
                "replicate": str(replicate),
            }
        )
        return identity

    for template in drafts:
        for model in models:
            task = draft_task_id(COMBO, template, model)
            draft = add(Stage.DRAFT, task, None, 1, template=template, model=model)
            for essay_template in essays:
                essay_task = essay_task_id(task, essay_template)
                essay = add(
                    Stage.ESSAY,
                    essay_task,
                    essay_salt(1, 1),
                    1,
                    parent=draft,
                    template=essay_template,
                    model=model,
                )
                for evaluation in evaluations:
                    for judge in models:
                        for number in range(1, replicates + 1):
                            add(
                                Stage.EVALUATION,
                                evaluation_task_id(essay, evaluation, judge),
                                replicate_salt(number),
                                number,
                                parent=essay,
                                template=evaluation,
                                model=judge,
                            )
    return [row for stage in Stage for row in rows[stage]]


@dataclass
class Project:
    """A project in a directory of its own."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def paths(self) -> Paths:
        return Paths.from_str(self.data)

    @property
    def config(self) -> Path:
        return self.root / "config" / "genworker.toml"

    @property
    def membership(self) -> Path:
        return self.paths.cohort_membership_csv(COHORT)

    def membership_of(self, cohort: str) -> Path:
        return self.paths.cohort_membership_csv(cohort)

    def configure(self, text: str) -> None:
        write(self.config, text)

    def use_server(self, url: str, kind: str = "openai", extra: str = "") -> None:
        """Send every model to a local server, with seeds: it tells replicates apart by them alone."""
        if kind == "openai" and "seed" not in extra:
            extra = f"seed = true\n{extra}"
        self.configure(
            f'default_endpoint = "test"\n[endpoints.test]\nkind = "{kind}"\nbase_url = "{url}"\n{extra}\n'
            "[retries]\nbase_s = 0.05\ncap_s = 0.2\n"
        )

    def use_script(self) -> None:
        """Send every model to the fake that ships."""
        self.configure('default_endpoint = "test"\n[endpoints.test]\nkind = "scripted"\n')

    def write_membership(self, rows: Iterable[Mapping[str, str]] | None = None) -> None:
        write_csv(self.membership, membership_rows() if rows is None else rows)

    def rows(self) -> list[Row]:
        with self.membership.open(encoding="utf-8-sig", newline="") as stream:
            return list(csv.DictReader(stream))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "genworker", *arguments]

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The CLI, as a user calls it in the project's directory."""
        return subprocess.run(
            self.command(*arguments),
            cwd=self.root,
            env={**clean_environment(), **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The CLI in the background."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=clean_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def tree(self) -> dict[str, str]:
        """Every text of the store by its path below ``gens``; metadata without what differs by run."""
        texts = {}
        for path in sorted(self.paths.gens_root.glob("*/*/*")):
            name = str(path.relative_to(self.paths.gens_root))
            text = path.read_text(encoding="utf-8")
            if path.name == "metadata.json":
                text = json.dumps(lasting(json.loads(text)), sort_keys=True)
            texts[name] = text
        return texts


def lasting(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata without times, run and request names, and the number of tries."""
    passing = ("run_id", "started_at", "finished_at", "latency_s", "request_id", "attempts")
    return {key: value for key, value in metadata.items() if key not in passing}


def make_project(root: Path, rows: Iterable[Mapping[str, str]] | None = None) -> Project:
    """Catalogue and membership; the configuration is the caller's."""
    project = Project(root)
    write_catalog(project.data)
    project.write_membership(rows)
    return project


def journal_lines(path: Path) -> list[dict[str, Any]]:
    """A run's journal as it stands in the file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def clean_environment() -> dict[str, str]:
    """The environment without what would reach into a test."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("GENWORKER_", "GEN_", "OPENAI_", "ANTHROPIC_"))
        and name.lower() != "http_proxy"
        # A user's second start finds the compiled modules of the first; so do the hundreds of starts here.
        # A user's output is buffered where it goes into a pipe.
        and name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
    }
    return {**kept, "PYTHONWARNINGS": "error::ResourceWarning", "COLUMNS": "100"}
