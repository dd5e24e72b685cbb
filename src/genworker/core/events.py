"""The lines of a run's journal, as types: the runner writes them, listeners hear them, the ledger reads them.

A line is a JSON object: ``time``, the fields of the event in their order, and ``event``, its word. Names
and order are a file format: old journals are read for as long as their store lives. A new field needs a type
that takes ``None``, since older lines lack it. An event whose word this version does not know is no fault: a
newer one may have written it.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

from genworker.core.completion import FinishReason, Usage
from genworker.core.facts import Written, field_names, money, whole
from genworker.core.stages import Stage


class OddEventError(ValueError):
    """A line that is no event: not an object, or a field that is missing or of another kind."""


@dataclass(frozen=True, slots=True)
class Event(Written):
    """Something that happened in a run."""

    word: ClassVar[str]


# A run


@dataclass(frozen=True, slots=True)
class RunStarted(Event):
    """The first line of a run's journal.

    Attributes:
        rows: of the membership.
        command: the arguments of the process.
    """

    word = "run_started"
    run_id: str
    cohort: str
    version: str
    rows: int
    pid: int
    command: list[str]


@dataclass(frozen=True, slots=True)
class WorkerStarted(Event):
    """The first line of the journal of a worker, one of several of a run.

    Attributes:
        driver: the run's id, whose own journal says how it began and ended.
        slot: the worker's place among the others, from 0; one that is started anew has the same.
    """

    word = "worker_started"
    run_id: str
    cohort: str
    version: str
    driver: str
    slot: int
    pid: int
    host: str


@dataclass(frozen=True, slots=True)
class WorkerLost(Event):
    """A worker's process has ended before its time; its calls that were out count at their worst case.

    Attributes:
        worker: its run's id.
        why: as far as it is known.
    """

    word = "worker_lost"
    worker: str
    slot: int
    why: str


@dataclass(frozen=True, slots=True)
class ReparseStarted(Event):
    """The first line of the journal of a `reparse`."""

    word = "reparse_started"
    run_id: str
    cohort: str


@dataclass(frozen=True, slots=True)
class RunEnded(Event):
    """The last line of a run that ended by itself.

    Attributes:
        spent_usd: US dollars of the cohort over all runs, as far as priced.
        capped: the cap that ended it, in words.
        limits: what each lane was found to allow: its name to ``at_once`` and ``per_min``.
    """

    word = "run_ended"
    exit_code: int
    calls: int
    spent_usd: Decimal
    capped: str | None
    limits: Mapping[str, Mapping[str, float]] | None


@dataclass(frozen=True, slots=True)
class Interrupted(Event):
    """A signal asks the run to end.

    Attributes:
        deadline_s: seconds after which calls that are still out are abandoned.
    """

    word = "interrupted"
    signal: str
    deadline_s: float | None


@dataclass(frozen=True, slots=True)
class InterruptedAgain(Event):
    """A second signal: calls that are out are abandoned."""

    word = "interrupted_again"
    signal: str


@dataclass(frozen=True, slots=True)
class Warned(Event):
    """Something that a person should know."""

    word = "warning"
    what: str


@dataclass(frozen=True, slots=True)
class Locked(Event):
    """Another worker has the cohort; told to listeners only, since there is no journal yet.

    Attributes:
        then: what this one does, a word of ``IfLocked``.
    """

    word = "locked"
    cohort: str
    holder: str
    then: str


@dataclass(frozen=True, slots=True)
class LaneStopped(Event):
    """No more calls go to a lane."""

    word = "lane_stopped"
    lane: str
    error: str


@dataclass(frozen=True, slots=True)
class LimitChanged(Event):
    """A lane has changed its mind about what its endpoint takes.

    Attributes:
        what: "closed", "reopened", "rate", "number", "chance", "slow", "apart" or "server".
        why: the evidence in words.
    """

    word = "limit"
    lane: str
    what: str
    why: str


# A generation


@dataclass(frozen=True, slots=True)
class Salvaged(Event):
    """A dead run's answer was found.

    Attributes:
        what: "committed", "kept_aside" or "dropped".
    """

    word = "salvaged"
    stage: Stage
    gen_id: str
    what: str


@dataclass(frozen=True, slots=True)
class ParsedAtStart(Event):
    """An answer that no parser could read before could be read when a run began; no call was made."""

    word = "reparsed"
    stage: Stage
    gen_id: str


@dataclass(frozen=True, slots=True)
class Reparsed(Event):
    """A `reparse` changed what an answer says.

    Attributes:
        change: a word of ``genworker.run.reparse.Change``.
    """

    word = "reparsed"
    stage: Stage
    gen_id: str
    change: str


@dataclass(frozen=True, slots=True)
class AlreadyThere(Event):
    """Another worker has made the generation in the meantime."""

    word = "already_there"
    stage: Stage
    gen_id: str


@dataclass(frozen=True, slots=True)
class TakenElsewhere(Event):
    """Another worker has the generation in hand; it is looked at again later."""

    word = "taken_elsewhere"
    stage: Stage
    gen_id: str


# A call: `Calling` stands before it, one of the others behind it


@dataclass(frozen=True, slots=True)
class Calling(Event):
    """A call is about to be made; this line is on disk before the first byte goes out.

    Attributes:
        model_id: the model's id in the catalogue.
        model: its name at the endpoint.
        worst_usd: most US dollars that it may cost; ``None`` without a price.
        worst_tokens: most tokens, of prompt and answer together.
    """

    word = "calling"
    stage: Stage
    gen_id: str
    attempt: int
    endpoint: str | None
    model_id: str | None
    model: str | None
    worst_usd: Decimal | None
    worst_tokens: int | None


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """An answer came, good or not.

    Attributes:
        cost_usd: US dollars; ``None`` where no price or no count of tokens is known.
        latency_s: seconds from sending to the last byte.
        server: which of the endpoint's servers it was, where there are several.
    """

    word = "answered"
    stage: Stage
    gen_id: str
    attempt: int
    endpoint: str | None
    model: str | None
    finish_reason: FinishReason | None
    usage: Usage
    cost_usd: Decimal | None
    request_id: str | None
    latency_s: float | None
    server: str | None = None


@dataclass(frozen=True, slots=True)
class Retried(Event):
    """A call failed, and another one will be made.

    Attributes:
        kind: the error's class, without "Error".
        status: the HTTP status, where there was one.
        may_be_billed: whether the endpoint may charge for it.
        pause_s: seconds until the next try, at least.
        fallback: the lane that takes over; ``None`` when the same one tries again.
    """

    word = "retry"
    stage: Stage
    gen_id: str
    attempt: int
    kind: str
    status: int | None
    error: str
    request_id: str | None
    may_be_billed: bool
    latency_s: float | None
    pause_s: float
    fallback: str | None


@dataclass(frozen=True, slots=True)
class CallStopped(Event):
    """A call failed, and its lane takes no more: the row waits for another run. Fields as of `Retried`."""

    word = "stopped"
    stage: Stage
    gen_id: str
    attempt: int
    kind: str
    status: int | None
    error: str
    request_id: str | None
    may_be_billed: bool
    latency_s: float | None


@dataclass(frozen=True, slots=True)
class CallFailed(Event):
    """A call failed, and so has its row. Fields as of `Retried`."""

    word = "failed"
    stage: Stage
    gen_id: str
    attempt: int
    kind: str
    status: int | None
    error: str
    request_id: str | None
    may_be_billed: bool
    latency_s: float | None


@dataclass(frozen=True, slots=True)
class RowFailed(Event):
    """A row failed before it was asked for: its prompt could not be made."""

    word = "failed"
    stage: Stage
    gen_id: str
    attempt: int
    kind: str
    error: str


@dataclass(frozen=True, slots=True)
class Abandoned(Event):
    """A call was given up while it was out: the endpoint may charge for it."""

    word = "abandoned"
    stage: Stage
    gen_id: str
    attempt: int


CALL_ENDS = (Answered, Retried, CallStopped, CallFailed, RowFailed, Abandoned)
"""What may stand behind a `Calling` of the same generation."""


# Batches; what they cost stands in their own records, which the ledger reads


@dataclass(frozen=True, slots=True)
class BatchFormed(Event):
    """A batch is on disk and holds its rows; the provider has not heard of it yet.

    Attributes:
        rows: in it.
        worst_usd: most US dollars that it may cost; ``None`` without a price.
    """

    word = "batch_formed"
    batch: str
    endpoint: str
    model_id: str
    rows: int
    worst_usd: Decimal | None


@dataclass(frozen=True, slots=True)
class BatchCreated(Event):
    """The provider has a batch.

    Attributes:
        batch_id: its name there.
        was_lost: whether the answer to the call that made it was lost, and a listing showed it.
    """

    word = "batch_created"
    batch: str
    batch_id: str
    was_lost: bool


@dataclass(frozen=True, slots=True)
class BatchTrouble(Event):
    """Something is amiss with a batch; unless it `is_stranded`, it is tried again."""

    word = "batch_trouble"
    batch: str
    error: str
    is_stranded: bool


@dataclass(frozen=True, slots=True)
class BatchSettled(Event):
    """A batch is closed: what it brought is in the store.

    Attributes:
        status: the provider's last word.
        answered, failed, lapsed, missing: its rows, by what came of them.
        cost_usd: known to be spent; ``None`` without a price.
    """

    word = "batch_settled"
    batch: str
    status: str
    answered: int
    failed: int
    lapsed: int
    missing: int
    cost_usd: Decimal | None


# The store


@dataclass(frozen=True, slots=True)
class StoreRefused(Event):
    """The disk refuses an answer; it is in memory and is tried again.

    Attributes:
        pause_s: seconds until then; ``None`` when it was the last try.
    """

    word = "store_refused"
    stage: Stage
    gen_id: str
    error: str
    pause_s: float | None


@dataclass(frozen=True, slots=True)
class AnswerNotStored(Event):
    """An answer could not be put in its place."""

    word = "answer_not_stored"
    stage: Stage
    gen_id: str
    error: str


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """A generation is in its place.

    Attributes:
        mode: "llm" or "copy".
        failure: why it is not usable, a word of ``FailureKind``; ``None`` when it is.
        reason: the same in plain words.
    """

    word = "committed"
    stage: Stage
    gen_id: str
    mode: str
    failure: str | None
    reason: str | None


# Reading

EVENTS: tuple[type[Event], ...] = (
    RunStarted, WorkerStarted, WorkerLost, ReparseStarted, RunEnded, Interrupted, InterruptedAgain, Warned,
    Locked, LaneStopped, LimitChanged, Salvaged, Reparsed, ParsedAtStart, AlreadyThere, TakenElsewhere,
    Calling, Answered,
    Retried, CallStopped, CallFailed, RowFailed, Abandoned, StoreRefused, AnswerNotStored, Committed,
    BatchFormed, BatchCreated, BatchTrouble, BatchSettled,
)  # fmt: skip
"""Every event. Where two share a word, the one with more fields comes first: the other's line lacks some."""


