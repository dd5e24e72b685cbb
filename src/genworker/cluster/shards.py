"""A run's rows in shards: whole lineages, so that a parent is made by the worker that needs its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from genworker.cluster.wire import row_to_json
from genworker.core.coordinator import Shard, kind
from genworker.core.scheduler import NO_LANE
from genworker.run.planning import Order
from genworker.run.requests import CohortWork

SHARDS_PER_WORKER = 50
"""So many, about: the last ones to end are small, and few messages carry them."""
FEWEST_ROWS, MOST_ROWS = 50, 1000


class Shards:
    """The shards of an order.

    Args:
        crew: how many workers are to share them.
    """

    def __init__(self, work: CohortWork, order: Order, crew: int) -> None:
        self._work = work
        self._order = order
        size = min(MOST_ROWS, max(FEWEST_ROWS, len(order.jobs) // SHARDS_PER_WORKER // crew))
        # A run that is small is still shared: by everybody's part of it.
        size = max(1, min(size, -(-len(order.jobs) // crew)))
        late = [job for job in order.jobs if self._is_late(job)]
        self._jobs = list(self._cut(size, frozenset(late)))
        self._first_late = len(self._jobs)
        self._jobs += [late[at : at + size] for at in range(0, len(late), size)]

    def _is_late(self, job: int) -> bool:
        """Whether a row compares texts of two lineages, one of which at least is made in this run."""
        membership, selected = self._work.membership, self._order.selected
        if membership.rows[job].second_parent_gen_id is None:
            return False
        return any(selected[parent] for parent in membership.parents_of(job))

    def _cut(self, size: int, late: Collection[int]) -> Iterator[list[int]]:
        """Jobs of each shard but the late ones, parents before their children."""
        parents, selected = self._work.membership.parents, self._order.selected
        children: dict[int, list[int]] = {}
        roots = []
        for job in self._order.jobs:
            if job in late:
                continue
            parent = parents[job]
            if parent >= 0 and selected[parent]:
                children.setdefault(parent, []).append(job)
            else:
                roots.append(job)
        shard: list[int] = []
        for root in roots:
            if len(shard) >= size:
                yield shard
                shard = []
            open_jobs = [root]
            while open_jobs:
                job = open_jobs.pop()
                shard.append(job)
                open_jobs.extend(reversed(children.get(job, ())))
        if shard:
            yield shard

    def __len__(self) -> int:
        return len(self._jobs)

    def jobs(self, number: int) -> Sequence[int]:
        """The jobs of a shard, parents before their children."""
        return self._jobs[number]

    def described(self) -> Iterator[Shard]:
        """The shards as the coordinator knows them."""
        lanes, rows = self._work.routes.lanes, self._work.membership.rows
        specs, parents, selected = self._order.specs, self._work.membership.parents, self._order.selected
        for number, jobs in enumerate(self._jobs):
            called = [job for job in jobs if lanes[job] != NO_LANE]
            is_late = number >= self._first_late
            first = [job for job in called if is_late or parents[job] < 0 or not selected[parents[job]]]
            yield Shard(
                number,
                len(jobs),
                Counter(specs[lanes[job]].name for job in called),
                frozenset(kind(specs[lanes[job]].name, rows[job].stage.order) for job in first),
                is_late,
            )

    def to_json(self, number: int) -> list[list[Any]]:
        """The rows of a shard as a worker gets them."""
        membership = self._work.membership
        jobs = self._jobs[number]
        places = {job: place for place, job in enumerate(jobs)}
        rows = []
        for job in jobs:
            row, parent = membership.rows[job], membership.parents[job]
            if row.task_id is None and parent >= 0 and parent not in places and row.stage.inherits_model:
                # Made from its parent's, whose row the worker does not get.
                row = row._replace(task_id=membership.task_id(job))
            rows.append(row_to_json(row, places.get(parent, -1), replace=job in self._order.replace))
        return rows
