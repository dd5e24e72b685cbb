"""Which of the missing rows one run makes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b

from genworker.core.membership import Membership
from genworker.core.plan import Plan, RowState
from genworker.core.stages import Stage


@dataclass(frozen=True, slots=True)
class StaticShard:
    """One of several runs that make one cohort at the same time and know nothing of each other.

    Attributes:
        number: from 1 to `of`.
        share: its part of rates, of calls at once and of caps; the sum over all of them is at most 1.
    """

    number: int
    of: int
    share: Fraction

    @property
    def name(self) -> str:
        """For names of files and runs: ``3of16``."""
        return f"{self.number}of{self.of}"

    def has(self, gen_id: str) -> bool:
        """Whether the lineage of this root is its own: by the id alone, so that a cohort may grow."""
        digest = blake2b(gen_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % self.of == self.number - 1


def keep_shard(membership: Membership, chosen: bytearray, shard: StaticShard) -> None:
    """Leave out the rows whose lineage is another shard's."""
    roots: dict[int, bool] = {}
    for index in range(len(chosen)):
        root = index
        while membership.parents[root] >= 0:
            root = membership.parents[root]
        if root not in roots:
            first = membership.rows[root]
            # A root whose parent stands outside the cohort goes with that parent.
            roots[root] = shard.has(first.parent_gen_id or first.gen_id)
        if not roots[root]:
            chosen[index] = 0


def select(
    plan: Plan,
    *,
    stages: Collection[Stage] | None = None,
    only: Collection[str] | None = None,
    limit: int | None = None,
    is_free: Callable[[int], bool] = lambda index: False,
    shard: StaticShard | None = None,
) -> bytearray:
    """Choose among the rows that are missing.

    A row is chosen only when its text can be made: its parent is done, or will be, or is chosen as well.

    Args:
        stages: only these stages; ``None`` for all.
        only: gen_ids; their missing ancestors are chosen along with them.
        limit: the most calls that the chosen rows may cost; whole lineages first, in the membership's order.
        shard: only its lineages.
        is_free: whether a row costs no call (a copy); such rows do not count against `limit`.

    Returns:
        A byte per row, 1 for the chosen.
    """
    membership = plan.membership
    missing = int(RowState.MISSING)  # plain numbers: a million are compared
    chosen = bytearray(state == missing for state in plan.states)
    if only is not None:
        for index, row in enumerate(membership.rows):
            chosen[index] &= row.gen_id in only
        for index in range(len(chosen)):
            above = list(membership.parents_of(index)) if chosen[index] else []
            while above:
                ancestor = above.pop()
                if plan.states[ancestor] == RowState.MISSING and not chosen[ancestor]:
                    chosen[ancestor] = 1
                    above.extend(membership.parents_of(ancestor))
    if stages is not None:
        for index, row in enumerate(membership.rows):
            if row.stage not in stages:
                chosen[index] = 0
    if shard is not None:
        keep_shard(membership, chosen, shard)
    _drop_orphans(plan, chosen)
    if limit is not None:
        _keep_first(plan, chosen, limit, is_free)
    return chosen


def _drop_orphans(plan: Plan, chosen: bytearray) -> None:
    """Leave out rows whose parent will not be there, and then theirs: a child may stand before its parent."""
    parents, seconds, states = plan.membership.parents, plan.membership.seconds, plan.states
    there = (int(RowState.DONE), int(RowState.UNPARSED))
    while True:
        orphans = [
            index
            for index, parent in enumerate(parents)
            if parent >= 0 and not chosen[parent] and chosen[index] and states[parent] not in there
        ]
        orphans += [
            index
            for index, second in seconds.items()
            if chosen[index] and not chosen[second] and states[second] not in there
        ]
        if not orphans:
            return
        for index in orphans:
            chosen[index] = 0


def _keep_first(plan: Plan, chosen: bytearray, limit: int, is_free: Callable[[int], bool]) -> None:
    membership = plan.membership
    children: dict[int, list[int]] = {}
    waits: dict[int, int] = {}  # rows that are made from two chosen ones -> how many of these are to come
    roots: list[int] = []
    for index in range(len(chosen)):
        if chosen[index]:
            above = [parent for parent in membership.parents_of(index) if chosen[parent]]
            for parent in above:
                children.setdefault(parent, []).append(index)
            if len(above) > 1:
                waits[index] = len(above)
            elif not above:
                roots.append(index)
    kept = bytearray(len(chosen))
    stack = list(reversed(roots))
    left = limit
    while stack:
        index = stack.pop()
        if index in waits:
            waits[index] -= 1
            if waits[index]:
                continue  # the other of its two comes later, and brings it along
        if not is_free(index):
            if left <= 0:
                continue
            left -= 1
        kept[index] = 1
        stack.extend(reversed(children.get(index, ())))
    chosen[:] = kept