def event_from_json(record: object) -> Event | None:
    """The event of a journal's line.

    Returns:
        ``None`` for a word that this version does not know.

    Raises:
        OddEventError: it is no event.
    """
    if not isinstance(record, dict):
        raise OddEventError("not a JSON object")
    word = record.get("event")
    if not isinstance(word, str):
        raise OddEventError("names no event")
    fault: OddEventError | None = None
    for kind, readers in _readers(word):
        try:
            return kind(*(read(record.get(name), name) for name, read in readers))
        except OddEventError as error:
            fault = fault or error
    if fault is not None:
        raise OddEventError(f"{word}: {fault}")
    return None


_Reader = Callable[[object, str], Any]
_READERS: dict[str, tuple[tuple[type[Event], tuple[tuple[str, _Reader], ...]], ...]] = {}


def _readers(word: str) -> tuple[tuple[type[Event], tuple[tuple[str, _Reader], ...]], ...]:
    """The classes of a word, each with what reads its fields; made when the word is first met."""
    found = _READERS.get(word)
    if found is None:
        made = []
        for kind in (event for event in EVENTS if event.word == word):
            hints = typing.get_type_hints(kind)
            made.append((kind, tuple((name, _reader(hints[name])) for name in field_names(kind))))
        found = tuple(made)
        if found:  # words from outside do not fill the memory
            _READERS[word] = found
    return found


