"""Tends the batches of a data root: forms, submits, polls, fetches, commits, and finds lost ones again.

What is to be done next is decided by `genworker.core.batches` from each batch's log; this module does it, one
task a batch, so that one that fails stops no other. Any batch of the data root is tended, whoever formed it:
its rows are committed also when this run does not have them. The run's own rows hear of it by `BatchRows`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any, Protocol

from genworker.core.batches import (
    Absent,
    AskPerson,
    BadLogError,
    BatchResult,
    Found,
    Line,
    Listed,
    Look,
    Step,
    Wait,
    next_step,
    number_of,
    poll_pause_s,
    seek,
)
from genworker.core.budget import NOTHING, ZERO, Charge, Price
from genworker.core.completion import Completion, CompletionRequest
from genworker.core.events import BatchCreated, BatchFormed, BatchSettled, BatchTrouble, Warned
from genworker.core.facts import MALFORMED_REASON, AnswerFacts, CallFacts, Facts, MalformedFacts, RowFacts
from genworker.core.generation import Answer, Generation
from genworker.core.money import Money, Part
from genworker.core.stages import Stage
from genworker.core.waves import Close
from genworker.errors import (
    MalformedAnswerError,
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
    StoreError,
)
from genworker.ports import BatchProvider, GenerationStore, Journal
from genworker.run.batch_money import add_open, add_settled, part_to_json, span_s
from genworker.store.batches import Forming, Intent, Item, OpenBatch, Shelf
from genworker.store.durable import cannot_write
from genworker.store.lock import machine_tag

COMMITS_AT_ONCE = 256
CLOCK_MARGIN_S = 60.0
"""How much older than the newest batch before a create one may seem that this create has made."""
WATCH_PAUSE_S = 2.0
"""Pause between looks at batches that other processes tend, at most."""
NO_ERRORS_S = 600.0
"""How long after a batch's end the lines of unanswered requests are waited for: those cost nothing."""
SHORT_FETCHES = 3
"""Times that results are fetched which have fewer lines than the provider has counted answers."""


def prompt_tokens(prompt: str) -> int:
    """How many tokens a prompt is counted as in a provider's queue, roughly."""
    return len(prompt) // 4 + 1


@dataclass(frozen=True, slots=True)
class BatchEndpoint:
    """An endpoint of the configuration that takes batches."""

    name: str
    provider: BatchProvider
    url: str | None
    kind: str
    key_tag: str
    creating: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(frozen=True, slots=True)
class TenderPolicy:
    """Pauses, in seconds; see ``[batches]`` of the settings."""

    poll_s: float
    settle_s: float
    max_wait_s: float


class BatchRows(Protocol):
    """What the rows of a run hear of their batches. Jobs are numbered as the membership's rows."""

    async def batch_answered(
        self, job: int, answer: Answer, completion: Completion, standing: Generation | None, money: Settling
    ) -> bool:
        """Commit an answer; ``standing`` is in the store already. ``False``: the disk refused it."""
        ...

    async def batch_failed(self, job: int, failed: FailedRow) -> None:
        """The batch is over and has brought this row nothing."""

    def batch_stranded(self, job: int, reason: str) -> None:
        """The batch that holds this row can be brought to no end by this run."""

    def batch_unheld(self, job: int) -> None:
        """The batch that held this row, tended elsewhere, is over."""

    def batch_over(self, lane: int, rows: int, tokens: int, *, is_over_limit: bool) -> None:
        """A batch of a lane is out no more."""

    def batch_money(self, money: Settling) -> None:
        """What was reserved for a row that this run does not have has been spent so."""

    def batches_moved(self) -> None:
        """Something may be to be done."""

    def batch_broken(self, error: BaseException) -> None:
        """A bug; the other batches go on."""


