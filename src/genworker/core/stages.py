"""The stages of a lineage: their order, and what each of them is.

Rules elsewhere ask what a stage *is* (a root, one that inherits its model, one that is scored), not what
it is called: so a stage more is a member of `Stage` and an entry in the table below.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """One step of a lineage; its value is the word in files and paths."""

    DRAFT = "draft"
    ESSAY = "essay"
    EVALUATION = "evaluation"

    @property
    def parent(self) -> Stage | None:
        """The stage whose text this one is made from: the one before it; ``None`` for drafts."""
        return _PARENT[self]

    @property
    def child(self) -> Stage | None:
        """The stage that is made from this one's texts; ``None`` for the last."""
        return _CHILD[self]

    @property
    def order(self) -> int:
        """0 for drafts, 1 for essays, 2 for evaluations."""
        return _ORDER[self]

    @property
    def function(self) -> str:
        """What ``metadata.json`` calls the step that made the text, such as ``draft_response``."""
        return f"{self.value}_response"

    @property
    def is_root(self) -> bool:
        """Whether a lineage begins here: its prompts are made from concepts, not from a parent's text."""
        return _PARENT[self] is None

    @property
    def inherits_model(self) -> bool:
        """Whether its texts are written by their parents' models, unless a row names another one."""
        return _RULES[self].inherits_model

    @property
    def is_scored(self) -> bool:
        """Whether its parsed text is a score, so that each of its templates must name a parser."""
        return _RULES[self].is_scored

    @property
    def variables(self) -> tuple[str, ...]:
        """The names that its templates may use."""
        return _RULES[self].variables

    @property
    def pair_variables(self) -> tuple[str, ...]:
        """The two names of its templates that compare two texts of the stage above; empty where none do."""
        if not self.is_scored:
            return ()
        name = self.variables[0]
        return f"{name}_a", f"{name}_b"

    @property
    def usual_answer_tokens(self) -> int:
        """Tokens that an answer is guessed to have before the first call of a cohort: for estimates only."""
        return _RULES[self].usual_answer_tokens


@dataclass(frozen=True, slots=True)
class _Rules:
    """What one stage is; `Stage`'s properties say what each field means."""

    variables: tuple[str, ...]
    usual_answer_tokens: int
    inherits_model: bool = False
    is_scored: bool = False


_RULES: dict[Stage, _Rules] = {
    Stage.DRAFT: _Rules(("concepts",), 800),
    Stage.ESSAY: _Rules(("draft_block", "links_block"), 1500, inherits_model=True),
    Stage.EVALUATION: _Rules(("response",), 500, is_scored=True),
}
"""The stages in their order: each one's texts are made from those of the stage above it."""

STAGES: tuple[Stage, ...] = tuple(_RULES)
SCORED_STAGE = next(stage for stage in STAGES if _RULES[stage].is_scored)
"""The one stage that reports read scores from."""

_PARENT: dict[Stage, Stage | None] = dict(zip(STAGES, (None, *STAGES), strict=False))
_CHILD: dict[Stage, Stage | None] = dict(zip(STAGES, (*STAGES[1:], None), strict=True))
_ORDER: dict[Stage, int] = {stage: n for n, stage in enumerate(STAGES)}
