"""The one reading of what an endpoint answers: (status, headers, body) to a completion or an error. Pure.

Chat Completions and Messages are read by the shape of the body, not by the API that was asked: gateways
answer in either. The live adapters use this, and so does whoever has a body without a connection, such as
a line of a batch's results::

    outcome = read_answer(200, (), {"choices": […], "usage": {…}}, now_epoch_s=0.0)

Nothing here depends on an SDK or an HTTP library.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import orjson

from genworker.core.complaints import Complaint, complaint_of, error_in, is_complaint
from genworker.core.completion import Completion, FinishReason, Usage, clean_text
from genworker.core.finish_words import finish_of, says_nothing
from genworker.core.hints import quotas
from genworker.core.refusals import Asked, refusal_of, request_id_of
from genworker.core.visible import visible
from genworker.errors import MalformedAnswerError, ProviderError, ProviderUnavailableError

KEPT_BODY_BYTES: Final = 1024 * 1024
"""How much of a body that is no answer is kept."""
MOST_TOKENS: Final = 1_000_000_000
"""A count beyond this is no count: a cap must not depend on an endpoint's slip."""
MOST_USD: Final = Decimal(100_000)
"""The same for what a call is said to have cost."""
ANYBODY: Final = Asked()

Headers = Sequence[tuple[bytes, bytes]]


def read_answer(
    status: int,
    headers: Headers,
    body: bytes | object,
    *,
    now_epoch_s: float,
    latency_s: float = 0.0,
    asked: Asked = ANYBODY,
) -> Completion | ProviderError:
    """What came back, as an answer or as the reason why there is none.

    Args:
        status: of HTTP.
        headers: (name, value) as they came; none where there were none.
        body: the bytes, unpacked from their content coding; or JSON that is parsed already.
        now_epoch_s: the present by the local clock, in seconds since 1970: hints may be dates, and those are
            read by it when the answer has no ``date`` header.
        latency_s: from sending to the last byte, for the completion.
        asked: what was asked; makes messages better.
    """
    record = parse_body(body) if isinstance(body, bytes) else body
    if not 200 <= status < 300:
        shown = _text_of_body(body) if record is None else record
        return refusal_of(status, headers, shown, now_epoch_s, asked)
    if isinstance(record, list) and len(record) == 1:
        record = record[0]
    if not isinstance(record, dict):
        return malformed("the answer is not a JSON object", status, headers, body, asked)
    parts = _parts(record)
    error = error_in(record)
    if error is not None and not parts.has_answer:
        return refusal_of(200, headers, error, now_epoch_s, asked)
    if not parts.is_there:
        if is_complaint(record):
            return refusal_of(200, headers, record, now_epoch_s, asked)
        return malformed(parts.what_lacks, status, headers, body, asked)
    completion = _completion(record, parts, headers, now_epoch_s, latency_s)
    error = parts.error if error is None else error
    if error is None and completion.finish_reason is not FinishReason.BROKEN_OFF:
        return completion
    return _broken_off(completion, complaint_of(error) if error is not None else Complaint(), status, asked)


# The body


