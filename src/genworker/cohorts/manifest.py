"""What a membership was compiled from, as ``manifest.json`` records it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from genworker.cohorts.axes import Axes
from genworker.cohorts.compile import Given
from genworker.core.catalog import LEVELS, Combo
from genworker.core.stages import Stage

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Source:
    """Where a cohort's rows come from.

    Attributes:
        mode: ``product`` of the catalogue, ``spec``, or curated ``drafts`` or ``essays``.
        spec: the specification, for mode ``spec``.
        file: the list of ids, for the curated modes.
    """

    mode: str
    spec: Mapping[str, Any] | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """One ``manifest.json``. It holds no time: the same experiment gives the same bytes.

    Attributes:
        templates: per ``stage/template_id`` the digest of its text now, and when this cohort first had it.
        catalogue: SHA-256 of each file that was read, by its path below the data root.
    """

    cohort_id: str
    version: str
    source: Source
    axes: Mapping[str, Any]
    level: str
    k_max: int
    given: Given | None
    rows: Mapping[Stage, int]
    templates: Mapping[str, Mapping[str, str]]
    catalogue: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "cohort_id": self.cohort_id,
            "genworker_version": self.version,
            "mode": self.source.mode,
            "level": self.level,
            "k_max": self.k_max,
            "axes": self.axes,
        }
        if self.source.spec is not None:
            record["spec"] = self.source.spec
        if self.given is not None:
            record["given"] = {"file": self.source.file, **given_ids(self.given)}
        record["rows"] = {stage.value: number for stage, number in self.rows.items()}
        record["templates"] = {name: dict(self.templates[name]) for name in sorted(self.templates)}
        record["catalogue"] = dict(sorted(self.catalogue.items()))
        return record


def given_ids(given: Given) -> dict[str, list[str]]:
    """The ids that a curated cohort builds upon."""
    ids = {"drafts": [row.gen_id for row in given.drafts]}
    if given.essays is not None:
        ids["essays"] = [row.gen_id for row in given.essays]
    return ids


def derived_cohort_id(axes: Axes, given: Given | None) -> str:
    """The id of a cohort that was given no name: ``cohort-`` and 12 hex digits over what it consists of."""
    record = {"axes": axes.to_json(), "given": None if given is None else given_ids(given)}
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return f"cohort-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def template_records(
    digests: Mapping[str, str], earlier: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """Digests for the manifest: now, and as they were when this cohort first had the template."""
    return {
        name: {
            "sha256": digest,
            "first_sha256": str(earlier.get(name, {}).get("first_sha256", digest)),
        }
        for name, digest in digests.items()
    }


@dataclass(frozen=True, slots=True)
class Adopted:
    """What ``adopted.json`` says: how the generations of an older tool were made.

    Attributes:
        combos: by id, the concepts in the order in which the drafts' prompts have them.
        templates: per ``stage/template_id`` the digest of its text when the cohort was adopted.
    """

    combos: Mapping[str, Combo] = field(default_factory=dict)
    templates: Mapping[str, str] = field(default_factory=dict)

    def to_json(self, cohort_id: str, version: str, membership: str) -> dict[str, Any]:
        """The file's content; it holds no time, so the same store gives the same bytes."""
        return {
            "format": FORMAT,
            "cohort_id": cohort_id,
            "genworker_version": version,
            "older_membership": membership,
            "combos": {
                name: {"concepts": list(combo.concept_ids), "level": combo.level, "k_max": combo.k_max}
                for name, combo in sorted(self.combos.items())
            },
            "templates": {name: {"first_sha256": digest} for name, digest in sorted(self.templates.items())},
        }

    @classmethod
    def from_json(cls, record: object) -> Adopted:
        """Read whatever can be read."""
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            return cls()
        combos, templates = record.get("combos"), record.get("templates")
        return cls(
            {
                str(name): Combo(
                    str(name), tuple(map(str, facts["concepts"])), facts["level"], facts["k_max"]
                )
                for name, facts in (combos.items() if isinstance(combos, Mapping) else ())
                if isinstance(facts, Mapping)
                and isinstance(facts.get("concepts"), list)
                and facts.get("level") in LEVELS
                and isinstance(facts.get("k_max"), int)
            },
            {
                str(name): str(facts["first_sha256"])
                for name, facts in (templates.items() if isinstance(templates, Mapping) else ())
                if isinstance(facts, Mapping) and "first_sha256" in facts
            },
        )


@dataclass(frozen=True, slots=True)
class Earlier:
    """What matters of the manifest of an earlier build; each field is empty where it cannot be read."""

    mode: str | None = None
    level: str | None = None
    k_max: int | None = None
    given_file: str | None = None
    given_drafts: tuple[str, ...] = ()
    given_essays: tuple[str, ...] | None = None
    templates: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, record: object) -> Earlier:
        """Read whatever can be read; the manifest of another tool may look different."""
        if not isinstance(record, Mapping) or record.get("format") != FORMAT:
            return cls()
        given = record.get("given")
        given = given if isinstance(given, Mapping) else {}
        essays = given.get("essays")
        level, k_max = record.get("level"), record.get("k_max")
        templates = record.get("templates")
        return cls(
            mode=str(record.get("mode")),
            level=level if level in LEVELS else None,
            k_max=k_max if isinstance(k_max, int) and k_max > 0 else None,
            given_file=str(given["file"]) if given.get("file") else None,
            given_drafts=tuple(map(str, given.get("drafts") or ())),
            given_essays=tuple(map(str, essays)) if isinstance(essays, list) else None,
            templates={
                str(name): {str(key): str(value) for key, value in digests.items()}
                for name, digests in (templates.items() if isinstance(templates, Mapping) else ())
                if isinstance(digests, Mapping)
            },
        )
