"""What one run has spent and what became of its rows: a journal, folded into sums.

The sums stand per stage and per model as it was asked for, since prices and questions differ by them. What a
call cost is taken from the journal where it stands there. Where it does not, because the model had no price
then, the tokens are kept in such a form that a price known today can still be applied, and never gives less
than the calls one by one would (see `Sizes`).

Nothing here knows where journals lie, or what a cohort as a whole has spent.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from operator import itemgetter
from typing import Any, NamedTuple

from genworker.core.budget import ZERO, Price
from genworker.core.completion import Usage
from genworker.core.events import (
    CALL_ENDS,
    Abandoned,
    Answered,
    AnswerNotStored,
    CallFailed,
    Calling,
    Committed,
    Event,
    ReparseStarted,
    RowFailed,
    RunEnded,
    RunStarted,
    WorkerStarted,
)
from genworker.core.facts import MODE_COPY, money, whole
from genworker.core.stages import Stage

Row = tuple[Stage, str]
"""A stage and a gen_id."""


class Asked(NamedTuple):
    """Who was asked for what; what the journal does not say is ``""``.

    Attributes:
        model_id: the model's id in the catalogue.
        model: its name at the endpoint.
    """

    stage: Stage
    endpoint: str
    model_id: str
    model: str

    @property
    def is_whole(self) -> bool:
        """Whether it says who was asked, so that a price can be found."""
        return bool(self.endpoint and self.model)


@dataclass(slots=True)
class Sizes:
    """Tokens of calls of about the same size, whose cost is not on record.

    Calls are grouped by the bits of their prompt's length, and a group keeps its largest: where a price rises
    with the prompt, a whole group is charged as the largest of it. So the sum is exact where the price has no
    such step within a group, and too high, never too low, where it has one.

    Attributes:
        largest_tokens: of the prompts; for calls without a count of tokens, of prompt and answer together.
    """

    calls: int = 0
    largest_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0

    def add(self, usage: Usage) -> None:
        """Count one call, whose tokens are known."""
        size = usage.input_tokens or 0
        cached = min(usage.cached_input_tokens or 0, size)
        self.calls += 1
        self.largest_tokens = max(self.largest_tokens, size)
        self.input_tokens += size
        self.output_tokens += usage.output_tokens or 0
        self.cached_input_tokens += cached
        self.cache_write_tokens += min(usage.cache_write_tokens or 0, size - cached)

    def cost_usd(self, price: Price) -> Decimal:
        """US dollars at a price."""
        size = self.largest_tokens
        fresh = self.input_tokens - self.cached_input_tokens - self.cache_write_tokens
        total = (
            fresh * price.input.highest(size)
            + self.cached_input_tokens * (price.cache_read or price.input).highest(size)
            + self.cache_write_tokens * (price.cache_write or price.input).highest(size)
            + self.output_tokens * price.output.highest(size)
        )
        return total / 1_000_000 + price.per_call * self.calls

    def to_json(self) -> list[int]:
        """The counts in their order."""
        return [
            self.calls,
            self.largest_tokens,
            self.input_tokens,
            self.output_tokens,
            self.cached_input_tokens,
            self.cache_write_tokens,
        ]


@dataclass(slots=True)
class Spending:
    """What the calls of one kind came to.

    Attributes:
        calls: tries that went out, also those that failed.
        answers: those that were answered, good or not.
        spent_usd: of answers whose cost is on record.
        spent_tokens: of answers whose tokens the endpoint has counted.
        possible_usd: most that the uncertain calls may have cost, as far as their worst case is on record.
        possible_tokens: most tokens of the uncertain calls.
        uncertain_calls: calls that may be billed without an answer that tells the cost: given up while they
            were out, failed in a way that may be billed, answered without a count of tokens, or cut off by
            the end of the process.
        unpriced: answers whose tokens are counted and whose cost is not on record, by size.
        boundless: uncertain calls without a worst case on record, by size; their tokens are of prompt and
            answer together, and stand as `input_tokens`.
    """

    calls: int = 0
    answers: int = 0
    spent_usd: Decimal = ZERO
    spent_tokens: int = 0
    possible_usd: Decimal = ZERO
    possible_tokens: int = 0
    uncertain_calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unpriced: dict[int, Sizes] = field(default_factory=dict)
    boundless: dict[int, Sizes] = field(default_factory=dict)

    def answered(self, call: Calling, answer: Answered) -> None:
        """A call came back with something."""
        self.answers += 1
        usage = answer.usage
        self.input_tokens += usage.input_tokens or 0
        self.output_tokens += usage.output_tokens or 0
        counted = usage.input_tokens is not None and usage.output_tokens is not None
        if counted:
            self.spent_tokens += (usage.input_tokens or 0) + (usage.output_tokens or 0)
        if answer.cost_usd is not None:
            self.spent_usd += answer.cost_usd
        elif counted:
            _group(self.unpriced, usage.input_tokens or 0).add(usage)
        else:
            self._possible_usd(call)
        if not counted:
            self.possible_tokens += call.worst_tokens or 0

    def uncertain(self, call: Calling) -> None:
        """A call may be billed, and there is no answer."""
        self._possible_usd(call)
        self.possible_tokens += call.worst_tokens or 0

    def _possible_usd(self, call: Calling) -> None:
        self.uncertain_calls += 1
        if call.worst_usd is not None:
            self.possible_usd += call.worst_usd
        else:
            tokens = call.worst_tokens or 0
            _group(self.boundless, tokens).add(Usage(tokens, 0))

    @property
    def unpriced_calls(self) -> int:
        """Calls whose cost, or worst case, needs a price."""
        groups = (*self.unpriced.values(), *self.boundless.values())
        return sum(sizes.calls for sizes in groups)

    def spent_at(self, price: Price | None) -> Decimal | None:
        """What is known to be spent, in US dollars; ``None`` when some of it needs a price."""
        if not self.unpriced:
            return self.spent_usd
        if price is None:
            return None
        return self.spent_usd + sum((sizes.cost_usd(price) for sizes in self.unpriced.values()), ZERO)

    def possible_at(self, price: Price | None) -> Decimal | None:
        """The most that uncertain calls may have cost, in US dollars; ``None`` when that needs a price."""
        if not self.boundless:
            return self.possible_usd
        if price is None:
            return None
        total = self.possible_usd
        for sizes in self.boundless.values():
            # How the tokens were shared between prompt and answer is not on record: the dearer counts.
            dearest = max(
                price.at_most(sizes.largest_tokens, 0) - price.per_call,
                price.at_most(0, sizes.largest_tokens) - price.per_call,
            )
            per_token = dearest / sizes.largest_tokens if sizes.largest_tokens else ZERO
            total += sizes.input_tokens * per_token + price.per_call * sizes.calls
        return total

    def to_json(self) -> dict[str, Any]:
        """As the ledger's file has it."""
        return {
            "calls": self.calls,
            "answers": self.answers,
            "spent_usd": format(self.spent_usd, "f"),
            "spent_tokens": self.spent_tokens,
            "possible_usd": format(self.possible_usd, "f"),
            "possible_tokens": self.possible_tokens,
            "uncertain_calls": self.uncertain_calls,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "unpriced": [sizes.to_json() for sizes in self.unpriced.values()],
            "boundless": [sizes.to_json() for sizes in self.boundless.values()],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Spending:
        """The same again.

        Raises:
            ValueError: it is not what `to_json` writes.
        """
        try:
            calls, answers, spent, possible, uncertain, given, made = _counts_of(record)
        except KeyError:
            raise ValueError("no sums") from None
        spent_usd, possible_usd = money(record.get("spent_usd")), money(record.get("possible_usd"))
        counts = (calls, answers, spent, possible, uncertain, given, made)
        if spent_usd is None or possible_usd is None or any(whole(count) is None for count in counts):
            raise ValueError("no sums")
        return cls(
            calls,
            answers,
            spent_usd,
            spent,
            possible_usd,
            possible,
            uncertain,
            given,
            made,
            _groups(record.get("unpriced")),
            _groups(record.get("boundless")),
        )


_counts_of = itemgetter(
    "calls",
    "answers",
    "spent_tokens",
    "possible_tokens",
    "uncertain_calls",
    "input_tokens",
    "output_tokens",
)


def _group(groups: dict[int, Sizes], tokens: int) -> Sizes:
    return groups.setdefault(tokens.bit_length(), Sizes())


def _groups(record: object) -> dict[int, Sizes]:
    groups: dict[int, Sizes] = {}
    if not isinstance(record, list):
        raise ValueError("no groups")
    for counts in record:
        if not isinstance(counts, list) or any(whole(count) is None for count in counts):
            raise ValueError("no counts")
        try:
            sizes = Sizes(*counts)
        except TypeError as error:
            raise ValueError("no counts") from error
        groups[sizes.largest_tokens.bit_length()] = sizes
    return groups


@dataclass(slots=True)
class RunAccount:
    """A run, or another command with a journal, as far as it is over.

    Attributes:
        cohort_id: ``""`` when the journal does not say whose it is.
        spending: the calls, by who was asked for what.
        failed: rows whose last call failed for good, with the reason.
        made: rows that were answered and stored, or copied, by stage; one answered twice stands twice.
        limits: what each lane was found to allow; ``None`` for a run that did not end by itself.
        odd_lines: lines of the journal that are no events.
    """

    run_id: str
    cohort_id: str = ""
    spending: dict[Asked, Spending] = field(default_factory=dict)
    failed: dict[Row, str] = field(default_factory=dict)
    made: dict[Stage, list[str]] = field(default_factory=dict)
    limits: Mapping[str, Mapping[str, float]] | None = None
    odd_lines: int = 0

    def sums_to_json(self) -> dict[str, Any]:
        """Everything but `made`, as the ledger's file has it."""
        return {
            "spending": [[*asked, sums.to_json()] for asked, sums in self.spending.items()],
            "failed": [[stage.value, gen_id, why] for (stage, gen_id), why in self.failed.items()],
            "limits": self.limits,
            "odd_lines": self.odd_lines,
        }

    @classmethod
    def from_json(cls, run_id: str, cohort_id: str, record: Mapping[str, Any]) -> RunAccount:
        """The same again, without `made`.

        Raises:
            ValueError: it is not what `sums_to_json` writes.
        """
        account = cls(run_id, cohort_id, odd_lines=whole(record.get("odd_lines")) or 0)
        try:
            for stage, endpoint, model_id, model, sums in record["spending"]:
                account.spending[Asked(Stage(stage), endpoint, model_id, model)] = Spending.from_json(sums)
            account.failed = {(Stage(stage), gen_id): why for stage, gen_id, why in record["failed"]}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError("no account") from error
        limits = record.get("limits")
        account.limits = limits if isinstance(limits, dict) else None
        return account


class Fold:
    """Adds a journal's events up, one after the other.

    Args:
        names: whether the account is to say what was made; the sums alone take no memory per generation.

    Attributes:
        account: the sums so far; what was made, and calls without an end, once it is closed.
    """

    def __init__(self, run_id: str, *, names: bool = True) -> None:
        self.account = RunAccount(run_id)
        self._out: dict[Row, Calling] = {}
        self._names = names
        # A list holds a name in eight bytes, so what takes one back says only up to where it counts.
        self._made: dict[Stage, list[str]] = {}
        self._taken_back: dict[Row, int] = {}

    def add(self, event: Event) -> None:
        """The next event."""
        if isinstance(event, Calling):
            row = (event.stage, event.gen_id)
            before = self._out.get(row)
            if before is not None:  # its end is not on record
                self._of(before).uncertain(before)
            self._out[row] = event
            self._of(event).calls += 1
        elif isinstance(event, CALL_ENDS):
            self._end(event)
        elif isinstance(event, Committed) and event.mode == MODE_COPY:
            self._note_made(event.stage, event.gen_id)
        elif isinstance(event, AnswerNotStored):
            self._taken_back[event.stage, event.gen_id] = len(self._made.get(event.stage, ()))
        elif isinstance(event, RunStarted | WorkerStarted | ReparseStarted):
            self.account.cohort_id = event.cohort
        elif isinstance(event, RunEnded):
            self.account.limits = event.limits

    def _end(self, event: Event) -> None:
        assert isinstance(event, CALL_ENDS)
        row = (event.stage, event.gen_id)
        if isinstance(event, CallFailed | RowFailed):
            self.account.failed[row] = event.error
        call = self._out.pop(row, None)
        if isinstance(event, Answered):
            self.account.failed.pop(row, None)
            self._note_made(*row)
            if call is not None:
                self._of(call).answered(call, event)
        elif call is not None and (
            isinstance(event, Abandoned) or (not isinstance(event, RowFailed) and event.may_be_billed)
        ):
            self._of(call).uncertain(call)

    def _note_made(self, stage: Stage, gen_id: str) -> None:
        if self._names:
            self._made.setdefault(stage, []).append(gen_id)

    def odd(self) -> None:
        """The next line is no event."""
        self.account.odd_lines += 1

    def _of(self, call: Calling) -> Spending:
        asked = Asked(call.stage, call.endpoint or "", call.model_id or "", call.model or "")
        sums = self.account.spending.get(asked)
        if sums is None:
            sums = self.account.spending[asked] = Spending()
        return sums

    def close(self) -> RunAccount:
        """The run is over, or as far as it is on record: calls that are out have no known end."""
        for call in self._out.values():
            self._of(call).uncertain(call)
        self._out.clear()
        for stage, gen_ids in self._made.items():
            kept = [
                gen_id
                for place, gen_id in enumerate(gen_ids)
                if place >= self._taken_back.get((stage, gen_id), 0)
            ]
            if kept:
                self.account.made.setdefault(stage, []).extend(kept)
        self._made.clear()
        self._taken_back.clear()
        return self.account


def fold(run_id: str, events: Iterable[Event | None]) -> RunAccount:
    """The account of a journal; ``None`` stands for a line that is no event."""
    folded = Fold(run_id)
    for event in events:
        if event is None:
            folded.odd()
        else:
            folded.add(event)
    return folded.close()
