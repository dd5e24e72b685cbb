"""What an endpoint's refusal means: from status, headers and body to one of our errors. Pure.

A refusal is judged by its status and by the codes in its body. Some meanings are told in prose alone (an
empty balance under a plain 400, a request that is larger than a whole minute's allowance): those few
sentences are looked for as well, since without them every row would be bought and lost one by one.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from genworker.core.finish_words import normal_word
from genworker.core.hints import quotas, retry_after_s
from genworker.core.visible import visible
from genworker.errors import (
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)

MAX_MESSAGE_CHARS = 500
MAX_DEPTH = 8
"""How deep an error's body is looked into: a router's wraps its upstream's, as a text within an object."""
MAX_PARTS = 8
"""Reasons of one body that are shown: a list of faults may be long."""

PASSING: Final = frozenset({408, 409, 419, 421, 423, 424, 425, 440, 444, 449, 460, 498, 499})
"""Statuses below 500 that pass: timeouts, locks, capacity, a connection that a proxy closed."""
MAYBE_BILLED: Final = frozenset({408, 424, 444, 460, 499})
"""Of those, the ones with which a gateway says that its own upstream call was let go: that may be billed."""
TOO_MANY: Final = frozenset({420, 429, 529})


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked, as far as the reading of an answer wants to know it.

    Attributes:
        model: the name that was asked for.
        address: where, without the query, for messages; ``""`` when it does not matter.
        fields: the names of the request's fields.
        redact: takes the key out of a text: an endpoint may echo it.
    """

    model: str = ""
    address: str = ""
    fields: Sequence[str] = ()
    redact: Callable[[str], str] = field(default=lambda text: text)


@dataclass(frozen=True, slots=True)
class Complaint:
    """What the body of a refusal says.

    Attributes:
        reason: in the endpoint's words, on one line; ``""`` when it says nothing.
        codes: its codes and types, each in one spelling (`normal_word`).
        status: an HTTP status that stands in the body; ``None`` for none.
        parameter: the parameter that it speaks of; ``None`` for none.
        moderated: whether it lists what in the input was flagged.
    """

    reason: str = ""
    codes: frozenset[str] = frozenset()
    status: int | None = None
    parameter: str | None = None
    moderated: bool = False


# What a body says

_REASON_KEYS = (
    "message",
    "Message",
    "msg",
    "error_message",
    "errorMessage",
    "error_msg",
    "error_description",
    "faultstring",
    "detail",
    "details",
    "description",
    "title",
    "reason",
    "reasons",
    "text",
)
_NESTED_KEYS = (
    "error",
    "errors",
    "Error",
    "fault",
    "metadata",
    "raw",
    "innererror",
    "inner_error",
    "cause",
    "body",
    "response",
)
_CODE_KEYS = (
    "code",
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
_TITLE = re.compile(r"<title[^>]*>(.*?)</title\s*>", re.IGNORECASE | re.DOTALL)
_NOT_TEXT = re.compile(r"<(script|style)\b.*?</\1\s*>|<[^>]*>", re.IGNORECASE | re.DOTALL)


def complaint_of(body: object) -> Complaint:
    """What an error's body says, in any of the usual shapes: OpenAI's, Anthropic's, FastAPI's, Google's, …

    Args:
        body: parsed JSON, or a text.
    """
    if isinstance(body, str):
        parsed = _parsed(body)
        if parsed is None:
            return Complaint(_plain(body))
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
    moderated = any("flagged_input" in item or "moderation" in item for item in found)
    return Complaint(reason, frozenset(codes), next(statuses, None), parameter, moderated)


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


# What it means


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# Parts of codes, as `normal_word` spells them.
_MONEY_PARTS = _words(
    "arrearage arrears balance billing budget credit credits funds payment prepaid quota spend spending"
)
_RATE_PARTS = _words("minute minutely rate rpm second throttled throttling tpm tpd")
_MODEL_PARTS = _words("deployment model models")
_ABSENT_PARTS = _words(
    "access available denied exist found invalid missing open supported unknown unsupported"
)
_NO_MODEL_CODES = _words("invalid_model model_not_found unknown_model")
_FILTER_PARTS = _words(
    "blocked flagged guardrail guardrails harmful inspection moderated moderation policy prohibited safety "
    "sensitive"
)
_SIZE_CODES = _words(
    "context_length_exceeded context_window_exceeded exceed_context_size_error prompt_too_long "
    "request_too_large string_above_max_length"
)
_INPUT_PARAMETERS = _words("contents input input_tokens messages prompt")
_AUTH_PARTS = _words(
    "auth authentication authorization credentials forbidden permission unauthenticated unauthorized"
)

# Sentences, where no code tells the same.
_MONEY_WORDS = _any_of(
    r"credit balance",
    r"(?:insufficient|negative|not enough|out of|zero) (?:\w+ )?(?:balance|credits?|funds|quota)\b",
    r"balance (?:is )?(?:too low|insufficient|not enough|exhausted|used up)",
    r"(?:credits?|funds|balance) (?:has |have |is |are )?(?:been )?(?:exhausted|depleted|used up)",
    r"budget (?:has )?(?:been )?(?:exceeded|exhausted|used up)",
    r"(?:exceed(?:ed|s)?|crossed|over) (?:\w+ ){0,2}budget",
    r"(?:spend|spending|billing|credit) (?:hard )?limit (?:has been |was |is )?(?:reached|exceeded)",
    r"more credits",
    r"can only afford",
    r"payment required",
    "\N{CJK UNIFIED IDEOGRAPH-4F59}\N{CJK UNIFIED IDEOGRAPH-989D}\N{CJK UNIFIED IDEOGRAPH-4E0D}"
    "\N{CJK UNIFIED IDEOGRAPH-8DB3}",  # "the balance does not suffice"
)
_MODERATION_WORDS = _any_of(
    r"(?:input|prompt|content|request|text)\b[^.]{0,80}\b(?:flagged|moderat|blocked)",
    r"(?:requires|needs) moderation",
    r"content (?:management )?polic|content filter|safety (?:system|filter|polic)",
    r"(?:prohibited|harmful|inappropriate|sensitive) (?:content|information|words?)",
)
_ACCOUNT_WORDS = _any_of(r"\b(?:account|organi[sz]ation|api key|your key|your plan|country|region)\b")
_SIZE_WORDS = _any_of(
    r"context (?:length|window|size)",
    r"maximum context",
    r"(?:prompt|input|request|message)\b[^.]{0,40}\btoo (?:long|large)",
    r"too many (?:input )?tokens",
)
_TOO_LARGE_WORDS = _any_of(r"request too large|request is too large")
_LIMIT = _any_of(r"\blimit\W{0,3}(?:(?:is|of|tokens?)\W{1,3})?(\d[\d,_]{0,15})")
_REQUESTED = _any_of(r"\brequest(?:ed|s)?\W{0,3}(?:(?:is|was|tokens?)\W{1,3})?(\d[\d,_]{0,15})")
_MODEL_WORDS = _any_of(r"\bmodels?\b|\bdeployments?\b|\bendpoints? found")
_NO_MODEL_WORDS = _any_of(
    r"(?:invalid|unknown|no such|unrecogni[sz]ed) model\b",
    r"\bmodel\b.{0,80}\b(?:not found|(?:does|do|did)(?: not|n't) exist|not exist)",
)


def refusal_of(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: object,
    now_epoch_s: float,
    asked: Asked,
    *,
    complaint: Complaint | None = None,
) -> ProviderError:
    """The one translation from a status and a body into our errors.

    Args:
        status: of HTTP, from 300 up; 200 when the error stands in the body of an answer.
        headers: (name, value) as they came.
        body: parsed JSON, or a text.
        now_epoch_s: the present by the local clock, in seconds since 1970; counts where no ``date`` came.
        complaint: what the body says, when that is known already.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    said = complaint_of(body) if complaint is None else complaint
    meant = _meant_status(said) if status < 300 else status
    head = "the answer holds an error" if status < 300 else f"HTTP {status}"
    reason = asked.redact(visible(said.reason, limit=MAX_MESSAGE_CHARS, one_line=True))
    plain = {name.decode("latin-1"): value.decode("latin-1") for name, value in pairs}
    details: dict[str, Any] = {
        "status": meant,
        "request_id": request_id_of(pairs),
        "quotas": quotas(pairs, now_epoch_s),
    }
    message = f"{head}: {reason}" if reason else head
    hint = retry_after_s(plain, now_epoch_s)
    return _judge(meant, said, message, hint, asked, details)


