"""What ``metadata.json`` says of a generation, as types: one place for what is written and how it is read.

Writing goes through three frozen records, in the order in which they stand in the file: what is known of the
row (`RowFacts`), how a model was asked (`CallFacts`) and how it ended (`AnswerFacts`, `CopyFacts` or
`MalformedFacts`). Reading goes through `Facts`, a view that never raises: a file may be older, newer, another
tool's or hostile, so each property is ``None`` where the file does not say it in a form that can be used.
`facts_of` is the one place that knows how older tools spelled things.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from genworker.core.completion import FinishReason, Sampling, Usage
from genworker.core.finish_words import finish_of
from genworker.core.stages import Stage

MODE_LLM = "llm"
"""The ``mode`` of a text that a model made."""
MODE_COPY = "copy"
"""The ``mode`` of a text that is its parent's; no model was asked."""
MALFORMED_REASON = "malformed"
"""The ``finish_reason`` of an answer that could not be read as one."""


# Writing


@dataclass(frozen=True, slots=True)
class Written:
    """A record that knows how it stands in JSON."""

    def to_json(self) -> dict[str, Any]:
        """The fields by name, in their order, as JSON has them."""
        record = {}
        for name in field_names(type(self)):
            value = getattr(self, name)
            record[name] = value if type(value) in _PLAIN else _json_value(value)
        return record


@dataclass(frozen=True, slots=True)
class RowFacts(Written):
    """What is known of a generation before anything is asked: its lineage and its provenance.

    Attributes:
        model_id: the model's id in the catalogue.
        parent_gen_id: ``""`` for drafts.
        function: what made the text, such as ``draft_response``.
        mode: `MODE_LLM` or `MODE_COPY`.
        template_sha256: hex digest of the template's text; ``None`` for a copy.
        parent_sha256: hex digest of the parent's text as the prompt has it; ``None`` for drafts and copies.
        second_parent_gen_id, second_parent_sha256: of the text that stands second, where two are compared.
        min_lines, min_chars: the least that an answer must have (non-empty lines, characters); ``None``
            where nothing is demanded.
    """

    task_id: str
    template_id: str
    model_id: str
    parent_gen_id: str
    stage: Stage
    gen_id: str
    cohort_id: str
    combo_id: str
    replicate: int
    function: str
    mode: str
    run_id: str
    genworker_version: str
    parser: str
    template_sha256: str | None
    parent_sha256: str | None
    second_parent_gen_id: str | None = None
    second_parent_sha256: str | None = None
    min_lines: int | None = None
    min_chars: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As of every record; a second parent and a least size stand there only where there is one."""
        record = Written.to_json(self)
        for name in ("second_parent_gen_id", "second_parent_sha256", "min_lines", "min_chars"):
            if record[name] is None:
                del record[name]
        return record


@dataclass(frozen=True, slots=True)
class CallFacts(Written):
    """How a model was asked.

    Attributes:
        endpoint: the name of its section in the settings.
        provider: the endpoint's kind.
        model: the model's name there.
        fallback: whether the row had been handed to its second endpoint.
    """

    endpoint: str
    provider: str
    model: str
    fallback: bool
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class AnswerFacts(Written):
    """How an answer came.

    Attributes:
        response_model: the model that the endpoint says answered.
        finish_word: the endpoint's own word for why it ended; ``None`` where it gave none.
        cost_usd: US dollars that count, the larger of list price and `told_cost_usd`; ``None`` where no price
            or no count of tokens is known.
        told_cost_usd: what the endpoint says that the call has cost; ``None`` where it does not say.
        service_tier: the tier that it was served at, where one was asked for or it is not the ordinary one.
        attempts: calls that it took, this one included.
        started_at, finished_at: times in UTC, ISO 8601 with milliseconds.
        latency_s: seconds from sending to the last byte.
    """

    response_model: str | None
    request_id: str | None
    finish_reason: FinishReason
    finish_word: str | None
    usage: Usage
    cost_usd: Decimal | None
    told_cost_usd: Decimal | None
    attempts: int
    started_at: str
    finished_at: str
    latency_s: float
    service_tier: str | None = None

    def to_json(self) -> dict[str, Any]:
        """As of every record; a service tier stands there only where there is something to say."""
        record = Written.to_json(self)
        if record["service_tier"] is None:
            del record["service_tier"]
        return record


@dataclass(frozen=True, slots=True)
class CopyFacts(Written):
    """How a copy was made: there is nothing to finish, and only the time to say."""

    finish_reason: None
    started_at: str
    finished_at: str


@dataclass(frozen=True, slots=True)
class MalformedFacts(Written):
    """How something came that is no answer.

    Attributes:
        finish_reason: `MALFORMED_REASON`, or `FinishReason.BROKEN_OFF` for the beginning of an answer.
        finish_word: as of `AnswerFacts`.
        error: what was wrong with it, in words.
    """

    request_id: str | None
    finish_reason: str
    finish_word: str | None
    error: str
    attempts: int
    started_at: str
    finished_at: str


_PLAIN = frozenset({str, int, float, bool, type(None)})
"""Types whose values stand in JSON as they are; most fields have one of them."""
_NAMES: dict[type, tuple[str, ...]] = {}


def field_names(kind: type[Written]) -> tuple[str, ...]:
    """The fields of a record's class, in their order."""
    names = _NAMES.get(kind)
    if names is None:  # `fields` takes as long as all the rest of a line
        names = _NAMES[kind] = tuple(field.name for field in fields(kind))
    return names