def parse_body(body: bytes) -> Any:
    """A body as JSON; ``None`` when it is none.

    A byte order mark, white space, and the comment lines that relays send to keep a connection open may
    stand before it and behind it; it may be the only event of a stream. Lone surrogates and bytes that are
    not UTF-8 are taken: models do produce them.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    text = body.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
    while text.startswith(_LINES_OF_STREAMS):
        text = text.partition("\n")[2].lstrip()
    text = text.removeprefix("data:").lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    behind = text[end:].lstrip()
    is_whole = not behind or behind.startswith((*_LINES_OF_STREAMS, "data: [DONE]", "data:[DONE]"))
    return value if is_whole else None


_LINES_OF_STREAMS = (":", "event:", "id:", "retry:")


def _text_of_body(body: bytes | object) -> str:
    return body[:KEPT_BODY_BYTES].decode("utf-8", "replace") if isinstance(body, bytes) else str(body)


def malformed(
    what: str, status: int, headers: Headers, body: bytes | object, asked: Asked = ANYBODY
) -> MalformedAnswerError:
    """An answer that cannot be read, with what came."""
    if isinstance(body, bytes):
        text = _text_of_body(body)
    else:
        text = json.dumps(body, ensure_ascii=False, default=str)[:KEPT_BODY_BYTES]
    return MalformedAnswerError(
        what, body=asked.redact(text), status=status, request_id=request_id_of(headers)
    )


# The parts of an answer


@dataclass(frozen=True, slots=True)
class _Parts:
    """What both APIs have in common.

    Attributes:
        is_there: whether there is something to be judged: a message, or a word that says why there is none.
        what_lacks: what is missing otherwise.
        error: an error that stands within the choice.
    """

    is_there: bool = False
    what_lacks: str = ""
    text: str = ""
    reasoning: str = ""
    finish: FinishReason = FinishReason.OTHER
    word: str | None = None
    usage: object = None
    error: object | None = None

    @property
    def has_answer(self) -> bool:
        """Whether something of an answer came."""
        return bool(self.text or self.reasoning)


def _parts(record: Mapping[str, Any]) -> _Parts:
    choices = record.get("choices")
    if "choices" in record or "content" not in record:
        choice = choices[0] if isinstance(choices, list) and choices else None
        parts = (
            _of_choice(choice) if isinstance(choice, dict) else _Parts(what_lacks="the answer has no choices")
        )
    else:
        parts = _of_blocks(record)
    if parts.usage is None:
        parts = replace(parts, usage=_usage_of(record))
    if record.get("input_sensitive") is True or record.get("output_sensitive") is True:  # MiniMax
        parts = replace(parts, finish=FinishReason.CONTENT_FILTER)
    return parts


def _usage_of(record: Mapping[str, Any]) -> object:
    """The object that counts the tokens, where a gateway puts it."""
    places = (record.get("usage"), record.get("usageMetadata"), _at(record, "x_groq", "usage"))
    return next((place for place in places if isinstance(place, Mapping)), None)


def _of_choice(choice: Mapping[str, Any]) -> _Parts:
    """A choice of Chat Completions."""
    message = next((item for key in ("message", "delta") if isinstance(item := choice.get(key), dict)), None)
    usage, error = choice.get("usage"), choice.get("error") or None
    text = reasoning = ""
    has_tools = is_refusal = False
    if message is not None:
        text, reasoning = _text_and_reasoning(message.get("content"))
        reasoning = _reasoning(message) or _reasoning(choice) or reasoning
        has_tools = bool(message.get("tool_calls") or message.get("function_call"))
        error = error or message.get("error") or None
        if not text and (refusal := _refusal(message)):
            text, is_refusal = refusal, True
    elif isinstance(choice.get("text"), str):
        text = choice["text"]
    if not text.strip() and _is_filtered(choice.get("content_filter_results")):
        is_refusal = True
    is_message = message is not None or isinstance(choice.get("text"), str)
    word = _word_of_choice(choice)
    return _judged(
        is_message, "choices[0].message", text, reasoning, word, has_tools, is_refusal, usage, error
    )


def _word_of_choice(choice: Mapping[str, Any]) -> str | None:
    """Why a choice ended: the upstream's word where it says something worse than the gateway's own does."""
    word = _word(choice.get("finish_reason"))
    if finish_of(word) not in (FinishReason.STOP, FinishReason.OTHER):
        return word
    native = _word(choice.get("native_finish_reason"))
    if finish_of(native) not in (FinishReason.STOP, FinishReason.OTHER, FinishReason.TOOLS):
        return native
    others = (
        choice.get(key) for key in ("native_finish_reason", "finish_details", "stop_reason", "done_reason")
    )
    found = (
        other for value in (choice.get("finish_reason"), *others) if not says_nothing(other := _word(value))
    )
    return next(found, None)


def _refusal(message: Mapping[str, Any]) -> str:
    """The sentence with which a model refuses, where it stands apart from the text."""
    content = message.get("content")
    parts = [part for part in content if isinstance(part, Mapping)] if isinstance(content, list) else []
    found = (item.get("refusal") for item in (message, *parts))
    return next((refusal for refusal in found if isinstance(refusal, str) and refusal), "")


def _is_filtered(results: object) -> bool:
    """Whether one of Azure's filters has taken the text away."""
    if not isinstance(results, Mapping):
        return False
    return any(isinstance(result, Mapping) and result.get("filtered") is True for result in results.values())


