"""What one run is to do: salvage, plan, selection, caps. The driver's part of a run; it makes no call."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Decimal

from genworker.core.budget import NOTHING, ZERO, Budget, Caps
from genworker.core.events import ParsedAtStart, Salvaged, Warned
from genworker.core.generation import finish
from genworker.core.lane import LaneSpec
from genworker.core.membership import Membership
from genworker.core.money import Account, Money
from genworker.core.plan import Plan, RowState
from genworker.core.progress import Progress
from genworker.core.scheduler import NO_LANE
from genworker.core.selection import StaticShard, select
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault, StoreError, UsageError
from genworker.project.open import Project, Redo, plan_cohort, stored_answer
from genworker.project.settings import Settings
from genworker.run.caps import check_caps
from genworker.run.ledger import read_ledger
from genworker.run.requests import CohortWork, check_jobs, odd_sections
from genworker.run.tender import Tender
from genworker.store.disk import check_room
from genworker.store.filesystem import FilesystemStore
from genworker.store.index import StoreIndex
from genworker.store.journal import RunJournal
from genworker.store.lock import IfLocked
from genworker.store.sweep import sweep_staging


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a user asks of one run.

    Attributes:
        redo: which rows that the store holds are made again; what they replace is kept aside.
        caps: hard caps over the cohort and all its runs; one that is given replaces that of the settings.
        max_wait_s: over the settings' own; see `genworker.core.scheduler.RetryPolicy`.
        answer_tokens: over every configured `max_tokens`.
        shard: make only its lineages, with its share of everything that is limited.
        batch: over what the settings say of batches, for endpoints that take them.
        detach: end when only batches that are out are left.
    """

    stages: frozenset[Stage] | None = None
    only: frozenset[str] | None = None
    limit: int | None = None
    redo: Redo | None = None
    if_locked: IfLocked = IfLocked.LEAVE
    caps: Caps = field(default_factory=Caps)
    max_wait_s: float | None = None
    answer_tokens: int | None = None
    shard: StaticShard | None = None
    batch: bool | None = None
    detach: bool = False

    def caps_over(self, settings: Settings) -> Caps:
        """The caps that hold: the options' own, else the settings'."""
        asked, configured = self.caps, settings.caps
        return Caps(
            configured.cost_usd if asked.usd is None else asked.usd,
            configured.calls if asked.calls is None else asked.calls,
            configured.tokens if asked.tokens is None else asked.tokens,
        )


@dataclass(frozen=True, slots=True)
class Order:
    """What a run is to make, and within what limits.

    Attributes:
        plan: the state of every row as the run found it.
        selected: a byte per row, 1 for the rows to be made.
        jobs: the numbers of these rows.
        replace: those of them whose generation stands in the store already.
        specs: the lanes of these rows; each row's lane stands in its work's routes.
        endpoints: names of the endpoints, as `specs` numbers them.
        budget: the caps, and what all runs of the cohort have spent before this one.
    """

    plan: Plan
    selected: bytearray
    jobs: Sequence[int]
    replace: Set[int]
    specs: list[LaneSpec]
    endpoints: list[str]
    budget: Budget


