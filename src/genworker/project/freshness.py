"""Which generations of a cohort are stale: their prompt would be another one today.

The truth stands in each generation's own metadata, which name the digests of what it was made from; the
template files, the catalogue and the parents say what they are now. Nothing here trusts a date, a cache
or the manifest where the generation itself knows better.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson

from genworker.cohorts.freshness import Rendered, StaleReason, rendered, stale_reason
from genworker.core.facts import MODE_LLM, Facts
from genworker.core.generation import file_digest
from genworker.core.membership import Membership
from genworker.core.plan import Plan, RowState
from genworker.core.prompts import draft_values
from genworker.core.stages import STAGES, Stage
from genworker.errors import CatalogError, TemplateError
from genworker.paths import METADATA_FILE, PROMPT_FILE
from genworker.project.open import Project
from genworker.store.catalog import TemplateFiles
from genworker.store.cohorts import read_adopted
from genworker.store.reading import read_bytes

EAGER_ROWS = 50_000
"""Generations that are looked into without being asked to: more would make a mere count slow."""

_NOTHING = Rendered(None, None, None, None, None, None)


@dataclass(frozen=True, slots=True)
class Staleness:
    """The stale rows of a cohort.

    Attributes:
        reasons: why, by row index.
        checked: how many generations were looked into.
    """

    membership: Membership
    reasons: Mapping[int, StaleReason]
    checked: int

    def counts(self) -> Counter[Stage]:
        """Stale rows per stage."""
        return Counter(self.membership.rows[index].stage for index in self.reasons)

    def kinds(self, stage: Stage) -> Counter[StaleReason]:
        """Stale rows of one stage by reason."""
        rows = self.membership.rows
        return Counter(reason for index, reason in self.reasons.items() if rows[index].stage is stage)

    def with_descendants(self) -> frozenset[int]:
        """The stale rows and every row that builds upon one."""
        parents, seconds = self.membership.parents, self.membership.seconds
        found = set(self.reasons)
        for stage in STAGES[1:]:
            for index, row in enumerate(self.membership.rows):
                if row.stage is stage and (parents[index] in found or seconds.get(index, -1) in found):
                    found.add(index)
        return frozenset(found)


def find_stale(
    project: Project,
    plan: Plan,
    *,
    limit: int | None = EAGER_ROWS,
    templates: TemplateFiles | None = None,
) -> Staleness | None:
    """Look into each generation that the store holds, also into those that are not usable.

    Args:
        plan: the cohort as the store stands, without anything to be made again.
        limit: most generations that are looked into; ``None`` for all.
        templates: the same project's, where several cohorts are looked into.

    Returns:
        The stale rows; ``None`` when there are more than `limit` generations, so that nothing is known.
    """
    # Plain numbers: a million are compared.
    there = (int(RowState.DONE), int(RowState.FAILED), int(RowState.UNPARSED))
    made = [index for index, state in enumerate(plan.states) if state in there]
    if limit is not None and len(made) > limit:
        return None
    look = _Look(project, plan.membership, templates or TemplateFiles(project.paths))
    reasons = {index: reason for index in made if (reason := look.at(index)) is not None}
    return Staleness(plan.membership, reasons, len(made))


class _Look:
    def __init__(self, project: Project, membership: Membership, templates: TemplateFiles) -> None:
        self._project = project
        self._rows = membership.rows
        self._templates = templates
        adopted = read_adopted(project.paths, membership.cohort_id)
        first = _first_digests(project.paths.cohort_manifest_json(membership.cohort_id))
        self._first = {**adopted.templates, **first}
        self._combos = {**project.catalog.combos, **adopted.combos}
        self._directories = {stage: str(project.paths.stage_dir(stage)) for stage in STAGES}
        self._made: dict[tuple[Stage, str], Rendered] = {}
        self._digests: dict[tuple[Stage, str], tuple[str | None, str | None]] = {}
        self._prompts: dict[tuple[str, str], str | None] = {}

    def at(self, index: int) -> StaleReason | None:
        row = self._rows[index]
        now, first = self._template(row.stage, row.template_id)
        parent_stage = row.stage.parent
        parent = None
        if parent_stage is not None and row.parent_gen_id is not None:
            parent = self._parent(parent_stage, row.parent_gen_id)
        second = None
        if parent_stage is not None and row.second_parent_gen_id is not None:
            second = self._parent(parent_stage, row.second_parent_gen_id)
        if row.stage.child is None:
            # Most rows are of the last stage, and most are fresh: their text says so before it is parsed.
            content = self._read(row.stage, row.gen_id)
            if (
                _says(content, "template_sha256", now)
                and _says(content, "parent_sha256", None if parent is None else parent.parsed_sha256)
                and _says(content, "second_parent_sha256", None if second is None else second.parsed_sha256)
            ):
                return None
            made = _parse(content)
        else:
            made = self._parent(row.stage, row.gen_id)
        prompt = None
        if row.stage.is_root and made.prompt_sha256 is None and made.mode == MODE_LLM:
            # Another tool names no digest, but keeps the prompt itself.
            path = f"{self._directories[row.stage]}/{row.gen_id}/{PROMPT_FILE}"
            content = read_bytes(path)
            digest = file_digest(content.replace(b"\r\n", b"\n")) if content else None
            made = made._replace(prompt_sha256=digest)
        if row.stage.is_root and now is not None and made.prompt_sha256 is not None:
            prompt = self._prompt(row.combo_id, row.template_id)
        return stale_reason(
            made, template_sha256=now, first_sha256=first, prompt_sha256=prompt, parent=parent, second=second
        )

    def _template(self, stage: Stage, template_id: str) -> tuple[str | None, str | None]:
        """A template's digest now, and when the cohort was first built; ``None`` for what is not known."""
        key = (stage, template_id)
        if key not in self._digests:
            entry = self._project.catalog.templates[stage].get(template_id)
            now = None
            if entry is None or entry.generator != "copy":
                # A template that is gone has not been replaced by another text.
                with contextlib.suppress(CatalogError):
                    now = self._templates.digest(stage, template_id)
            self._digests[key] = (now, self._first.get(f"{stage.value}/{template_id}"))
        return self._digests[key]

    def _read(self, stage: Stage, gen_id: str) -> bytes:
        return read_bytes(f"{self._directories[stage]}/{gen_id}/{METADATA_FILE}")

    def _parent(self, stage: Stage, gen_id: str) -> Rendered:
        """What others may have been made from; each is asked for once per child."""
        key = (stage, gen_id)
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = _parse(self._read(stage, gen_id))
        return made

    def _prompt(self, combo_id: str, template_id: str) -> str | None:
        """The digest of a draft's prompt as it would be sent now."""
        key = (combo_id, template_id)
        if key not in self._prompts:
            self._prompts[key] = self._render(combo_id, template_id)
        return self._prompts[key]

    def _render(self, combo_id: str, template_id: str) -> str | None:
        catalog = self._project.catalog
        combo = self._combos.get(combo_id)  # registered ones: to guess the others could take seconds
        if combo is None or any(name not in catalog.concepts for name in combo.concept_ids):
            return None
        try:
            template = self._templates.get(STAGES[0], template_id)
            prompt = template.render(draft_values(catalog.draft_concepts(combo)))
        except (CatalogError, TemplateError):
            return None
        return file_digest(prompt.encode("utf-8", "replace"))


def _first_digests(manifest: Path) -> dict[str, str]:
    """Per ``stage/template_id`` the template's digest when the cohort first had it, as far as it says so."""
    try:
        templates = orjson.loads(manifest.read_bytes())["templates"]
        return {name: digests["first_sha256"] for name, digests in templates.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}  # no manifest, or one of another tool


def _says(content: bytes, key: str, digest: str | None) -> bool:
    """Whether a metadata file holds this digest; true where no digest is known to compare with."""
    return digest is None or f'"{key}": "{digest}"'.encode() in content


def _parse(content: bytes) -> Rendered:
    """The digests in a metadata file; nothing where it is no JSON object."""
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        return _NOTHING
    return rendered(Facts(record)) if isinstance(record, dict) else _NOTHING