def _of_blocks(record: Mapping[str, Any]) -> _Parts:
    """An answer of Messages."""
    content = record.get("content")
    word = _word(record.get("stop_reason"))
    if says_nothing(word):
        word = _word(record.get("finish_reason"))
    text, reasoning = _text_and_reasoning(content)
    blocks = content if isinstance(content, list) else []
    has_tools = any(isinstance(block, dict) and "tool" in str(block.get("type")) for block in blocks)
    is_message = isinstance(content, list | str | dict)
    return _judged(is_message, "content", text, reasoning, word, has_tools, False, None, None)


def _judged(
    is_message: bool,
    what: str,
    text: str,
    reasoning: str,
    word: str | None,
    has_tools: bool,
    is_refusal: bool,
    usage: object,
    error: object | None,
) -> _Parts:
    finish = FinishReason.CONTENT_FILTER if is_refusal else finish_of(word)
    if not text.strip() and (
        finish is FinishReason.TOOLS or (has_tools and finish in (FinishReason.STOP, FinishReason.OTHER))
    ):
        finish = FinishReason.NO_ANSWER
    says_why = finish in (FinishReason.CONTENT_FILTER, FinishReason.LENGTH, FinishReason.BROKEN_OFF)
    return _Parts(
        is_there=is_message or says_why or error is not None,
        what_lacks=f"the answer has no {what}",
        text=text,
        reasoning=reasoning,
        finish=finish,
        word=None if says_nothing(word) else word,
        usage=usage,
        error=error,
    )


