"""What response headers say about waiting and about limits: pure functions from header values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?")


def retry_after_s(headers: Mapping[str, str], now_epoch_s: float) -> float | None:
    """Seconds that an endpoint asks to wait; ``None`` when it does not say.

    The first of these that is there counts: ``retry-after-ms``; ``retry-after`` as seconds or an HTTP date;
    the latest of the reset times that the rate-limit headers announce. The caller sets bounds. A date is
    read by the endpoint's own clock, as its ``date`` header tells it: the local one may be wrong.

    Args:
        headers: with lower-case names.
        now_epoch_s: the present by the local clock, in seconds since 1970; counts where ``date`` is missing.
    """
    now_epoch_s = _present_s(headers.get("date", ""), now_epoch_s)
    milliseconds = headers.get("retry-after-ms", "")
    if _NUMBER.fullmatch(milliseconds.strip()):
        return float(milliseconds) / 1000
    after = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(after):
        return float(after)
    if (moment_s := _date_s(after)) is not None:
        return max(0.0, moment_s - now_epoch_s)
    waits = [
        wait
        for name, value in headers.items()
        if name.startswith(("x-ratelimit-reset", "anthropic-ratelimit-")) and "reset" in name
        if (wait := reset_s(value, now_epoch_s)) is not None
    ]
    return max(waits, default=None)


def _present_s(date: str, now_epoch_s: float) -> float:
    """The present by the clock of whoever sent ``date``; by the local clock when that is no date."""
    moment_s = _date_s(date.strip())
    return now_epoch_s if moment_s is None else moment_s


@lru_cache(maxsize=64)
def _date_s(text: str) -> float | None:
    """An HTTP date in seconds since 1970. Kept: the answers of one second have the same."""
    if not text:
        return None
    # Late: it takes a tenth of a command's start.
    from email.utils import parsedate_to_datetime

    try:
        moment = parsedate_to_datetime(text)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def reset_s(value: str, now_epoch_s: float) -> float | None:
    """Seconds until a reset time: ``1m30s``, ``250ms``, plain seconds, an epoch in s or ms, an ISO time."""
    text = value.strip()
    if _NUMBER.fullmatch(text):
        number = float(text)
        if number > 1e11:  # epoch in milliseconds
            return max(0.0, number / 1000 - now_epoch_s)
        return max(0.0, number - now_epoch_s) if number > 1e8 else number
    match = _DURATION.fullmatch(text)
    if text and match:
        days, hours, minutes, seconds, millis = (float(part or 0) for part in match.groups())
        return days * 86_400 + hours * 3600 + minutes * 60 + seconds + millis / 1000
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return max(0.0, aware.timestamp() - now_epoch_s)


class Quantity(StrEnum):
    """What a limit counts."""

    REQUESTS = "requests"
    TOKENS = "tokens"
    INPUT = "input-tokens"
    OUTPUT = "output-tokens"
    AT_ONCE = "at-once"
    """Calls at once; `Quota.per_min` is their number."""


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit that an endpoint announces.

    Attributes:
        left: share of the allowance that is left, from 0 to 1; ``None`` when it does not say.
    """

    quantity: Quantity
    per_min: float
    left: float | None


def _names(style: str, quantity: Quantity) -> tuple[Quantity, bytes, bytes, bytes]:
    limit, remaining, reset = (
        style.format(quantity=quantity.value, what=what).encode() for what in ("limit", "remaining", "reset")
    )
    return quantity, limit, remaining, reset