@dataclass(frozen=True, slots=True)
class Settling:
    """What was reserved for a row, and what it has cost."""

    worst: Charge
    charge: Charge


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row without an answer; `error` is ``None`` when its request was never run."""

    item: Item
    error: ProviderError | None
    failures: int
    lapses: int
    money: Settling


@dataclass(slots=True)
class Held:
    """A batch that this process tends.

    Attributes:
        jobs: the run's rows in it: number to job.
        numbers: of an earlier run's batch, each row's number.
        lane: where this run's scheduler counts it; -1: nowhere.
        tokens: of its prompts; see `prompt_tokens`.
        usual_s: how long batches of the endpoint took so far, the median.
        is_ours: whether it is on the account of this run's cohort.
        resumed: an earlier process may have done more than the log says.
        listings: the last ones, with the times at which they were asked for, while it is sought.
        strangers, ours: batches that were found not to be this one, or to be it.
        sought_at, ended_at: by this process's own clock: since when it is sought, and when it was first seen
            to have ended.
        cancelled: twins that the provider has been asked to cancel.
        short_fetches: times that its results had fewer lines than answers were counted.
    """

    batch: OpenBatch
    endpoint: BatchEndpoint
    is_ours: bool
    jobs: dict[int, int] = field(default_factory=dict)
    numbers: dict[tuple[Stage, str], int] = field(default_factory=dict)
    lane: int = -1
    tokens: int = 0
    resumed: bool = False
    refusal: ProviderError | None = None
    failures: int = 0
    told: str | None = None
    listings: list[tuple[float, list[Listed]]] = field(default_factory=list)
    strangers: set[str] = field(default_factory=set)
    ours: set[str] = field(default_factory=set)
    sought_at: float | None = None
    ended_at: float | None = None
    cancelled: set[str] = field(default_factory=set)
    short_fetches: int = 0
    is_busy: bool = False
    was_looked_at: bool = False
    usual_s: float | None = None

    @property
    def word(self) -> str:
        """Its state for people, one word."""
        return self.batch.story.word

    @property
    def intent(self) -> Intent:
        """What it was formed for."""
        return self.batch.intent

    @property
    def age_s(self) -> float:
        """Seconds since it was made, as far as that is known."""
        since = self.batch.story.asked_s or self.batch.story.created_s or time.time()
        return max(0.0, time.time() - since)


@dataclass(slots=True)
class Watched:
    """A batch that another process tends, or that nobody here can."""

    intent: Intent
    numbers: dict[tuple[Stage, str], int]
    jobs: dict[int, int] = field(default_factory=dict)
    reason: str | None = None


class Tender:
    """The batches of one data root, for one run.

    Args:
        endpoint_of: the configured endpoint that an intent is for, or why there is none.
        run_id, cohort_id: of the run that tends.
    """

    def __init__(
        self,
        shelf: Shelf,
        *,
        endpoint_of: Callable[[str, str | None, str], BatchEndpoint | str],
        cohort_id: str,
        policy: TenderPolicy,
        store: GenerationStore,
        journal: Journal,
    ) -> None:
        self.shelf = shelf
        self._endpoint_of = endpoint_of
        self._cohort_id = cohort_id
        self._policy = policy
        self._store = store
        self._journal = journal
        self._rows: BatchRows | None = None
        self._forming: dict[int, Forming] = {}
        self._held: dict[str, Held] = {}
        self._watched: dict[str, Watched] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._publishing: set[asyncio.Task[None]] = set()
        self._leaving = asyncio.Event()
        self._hurried = False
        self._watcher: asyncio.Task[None] | None = None
        self._settled = Money()
        self._spans: dict[str, list[float]] = {}
        self.landed = Part()

    # Before the run

    def adopt(self) -> None:
        """Take up every open batch of the data root that nobody tends, and note the others.

        Raises:
            StoreError: one cannot be read, so nobody knows which rows may be paid for already.
        """
        self.shelf.sweep()
        for record in self.shelf.settled():
            add_settled(self._settled, record, self._cohort_id)
            self._spans.setdefault(str(record.get("endpoint")), []).extend(span_s(record))
        for name in self.shelf.open_batches():
            self._look_up(name)

    def money(self) -> Money:
        """What the cohort's batches have cost: those that are closed, and those that are out at most."""
        money = Money()
        money.merge(self._settled)
        for batch in self._known():
            add_open(money, batch.intent, self._cohort_id)
        return money

    def _look_up(self, name: str) -> None:
        """Tend a batch that was not known, or watch it."""
        batch = self.shelf.take(name)
        if batch is None:
            numbers = {row: number for number, row in enumerate(self.shelf.rows(name))}
            if name in self.shelf.open_batches():  # else it was settled meanwhile
                self._watched[name] = Watched(self.shelf.peek(name)[0], numbers)
            return
        try:
            numbers, tokens = {}, 0
            for item in batch.items():
                numbers[item.stage, item.gen_id] = item.number
                tokens += prompt_tokens(item.prompt)
        except BaseException:
            batch.release()
            raise
        intent = batch.intent
        endpoint = self._endpoint_of(intent.endpoint, intent.url, intent.kind)
        if isinstance(endpoint, str):
            batch.release()
            reason = f"batch {name} waits at an endpoint that is not configured: {endpoint}"
            self._watched[name] = Watched(intent, numbers, reason=reason)
            self._journal.record(BatchTrouble(name, reason, is_stranded=True))
            return
        is_ours = intent.cohort_id == self._cohort_id
        self._held[name] = Held(batch, endpoint, is_ours, numbers=numbers, tokens=tokens, resumed=True)

    @property
    def reserved(self) -> Charge:
        """The worst case of the cohort's batches that are open: spent, as far as a cap can know."""
        ours = [each.intent.worst for each in self._known() if each.intent.cohort_id == self._cohort_id]
        return sum(ours, start=NOTHING)

    @property
    def spent(self) -> Charge:
        """What the cohort's closed batches have cost, at most."""
        return self._settled.total.worst

    def match(self, rows: Iterable[tuple[int, Stage, str]]) -> list[int]:
        """Which of a run's rows open batches hold.

        Args:
            rows: (job, stage, gen_id) of the rows that are to be made.
        """
        if not self._held and not self._watched:
            return []
        return [job for job, stage, gen_id in rows if self._attach(job, (stage, gen_id))]

    def _known(self) -> list[Held | Watched]:
        return [*self._held.values(), *self._watched.values()]

    def _attach(self, job: int, row: tuple[Stage, str]) -> bool:
        for batch in self._known():
            if (number := batch.numbers.get(row)) is not None:
                batch.jobs[number] = job
                return True
        return False

    def start(self, rows: BatchRows) -> None:
        """Begin to tend what was adopted. From here on `rows` hears of it."""
        self._rows = rows
        for held in list(self._held.values()):
            self._spawn(held)
        self._strand_watched()
        self._watcher = asyncio.get_running_loop().create_task(self._watch())

    # While it runs

    def holds(self, job: int, stage: Stage, gen_id: str) -> str | None:
        """Whether an open batch holds a row that has been claimed.

        Returns:
            ``None`` when none does; ``""`` when `BatchRows` hears of its end; else why this run never will.

        Raises:
            StoreError: the batches cannot be read.
        """
        for name in self.shelf.open_batches():
            if name not in self._held and name not in self._watched:
                self._look_up(name)
                if (held := self._held.get(name)) is not None:
                    self._spawn(held)
        for watched in self._watched.values():
            if watched.reason is not None and (stage, gen_id) in watched.numbers:
                return watched.reason
        return "" if self._attach(job, (stage, gen_id)) else None

    def write(
        self,
        lane: int,
        endpoint: BatchEndpoint,
        request: CompletionRequest,
        row: RowFacts,
        asked: CallFacts,
        worst: Charge,
        *,
        replace: bool,
        tries: tuple[int, int],
    ) -> int:
        """Write a row's request down for its lane's next batch; returns its bytes.

        Raises:
            StoreError: the disk refuses.
        """
        try:
            forming = self._forming.get(lane)
            if forming is None:
                forming = self._forming[lane] = self.shelf.form()
            line = endpoint.provider.encode(forming.next_id, request)
            facts = {**row.to_json(), **asked.to_json()}
            item = Item(
                forming.rows, row.stage, row.gen_id, replace, worst, request.prompt, facts, tries[0], tries[1]
            )
            forming.add(item, line)
        except OSError as error:
            place = self.shelf.root
            raise StoreError(f"{place} cannot be written: {error}", path=str(place)) from error
        return len(line) + 1

    def close(
        self,
        close: Close,
        endpoint: BatchEndpoint,
        model_id: str,
        model: str,
        price: Price | None,
        published: Callable[[Sequence[int]], Coroutine[Any, Any, None]],
    ) -> None:
        """Make the first rows of a lane's spool a batch, and submit it.

        Args:
            published: called with the rows once the batch is in place and holds them.
        """
        forming = self._forming.pop(close.lane, None)
        if forming is None:
            return
        if not close.jobs:
            forming.drop()
            return
        forming.keep(len(close.jobs))
        facts = {
            "cohort_id": self._cohort_id,
            "endpoint": endpoint.name,
            "url": endpoint.url,
            "kind": endpoint.kind,
            "model_id": model_id,
            "model": model,
            "price": price,
            "is_free_when_lapsed": endpoint.provider.is_free_when_lapsed,
            "key_tag": endpoint.key_tag,
        }
        task = asyncio.get_running_loop().create_task(
            self._publish(forming, close, endpoint, facts, published)
        )
        self._publishing.add(task)
        task.add_done_callback(self._publishing.discard)

    async def _publish(
        self,
        forming: Forming,
        close: Close,
        endpoint: BatchEndpoint,
        facts: Mapping[str, Any],
        published: Callable[[Sequence[int]], Coroutine[Any, Any, None]],
    ) -> None:
        assert self._rows is not None
        worst = sum(forming.worsts.values(), start=NOTHING)
        try:
            batch = await asyncio.to_thread(forming.publish, facts)
        except OSError as error:
            reason = f"the batch cannot be written: {error}"
            self._journal.record(BatchTrouble("", reason, is_stranded=True))
            forming.drop()
            self._rows.batch_money(Settling(worst, NOTHING))
            for job in close.jobs:
                self._rows.batch_stranded(job, reason)
            self._rows.batch_over(close.lane, len(close.jobs), close.tokens, is_over_limit=False)
            self._rows.batches_moved()
            return
        held = Held(
            batch,
            endpoint,
            is_ours=True,
            jobs=dict(enumerate(close.jobs)),
            lane=close.lane,
            tokens=close.tokens,
        )
        self._held[batch.intent.batch] = held
        intent = batch.intent
        self._journal.record(
            BatchFormed(intent.batch, intent.endpoint, intent.model_id, intent.count, intent.worst.known_usd)
        )
        await published(close.jobs)
        self._spawn(held)

    @property
    def batches(self) -> list[Held]:
        """What is tended, to be looked at."""
        return list(self._held.values())

    @property
    def is_tending(self) -> bool:
        """Whether a batch that holds rows of this run is tended or watched, or one is being put in place."""
        return (
            bool(self._publishing)
            or any(held.jobs or held.is_busy for held in self._held.values())
            or any(watched.jobs for watched in self._watched.values())
        )

    @property
    def all_are_out(self) -> bool:
        """Whether each batch of this run waits for its provider, and nothing is to be done for it now."""
        return not self._publishing and all(
            next_step(held.batch.story, wants_file=held.endpoint.provider.wants_file)
            in (Step.POLL, Step.SEEK)
            and held.was_looked_at
            and not held.is_busy
            for held in self._held.values()
            if held.jobs
        )

    async def leave(self) -> None:
        """Stop tending. What is on its way is finished; batches stay out, for the next run."""
        self._leaving.set()
        for task in list(self._publishing):
            await asyncio.wait([task])
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()))
        self.release()

    def release(self) -> None:
        """Let other processes tend what is left; a second call does nothing."""
        for forming in self._forming.values():
            forming.drop()
        self._forming.clear()
        for held in self._held.values():
            held.batch.release()

    def hurry(self) -> None:
        """Give up what is on its way; each batch's log says how far it is."""
        self._hurried = True
        self._leaving.set()
        for task in self._tasks.values():
            task.cancel()

    # Batches of others

    async def _watch(self) -> None:
        """Look after the batches that other processes tend: when one of these dies, its batch is ours."""
        assert self._rows is not None
        pause_s = min(WATCH_PAUSE_S, self._policy.poll_s)
        while True:
            await asyncio.sleep(pause_s)
            for name, watched in list(self._watched.items()):
                if watched.reason is not None:
                    continue
                try:
                    if name in self.shelf.open_batches():
                        batch = self.shelf.take(name)
                        if batch is None:
                            continue
                        batch.release()
                        del self._watched[name]
                        self._look_up(name)
                        if (held := self._held.get(name)) is not None:
                            held.jobs = watched.jobs
                            self._spawn(held)
                        elif (again := self._watched.get(name)) is not None:
                            again.jobs = watched.jobs
                        else:
                            self._unhold(watched)
                        continue
                except StoreError as error:
                    self._journal.record(BatchTrouble(name, str(error), is_stranded=False))
                    continue
                del self._watched[name]
                self._unhold(watched)

    def _unhold(self, watched: Watched) -> None:
        assert self._rows is not None
        for job in watched.jobs.values():
            self._rows.batch_unheld(job)
        self._rows.batches_moved()

    def _strand_watched(self) -> None:
        """Rows of batches that nobody here can tend wait in vain."""
        assert self._rows is not None
        for watched in self._watched.values():
            if watched.reason is not None:
                jobs, watched.jobs = watched.jobs, {}
                for job in jobs.values():
                    self._rows.batch_stranded(job, watched.reason)

    # One batch

    def _spawn(self, held: Held) -> None:
        name = held.intent.batch
        if self._rows is None or name in self._tasks or self._leaving.is_set():
            return
        spans = self._spans.get(held.endpoint.name)
        held.usual_s = median(spans) if spans else None
        task = asyncio.get_running_loop().create_task(self._tend(held))
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def _tend(self, held: Held) -> None:
        assert self._rows is not None
        while not self._leaving.is_set() or self._is_at_hand(held):
            held.is_busy = True
            try:
                pause_s = await self._step(held)
                if held.failures:  # it is over: the same trouble would be news
                    held.failures, held.told = 0, None
            except (ProviderError, StoreError, BadLogError) as error:
                if isinstance(error, RequestRejectedError | BadLogError) and not self._may_appear(
                    held, error
                ):
                    self._strand(held, _what_to_do(held, str(error)))
                    return
                held.failures += 1
                self._tell(held, str(error))
                hint = getattr(error, "retry_after_s", None) or 0.0
                pause_s = max(hint, poll_pause_s(held.age_s, self._policy.poll_s, held.failures))
            except asyncio.CancelledError:
                return
            except Exception as error:  # noqa: BLE001 (a bug in one batch: the others are brought in first)
                self._strand(held, f"internal error: {error!r}")
                self._rows.batch_broken(error)
                return
            finally:
                held.is_busy = False
            held.was_looked_at = True
            if pause_s is None:
                return
            self._rows.batches_moved()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._leaving.wait()

    def _may_appear(self, held: Held, error: Exception) -> bool:
        """Whether a batch that the provider does not find was made only just now."""
        story = held.batch.story
        is_made = story.created_s is not None and story.status is None
        is_new = is_made and held.age_s < self._policy.settle_s
        return is_new and isinstance(error, RequestRejectedError) and error.status == 404

    def _is_at_hand(self, held: Held) -> bool:
        """Whether a batch has ended, so that a run which leaves may bring in what it has brought."""
        step = next_step(held.batch.story, wants_file=held.endpoint.provider.wants_file)
        return step in (Step.FETCH, Step.COMMIT, Step.GIVE_BACK) and not held.failures and not self._hurried

    def _tell(self, held: Held, error: str) -> None:
        """Say a trouble once."""
        if held.told != error:
            held.told = error
            self._journal.record(BatchTrouble(held.intent.batch, error, is_stranded=False))

    def _strand(self, held: Held, reason: str) -> None:
        """This run can do no more for a batch; it stays as it is, and holds its rows."""
        assert self._rows is not None
        self._journal.record(BatchTrouble(held.intent.batch, reason, is_stranded=True))
        jobs, held.jobs = held.jobs, {}
        for job in jobs.values():
            self._rows.batch_stranded(job, reason)
        self._rows.batches_moved()

    async def _step(self, held: Held) -> float | None:
        """Do the next step of a batch; returns seconds until the one after, ``None`` when there is none."""
        batch, provider = held.batch, held.endpoint.provider
        step = next_step(batch.story, wants_file=provider.wants_file)
        if step is Step.UPLOAD:
            try:
                await self._upload(held)
            except RequestRejectedError as error:
                self._refuse(held, error)
            return 0.0
        if step is Step.CREATE:
            async with held.endpoint.creating:
                return await self._create(held)
        if step is Step.SEEK:
            async with held.endpoint.creating:
                return await self._seek(held)
        if step is Step.POLL:
            return await self._poll(held)
        if step is Step.FETCH:
            return await self._fetch(held)
        if step is Step.COMMIT:
            await self._commit(held)
        else:
            await self._give_back(held)
        return None

    async def _upload(self, held: Held) -> None:
        batch, provider = held.batch, held.endpoint.provider
        name, file_id = f"genworker-{held.intent.nonce}.jsonl", None
        if held.resumed:
            file_id = await provider.find_upload(name, held.intent.size_bytes)
        if file_id is None:
            held.resumed = True  # what is sent from here on may be there though its answer is lost
            file_id = await provider.upload(batch.requests_path, name)
        batch.note(Line.UPLOADED, file_id=file_id)

    async def _create(self, held: Held) -> float:
        batch, provider = held.batch, held.endpoint.provider
        if self._leaving.is_set():
            return 0.0
        # The times of the listing itself: a clock of another kind might speak of another time.
        story, marks = batch.story, self._marks(held)
        try:
            listing = await provider.newest()
        except RequestRejectedError as error:
            if story.creates:
                raise
            self._refuse(held, error)  # without a listing a lost batch could never be found again
            return 0.0
        own = [each for each in listing if story.creates and not each.marks.isdisjoint(marks)]
        if own:  # an earlier create has taken effect after all
            self._found(held, own[0].batch_id)
            return 0.0
        known = [each.created_s for each in listing if each.created_s != math.inf]
        since_s = max(known, default=CLOCK_MARGIN_S) - CLOCK_MARGIN_S
        before = [] if marks else [each.batch_id for each in listing if each.created_s >= since_s]
        batch.note(Line.CREATING, server_s=since_s, before=before)
        try:
            batch_id = await provider.create(
                batch.requests_path, held.intent.count, story.file_id, held.intent.nonce
            )
        except ProviderError as error:
            if not _is_certain_no(error):
                self._note_sought(held)
                raise
            if not isinstance(error, RequestRejectedError):
                batch.note(Line.REFUSED, again=True, reason=str(error))
                raise
            self._refuse(held, error)
            return 0.0
        batch.note(Line.CREATED, batch_id=batch_id)
        self._journal.record(BatchCreated(held.intent.batch, batch_id, was_lost=False))
        return self._policy.poll_s

    def _refuse(self, held: Held, error: RequestRejectedError) -> None:
        """The provider will not have the batch, and nothing of it has begun: its rows go back."""
        held.batch.note(Line.REFUSED, again=False, reason=str(error))
        held.refusal = error

    def _found(self, held: Held, batch_id: str) -> None:
        held.batch.note(Line.CREATED, batch_id=batch_id)
        self._journal.record(BatchCreated(held.intent.batch, batch_id, was_lost=True))

    def _note_sought(self, held: Held) -> None:
        """No call of this process is out any more: from here on the settling time counts."""
        held.batch.note(Line.SOUGHT, machine=machine_tag())
        held.sought_at = asyncio.get_running_loop().time()
        held.listings.clear()

    def _sought_for_s(self, held: Held) -> float:
        """For how long no call has been out, by the clock that says the least."""
        since_s = held.batch.story.sought_s or math.inf
        passed = time.time() - since_s
        if held.sought_at is not None:  # a wall clock may be set, and a machine may sleep
            passed = min(passed, asyncio.get_running_loop().time() - held.sought_at)
        return passed

    async def _seek(self, held: Held) -> float | None:
        batch, provider, settle_s = held.batch, held.endpoint.provider, self._policy.settle_s
        story = batch.story
        if story.sought_s is None or time.time() < story.sought_s or story.sought_by != machine_tag():
            self._note_sought(held)
            story = batch.story
        assert story.sought_s is not None
        asked_s = story.sought_s + self._sought_for_s(held)
        listing = await provider.find(story.since_s or 0.0)
        late = [entry for entry in held.listings if entry[0] >= story.sought_s + settle_s]
        held.listings = [*late[-1:], (asked_s, listing)]
        verdict = seek(
            story,
            [found for _, found in held.listings],
            held.listings[0][0],
            marks=self._marks(held),
            count=held.intent.count,
            known=self._known_ids(held.intent.batch),
            strangers=held.strangers,
            ours=held.ours,
            same_key=await self._has_same_key(held),
            settle_s=settle_s,
        )
        match verdict:
            case Found(batch_id, twins):
                self._found(held, batch_id)
                for twin in twins:
                    await self._cancel_twin(held, twin)
                return 0.0
            case Absent():
                batch.note(Line.ABSENT)
                held.listings.clear()
                return 0.0
            case AskPerson(why):
                self._strand(held, _what_to_do(held, why))
                return None
            case Wait(until_s, why, suspects):
                self._tell(held, why)
                if await self._know_one(held, listing, suspects):
                    return 0.0
                longest = self._policy.poll_s
                return longest if until_s is None else min(longest, max(0.0, until_s - asked_s) + 0.01)

    async def _know_one(self, held: Held, listing: Sequence[Listed], suspects: Collection[str]) -> bool:
        """Look whose one of the suspected batches is; ``False`` when none of them can be known yet."""
        for listed in listing:
            if listed.batch_id not in suspects or not listed.has_ended:
                continue
            try:
                name = await held.endpoint.provider.first_name(listed.batch_id)
            except RequestRejectedError:
                continue  # its results are not to be had: it may be ours all the same
            if name is None:
                continue
            is_own = number_of(name, held.intent.nonce, held.intent.count) is not None
            (held.ours if is_own else held.strangers).add(listed.batch_id)
            return True
        return False

    def _marks(self, held: Held) -> Collection[str]:
        if not held.endpoint.provider.has_marks:
            return ()
        return [mark for mark in (held.intent.nonce, held.batch.story.file_id) if mark is not None]

    async def _has_same_key(self, held: Held) -> bool:
        file_id = held.batch.story.file_id
        if file_id is not None:
            return await held.endpoint.provider.has_upload(file_id)
        return held.endpoint.key_tag == held.intent.key_tag

    def _known_ids(self, but: str) -> set[str]:
        """The provider's names for all other batches of this data root."""
        known: set[str] = set()
        for name in self.shelf.open_batches():
            if name != but:
                story = self.shelf.peek(name)[1]
                known.update(story.twins, [story.batch_id] if story.batch_id else [])
        for record in self.shelf.settled():
            known.update(str(each) for each in (record.get("batch_id"), *(record.get("twins") or ())) if each)
        return known

    async def _cancel_twin(self, held: Held, twin: str) -> None:
        """Have a second batch of the same requests ended; what it has answered is fetched, and paid."""
        if twin not in held.batch.story.twins:
            held.batch.note(Line.TWIN, batch_id=twin)
            what = f"the provider has a second batch of the same requests, {twin}; it is cancelled"
            self._journal.record(BatchTrouble(held.intent.batch, what, is_stranded=False))
        with contextlib.suppress(ProviderError):
            await held.endpoint.provider.cancel(twin)
            held.cancelled.add(twin)

    async def _poll(self, held: Held) -> float:
        batch, provider = held.batch, held.endpoint.provider
        story = batch.story
        assert story.batch_id is not None
        if story.was_absent and provider.has_marks:
            for listed in await provider.find(story.since_s or 0.0):
                if listed.batch_id != story.batch_id and not listed.marks.isdisjoint(self._marks(held)):
                    if listed.batch_id not in held.cancelled and not listed.has_ended:
                        await self._cancel_twin(held, listed.batch_id)
                    elif listed.batch_id not in batch.story.twins:
                        batch.note(Line.TWIN, batch_id=listed.batch_id)
        look = await provider.look(story.batch_id)
        too_old = held.age_s > self._policy.max_wait_s
        if look.refusal is not None:
            batch.note(
                Line.REFUSED,
                again=False,
                reason=look.refusal,
                bad_lines=look.bad_lines,
                is_over_limit=look.is_over_limit,
            )
            return 0.0
        if look.is_final and (look.is_complete or too_old or self._has_waited(held, look)):
            batch.note(Line.ENDED, status=look.status, results=dict(look.results), answered=look.answered)
            return 0.0
        if too_old and not story.is_cancelling and not look.is_final:
            try:
                await provider.cancel(story.batch_id)
            except RequestRejectedError as error:  # it is about to end by itself
                self._tell(held, f"it cannot be cancelled: {error}")
            else:
                batch.note(Line.CANCELLING)
        return poll_pause_s(held.age_s, self._policy.poll_s)

    def _has_waited(self, held: Held, look: Look) -> bool:
        """Whether lines that cost nothing have been waited for long enough."""
        now = asyncio.get_running_loop().time()
        held.ended_at = now if held.ended_at is None else held.ended_at
        passed = now - held.ended_at
        if look.ended_s is not None:
            passed = max(passed, time.time() - look.ended_s)
        return look.lacks_errors and passed >= NO_ERRORS_S

    async def _fetch(self, held: Held) -> float:
        batch, provider = held.batch, held.endpoint.provider
        for name, source in dict(batch.story.facts.get("results") or {}).items():
            await self._download(held, str(name), str(source))
        answered = batch.story.facts.get("answered")
        if isinstance(answered, int) and held.short_fetches < SHORT_FETCHES:
            lines = await asyncio.to_thread(batch.count_lines)
            if lines < answered:
                held.short_fetches += 1
                await asyncio.to_thread(batch.drop_results)
                what = f"its results have {lines} lines, and {answered} answers are counted"
                raise ProviderUnavailableError(what)
        if (doubt := await self._hidden_twins(held)) is not None:
            self._tell(held, doubt)
            return poll_pause_s(0.0, self._policy.poll_s)
        for twin in batch.story.twins:
            look = await provider.look(twin)
            if not look.is_final:
                if twin not in held.cancelled:
                    await self._cancel_twin(held, twin)
                self._tell(held, f"its twin {twin} has not ended yet")
                return poll_pause_s(0.0, self._policy.poll_s)
            for name, source in look.results.items():
                await self._download(held, f"twin-{twin}-{name}", source)
        batch.note(Line.FETCHED)
        return 0.0

    async def _hidden_twins(self, held: Held) -> str | None:
        """Look for twins where a listing shows no mark: a create that was given up may have made one.

        Returns:
            Why that cannot be known yet; ``None`` when it is.
        """
        story, provider = held.batch.story, held.endpoint.provider
        if not story.was_absent or provider.has_marks:
            return None
        known = {story.batch_id, *story.twins, *story.before, *held.strangers}
        known |= self._known_ids(held.intent.batch)
        while True:
            listing = await provider.find(story.since_s or 0.0)
            suspects = [
                each.batch_id
                for each in listing
                if each.batch_id not in known
                and each.created_s >= (story.since_s or 0.0)
                and each.count in (held.intent.count, None)
            ]
            if not suspects:
                return None
            if not await self._know_one(held, listing, suspects):
                return f"{suspects[0]} may be its twin; that will be seen when it has ended"
            known |= held.strangers
            for twin in held.ours - known:
                held.batch.note(Line.TWIN, batch_id=twin)
            known |= held.ours

    async def _download(self, held: Held, name: str, source: str) -> None:
        if f"{name}.results" in held.batch.result_names():
            return
        stream = held.batch.part(name)
        try:
            await held.endpoint.provider.fetch(source, stream, held.batch.requests_path)
            if stream.tell() and not await asyncio.to_thread(_ends_whole, held, name, stream):
                raise ProviderUnavailableError("the download ends in the middle of a line")
            await asyncio.to_thread(held.batch.keep_part, name, stream)
        except OSError as error:
            raise cannot_write(error, held.batch.place) from error
        finally:
            stream.close()

    # What it brought

    async def _commit(self, held: Held) -> None:
        """Bring each line of the results to its row, then close the batch."""
        tally = _Tally(held)
        limit = asyncio.Semaphore(COMMITS_AT_ONCE)
        pending: set[asyncio.Task[bool]] = set()
        stored = True

        async def bring(item: Item, result: BatchResult) -> bool:
            try:
                return await self._answered(held, item, result, tally)
            finally:
                limit.release()

        try:
            for name in held.batch.result_names():
                is_twin = name.startswith("twin-")
                for line in held.batch.result_lines(name):
                    result = held.endpoint.provider.decode(line)
                    number = (
                        None
                        if result is None
                        else number_of(result.custom_id, held.intent.nonce, held.intent.count)
                    )
                    if result is None or number is None or is_twin or tally.seen[number]:
                        tally.aside.append(line)
                        if is_twin and result is not None and number is not None:
                            tally.twin(held.batch.item(number), result)
                        continue
                    tally.seen[number] = 1
                    item = held.batch.item(number)
                    if result.completion is None:
                        tally.failed(item, result.error)
                        continue
                    await limit.acquire()
                    task = asyncio.get_running_loop().create_task(bring(item, result))
                    pending.add(task)
                    if len(pending) >= COMMITS_AT_ONCE:
                        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                        stored = all([task.result() for task in done]) and stored
        finally:
            if pending:
                done, _ = await asyncio.wait(pending)
                stored = all([task.result() for task in done]) and stored
        for number, seen in enumerate(tally.seen):
            if not seen:
                tally.missing(held.batch.item(number))
        for row in tally.rows:
            if isinstance(row.error, MalformedAnswerError):
                stored = await self._keep_malformed(held, row) and stored
        if not stored:
            raise StoreError("answers of the batch could not be stored", path=str(held.batch.place))
        await self._settle(held, tally)

    async def _answered(self, held: Held, item: Item, result: BatchResult, tally: _Tally) -> bool:
        assert self._rows is not None
        completion = result.completion
        assert completion is not None
        money = tally.answered(item, completion)
        facts = AnswerFacts(
            response_model=completion.model,
            request_id=completion.request_id,
            finish_reason=completion.finish_reason,
            finish_word=completion.finish_word,
            usage=completion.usage,
            cost_usd=money.charge.known_usd if completion.usage.is_counted else None,
            told_cost_usd=completion.told_cost_usd,
            attempts=item.failures + item.lapses + 1,
            started_at=held.intent.formed_at,
            finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            latency_s=0.0,
        )
        answer = _answer(held, item, completion.text, facts.to_json(), completion.reasoning)
        standing = await self._standing(held, item, answer)
        job = held.jobs.pop(item.number, None)
        if job is not None:
            return await self._rows.batch_answered(job, answer, completion, standing, money)
        if held.is_ours:
            self._rows.batch_money(money)
        if standing is None:
            await self._store.commit(answer, replace=item.replace)
        return True

    async def _standing(self, held: Held, item: Item, answer: Answer) -> Generation | None:
        """What stands in the store of this very request, from a process that died while it brought it in."""
        if not held.resumed:
            return None
        found = await self._store.find(item.stage, item.gen_id)
        if found is not None and found.facts.record.get("batch") == answer.facts.record.get("batch"):
            return found
        return None

    async def _keep_malformed(self, held: Held, row: FailedRow) -> bool:
        """Keep what came instead of an answer, where the row has no more tries: it may have been paid for."""
        error = row.error
        assert isinstance(error, MalformedAnswerError)
        if row.failures < 2:
            return True
        facts = MalformedFacts(
            request_id=error.request_id,
            finish_reason=MALFORMED_REASON,
            finish_word=None,
            error=error.message,
            attempts=row.failures + row.lapses,
            started_at=held.intent.formed_at,
            finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        )
        answer = _answer(held, row.item, error.body, facts.to_json())
        if await self._standing(held, row.item, answer) is None:
            await self._store.commit(answer, replace=row.item.replace)
        return True

    async def _give_back(self, held: Held) -> None:
        """The batch will never run: its rows go back, or are refused."""
        story = held.batch.story
        tally = _Tally(held)
        reason = story.refusal or ""
        for item in held.batch.items():
            tally.seen[item.number] = 1
            if item.number in story.bad_lines:
                tally.refused(item, RequestRejectedError(f"the batch was refused for it: {reason}"))
            elif story.bad_lines or story.is_over_limit:
                tally.back(item)
            else:
                error = held.refusal or RequestRejectedError(
                    f"the batch was refused: {reason}", scope=Scope.LANE
                )
                if isinstance(error, RequestRejectedError) and error.scope is Scope.ROW:
                    error = RequestRejectedError(error.message, scope=Scope.LANE, status=error.status)
                tally.refused(item, error)
        await self._settle(held, tally)

    async def _settle(self, held: Held, tally: _Tally) -> None:
        """Close a batch, then free its rows: not before, since the open batch holds them."""
        assert self._rows is not None
        intent, story = held.intent, held.batch.story
        if tally.aside:
            path = await asyncio.to_thread(held.batch.set_aside, tally.aside, "foreign")
            what = (
                f"batch {intent.batch}: {len(tally.aside)} lines of its results belong to no row; see {path}"
            )
            self._journal.record(Warned(what))
        record = tally.record()
        await asyncio.to_thread(held.batch.settle, record)
        del self._held[intent.batch]
        add_settled(self._settled, record, self._cohort_id)
        self._spans.setdefault(intent.endpoint, []).extend(span_s(record))
        if held.is_ours:
            self.landed.add(tally.total)
        self._journal.record(
            BatchSettled(
                intent.batch,
                story.status or "refused",
                answered=tally.counts["answered"],
                failed=tally.counts["failed"],
                lapsed=tally.counts["lapsed"],
                missing=tally.counts["missing"],
                cost_usd=tally.total.spent_usd if intent.price is not None else None,
            )
        )
        if held.lane >= 0:
            over = story.is_over_limit
            self._rows.batch_over(held.lane, intent.count, held.tokens, is_over_limit=over)
        for row in tally.rows:
            job = held.jobs.pop(row.item.number, None)
            if job is not None:
                await self._rows.batch_failed(job, row)
            elif held.is_ours:
                self._rows.batch_money(row.money)
        self._rows.batches_moved()


