"""What is to be done: membership rows against what the store holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable, Sequence
from enum import IntEnum
from typing import Protocol

from genworker.core.generation import JUDGED_BY_PARSER, Failure, FailureKind
from genworker.core.membership import Membership, MembershipRow
from genworker.core.stages import STAGES, Stage


class RowState(IntEnum):
    """The state of one row, before a run and after it."""

    MISSING = 0
    DONE = 1
    FAILED = 2
    """An answer is in the store and is not usable; `run` leaves it, `retry` asks again."""
    BLOCKED = 3
    """An ancestor is failed or blocked."""
    UNPARSED = 4
    """An answer is in the store that the present parser can read: a run reads it, and pays nothing."""


class Plan:
    """The state of every row.

    Attributes:
        states: a `RowState` per row.
        failures: the failure of each row that is `FAILED`, by row index.
        blockers: for each row that is `BLOCKED`, the index of the failed row that blocks it; -1 when
            that generation stands outside the cohort.
    """

    __slots__ = ("blockers", "failures", "membership", "states")

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.states = bytearray(len(membership))
        self.failures: dict[int, Failure] = {}
        self.blockers: dict[int, int] = {}

    def rows(self, state: RowState) -> Iterable[int]:
        """Indices of the rows in `state`, in the file's order."""
        return (index for index, value in enumerate(self.states) if value == state)

    def count(self, stage: Stage, state: RowState) -> int:
        """How many rows of `stage` are in `state`."""
        return self.counts()[stage][state]

    def counts(self) -> dict[Stage, Counter[RowState]]:
        """Rows per stage and state."""
        counts: dict[Stage, Counter[RowState]] = {stage: Counter() for stage in STAGES}
        stages = (row.stage for row in self.membership.rows)
        for (stage, state), number in Counter(zip(stages, self.states, strict=True)).items():
            counts[stage][RowState(state)] = number
        return counts

    def failed_kinds(self, stage: Stage) -> Counter[FailureKind]:
        """Failed rows of `stage` by kind."""
        rows = self.membership.rows
        return Counter(failure.kind for index, failure in self.failures.items() if rows[index].stage is stage)


class Holdings(Protocol):
    """What a store holds, as `make_plan` asks for it."""

    def names(self, stage: Stage) -> Container[str]:
        """Generations of which the store holds anything at all."""

    def is_done(self, stage: Stage, gen_id: str) -> bool:
        """Whether a generation is in the store and good."""

    def done(self, rows: Sequence[MembershipRow]) -> bytes:
        """For each row 1 where `is_done` holds, else 0."""

    def failure(self, stage: Stage, gen_id: str) -> Failure | None:
        """Why an answer in the store is not done; ``None`` when there is no answer.

        A directory of another tool that gives no reason counts as unparseable.
        """


def make_plan(
    membership: Membership,
    holdings: Holdings,
    redo: Callable[[int, Failure | None], bool] | None = None,
    parses: Callable[[int], bool] | None = None,
) -> Plan:
    """Judge every row. What a run then makes is what is missing here, and nothing else.

    Args:
        redo: asked for each row (index, its failure or ``None`` when it has none) that the store holds:
            whether it is to be made again, as if missing. Descendants of such a row are made again
            only when `redo` says so for them as well.
        parses: asked for each row whose answer no parser has read: whether the present one can. Without
            it such rows count as failed, for those who only look.
    """
    plan = Plan(membership)
    states = plan.states
    names = {stage: holdings.names(stage) for stage in STAGES}
    done = holdings.done(membership.rows)
    for index, row in enumerate(membership.rows):
        stage, gen_id = row.stage, row.gen_id
        if gen_id not in names[stage]:
            continue
        if done[index]:
            if redo is None or not redo(index, None):
                states[index] = RowState.DONE
            continue
        failure = holdings.failure(stage, gen_id)
        if failure is None:
            continue
        if parses is not None and failure.kind in JUDGED_BY_PARSER and parses(index):
            failure = None
        if redo is not None and redo(index, failure):
            continue
        if failure is None:
            states[index] = RowState.UNPARSED
        else:
            states[index] = RowState.FAILED
            plan.failures[index] = failure
    _block(plan, holdings)
    return plan


def _block(plan: Plan, holdings: Holdings) -> None:
    """Block what cannot be made: descendants of failed rows. The file may name a child before its parent."""
    rows, states, parents = plan.membership.rows, plan.states, plan.membership.parents
    seconds = plan.membership.seconds
    orphans = [
        (index, row.parent_gen_id)
        for index, (row, parent) in enumerate(zip(rows, parents, strict=True))
        if parent < 0 and row.parent_gen_id
    ]
    orphans += [
        (index, row.second_parent_gen_id)
        for index, row in enumerate(rows)
        if row.second_parent_gen_id and index not in seconds
    ]
    if not plan.failures and not orphans:
        return
    for index, name in orphans:
        above = rows[index].stage.parent
        assert above is not None, "only they have a parent"
        if states[index] == RowState.MISSING and not holdings.is_done(above, name or ""):
            states[index] = RowState.BLOCKED
            plan.blockers[index] = -1
    for stage in STAGES[1:]:
        for index, parent in enumerate(parents):
            if states[index] != RowState.MISSING or rows[index].stage is not stage:
                continue
            for above_row in (parent, seconds.get(index, -1)) if seconds else (parent,):
                if above_row < 0:
                    continue
                if states[above_row] == RowState.FAILED:
                    states[index] = RowState.BLOCKED
                    plan.blockers[index] = above_row
                elif states[above_row] == RowState.BLOCKED:
                    states[index] = RowState.BLOCKED
                    plan.blockers[index] = plan.blockers[above_row]
                else:
                    continue
                break
