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
from genworker.core.facts import MALFORMED_REASON, Facts
from genworker.core.parsers import get_parser
from genworker.core.stages import Stage
from genworker.errors import ParseFailedError


class FailureKind(StrEnum):
    """Why an answer that was paid for is not usable. The word stands in ``metadata.json``."""

    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    CONTENT_FILTERED = "content_filtered"
    EMPTY = "empty"
    MALFORMED = "malformed"
    """What came back is not what the API promises; ``raw.txt`` has it as it came."""


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
    """The four files of one generation.

    Attributes:
        prompt_text: the prompt that was sent; ``None`` when the file is absent.
        raw_text: the model's whole output, ``""`` when the file is absent.
        parsed_text: what downstream stages consume; ``None`` when the answer was no good.
        metadata: lineage and provenance, as the file has them; empty when it is absent. See `facts`.
    """

    stage: Stage
    gen_id: str
    prompt_text: str | None
    raw_text: str
    parsed_text: str | None
    metadata: Mapping[str, Any]

    @property
    def facts(self) -> Facts:
        """What the metadata say, read with care."""
        return Facts(self.metadata)

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
        """Whether downstream stages may build on it."""
        return bool(self.metadata) and bool(self.parsed_text)

    @property
    def failure(self) -> Failure | None:
        """Why the answer is not usable, when the metadata say so."""
        return failure_from_json(self.metadata.get("failure"))


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
    """

    stage: Stage
    gen_id: str
    prompt_text: str
    raw_text: str
    facts: Facts


def finish(answer: Answer) -> Generation:
    """Judge an answer: parse it, or name what is wrong with it. Never raises: the text is paid for.

    Reads the facts ``finish_reason`` and ``parser``; adds ``truncated``, ``failure`` and ``files``.
    """
    parsed, failure = _parse(answer)
    contents = {"prompt.txt": answer.prompt_text, "raw.txt": answer.raw_text}
    if parsed is not None:
        contents["parsed.txt"] = parsed
    metadata = {
        **answer.facts.record,
        "truncated": answer.facts.finish_reason == FinishReason.LENGTH,
        "failure": None if failure is None else {"kind": failure.kind.value, "message": failure.message},
        "files": {
            name: {"sha256": file_digest(content), "size_bytes": len(content)}
            for name, content in ((name, text.encode("utf-8", "replace")) for name, text in contents.items())
        },
    }
    return Generation(answer.stage, answer.gen_id, answer.prompt_text, answer.raw_text, parsed, metadata)


def judged_anew(facts: Facts) -> Facts:
    """The facts of a committed answer without what `finish` says: to be parsed again."""
    return facts.without("truncated", "failure", "files")


def _parse(answer: Answer) -> tuple[str | None, Failure | None]:
    reason = answer.facts.finish_reason
    if reason == FinishReason.LENGTH:
        limit = answer.facts.max_tokens
        at = f" at max_tokens = {limit}" if limit else ""
        return None, Failure(FailureKind.TRUNCATED, f"the answer was cut off{at}")
    if reason == FinishReason.CONTENT_FILTER:
        return None, Failure(FailureKind.CONTENT_FILTERED, "the endpoint's content filter stopped the answer")
    if reason == MALFORMED_REASON:
        return None, Failure(FailureKind.MALFORMED, "the endpoint sent something that is not an answer")
    if not answer.raw_text.strip():
        return None, Failure(FailureKind.EMPTY, "the answer is empty")
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