class _Tally:
    """What a batch's rows have come to, and what they cost.

    Attributes:
        seen: a byte for each row that something came for.
        rows: those without an answer.
        aside: lines that belong to no row.
    """

    def __init__(self, held: Held) -> None:
        self.held = held
        self.seen = bytearray(held.intent.count)
        self.rows: list[FailedRow] = []
        self.aside: list[bytes] = []
        self.counts = dict.fromkeys(("answered", "failed", "lapsed", "missing"), 0)
        self.stages: dict[Stage, Part] = {}

    @property
    def total(self) -> Part:
        whole = Part()
        for part in self.stages.values():
            whole.add(part)
        return whole

    def answered(self, item: Item, completion: Completion) -> Settling:
        self.counts["answered"] += 1
        return Settling(item.worst, self._pay(item, completion))

    def twin(self, item: Item, result: BatchResult) -> None:
        """A line of a second batch of the same requests: paid for, and of no use."""
        if result.completion is not None:
            self._pay(item, result.completion)
        elif isinstance(result.error, MalformedAnswerError) or (
            result.has_lapsed and not self.held.intent.is_free_when_lapsed
        ):
            part = self._part(item)
            part.calls += 1
            self._uncertain(item, part)

    def _pay(self, item: Item, completion: Completion) -> Charge:
        price, usage = self.held.intent.price, completion.usage
        part = self._part(item)
        part.calls += 1
        if usage.input_tokens is None or usage.output_tokens is None:
            return self._uncertain(item, part)
        tokens = usage.input_tokens + usage.output_tokens
        part.tokens += tokens
        if price is None:
            self._unprice(part)
            return Charge(calls=1, tokens=tokens, priced=False)
        usd = max(price.cost(usage) or ZERO, completion.told_cost_usd or ZERO)
        part.spent_usd += usd
        return Charge(usd, 1, tokens)

    def _uncertain(self, item: Item, part: Part) -> Charge:
        part.uncertain_calls += 1
        part.possible_usd += item.worst.usd
        part.possible_tokens += item.worst.tokens
        if self.held.intent.price is None:
            self._unprice(part)
        return item.worst

    def _unprice(self, part: Part) -> None:
        model = self.held.intent.model_id or self.held.intent.model
        part.unpriced[model] = part.unpriced.get(model, 0) + 1

    def _part(self, item: Item) -> Part:
        return self.stages.setdefault(item.stage, Part())

    def _row(self, item: Item, error: ProviderError | None, charge: Charge, failed: int, lapsed: int) -> None:
        money = Settling(item.worst, charge)
        self.rows.append(FailedRow(item, error, item.failures + failed, item.lapses + lapsed, money))

    def failed(self, item: Item, error: ProviderError | None) -> None:
        """A line without an answer: an error, or, with none, a request that was never run."""
        part = self._part(item)
        part.calls += 1
        if error is None:
            self.counts["lapsed"] += 1
            free = self.held.intent.is_free_when_lapsed
            charge = Charge(calls=1) if free else self._uncertain(item, part)
            self._row(item, None, charge, 0, 1)
            return
        self.counts["failed"] += 1
        billed = isinstance(error, MalformedAnswerError)
        charge = self._uncertain(item, part) if billed else Charge(calls=1)
        self._row(item, error, charge, 1, 0)

    def missing(self, item: Item) -> None:
        """A row that no line came for. Its answer may have been made and billed, unless the counts say no."""
        self.counts["missing"] += 1
        part = self._part(item)
        part.calls += 1
        all_there = self.held.batch.story.facts.get("answered") == self.counts["answered"]
        charge = Charge(calls=1) if all_there else self._uncertain(item, part)
        error = ProviderUnavailableError("the batch's results have no line for it")
        self._row(item, error, charge, 1, 0)

    def refused(self, item: Item, error: ProviderError) -> None:
        """Nothing was run, and nothing is billed."""
        self.counts["failed"] += 1
        self._row(item, error, NOTHING, 0, 0)

    def back(self, item: Item) -> None:
        """Nothing was run, for a reason that is not the row's."""
        self.counts["lapsed"] += 1
        self._row(item, None, NOTHING, 0, 0)

    def record(self) -> dict[str, Any]:
        """What stays of a batch that is closed."""
        intent, story = self.held.intent, self.held.batch.story
        return {
            "batch": intent.batch,
            "cohort_id": intent.cohort_id,
            "run_id": intent.run_id,
            "endpoint": intent.endpoint,
            "model_id": intent.model_id,
            "model": intent.model,
            "batch_id": story.batch_id,
            "twins": list(story.twins),
            "status": story.status or "refused",
            "refusal": story.refusal,
            "count": intent.count,
            **self.counts,
            "foreign": len(self.aside),
            "formed_at": intent.formed_at,
            "created_s": story.created_s,
            "ended_s": story.facts.get("at_s"),
            "settled_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "stages": {stage.value: part_to_json(part) for stage, part in self.stages.items()},
        }


