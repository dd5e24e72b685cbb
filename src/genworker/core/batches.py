"""Provider batches as rules: what a batch's log means, what comes next, whether a lost batch exists.

A batch costs half and is made by one call whose answer can be lost. So nothing here believes in a call: a
line is in the batch's log before each step that costs money, and what a line means is decided by `read_log`
and `next_step` alone. The edge does what they say. Nothing here knows a disk, a clock or an endpoint; a time
is a number of seconds since 1970.

The states of a batch, by the lines of its log:

=============  =======================================================  ====================================
state          the log's last word                                      what is done next (`Step`)
=============  =======================================================  ====================================
formed         nothing                                                  upload, where the API wants a file
uploaded       ``uploaded``, or ``absent``, or ``refused`` for now      create
creating       ``creating``: a call went out, its answer is not known   seek: is it there?
created        ``created``                                              poll
ended          ``ended``                                                fetch
fetched        ``fetched``                                              commit, then settle
refused        ``refused`` for good: it will never run                  give the rows back, then settle
=============  =======================================================  ====================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from enum import Enum, StrEnum
from typing import Any

from genworker.core.budget import Price, Tariff
from genworker.core.completion import Completion
from genworker.errors import ProviderError

# The log


class Line(StrEnum):
    """The kinds of lines in a batch's log."""

    UPLOADED = "uploaded"
    """The requests are at the provider, as a file; nothing runs yet."""
    CREATING = "creating"
    """The call that makes the batch is about to go out. From here on it may exist."""
    CREATED = "created"
    """The batch exists; its name there is known."""
    SOUGHT = "sought"
    """The answer of the last `CREATING` is lost, and no call of this process is out any more."""
    ABSENT = "absent"
    """The last `CREATING` has made no batch."""
    REFUSED = "refused"
    """The provider has said no: for now (``again``), or for good."""
    TWIN = "twin"
    """A second batch of the same requests has appeared."""
    CANCELLING = "cancelling"
    """The provider has been asked to cancel the batch."""
    ENDED = "ended"
    """The batch will not change any more."""
    FETCHED = "fetched"
    """Its results are on this disk, whole and synced."""


class Step(Enum):
    """What is to be done next with a batch."""

    UPLOAD = "upload"
    CREATE = "create"
    SEEK = "seek"
    POLL = "poll"
    FETCH = "fetch"
    COMMIT = "commit"
    GIVE_BACK = "give back"


class BadLogError(ValueError):
    """A batch's log says what no log can say."""


@dataclass(frozen=True, slots=True)
class Story:
    """What a batch's log says.

    Attributes:
        file_id: the provider's name for the uploaded requests.
        batch_id: the provider's name for the batch.
        since_s: by the times of the provider's own listing, before the first create; what is older is not
            this one.
        before: batches that were listed shortly before the first create: none of them is this one.
        asked_s: when the last create went out, by the clock of the machine that sent it.
        created_s: when the batch was made; ``None`` as long as it is not known to be.
        is_uncertain: a create went out and nobody knows yet what became of it.
        sought_s: since when no call of ours can still be under way.
        sought_by: the machine whose clock `sought_s` is by; another's may say something else.
        creates: calls that went out to make it.
        was_absent: a create was judged to have made nothing, so a late one would be a twin.
        twins: batches of the same requests that are not to run.
        refusal: why it will never run.
        is_over_limit: it was refused since the provider had too much in its queue.
        bad_lines: numbers, from 0, of requests that the provider named as the reason.
        status: the provider's last word on an ended batch.
        facts: what `ENDED` said besides.
    """

    file_id: str | None = None
    batch_id: str | None = None
    since_s: float | None = None
    before: tuple[str, ...] = ()
    asked_s: float | None = None
    created_s: float | None = None
    is_uncertain: bool = False
    sought_s: float | None = None
    sought_by: str | None = None
    creates: int = 0
    was_absent: bool = False
    twins: tuple[str, ...] = ()
    refusal: str | None = None
    is_over_limit: bool = False
    bad_lines: tuple[int, ...] = ()
    is_cancelling: bool = False
    status: str | None = None
    is_fetched: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """The state for people, one word."""
        if self.refusal is not None:
            return "refused"
        if self.is_fetched:
            return "fetched"
        if self.status is not None:
            return "ended"
        if self.is_cancelling:
            return "cancelling"
        if self.batch_id is not None:
            return "running"
        if self.is_uncertain:
            return "uncertain"
        return "formed" if self.file_id is None else "uploaded"


