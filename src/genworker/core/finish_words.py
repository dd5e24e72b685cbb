"""The words with which endpoints say why an answer ended, and what each means.

Every provider and gateway has words of its own, in capitals or with a prefix. The words that are known stand
here; one that is not is judged by what it is made of (``output_blocked_by_safety`` is filtered), and a word
that says nothing to us is `FinishReason.OTHER`: a text that came with it is kept as an answer, and counted.

Sources: the APIs of OpenAI, Anthropic, Google, AWS Bedrock, Cohere, Mistral, DeepSeek, Zhipu, Hugging Face's
TGI, vLLM, SGLang, llama.cpp, Ollama, watsonx, Yandex, as documented in November 2026.
"""

from __future__ import annotations

import re
from functools import lru_cache

from genworker.core.completion import FinishReason

_WHOLE = frozenset(
    {
        "complete",
        "completed",
        "done",
        "end",
        "end_of_sequence",
        "end_of_text",
        "end_turn",
        "endoftext",
        "eos",
        "eos_token",
        "finish",
        "finished",
        "normal",
        "status_final",
        "stop",
        "stop_criteria_met",
        "stop_sequence",
        "stop_sequences",
        "stop_string",
        "stop_token",
        "stopped",
        "s",
        "success",
    }
)
_NOTHING_SAID = frozenset({"", "null", "none", "nil", "undefined", "unspecified"})
_CUT = frozenset({"error_limit", "not_finished", "time_limit"})
_NO_ANSWER = frozenset({"compaction", "in_progress", "pending", "queued", "requires_action"})

# What a word is made of, looked at in this order: ``error_toxic`` is a filter's, not a breakdown.
_FILTERED_PARTS = frozenset(
    (
        "armor block blocked blocklist censored censorship copyright filter filtered flagged guardrail "
        "guardrails harm harmful inappropriate jailbreak language moderated moderation policy profanity "
        "prohibited recitation refusal refused safety sensitive spii toxic unsafe violation"
    ).split()
)
_BROKEN_PARTS = frozenset(
    (
        "abort aborted cancel canceled cancelled crash crashed disconnect disconnected error errored evicted "
        "exception fail failed failure insufficient interrupted killed load lost malformed network overload "
        "overloaded preempted rate timedout timeout unavailable unexpected unload unloaded user"
    ).split()
)
_CUT_PARTS = frozenset(
    (
        "context incomplete length limit max maximum overflow partial repetition token tokens truncated "
        "truncation window"
    ).split()
)
_TOOL_PARTS = frozenset({"function", "tool", "tools"})
_PAUSE_PARTS = frozenset({"pause", "paused"})
_WHOLE_PARTS = frozenset("complete completed end eos eot stop".split())

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PREFIX = re.compile(r"^(?:finish_?reason|stop_?reason|alternative|reason)_(?=.)")


@lru_cache(maxsize=1024)
def finish_of(word: str | None) -> FinishReason:
    """What a finish word means; `FinishReason.OTHER` for none, and for one that nobody knows.

    Args:
        word: as the endpoint spells it.

    Returns:
        `FinishReason.TOOLS` for a word that says that the model asks for a tool: whether that is an answer
        depends on the text that came with it.
    """
    plain = normal_word(word)
    if plain in _NOTHING_SAID:
        return FinishReason.OTHER
    if plain in _WHOLE:
        return FinishReason.STOP
    if plain in _CUT:
        return FinishReason.LENGTH
    if plain in _NO_ANSWER:
        return FinishReason.NO_ANSWER
    parts = set(plain.split("_"))
    if "malformed" in parts:  # also behind a filter's name: ``function_call_filter: MALFORMED_FUNCTION_CALL``
        return FinishReason.BROKEN_OFF
    for known, reason in (
        (_FILTERED_PARTS, FinishReason.CONTENT_FILTER),
        (_BROKEN_PARTS, FinishReason.BROKEN_OFF),
        (_CUT_PARTS, FinishReason.LENGTH),
        (_TOOL_PARTS, FinishReason.TOOLS),
        (_PAUSE_PARTS, FinishReason.NO_ANSWER),
        (_WHOLE_PARTS, FinishReason.STOP),
    ):
        if parts & known:
            return reason
    return FinishReason.OTHER


def says_nothing(word: str | None) -> bool:
    """Whether a finish word is none: absent, empty, or a spelling of null."""
    return normal_word(word) in _NOTHING_SAID


def normal_word(word: str | None) -> str:
    """A code or finish word in one spelling: ``FINISH_REASON_MaxTokens`` is ``max_tokens``."""
    text = _CAMEL.sub("_", word or "").lower()
    return _PREFIX.sub("", re.sub(r"[^a-z0-9]+", "_", text).strip("_"))