def _json_value(value: Any) -> Any:
    """A field's value as JSON has it: money as exact text, records as objects, words as text."""
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Usage | Sampling):
        return value.to_json()
    if isinstance(value, Stage | FinishReason):
        return value.value
    return value


# Reading


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What the metadata say of one of the files beside them; ``None`` for what they do not say."""

    sha256: str | None
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Facts:
    """A metadata record, read with care.

    Attributes:
        record: as it stands in the file, also what this version does not know.
    """

    record: Mapping[str, Any]

    @classmethod
    def of(cls, *parts: Written) -> Facts:
        """The facts that are to be written, from their parts in order."""
        record: dict[str, Any] = {}
        for part in parts:
            record.update(part.to_json())
        return cls(record)

    def changed(self, **values: Any) -> Facts:
        """The same facts with some values replaced or added."""
        return Facts({**self.record, **values})

    def without(self, *names: str) -> Facts:
        """The same facts without some."""
        return Facts({key: value for key, value in self.record.items() if key not in names})

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self.record)

    # Lineage

    @property
    def task_id(self) -> str | None:
        """The task, made of combo, templates and models."""
        return self._text("task_id")

    @property
    def template_id(self) -> str | None:
        """The template that the prompt was made from."""
        return self._text("template_id")

    @property
    def model_id(self) -> str | None:
        """The model's id in the catalogue, under whichever name the file has it."""
        value = self.record.get("model_id") or self.record.get("llm_model_id")
        return str(value) if value else None

    @property
    def parent_gen_id(self) -> str | None:
        """The generation that this one was made from; ``None`` for drafts."""
        value = self.record.get("parent_gen_id")
        return str(value) if value else None

    @property
    def second_parent_gen_id(self) -> str | None:
        """The text that stands second in the prompt, where two are compared."""
        return self._text("second_parent_gen_id")

    @property
    def cohort_id(self) -> str | None:
        """The cohort whose run made it."""
        return self._text("cohort_id")

    @property
    def combo_id(self) -> str | None:
        """The combination of concepts."""
        return self._text("combo_id")

    @property
    def replicate(self) -> int | None:
        """The number of the replicate, from 1."""
        number = _number(self.record.get("replicate"))
        return number if number is not None and number >= 1 else None

    @property
    def mode(self) -> str | None:
        """`MODE_LLM` or `MODE_COPY`."""
        return self._text("mode")

    @property
    def is_copy(self) -> bool:
        """Whether no model was asked: the text is the parent's."""
        return self.mode == MODE_COPY

    @property
    def run_id(self) -> str | None:
        """The run that made it."""
        return self._text("run_id")

    @property
    def parser(self) -> str | None:
        """The parser that was applied."""
        return self._text("parser")

    @property
    def template_sha256(self) -> str | None:
        """Hex digest of the template's text."""
        return self._text("template_sha256")

    @property
    def parent_sha256(self) -> str | None:
        """Hex digest of the parent's text as the prompt has it."""
        return self._text("parent_sha256")

    @property
    def second_parent_sha256(self) -> str | None:
        """Hex digest of the second parent's text as the prompt has it."""
        return self._text("second_parent_sha256")

    # The call

    @property
    def endpoint(self) -> str | None:
        """The name of the endpoint's section in the settings."""
        return self._text("endpoint")

    @property
    def model(self) -> str | None:
        """The model's name at the endpoint."""
        return self._text("model")

    @property
    def max_tokens(self) -> int | None:
        """Most tokens that the answer might have."""
        return self._sampled("max_tokens")

    @property
    def seed(self) -> int | None:
        """The seed that the model was asked with; ``None`` where none was sent."""
        return self._sampled("seed")

    def _sampled(self, name: str) -> int | None:
        sampling = self.record.get("sampling")
        return whole(sampling.get(name)) if isinstance(sampling, Mapping) else None

    # The answer

    @property
    def response_model(self) -> str | None:
        """The model that the endpoint says answered."""
        return self._text("response_model")

    @property
    def request_id(self) -> str | None:
        """The endpoint's name for the call."""
        return self._text("request_id")

    @property
    def finish_reason(self) -> str | None:
        """Why the model stopped; a word of `FinishReason`, `MALFORMED_REASON`, or another tool's."""
        return self._text("finish_reason")

    @property
    def is_cut(self) -> bool:
        """Whether the answer was cut off: it says so, or stopped for a reason that means that."""
        return says_cut(self.record)

    @property
    def min_lines(self) -> int | None:
        """Fewest non-empty lines that the answer had to have."""
        return self._whole("min_lines")

    @property
    def min_chars(self) -> int | None:
        """Fewest characters that the answer had to have."""
        return self._whole("min_chars")

    @property
    def finish_word(self) -> str | None:
        """The endpoint's own word for why the answer ended."""
        return self._text("finish_word")

    @property
    def error(self) -> str | None:
        """What was wrong with something that is no answer."""
        return self._text("error")

    @property
    def told_cost_usd(self) -> Decimal | None:
        """US dollars that the endpoint says that the call has cost."""
        return money(self.record.get("told_cost_usd"))

    @property
    def usage(self) -> Usage:
        """The tokens, each ``None`` where the file does not say."""
        return Usage.from_json(self.record.get("usage"))

    @property
    def cost_usd(self) -> Decimal | None:
        """US dollars of the call that was answered."""
        return money(self.record.get("cost_usd"))

    @property
    def attempts(self) -> int | None:
        """Calls that it took."""
        return self._whole("attempts")

    @property
    def started_at(self) -> str | None:
        """When the call began, in UTC, ISO 8601."""
        return self._text("started_at")

    @property
    def finished_at(self) -> str | None:
        """When the answer was there, in UTC, ISO 8601."""
        return self._text("finished_at")

    @property
    def latency_s(self) -> float | None:
        """Seconds from sending to the last byte."""
        value = self.record.get("latency_s")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    @property
    def files(self) -> Mapping[str, FileFacts] | None:
        """What is said of each file, by its name; ``None`` without such a list."""
        files = self.record.get("files")
        return dict(_files(files)) if isinstance(files, Mapping) else None

    def _text(self, name: str) -> str | None:
        value = self.record.get(name)
        return value if isinstance(value, str) else None

    def _whole(self, name: str) -> int | None:
        return whole(self.record.get(name))


