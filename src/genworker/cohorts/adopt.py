"""A membership of two columns and the metadata of its generations in, the rows of the full membership out.

Nothing is guessed: a row stands in the result when the metadata, its own and its ancestors', say all of it;
each of the others is named with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from genworker.cohorts.curated import combo_of_task
from genworker.core.facts import Facts
from genworker.core.ids import id_fault
from genworker.core.membership import MembershipRow
from genworker.core.stages import STAGES, Stage

ReadFacts = Callable[[Stage, str], Facts | str]
"""What the metadata of a generation say; else why they say nothing, in words."""

_STAGES = {stage.value: stage for stage in STAGES}


@dataclass(frozen=True, slots=True)
class Listed:
    """A row of the older file: its line from 1, its two cells, and the cells of further columns."""

    line: int
    stage: str
    gen_id: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that cannot be completed, and why."""

    listed: Listed
    reason: str


@dataclass(slots=True)
class Adoption:
    """What became of the rows of an older file.

    Attributes:
        rows: the completed ones, in the file's order, each with the row that it was.
        left_out: the others.
    """

    rows: list[tuple[MembershipRow, Listed]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


class _Incomplete(Exception):
    """This row cannot be completed; the message says why."""


def adopt_rows(
    listed: Sequence[Listed], cohort_id: str, read: ReadFacts, holds: Callable[[Stage, str], bool]
) -> Adoption:
    """Complete the rows of a membership from the metadata.

    Args:
        holds: whether the store has an answer of a generation, so that it may be a parent without a row.
    """
    return _Adopter(cohort_id, read, holds).adopt(listed)


class _Adopter:
    def __init__(self, cohort_id: str, read: ReadFacts, holds: Callable[[Stage, str], bool]) -> None:
        self.cohort_id = cohort_id
        self.read = read
        self.holds = holds
        self.combos: dict[tuple[Stage, str], str] = {}

    def adopt(self, listed: Sequence[Listed]) -> Adoption:
        result = Adoption()
        seen: set[tuple[str, str]] = set()
        found: list[tuple[MembershipRow, Listed]] = []
        for item in listed:
            try:
                if (item.stage, item.gen_id) in seen:
                    raise _Incomplete("it is listed twice")
                seen.add((item.stage, item.gen_id))
                found.append((self._row(item), item))
            except _Incomplete as error:
                result.left_out.append(LeftOut(item, str(error)))
        # A row goes with its parent: stage by stage, since a child may stand before it.
        there = {(row.stage, row.gen_id) for row, _ in found}
        for stage in STAGES[1:]:
            for row, item in found:
                if row.stage is stage and not self._has_parent(row, there):
                    there.discard((row.stage, row.gen_id))
                    reason = f"its parent {row.parent_gen_id} is left out, and the store has no answer of it"
                    result.left_out.append(LeftOut(item, reason))
        result.rows = [(row, item) for row, item in found if (row.stage, row.gen_id) in there]
        result.left_out.sort(key=lambda left: left.listed.line)
        return result

    def _has_parent(self, row: MembershipRow, there: Iterable[tuple[Stage, str]]) -> bool:
        parent, name = row.stage.parent, row.parent_gen_id
        return parent is None or name is None or (parent, name) in there or self.holds(parent, name)

    def _row(self, item: Listed) -> MembershipRow:
        stage = _STAGES.get(item.stage)
        if stage is None:
            raise _Incomplete(f"{item.stage[:40]!r} is no stage")
        reason = id_fault(item.gen_id)
        if reason is not None:
            raise _Incomplete(f"its gen_id {reason}")
        facts = self._facts(stage, item.gen_id)
        if facts.template_id is None or id_fault(facts.template_id) is not None:
            raise _Incomplete("its metadata name no template")
        # An essay without a model has its draft's; a copy asks none.
        if facts.model_id is None and not stage.inherits_model and not facts.is_copy:
            raise _Incomplete("its metadata name no model")
        parent = facts.parent_gen_id
        if stage.is_root:
            parent = None
        elif parent is None or id_fault(parent) is not None:
            raise _Incomplete("its metadata name no parent")
        return MembershipRow(
            stage,
            item.gen_id,
            self.cohort_id,
            parent,
            self._combo(stage, item.gen_id, facts),
            facts.template_id,
            facts.model_id,
            facts.replicate or 1,
            None,
        )

    def _facts(self, stage: Stage, gen_id: str) -> Facts:
        facts = self.read(stage, gen_id)
        if isinstance(facts, str):
            raise _Incomplete(facts)
        for key, place in (("stage", stage.value), ("gen_id", gen_id)):
            if facts.record.get(key, place) != place:
                raise _Incomplete(
                    f"its metadata are another generation's: they say {key} {facts.record[key]!r:.60}"
                )
        return facts

    def _combo(self, stage: Stage, gen_id: str, facts: Facts) -> str:
        """The combo of a lineage: it stands in the draft's metadata, and perhaps in its descendants'."""
        key = (stage, gen_id)
        if key in self.combos:
            return self.combos[key]
        combo = facts.combo_id or ""
        if not combo and stage.is_root:
            combo = combo_of_task(facts.task_id or "", facts.template_id or "", facts.model_id or "")
        above, parent = stage.parent, facts.parent_gen_id
        if not combo and above is not None and parent is not None:
            try:
                combo = self._combo(above, parent, self._facts(above, parent))
            except _Incomplete as error:
                raise _Incomplete(f"its combo is not known: {above.value} {parent}: {error}") from None
        if id_fault(combo) is not None:
            raise _Incomplete("its metadata name no combo")
        self.combos[key] = combo
        return combo