def read_log(lines: Iterable[Mapping[str, Any]]) -> Story:
    """Fold a log into what it says.

    Args:
        lines: each with ``line`` (a `Line`), ``at_s`` and what belongs to its kind.

    Raises:
        BadLogError: a line is not known, lacks what belongs to it, or cannot follow those before it.
    """
    story = Story()
    for line in lines:
        try:
            story = _after(story, Line(line["line"]), line)
        except (KeyError, TypeError, ValueError) as error:
            raise BadLogError(f"line {dict(line)!r}: {error}") from error
    return story


def _after(story: Story, kind: Line, line: Mapping[str, Any]) -> Story:
    match kind:
        case Line.UPLOADED:
            return replace(story, file_id=str(line["file_id"]))
        case Line.CREATING:
            if story.is_uncertain or story.batch_id is not None or story.refusal is not None:
                raise ValueError("a second create cannot go out before the fate of the first is known")
            since, before = story.since_s, story.before
            if since is None:  # of the first one alone: a later listing may show what that one has made
                since, before = float(line["server_s"]), tuple(map(str, line.get("before") or ()))
            return replace(
                story,
                is_uncertain=True,
                asked_s=float(line.get("at_s") or 0.0),
                sought_s=None,
                creates=story.creates + 1,
                since_s=since,
                before=before,
            )
        case Line.CREATED:
            return replace(
                story,
                batch_id=str(line["batch_id"]),
                created_s=float(line["at_s"]),
                is_uncertain=False,
                sought_s=None,
            )
        case Line.SOUGHT:
            return replace(story, sought_s=float(line["at_s"]), sought_by=line.get("machine"))
        case Line.ABSENT:
            return replace(story, is_uncertain=False, sought_s=None, was_absent=True)
        case Line.REFUSED if line.get("again"):
            return replace(story, is_uncertain=False, sought_s=None)
        case Line.REFUSED:
            bad = tuple(int(number) for number in line.get("bad_lines") or ())
            over = bool(line.get("is_over_limit"))
            return replace(
                story, is_uncertain=False, refusal=str(line["reason"]), is_over_limit=over, bad_lines=bad
            )
        case Line.TWIN:
            return replace(story, twins=(*story.twins, str(line["batch_id"])))
        case Line.CANCELLING:
            return replace(story, is_cancelling=True)
        case Line.ENDED:
            return replace(story, status=str(line["status"]), facts=dict(line))
        case Line.FETCHED:
            return replace(story, is_fetched=True)


def next_step(story: Story, *, wants_file: bool) -> Step:
    """What is to be done with a batch whose log says this.

    Args:
        wants_file: whether the API takes the requests as a file first.
    """
    if story.refusal is not None:
        return Step.GIVE_BACK
    if story.is_fetched:
        return Step.COMMIT
    if story.status is not None:
        return Step.FETCH
    if story.batch_id is not None:
        return Step.POLL
    if story.is_uncertain:
        return Step.SEEK
    if wants_file and story.file_id is None:
        return Step.UPLOAD
    return Step.CREATE


# Whether a batch exists whose create was not answered


@dataclass(frozen=True, slots=True)
class Listed:
    """One batch in a provider's listing.

    Attributes:
        marks: what we can know it by: our nonce, the uploaded file's name.
        created_s: by the provider's clock; infinite where the listing does not say.
        count: its requests; ``None`` where the listing does not say.
        has_ended: whether its results can be looked at.
    """

    batch_id: str
    marks: frozenset[str]
    created_s: float
    count: int | None = None
    has_ended: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """The batch is there. `twins` are further ones of the same requests."""

    batch_id: str
    twins: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wait:
    """Nobody can know yet.

    Attributes:
        until_s: when to look again; ``None``: at the next usual time.
        why: for people.
        suspects: batches that may be ours; once ended, their first result tells.
    """

    until_s: float | None
    why: str
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Absent:
    """The create has made no batch; another one may go out."""


@dataclass(frozen=True, slots=True)
class AskPerson:
    """It cannot be found out from here."""

    why: str