NO_FACTS = Facts({})

OWN_MARK = "genworker_version"
"""The key by which genworker's own records are known: they need no translation."""


def says_cut(record: Mapping[str, Any]) -> bool:
    """Whether a metadata record, whoever wrote it, says that the answer was cut off."""
    truncated = record.get("truncated")
    if truncated and (truncated == 1 or (isinstance(truncated, str) and truncated.strip().lower() in _YES)):
        return True
    return means_length(record.get("finish_reason")) or means_length(record.get("stop_reason"))


_YES = frozenset({"true", "yes", "1"})


def means_length(reason: object) -> bool:
    """Whether a finish reason, as any endpoint or tool spells it, says that the answer was cut off."""
    return isinstance(reason, str) and finish_of(reason) is FinishReason.LENGTH


_BESIDE = ("finish_reason", "usage", "duration_s", "duration_ms", "llm_model_id", "mode", "parser_name")
"""What older tools say in ``raw_metadata.json`` and ``parsed_metadata.json`` alone."""
_OTHER_NAMES = (("model_id", "llm_model_id"), ("parser", "parser_name"), ("cohort_id", "origin_cohort_id"))
_TOKEN_NAMES = (("input_tokens", "prompt_tokens"), ("output_tokens", "completion_tokens"))
_TOKEN_DETAILS = (
    ("cached_input_tokens", "prompt_tokens_details", "cached_tokens"),
    ("reasoning_tokens", "completion_tokens_details", "reasoning_tokens"),
)


