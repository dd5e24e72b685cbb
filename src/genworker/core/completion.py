"""What is asked of a model and what comes back, whoever serves it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum

from genworker.core.hints import Quota


class FinishReason(StrEnum):
    """Why the model stopped, in one word for all endpoints; see `genworker.core.finish_words`."""

    STOP = "stop"
    """Whole: the model ended it."""
    LENGTH = "length"
    """Cut at a limit of tokens or time."""
    CONTENT_FILTER = "content_filter"
    """Filtered, refused, or replaced by a guardrail's sentence."""
    BROKEN_OFF = "broken_off"
    """The endpoint broke down in the middle of it. Never an answer."""
    NO_ANSWER = "no_answer"
    """The model does not answer but paused, or asked for a tool. Never an answer."""
    TOOLS = "tools"
    """The model asked for a tool, and wrote a text as well."""
    OTHER = "other"
    """The endpoint did not say, or in a word that nobody knows."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one answer, as the endpoint counts them; ``None`` where it does not say.

    Attributes:
        input_tokens: all tokens of the prompt, cached ones included.
        output_tokens: tokens of the answer, hidden reasoning included.
        cached_input_tokens: those of the input that were read from a prompt cache.
        cache_write_tokens: those of the input that were written to a prompt cache.
        reasoning_tokens: those of the output that are hidden reasoning.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None

    @classmethod
    def from_json(cls, record: object) -> Usage:
        """The counts of a record; those that it lacks, or has in another form, are ``None``."""
        if not isinstance(record, Mapping):
            return cls()
        counts = {name: record.get(name) for name in cls.__slots__}
        return cls(
            **{
                name: value
                for name, value in counts.items()
                if isinstance(value, int) and not isinstance(value, bool)
            }
        )

    @property
    def is_counted(self) -> bool:
        """Whether the endpoint has counted the tokens."""
        return self.input_tokens is not None and self.output_tokens is not None

    def to_json(self) -> dict[str, int | None]:
        """The counts that are known, with the two principal ones always present."""
        counts: dict[str, int | None] = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
        }
        for name in ("cached_input_tokens", "cache_write_tokens", "reasoning_tokens"):
            value = getattr(self, name)
            if value is not None:
                counts[name] = value
        return counts


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn. A parameter that is ``None`` is not sent.

    Attributes:
        max_tokens: most tokens that the answer may have.
        stop: sequences that end the answer.
        seed: the sampling seed, where the endpoint takes one.
        system: the system text.
        service_tier: the tier that the endpoint is asked to serve the call at.
        extra_body: further fields of the request, as the endpoint spells them.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    system: str | None = None
    service_tier: str | None = None
    extra_body: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """What was set, for the metadata."""
        record: dict[str, object] = {}
        for name in ("temperature", "top_p", "max_tokens", "seed", "system", "service_tier"):
            value = getattr(self, name)
            if value is not None:
                record[name] = value
        if self.stop:
            record["stop"] = list(self.stop)
        if self.extra_body:
            record["extra_body"] = dict(self.extra_body)
        return record


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One call: a prompt for a model, by the name that the endpoint knows.

    Attributes:
        timeout_s: deadline of the whole call, in seconds, from sending to the last byte.
        cache_at: lengths of the prompt's beginnings, in characters and rising, that other calls share and
            that are to be kept in the endpoint's prompt cache, where it has one that must be asked for.
        prefix: a name for the longest of them, the same for all calls that share it.
    """

    model: str
    prompt: str
    sampling: Sampling
    timeout_s: float
    cache_at: tuple[int, ...] = ()
    prefix: str | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer.

    Attributes:
        text: the output, its lines ended by LF, and without lone surrogates (see `clean_text`).
        reasoning: what the model thought, where that came apart from its answer; cleaned as `text` is.
        finish_word: the endpoint's own word for why it ended; ``None`` where it gives none.
        told_cost_usd: what the endpoint says that the call has cost; ``None`` where it does not say.
        service_tier: the tier that the endpoint says it was served at; ``None`` where it does not say.
        model: the model that the endpoint says answered; ``None`` where it does not say.
        latency_s: seconds from sending to the last byte.
        quotas: limits that the endpoint announced along with it.
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    latency_s: float
    model: str | None = None
    request_id: str | None = None
    quotas: tuple[Quota, ...] = ()
    reasoning: str = ""
    finish_word: str | None = None
    told_cost_usd: Decimal | None = None
    service_tier: str | None = None

    @property
    def is_odd_word(self) -> bool:
        """Whether the endpoint gave a finish word that says nothing to us: such answers are counted."""
        return self.finish_word is not None and self.finish_reason in (FinishReason.OTHER, FinishReason.TOOLS)


def clean_text(text: str) -> str:
    """Model output as text that every file and reader can hold.

    Line ends become LF; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
