"""Hard caps on money, calls and tokens: reserve the worst case before a call, settle after it.

Exact decimal arithmetic; what is spent and what is reserved never pass a cap together, so no order of
answers can. Prices are values here; where they come from is the edge's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

from genworker.core.completion import Usage

ZERO = Decimal(0)
MILLION = Decimal(1_000_000)


@dataclass(frozen=True, slots=True)
class Charge:
    """What one call costs, or may cost at most.

    Attributes:
        usd: ``Decimal(0)`` for a model without a price: money is capped only where all models have one.
        tokens: of prompt and answer together.
        priced: whether `usd` is known.
    """

    usd: Decimal = ZERO
    calls: int = 0
    tokens: int = 0
    priced: bool = True

    @property
    def known_usd(self) -> Decimal | None:
        """The money for a record, without trailing zeros; ``None`` when it is not known."""
        return self.usd.normalize() if self.priced else None

    def __add__(self, other: Charge) -> Charge:
        return Charge(self.usd + other.usd, self.calls + other.calls, self.tokens + other.tokens)

    def __sub__(self, other: Charge) -> Charge:
        return Charge(self.usd - other.usd, self.calls - other.calls, self.tokens - other.tokens)


NOTHING = Charge()


@dataclass(frozen=True, slots=True)
class Caps:
    """Limits over a cohort and all its restarts; ``None`` where there is none."""

    usd: Decimal | None = None
    calls: int | None = None
    tokens: int | None = None

    def __bool__(self) -> bool:
        return self.usd is not None or self.calls is not None or self.tokens is not None

    def room(self, charge: Charge) -> bool:
        """Whether this sum is within the caps."""
        return (
            (self.usd is None or charge.usd <= self.usd)
            and (self.calls is None or charge.calls <= self.calls)
            and (self.tokens is None or charge.tokens <= self.tokens)
        )

    def passed_by(self, charge: Charge) -> str:
        """Which cap a charge would pass, in words."""
        if self.usd is not None and charge.usd > self.usd:
            return f"--max-cost {self.usd} USD"
        if self.calls is not None and charge.calls > self.calls:
            return f"--max-calls {self.calls}"
        return f"--max-tokens {self.tokens}"


class Budget:
    """What has been spent, and what calls that are out may spend at most.

    Args:
        spent: by earlier runs.
    """

    __slots__ = ("caps", "reserved", "spent")

    def __init__(self, caps: Caps | None = None, spent: Charge = NOTHING) -> None:
        self.caps = caps or Caps()
        self.spent = spent
        self.reserved = NOTHING

    def fits(self, worst: Charge) -> bool:
        """Whether a call may still be made."""
        return self.caps.room(self.spent + self.reserved + worst)

    def reserve(self, worst: Charge) -> bool:
        """Set a call's worst case aside; ``False`` when it does not fit."""
        if not self.fits(worst):
            return False
        self.reserved += worst
        return True

    def adopt(self, worst: Charge) -> None:
        """Set aside what earlier runs have sent and may still cost, also past a cap."""
        self.reserved += worst

    def settle(self, worst: Charge, actual: Charge) -> None:
        """A reserved call has cost this much."""
        self.reserved -= worst
        self.spent += actual


# Prices


@dataclass(frozen=True, slots=True)
class Tariff:
    """US dollars per million tokens, by the size of the prompt.

    Attributes:
        steps: (input tokens from which it holds, price), rising; the price holds for all tokens of a call.
    """

    base: Decimal
    steps: tuple[tuple[int, Decimal], ...] = ()

    def at(self, input_tokens: int) -> Decimal:
        """The price for a prompt of this size."""
        price = self.base
        for start, step in self.steps:
            if input_tokens > start:
                price = step
        return price

    def highest(self, input_tokens: int) -> Decimal:
        """The highest price for a prompt of at most this size."""
        return max([self.base, *(price for start, price in self.steps if input_tokens > start)])


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs.

    Attributes:
        cache_read: for prompt tokens read from a cache; as `input` when ``None``.
        cache_write: for prompt tokens written to one; as `input` when ``None``.
        per_call: US dollars for each call.
        source: where the price is from, for people.
    """

    input: Tariff
    output: Tariff
    cache_read: Tariff | None = None
    cache_write: Tariff | None = None
    per_call: Decimal = ZERO
    source: str = field(default="", compare=False)

    def cost(self, usage: Usage) -> Decimal | None:
        """US dollars of an answer, exactly; ``None`` when the endpoint did not count its tokens."""
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        size = usage.input_tokens
        read = min(usage.cached_input_tokens or 0, size)
        written = min(usage.cache_write_tokens or 0, size - read)
        total = (
            (size - read - written) * self.input.at(size)
            + read * (self.cache_read or self.input).at(size)
            + written * (self.cache_write or self.input).at(size)
            + usage.output_tokens * self.output.at(size)
        )
        return total / MILLION + self.per_call

    def at_most(self, input_tokens: int, output_tokens: int) -> Decimal:
        """US dollars that a call with these numbers of tokens can cost at most, whatever a cache does."""
        dearest = max(
            tariff.highest(input_tokens)
            for tariff in (self.input, self.cache_read, self.cache_write)
            if tariff is not None
        )
        total = input_tokens * dearest + output_tokens * self.output.highest(input_tokens)
        return total / MILLION + self.per_call


# What a prompt may come to

ENVELOPE_TOKENS = 64
"""For the marks that an API puts around a message."""


def most_input_tokens(*texts: str | None) -> int:
    """The most tokens that texts can be: a token of today's vocabularies has at least one byte."""
    return ENVELOPE_TOKENS + sum(len(text.encode("utf-8", "replace")) for text in texts if text)


def likely_tokens(characters: float) -> float:
    """An estimate for people and for planning: a token per four characters, and a fifth more."""
    return characters / 4 * 1.2