def _judge(
    status: int, said: Complaint, message: str, hint: float | None, asked: Asked, details: dict[str, Any]
) -> ProviderError:
    reject = RequestRejectedError
    if _is_money(said):
        return reject(message, scope=Scope.ENDPOINT, is_sure=True, **details)
    if status in (400, 403, 422, 451) and _is_moderation(said):
        return reject(message, about_input=True, **details)
    is_large = status == 413 or _is_larger_than_the_limit(said)
    if is_large and 400 <= status < 500:
        return reject(message, about_input=True, **details)
    is_rate = any("rate_limit" in code or set(code.split("_")) & _RATE_PARTS for code in said.codes)
    if status in TOO_MANY or (is_rate and status in (400, 403)):
        return RateLimitedError(message, retry_after_s=hint, **details)
    if _is_about_model(status, said, asked):
        return reject(message, scope=Scope.LANE, is_sure=True, **details)
    if status in (401, 402, 403, 407):
        return reject(message, scope=Scope.ENDPOINT, **details)
    if status in (404, 405, 410):
        asked_at = f" (asked {asked.address})" if asked.address else ""
        return reject(f"{message}{asked_at}", scope=Scope.ENDPOINT, **details)
    if status in PASSING or status >= 500:
        billed = status >= 500 or status in MAYBE_BILLED
        return ProviderUnavailableError(message, retry_after_s=hint, may_be_billed=billed, **details)
    if 300 <= status < 400:
        message = f"HTTP {status}: the endpoint redirects to another address, which is not followed"
        return reject(message, scope=Scope.ENDPOINT, is_sure=True, **details)
    about_input = (
        bool(said.codes & _SIZE_CODES)
        or said.parameter in _INPUT_PARAMETERS
        or _SIZE_WORDS.search(said.reason) is not None
    )
    mend = "" if about_input else _mend(said, asked.fields)
    return reject(f"{message}{mend}", about_input=about_input, **details)


