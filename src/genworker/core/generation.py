"""One generation as values: its four files, its metadata, and what makes it done or failed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

from genworker.core.completion import FinishReason
from genworker.core.facts import MALFORMED_REASON, Facts, facts_of, means_length
from genworker.core.membership import MembershipRow
from genworker.core.parsers import get_parser
from genworker.core.stages import Stage
from genworker.core.thinking import split_thinking
from genworker.errors import ParseFailedError


class FailureKind(StrEnum):
    """Why an answer that was paid for is not usable. The word stands in ``metadata.json``."""

    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    CONTENT_FILTERED = "content_filtered"
    EMPTY = "empty"
    MALFORMED = "malformed"
    """What came back is not what the API promises; ``raw.txt`` has it as it came."""
    TOO_SHORT = "too_short"
    """Shorter than its stage or its template demands."""


JUDGED_BY_PARSER = frozenset({FailureKind.UNPARSEABLE, FailureKind.TOO_SHORT})
"""Failures that another parser, or another least size, may turn into a success without a call."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What is wrong with an answer.

    Attributes:
        message: the reason in plain words, for people.
    """

    kind: FailureKind
    message: str


@dataclass(frozen=True, slots=True)
class Generation:
    """The files of one generation.

    Attributes:
        prompt_text: the prompt that was sent; ``None`` when the file is absent.
        raw_text: the model's whole output, ``""`` when the file is absent.
        parsed_text: what downstream stages consume; ``None`` when the answer was not usable.
        metadata: lineage and provenance, as the file has them; empty when it is absent. See `facts`.
        beside: the further metadata files that another tool has put there.
        has_metadata: whether there is a metadata file at all.
        reasoning_text: what the model thought, where that came apart from its answer; ``None`` when the file
            is absent.
    """

    stage: Stage
    gen_id: str
    prompt_text: str | None
    raw_text: str
    parsed_text: str | None
    metadata: Mapping[str, Any]
    beside: tuple[Mapping[str, Any], ...] = ()
    has_metadata: bool = True
    reasoning_text: str | None = None

    @property
    def facts(self) -> Facts:
        """What the metadata say, read with care, under the names of today."""
        return facts_of(self.stage, self.metadata, self.beside)

    @property
    def parent_gen_id(self) -> str | None:
        """The generation that this one was made from; ``None`` for drafts."""
        return self.facts.parent_gen_id

    @property
    def model_id(self) -> str | None:
        """The model's id in the catalogue, under whichever name the file has it."""
        return self.facts.model_id

    @property
    def is_done(self) -> bool:
        """Whether downstream stages may build on it: metadata and a text are there, and it is not cut off.

        This is the one definition; `genworker.store.index` applies it to a directory without reading all.
        """
        return self.has_metadata and bool(self.parsed_text) and not self.facts.is_cut

    @property
    def failure(self) -> Failure | None:
        """Why the answer is not usable, when the metadata say so."""
        failure = failure_from_json(self.metadata.get("failure"))
        if failure is None and (self.raw_text or self.parsed_text) and self.facts.is_cut:
            return Failure(FailureKind.TRUNCATED, "the answer was cut off, as its metadata say")
        return failure


