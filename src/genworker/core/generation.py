"""One generation as values: its four files, its metadata, and what makes it done or failed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from genworker.core.stages import Stage


class FailureKind(StrEnum):
    """Why an answer that was paid for is not usable. The word stands in ``metadata.json``."""

    UNPARSEABLE = "unparseable"
    TRUNCATED = "truncated"
    CONTENT_FILTERED = "content_filtered"
    EMPTY = "empty"


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
        metadata: lineage and provenance; empty when the file is absent.
    """

    stage: Stage
    gen_id: str
    prompt_text: str | None
    raw_text: str
    parsed_text: str | None
    metadata: Mapping[str, Any]

    @property
    def parent_gen_id(self) -> str | None:
        """The generation that this one was made from; ``None`` for drafts."""
        parent = self.metadata.get("parent_gen_id")
        return str(parent) if parent else None

    @property
    def model_id(self) -> str | None:
        """The model's id in the catalogue, under whichever name the file has it."""
        model = self.metadata.get("model_id", self.metadata.get("llm_model_id"))
        return str(model) if model else None

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


def file_digest(content: bytes) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(content).hexdigest()


def encode_metadata(metadata: Mapping[str, Any]) -> bytes:
    """``metadata.json`` as bytes: indented, in the order given, ending in a newline."""
    return (json.dumps(metadata, indent=2, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
