"""What an endpoint's refusal means: from status, headers and body to one of our errors. Pure.

A refusal is judged by its status and by the codes in its body. Some meanings are told in prose alone (an
empty balance under a plain 400, a request that is larger than a whole minute's allowance): those few
sentences are looked for as well, since without them every row would be bought and lost one by one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from genworker.core.complaints import MAX_MESSAGE_CHARS, Complaint, complaint_of
from genworker.core.hints import quotas, retry_after_s
from genworker.core.visible import visible
from genworker.errors import (
    ProviderError,
    ProviderUnavailableError,
    RateLimitedError,
    RequestRejectedError,
    Scope,
)

PASSING: Final = frozenset({408, 409, 419, 421, 423, 424, 425, 440, 444, 449, 460, 498, 499})
"""Statuses below 500 that pass: timeouts, locks, capacity, a connection that a proxy closed."""
MAYBE_BILLED: Final = frozenset({408, 424, 444, 460, 499})
"""Of those, the ones with which a gateway says that its own upstream call was let go: that may be billed."""
TOO_MANY: Final = frozenset({420, 429, 529})
TOO_LARGE: Final = frozenset({413, 414, 431})


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


# What it means


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


# Parts of codes, as `normal_word` spells them.
_MONEY_PARTS = _words(
    "arrearage arrears balance billing budget credit credits funds overdue payment prepaid quota spend "
    "spending"
)
_RATE_PARTS = _words("minute minutely rate rpm second throttled throttling tpm tpd")
_MODEL_PARTS = _words("deployment model models")
_ABSENT_PARTS = _words(
    "access available blocked decommissioned denied deprecated disabled exist found invalid missing open "
    "permission retired supported terms unavailable unknown unsupported"
)
_NO_MODEL_CODES = _words("invalid_model model_not_found unknown_model")
_FILTER_PARTS = _words(
    "blocked flagged guardrail guardrails harmful hooks inspection moderated moderation policy prohibited "
    "safety sensitive unsafe"
)
_SIZE_CODES = _words(
    "context_length_exceeded context_window_exceeded exceed_context_size_error prompt_too_long "
    "request_too_large string_above_max_length"
)
_INPUT_PARAMETERS = _words("contents input input_tokens messages prompt")
_AUTH_PARTS = _words(
    "auth authentication authorization credentials forbidden permission unauthenticated unauthorized"
)
_HOUSE_PARTS = _words("account organization organisation project team user workspace")
_SHUT_PARTS = _words("banned closed deactivated disabled inactive restricted suspended terminated")
_PASSING_PARTS = _words("busy overload overloaded timeout unavailable")

# Sentences, where no code tells the same.
_OF_MONEY = "billing|credit|monthly|spend|spending|usage"
_MONEY_WORDS = _any_of(
    r"credit balance",
    r"(?:insufficient|negative|not enough|out of|zero) (?:\w+ ){0,2}(?:balance|credits?|funds|quota)\b",
    r"\b(?:no|any) (?:\w+ )?(?:credits|funds)\b",
    r"balance (?:is )?(?:too low|insufficient|not enough|exhausted|used up)",
    r"(?:credits?|funds|balance) (?:has |have |is |are )?(?:been )?(?:exhausted|depleted|used up)",
    r"(?:consumed|exceed(?:ed|s)|exhausted|used) (?:\w+ ){0,5}(?:allocation|allowance|credits)\b",
    r"budget (?:has )?(?:been )?(?:exceeded|exhausted|used up)",
    r"(?:exceed(?:ed|s)?|crossed|over) (?:\w+ ){0,2}budget",
    rf"\b(?:key|{_OF_MONEY}) (?:hard )?limits? (?:has been |was |is )?(?:reached|exceeded)",
    rf"(?:exceed(?:ed|ing)?|hit|reach(?:ed|ing)?) (?:\w+ ){{0,4}}(?:{_OF_MONEY}) (?:\w+ )?limits?",
    r"/ ?month\b|per month\b",
    r"more credits|can only afford|payment required|payment method|credit card|failure to pay|overdue",
    # "the balance does not suffice", "in arrears", "top up"
    r"\u4f59\u989d\u4e0d\u8db3|\u6b20\u8d39|\u5145\u503c",
)
_BILLING_WORDS = _any_of(r"check your plan and billing", r"current quota")
"""Words for an empty purse that Google also uses for a limit of a minute: then it says when to come again."""
_RATE_WORDS = _any_of(
    r"\b[rt]p[ms]\b|rate[- ]limit|too many requests|throttl",
    r"(?:per|/) ?(?:second|minute|min)\b",
)
_SHUT_WORDS = _any_of(
    r"\b(?:account|organi[sz]ation|workspace)\b[^.]{0,60}"
    r"\b(?:banned|deactivated|disabled|not active|restricted|suspended|terminated)\b",
    r"\b(?:country|location|region|territory)\b[^.]{0,40}\bnot (?:supported|available|allowed)",
    r"HTTP request (?:was sent )?to (?:an )?HTTPS",
)
_KEY = "api[ _-]?key|(?:access|api) token"
_KEY_WORDS = _any_of(
    rf"(?:invalid|incorrect|wrong|expired|missing|unknown) (?:\w+ )?(?:{_KEY})",
    rf"(?:{_KEY})\b[^.]{{0,20}}\b(?:not valid|invalid|expired|missing|not found|revoked)",
    r"authentication (?:error|failed)|unauthenticated|unauthori[sz]ed",
)
_FLAGGED_WORDS = _any_of(
    r"violat\w+ (?:\w+ ){0,3}(?:guidelines?|polic(?:y|ies)|terms)",
    r"guardrail|content exists risk|safety_check",
    r"(?:prohibited|harmful|inappropriate|sensitive|unsafe) (?:content|information|words?)",
    r"\u654f\u611f",  # "sensitive"
)
_MODERATION_WORDS = _any_of(
    r"(?:input|prompt|content|request|text|output)\b[^.]{0,80}\b(?:flagged|moderat|blocked)",
    r"(?:requires|needs) moderation",
    r"content (?:management )?polic|content filter|safety (?:system|filter|polic)",
)
_ACCOUNT_WORDS = _any_of(r"\b(?:account|organi[sz]ation|api key|your key|your plan|country|region)\b")
_SIZE_WORDS = _any_of(
    r"context (?:length|limit|size|window)",
    r"maximum context|maximum (?:input|model|prompt) length|maximum number of (?:input |prompt )?tokens",
    r"(?:prompt|input|request|message)s?\b[^.]{0,40}\b(?:too (?:long|large)|longer than|exceeds?\b)",
    r"too many (?:input )?tokens|reduce the length|input length|inputs?\W{1,3}tokens",
    r"inputs?\b[^.]{0,30}\b(?:fewer|less) than [\d,]+ tokens",
)
_TOO_LARGE_WORDS = _any_of(r"request (?:is )?too large")
_LIMIT = _any_of(r"\blimit\W{0,3}(?:(?:is|of|tokens?)\W{1,3})?(\d[\d,_]{0,15})")
_REQUESTED = _any_of(
    r"\brequest(?:ed|s)?\W{0,3}(?:(?:is|was|tokens?)\W{1,3})?(\d[\d,_]{0,15})",
    r"(\d(?:[\d,_]{0,14}\d)?) (?:tokens )?(?:were |was )?requested",
)
_MODEL_WORDS = _any_of(r"\bmodels?\b|\bdeployments?\b|\bendpoints? found")
_NO_MODEL_WORDS = _any_of(
    r"(?:invalid|no such|unavailable|unknown|unrecogni[sz]ed|unsupported) model\b",
    r"\bmodel\b.{0,80}\b(?:not found|(?:does|do|did)(?: not|n't) exist|not exist)",
    r"\bmodel\b.{0,80}\b(?:decommissioned|retired|end of life)",
    r"\bmodel (?:is |has been )?disabled|\bmodel (?:\w+ ){0,2}is (?:invalid|not valid)|not a valid model",
    r"\bmodel\b.{0,60}\bnot supported by any|on-demand throughput|with the specified model",
    r"(?:not|n't|no|without) (?:have )?access to (?:\w+ ){0,3}model",
    r"not (?:allowed|authori[sz]ed|permitted) to (?:\w+ ){1,3}model|to use the model",
)
_PASSING_WORDS = _any_of(
    r"\bmodel\b.{0,40}\b(?:crashed|loading|reloaded|unloaded)|temporarily (?:overloaded|unavailable)"
)


def refusal_of(
    status: int,
    headers: Iterable[tuple[bytes, bytes]],
    body: object,
    now_epoch_s: float,
    asked: Asked,
) -> ProviderError:
    """The one translation from a status and a body into our errors.

    Args:
        status: of HTTP, from 300 up; 200 when the error stands in the body of an answer.
        headers: (name, value) as they came.
        body: parsed JSON, or a text.
        now_epoch_s: the present by the local clock, in seconds since 1970; counts where no ``date`` came.
    """
    pairs = [(name.lower(), value) for name, value in headers]
    said = complaint_of(body)
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
    if hint is None:
        hint = said.retry_after_s
    return _judge(meant, said, message, hint, asked, details)


def _judge(
    status: int, said: Complaint, message: str, hint: float | None, asked: Asked, details: dict[str, Any]
) -> ProviderError:
    reject = RequestRejectedError
    if _is_money(said) or _is_shut(said):
        return reject(message, scope=Scope.ENDPOINT, is_sure=True, **details)
    if _names_model_in_code(status, said):
        return reject(message, scope=Scope.LANE, is_sure=True, **details)
    if _is_moderation(status, said):
        return reject(message, about_input=True, **details)
    is_large = status in TOO_LARGE or _is_larger_than_the_limit(said)
    if is_large and 400 <= status < 500:
        return reject(message, about_input=True, **details)
    if status in TOO_MANY or (status in (400, 403) and _is_rate(said)):
        return RateLimitedError(message, retry_after_s=hint, **details)
    if status in PASSING or _is_passing(status, said):
        billed = status >= 500 or status in MAYBE_BILLED
        return ProviderUnavailableError(message, retry_after_s=hint, may_be_billed=billed, **details)
    if _is_about_model(status, said, asked):
        return reject(message, scope=Scope.LANE, is_sure=True, **details)
    if status in (401, 402, 403, 407) or _is_key(said):
        return reject(message, scope=Scope.ENDPOINT, **details)
    if status in (404, 405, 410, 501):
        return reject(f"{message}{_asked_at(asked.address)}", scope=Scope.ENDPOINT, **details)
    if status >= 500:
        return ProviderUnavailableError(message, retry_after_s=hint, may_be_billed=True, **details)
    if 300 <= status < 400:
        message = f"HTTP {status}: the endpoint redirects to another address, which is not followed"
        return reject(message, scope=Scope.ENDPOINT, is_sure=True, **details)
    about_input = _is_size(said)
    mend = "" if about_input else _mend(said, asked.fields)
    return reject(f"{message}{mend}", about_input=about_input, **details)


def _asked_at(address: str) -> str:
    """The address that leads nowhere, and what is most often wrong with it."""
    if not address:
        return ""
    is_bare = address.partition("://")[2].partition("/")[2] == "chat/completions"
    hint = "; base_url lacks its version, such as /v1" if is_bare else ""
    return f" (asked {address}{hint})"


def _meant_status(said: Complaint) -> int:
    """The status that an error in the body of a 200 stands for; 502, an outage, when it does not say."""
    if said.status is not None:
        return said.status
    if _is_rate(said) or any("too_many" in code for code in said.codes):
        return 429
    if _is_key(said) or any(set(code.split("_")) & _AUTH_PARTS for code in said.codes):
        return 401
    for code in said.codes:
        parts = set(code.split("_"))
        if code in _SIZE_CODES or {"invalid", "request"} <= parts or {"bad", "request"} <= parts:
            return 400
    return 502


def _is_money(said: Complaint) -> bool:
    """Whether balance, budget or credit is used up: no waiting helps, and every row would be refused."""
    if _MONEY_WORDS.search(said.reason):
        return True
    if (
        said.retry_after_s is not None
        or "resource_exhausted" in said.codes
        or _RATE_WORDS.search(said.reason)
    ):
        return False
    if _BILLING_WORDS.search(said.reason):
        return True
    parts = [set(code.split("_")) for code in said.codes]
    return any(part & _MONEY_PARTS and not part & _RATE_PARTS for part in parts)


def _is_shut(said: Complaint) -> bool:
    """Whether an account is shut, or nobody is served there: the same for every row."""
    if _SHUT_WORDS.search(said.reason) and not _MODEL_WORDS.search(said.reason):
        return True
    parts = [set(code.split("_")) for code in said.codes]
    return any(part & _HOUSE_PARTS and part & _SHUT_PARTS for part in parts)


def _is_moderation(status: int, said: Complaint) -> bool:
    if status in (401, 402, 404, 407, 429):
        return False
    if said.moderated or status in (446, 451):
        return True
    for code in said.codes:
        if set(code.split("_")) & _FILTER_PARTS or "content_filter" in code:
            return True
    if _FLAGGED_WORDS.search(said.reason):
        return True
    return _MODERATION_WORDS.search(said.reason) is not None and not _ACCOUNT_WORDS.search(said.reason)


def _is_larger_than_the_limit(said: Complaint) -> bool:
    """Whether one request asks for more than the limit of a whole minute: no waiting lets it in."""
    limit, requested = _LIMIT.search(said.reason), _REQUESTED.search(said.reason)
    if limit and requested:
        return _number(requested[1] or requested[2]) > _number(limit[1])
    return "request_too_large" in said.codes or _TOO_LARGE_WORDS.search(said.reason) is not None


def _is_size(said: Complaint) -> bool:
    """Whether a prompt is too long for the model."""
    if said.codes & _SIZE_CODES or said.parameter in _INPUT_PARAMETERS:
        return True
    return _SIZE_WORDS.search(said.reason) is not None


def _is_rate(said: Complaint) -> bool:
    coded = any("rate_limit" in code or set(code.split("_")) & _RATE_PARTS for code in said.codes)
    return coded or _RATE_WORDS.search(said.reason) is not None


def _is_key(said: Complaint) -> bool:
    """Whether the key is not taken: some say so under 400, or in the body of a 200."""
    return any("api_key" in code for code in said.codes) or _KEY_WORDS.search(said.reason) is not None


def _is_passing(status: int, said: Complaint) -> bool:
    """Whether a status that is final by its number speaks of what passes: an overload, a model that loads."""
    if status not in (400, 404, 422):
        return False
    coded = any(set(code.split("_")) & _PASSING_PARTS for code in said.codes)
    return coded or _PASSING_WORDS.search(said.reason) is not None


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text))


def _names_model_in_code(status: int, said: Complaint) -> bool:
    if said.codes & _NO_MODEL_CODES:
        return True
    if status >= 500:  # "model_not_available" under a 503 is a matter of capacity
        return False
    parts = [set(code.split("_")) for code in said.codes]
    return any(part & _MODEL_PARTS and part & _ABSENT_PARTS for part in parts)


def _is_about_model(status: int, said: Complaint, asked: Asked) -> bool:
    if status not in (400, 401, 403, 404, 410, 422):
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
