"""What the body of a refusal says, in any of the shapes that providers and gateways use. Pure.

OpenAI's, Anthropic's, Google's, FastAPI's, a router's with its upstream's inside, a page of a proxy: the
reason in its own words, the codes, the status and the parameter that it names. What it means is told in
`genworker.core.refusals`.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from genworker.core.finish_words import normal_word
from genworker.core.hints import reset_s

MAX_MESSAGE_CHARS: Final = 500
MAX_DEPTH: Final = 8
"""How deep an error's body is looked into: a router's wraps its upstream's, as a text within an object."""
MAX_PARTS: Final = 8
"""Reasons of one body that are shown: a list of faults may be long."""


@dataclass(frozen=True, slots=True)
class Complaint:
    """What the body of a refusal says.

    Attributes:
        reason: in the endpoint's words, on one line; ``""`` when it says nothing.
        codes: its codes and types, each in one spelling (`normal_word`).
        status: an HTTP status that stands in the body; ``None`` for none.
        parameter: the parameter that it speaks of; ``None`` for none.
        moderated: whether it lists what in the input was flagged.
        retry_after_s: seconds that it asks to wait; ``None`` when it does not say.
    """

    reason: str = ""
    codes: frozenset[str] = frozenset()
    status: int | None = None
    parameter: str | None = None
    moderated: bool = False
    retry_after_s: float | None = None


_REASON_KEYS = (
    "message",
    "Message",
    "msg",
    "errmsg",
    "err_msg",
    "error_message",
    "errorMessage",
    "error_msg",
    "error_description",
    "status_msg",
    "faultstring",
    "detail",
    "details",
    "description",
    "title",
    "reason",
    "reasons",
    "text",
    "info",
    "messages",
)
_NESTED_KEYS = (
    "error",
    "errors",
    "Error",
    "err",
    "fault",
    "failure",
    "exception",
    "metadata",
    "raw",
    "innererror",
    "inner_error",
    "cause",
    "caused_by",
    "root_cause",
    "body",
    "response",
    "Response",
    "result",
    "header",
    "base_resp",
)
_CODE_KEYS = (
    "code",
    "Code",
    "type",
    "status",
    "reason",
    "error_code",
    "errorCode",
    "errorcode",
    "error_type",
    "__type",
)
_STATUS_KEYS = ("code", "status", "http_code", "status_code", "statusCode", "http_status", "httpStatus")
_MODERATION_KEYS = frozenset({"contentFilter", "content_filter_result", "flagged_input", "moderation"})
_ERROR_KEYS = frozenset(
    {"code", "detail", "errmsg", "error_code", "error_msg", "fault", "status", "statusCode"}
)
"""An object without an answer that has one of these, and a reason, is an error and no odd answer."""
_FINE = frozenset({"", "0", "200", "ok", "none", "null", "success"})
_TITLE = re.compile(r"<title[^>]*>(.*?)</title\s*>", re.IGNORECASE | re.DOTALL)
_NOT_TEXT = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)
_WAIT_KEYS = ("retryDelay", "retry_after", "retryAfter", "retry_after_seconds", "estimated_time")
_WAIT = re.compile(
    r"\b(?:retry|try again|wait|available again)(?: again)?(?: after| in| for)? (?:about )?"
    r"(?P<time>(?:\d+(?:\.\d+)?(?:ms|d|h|m|s)){1,4}|\d+(?:\.\d+)?)"
    r"(?: ?(?P<unit>milliseconds?|seconds?|minutes?|hours?))?\b",
    re.IGNORECASE,
)
_UNITS_S = {"milli": 0.001, "second": 1.0, "minute": 60.0, "hour": 3600.0}


def complaint_of(body: object) -> Complaint:
    """What an error's body says.

    Args:
        body: parsed JSON, or a text.
    """
    if isinstance(body, str):
        parsed = _parsed(body)
        if parsed is None:
            text = _plain(body)
            return Complaint(text, retry_after_s=_wait_in(text))
        body = parsed
    found = [item for item in _mappings(body)]
    codes = {
        normal_word(value)
        for item in found
        for key in _CODE_KEYS
        if isinstance(value := item.get(key), str) and len(value) <= 100
    }
    statuses = (status for item in found for key in _STATUS_KEYS if (status := _status(item.get(key))))
    reasons = list(dict.fromkeys(reason for reason in _reasons(body) if reason))
    # A sentence that another one holds says nothing more.
    reasons = [one for one in reasons if not any(one != other and one in other for other in reasons)]
    reason = "; ".join(reasons[:MAX_PARTS]) or json.dumps(body, ensure_ascii=False, default=str)[:200]
    parameter = next((name for item in found if (name := _parameter(item))), None)
    waits = (wait for item in found for key in _WAIT_KEYS if (wait := _seconds(item.get(key))) is not None)
    return Complaint(
        reason,
        frozenset(codes),
        next(statuses, None),
        parameter,
        moderated=any(item.get(key) for item in found for key in _MODERATION_KEYS),
        retry_after_s=next(waits, _wait_in(reason)),
    )


