"""What a person can see of batches and do with them, without a run: list, cancel, resubmit, forget."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from genworker.core.batches import Line, Story
from genworker.errors import Fault, StoreError, UsageError
from genworker.project.endpoints import kind_of
from genworker.project.open import Project
from genworker.run.batch_money import open_parts, part_to_json, usual_wait_s
from genworker.run.station import make_batch_endpoint
from genworker.store.batches import Intent, OpenBatch, Shelf
from genworker.store.lock import describe_holder


@dataclass(frozen=True, slots=True)
class OpenRecord:
    """An open batch, for people and machines.

    Attributes:
        usual_s: how long batches of its endpoint took so far, the median; ``None`` when none has ended yet.
        tended_by: the process that tends it, in words; ``None`` when nobody does.
        what_to_do: for one that no run brings to an end.
    """

    intent: Intent
    story: Story
    age_s: float
    usual_s: float | None
    tended_by: str | None
    what_to_do: str | None

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        intent, story = self.intent, self.story
        return {
            "batch": intent.batch,
            "cohort": intent.cohort_id,
            "endpoint": intent.endpoint,
            "model": intent.model_id or intent.model,
            "rows": intent.count,
            "state": story.word,
            "age_s": round(self.age_s, 1),
            "usual_s": self.usual_s,
            "batch_id": story.batch_id,
            "creates": story.creates,
            "twins": list(story.twins),
            "worst_usd": None if intent.price is None else format(intent.worst.usd, "f"),
            "tended_by": self.tended_by,
            "what_to_do": self.what_to_do,
        }


def open_records(project: Project, cohort_id: str | None = None) -> list[OpenRecord]:
    """The open batches of a data root, oldest first.

    Raises:
        StoreError: one cannot be read.
    """
    shelf = Shelf(project.paths, "")
    found = []
    for name in shelf.open_batches():
        intent, story = shelf.peek(name)
        if cohort_id not in (None, intent.cohort_id):
            continue
        since = story.created_s or datetime.fromisoformat(intent.formed_at).timestamp()
        batch = shelf.take(name)
        if batch is not None:
            batch.release()
        found.append(
            OpenRecord(
                intent,
                story,
                max(0.0, time.time() - since),
                usual_wait_s(project.paths, intent.endpoint),
                None if batch is not None else describe_holder(shelf.holder(name)),
                _advice(project, intent, story),
            )
        )
    return found


def _advice(project: Project, intent: Intent, story: Story) -> str | None:
    section = project.loaded.settings.endpoints.get(intent.endpoint)
    if section is None or section.kind != intent.kind or kind_of(section).address(section) != intent.url:
        return (
            f"configure [endpoints.{intent.endpoint}] as it was ({intent.kind}, {intent.url}), or forget it"
        )
    if story.is_uncertain:
        return "a run finds out whether the provider has it; where it cannot, look there, then resubmit"
    return None


def find_batch(project: Project, name: str) -> str:
    """The open batch of a name, or of the beginning of one.

    Raises:
        UsageError: there is none, or more than one.
    """
    names = Shelf(project.paths, "").open_batches()
    found = [each for each in names if each.startswith(name) or each.rpartition("-")[2].startswith(name)]
    if len(found) != 1:
        what = "no open batch" if not found else f"{len(found)} open batches"
        raise UsageError([Fault(f"{what} of the name {name!r}", fix="see: genworker batches")])
    return found[0]


def _take(project: Project, name: str) -> OpenBatch:
    shelf = Shelf(project.paths, "desk", group_permissions=project.loaded.settings.group_permissions)
    batch = shelf.take(name)
    if batch is None:
        holder = describe_holder(shelf.holder(name))
        raise UsageError([Fault(f"batch {name} is tended by a run ({holder})", fix="stop that run first")])
    return batch


def cancel_batch(project: Project, name: str) -> str:
    """Ask the provider to end a batch; the next run collects what it has done. Returns what to say.

    Raises:
        UsageError: the provider does not have it, or its endpoint is not configured.
        ProviderError: the provider did not take the request.
    """
    shelf = Shelf(project.paths, "desk")
    intent, story = shelf.peek(name)
    if story.batch_id is None:
        fault = f"batch {name} is {story.word}: the provider is not known to have it"
        raise UsageError([Fault(fault, fix=f"genworker batches forget {name}, if it is not wanted any more")])
    if intent.endpoint not in project.loaded.settings.endpoints:
        raise UsageError([Fault(f"[endpoints.{intent.endpoint}] is not configured any more")])
    endpoint = make_batch_endpoint(project.loaded, intent.endpoint)

    async def ask(batch_id: str) -> None:
        try:
            await endpoint.provider.cancel(batch_id)
        finally:
            await endpoint.provider.aclose()

    asyncio.run(ask(story.batch_id))
    batch = shelf.take(name)
    if batch is not None:  # else the run that tends it sees it at its next look
        batch.note(Line.CANCELLING)
        batch.release()
    return f"{name} is being cancelled; collect what it has done with: genworker run {intent.cohort_id}"


def resubmit_batch(project: Project, name: str) -> str:
    """Send a batch again whose making is uncertain: a person has looked, and the provider has none.

    Raises:
        UsageError: it is not uncertain, or a run tends it.
    """
    batch = _take(project, name)
    try:
        if not batch.story.is_uncertain:
            raise UsageError(
                [Fault(f"batch {name} is {batch.story.word}, not uncertain: there is nothing to do")]
            )
        batch.note(Line.SOUGHT)
        batch.note(Line.ABSENT, by="a person")
    finally:
        batch.release()
    return f"{name} will be sent again by: genworker run {batch.intent.cohort_id}"


def forget_batch(project: Project, name: str) -> str:
    """Close a batch without its results: its rows are free, and it counts as what it may have cost at most.

    Raises:
        UsageError: a run tends it.
        StoreError: the disk refuses.
    """
    batch = _take(project, name)
    intent, story = batch.intent, batch.story
    parts = open_parts(intent) if story.creates else {}
    try:
        batch.settle(
            {
                "batch": name,
                "cohort_id": intent.cohort_id,
                "run_id": intent.run_id,
                "endpoint": intent.endpoint,
                "model_id": intent.model_id,
                "model": intent.model,
                "batch_id": story.batch_id,
                "twins": list(story.twins),
                "status": "forgotten",
                "count": intent.count,
                "formed_at": intent.formed_at,
                "settled_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "stages": {stage.value: part_to_json(part) for stage, part in parts.items()},
            }
        )
    except StoreError:
        batch.release()
        raise
    return f"{name} is forgotten: its {intent.count} rows will be asked again"