@dataclass(slots=True)
class Planner:
    """Finds out what a run has to do. Needs the cohort's lock.

    Attributes:
        progress: gets the plan's counts, and what was salvaged and parsed again.
        index: the store as it stood when it was last listed.
    """

    project: Project
    membership: Membership
    options: RunOptions
    run_id: str
    work: CohortWork
    store: FilesystemStore
    journal: RunJournal
    progress: Progress
    tender: Tender
    index: StoreIndex = field(init=False)

    def __post_init__(self) -> None:
        self.index = StoreIndex(self.project.paths)

    async def order(self) -> Order:
        """Bring in what dead runs left, then plan, select and check. Nothing has been sent when it returns.

        Raises:
            FaultyInputError: a row cannot be asked for, or a cap cannot be kept.
            StoreError: the data root cannot take what the run would make.
        """
        await salvage(self.project, self.store, self.journal, self.progress)
        plan = await self._plan()
        selected = select(
            plan,
            stages=self.options.stages,
            only=self.options.only,
            limit=self.options.limit,
            is_free=self.work.is_copy,
            shard=self.options.shard,
        )
        jobs = [job for job, chosen in enumerate(selected) if chosen]
        check_jobs(self.work, jobs)
        for what in odd_sections(self.work):
            self.journal.record(Warned(what))
        self._check_places(jobs)
        rows, routes = self.membership.rows, self.work.routes
        specs, endpoints = routes.build(
            len(rows), ((job, rows[job].llm_model_id or "") for job in jobs if not self.work.is_copy(job))
        )
        budget = await asyncio.to_thread(self._budget, jobs)
        self._count(plan)
        return Order(plan, selected, jobs, self._replaced(jobs), specs, endpoints, budget)

    async def _plan(self) -> Plan:
        """The plan, after answers that no parser could read have been given to the present parsers."""
        redo = self.options.redo
        plan = await asyncio.to_thread(plan_cohort, self.project, self.membership, redo, self.index)
        for job in list(plan.rows(RowState.UNPARSED)):
            if await self._reparse(job):
                row = self.membership.rows[job]
                self.progress.reparsed += 1
                self.journal.record(ParsedAtStart(row.stage, row.gen_id))
        if self.progress.reparsed:
            self.index = StoreIndex(self.project.paths)
            plan = await asyncio.to_thread(plan_cohort, self.project, self.membership, redo, self.index)
        return plan

    async def _reparse(self, job: int) -> bool:
        answer = stored_answer(self.project, self.membership.rows[job])
        if answer is None or finish(answer).parsed_text is None:
            return False
        await self.store.commit(answer, replace=True)
        return True

    def _check_places(self, jobs: Sequence[int]) -> None:
        """Refuse what a commit would refuse, before it is paid for: links, and a disk without room."""
        links = {stage: self.index.links(stage) for stage in STAGES}
        for job in jobs if any(links.values()) else ():
            row = self.membership.rows[job]
            if row.gen_id in links[row.stage]:
                path = self.project.paths.generation_dir(row.stage, row.gen_id)
                raise StoreError(
                    f"{path} is a symbolic link; the store needs a real directory\n"
                    "  fix:   remove the link; nothing was sent",
                    path=str(path),
                )
        warning = check_room(self.project.paths.data_root, len(jobs))
        if warning is not None:
            self.journal.record(Warned(warning))

    def _replaced(self, jobs: Sequence[int]) -> frozenset[int]:
        """Jobs whose generation stands in the store already and is made again."""
        if self.options.redo is None:
            return frozenset()
        rows = self.membership.rows
        return frozenset(job for job in jobs if rows[job].gen_id in self.index.names(rows[job].stage))

    def _budget(self, jobs: Sequence[int]) -> Budget:
        """The caps, and what all runs of the cohort have spent before this one."""
        routes, loaded = self.work.routes, self.project.loaded
        caps = self.options.caps_over(loaded.settings)
        ledger = read_ledger(
            self.project.paths,
            self.membership,
            routes.find_price,
            index=self.index,
            but=self.run_id,
            batches=False,
        )
        if caps:
            if self.options.if_locked is IfLocked.SHARE:
                fix = "leave --if-locked share out, or the cap"
                raise UsageError([Fault("two workers on one cohort cannot keep one cap", fix=fix)])
            check_caps(caps, loaded, ledger, routes.called(self.membership.rows, jobs), self.work.sampling)
            self.work.learn_from_store(self._stored())
        self.progress.earlier = ledger.money
        account = self.progress.account = Account(self.run_id, routes.find_price)
        self.journal.listen(account.hear)
        budget = Budget(caps, ledger.spent)
        if caps and self.options.shard is not None:
            budget = _shard_budget(caps, ledger.money, self.options.shard)
        budget.spent += self.tender.spent
        budget.adopt(self.tender.reserved)
        self.progress.batches, self.progress.landed = self.tender.money, self.tender.landed
        self.progress.cap_usd = budget.caps.usd
        return budget

    def _stored(self) -> Iterator[int]:
        """The rows that the store holds an answer of, good or not."""
        names = {stage: self.index.names(stage) for stage in STAGES}
        return (job for job, row in enumerate(self.membership.rows) if row.gen_id in names[row.stage])

    def _count(self, plan: Plan) -> None:
        progress = self.progress
        for stage, counts in plan.counts().items():
            counted = progress.stages[stage]
            counted.planned = sum(counts.values())
            counted.done = counts[RowState.DONE]
            counted.blocked = counts[RowState.BLOCKED]
            counted.kinds = dict(plan.failed_kinds(stage))
            progress.resumed += counted.done
        lanes = self.work.routes.lanes
        progress.to_call = len(lanes) - lanes.count(NO_LANE)


