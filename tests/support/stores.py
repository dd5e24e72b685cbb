"""Builds data roots with known texts and scores, as genworker would have written them.

The files are made by the package's own `finish`, so parsing, failures and digests are the real ones::

    store = StoreBuilder(tmp_path, "pilot")
    draft = store.draft(template="d1", model="m1")
    essay = store.essay(draft, template="e1")
    store.evaluation(essay, template="novelty", model="judge", answer="SCORE: 7")
    store.evaluation(essay, template="novelty", model="judge", replicate=2, answer=None)  # missing
    store.write_membership()
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from genworker.core.facts import Facts
from genworker.core.generation import Answer, encode_metadata, finish
from genworker.core.ids import gen_id
from genworker.core.stages import Stage
from genworker.paths import Paths

COLUMNS = "stage gen_id cohort_id parent_gen_id combo_id template_id llm_model_id replicate".split()


class StoreBuilder:
    """One cohort of a data root. A generation's id depends on its axes alone."""

    def __init__(self, root: Path, cohort: str = "pilot") -> None:
        self.paths = Paths.from_str(root)
        self.cohort = cohort
        self.rows: list[dict[str, Any]] = []
        self._by_id: dict[str, dict[str, Any]] = {}

    def draft(
        self,
        *,
        template: str = "d1",
        model: str = "m1",
        combo: str = "combo-1",
        replicate: int = 1,
        answer: str | None = "A draft about tides.",
        **facts: Any,
    ) -> str:
        """Plan a draft and, unless `answer` is ``None``, put its answer into the store."""
        return self._add(Stage.DRAFT, None, combo, template, model, replicate, answer, facts)

    def essay(
        self,
        draft: str,
        *,
        template: str = "e1",
        model: str | None = None,
        replicate: int = 1,
        answer: str | None = "An essay about tides and what they leave.",
        **facts: Any,
    ) -> str:
        """Plan an essay on a draft; its model is the draft's unless given."""
        parent = self._by_id[draft]
        chosen = parent["llm_model_id"] if model is None else model
        return self._add(Stage.ESSAY, draft, parent["combo_id"], template, chosen, replicate, answer, facts)

    def evaluation(
        self,
        essay: str,
        *,
        template: str = "novelty",
        model: str = "judge",
        replicate: int = 1,
        answer: str | None = "Reasons.\n\nSCORE: 5",
        parser: str = "in_last_line",
        **facts: Any,
    ) -> str:
        """Plan an evaluation of an essay."""
        combo = self._by_id[essay]["combo_id"]
        facts = {"parser": parser, **facts}
        return self._add(Stage.EVALUATION, essay, combo, template, model, replicate, answer, facts)

    def _add(
        self,
        stage: Stage,
        parent: str | None,
        combo: str,
        template: str,
        model: str,
        replicate: int,
        answer: str | None,
        facts: dict[str, Any],
    ) -> str:
        name = gen_id(stage, f"{parent or combo}__{template}__{model}", self.cohort, f"rep{replicate}")
        row = dict(
            zip(
                COLUMNS,
                (stage.value, name, self.cohort, parent or "", combo, template, model, replicate),
                strict=True,
            )
        )
        self.rows.append(row)
        self._by_id[name] = row
        if answer is not None:
            parent_text = "" if parent is None else self._parsed(Stage(stage.parent or "draft"), parent)
            self.put(stage, name, row, answer, parent_text, facts)
        return name

    def _parsed(self, stage: Stage, name: str) -> str:
        path = self.paths.parsed_path(stage, name)
        return path.read_text() if path.exists() else ""

    def put(
        self,
        stage: Stage,
        name: str,
        row: dict[str, Any],
        answer: str,
        parent_text: str = "",
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Write the four files of one generation."""
        known: dict[str, Any] = {
            "task_id": f"task-{name}",
            "template_id": row["template_id"],
            "model_id": row["llm_model_id"],
            "parent_gen_id": row["parent_gen_id"],
            "stage": stage.value,
            "gen_id": name,
            "cohort_id": row["cohort_id"],
            "combo_id": row["combo_id"],
            "replicate": row["replicate"],
            "mode": "llm",
            "parser": "identity",
            "finish_reason": "stop",
            "usage": {"input_tokens": 100, "output_tokens": 50},
            **(facts or {}),
        }
        prompt = known.pop("prompt", f"Instructions of {row['template_id']}.\n\n{parent_text}\n\nAnswer now.")
        generation = finish(Answer(stage, name, prompt, answer, Facts(known)))
        directory = self.paths.generation_dir(stage, name)
        directory.mkdir(parents=True, exist_ok=True)
        texts = {"prompt.txt": prompt, "raw.txt": answer, "parsed.txt": generation.parsed_text}
        for file, text in texts.items():
            if text is not None:
                (directory / file).write_text(text, encoding="utf-8", newline="")
        (directory / "metadata.json").write_bytes(encode_metadata(generation.metadata))

    def write_membership(self) -> Path:
        """Write ``membership.csv`` with the rows so far; returns the data root."""
        path = self.paths.cohort_membership_csv(self.cohort)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        return self.paths.data_root
