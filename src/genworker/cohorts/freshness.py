"""Whether a generation's prompt would be another one today: the rule, on digests alone."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from genworker.core.facts import MODE_LLM, Facts


class StaleReason(StrEnum):
    """What has changed since a generation was made."""

    TEMPLATE = "template"
    CONCEPTS = "concepts"
    PARENT = "parent"


class Rendered(NamedTuple):
    """What the metadata of one generation say about how it came about; ``None`` where they do not.

    Attributes:
        parent_sha256: the parent's parsed text that the prompt was made from.
        second_parent_sha256: the same of the text that stood second, where two were compared.
        raw_sha256: its own ``raw.txt``.
        parsed_sha256: its own ``parsed.txt``.
    """

    mode: str | None
    template_sha256: str | None
    prompt_sha256: str | None
    parent_sha256: str | None
    raw_sha256: str | None
    parsed_sha256: str | None
    second_parent_sha256: str | None = None


def rendered(facts: Facts) -> Rendered:
    """Draw the digests out of a generation's metadata."""
    files = facts.files or {}

    def file(name: str) -> str | None:
        found = files.get(name)
        return None if found is None else found.sha256

    return Rendered(
        facts.mode or (MODE_LLM if facts.model_id else None),  # some older tools name the model alone
        facts.template_sha256,
        file("prompt.txt"),
        facts.parent_sha256,
        file("raw.txt"),
        file("parsed.txt"),
        facts.second_parent_sha256,
    )


def stale_reason(
    made: Rendered,
    *,
    template_sha256: str | None,
    first_sha256: str | None,
    prompt_sha256: str | None,
    parent: Rendered | None,
    second: Rendered | None = None,
) -> StaleReason | None:
    """Why a generation is stale; ``None`` when it is not, or when nothing is known that says so.

    Args:
        template_sha256: the template's text today; ``None`` when it cannot be read, or for a copy.
        first_sha256: the template's text when the cohort was first built: it stands for the text that a
            generation was made from when another tool has made it and its metadata do not say.
        prompt_sha256: a draft's prompt, rendered today; ``None`` when that is not known.
        parent: the parent as it stands in the store today.
        second: the second parent likewise, where two texts were compared.
    """
    then = made.template_sha256 or first_sha256
    if template_sha256 is not None and then is not None and then != template_sha256:
        return StaleReason.TEMPLATE
    if prompt_sha256 is not None and made.prompt_sha256 not in (None, prompt_sha256):
        return StaleReason.CONCEPTS
    if parent is not None and parent.parsed_sha256 is not None:
        used = made.raw_sha256 if made.mode == "copy" else made.parent_sha256
        if used is not None and used != parent.parsed_sha256:
            return StaleReason.PARENT
    now = None if second is None else second.parsed_sha256
    if now is not None and made.second_parent_sha256 not in (None, now):
        return StaleReason.PARENT
    return None