def facts_of(stage: Stage, record: Mapping[str, Any], beside: Sequence[Mapping[str, Any]] = ()) -> Facts:
    """The facts of one generation under the names of today, whoever wrote them.

    Args:
        record: ``metadata.json``.
        beside: what other tools keep in further metadata files of the same directory.

    Returns:
        All that `record` has, and what it says under an older name under the present one as well. An
        answer is cut off when any of the records says so.
    """
    if OWN_MARK in record:
        return Facts(record)
    found = dict(record)
    known = found.keys()
    for other in beside:
        for name in _BESIDE:
            if found.get(name) is None and other.get(name) is not None:
                found[name] = other[name]
        if says_cut(other):
            found["truncated"] = True
    if not found.get("template_id"):
        template = found.get(f"{stage.value}_template")
        if isinstance(template, str):
            found["template_id"] = template
    for name, older in _OTHER_NAMES:
        if older in known and found[older] and not found.get(name):
            found[name] = found[older]
    if "latency_s" not in known and found.get("duration_s") is not None:
        found["latency_s"] = found["duration_s"]
    usage = found.get("usage")
    if isinstance(usage, dict):
        found["usage"] = _counts(usage)
    return Facts(found)


def _counts(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    counts = dict(usage)
    for name, older in _TOKEN_NAMES:
        if name not in counts and older in counts:
            counts[name] = counts[older]
        if name in counts:
            counts[name] = _number(counts[name])
    for name, older, part in _TOKEN_DETAILS:
        if older in counts and name not in counts:
            details = counts[older]
            if isinstance(details, dict) and part in details:
                counts[name] = details[part]
    return counts


def _number(value: object) -> int | None:
    """A whole number as any tool spells it: ``2``, ``2.0``, ``"2"``."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < _MOST_DIGITS:
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return whole(value)


_MOST_DIGITS = 20


def _files(files: Mapping[Any, Any]) -> Iterator[tuple[str, FileFacts]]:
    for name, record in files.items():
        facts = record if isinstance(record, Mapping) else {}
        digest = facts.get("sha256")
        yield (
            str(name),
            FileFacts(digest if isinstance(digest, str) else None, whole(facts.get("size_bytes"))),
        )


def whole(value: object) -> int | None:
    """A whole number out of JSON; ``None`` for anything else, also for ``true``."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def money(value: object) -> Decimal | None:
    """An amount out of JSON, as text or as a number, at least 0; ``None`` for anything else."""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and amount >= 0 else None
