"""The one account of money: what is known to be spent, and what calls of unknown end may have cost at most.

Two numbers, never one sum: a call that failed after it was sent may have been billed for nothing, for all
that it could have cost, or for something between. What has no price is named, never counted as nothing.
An `Account` folds the events of a run's journal; the same fold reads a journal and follows a running run, so
that the summary, `status` and the page cannot differ.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from genworker.core.account import Fold, RunAccount
from genworker.core.budget import ZERO, Charge, Price
from genworker.core.events import Event
from genworker.core.facts import Facts, whole
from genworker.core.stages import Stage

FindPrice = Callable[[str, str, str], Price | None]
"""(endpoint, model's id, model's name there) to its price today; ``None`` when nobody knows it."""


@dataclass(slots=True)
class Part:
    """One part of the account, or all of it.

    Attributes:
        spent_usd: known to be spent.
        possible_usd: what `uncertain_calls` may have cost at most, beyond that.
        uncertain_calls: sent, and whether or how much they were billed is not known: failed, abandoned, cut
            off, or answered without a count of tokens.
        calls: all that were sent.
        tokens: known to be used, prompts and answers together; `possible_tokens` likewise at most.
        unpriced: calls by the model that has no price.
    """

    spent_usd: Decimal = ZERO
    possible_usd: Decimal = ZERO
    uncertain_calls: int = 0
    calls: int = 0
    tokens: int = 0
    possible_tokens: int = 0
    unpriced: dict[str, int] = field(default_factory=dict)

    @property
    def most_usd(self) -> Decimal:
        """What can have been spent at the very most: a cap counts this."""
        return self.spent_usd + self.possible_usd

    @property
    def worst(self) -> Charge:
        """All of it at its worst case, for a cap."""
        return Charge(self.most_usd, self.calls, self.tokens + self.possible_tokens)

    def add(self, other: Part) -> None:
        """Count what another part has."""
        self.spent_usd += other.spent_usd
        self.possible_usd += other.possible_usd
        self.uncertain_calls += other.uncertain_calls
        self.calls += other.calls
        self.tokens += other.tokens
        self.possible_tokens += other.possible_tokens
        for model, calls in other.unpriced.items():
            self.unpriced[model] = self.unpriced.get(model, 0) + calls

    def to_json(self) -> dict[str, Any]:
        """For machines: money as text, exactly."""
        return {
            "spent_usd": usd_text(self.spent_usd),
            "possible_usd": usd_text(self.possible_usd),
            "uncertain_calls": self.uncertain_calls,
            "unpriced": sorted(self.unpriced),
        }


@dataclass(slots=True)
class Money:
    """What a cohort has cost over all its runs.

    Attributes:
        by_model: by the model's id in the catalogue, `by_stage` by the stage's name.
        by_run: by the run's id, ``""`` for answers whose run is not known.
    """

    total: Part = field(default_factory=Part)
    by_model: dict[str, Part] = field(default_factory=dict)
    by_stage: dict[str, Part] = field(default_factory=dict)
    by_run: dict[str, Part] = field(default_factory=dict)

    def add(self, stage: Stage, model: str, run: str, part: Part) -> None:
        """Count a call, or a part of one."""
        self.total.add(part)
        for group, key in ((self.by_model, model), (self.by_stage, stage.value), (self.by_run, run)):
            at = group.get(key)
            if at is None:
                at = group[key] = Part()
            at.add(part)

    def merge(self, other: Money) -> None:
        """Count what another account has."""
        self.total.add(other.total)
        for mine, theirs in (
            (self.by_model, other.by_model),
            (self.by_stage, other.by_stage),
            (self.by_run, other.by_run),
        ):
            for key, part in theirs.items():
                mine.setdefault(key, Part()).add(part)

    def run(self, run_id: str) -> Part:
        """What one run has cost."""
        return self.by_run.get(run_id, Part())

    def to_json(self) -> dict[str, Any]:
        """The object ``money`` of every ``--json``."""
        return {
            **self.total.to_json(),
            "calls": self.total.calls,
            "by_model": {model: part.to_json() for model, part in sorted(self.by_model.items())},
            "by_stage": {stage: part.to_json() for stage, part in self.by_stage.items()},
            "by_run": {run: part.to_json() for run, part in sorted(self.by_run.items())},
        }


def usd_text(amount: Decimal) -> str:
    """An amount exactly, with at least two decimals, no exponent: ``2.09``, ``0.0042``, ``0.00``."""
    text = format(amount.normalize(), "f")
    whole, _, decimals = text.partition(".")
    return f"{whole}.{decimals:0<2}"


class Account:
    """Adds up the calls of one run from its journal's events, in their order.

    Args:
        run: the run's id.
        find_price: for calls whose price was not known when they were made.
    """

    def __init__(self, run: str, find_price: FindPrice) -> None:
        self._fold = Fold(run, names=False)
        self._find_price = find_price

    def hear(self, event: Event) -> None:
        """Count one event; those that cost nothing are passed over."""
        self._fold.add(event)

    def close(self) -> None:
        """The run is over, or as far as it is on record: what is out has no known end."""
        self._fold.close()

    def add_to(self, money: Money) -> None:
        """Count the run's calls so far; those that are out are calls without a cost yet."""
        add_run(money, self._fold.account, self._find_price)


