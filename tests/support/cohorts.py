"""Catalogues in memory, and the contract's ids written a second time, from the contract's words alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from genworker.cohorts.axes import Registers
from genworker.core.catalog import Catalog, Concept, Generator, ModelEntry, TemplateEntry
from genworker.core.stages import STAGES, Stage

REGISTERS = Registers(
    {stage: f"{stage.value}_templates.csv" for stage in STAGES}, "llm_models.csv", "concepts_metadata.csv"
)
OracleRow = tuple[str, str, str, str, str, str, int]
"""stage, gen_id, parent, combo, template, model, replicate"""


def template(
    stage: Stage, name: str, line: int, *, active: bool = True, generator: Generator = "llm"
) -> TemplateEntry:
    parser = "in_last_line" if stage is Stage.EVALUATION else None
    return TemplateEntry(stage, name, name.title(), "", parser, generator, active, line)


def make_catalog(
    *,
    concepts: Sequence[str] = ("kites", "locks", "moss"),
    templates: Mapping[Stage, Sequence[str]] | None = None,
    models: Sequence[str] = ("alpha", "beta"),
    judges: Sequence[str] | None = None,
    replicates: Mapping[Stage, int] | None = None,
    copies: Sequence[str] = (),
) -> Catalog:
    """A catalogue in which everything is active; lines are places in the lists, from 2."""
    named = templates or {
        Stage.DRAFT: ("plain", "tagged"),
        Stage.ESSAY: ("rewrite",),
        Stage.EVALUATION: ("novelty",),
    }
    everyone = list(dict.fromkeys([*models, *(judges if judges is not None else models)]))
    return Catalog(
        templates={
            stage: {
                name: template(stage, name, line, generator="copy" if name in copies else "llm")
                for line, name in enumerate(named[stage], start=2)
            }
            for stage in STAGES
        },
        models={
            name: ModelEntry(
                name, f"vendor/{name}", "vendor", name, name in models, judges is None or name in judges, line
            )
            for line, name in enumerate(everyone, start=2)
        },
        concepts={
            name: Concept(name, name.title(), True, {"paragraph": f"All about {name}."}, line)
            for line, name in enumerate(concepts, start=2)
        },
        combos={},
        replicates={stage: (replicates or {}).get(stage, 1) for stage in STAGES},
    )


def oracle_id(stage: str, task_id: str, cohort_id: str, salt: str = "") -> str:
    """Section 4 of the contract, literally."""
    digest = hashlib.sha256()
    for part in (stage, task_id, cohort_id, *([salt] if salt else [])):
        digest.update(part.encode("utf-8"))
        digest.update(b"|")
    number = 0
    for byte in digest.digest()[:12]:
        number = number * 256 + byte
    text = ""
    while number > 0:
        text = "0123456789abcdefghijklmnopqrstuvwxyz"[number % 36] + text
        number //= 36
    while len(text) < 16:
        text = "0" + text
    return text[:16]


@dataclass
class Experiment:
    """An experiment as plain lists, for the oracle."""

    combos: Sequence[str]
    drafts: Sequence[str]
    models: Sequence[str]
    essays: Sequence[str]
    evaluations: Sequence[str]
    judges: Sequence[str]
    replicates: tuple[int, int, int] = (1, 1, 1)
    couplings: Sequence[tuple[tuple[int, ...], frozenset[tuple[str, ...]]]] = ()
    essay_models: Sequence[str] = ("",)

    def lineages(self) -> list[tuple[str, ...]]:
        """Every whole lineage that all couplings allow."""
        everything = product(
            self.combos,
            self.drafts,
            self.models,
            self.essays,
            self.essay_models,
            self.evaluations,
            self.judges,
        )
        return [
            lineage
            for lineage in everything
            if all(tuple(lineage[place] for place in places) in allowed for places, allowed in self.couplings)
        ]

    def rows(self, cohort: str) -> Iterator[OracleRow]:
        """The rows, stage by stage, in the order of the lists."""
        lineages = self.lineages()
        draft_times, essay_times, evaluation_times = self.replicates
        drafts = []
        for combo, template_id, model in product(self.combos, self.drafts, self.models):
            if not any(lineage[:3] == (combo, template_id, model) for lineage in lineages):
                continue
            task = combo + "__" + template_id + "__" + model
            for number in range(1, draft_times + 1):
                name = oracle_id("draft", task, cohort, "" if number == 1 else f"rep{number}")
                drafts.append((name, task, number, (combo, template_id, model)))
                yield "draft", name, "", combo, template_id, model, number
        essays = []
        for draft, task, draft_number, values in drafts:
            for essay_template, stated in product(self.essays, self.essay_models):
                if not any(lineage[:5] == (*values, essay_template, stated) for lineage in lineages):
                    continue
                model = stated or values[2]
                essay_task = f"{task}__{essay_template}" + ("" if model == values[2] else f"__{model}")
                for number in range(1, essay_times + 1):
                    salt = "" if (draft_number, number) == (1, 1) else f"rep{draft_number}-{number}"
                    name = oracle_id("essay", essay_task, cohort, salt)
                    essays.append((name, (*values, essay_template, stated)))
                    yield "essay", name, draft, values[0], essay_template, model, number
        for essay, so_far in essays:
            for evaluation, judge in product(self.evaluations, self.judges):
                if (*so_far, evaluation, judge) not in lineages:
                    continue
                for number in range(1, evaluation_times + 1):
                    salt = "" if number == 1 else f"rep{number}"
                    name = oracle_id("evaluation", f"{essay}__{evaluation}__{judge}", cohort, salt)
                    yield "evaluation", name, essay, so_far[0], evaluation, judge, number
