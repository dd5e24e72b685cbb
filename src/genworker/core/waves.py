"""When the rows of batch lanes are sent: waves without barriers. No I/O and no clock; time is a number.

A row whose request is written down waits in its lane's spool. The spool is closed into a batch when it is
full; or when nothing but another batch can still feed it, which is known without a timer; or when calls
trickle and its last row is a while old. The scheduler asks; nothing here changes a job's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from genworker.core.batches import BatchSpec, free_count, wave_share
from genworker.core.lane import LaneSpec

RENDERING = 64
"""Rows of a batch lane whose prompts are made at the same time: one waits for its parent's text, seldom."""
OVER_LIMIT_PAUSES_S = (60.0, 120.0, 300.0, 900.0)
"""Pauses of a lane after its provider had too much in its queue; the last one repeats."""


@dataclass(frozen=True, slots=True)
class Close:
    """Decision: the first rows of a lane's spool are one batch now.

    Attributes:
        jobs: those rows, in the order in which they were added. When it is empty, the spool is dropped.
        tokens: of their prompts.
    """

    lane: int
    jobs: tuple[int, ...]
    tokens: int


@dataclass(slots=True)
class Spool:
    """One batch lane.

    Attributes:
        jobs: rows whose requests are written down, in their order; `sizes` and `tokens` go along with it.
        rendering: rows that were begun and are not in it yet.
        fed: rows that wait for a parent and can come without another batch.
        counts: how many open batches of the endpoint have so many rows.
        allowance: tokens that the provider lets wait in its queue; ``None`` when it has not refused any.
    """

    spec: BatchSpec
    jobs: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    last_s: float = 0.0
    rendering: int = 0
    fed: int = 0
    counts: Counter[int] = field(default_factory=Counter)
    out_tokens: int = 0
    allowance: int | None = None
    refusals: int = 0
    is_dropped: bool = False