def failure_from_json(record: object) -> Failure | None:
    """The failure in a metadata file; a kind from a newer genworker reads as unparseable."""
    if not isinstance(record, Mapping):
        return None
    kind = str(record.get("kind", ""))
    known = kind in FailureKind.__members__.values()
    return Failure(
        FailureKind(kind) if known else FailureKind.UNPARSEABLE,
        str(record.get("message", "")),
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one generation, before anything was made of it.

    Attributes:
        facts: the metadata as far as they are known before parsing (see `finish`).
        reasoning_text: what the model thought, where that came apart from its answer; else ``""``.
    """

    stage: Stage
    gen_id: str
    prompt_text: str
    raw_text: str
    facts: Facts
    reasoning_text: str = ""


def finish(answer: Answer) -> Generation:
    """Judge an answer: parse it, or name what is wrong with it. Never raises: the text is paid for.

    Reads the facts ``finish_reason``, ``parser``, ``min_lines`` and ``min_chars``; adds ``truncated``,
    ``failure`` and ``files``. A copy is its parent's text as it stands: no parser looks at it.
    """
    parsed, failure = _parse(answer)
    contents = {"prompt.txt": answer.prompt_text, "raw.txt": answer.raw_text}
    if parsed is not None:
        contents["parsed.txt"] = parsed
    if answer.reasoning_text:
        contents["reasoning.txt"] = answer.reasoning_text
    metadata = {
        **answer.facts.record,
        "truncated": failure is not None and failure.kind is FailureKind.TRUNCATED,
        "failure": None if failure is None else {"kind": failure.kind.value, "message": failure.message},
        "files": {
            name: {"sha256": file_digest(content), "size_bytes": len(content)}
            for name, content in ((name, text.encode("utf-8", "replace")) for name, text in contents.items())
        },
    }
    return Generation(
        answer.stage,
        answer.gen_id,
        answer.prompt_text,
        answer.raw_text,
        parsed,
        metadata,
        reasoning_text=answer.reasoning_text or None,
    )


def judged_anew(facts: Facts) -> Facts:
    """The facts of a committed answer without what `finish` says: to be parsed again.

    Another tool's word that the answer was cut off is no judgement of a parser, and stays.
    """
    kept = facts.without("truncated", "failure", "files", "min_lines", "min_chars")
    if facts.is_cut and not isinstance(facts.record.get("failure"), Mapping):
        return kept.changed(finish_reason=FinishReason.LENGTH.value)
    return kept


def answer_again(stored: Generation, row: MembershipRow, demands: Mapping[str, Any]) -> Answer:
    """An answer that the store holds, to be judged by the parser of today; nothing is asked for it.

    Args:
        row: supplies the lineage where the metadata, another tool's perhaps, do not say it.
        demands: the parser's name, and the least size where there is one, as `finish` reads them.
    """
    record = dict(judged_anew(stored.facts).record)
    lineage = {
        "template_id": row.template_id,
        "model_id": row.llm_model_id or "",
        "parent_gen_id": row.parent_gen_id or "",
        "stage": row.stage.value,
        "gen_id": row.gen_id,
        "combo_id": row.combo_id,
        "replicate": row.replicate,
        "second_parent_gen_id": row.second_parent_gen_id,
    }
    for name, value in lineage.items():
        if record.get(name) is None and value is not None:
            record[name] = value
    return Answer(
        stored.stage,
        stored.gen_id,
        stored.prompt_text or "",
        stored.raw_text,
        Facts({**record, **demands}),
        stored.reasoning_text or "",
    )


def _parse(answer: Answer) -> tuple[str | None, Failure | None]:
    facts = answer.facts
    reason, word = facts.finish_reason, facts.finish_word
    if means_length(reason):
        at = f" at max_tokens = {facts.max_tokens}" if facts.max_tokens else ""
        return None, Failure(FailureKind.TRUNCATED, f"the answer was cut off{at}{_thought(answer)}")
    if reason == FinishReason.CONTENT_FILTER:
        said = "" if word in (None, reason) else f" ({word})"
        return None, Failure(
            FailureKind.CONTENT_FILTERED, f"the endpoint's content filter stopped the answer{said}"
        )
    if reason == FinishReason.NO_ANSWER:
        said = "it asked for a tool" if word is None else f"it ended with {word!r}"
        return None, Failure(FailureKind.MALFORMED, f"the model did not answer: {said}{_thought(answer)}")
    if reason == FinishReason.BROKEN_OFF:
        return None, Failure(FailureKind.MALFORMED, facts.error or "the answer broke off")
    if reason == MALFORMED_REASON:
        said = f": {facts.error}" if facts.error else ""
        return None, Failure(
            FailureKind.MALFORMED, f"the endpoint sent something that is not an answer{said}"
        )
    if not answer.raw_text.strip():
        return None, Failure(FailureKind.EMPTY, f"the answer is empty{_thought(answer)}")
    if answer.facts.is_copy:
        return answer.raw_text, None
    output = split_thinking(answer.raw_text)
    if output.is_open:
        return None, Failure(FailureKind.TRUNCATED, "the answer was cut off while the model was thinking")
    if not output.answer.strip():
        return None, Failure(FailureKind.EMPTY, "the answer is empty behind its thinking")
    if (short := _too_short(output.answer, answer.facts)) is not None:
        return None, Failure(FailureKind.TOO_SHORT, short)
    try:
        parser = get_parser(answer.stage, answer.facts.parser)
    except LookupError as error:
        return None, Failure(FailureKind.UNPARSEABLE, str(error.args[0]))
    try:
        parsed = parser(answer.raw_text)
    except ParseFailedError as error:
        return None, Failure(FailureKind.UNPARSEABLE, str(error))
    except Exception as error:  # noqa: BLE001 (a parser from outside may raise anything; the text is paid for)
        return None, Failure(FailureKind.UNPARSEABLE, f"the parser broke: {type(error).__name__}: {error}")
    if not isinstance(parsed, str):
        return None, Failure(
            FailureKind.UNPARSEABLE, f"the parser broke: it returned {type(parsed).__name__}, not a text"
        )
    if not parsed.strip():
        return None, Failure(FailureKind.UNPARSEABLE, "the parser found an empty text")
    return parsed, None


def _too_short(text: str, facts: Facts) -> str | None:
    """Which demand an answer does not meet, in words; ``None`` when it meets them."""
    lines = sum(1 for line in text.splitlines() if line.strip())
    if facts.min_lines is not None and lines < facts.min_lines:
        return f"the answer is too short: {lines} non-empty lines, min_lines = {facts.min_lines}"
    chars = len(text.strip())
    if facts.min_chars is not None and chars < facts.min_chars:
        return f"the answer is too short: {chars} characters, min_chars = {facts.min_chars}"
    return None


def _thought(answer: Answer) -> str:
    """How much reasoning came in place of an answer, for a message."""
    if not answer.reasoning_text:
        return ""
    return f"; {len(answer.reasoning_text):,} characters of reasoning came before it, kept in reasoning.txt"


def file_digest(content: bytes) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """``metadata.json`` as bytes: indented, in the order given, ending in a newline."""
    try:
        return orjson.dumps(metadata, default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate, an integer past 64 bits
        text = json.dumps(metadata, indent=2, ensure_ascii=False, default=str)
        return f"{text}\n".encode("utf-8", "replace")