_ANNOUNCEMENTS: tuple[tuple[Quantity, bytes, bytes, bytes], ...] = (
    *(_names("x-ratelimit-{what}-{quantity}", quantity) for quantity in (Quantity.REQUESTS, Quantity.TOKENS)),
    *(
        _names("anthropic-ratelimit-{quantity}-{what}", quantity)
        for quantity in (Quantity.REQUESTS, Quantity.TOKENS, Quantity.INPUT, Quantity.OUTPUT)
    ),
    # Mistral names the minute, and tells no reset.
    (Quantity.REQUESTS, b"x-ratelimit-limit-req-minute", b"x-ratelimit-remaining-req-minute", b""),
    (Quantity.TOKENS, b"x-ratelimit-limit-tokens-minute", b"x-ratelimit-remaining-tokens-minute", b""),
)
_SCOPED = re.compile(rb"x-ratelimit-(?:(.{1,60})-)?limit-(requests|tokens|max_parallel_requests)")
"""LiteLLM tells the limits of a key, a user, a team, a model; and how many calls at once they allow."""
LONGEST_WINDOW_S = 120.0
"""An allowance that fills again only after longer is not one per minute; it shows in refusals instead."""
FEW_CALLS = 2.0
"""An allowance of at most this many calls that is empty is a small one; nobody else has used it up."""


def quotas(headers: Iterable[tuple[bytes, bytes]], now_epoch_s: float) -> tuple[Quota, ...]:
    """The limits per minute that response headers announce.

    Args:
        headers: (name, value) as they came. Reset times are read by the clock of their ``date``.
        now_epoch_s: the present by the local clock, in seconds since 1970; counts where that is missing.
    """
    found = {
        lower: value
        for name, value in headers
        if (lower := name.lower()) == b"date" or lower.startswith((b"x-ratelimit-", b"anthropic-ratelimit-"))
    }
    date = found.pop(b"date", b"")
    if not found:
        return ()
    now_epoch_s = _present_s(date.decode("latin-1"), now_epoch_s)
    result = []
    for quantity, limit_name, remaining_name, reset_name in _ANNOUNCEMENTS:
        limit = _count(found.get(limit_name))
        if not limit:
            continue
        reset = found.get(reset_name)
        wait = reset_s(reset.decode("latin-1"), now_epoch_s) if reset is not None else None
        if wait is not None and wait > LONGEST_WINDOW_S:
            continue
        left = None
        if (remaining := _count(found.get(remaining_name))) is not None:
            left = min(1.0, remaining / limit)
            if quantity is Quantity.REQUESTS and wait is not None and wait * limit / 60.0 <= FEW_CALLS:
                left = 1.0
        result.append(Quota(quantity, limit, left))
    result += _scoped(found)
    plain = _plain(found, now_epoch_s)
    return tuple(result if plain is None else [*result, plain])


def _scoped(found: Mapping[bytes, bytes]) -> list[Quota]:
    """LiteLLM's limits; of several on the same quantity the smallest."""
    least: dict[Quantity, Quota] = {}
    for name, value in found.items():
        match = _SCOPED.fullmatch(name)
        limit = _count(value)
        if match is None or not limit:
            continue
        scope, what = match.groups()
        if what == b"max_parallel_requests":
            quota = Quota(Quantity.AT_ONCE, limit, None)
        elif scope is None:
            continue  # as OpenAI's, read above
        else:
            remaining = _count(found.get(b"x-ratelimit-" + scope + b"-remaining-" + what))
            left = None if remaining is None else min(1.0, remaining / limit)
            quota = Quota(Quantity(what.decode()), limit, left)
        known = least.get(quota.quantity)
        if known is None or quota.per_min < known.per_min:
            least[quota.quantity] = quota
    return list(least.values())


def _plain(found: Mapping[bytes, bytes], now_epoch_s: float) -> Quota | None:
    """OpenRouter's limit of a minute, known by its reset in milliseconds since 1970.

    Others use the same names for seconds, hours or days; those show in refusals.
    """
    limit, reset = _count(found.get(b"x-ratelimit-limit")), found.get(b"x-ratelimit-reset", b"")
    if not limit or len(reset.strip()) != 13:
        return None
    wait = reset_s(reset.decode("latin-1"), now_epoch_s)
    if wait is None or wait > 60.0:
        return None
    remaining = _count(found.get(b"x-ratelimit-remaining"))
    return Quota(Quantity.REQUESTS, limit, None if remaining is None else min(1.0, remaining / limit))


def _count(value: bytes | None) -> float | None:
    text = value.decode("latin-1").strip() if value is not None else ""
    return float(text) if _NUMBER.fullmatch(text) else None
