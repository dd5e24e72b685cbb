"""The stages of a lineage, their order and their parents."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """One step of a lineage; its value is the word that stands in files and paths."""

    DRAFT = "draft"
    ESSAY = "essay"
    EVALUATION = "evaluation"

    @property
    def parent(self) -> Stage | None:
        """The stage whose text this one is made from; ``None`` for drafts."""
        return _PARENT[self]

    @property
    def order(self) -> int:
        """0 for drafts, 1 for essays, 2 for evaluations."""
        return _ORDER[self]

    @property
    def function(self) -> str:
        """What ``metadata.json`` calls the step that made the text, such as ``draft_response``."""
        return f"{self.value}_response"


STAGES: tuple[Stage, ...] = (Stage.DRAFT, Stage.ESSAY, Stage.EVALUATION)
_PARENT: dict[Stage, Stage | None] = {
    Stage.DRAFT: None,
    Stage.ESSAY: Stage.DRAFT,
    Stage.EVALUATION: Stage.ESSAY,
}
_ORDER: dict[Stage, int] = {stage: n for n, stage in enumerate(STAGES)}
