"""Stores as older tools leave them, out of random choices: what stands in each directory, and what is true of it.

The spellings are those that the contract names (section 3): two layouts of metadata, usage, finish reasons, files
as paths, missing keys, stubs, further metadata files, texts that were never parsed.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from genworker.core.ids import combo_id
from genworker.paths import Paths
from support.project import CONCEPTS, Project, write_catalog

COHORT = "older"
STATES = (
    "done",
    "truncated",
    "truncated-with-text",
    "free",
    "unparseable",
    "missing",
    "stub",
    "no-metadata",
    "remnant",
)
COMBOS = [combo_id(pair, "paragraph", 2) for pair in (CONCEPTS[:2], CONCEPTS[1:], (CONCEPTS[0], CONCEPTS[2]))]
PAIRS = dict(zip(COMBOS, (CONCEPTS[:2], CONCEPTS[1:], (CONCEPTS[0], CONCEPTS[2])), strict=True))
TEMPLATES = {"draft": ("plain",), "essay": ("rewrite", "keep"), "evaluation": ("novelty", "rigour")}
GOOD = {
    "draft": "A draft.\nOf two lines.",
    "essay": "An essay.\nOf two lines.",
    "evaluation": "Well.\nSCORE: 7",
}


@dataclass
class OlderStore:
    """A project with such a store.

    Attributes:
        states: what is true of each generation, by gen_id.
        rows: the full membership's rows.
    """

    project: Project
    states: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, str]] = field(default_factory=list)

    def ids(self, *states: str) -> set[str]:
        return {gen_id for gen_id, state in self.states.items() if state in states}

    def texts(self) -> dict[str, bytes]:
        """The parsed texts of what is done, by gen_id."""
        gens = self.project.paths.gens_root
        return {
            path.parent.name: path.read_bytes()
            for path in gens.glob("*/*/parsed.txt")
            if path.parent.name in self.ids("done")
        }


def make_older_store(root: Path, seed: int, *, wide: bool, states: tuple[str, ...] = STATES) -> OlderStore:
    """Write a store of one draft per combo with its descendants, each in a state by chance.

    Args:
        wide: whether the membership has all columns; else `stage, gen_id` alone, and the metadata say the rest.
    """
    dice = random.Random(seed)
    project = Project(root)
    write_catalog(project.data)
    _register(project.paths)
    store = OlderStore(project)
    for number, combo in enumerate(COMBOS):
        draft = _add(store, dice, states, "draft", f"d{number}", None, combo, "plain", "alpha")
        for template in TEMPLATES["essay"]:
            essay = _add(
                store, dice, states, "essay", f"e{number}{template}", draft, combo, template, "alpha"
            )
            for judge in TEMPLATES["evaluation"]:
                for replicate in (1, 2):
                    name = f"v{number}{template}{judge}{replicate}"
                    _add(store, dice, states, "evaluation", name, essay, combo, judge, "beta", replicate)
    path = project.paths.cohort_membership_csv(COHORT)
    path.parent.mkdir(parents=True)
    columns = list(store.rows[0]) if wide else ["stage", "gen_id"]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(store.rows)
    return store


def _register(paths: Paths) -> None:
    with paths.combo_mappings_csv.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["combo_id", "version", "concept_id", "description_level", "k_max", "created_at"])
        for combo, concepts in PAIRS.items():
            for concept in reversed(concepts):  # an order that is not the catalogue's
                writer.writerow([combo, "v1", concept, "paragraph", 2, "2025-01-01"])


def _add(
    store: OlderStore,
    dice: random.Random,
    states: tuple[str, ...],
    stage: str,
    gen_id: str,
    parent: str | None,
    combo: str,
    template: str,
    model: str,
    replicate: int = 1,
) -> str:
    row = {
        "stage": stage,
        "gen_id": gen_id,
        "cohort_id": COHORT,
        "parent_gen_id": parent or "",
        "combo_id": combo,
        "template_id": template,
        "llm_model_id": model,
        "replicate": str(replicate),
    }
    store.rows.append(row)
    state = dice.choice(states)
    above = store.states.get(parent) if parent is not None else "done"
    if above != "done" and state not in ("missing", "stub"):
        state = "missing"  # nothing is made from what is not there
    if template == "keep" and state in (
        "free",
        "unparseable",
        "truncated",
        "truncated-with-text",
        "no-metadata",
    ):
        state = "done"
    store.states[gen_id] = state
    if state != "missing":
        _write(store, dice, row, state)
    return gen_id


def _write(store: OlderStore, dice: random.Random, row: dict[str, str], state: str) -> None:
    paths, stage = store.project.paths, row["stage"]
    directory = paths.generation_dir(stage, row["gen_id"])
    directory.mkdir(parents=True)
    is_copy = row["template_id"] == "keep"
    split = dice.random() < 0.5  # metadata.json as it was planned, and raw_metadata.json beside it
    parent_text = GOOD["draft"]
    raw = parent_text if is_copy else GOOD[stage]
    if state == "unparseable":
        raw = "Nothing to be read here." if stage == "evaluation" else " \n"
        if stage != "evaluation":
            store.states[row["gen_id"]] = state = "free"
            raw = GOOD[stage]
    plan: dict[str, Any] = {
        "stage": stage,
        "gen_id": row["gen_id"],
        "mode": "copy" if is_copy else "llm",
        dice.choice(["template_id", f"{stage}_template"]): row["template_id"],
        "replicate": int(row["replicate"]),
    }
    if stage == "draft":
        plan["combo_id"] = row["combo_id"]
    else:
        plan["parent_gen_id"] = row["parent_gen_id"]
    plan[dice.choice(["llm_model_id", "model_id"])] = row["llm_model_id"]
    plan[dice.choice(["origin_cohort_id", "cohort_id"])] = COHORT
    made = {
        "finish_reason": dice.choice(["length", "max_tokens", "MAX_TOKENS"]) if "trunc" in state else "stop",
        "truncated": "trunc" in state and dice.random() < 0.5,
        "usage": {"prompt_tokens": 20, "completion_tokens": 42},
        "duration_s": 0.5,
        "files": {"raw": f"/home/ada/{stage}/{row['gen_id']}/raw.txt"},
    }
    if state == "stub":
        (directory / "metadata.json").write_text(json.dumps(plan))
        return
    if state != "no-metadata":
        record = plan if split else {**plan, **made}
        (directory / "metadata.json").write_text(json.dumps(record, indent=2))
        if split:
            (directory / "raw_metadata.json").write_text(json.dumps({"stage": stage, **made}))
            (directory / "parsed_metadata.json").write_text(json.dumps({"success": state == "done"}))
    if state == "remnant":
        (directory / "prompt.txt").write_text(_prompt(row, parent_text))
        return
    if not is_copy:
        (directory / "prompt.txt").write_text(_prompt(row, parent_text))
    if not (is_copy and dice.random() < 0.5):
        (directory / "raw.txt").write_text(raw)
    if state in ("done", "truncated-with-text", "no-metadata"):
        score = dice.choice(["7.0", "7.0\n"])
        (directory / "parsed.txt").write_text(score if stage == "evaluation" else raw)
    elif is_copy:
        (directory / "parsed.txt").write_text(raw)
        store.states[row["gen_id"]] = "done"


def _prompt(row: dict[str, str], draft: str) -> str:
    """What the catalogue's templates gave, with the concepts in the register's order."""
    if row["stage"] == "draft":
        concepts = reversed(PAIRS[row["combo_id"]])
        return "Write.\n" + "".join(f"{name.title()}: All about {name}.\n" for name in concepts)
    if row["stage"] == "essay":
        return f"Rewrite:\n{draft}"
    text = draft if "keep" in row["parent_gen_id"] else GOOD["essay"]
    return f"{row['template_id'].title()}? End with SCORE: N\n{text}"
