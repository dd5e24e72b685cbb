"""How a run ended: its exit code and what a summary says, from counts. The endings of workers add up."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from genworker.core.membership import Membership
from genworker.core.plan import Plan
from genworker.core.progress import Progress
from genworker.core.scheduler import JobState, Scheduler
from genworker.core.stages import Stage
from genworker.errors import ExitCode
from genworker.run.runner import Outcome


class Rows(NamedTuple):
    """Some rows, named by the first of them."""

    stage: Stage
    gen_id: str
    number: int


@dataclass(slots=True)
class Ending:
    """What became of a run's rows, in addition to the counts of its `Progress`.

    Attributes:
        left: selected rows that have no usable text at the end.
        waiting: those of them that are in batches which are out.
        capped: the cap that stopped the run, in words.
        stopped: lanes that were stopped, by name, with the reason.
        failures: rows whose calls failed for good, by reason, in the membership's order.
        blockers: rows that block others: how many, by the blocking row's stage and gen_id.
        limits: what each lane was found to allow; see `genworker.core.lane.Lane.found`.
        lost: answers that could not be stored, as (gen_id, reason).
        unrecorded: why the end of the journal could not be written.
        no_room: why there was no room for another answer.
    """

    left: int = 0
    waiting: int = 0
    capped: str | None = None
    stopped: dict[str, str] = field(default_factory=dict)
    failures: dict[str, Rows] = field(default_factory=dict)
    blockers: dict[tuple[Stage, str], int] = field(default_factory=dict)
    limits: dict[str, dict[str, float]] = field(default_factory=dict)
    lost: list[tuple[str, str]] = field(default_factory=list)
    unrecorded: str | None = None
    no_room: str | None = None


def ending_of(scheduler: Scheduler, membership: Membership, selected: bytearray, outcome: Outcome) -> Ending:
    """The ending of a scheduler that has finished."""
    rows = membership.rows
    ending = Ending(
        waiting=outcome.waiting,
        capped=scheduler.capped,
        stopped=dict(scheduler.stopped_lanes()),
        limits={lane.spec.name: lane.found() for lane in scheduler.lanes()},
        lost=list(outcome.lost),
        unrecorded=outcome.unrecorded,
        no_room=outcome.no_room,
    )
    for job, state in enumerate(scheduler.states):
        ending.left += bool(selected[job]) and state != JobState.DONE
        if state == JobState.FAILED and (reason := scheduler.reasons.get(job)) is not None:
            first = ending.failures.get(reason, Rows(rows[job].stage, rows[job].gen_id, 0))
            ending.failures[reason] = first._replace(number=first.number + 1)
    for ancestor in scheduler.blockers.values():
        key = rows[ancestor].stage, rows[ancestor].gen_id
        ending.blockers[key] = ending.blockers.get(key, 0) + 1
    return ending


@dataclass(slots=True)
class RunResult:
    """How a run ended.

    Attributes:
        plan: as it stood when the run began.
        signal: the signal that ended it early; ``None`` when it ended by itself.
        membership_changed: whether the membership file has changed since the run read it.
    """

    run_id: str
    progress: Progress
    plan: Plan
    ending: Ending
    journal_path: Path
    signal: int | None = None
    membership_changed: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """What the command line returns."""
        if self.signal is not None:
            return ExitCode(128 + self.signal)
        if self.ending.lost or self.ending.unrecorded or self.ending.no_room:
            return ExitCode.FAILURES
        if self.ending.waiting:
            return ExitCode.WAITING
        if self.ending.capped is not None:
            return ExitCode.CAPPED
        bad = any(
            stage.failed or stage.unparseable or stage.blocked or stage.stopped
            for stage in self.progress.stages.values()
        )
        return ExitCode.FAILURES if bad or self.ending.left else ExitCode.OK