def _meant_status(said: Complaint) -> int:
    """The status that an error in the body of a 200 stands for; 502, an outage, when it does not say."""
    if said.status is not None:
        return said.status
    for code in said.codes:
        parts = set(code.split("_"))
        if "rate_limit" in code or "too_many" in code or parts & _RATE_PARTS:
            return 429
        if parts & _AUTH_PARTS or "api_key" in code:
            return 401
        if code in _SIZE_CODES or {"invalid", "request"} <= parts or {"bad", "request"} <= parts:
            return 400
    return 502


def _is_money(said: Complaint) -> bool:
    """Whether balance, budget or credit is used up: no waiting helps, and every row would be refused."""
    for code in said.codes:
        parts = set(code.split("_"))
        if parts & _MONEY_PARTS and not parts & _RATE_PARTS:
            return True
    return _MONEY_WORDS.search(said.reason) is not None


def _is_moderation(said: Complaint) -> bool:
    if said.moderated:
        return True
    for code in said.codes:
        if set(code.split("_")) & _FILTER_PARTS or "content_filter" in code:
            return True
    return _MODERATION_WORDS.search(said.reason) is not None and not _ACCOUNT_WORDS.search(said.reason)


def _is_larger_than_the_limit(said: Complaint) -> bool:
    """Whether one request asks for more than the limit of a whole minute: no waiting lets it in."""
    limit, requested = _LIMIT.search(said.reason), _REQUESTED.search(said.reason)
    if limit and requested:
        return _number(requested[1]) > _number(limit[1])
    return "request_too_large" in said.codes or _TOO_LARGE_WORDS.search(said.reason) is not None


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text))


def _is_about_model(status: int, said: Complaint, asked: Asked) -> bool:
    if said.codes & _NO_MODEL_CODES:
        return True
    if status >= 500:  # "model_not_available" under a 503 is a matter of capacity
        return False
    for code in said.codes:
        parts = set(code.split("_"))
        if parts & _MODEL_PARTS and parts & _ABSENT_PARTS:
            return True
    if status not in (400, 403, 404, 410, 422):
        return False
    if said.parameter == "model" or _NO_MODEL_WORDS.search(said.reason):
        return True
    named = bool(asked.model) and asked.model in said.reason
    return status in (404, 410) and (named or _MODEL_WORDS.search(said.reason) is not None)


# How to mend it

_MENDS = {
    "seed": "seed = false",
    "temperature": 'temperature = "unset"',
    "top_p": 'top_p = "unset"',
    "stop": 'stop = "unset"',
    "stop_sequences": 'stop = "unset"',
    "system": 'system = "unset"',
    "max_tokens": 'a smaller max_tokens, or max_tokens_field = "max_completion_tokens"',
    "max_completion_tokens": 'a smaller max_tokens, or max_tokens_field = "max_tokens"',
}
_TOO_COMMON = frozenset({"stop", "system"})
"""Words of every day: only named as a parameter, or in quotes, do they mean the field."""


def _mend(said: Complaint, fields: Sequence[str]) -> str:
    """The key that takes a refused parameter away, in words; ``""`` when no parameter is spoken of."""
    if said.parameter is not None and said.parameter in fields:
        named: Sequence[str] = [said.parameter]
    else:
        named = [name for name in fields if _names(said.reason, name)]
    for name in named:
        if name in ("model", "messages"):
            continue
        if name in _MENDS:
            return f"; to mend it, set {_MENDS[name]} in this model's section"
        return f"; {name} comes from extra_body"
    return ""


def _names(reason: str, name: str) -> bool:
    is_word = name in _TOO_COMMON or ("_" not in name and name not in _MENDS)
    quote = "['\"`]" if is_word else ""
    return re.search(rf"{quote}(?<![\w.]){re.escape(name)}(?!\w){quote}", reason) is not None


# Headers


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """The endpoint's name for a call."""
    found = {
        name.lower(): value for name, value in headers if name.lower() in (b"x-request-id", b"request-id")
    }
    value = found.get(b"x-request-id") or found.get(b"request-id")
    return visible(value.decode("latin-1"), limit=200, one_line=True) if value else None
