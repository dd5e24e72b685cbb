"""A tiny experiment on disk, and an independent look at what a run has left of it."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGES = ("draft", "essay", "evaluation")
FILES = ("prompt.txt", "raw.txt", "parsed.txt", "metadata.json")
VOLATILE = frozenset(
    {
        "run_id",
        "started_at",
        "finished_at",
        "latency_s",
        "request_id",
        "attempts",
        "cost_usd",
        "cost",
        "timing",
    }
)
"""What two runs of the same work may differ in."""
HEADER = (
    "stage",
    "gen_id",
    "cohort_id",
    "parent_gen_id",
    "combo_id",
    "template_id",
    "llm_model_id",
    "replicate",
)


@dataclass(frozen=True)
class Row:
    stage: str
    gen_id: str
    parent: str = ""
    template: str = ""
    replicate: int = 1


def lineages(count: int, evaluations: int = 1, prefix: str = "") -> list[Row]:
    """`count` drafts, each with an essay, each with evaluations."""
    rows = []
    for number in range(1, count + 1):
        rows.append(Row("draft", f"{prefix}d{number}", "", "dt", number))
        rows.append(Row("essay", f"{prefix}e{number}", f"{prefix}d{number}", "et"))
        rows += [
            Row("evaluation", f"{prefix}v{number}x{k}", f"{prefix}e{number}", "vt", k)
            for k in range(1, evaluations + 1)
        ]
    return rows


ROWS = (*lineages(2), Row("essay", "copy1", "d1", "ct"))
"""Six calls and a copy."""


def make_world(root: Path, rows: Sequence[Row] = ROWS, cohort: str = "c1") -> Path:
    """A data root with a catalogue and one cohort."""
    raw = root / "1_raw"
    for stage, templates in (("draft", ("dt",)), ("essay", ("et",)), ("evaluation", ("vt",))):
        (raw / "templates" / stage).mkdir(parents=True)
        for name in templates:
            text = {
                "draft": "Write on {% for c in concepts %}{{ c.name }}: {{ c.content }} {% endfor %}",
                "essay": "Essay from: {{ draft_block }}",
                "evaluation": "Give a score for: {{ response }}",
            }[stage]
            (raw / "templates" / stage / f"{name}.txt").write_text(text)
    _csv(
        raw / "draft_templates.csv",
        "template_id,template_name,description,parser,generator,active",
        ["dt,,,,llm,true"],
    )
    _csv(
        raw / "essay_templates.csv",
        "template_id,template_name,description,parser,generator,active",
        ["et,,,,llm,true", "ct,,,,copy,true"],
    )
    _csv(
        raw / "evaluation_templates.csv",
        "template_id,template_name,description,parser,generator,active",
        ["vt,,,in_last_line,llm,true"],
    )
    _csv(
        raw / "llm_models.csv",
        "id,model,provider,display_name,for_generation,for_evaluation",
        ["m1,test-model,test,m1,true,true"],
    )
    _csv(raw / "concepts_metadata.csv", "concept_id,name,active", ["a,Alpha,true", "b,Beta,true"])
    _csv(
        root / "combo_mappings.csv",
        "combo_id,concept_id,description_level,k_max",
        ["k1,a,paragraph,2", "k1,b,paragraph,2"],
    )
    add_cohort(root, cohort, rows)
    return root


def _csv(path: Path, header: str, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *lines]) + "\n")


def add_cohort(root: Path, cohort: str, rows: Sequence[Row]) -> None:
    directory = root / "cohorts" / cohort
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "membership.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(HEADER)
        for row in rows:
            writer.writerow(
                (row.stage, row.gen_id, cohort, row.parent, "k1", row.template, "m1", row.replicate)
            )


def write_config(path: Path, url: str, *, concurrency: int = 2, extra: str = "", endpoint: str = "") -> Path:
    path.write_text(
        f'default_endpoint = "test"\nmax_concurrency = {concurrency}\n{extra}\n'
        # A seed stands for a generation: by it the bill says what was paid for.
        f'[endpoints.test]\nkind = "openai"\nbase_url = "{url}"\nseed = true\n'
        f"max_concurrency = {concurrency}\n{endpoint}\n"
    )
    return path


# What is there: read with nothing of genworker


def directories(root: Path) -> Iterator[tuple[str, Path]]:
    """(stage, directory) of everything that stands in a generation's place."""
    for stage in STAGES:
        base = root / "gens" / stage
        if base.is_dir():
            for path in sorted(base.iterdir()):
                if not path.name.startswith("."):
                    yield stage, path


def torn(root: Path) -> list[str]:
    """What is wrong with the generations in place: each must be whole and say so truly."""
    wrong = []
    for stage, path in directories(root):
        name = f"{stage}/{path.name}"
        try:
            metadata = json.loads((path / "metadata.json").read_bytes())
        except (OSError, ValueError) as error:
            wrong.append(f"{name}: no metadata ({error})")
            continue
        names = {entry.name for entry in path.iterdir()}
        if names != {"metadata.json", *metadata["files"]} or not {"raw.txt", "prompt.txt"} <= names:
            wrong.append(f"{name}: its files are {sorted(names)}")
        for file, facts in metadata["files"].items():
            try:
                content = (path / file).read_bytes()
            except OSError as error:
                wrong.append(f"{name}: {error}")
                continue
            if hashlib.sha256(content).hexdigest() != facts["sha256"] or len(content) != facts["size_bytes"]:
                wrong.append(f"{name}/{file}: not what its metadata say")
        if metadata["gen_id"] != path.name or metadata["stage"] != stage:
            wrong.append(f"{name}: the metadata are another generation's")
        if metadata["failure"] is None and "parsed.txt" not in names:
            wrong.append(f"{name}: no parsed text and no failure")
    return wrong


def staged(root: Path) -> list[str]:
    """Names of staging and of anything else that begins with a dot below a stage."""
    return sorted(
        str(path.relative_to(root)) for stage in STAGES for path in (root / "gens" / stage).glob(".*")
    )


def aside(root: Path) -> list[str]:
    """Files that were moved aside."""
    base = root / ".genworker" / "aside"
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())


def tree(root: Path) -> dict[str, Any]:
    """Every generation's content, without what two runs may differ in."""
    found: dict[str, Any] = {}
    for stage, path in directories(root):
        for file in sorted(path.iterdir()):
            content: Any = file.read_bytes()
            if file.name == "metadata.json":
                content = {key: value for key, value in json.loads(content).items() if key not in VOLATILE}
            found[f"{stage}/{path.name}/{file.name}"] = content
    return found


def answers_on_disk(root: Path, reference: dict[str, Any]) -> set[str]:
    """Generations whose whole answer is on disk, in place or in staging."""
    found = set()
    for stage in STAGES:
        for raw in (root / "gens" / stage).rglob("raw.txt"):
            if raw.read_bytes() == reference.get(f"{stage}/{raw.parent.name}/raw.txt"):
                found.add(raw.parent.name)
    return found