def _answer(held: Held, item: Item, text: str, came: Mapping[str, Any], reasoning: str = "") -> Answer:
    name = {"id": held.intent.batch, "number": item.number}
    facts = Facts({**item.facts, **came, "batch": name})
    return Answer(item.stage, item.gen_id, item.prompt, text, facts, reasoning)


def _is_certain_no(error: ProviderError) -> bool:
    """Whether a create that failed has made nothing for certain."""
    if error.status is not None:
        return 400 <= error.status < 500 and error.status not in (408, 409, 425)
    return isinstance(error, RateLimitedError) or not error.may_be_billed


def _what_to_do(held: Held, why: str) -> str:
    name, story = held.intent.batch, held.batch.story
    if story.is_uncertain:
        fix = f"when you know that the provider has none: genworker batches resubmit {name}"
        return f"batch {name}: {why}; {fix}"
    if story.status is not None:
        fix = f"to go on without: genworker batches forget {name}"
        return f"batch {name}: its results cannot be had: {why}; {fix}"
    return f"batch {name}: {why}"


def _ends_whole(held: Held, name: str, stream: Any) -> bool:
    """Whether the last line of a download is one: ended, or at least readable."""
    stream.flush()
    with (held.batch.place / f"{name}.part").open("rb") as content:
        size = content.seek(0, os.SEEK_END)
        content.seek(max(0, size - 1))
        if content.read(1) == b"\n":
            return True
        content.seek(max(0, size - (1 << 20)))
        last = content.read().rpartition(b"\n")[2]
        return held.endpoint.provider.decode(last) is not None
