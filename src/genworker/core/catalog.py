"""The catalogue as values: templates, models, concepts, combos and replicates that an experiment draws on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Literal

from genworker.core.ids import combo_id
from genworker.core.parsers import CHOICE_PARSER
from genworker.core.stages import STAGES, Stage

LEVELS = ("sentence", "paragraph", "article")
"""Levels of detail at which a concept can be described."""

Generator = Literal["llm", "copy"]


@dataclass(frozen=True, slots=True)
class TemplateEntry:
    """One registered template.

    Attributes:
        parser: the parser's name; ``None`` means identity.
        generator: ``copy`` hands the parent's parsed text on, and needs no template file.
        line: its line in its register, from 1.
        min_lines, min_chars: the least that an answer must have; ``None`` leaves that to the settings.
    """

    stage: Stage
    template_id: str
    name: str
    description: str
    parser: str | None
    generator: Generator
    active: bool
    line: int
    min_lines: int | None = None
    min_chars: int | None = None


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One registered model.

    Attributes:
        model_id: the id that membership rows name.
        model: the name that the endpoint is asked for.
    """

    model_id: str
    model: str
    provider: str
    display_name: str
    for_generation: bool
    for_evaluation: bool
    line: int


@dataclass(frozen=True, slots=True)
class Concept:
    """One concept, with the descriptions that it has, by level."""

    concept_id: str
    name: str
    active: bool
    descriptions: Mapping[str, str]
    line: int

    def content(self, level: str) -> str:
        """The description at `level`; where it is missing the paragraph, the sentence, then the name."""
        for candidate in (level, "paragraph", "sentence"):
            text = self.descriptions.get(candidate)
            if text:
                return text
        return self.name


@dataclass(frozen=True, slots=True)
class Combo:
    """A set of concepts that one draft is written about.

    Attributes:
        concept_ids: in the order in which they were registered.
        level: the level of detail at which they are described.
        k_max: how many concepts the experiment combines.
    """

    combo_id: str
    concept_ids: tuple[str, ...]
    level: str
    k_max: int


@dataclass(frozen=True, slots=True)
class Catalog:
    """Everything that ``1_raw`` registers, each list in its file's order."""

    templates: Mapping[Stage, Mapping[str, TemplateEntry]]
    models: Mapping[str, ModelEntry]
    concepts: Mapping[str, Concept]
    combos: Mapping[str, Combo]
    replicates: Mapping[Stage, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 1))

    def copies(self, stage: Stage) -> frozenset[str]:
        """Template ids of `stage` that ask no model."""
        return frozenset(
            entry.template_id for entry in self.templates[stage].values() if entry.generator == "copy"
        )

    def pairs(self, stage: Stage) -> frozenset[str]:
        """Template ids of `stage` that compare two texts: those whose parser reads a choice."""
        return frozenset(
            entry.template_id
            for entry in self.templates[stage].values()
            if stage.pair_variables and entry.parser == CHOICE_PARSER
        )

    def draft_concepts(self, combo: Combo) -> list[tuple[str, str]]:
        """(name, content) of a combo's concepts, in the order of the combo's rows in its register."""
        found = (self.concepts[name] for name in combo.concept_ids if name in self.concepts)
        return [(concept.name, concept.content(combo.level)) for concept in found]


MAX_GUESSES = 300_000
"""Most combos that are tried when a membership names some that no file registers."""


def guess_combos(wanted: Iterable[str], concepts: Sequence[Concept]) -> dict[str, Combo]:
    """Find combos by their ids alone: an id is a digest, so candidates can be tried.

    Membership files exist whose combos stand in no register. The active concepts are tried before all
    of them, each number of concepts with each level, at most `MAX_GUESSES` in all.

    Returns:
        The combos that were found.
    """
    left = set(wanted)
    found: dict[str, Combo] = {}
    tries = 0
    active = [concept.concept_id for concept in concepts if concept.active]
    everything = [concept.concept_id for concept in concepts]
    for pool in (active, everything):
        for k in sorted(range(1, len(pool) + 1), key=lambda k: min(k, len(pool) - k)):
            for chosen in combinations(pool, k):
                for level in LEVELS:
                    tries += 1
                    if not left or tries > MAX_GUESSES:
                        return found
                    candidate = combo_id(chosen, level, k)
                    if candidate in left:
                        left.discard(candidate)
                        found[candidate] = Combo(candidate, chosen, level, k)
    return found