def _reader(hint: Any) -> _Reader:
    """What reads a field of a type out of JSON, and refuses anything else."""
    optional = False
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
        optional = True
    convert = _CONVERT[typing.get_origin(hint) or hint]

    def read(value: object, name: str) -> Any:
        if value is None and optional:
            return None
        found = convert(value)
        if found is None:
            raise OddEventError(f"{name} is {type(value).__name__}")
        return found

    return read


def _word(kind: Callable[[Any], Any]) -> Callable[[object], Any]:
    def convert(value: object) -> Any:
        try:
            return kind(value)
        except ValueError:
            return None

    return convert


def _lanes(value: object) -> dict[str, dict[str, float]] | None:
    if not isinstance(value, dict):
        return None
    return {
        str(lane): {key: float(count) for key, count in found.items() if isinstance(count, int | float)}
        for lane, found in value.items()
        if isinstance(found, dict)
    }


_CONVERT: dict[Any, Callable[[object], Any]] = {
    str: lambda value: value if isinstance(value, str) else None,
    int: whole,
    float: lambda value: (
        float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
    ),
    bool: lambda value: value if isinstance(value, bool) else None,
    Decimal: money,
    Stage: _word(Stage),
    FinishReason: _word(FinishReason),
    Usage: Usage.from_json,
    list: lambda value: list(map(str, value)) if isinstance(value, list) else None,
    Mapping: _lanes,
}