def _shard_budget(caps: Caps, money: Money, shard: StaticShard) -> Budget:
    """A shard's part of what a cap leaves, against what that shard's own runs have spent.

    What its siblings spend meanwhile changes nothing, so that all of them together keep the cap. Runs by
    other divisions are over: `CohortLock` sees to that.
    """
    own = together = NOTHING
    for run_id, part in money.by_run.items():
        if run_id.endswith(f"of{shard.of}") and (name := run_id.rpartition("-")[2])[0].isdigit():
            together += part.worst
            own += part.worst if name == shard.name else NOTHING
    before, share = money.total.worst - together, shard.share

    def part_of(cap: int | None, spent: int) -> int | None:
        return None if cap is None else max(0, int((cap - spent) * share))

    usd = caps.usd
    if usd is not None:
        exact = (usd - before.usd) * share.numerator / share.denominator
        usd = max(ZERO, exact.quantize(Decimal("0.000001"), ROUND_DOWN))
    return Budget(Caps(usd, part_of(caps.calls, before.calls), part_of(caps.tokens, before.tokens)), own)


async def salvage(
    project: Project, store: FilesystemStore, journal: RunJournal, progress: Progress
) -> list[tuple[Stage, str]]:
    """Bring in what dead runs had on disk: paid for, and not to be bought again."""
    group = project.loaded.settings.group_permissions
    sweep = await asyncio.to_thread(sweep_staging, project.paths, group_permissions=group)
    try:
        for answer, replace in sweep.answers:
            await store.commit(answer, replace=replace)
            sweep.committed.append((answer.stage, answer.gen_id))
        if sweep.errors:
            raise _not_salvaged(sweep.errors)
    except BaseException:
        sweep.release()
        raise
    await asyncio.to_thread(sweep.finish, project.paths)
    progress.salvaged += len(sweep.committed)
    progress.kept_aside += len(sweep.kept_aside)
    for place in sweep.odd_places:
        journal.record(
            Warned(
                f"lines of an interrupted run's answer log that this version cannot read are kept in {place}"
            )
        )
    for name in ("committed", "kept_aside", "dropped"):
        for stage, gen_id in getattr(sweep, name):
            journal.record(Salvaged(stage, gen_id, what=name))
    return sweep.committed


def _not_salvaged(errors: Sequence[StoreError]) -> StoreError:
    shown = "\n".join(f"  {error}" for error in errors[:10])
    more = f"\n  … and {len(errors) - 10} more" if len(errors) > 10 else ""
    return StoreError(
        f"answers of an interrupted run lie on the disk and cannot be put in place:\n{shown}{more}\n"
        "  fix:   mend the disk or the permissions, then run again; nothing was sent, nothing is lost",
        path=errors[0].path,
        errno=errors[0].errno,
    )