def error_in(record: Mapping[str, Any]) -> object | None:
    """The error that a body with status 200 holds, beside an answer or alone; ``None`` for none."""
    for key in ("error", "errors", "Error"):
        if _says_something(record.get(key)):
            return record
    if record.get("object") == "error" or record.get("type") == "error" or record.get("success") is False:
        return record
    base = record.get("base_resp")  # MiniMax
    if isinstance(base, Mapping) and _says_something(base.get("status_code")):
        return record
    return None


def is_complaint(record: Mapping[str, Any]) -> bool:
    """Whether an object that is no answer says why: with a reason, and with a word that it is an error."""
    return not _ERROR_KEYS.isdisjoint(record) and any(_reasons(record))


def _says_something(error: object) -> bool:
    """Whether a field for an error holds one: gateways also send it empty, or with a code of success."""
    if isinstance(error, Mapping):
        return any(map(_says_something, error.values()))
    if isinstance(error, list):
        return bool(error)
    return error is not None and error is not False and str(error).strip().lower() not in _FINE


def _parsed(text: str) -> object | None:
    """A text that is a JSON object or array; ``None`` when it is not."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def _plain(text: str) -> str:
    """A page's title, or the beginning of a text."""
    if text.lstrip().startswith("<"):
        title = _TITLE.search(text[:20_000])
        text = html.unescape(title[1] if title and title[1].strip() else _NOT_TEXT.sub(" ", text[:20_000]))
    return " ".join(text[: 4 * MAX_MESSAGE_CHARS].split())


def _mappings(value: object, depth: int = 0) -> Iterator[Mapping[str, Any]]:
    """The objects of a body that speak of the error, the outermost last of those that nest."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, str):
        value = _parsed(value)
    if isinstance(value, list):
        for item in value[:MAX_PARTS]:
            yield from _mappings(item, depth + 1)
    elif isinstance(value, Mapping):
        for key in (*_NESTED_KEYS, "message", "detail", "details"):
            if isinstance(inner := value.get(key), Mapping | list | str):
                yield from _mappings(inner, depth + 1)
        yield value


def _reasons(value: object, depth: int = 0) -> Iterator[str]:
    if depth > MAX_DEPTH:
        return
    if isinstance(value, str):
        inner = _parsed(value)
        if inner is not None:
            yield from _reasons(inner, depth + 1)
        elif value.strip():
            yield _plain(value)
    elif isinstance(value, list):
        for item in value[:MAX_PARTS]:
            yield from _reasons(item, depth + 1)
    elif isinstance(value, Mapping):
        place = value.get("loc")
        where = f"{'.'.join(map(str, place))}: " if isinstance(place, list) and place else ""
        for key in _REASON_KEYS:
            for reason in _reasons(value.get(key), depth + 1):
                yield where + reason
                where = ""
        for key in _NESTED_KEYS:
            yield from _reasons(value.get(key), depth + 1)


def _status(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
        value = int(value)
    is_status = isinstance(value, int) and not isinstance(value, bool) and 400 <= value < 600
    return value if is_status and isinstance(value, int) else None


def _parameter(item: Mapping[str, Any]) -> str | None:
    name = item.get("param") or item.get("parameter")
    if isinstance(name, str) and name:
        return name.split(".")[0]
    place = item.get("loc")
    if isinstance(place, list) and place:
        names = [str(part) for part in place if part != "body"]
        return names[0] if names else None
    return None


def _seconds(value: object) -> float | None:
    """A time to wait, as a field has it: seconds as a number, or such as ``33s``."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    return reset_s(str(value)[:40], 0.0)


def _wait_in(reason: str) -> float | None:
    """A time to wait, as a sentence has it: "try again in 7.66s", "retry after 30 seconds"."""
    found = _WAIT.search(reason)
    if found is None:
        return None
    if not found["time"][-1].isdigit():
        return reset_s(found["time"], 0.0)
    unit = (found["unit"] or "second").lower()
    return float(found["time"]) * next(length for name, length in _UNITS_S.items() if unit.startswith(name))