Verdict = Found | Wait | Absent | AskPerson


def seek(
    story: Story,
    listings: Sequence[Sequence[Listed]],
    now_s: float,
    *,
    marks: Collection[str],
    count: int,
    known: Collection[str],
    strangers: Collection[str] = (),
    ours: Collection[str] = (),
    same_key: bool,
    settle_s: float,
) -> Verdict:
    """Judge whether the last create has made a batch.

    One that is seen, exists. That it does not exist may be said only when the call's connection has been
    gone for `settle_s`, since a provider may still act on it for a while, and two listings after that lack
    the batch.

    Args:
        listings: complete ones, back to before the first create, in the order in which they were asked for,
            all of them after ``sought``; older batches may be among them.
        now_s: this process's clock when the first of them was asked for.
        marks: ours; empty where the API carries none.
        count: requests of our batch, for APIs without marks.
        known: batches that belong to other intents, or to this one already.
        strangers: batches whose results have shown that they are not ours.
        ours: batches whose results have shown that they are.
        same_key: whether the key is the one that the create was sent with: another may list other batches.
        settle_s: for how long a provider may still act on a call whose connection has ended.
    """
    own: list[Listed] = []
    suspects: list[str] = []
    for batch in {batch.batch_id: batch for listing in listings for batch in listing}.values():
        if batch.batch_id in known:
            continue
        if batch.batch_id in ours or (marks and not batch.marks.isdisjoint(marks)):
            own.append(batch)
        elif (
            not marks
            and batch.batch_id not in strangers
            and batch.batch_id not in story.before
            and batch.created_s >= (story.since_s or 0.0)
            and batch.count in (count, None)
        ):
            suspects.append(batch.batch_id)
    if own:
        own.sort(key=lambda batch: (batch.created_s, batch.batch_id))
        return Found(own[0].batch_id, tuple(batch.batch_id for batch in own[1:]))
    if not same_key:
        return AskPerson("the endpoint's key is not the one that the batch was sent with")
    if suspects:
        return Wait(None, "a batch of the same size may be this one; its results will tell", tuple(suspects))
    if story.sought_s is None:
        return Wait(None, "it is not known whether the provider has it")
    if now_s < story.sought_s + settle_s:
        until = story.sought_s + settle_s
        return Wait(until, "it is not known whether the provider has it; it may still appear")
    if len(listings) < 2:
        return Wait(now_s, "one more listing is needed")
    return Absent()


# Pauses


def poll_pause_s(age_s: float, poll_s: float, failures: int = 0) -> float:
    """Seconds until a batch is looked at again.

    At first `poll_s`, which grows to four times as much within half an hour; twenty times as much after an
    hour. It doubles with each poll that failed in a row, within that.

    Args:
        age_s: of the batch.
        poll_s: the shortest pause.
        failures: polls in a row that brought no answer.
    """
    longest = 20.0 * poll_s
    if age_s >= 240.0 * poll_s:
        return longest
    pause = min(max(age_s / 30.0, poll_s), 4.0 * poll_s)
    return float(min(longest, pause * 2.0 ** min(failures, 10)))


# Waves


@dataclass(frozen=True, slots=True)
class BatchSpec:
    """What makes a lane one that asks in batches.

    Attributes:
        max_rows: rows of a batch, at most.
        max_bytes: bytes of its requests, at most.
        linger_s: how long rows wait for more while calls are out that may bring some.
        distinct_counts: no two open batches may have equally many rows: the API carries no mark of ours.
        tail: so few rows, if they are a lane's last, are asked live.
    """

    max_rows: int
    max_bytes: int
    linger_s: float
    distinct_counts: bool = False
    tail: int = 0


