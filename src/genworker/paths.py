"""The layout of a data root: where everything lies. Nothing here reads or writes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from genworker.core.stages import Stage

PROMPT_FILE = "prompt.txt"
RAW_FILE = "raw.txt"
PARSED_FILE = "parsed.txt"
METADATA_FILE = "metadata.json"
REASONING_FILE = "reasoning.txt"
"""What the model thought, where that came apart from its answer; most generations have none."""
GENERATION_FILES = (PROMPT_FILE, RAW_FILE, PARSED_FILE, METADATA_FILE, REASONING_FILE)
OLDER_METADATA_FILES = ("raw_metadata.json", "parsed_metadata.json")
"""What other tools keep beside ``metadata.json``; read, never written."""

TEMPLATES_ROOT_VARIABLE = "GEN_TEMPLATES_ROOT"


@dataclass(frozen=True, slots=True)
class Paths:
    """Every path below one data root.

    Attributes:
        data_root: the directory that holds ``gens``, ``cohorts`` and the catalogue.
        templates_root: where ``<stage>/<template_id>.txt`` lie; ``1_raw/templates`` of the data root
            unless the environment variable ``GEN_TEMPLATES_ROOT`` names another directory.
    """

    data_root: Path
    templates_root: Path

    @classmethod
    def from_str(cls, data_root: str | Path) -> Paths:
        """The layout below `data_root`, which need not exist yet."""
        root = Path(data_root)
        override = os.environ.get(TEMPLATES_ROOT_VARIABLE)
        return cls(root, Path(override) if override else root / "1_raw" / "templates")

    # Generations

    @property
    def gens_root(self) -> Path:
        """``gens``: one directory per stage, one below it per generation."""
        return self.data_root / "gens"

    def stage_dir(self, stage: Stage | str) -> Path:
        """``gens/<stage>``."""
        return self.gens_root / Stage(stage).value

    def generation_dir(self, stage: Stage | str, gen_id: str) -> Path:
        """``gens/<stage>/<gen_id>``, the directory of one generation."""
        return self.stage_dir(stage) / gen_id

    def prompt_path(self, stage: Stage | str, gen_id: str) -> Path:
        """The prompt that was sent."""
        return self.generation_dir(stage, gen_id) / PROMPT_FILE

    def raw_path(self, stage: Stage | str, gen_id: str) -> Path:
        """The full, unprocessed output of the model."""
        return self.generation_dir(stage, gen_id) / RAW_FILE

    def parsed_path(self, stage: Stage | str, gen_id: str) -> Path:
        """What downstream stages and reports consume."""
        return self.generation_dir(stage, gen_id) / PARSED_FILE

    def metadata_path(self, stage: Stage | str, gen_id: str) -> Path:
        """Lineage and provenance."""
        return self.generation_dir(stage, gen_id) / METADATA_FILE

    # Cohorts

    @property
    def cohorts_dir(self) -> Path:
        """``cohorts``: one directory per cohort."""
        return self.data_root / "cohorts"

    def cohort_dir(self, cohort_id: str) -> Path:
        """``cohorts/<cohort_id>``."""
        return self.cohorts_dir / cohort_id

    def cohort_membership_csv(self, cohort_id: str) -> Path:
        """The source of truth: which generations exist."""
        return self.cohort_dir(cohort_id) / "membership.csv"

    def cohort_manifest_json(self, cohort_id: str) -> Path:
        """The axes that the membership was compiled from."""
        return self.cohort_dir(cohort_id) / "manifest.json"

    def cohort_adopted_json(self, cohort_id: str) -> Path:
        """How the generations of an adopted cohort were made; beside an older tool's manifest."""
        return self.cohort_dir(cohort_id) / "adopted.json"

    def cohort_older_spec(self, cohort_id: str) -> Path:
        """The axes as an older tool's users state them; read by ``cohort import-spec``."""
        return self.cohort_dir(cohort_id) / "spec" / "config.yaml"

    def cohort_spec_toml(self, cohort_id: str) -> Path:
        """The axes that the user states for a designed experiment; optional."""
        return self.cohort_dir(cohort_id) / "cohort.toml"

    def cohort_reports_dir(self, cohort_id: str) -> Path:
        """Tables and pages about one cohort."""
        return self.cohort_dir(cohort_id) / "reports"

    @property
    def cross_experiment_dir(self) -> Path:
        """Tables and pages over several cohorts."""
        return self.data_root / "7_cross_experiment"

    # The catalogue

    @property
    def catalog_dir(self) -> Path:
        """``1_raw``: concepts, templates, models, replicates."""
        return self.data_root / "1_raw"

    def templates_csv(self, stage: Stage | str) -> Path:
        """The register of one stage's templates."""
        return self.catalog_dir / f"{Stage(stage).value}_templates.csv"

    def template_file(self, stage: Stage | str, template_id: str) -> Path:
        """The text of one template."""
        return self.templates_root / Stage(stage).value / f"{template_id}.txt"

    @property
    def models_csv(self) -> Path:
        """The register of models."""
        return self.catalog_dir / "llm_models.csv"

    @property
    def concepts_csv(self) -> Path:
        """The register of concepts."""
        return self.catalog_dir / "concepts_metadata.csv"

    @property
    def replication_csv(self) -> Path:
        """Replicates per stage."""
        return self.catalog_dir / "replication_config.csv"

    def concept_description(self, concept_id: str, level: str) -> Path:
        """One concept's description at one level: ``sentence``, ``paragraph`` or ``article``."""
        return self.catalog_dir / "concepts" / f"descriptions-{level}" / f"{concept_id}.txt"

    @property
    def combo_mappings_csv(self) -> Path:
        """The append-only register of combos."""
        return self.data_root / "combo_mappings.csv"

    @property
    def tasks_dir(self) -> Path:
        """``2_tasks``: what a user selected by hand."""
        return self.data_root / "2_tasks"

    @property
    def selected_essays_txt(self) -> Path:
        """Curated mode: one essay gen_id per line."""
        return self.tasks_dir / "selected_essays.txt"

    @property
    def selected_combos_csv(self) -> Path:
        """The combos to use, where not all are wanted."""
        return self.tasks_dir / "selected_combo_mappings.csv"

    def raw_copy_path(self, stage: Stage | str, gen_id: str) -> Path:
        """The optional debug copy of a raw output."""
        return self.data_root / "3_generation" / f"{Stage(stage).value}_raw" / f"{gen_id}.txt"

    @property
    def ratings_dir(self) -> Path:
        """``ratings``: what people think of texts, a directory per rater."""
        return self.data_root / "ratings"

    # The older project's names, where they mean the same

    @property
    def raw_dir(self) -> Path:
        """The older name of `catalog_dir`."""
        return self.catalog_dir

    @property
    def llm_models_csv(self) -> Path:
        """The older name of `models_csv`."""
        return self.models_csv

    def stage_templates_csv(self, stage: Stage | str) -> Path:
        """The older name of `templates_csv`."""
        return self.templates_csv(stage)

    @property
    def selected_combo_mappings_csv(self) -> Path:
        """The older name of `selected_combos_csv`."""
        return self.selected_combos_csv

    def aggregated_scores_csv(self, cohort_id: str) -> Path:
        """The scores of one cohort, as ``genworker report`` writes them."""
        return self.cohort_reports_dir(cohort_id) / "aggregated_scores.csv"

    # What genworker keeps for itself

    @property
    def private_dir(self) -> Path:
        """``.genworker``: run journals, locks and what was replaced."""
        return self.data_root / ".genworker"

    @property
    def format_path(self) -> Path:
        """Says which format all of this has."""
        return self.private_dir / "format"

    @property
    def runs_dir(self) -> Path:
        """Run journals and the lock of each living run."""
        return self.private_dir / "runs"

    def journal_path(self, run_id: str) -> Path:
        """One run's journal, a JSON object per line."""
        return self.runs_dir / f"{run_id}.jsonl"

    @property
    def ledger_path(self) -> Path:
        """The sums of ended runs, a JSON object per line."""
        return self.private_dir / "ledger" / "runs.jsonl"

    @property
    def made_path(self) -> Path:
        """The names of what ended runs have made, a JSON object per line."""
        return self.private_dir / "ledger" / "made.jsonl"

    def answers_path(self, run_id: str, segment: int) -> Path:
        """Answers of a living run that may not be committed yet; read again when the run died."""
        return self.runs_dir / f"{run_id}.answers-{segment}"

    def run_lock_path(self, run_id: str) -> Path:
        """Locked for as long as the run lives; its staging is stale when the lock can be taken."""
        return self.runs_dir / f"{run_id}.lock"

    def worker_log_path(self, run_id: str, slot: int) -> Path:
        """What a worker's process writes besides its journal: why it could not begin, a bug's traceback."""
        return self.runs_dir / f"{run_id}.worker-{slot}.log"

    def served_log_path(self, run_id: str, server: str) -> Path:
        """What a model server prints that the run has started."""
        return self.runs_dir / f"{run_id}.serve-{server}.log"

    def now_path(self, run_id: str) -> Path:
        """What a living run is doing; gone with it."""
        return self.runs_dir / f"{run_id}.now"

    def cohort_lock_path(self, cohort_id: str) -> Path:
        """Locked by the one worker of a cohort."""
        return self.private_dir / "locks" / f"cohort-{cohort_id}.lock"

    def shard_lock_path(self, cohort_id: str, shard: str) -> Path:
        """Locked by the one worker of a static shard of a cohort, such as ``3of16``."""
        return self.private_dir / "locks" / f"shard-{shard}-{cohort_id}.lock"

    @property
    def build_lock_path(self) -> Path:
        """Locked while a cohort's files are written; running workers do not look at it."""
        return self.private_dir / "locks" / "build.lock"

    @property
    def gc_lock_path(self) -> Path:
        """Locked while journals are packed."""
        return self.private_dir / "locks" / "gc.lock"

    @property
    def claims_path(self) -> Path:
        """One byte of this file is locked for each generation that a worker is about to pay for."""
        return self.private_dir / "locks" / "claims.lock"

    @property
    def batches_dir(self) -> Path:
        """A directory for each batch that was ever made at a provider; see `genworker.store.batches`."""
        return self.private_dir / "batches"

    @property
    def odd_answers_dir(self) -> Path:
        """Lines of a dead run's log that could not be read: perhaps the only copy of a text."""
        return self.private_dir / "aside" / "answers"

    @property
    def aside_root(self) -> Path:
        """What was replaced, removed or broken; a directory a stage, and one for cohorts."""
        return self.private_dir / "aside"

    def aside_dir(self, stage: Stage | str, gen_id: str) -> Path:
        """Where earlier versions of a generation are kept when a forced run replaces it."""
        return self.aside_root / Stage(stage).value / gen_id
