"""The asyncio loop of a run: asks the scheduler what to do next, does it, tells it what came of it.

Sees the core and the ports only. Every error of a row becomes an event of the scheduler; bugs and
cancellation propagate.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Container, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from genworker.core.budget import Price
from genworker.core.completion import Completion, CompletionRequest, FinishReason
from genworker.core.events import (
    Abandoned,
    AlreadyThere,
    Answered,
    AnswerNotStored,
    CallFailed,
    Calling,
    CallStopped,
    Committed,
    LaneStopped,
    LimitChanged,
    Retried,
    RowFailed,
    StoreRefused,
    TakenElsewhere,
    Warned,
)
from genworker.core.facts import (
    MALFORMED_REASON,
    MODE_LLM,
    AnswerFacts,
    CopyFacts,
    Facts,
    MalformedFacts,
)
from genworker.core.generation import Answer, Generation
from genworker.core.membership import Membership
from genworker.core.progress import Progress, StageProgress, Tally
from genworker.core.scheduler import NO_LANE, GiveUp, JobState, Scheduler, Start
from genworker.core.stages import Stage
from genworker.core.waves import Close
from genworker.errors import (
    GenworkerError,
    MalformedAnswerError,
    ProviderError,
    ProviderUnavailableError,
    StoreError,
)
from genworker.ports import GenerationStore, Journal, Provider, Work
from genworker.run.deadline import Deadline, Timer
from genworker.run.tender import BatchEndpoint, FailedRow, Settling, Tender, prompt_tokens

PARENT_CACHE = 256
"""Parents read from the store that are kept for their other children."""
COMMIT_RETRY_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0)
"""Pauses between tries to store an answer that the disk refused: it is in memory and paid for."""
ELSEWHERE_PAUSES_S = (0.1, 0.2, 0.5, 1.0)
"""Pauses between looks at a generation that another worker has in hand; the last one repeats."""

_GOES_ON = frozenset({JobState.READY, JobState.RUNNING, JobState.BACKING_OFF, JobState.PARKED})
"""States of a job that has not ended and keeps its claim."""


@dataclass(slots=True)
class Outcome:
    """How a run ended, as far as the scheduler's states do not say it.

    Attributes:
        lost: answers that could not be stored, as (gen_id, reason).
        unrecorded: why the end of the journal could not be written.
        no_room: why there was no room for another answer, so that nothing more was asked for.
        waiting: rows that are left in batches that are out.
        broken: the first bug that a job met; raised by `Runner.run` after the others have been saved.
    """

    lost: list[tuple[str, str]] = field(default_factory=list)
    unrecorded: str | None = None
    no_room: str | None = None
    waiting: int = 0
    broken: BaseException | None = None


class _ByStage:
    """Counts rows by their stages."""

    def __init__(self, membership: Membership, progress: Progress) -> None:
        self._membership = membership
        self._progress = progress

    def stage(self, job: int) -> StageProgress:
        return self._progress.stages[self._membership.rows[job].stage]

    def ended(self, job: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class BatchLane:
    """A lane whose rows are asked in batches.

    Attributes:
        model_id: the model's id in the catalogue.
        model: the name that the endpoint is asked for.
        price: what a batch costs there; ``None`` when nobody knows it.
    """

    endpoint: BatchEndpoint
    model_id: str
    model: str
    price: Price | None


class Runner:
    """Runs the jobs of a scheduler until it is finished.

    Args:
        providers: the providers of each lane, by the number of the server. More may join.
        replace: jobs whose answers replace what stands in the store.
        disputed: jobs that are made although another worker may hold their claims.
        tally: counts the rows; by their stages in `progress` without.
        salvage: brings in what workers that have died had on disk; called before a generation is paid
            for, since one of them may have been at it. Returns what it has put in place during this run;
            ``None`` while another worker does that, so that nothing is known yet.
        tender: the batches of the data root; ``None`` where there are none and none are made.
        batch_lanes: the lanes whose rows are asked in batches.
        detach: end when only batches that are out are left.
    """

    def __init__(
        self,
        *,
        scheduler: Scheduler,
        membership: Membership,
        providers: Sequence[Sequence[Provider]],
        store: GenerationStore,
        work: Work,
        journal: Journal,
        progress: Progress,
        replace: Container[int] = frozenset(),
        disputed: Container[int] = frozenset(),
        tally: Tally | None = None,
        salvage: Callable[[], Awaitable[Collection[tuple[Stage, str]] | None]] | None = None,
        tender: Tender | None = None,
        batch_lanes: Mapping[int, BatchLane] | None = None,
        detach: bool = False,
    ) -> None:
        self._tender = tender
        self._batch_lanes = batch_lanes or {}
        self._detach = detach
        self._batch_tries: dict[int, tuple[int, int]] = {}  # batches that failed a job, or never ran it
        self._freed: set[int] = set()  # batched jobs that need their parent's text no more
        self._scheduler = scheduler
        self._membership = membership
        self._providers = providers
        self._store = store
        self._work = work
        self._journal = journal
        self._progress = progress
        self._tally = tally or _ByStage(membership, progress)
        self._replace = replace
        self._disputed = disputed
        self._salvage = salvage
        self._salvaging = asyncio.Lock()
        self._elsewhere: dict[int, int] = {}
        self._refusing = 0
        self._hurried = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy: Counter[int] = Counter()
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._came: dict[int, ProviderError] = {}  # what an earlier try of a job brought, if no answer
        self._texts: dict[int, str] = {}
        self._uses: dict[int, int] = {}
        self._loaded: OrderedDict[tuple[str, str], str] = OrderedDict()
        self._will_pump = False
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: Timer | None = None
        self._finished: asyncio.Future[None] | None = None
        self.outcome = Outcome()

    async def run(self) -> Outcome:
        """Run until every job is settled, or everything in flight after `drain`.

        Raises:
            Exception: a bug; what was in flight has been saved before it is raised.
        """
        loop = asyncio.get_running_loop()
        self._clock: Callable[[], float] = loop.time
        self._finished = loop.create_future()
        if self._tender is not None:
            self._tender.start(self)
        self.pump()
        try:
            await self._finished
            if self._tender is not None:
                await self._tender.leave()
                self.outcome.waiting = self._scheduler.batched_out
        finally:
            self._cancel_timers()
        unwritten = self._journal.trouble()
        if unwritten is not None:
            self.outcome.unrecorded = str(unwritten)
        if self.outcome.broken is not None:
            raise self.outcome.broken
        return self.outcome

    def drain(self, timeout_s: float | None) -> None:
        """Begin nothing more; let what is in flight arrive and be committed.

        Args:
            timeout_s: seconds after which calls that are still out are abandoned; ``None``: no limit.
        """
        self._scheduler.drain()
        if timeout_s is not None and self._finished is not None and self._deadline is None:
            self._deadline = Timer(timeout_s, self.abandon_calls)
        self.pump()

    def abandon_calls(self) -> None:
        """Give up the calls that are out. Answers that have arrived are still committed, if the disk takes
        them at the next try.
        """
        self._scheduler.drain()
        self._hurried.set()
        for task in list(self._calls.values()):
            task.cancel()
        if self._tender is not None:
            self._tender.hurry()
        self.pump()

    # The loop

    def pump(self) -> None:
        """Look what may be done by now: start it, set the timer for what may start later; notice the end."""
        if self._finished is None or self._finished.done():
            return
        scheduler = self._scheduler
        now = self._clock()
        if not self._refusing and not scheduler.draining and self._journal.trouble() is not None:
            self._refusing += 1
            task = asyncio.get_running_loop().create_task(self._mend_journal())
            self._tasks.add(task)
            task.add_done_callback(self._mended)
        # Nothing more is bought while the disk refuses what has been bought.
        while not self._refusing:
            if (start := scheduler.next_start(now)) is not None:
                self._spawn(self._attempt(start), start.job)
            elif (close := scheduler.next_batch(now)) is not None:
                self._close(close)
            else:
                break
        self._note_ended()
        if not self._tasks and (scheduler.finished or self._may_detach()):
            self._finished.set_result(None)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        wake_at = scheduler.wake_at(now)
        if wake_at is not None and not scheduler.draining:
            self._timer = asyncio.get_running_loop().call_at(wake_at, self.pump)
        elif (
            not self._tasks
            and scheduler.lease is None
            and not scheduler.waits_for_servers
            and (self._tender is None or not self._tender.is_tending)
        ):
            self.outcome.broken = RuntimeError("the scheduler waits for nothing: this is a bug")
            self._finished.set_result(None)

    def _spawn(self, coroutine: Coroutine[Any, Any, None], job: int) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        self._busy[job] += 1
        task.add_done_callback(lambda done: self._done(done, job))

    def is_busy(self, job: int) -> bool:
        """Whether a job is still being worked on, if only to write down how it ended."""
        return job in self._busy

    def _done(self, task: asyncio.Task[None], job: int) -> None:
        self._tasks.discard(task)
        self._calls.pop(job, None)
        self._busy[job] -= 1
        if not self._busy[job]:
            del self._busy[job]
        if not task.cancelled() and (error := task.exception()) is not None:
            # A bug in one job: save the others, then raise it.
            self.outcome.broken = self.outcome.broken or error
            self._scheduler.drain()
            if self._scheduler.state(job) is JobState.RUNNING:
                self._scheduler.abandoned(job)
            elif self._scheduler.state(job) is JobState.COMMITTING:
                self._scheduler.lost(job, f"internal error: {error}")
        self._pump_soon()

    def _pump_soon(self) -> None:
        """Pump once for all that happens in this turn of the loop."""
        if not self._will_pump:
            self._will_pump = True
            asyncio.get_running_loop().call_soon(self._pump_now)

    def _pump_now(self) -> None:
        self._will_pump = False
        self.pump()

    def _cancel_timers(self) -> None:
        for timer in (self._timer, self._deadline):
            if timer is not None:
                timer.cancel()

    def _note_ended(self) -> None:
        """Free the texts of parents whose children are all settled; count what was blocked or stopped."""
        for job in self._scheduler.take_ended():
            if job in self._freed:
                self._freed.discard(job)
            else:
                self._free_parent(job)
            state = self._scheduler.state(job)
            if state is JobState.BLOCKED:
                self._tally.stage(job).blocked += 1
            elif state is JobState.STOPPED:
                self._tally.stage(job).stopped += 1
            self._tally.ended(job)

    def _free_parent(self, job: int) -> None:
        for parent in self._membership.parents_of(job):
            if parent in self._uses:
                self._uses[parent] -= 1
                if self._uses[parent] <= 0:
                    del self._uses[parent]
                    self._texts.pop(parent, None)

    # One job

    async def _attempt(self, start: Start) -> None:
        job = start.job
        row = self._membership.rows[job]
        try:
            if start.attempt == 1 and not await self._reserve(job):
                return
            parent_text = await self._parent_text(job)
            if self._scheduler.lane_of(job) == NO_LANE:
                assert parent_text is not None
                await self._copy(job, parent_text)
                return
            prompt = self._work.prompt(job, parent_text, await self._second_text(job))
            request = self._work.request(job, prompt)
        except GenworkerError as error:
            self._scheduler.failed_before_call(job, str(error))
            await self._give_up(job, str(error), attempt=start.attempt, kind=type(error).__name__)
            return
        if self._scheduler.lane_of(job) in self._batch_lanes:
            await self._queue(job, request)
            return
        try:
            await self._store.make_room(row.stage, row.gen_id, room_bytes(request))
        except StoreError as error:
            await self._stop_for_room(job, error)
            return
        if not self._clear(job, start.attempt, request):
            return  # it will be started another time, and keeps its claim until then
        await self._call(start, request)
        if self._scheduler.state(job) not in _GOES_ON:
            await self._store.release(row.stage, row.gen_id)

    async def _stop_for_room(self, job: int, error: StoreError) -> None:
        """The answer could not be kept, so it is not asked for; nor is anything else."""
        row = self._membership.rows[job]
        if self.outcome.no_room is None:
            self.outcome.no_room = str(error)
            self._journal.record(StoreRefused(row.stage, row.gen_id, str(error), pause_s=None))
        self._scheduler.taken_elsewhere(job, self._clock())
        self._scheduler.drain()
        await self._store.release(row.stage, row.gen_id)

    async def _reserve(self, job: int) -> bool:
        """Claim the generation, and look whether somebody has made it since the plan was made."""
        row = self._membership.rows[job]
        is_ours = await self._store.claim(row.stage, row.gen_id)
        if not is_ours and job not in self._disputed:
            self._wait_for_other(job)
            return False
        waited = job in self._elsewhere
        placed: Collection[tuple[Stage, str]] | None = ()
        if self._tender is not None and (hold := self._tender.holds(job, row.stage, row.gen_id)) is not None:
            # Looked at after the claim: a batch that is in place later was formed under a claim of its own.
            self._elsewhere[job] = 1  # whoever made it: what stands there then is taken over
            self._scheduler.held(job)
            await self._store.release(row.stage, row.gen_id)
            if hold:
                self.batch_stranded(job, hold)
            return False
        if self._salvage is not None:
            async with self._salvaging:
                placed = await self._salvage()
        if placed is None:  # the answer may be among those that another worker is about to put in place
            await self._store.release(row.stage, row.gen_id)
            self._wait_for_other(job)
            return False
        self._elsewhere.pop(job, None)
        if job in self._replace and not waited and (row.stage, row.gen_id) not in placed:
            return True
        theirs = await self._store.find(row.stage, row.gen_id)
        if theirs is None:
            return True
        self._scheduler.answered(job)
        self._journal.record(AlreadyThere(row.stage, row.gen_id))
        self._settle(job, theirs)
        await self._store.release(row.stage, row.gen_id)
        return False

    # Batches

    async def _queue(self, job: int, request: CompletionRequest) -> None:
        """Write a row's request down for its lane's next batch; its money is reserved, its claim is kept."""
        assert self._tender is not None
        row, lane = self._membership.rows[job], self._scheduler.lane_of(job)
        worst = self._work.worst_case(job, request)
        if not self._scheduler.clear(job, worst, self._clock()):
            self.pump()
            return
        try:
            size_bytes = self._tender.write(
                lane,
                self._batch_lanes[lane].endpoint,
                request,
                self._work.facts(job),
                self._work.call_facts(job, request),
                worst,
                replace=job in self._replace,
                tries=self._batch_tries.get(job, (0, 0)),
            )
        except StoreError as error:
            self._scheduler.failed_before_call(job, str(error))
            await self._give_up(job, str(error), attempt=1, kind=type(error).__name__)
            return
        self._scheduler.queued(job, size_bytes, prompt_tokens(request.prompt), self._clock())
        if row.parent_gen_id is not None and job not in self._freed:
            self._freed.add(job)
            self._free_parent(job)
        self.pump()

    def _close(self, close: Close) -> None:
        assert self._tender is not None
        lane = self._batch_lanes[close.lane]
        self._tender.close(close, lane.endpoint, lane.model_id, lane.model, lane.price, self._published)

    async def _published(self, jobs: Sequence[int]) -> None:
        """A batch is in place and holds its rows: their claims are not needed any more."""
        self._progress.calls += len(jobs)
        for job in jobs:
            row = self._membership.rows[job]
            await self._store.release(row.stage, row.gen_id)

    def _may_detach(self) -> bool:
        return (
            self._detach
            and self._tender is not None
            and self._scheduler.waits_for_batches
            and self._tender.all_are_out
        )

    async def batch_answered(
        self, job: int, answer: Answer, completion: Completion, standing: Generation | None, money: Settling
    ) -> bool:
        """See `genworker.run.tender.BatchRows.batch_answered`."""
        self._scheduler.landed(job, money.worst, money.charge)
        try:
            self._count(answer.facts.max_tokens, completion)
            self._batch_tries.pop(job, None)
            if standing is not None:
                self._settle(job, standing)
            elif not await self._commit(job, answer):
                return False
        except BaseException:
            if self._scheduler.state(job) is JobState.COMMITTING:  # a bug: nobody must wait for this row
                self._scheduler.lost(job, "internal error")
            raise
        finally:
            self.pump()
        return True

    async def batch_failed(self, job: int, failed: FailedRow) -> None:
        """See `genworker.run.tender.BatchRows.batch_failed`."""
        self._scheduler.correct(failed.money.worst, failed.money.charge)
        self._batch_tries[job] = (failed.failures, failed.lapses)
        row, error = self._membership.rows[job], failed.error
        decision = self._scheduler.returned(
            job, error, self._clock(), failures=failed.failures, lapses=failed.lapses
        )
        ended: dict[str, Any] = {
            "stage": row.stage,
            "gen_id": row.gen_id,
            "attempt": failed.failures + failed.lapses,
            "kind": "Lapsed" if error is None else type(error).__name__.removesuffix("Error"),
            "status": None if error is None else error.status,
            "request_id": None if error is None else error.request_id,
            "may_be_billed": False,  # a batch's own record says what it cost
            "latency_s": None,
        }
        self._note_limits()
        reasons = dict(self._scheduler.stopped_lanes()) if decision.stopped else {}
        for lane in decision.stopped:
            self._journal.record(LaneStopped(lane, reasons[lane]))
        if not isinstance(decision, GiveUp):
            self._progress.retries += 1
            what = "the batch did not run it" if error is None else error.message
            self._journal.record(Retried(**ended, error=what, pause_s=0.0, fallback=decision.lane))
        elif decision.failed:
            self._journal.record(CallFailed(**ended, error=decision.reason))
            self._progress.stages[row.stage].errors += 1
        else:
            self._journal.record(CallStopped(**ended, error=decision.reason))

    def batch_stranded(self, job: int, reason: str) -> None:
        """See `genworker.run.tender.BatchRows.batch_stranded`."""
        self._scheduler.stranded(job, reason)
        self._tally.stage(job).errors += 1

    def batch_unheld(self, job: int) -> None:
        """See `genworker.run.tender.BatchRows.batch_unheld`."""
        self._scheduler.unheld(job)

    def batch_over(self, lane: int, rows: int, tokens: int, *, is_over_limit: bool) -> None:
        """See `genworker.run.tender.BatchRows.batch_over`."""
        self._scheduler.batch_ended(lane, rows, tokens, self._clock(), is_over_limit=is_over_limit)

    def batch_money(self, money: Settling) -> None:
        """See `genworker.run.tender.BatchRows.batch_money`."""
        self._scheduler.correct(money.worst, money.charge)

    def batches_moved(self) -> None:
        """See `genworker.run.tender.BatchRows.batches_moved`."""
        self.pump()

    def batch_broken(self, error: BaseException) -> None:
        """See `genworker.run.tender.BatchRows.batch_broken`."""
        self.outcome.broken = self.outcome.broken or error
        self._scheduler.drain()

    def _wait_for_other(self, job: int) -> None:
        """Look again in a while; meanwhile the run works on what is free."""
        row = self._membership.rows[job]
        looks = self._elsewhere.get(job, 0)
        self._elsewhere[job] = looks + 1
        if not looks:
            self._journal.record(TakenElsewhere(row.stage, row.gen_id))
        pause = ELSEWHERE_PAUSES_S[min(looks, len(ELSEWHERE_PAUSES_S) - 1)]
        self._scheduler.taken_elsewhere(job, self._clock() + pause)

    async def _parent_text(self, job: int) -> str | None:
        row = self._membership.rows[job]
        if row.parent_gen_id is None:
            return None
        return await self._text_of(row.stage, row.parent_gen_id, self._membership.parents[job])

    async def _second_text(self, job: int) -> str | None:
        """The text that stands second in the prompt, for rows that compare two."""
        row = self._membership.rows[job]
        if row.second_parent_gen_id is None:
            return None
        return await self._text_of(row.stage, row.second_parent_gen_id, self._membership.seconds.get(job, -1))

    async def _text_of(self, stage: Stage, gen_id: str, parent: int) -> str:
        """A parent's text for a row of `stage`: from memory where this run made it, else from the store."""
        text = self._texts.get(parent)
        if text is not None:
            return text
        parent_stage = stage.parent
        assert parent_stage is not None
        key = (parent_stage.value, gen_id)
        if key not in self._loaded:
            self._loaded[key] = await self._store.load_parsed(parent_stage, gen_id)
            if len(self._loaded) > PARENT_CACHE:
                self._loaded.popitem(last=False)
        return self._loaded[key]

    async def _copy(self, job: int, parent_text: str) -> None:
        row = self._membership.rows[job]
        now = _timestamp()
        facts = Facts.of(self._work.facts(job), CopyFacts(None, started_at=now, finished_at=now))
        self._scheduler.answered(job)
        self._progress.copies += 1
        await self._commit(job, Answer(row.stage, row.gen_id, "", parent_text, facts))
        await self._store.release(row.stage, row.gen_id)

    def _clear(self, job: int, attempt: int, request: CompletionRequest) -> bool:
        """Have the call's worst case reserved, and leave a record of it that outlives this process."""
        worst = self._work.worst_case(job, request)
        careful = self._work.unproven_case(job, request)
        if not self._scheduler.clear(job, worst, self._clock(), request.prefix, careful):
            self.pump()
            return False
        row = self._membership.rows[job]
        asked = self._work.call_facts(job, request)
        self._journal.record(
            Calling(
                row.stage,
                row.gen_id,
                attempt,
                endpoint=asked.endpoint,
                model_id=row.llm_model_id,
                model=request.model,
                worst_usd=worst.known_usd,
                worst_tokens=worst.tokens,
            )
        )
        return True

    async def _call(self, start: Start, request: CompletionRequest) -> None:
        job, attempt = start.job, start.attempt
        row = self._membership.rows[job]
        provider = self._providers[self._scheduler.lane_of(job)][start.server]
        started_at = _timestamp()
        began = self._clock()
        self._progress.calls += 1
        task = asyncio.current_task()
        assert task is not None
        self._calls[job] = task
        try:
            async with Deadline(request.timeout_s):
                # The journal writes a turn's lines at its end: first that, then the call.
                await asyncio.sleep(0)
                completion = await provider.complete(request)
        except TimeoutError:
            message = f"no answer within {request.timeout_s:g} s"
            timed_out = ProviderUnavailableError(message, may_be_billed=True)
            await self._refused(job, attempt, request, timed_out, self._clock() - began, started_at)
            return
        except ProviderError as error:
            await self._refused(job, attempt, request, error, self._clock() - began, started_at)
            return
        except asyncio.CancelledError:
            # Only `abandon_calls` cancels, and only calls that are out.
            self._scheduler.abandoned(job)
            self._journal.record(Abandoned(row.stage, row.gen_id, attempt))
            return
        finally:
            self._calls.pop(job, None)
        self._came.pop(job, None)
        cost = self._work.cost(job, request, completion)
        self._scheduler.answered(job, completion, self._clock(), cost)
        self._note_limits()
        for what in self._work.take_warnings():
            self._journal.record(Warned(what))
        self._count(request.sampling.max_tokens, completion)
        asked = self._work.call_facts(job, request)
        came = AnswerFacts(
            response_model=completion.model,
            request_id=completion.request_id,
            finish_reason=completion.finish_reason,
            finish_word=completion.finish_word,
            usage=completion.usage,
            cost_usd=None if cost is None else cost.known_usd,
            told_cost_usd=completion.told_cost_usd,
            attempts=attempt,
            started_at=started_at,
            finished_at=_timestamp(),
            latency_s=round(completion.latency_s, 4),
            service_tier=_tier_worth_saying(request.sampling.service_tier, completion.service_tier),
        )
        facts = Facts.of(self._work.facts(job), asked, came)
        answer = Answer(row.stage, row.gen_id, request.prompt, completion.text, facts, completion.reasoning)
        self._journal.record(
            Answered(
                row.stage,
                row.gen_id,
                attempt,
                endpoint=asked.endpoint,
                model=request.model,
                finish_reason=came.finish_reason,
                usage=came.usage,
                cost_usd=came.cost_usd,
                request_id=came.request_id,
                latency_s=came.latency_s,
                server=self._scheduler.server_name(job, start.server),
            )
        )
        # The slot is free, but first `commit` logs the answer: until then only memory has it.
        self._pump_soon()
        await self._commit(job, answer)

    def _count(self, max_tokens: int | None, completion: Completion) -> None:
        self._progress.answered(self._clock())
        self._progress.input_tokens += completion.usage.input_tokens or 0
        self._progress.output_tokens += completion.usage.output_tokens or 0
        if completion.is_odd_word and completion.finish_word is not None:
            self._progress.odd_words[completion.finish_word] += 1
        # Some gateways call a cut answer whole. Reasoning that is billed beside it is no sign of that.
        usage, limit = completion.usage, max_tokens
        written = (usage.output_tokens or 0) - (usage.reasoning_tokens or 0)
        if completion.finish_reason is FinishReason.STOP and limit is not None and written >= limit:
            self._progress.past_limit += 1

    def _note_limits(self) -> None:
        """Leave a record of what lanes have changed their mind about: a slow night is to be explained."""
        for lane, change in self._scheduler.take_changes():
            self._journal.record(LimitChanged(lane, change.what, change.why))

    async def _refused(
        self,
        job: int,
        attempt: int,
        request: CompletionRequest,
        error: ProviderError,
        seconds: float,
        started_at: str,
    ) -> None:
        row = self._membership.rows[job]
        now = self._clock()
        # Before the decision: it may hand the row to another lane.
        asked = Facts.of(self._work.facts(job), self._work.call_facts(job, request))
        decision = self._scheduler.refused(job, error, now)
        if error.partial is not None or isinstance(error, MalformedAnswerError):
            self._came[job] = error
        ended: dict[str, Any] = {
            "stage": row.stage,
            "gen_id": row.gen_id,
            "attempt": attempt,
            "kind": type(error).__name__.removesuffix("Error"),
            "status": error.status,
            "request_id": error.request_id,
            "may_be_billed": error.may_be_billed,
            "latency_s": round(seconds, 4),
        }
        reasons = dict(self._scheduler.stopped_lanes()) if decision.stopped else {}
        for lane in decision.stopped:
            self._journal.record(LaneStopped(lane, reasons.get(lane, error.message)))
        if not isinstance(decision, GiveUp):
            self._progress.retries += 1
            pause_s = max(0.0, round(decision.at_s - now, 3))
            self._journal.record(
                Retried(**ended, error=error.message, pause_s=pause_s, fallback=decision.lane)
            )
            return
        if decision.failed and (came := self._came.pop(job, None)) is not None:
            await self._keep_what_came(job, attempt, request, came, started_at, asked)
        if not decision.failed:
            self._journal.record(CallStopped(**ended, error=decision.reason))
            return
        self._journal.record(CallFailed(**ended, error=decision.reason))
        self._tally.stage(job).errors += 1

    async def _keep_what_came(
        self,
        job: int,
        attempt: int,
        request: CompletionRequest,
        error: ProviderError,
        started_at: str,
        asked: Facts,
    ) -> None:
        """Keep what came instead of an answer, at this try or an earlier one: it may have been paid for."""
        row = self._membership.rows[job]
        partial: Completion | None = error.partial
        came = MalformedFacts(
            request_id=error.request_id,
            finish_reason=MALFORMED_REASON if partial is None else partial.finish_reason.value,
            finish_word=None if partial is None else partial.finish_word,
            error=error.message,
            attempts=attempt,
            started_at=started_at,
            finished_at=_timestamp(),
        )
        facts = asked.changed(**came.to_json())
        body = error.body if isinstance(error, MalformedAnswerError) else ""
        text, reasoning = (body, "") if partial is None else (partial.text, partial.reasoning)
        await self._keep(job, Answer(row.stage, row.gen_id, request.prompt, text, facts, reasoning))

    async def _give_up(self, job: int, reason: str, *, attempt: int, kind: str) -> None:
        row = self._membership.rows[job]
        self._tally.stage(job).errors += 1
        self._journal.record(
            RowFailed(row.stage, row.gen_id, attempt, kind=kind.removesuffix("Error"), error=reason)
        )
        await self._store.release(row.stage, row.gen_id)

    async def _commit(self, job: int, answer: Answer) -> bool:
        """Store an answer and settle its job; ``False``: the disk refused it."""
        generation = await self._keep(job, answer)
        if generation is not None:
            self._settle(job, generation)
            return True
        self._scheduler.lost(job, self.outcome.lost[-1][1])
        self._tally.stage(job).errors += 1
        return False

    async def _keep(self, job: int, answer: Answer) -> Generation | None:
        """Store what was paid for; what the disk refuses is tried for a while, then named and given up."""
        pauses = iter(COMMIT_RETRY_PAUSES_S)
        refused = False
        try:
            while True:
                try:
                    return await self._store.commit(answer, replace=job in self._replace)
                except StoreError as error:
                    # The answer is paid for and in memory. Buy nothing more; the disk may recover.
                    pause = None if self._hurried.is_set() else next(pauses, None)
                    if not refused:
                        refused = True
                        self._refusing += 1
                        self._journal.record(
                            StoreRefused(answer.stage, answer.gen_id, str(error), pause_s=pause)
                        )
                    if pause is None:
                        self._scheduler.drain()
                        self.outcome.lost.append((answer.gen_id, str(error)))
                        self._journal.record(AnswerNotStored(answer.stage, answer.gen_id, str(error)))
                        return None
                    await self._rest(pause)
        finally:
            self._refusing -= refused

    async def _rest(self, pause_s: float) -> None:
        """Sleep, unless told to hurry."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._hurried.wait()

    async def _mend_journal(self) -> None:
        """The journal cannot be written: try for a while, then begin nothing more."""
        for pause in COMMIT_RETRY_PAUSES_S:
            if self._hurried.is_set():
                break
            await self._rest(pause)
            if self._journal.trouble() is None:
                return
        self._scheduler.drain()

    def _mended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._refusing -= 1
        if not task.cancelled() and (error := task.exception()) is not None:
            self.outcome.broken = self.outcome.broken or error
            self._scheduler.drain()
        self.pump()

    def _settle(self, job: int, generation: Generation) -> None:
        """The store has it: tell the scheduler, and hand the text to the children."""
        row = self._membership.rows[job]
        stage = self._tally.stage(job)
        failure = generation.failure
        text = generation.parsed_text
        if not text:
            message = failure.message if failure is not None else "the answer is not usable"
            self._scheduler.committed(job, failure=message)
            if failure is not None:
                stage.kinds[failure.kind] = stage.kinds.get(failure.kind, 0) + 1
            else:
                stage.errors += 1
        else:
            children = self._scheduler.children(job)
            self._scheduler.committed(job)
            self._note_ended()  # children of stopped lanes end at once, and need no text
            stage.done += 1
            waiting = sum(1 for child in children if self._scheduler.state(child) < JobState.DONE)
            if waiting:
                self._texts[job] = text
                self._uses[job] = waiting
        self._journal.record(
            Committed(
                row.stage,
                row.gen_id,
                mode=generation.facts.mode or MODE_LLM,
                failure=None if failure is None else failure.kind.value,
                reason=None if failure is None else failure.message,
            )
        )


ROOM_WITHOUT_LIMIT_BYTES = 64 * 1024
"""Room for an answer whose length nobody limits; most are far shorter."""
MOST_ROOM_BYTES = 512 * 1024
BYTES_PER_TOKEN = 6
"""Of an answer, generously: a token of today's vocabularies is about four characters."""
ROOM_BESIDE_BYTES = 8 * 1024
"""For the metadata that are logged along with an answer."""


def room_bytes(request: CompletionRequest) -> int:
    """Bytes that a call's answer may take in the log, the prompt and the metadata included."""
    limit = request.sampling.max_tokens
    answer = ROOM_WITHOUT_LIMIT_BYTES if limit is None else min(limit * BYTES_PER_TOKEN, MOST_ROOM_BYTES)
    return answer + len(request.prompt.encode("utf-8", "replace")) + ROOM_BESIDE_BYTES


def _tier_worth_saying(asked: str | None, told: str | None) -> str | None:
    return told if asked is not None or told not in ("default", "standard") else None


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