def wave_share(rows: int, max_rows: int) -> int:
    """How many rows the next batch takes, so that `rows` make ⌈rows / max_rows⌉ nearly equal batches."""
    if rows <= 0:
        return max_rows
    batches = -(-rows // max_rows)
    return -(-rows // batches)


def free_count(rows: int, taken: Collection[int]) -> int:
    """The most rows, up to `rows`, that no open batch has; 0 when each number is taken."""
    while rows > 0 and rows in taken:
        rows -= 1
    return rows


# Results


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What a batch has brought for one request: an answer, an error, or, with neither, nothing at all.

    Attributes:
        custom_id: our name for the request.
        error: as a live call would have raised it.
    """

    custom_id: str
    completion: Completion | None = None
    error: ProviderError | None = None

    @property
    def has_lapsed(self) -> bool:
        """Whether the request was never run: its batch expired or was cancelled."""
        return self.completion is None and self.error is None


def custom_id(nonce: str, number: int) -> str:
    """Our name for a batch's request: at most 64 of ``[a-z0-9-]``, which every API takes."""
    return f"gw-{nonce}-{number}"


def number_of(name: object, nonce: str, count: int) -> int | None:
    """The request's number in its batch, from 0; ``None`` for a name that is not one of this batch."""
    head = f"gw-{nonce}-"
    if not isinstance(name, str) or not name.startswith(head):
        return None
    digits = name[len(head) :]
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 6 or str(int(digits)) != digits:
        return None
    return int(digits) if int(digits) < count else None


@dataclass(frozen=True, slots=True)
class Look:
    """What a provider says of a batch when it is asked.

    Attributes:
        status: its own word.
        is_final: it will not change any more.
        results: what can be fetched, by a name of ours.
        is_complete: all lines can be fetched; a batch may be final before that.
        lacks_errors: only lines of requests that were not answered cannot be fetched yet.
        ended_s: when it ended, by the provider's clock; ``None`` where it does not say.
        answered: requests that were answered, as far as the provider counts them.
        refusal: why the whole batch was refused; ``None`` when it was not.
        is_over_limit: it was refused since too much is queued; it may be sent again later.
        bad_lines: numbers, from 0, of the requests that made it fail.
    """

    status: str
    is_final: bool
    results: Mapping[str, str] = field(default_factory=dict)
    is_complete: bool = True
    lacks_errors: bool = False
    ended_s: float | None = None
    answered: int | None = None
    refusal: str | None = None
    is_over_limit: bool = False
    bad_lines: tuple[int, ...] = ()


# Prices

_TARIFFS = ("input", "output", "cache_read", "cache_write")


def scaled(price: Price, share: Decimal, *, cached: bool) -> Price:
    """A price of which only a share is charged.

    Args:
        cached: whether what is read from a prompt cache has the share as well; else it costs what other input
            does, so that a cap is never optimistic.
    """

    def tariff(value: Tariff | None) -> Tariff | None:
        if value is None:
            return None
        return Tariff(value.base * share, tuple((start, step * share) for start, step in value.steps))

    whole_input, whole_output = tariff(price.input), tariff(price.output)
    assert whole_input is not None
    assert whole_output is not None
    return Price(
        whole_input,
        whole_output,
        cache_read=tariff(price.cache_read) if cached else None,
        cache_write=tariff(price.cache_write),
        per_call=price.per_call * share,
        source=price.source if share == 1 else f"{price.source} × {format(share.normalize(), 'f')}",
    )


def price_to_json(price: Price | None) -> dict[str, Any] | None:
    """A price for a file; amounts as text, exactly."""
    if price is None:
        return None
    record: dict[str, Any] = {"per_call": str(price.per_call), "source": price.source}
    for name in _TARIFFS:
        tariff: Tariff | None = getattr(price, name)
        if tariff is not None:
            record[name] = [str(tariff.base), *([start, str(step)] for start, step in tariff.steps)]
    return record


def price_from_json(record: Mapping[str, Any] | None) -> Price | None:
    """The reverse of `price_to_json`.

    Raises:
        KeyError, ValueError, ArithmeticError: it is none.
    """
    if record is None:
        return None
    tariffs: dict[str, Tariff | None] = {}
    for name in _TARIFFS:
        found = record.get(name)
        if found is not None:
            steps = tuple((int(start), Decimal(step)) for start, step in found[1:])
            tariffs[name] = Tariff(Decimal(found[0]), steps)
    whole_input, whole_output = tariffs.pop("input", None), tariffs.pop("output", None)
    if whole_input is None or whole_output is None:
        raise KeyError("a price has an input and an output")
    return Price(
        whole_input,
        whole_output,
        cache_read=tariffs.get("cache_read"),
        cache_write=tariffs.get("cache_write"),
        per_call=Decimal(record["per_call"]),
        source=str(record.get("source") or ""),
    )
