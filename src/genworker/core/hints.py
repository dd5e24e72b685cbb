"""What response headers say about waiting: pure functions from header values to seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_NUMBER = re.compile(r"\d{1,15}(\.\d{1,9})?")


def retry_after_s(headers: Mapping[str, str], now_epoch_s: float) -> float | None:
    """Seconds that an endpoint asks to wait; ``None`` when it does not say.

    In order: ``retry-after-ms``; ``retry-after`` as seconds or an HTTP date; else the latest of the
    reset times that the rate-limit headers announce. Neither capped nor floored.

    Args:
        headers: with lower-case names.
        now_epoch_s: the present, in seconds since 1970.
    """
    milliseconds = headers.get("retry-after-ms", "")
    if _NUMBER.fullmatch(milliseconds.strip()):
        return float(milliseconds) / 1000
    after = headers.get("retry-after", "").strip()
    if _NUMBER.fullmatch(after):
        return float(after)
    if after:
        try:
            moment = parsedate_to_datetime(after)
        except (ValueError, TypeError, OverflowError):
            pass
        else:
            aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
            return max(0.0, aware.timestamp() - now_epoch_s)
    waits = [
        wait
        for name, value in headers.items()
        if name.startswith(("x-ratelimit-reset", "anthropic-ratelimit-")) and "reset" in name
        if (wait := reset_s(value, now_epoch_s)) is not None
    ]
    return max(waits, default=None)


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