def add_run(money: Money, account: RunAccount, find_price: FindPrice) -> None:
    """Count what a run has spent, at today's prices where it had none then."""
    for asked, sums in account.spending.items():
        model = asked.model_id or asked.model
        # The price may be asked for only where the record says who was called.
        price = find_price(asked.endpoint, asked.model_id, asked.model) if asked.is_whole else None
        spent_usd, possible_usd = sums.spent_at(price), sums.possible_at(price)
        unpriced = sums.unpriced_calls if price is None else 0
        part = Part(
            spent_usd=sums.spent_usd if spent_usd is None else spent_usd,
            possible_usd=sums.possible_usd if possible_usd is None else possible_usd,
            uncertain_calls=sums.uncertain_calls,
            calls=sums.calls,
            tokens=sums.spent_tokens,
            possible_tokens=sums.possible_tokens,
            unpriced={model: unpriced} if unpriced else {},
        )
        money.add(asked.stage, model, account.run_id, part)


Parts = dict[tuple[Stage, str, str], Part]
"""Parts of an account by stage, model and run."""


class Answers:
    """Adds up answers by their metadata alone, where their run has left no account; maybe a million."""

    def __init__(self, find_price: FindPrice) -> None:
        self._find_price = find_price
        self._parts: Parts = {}

    def add(self, stage: Stage, facts: Facts) -> None:
        """Count one answer."""
        cost, model = facts.cost_usd, facts.model_id or facts.model or ""
        usage = facts.record.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        if cost is None and facts.endpoint is not None and facts.model is not None:
            price = self._find_price(facts.endpoint, facts.model_id or "", facts.model)
            cost = None if price is None else price.cost(facts.usage)
        key = (stage, model, facts.run_id or "")
        part = self._parts.get(key)
        if part is None:
            part = self._parts[key] = Part()
        part.calls += max(1, facts.attempts or 1)
        part.tokens += max(0, whole(counts.get("input_tokens")) or 0)
        part.tokens += max(0, whole(counts.get("output_tokens")) or 0)
        if cost is None:
            part.unpriced[model] = part.unpriced.get(model, 0) + 1
        else:
            part.spent_usd += cost

    def take(self) -> Parts:
        """What was counted since the last time, to be counted elsewhere."""
        parts, self._parts = self._parts, {}
        return parts

    def give(self, parts: Parts) -> None:
        """Count what was taken."""
        for key, part in parts.items():
            self._parts.setdefault(key, Part()).add(part)

    def add_to(self, money: Money) -> None:
        """Count all of them in an account."""
        for (stage, model, run), part in self._parts.items():
            money.add(stage, model, run, part)


# As people read it


def dollars(amount: Decimal) -> str:
    """An amount for people; less than a cent is not nothing, and nothing is no amount that was rounded."""
    if not amount:
        return "free"
    return "<$0.01" if 0 < amount < Decimal("0.01") else f"${amount:,.2f}"


def money_text(part: Part) -> str:
    """The two numbers, and what has no price: ``$2.09, and at most $20.51 more for 13 … calls``."""
    names = sorted(part.unpriced)
    known = bool(part.spent_usd) or not names
    nothing = "nothing" if part.calls else "nothing on record"
    text = (dollars(part.spent_usd) if part.spent_usd else nothing) if known else ""
    if part.possible_usd:
        text += (
            f"{', and ' if text else ''}at most {dollars(part.possible_usd)} more for {uncertain_text(part)}"
        )
    elif part.uncertain_calls and not names:
        text += f" ({uncertain_text(part)} cost nothing)"
    if names:
        shown = f"unpriced: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
        text += f"{' + ' if text else ''}{shown}"
    return text


def uncertain_text(part: Part) -> str:
    """``13 failed or abandoned calls``."""
    return f"{part.uncertain_calls:,} failed or abandoned call{'' if part.uncertain_calls == 1 else 's'}"


def cap_text(part: Part) -> str:
    """What stands against a cap, the known part and the worst case apart."""
    text = f"{dollars(part.spent_usd) if part.spent_usd else 'nothing'} is known to be spent"
    if part.uncertain_calls:
        worst = dollars(part.possible_usd) if part.possible_usd else "nothing"
        text += f", {worst} is the worst case of {uncertain_text(part)}"
    return text
