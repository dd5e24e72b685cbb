"""What the answers of a cohort say of themselves: tokens, times, models that answered, templates.

Reads the metadata of each answer once; everything else that a report asks of them comes from here.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from genworker.core.facts import Facts, whole
from genworker.core.plan import RowState
from genworker.core.stages import STAGES, Stage
from genworker.core.visible import visible
from genworker.reports.scores import Scores, Source

NAME_CHARS = 120
"""Characters of a name that an endpoint gave; one that is longer is cut."""
MOST_TEMPLATES = 200
"""Templates whose texts a page holds."""
MOST_NAMES = 1000
"""Different names of models, samplings and digests that are told apart."""


@dataclass(slots=True)
class Usage:
    """Tokens of the answers that the store holds of one stage.

    Attributes:
        uncounted: calls whose endpoint did not say how many tokens they took.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    uncounted: int = 0

    def add(self, facts: Facts) -> None:
        """Count one answer."""
        usage = facts.record.get("usage")
        counts = usage if isinstance(usage, Mapping) else {}
        took, gave = (whole(counts.get(name)) for name in ("input_tokens", "output_tokens"))
        if took is not None and gave is not None:
            self.input_tokens += took
            self.output_tokens += gave
        else:
            self.uncounted += 1

    @property
    def text(self) -> str:
        """``410,000 → 52,000``, with ``+ ?`` where some are not known; ``–`` without a call."""
        if not self.input_tokens:
            return "unknown" if self.uncounted else "–"
        return f"{self.input_tokens:,} → {self.output_tokens:,}{' + ?' if self.uncounted else ''}"


@dataclass(slots=True)
class Provenance:
    """What the answers say of themselves.

    Attributes:
        finished: when each evaluation of `Scores.evaluations` was finished, in seconds since 1970; 0 where
            that is not known.
        served: (stage, model's id, endpoint, name that the endpoint gave) to the number of answers.
        sampling: (stage, model's id, sampling as text) to the number of answers.
        templates: (stage, template's id, digest of the text that was used) to the number of answers.
    """

    usage: dict[Stage, Usage] = field(default_factory=lambda: {stage: Usage() for stage in STAGES})
    finished: array[float] = field(default_factory=lambda: array("d"))
    served: Counter[tuple[Stage, str, str, str]] = field(default_factory=Counter)
    sampling: Counter[tuple[Stage, str, str]] = field(default_factory=Counter)
    templates: Counter[tuple[Stage, str, str]] = field(default_factory=Counter)

    def add(self, stage: Stage, template: str, model: str, facts: Facts) -> None:
        """Count one answer; a copy asked no model."""
        if facts.template_sha256 is not None:
            self._count(self.templates, (stage, template, facts.template_sha256))
        if facts.is_copy:
            return
        self.usage[stage].add(facts)
        if facts.response_model is not None:
            self._count(self.served, (stage, model, facts.endpoint or "", facts.response_model))
        sampling = facts.record.get("sampling")
        if isinstance(sampling, Mapping):
            self._count(self.sampling, (stage, model, sampling_text(sampling)))

    def _count(self, counter: Counter[Any], key: Any) -> None:
        if key in counter or len(counter) < MOST_NAMES:
            counter[key] += 1


def sampling_text(sampling: Mapping[str, Any]) -> str:
    """``temperature 0.7, max_tokens 4096``; what was not set is left out, a seed differs from row to row."""
    parts = [f"{name} {value}" for name, value in sampling.items() if value is not None and name != "seed"]
    return visible(", ".join(parts), limit=NAME_CHARS, one_line=True) or "the endpoint's own"


def read_provenance(
    scores: Scores, source: Source, tell: Callable[[Stage, str, Facts], None] | None = None
) -> Provenance:
    """Read the metadata of every answer that the store holds.

    Args:
        tell: told them as well, so that nobody reads them again.
    """
    found = Provenance()
    plan = scores.plan
    held = (int(RowState.DONE), int(RowState.FAILED))
    for row, state in zip(plan.membership.rows, plan.states, strict=True):
        moment = 0.0
        if state in held:
            facts = source.facts(row.stage, row.gen_id)
            found.add(row.stage, row.template_id, row.llm_model_id or "", facts)
            if tell is not None:
                tell(row.stage, row.gen_id, facts)
            moment = seconds_of(facts.finished_at)
        if row.stage.is_scored and row.second_parent_gen_id is None:
            found.finished.append(moment)
    # What people think stands behind the planned evaluations, and takes no part in drift: its order is drawn.
    found.finished.extend([0.0] * (len(scores.evaluations) - len(found.finished)))
    return found


def seconds_of(moment: str | None) -> float:
    """Seconds since 1970 of a time as ISO 8601 has it; 0 where it is none."""
    if moment is None:
        return 0.0
    try:
        parsed = datetime.fromisoformat(moment)
    except ValueError:
        return 0.0
    return parsed.timestamp() if parsed.tzinfo is not None else 0.0


class RunRecord(NamedTuple):
    """One run of a cohort, as its journal says.

    Attributes:
        started_at: ISO 8601; ``""`` where the journal does not say, as of the others.
        ended_at: ``None`` for a run that is alive, was killed, or whose end is not on record.
        calls: that it made; ``None`` likewise, as of the others.
        ending: how it ended, in words.
    """

    run_id: str
    started_at: str
    ended_at: str | None
    version: str
    calls: int | None
    ending: str

    @property
    def rate_per_min(self) -> float | None:
        """Calls a minute over all its time."""
        began, ended = seconds_of(self.started_at), seconds_of(self.ended_at)
        return None if self.calls is None or ended <= began else 60 * self.calls / (ended - began)


class StaleGroup(NamedTuple):
    """Generations that would be made from another prompt today, for one reason.

    Attributes:
        reason: ``template``, ``concepts`` or ``parent``.
        changed_at: when the template's file was changed last, ISO 8601; ``None`` for other reasons.
    """

    stage: Stage
    template_id: str
    reason: str
    rows: int
    changed_at: str | None


class TemplateText(NamedTuple):
    """A template of the plan.

    Attributes:
        text: as its file has it today; ``None`` where there is none.
        is_other: whether answers were made from another text than that.
    """

    stage: Stage
    template_id: str
    text: str | None
    is_other: bool


@dataclass(frozen=True, slots=True)
class History:
    """What is known of how a cohort came about, beside what its answers say.

    Attributes:
        stale: ``None`` where it was not looked for.
    """

    runs: Sequence[RunRecord] = ()
    stale: Sequence[StaleGroup] | None = None
    templates: Sequence[TemplateText] = ()


def template_texts(scores: Scores, provenance: Provenance, source: Source) -> list[TemplateText]:
    """The templates of the plan with their texts as they are today."""
    used = dict.fromkeys((row.stage, row.template_id) for row in scores.plan.membership.rows)
    found = []
    for stage, template_id in sorted(used, key=lambda key: key[0].order)[:MOST_TEMPLATES]:
        text, digest = source.template(stage, template_id)
        digests = {known for at, name, known in provenance.templates if (at, name) == (stage, template_id)}
        found.append(TemplateText(stage, template_id, text, bool(digests - {digest}) and text is not None))
    return found
