"""What may stand in any section of the configuration that says how answers are drawn, limited and priced."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

UNSET: Final = "unset"
"""In place of a value: what a wider section set is not sent."""
SAMPLED: Final = (
    "temperature",
    "top_p",
    "max_tokens",
    "stop",
    "seed",
    "system",
    "service_tier",
    "extra_body",
)
"""The keys of `SamplingSettings`."""


def _no_boolean(value: object) -> object:
    # pydantic takes true for 1; in a configuration it is a slip of the hand.
    if isinstance(value, bool):
        raise ValueError(f"must be a number, not {str(value).lower()}")
    return value


NotBoolean = BeforeValidator(_no_boolean)
Positive = Annotated[int, NotBoolean, Field(ge=1)]
Seconds = Annotated[float, NotBoolean, Field(gt=0, le=86_400)]
Rate = Annotated[float, NotBoolean, Field(gt=0)]
Dollars = Annotated[Decimal, NotBoolean, Field(ge=0)]


class Section(BaseModel):
    """A table of the configuration. A key that it does not know is a fault."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplingSettings(Section):
    """How answers are drawn; may stand in an endpoint, a stage, a model, or a model's stage.

    The more specific wins: a model's stage over the model over the stage over the endpoint.
    ``extra_body`` is merged key by key. The string ``"unset"`` in place of a value takes away what a
    wider section set.
    """

    temperature: Annotated[float, NotBoolean, Field(ge=0, le=5)] | None = None
    """How much chance there is in an answer; not sent unless set."""
    top_p: Annotated[float, NotBoolean, Field(gt=0, le=1)] | None = None
    """Of how likely a part of all tokens an answer is drawn; not sent unless set."""
    max_tokens: Positive | None = None
    """Most tokens of an answer, thinking included; Anthropic demands one and gets 8192 when none is set."""
    stop: list[str] | None = None
    """Texts that end an answer."""
    seed: bool | int | None = None
    """`true`: a seed of each generation's own, from its gen_id, and another one when `retry` replaces its
    answer; a number: that one; `false`: none."""
    system: str | None = None
    """The system text."""
    service_tier: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")] | None = None
    """The tier that the endpoint is asked to serve at: OpenAI's `flex` costs half, `priority` about twice."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, as the endpoint spells them."""
    batch: bool | None = None
    """Ask in provider batches, which cost half and take hours, instead of call by call."""

    _unset: frozenset[str] = PrivateAttr(default=frozenset())

    @property
    def unset(self) -> frozenset[str]:
        """The keys that stand as ``"unset"`` here."""
        return self._unset

    @model_validator(mode="wrap")
    @classmethod
    def _take_out_unset(cls, values: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        if not isinstance(values, dict):
            return handler(values)
        unset = frozenset(key for key in SAMPLED if values.get(key) == UNSET)
        section = handler({key: value for key, value in values.items() if key not in unset})
        section._unset = unset
        return section


class StageSettings(SamplingSettings):
    """One stage: how its answers are drawn, and what the least of an answer is."""

    min_lines: Positive | None = None
    """Fewest non-empty lines of an answer; a shorter one is kept and counts as failed (too short)."""
    min_chars: Positive | None = None
    """Fewest characters of an answer; a shorter one is kept and counts as failed (too short)."""


class PriceSettings(Section):
    """US dollars per million tokens; over what genai-prices knows. Nothing is priced by default."""

    input: Dollars
    """Tokens of the prompt."""
    output: Dollars
    """Tokens of the answer."""
    cache_read: Dollars | None = None
    """Tokens that are read from a prompt cache; the price of input when left out."""
    cache_write: Dollars | None = None
    """Tokens that are written to a prompt cache; the price of input when left out."""
    per_call: Dollars = Decimal(0)
    """What each call costs besides, in US dollars."""


class LimitedSettings(SamplingSettings):
    """What may stand in an endpoint's and in a model's section.

    ``rpm`` and ``tpm`` are requests and tokens per minute; without them they are learned. The fallback
    gets the rows that are refused for good: another endpoint, or another model of the same one.
    """

    rpm: Rate | None = None
    """Requests a minute; learned when left out."""
    tpm: Rate | None = None
    """Tokens a minute, of prompts and answers; learned when left out."""
    price: PriceSettings | None = None
    """A price that goes before the one that is known."""
    fallback_endpoint: str | None = None
    """The endpoint that gets the rows which are refused for good."""
    fallback_model: str | None = None
    """The model that gets them, by the name that its endpoint knows."""
    batch_discount: Annotated[Decimal, NotBoolean, Field(ge=0, le=1)] | None = None
    """What batches are cheaper by: 0.5 is half. Known for api.openai.com and api.anthropic.com; else 0."""
    service_tiers: dict[str, Annotated[Decimal, NotBoolean, Field(ge=0, le=100)]] = Field(
        default_factory=dict
    )
    """What part of the price each service tier costs, such as `{ flex = 0.5 }`; known for OpenAI's."""
    batch_then: Literal["live"] | None = None
    """``"live"``: rows that two batches did not answer are asked call by call, at the full price."""
    batch_tail: Annotated[int, NotBoolean, Field(ge=0)] | None = None
    """The last rows of a model, when so few are left, are asked call by call instead of in one more batch."""
