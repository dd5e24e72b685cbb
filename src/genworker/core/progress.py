"""Counts of a run, for whoever watches it."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from genworker.core.generation import FailureKind
from genworker.core.money import Money, Part
from genworker.core.stages import STAGES, Stage

RATE_WINDOW_S = 60.0


@dataclass(slots=True)
class StageProgress:
    """One stage: `planned` is every row of it in the cohort; the others are parts of that.

    Attributes:
        kinds: answers of this cohort that are kept though they are not usable, by kind of failure.
        errors: rows whose calls failed for good, without an answer.
    """

    planned: int = 0
    done: int = 0
    blocked: int = 0
    stopped: int = 0
    errors: int = 0
    kinds: dict[FailureKind, int] = field(default_factory=dict)

    @property
    def unparseable(self) -> int:
        """Answers that no parser could read."""
        return self.kinds.get(FailureKind.UNPARSEABLE, 0)

    @property
    def failed(self) -> int:
        """Rows that ended without a usable answer for another reason than parsing."""
        return self.errors + sum(self.kinds.values()) - self.unparseable

    @property
    def missing(self) -> int:
        """Rows that nothing has been decided about."""
        settled = self.done + self.blocked + self.stopped + self.errors + sum(self.kinds.values())
        return self.planned - settled


class Spending(Protocol):
    """What a run costs, as far as it is known."""

    def add_to(self, money: Money) -> None:
        """Count it."""


class Tally(Protocol):
    """Where a run's rows are counted, and heard of when they end."""

    def stage(self, job: int) -> StageProgress:
        """The counts that a row belongs to."""
        ...

    def ended(self, job: int) -> None:
        """A row has reached its last state; its counts may follow in the same turn of the event loop."""


@dataclass(slots=True)
class Progress:
    """One run of one cohort.

    Attributes:
        resumed: rows that were done before this run.
        calls: calls sent, retries included.
        answers: calls that brought an answer.
        input_tokens: as far as the endpoints count them.
        earlier: what earlier runs of the cohort have cost.
        account: what this run costs call by call; hears the journal's events.
        batches: tells what the cohort's batches have cost, over all runs.
        landed: what the batches have cost that this run has brought in.
        odd_words: answers that ended with a word that nobody knows, by the word.
        past_limit: answers that sound whole and have as many tokens as were allowed, or more.
    """

    stages: dict[Stage, StageProgress] = field(default_factory=lambda: {s: StageProgress() for s in STAGES})
    resumed: int = 0
    to_call: int = 0
    calls: int = 0
    answers: int = 0
    copies: int = 0
    retries: int = 0
    salvaged: int = 0
    kept_aside: int = 0
    reparsed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    earlier: Money = field(default_factory=Money)
    account: Spending | None = None
    odd_words: Counter[str] = field(default_factory=Counter)
    past_limit: int = 0
    batches: Callable[[], Money] = Money
    landed: Part = field(default_factory=Part)
    cap_usd: Decimal | None = None
    _arrivals: deque[float] = field(default_factory=deque)

    @property
    def money(self) -> Money:
        """What all runs of the cohort have cost, this one included."""
        money = Money()
        money.merge(self.earlier)
        if self.account is not None:
            self.account.add_to(money)
        money.merge(self.batches())
        return money

    @property
    def own(self) -> Part:
        """What this run has cost so far."""
        money = Money()
        if self.account is not None:
            self.account.add_to(money)
        money.total.add(self.landed)
        return money.total

    def answered(self, now_s: float) -> None:
        """Count an answer, for the rate."""
        self.answers += 1
        self._arrivals.append(now_s)
        while self._arrivals and self._arrivals[0] < now_s - RATE_WINDOW_S:
            self._arrivals.popleft()

    def rate_per_min(self, now_s: float, started_s: float) -> float:
        """Answers a minute over the last minute, or over the run so far when it is younger."""
        span = min(RATE_WINDOW_S, now_s - started_s)
        recent = sum(1 for moment in self._arrivals if moment >= now_s - RATE_WINDOW_S)
        return 60.0 * recent / span if span > 0 else 0.0

    def eta_s(self, rate_per_min: float) -> float | None:
        """Seconds until every call is answered at this rate; ``None`` before there is one."""
        left = self.to_call - self.answers
        return None if rate_per_min <= 0 or left <= 0 else 60.0 * left / rate_per_min