def _word(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("type") or value.get("reason")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return visible(value, limit=80, one_line=True) if isinstance(value, str) else None


def _text_and_reasoning(content: object) -> tuple[str, str]:
    """The answer's text, and what the model thought, out of a string or a list of parts."""
    if isinstance(content, str):
        return content, ""
    if isinstance(content, Mapping):
        content = [content]
    text: list[str] = []
    thought: list[str] = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            text.append(part)
        elif isinstance(part, Mapping):
            kind = str(part.get("type") or "text")
            if "think" in kind or "reason" in kind or part.get("thought") is True:
                thought.append(_deep_text(part))
            elif "tool" not in kind and isinstance(part.get("text"), str):
                text.append(part["text"])
    return "".join(text), "\n\n".join(piece for piece in thought if piece)


_REASONING_KEYS = (
    "reasoning_content",
    "reasoning",
    "reasoning_text",
    "reasoningContent",
    "thinking",
    "thinking_content",
    "thoughts",
    "thought",
    "reasoning_details",
    "thinking_blocks",
    "reasoning_summary",
)
"""In this order: a text goes before a list of its pieces."""


def _reasoning(message: Mapping[str, Any]) -> str:
    """What the model thought, from the first field that has it: gateways send it under several names."""
    places: list[Mapping[str, Any]] = [message]
    if isinstance(more := message.get("provider_specific_fields"), Mapping):  # LiteLLM
        places.append(more)
    for place in places:
        for key in _REASONING_KEYS:
            if key in place and (found := _deep_text(place[key])):
                return found
    return ""


def _deep_text(value: object, depth: int = 0) -> str:
    """The text in a field of reasoning: a string, an object that holds one, or a list of either."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return ""
    if isinstance(value, Mapping):
        for key in ("thinking", "text", "content", "summary", "reasoning", "reasoningText", "reasoning_text"):
            if found := _deep_text(value.get(key), depth + 1):
                return found
        return ""
    if isinstance(value, list):
        return "\n\n".join(piece for item in value if (piece := _deep_text(item, depth + 1)))
    return ""


# The answer


def _completion(
    record: Mapping[str, Any], parts: _Parts, headers: Headers, now_epoch_s: float, latency_s: float
) -> Completion:
    model, name = record.get("model"), record.get("id")
    return Completion(
        text=clean_text(parts.text),
        finish_reason=parts.finish,
        usage=read_usage(parts.usage),
        latency_s=latency_s,
        model=visible(model, limit=200, one_line=True) if isinstance(model, str) else None,
        quotas=quotas(headers, now_epoch_s) if headers else (),
        request_id=request_id_of(headers)
        or (visible(name, limit=200, one_line=True) if isinstance(name, str) and name else None),
        reasoning=clean_text(parts.reasoning),
        finish_word=parts.word,
        told_cost_usd=told_cost(record, parts.usage, headers),
        service_tier=_tier(record.get("service_tier")) or _tier(_at(record, "usage", "service_tier")),
    )


def _tier(value: object) -> str | None:
    """A service tier's name; Chat Completions tells it beside the usage, Messages within."""
    return visible(value, limit=40, one_line=True) or None if isinstance(value, str) else None


def _broken_off(
    completion: Completion, said: Complaint, status: int, asked: Asked
) -> ProviderUnavailableError:
    reason = (
        asked.redact(visible(said.reason, limit=500, one_line=True)) or f"it says {completion.finish_word!r}"
    )
    return ProviderUnavailableError(
        f"the answer broke off: {reason}",
        status=said.status or status,
        request_id=completion.request_id,
        may_be_billed=True,
        quotas=completion.quotas,
        partial=replace(completion, finish_reason=FinishReason.BROKEN_OFF),
    )


# Tokens and money


def read_usage(record: object) -> Usage:
    """The tokens of an answer, as they are billed.

    The output is never less than the total without the prompt: some endpoints count hidden reasoning
    beside the answer and not in it. Reasoning that is a part of the output is not added again.
    """
    if not isinstance(record, Mapping):
        return Usage()
    prompt = _count(record, "prompt_tokens", "promptTokens", "promptTokenCount")
    answer = _count(record, "completion_tokens", "output_tokens", "completionTokens", "outputTokens")
    answer = _count(record, "candidatesTokenCount") if answer is None else answer
    prompt_details = record.get("prompt_tokens_details") or record.get("input_tokens_details")
    answer_details = record.get("completion_tokens_details") or record.get("output_tokens_details")
    cached = _first(
        _count(prompt_details, "cached_tokens"),
        _count(record, "cache_read_input_tokens", "prompt_cache_hit_tokens", "cached_tokens"),
        _count(record, "cacheReadInputTokens", "cachedContentTokenCount"),
    )
    written = _first(
        _count(record, "cache_creation_input_tokens", "cacheWriteInputTokens"),
        _count(prompt_details, "cache_write_tokens"),
    )
    if prompt is None and (fresh := _count(record, "input_tokens", "inputTokens")) is not None:
        # Anthropic counts cached tokens beside the others; here the input is all of them.
        is_beside = not _BESIDE.isdisjoint(record)
        prompt = fresh + (cached or 0) + (written or 0) if is_beside else fresh
    reasoning = _first(
        _count(answer_details, "reasoning_tokens"), _count(record, "reasoning_tokens", "thoughtsTokenCount")
    )
    total = _count(record, "total_tokens", "totalTokens", "totalTokenCount")
    if total is not None and prompt is not None and total > prompt:
        answer = max(answer or 0, total - prompt)
    if answer is not None and reasoning is not None and reasoning > answer:
        answer += reasoning  # more than the whole: it cannot be a part of it
    return Usage(
        input_tokens=prompt,
        output_tokens=answer,
        cached_input_tokens=cached or None,
        cache_write_tokens=written or None,
        reasoning_tokens=reasoning,
    )


def _first(*counts: int | None) -> int | None:
    return next((count for count in counts if count), None)


_BESIDE = frozenset({"cache_creation_input_tokens", "cache_read_input_tokens", "cacheReadInputTokens"})


def _count(record: object, *names: str) -> int | None:
    """The first of these fields that is a count."""
    if not isinstance(record, Mapping):
        return None
    for name in names:
        value = record.get(name)
        if value is None:
            continue
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 12:
            value = int(value)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_TOKENS:
            return value
    return None


_COST_KEYS = frozenset(
    (
        "cost total_cost totalCost cost_usd costUsd cost_in_usd cost_usd_total total_cost_usd estimated_cost "
        "request_cost response_cost"
    ).split()
)
_COST_PLACES = frozenset({"billing", "cost_details", "pricing", "x_nanogpt_pricing"})
"""Objects that some gateways put beside the answer or its usage, and what the call has cost into them."""
_GATEWAY_PLACES = (("provider_metadata", "gateway"), ("providerMetadata", "gateway"))
_COST_HEADER = re.compile(rb"x-(?:[a-z0-9]{1,20}-){0,2}?(?:request-|response-|total-)?cost(?:-usd)?")
_TO_DATE = re.compile(rb"(?:budget|customer|key|limit|max|original|project|team|user)-")
"""Costs of all calls so far, or limits on them, are none of this call."""
XAI_TICKS_PER_USD = Decimal(10_000_000_000)
"""xAI tells a call's cost in ticks (its API reference: ``cost_in_usd_ticks``)."""


def told_cost(
    record: Mapping[str, Any], usage: object, headers: Iterable[tuple[bytes, bytes]]
) -> Decimal | None:
    """US dollars that the endpoint says a call has cost; the largest where it says so in several places.

    OpenRouter's ``usage.cost`` (with ``cost_details.upstream_inference_cost`` beside it where the upstream
    bills the user's own key), DeepInfra's ``estimated_cost``, Perplexity's ``cost.total_cost``, xAI's
    ticks, Vercel's ``provider_metadata.gateway.cost``, the headers of LiteLLM and other gateways.
    """
    found: list[Decimal] = []
    for place in (usage, record, *(_at(record, *path) for path in _GATEWAY_PLACES)):
        if not isinstance(place, Mapping):
            continue
        found += [cost for key in _COST_KEYS.intersection(place) if (cost := _money(place[key])) is not None]
        for where in _COST_PLACES.intersection(place):
            found += _costs_in(place[where])
        ticks = _money(place.get("cost_in_usd_ticks"), MOST_USD * XAI_TICKS_PER_USD)
        if ticks is not None:
            found.append(ticks / XAI_TICKS_PER_USD)
        upstream = _money(_at(place, "cost_details", "upstream_inference_cost"))
        if upstream is not None:
            own = _money(place.get("cost")) or Decimal(0)
            found.append(own + upstream if place.get("is_byok") else upstream)
    for name, value in headers:
        is_cost = _COST_HEADER.fullmatch(name.lower()) is not None and not _TO_DATE.search(name.lower())
        if is_cost and (cost := _money(value.decode("latin-1"))) is not None:
            found.append(cost)
    return max(found, default=None)


def _costs_in(place: object) -> list[Decimal]:
    if not isinstance(place, Mapping) or str(place.get("currency") or "USD").upper() != "USD":
        return []
    keys = _COST_KEYS.union({"amount"}).intersection(place)
    return [cost for key in keys if (cost := _money(place[key])) is not None]


def _at(record: Mapping[str, Any], *path: str) -> object:
    value: object = record
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _money(value: object, most: Decimal = MOST_USD) -> Decimal | None:
    if isinstance(value, Mapping):
        currency = str(value.get("currency") or "USD").upper()
        value = value.get("total_cost", value.get("total")) if currency == "USD" else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = Decimal(str(value).strip()[:40])
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and 0 <= amount <= most else None