class Waves:
    """The spools of a scheduler's batch lanes.

    Args:
        specs: the lanes that ask in batches, by the lane's number.
        lanes: each job's lane, as the scheduler changes it.
        parents: each job's parent, -1 for none.
        first_child, next_child: the children of each job, as linked lists.
    """

    def __init__(
        self,
        specs: Mapping[int, LaneSpec],
        lanes: Sequence[int],
        parents: Sequence[int],
        first_child: Sequence[int],
        next_child: Sequence[int],
    ) -> None:
        counts: dict[int, Counter[int]] = {}
        self.spools = {
            lane: Spool(spec.batch, counts=counts.setdefault(spec.endpoint, Counter()))
            for lane, spec in specs.items()
            if spec.batch is not None
        }
        self._lanes, self._parents = lanes, parents
        self._first_child, self._next_child = first_child, next_child
        self._counted = bytearray(len(parents))

    def begin(self, waiting: Sequence[int], batched: Sequence[int]) -> None:
        """Count what can come without another batch, once, when the run begins.

        Args:
            waiting: which jobs wait for a parent.
            batched: which jobs are in a batch already.
        """
        for job, waits in enumerate(waiting):
            if not waits or self._lanes[job] not in self.spools:
                continue
            above = self._parents[job]
            # Up to whoever must come first: a row of a batch, which alone can release what is below, or none.
            while above >= 0 and not batched[above] and self._lanes[above] not in self.spools:
                above = self._parents[above] if waiting[above] else -1
            if above < 0:
                self._count(job)

    def _count(self, job: int) -> None:
        if not self._counted[job]:
            self._counted[job] = 1
            self.spools[self._lanes[job]].fed += 1

    def waits_no_more(self, job: int) -> None:
        """A job's parent has ended, one way or the other."""
        if job < len(self._counted) and self._counted[job]:
            self._counted[job] = 0
            self.spools[self._lanes[job]].fed -= 1

    def flows(self, job: int) -> None:
        """A job has left the batches, with a text or to a live lane: what is below it can come."""
        todo = [job]
        while todo:
            child = self._first_child[todo.pop()]
            while child >= 0:
                if self._lanes[child] in self.spools:
                    if child < len(self._counted):
                        self._count(child)
                else:
                    todo.append(child)
                child = self._next_child[child]

    def add(self, job: int, size_bytes: int, tokens: int, now_s: float) -> None:
        """A row's request is written down."""
        spool = self.spools[self._lanes[job]]
        spool.rendering -= 1
        spool.jobs.append(job)
        spool.sizes.append(size_bytes)
        spool.tokens.append(tokens)
        spool.last_s = now_s

    def due(self, lane: int, now_s: float, *, ready: int, is_short_of_money: bool) -> int:
        """How many of the first rows of a spool are to be a batch now; 0: none yet.

        Args:
            ready: rows of the lane that could be begun at once.
            is_short_of_money: rows of the lane wait for money, so no more come for now.
        """
        spool = self.spools[lane]
        rows = len(spool.jobs)
        if not rows:
            return 0
        spec = spool.spec
        room = None if spool.allowance is None else max(0, spool.allowance - spool.out_tokens)
        within, size, tokens = 0, 0, 0
        for row_bytes, row_tokens in zip(spool.sizes, spool.tokens, strict=True):
            size += row_bytes
            tokens += row_tokens
            fits = size <= spec.max_bytes and (room is None or tokens <= room) and within < spec.max_rows
            # One row that is larger than any limit goes alone: the provider says what it thinks of it.
            if not fits and not (within == 0 and not spool.out_tokens):
                break
            within += 1
        if within < rows or within >= spec.max_rows:
            due = within
        elif ready and not is_short_of_money:
            share = wave_share(rows + ready, spec.max_rows)
            due = min(rows, share) if rows >= share and rows + ready > spec.max_rows else 0
        elif not spool.rendering and (not spool.fed or is_short_of_money):
            due = rows
        else:
            due = rows if now_s >= spool.last_s + spec.linger_s else 0
        return free_count(due, spool.counts) if spec.distinct_counts else due

    def take(self, lane: int, rows: int) -> tuple[list[int], list[int], int]:
        """Close a spool: (rows of the batch, rows that go back to the queue, tokens of the batch)."""
        spool = self.spools[lane]
        jobs, back, tokens = spool.jobs[:rows], spool.jobs[rows:], sum(spool.tokens[:rows])
        spool.jobs, spool.sizes, spool.tokens = [], [], []
        if rows:
            self.opened(lane, rows, tokens)
        return jobs, back, tokens

    def opened(self, lane: int, rows: int, tokens: int) -> None:
        """A batch of this lane is out, from now on or from an earlier run."""
        spool = self.spools[lane]
        spool.counts[rows] += 1
        spool.out_tokens += tokens

    def ended(self, lane: int, rows: int, tokens: int, *, was_refused: bool) -> None:
        """A batch of this lane is out no more."""
        spool = self.spools[lane]
        spool.counts[rows] -= 1
        if not spool.counts[rows]:
            del spool.counts[rows]
        spool.out_tokens -= tokens
        if not was_refused:
            spool.refusals = 0
            if spool.allowance is not None:  # it may have grown
                spool.allowance = max(spool.allowance, spool.allowance + tokens // 2)

    def over_limit(self, lane: int, rows: int, tokens: int) -> float:
        """A batch was too much for the provider's queue; returns seconds to wait.

        What is out now is all that it lets in; with nothing out, half of the batch. Where that cannot be
        halved any more, others fill the queue.

        Args:
            rows, tokens: of the batch.
        """
        spool = self.spools[lane]
        spool.allowance = spool.out_tokens or max(1, tokens // 2)
        pause = OVER_LIMIT_PAUSES_S[min(spool.refusals, len(OVER_LIMIT_PAUSES_S) - 1)]
        spool.refusals += 1
        return pause if spool.out_tokens or rows <= 1 else 0.0

    def wake_at(self, now_s: float) -> float | None:
        """When a spool's last row will be old enough."""
        soonest = None
        for spool in self.spools.values():
            if spool.jobs:
                at_s = spool.last_s + spool.spec.linger_s
                if at_s > now_s and (soonest is None or at_s < soonest):
                    soonest = at_s
        return soonest

    def is_blocked(self, lane: int) -> bool:
        """Whether a lane's rows can go into no batch before one that is out has ended."""
        spool = self.spools.get(lane)
        if spool is None or spool.rendering:
            return False
        is_full = spool.allowance is not None and 0 < spool.out_tokens >= spool.allowance
        rows = min(len(spool.jobs), spool.spec.max_rows)
        return is_full or (spool.spec.distinct_counts and rows > 0 and not free_count(rows, spool.counts))

    def is_empty(self, lane: int) -> bool:
        """Whether no row of a lane is written down, or being written down, for its next batch."""
        spool = self.spools.get(lane)
        return spool is None or not (spool.jobs or spool.rendering)

    @property
    def spooled(self) -> int:
        """Rows that are written down and not in a batch yet, and those that are being written down."""
        return sum(len(spool.jobs) + spool.rendering for spool in self.spools.values())
