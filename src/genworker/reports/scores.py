"""What each evaluation of a cohort says, or why it says nothing, with the essay and the draft behind it.

Owns the meaning of "a score of the plan": one `Evaluation` per row, whatever became of it. Reads through a
`Source`; knows neither files nor CSV.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol, TypeVar

from genworker.core.facts import Facts
from genworker.core.generation import FailureKind, Generation
from genworker.core.membership import Membership, MembershipRow
from genworker.core.parsers import read_choice, read_score
from genworker.core.plan import Plan, RowState
from genworker.core.rating import HUMAN, Chosen, Rated
from genworker.core.stages import Stage
from genworker.core.visible import visible
from genworker.errors import StoreError
from genworker.paths import PARSED_FILE, RAW_FILE, Paths

ESSAY_STAGE = "essay2p"
"""What the column ``stage`` of scores and pivots says: the essays of two phases, draft and essay."""

Mark = TypeVar("Mark", float, str)

REASON_CHARS = 300
JOINT = " + "
"""Between the names of a combo's concepts."""


class Source(Protocol):
    """What scores and pages read of a store; `genworker.store.reader.StoreReader` is the real one."""

    paths: Paths

    def plan(self, membership: Membership) -> Plan:
        """Where each row stands."""
        ...

    def is_done(self, stage: Stage, gen_id: str) -> bool:
        """Whether a generation is in the store and good."""
        ...

    def holds(self, stage: Stage, gen_id: str) -> bool:
        """Whether the store has a directory of that name, good or not."""
        ...

    def generation(self, stage: Stage, gen_id: str) -> Generation:
        """One generation; raises `StoreError` when it cannot be read."""
        ...

    def facts(self, stage: Stage, gen_id: str) -> Facts:
        """Lineage and provenance of a generation; empty when there are none."""
        ...

    def evaluation(self, gen_id: str) -> tuple[str, str | None]:
        """``parsed.txt`` and the path of the response of an evaluation that is done; raises `StoreError`."""
        ...

    def concepts(self, combos: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """The names of each combo's concepts, as far as the store knows them."""
        ...

    def template(self, stage: Stage, template_id: str) -> tuple[str | None, str | None]:
        """A template's text as its file has it today and its digest; ``None`` twice where there is none."""
        ...

    def call_errors(self) -> dict[str, str]:
        """Why the last call for a gen_id failed, where that is known."""
        ...

    def ratings(self) -> Iterable[Rated]:
        """What people think of essays; an essay may be of another cohort."""
        ...

    def choices(self) -> Iterable[Chosen]:
        """Which of two essays people find better, likewise."""
        ...


class Outcome(StrEnum):
    """What became of one planned evaluation."""

    SCORED = "scored"
    UNPARSEABLE = "unparseable"
    """An answer without a readable score."""
    FAILED = "failed"
    """An answer that is not usable for another reason: cut off, filtered, empty, malformed."""
    BLOCKED = "blocked"
    """Its essay or draft has failed."""
    MISSING = "missing"
    """No answer yet."""


class Axis(NamedTuple):
    """One evaluator: a template and the model that fills it in."""

    template: str
    model: str

    @property
    def name(self) -> str:
        """The pivot's column: ``<evaluation_template>_<evaluation_llm_model>``."""
        return f"{self.template}_{self.model}"


class PivotKey(NamedTuple):
    """One row of the pivot. Ids and replicates are no part of it."""

    combo_id: str
    stage: str
    draft_template: str
    generation_template: str
    generation_model: str


class Essay(NamedTuple):
    """An evaluated essay and the draft behind it.

    A field that neither the cohort nor the store knows is ``""``.

    Attributes:
        key: the row of the pivot that it belongs to.
        path: its ``parsed.txt``; ``None`` when the store has none.
    """

    gen_id: str
    key: PivotKey
    replicate: int
    draft_id: str
    draft_replicate: int
    path: str | None


class Evaluation(NamedTuple):
    """One planned evaluation.

    Attributes:
        axis: who evaluates.
        score: from 0 to 10; ``None`` unless `outcome` is `SCORED`.
        error: why there is no score, beginning with the outcome or the kind of failure; else ``None``.
        response_path: the file that holds the response; ``None`` when there is none.
    """

    row: MembershipRow
    axis: Axis
    essay: Essay
    outcome: Outcome
    score: float | None
    error: str | None
    response_path: str | None


class Compared(NamedTuple):
    """One planned comparison of two essays.

    Attributes:
        axis: who compares: ``human`` by ``human:<rater>`` where a person does.
        first: the essay that stood first.
        choice: ``first``, ``second`` or ``tie``; ``None`` unless `outcome` is `SCORED`.
        error: why there is no choice, as in `Evaluation`.
    """

    row: MembershipRow
    axis: Axis
    first: Essay
    second: Essay
    outcome: Outcome
    choice: str | None
    error: str | None
    response_path: str | None


class Trouble(NamedTuple):
    """A planned draft or essay that is not done.

    Attributes:
        reason: in one line, beginning with the kind of failure, ``blocked`` or ``missing``.
    """

    row: MembershipRow
    reason: str


class ScoreRow(NamedTuple):
    """One row of ``aggregated_scores.csv``, its columns in order (the contract, section 7).

    Attributes:
        gen_id: of the evaluation.
        parent_gen_id: of the essay.
        evaluation_model: the evaluator's model id, once more: older tables have it under this name.
        score: from 0 to 10; ``None`` when there is none, and then `error` says why.
        evaluation_response_path: the evaluator's response (``raw.txt``); ``None`` when there is none.
        generation_response_path: the essay's ``parsed.txt``; ``None`` when there is none.
        replicate: of the evaluation, from 1.
        draft_replicate: of the draft behind it, from 1.
        concepts: the names of the combo's concepts, joined by `` + ``; ``None`` where they are not known.
    """

    gen_id: str
    parent_gen_id: str
    evaluation_template: str
    evaluation_model: str
    evaluation_llm_model: str
    score: float | None
    error: str | None
    evaluation_response_path: str | None
    combo_id: str
    draft_template: str
    generation_template: str
    generation_model: str
    stage: str
    cohort_id: str
    generation_response_path: str | None
    replicate: int
    draft_replicate: int
    concepts: str | None


@dataclass(frozen=True, slots=True)
class Scores:
    """All planned evaluations of one or more cohorts.

    Attributes:
        plan: of all rows, those of several cohorts merged.
        evaluations: in the membership's order.
        axes: every planned evaluator, in order of first appearance.
        troubles: the drafts and essays that are not done.
        concepts: combo's id to the names of its concepts as one text, as far as they are known.
        concept_lists: the same, name by name.
        compared: every planned comparison of two essays, then those by people.
    """

    cohort_ids: tuple[str, ...]
    plan: Plan
    evaluations: Sequence[Evaluation]
    axes: tuple[Axis, ...]
    troubles: Sequence[Trouble] = ()
    concepts: Mapping[str, str] = field(default_factory=dict)
    concept_lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    compared: Sequence[Compared] = ()

    def rows(self) -> Iterable[ScoreRow]:
        """The rows of ``aggregated_scores.csv``."""
        names = self.concepts
        return (_score_row(evaluation, names) for evaluation in self.evaluations)


def _score_row(evaluation: Evaluation, concepts: Mapping[str, str]) -> ScoreRow:
    row, axis, essay, _, score, error, response_path = evaluation
    key = essay.key
    return ScoreRow(
        row.gen_id,
        essay.gen_id,
        axis.template,
        axis.model,
        axis.model,
        score,
        error,
        response_path,
        key.combo_id,
        key.draft_template,
        key.generation_template,
        key.generation_model,
        key.stage,
        row.cohort_id,
        essay.path,
        row.replicate,
        essay.draft_replicate,
        concepts.get(key.combo_id),
    )


def merge_memberships(memberships: Sequence[Membership]) -> Membership:
    """One membership out of several: a generation that stands in more than one counts once, where first."""
    if len(memberships) == 1:
        return memberships[0]
    places: dict[tuple[Stage, str], int] = {}
    rows: list[MembershipRow] = []
    for membership in memberships:
        for row in membership.rows:
            if places.setdefault((row.stage, row.gen_id), len(rows)) == len(rows):
                rows.append(row)
    parents = array("i", [-1]) * len(rows)
    seconds: dict[int, int] = {}
    for index, row in enumerate(rows):
        if row.stage.parent is not None and row.parent_gen_id is not None:
            parents[index] = places.get((row.stage.parent, row.parent_gen_id), -1)
            if row.second_parent_gen_id is not None:
                second = places.get((row.stage.parent, row.second_parent_gen_id))
                if second is not None:
                    seconds[index] = second
    names = " + ".join(membership.cohort_id for membership in memberships)
    return Membership(names, rows, parents, seconds)


def collect_scores(source: Source, memberships: Sequence[Membership]) -> Scores:
    """Read what became of every planned evaluation.

    Takes time and memory in proportion to the rows; of each evaluation that is done one small file is
    read, of each failed one its metadata.
    """
    membership = merge_memberships(memberships)
    plan = source.plan(membership)
    reader = _Reader(source, plan)
    scored = [index for index, row in enumerate(membership.rows) if row.stage.is_scored]
    pairs = [index for index in scored if membership.rows[index].second_parent_gen_id is not None]
    apart = frozenset(pairs)
    evaluations = [reader.evaluation(index) for index in scored if index not in apart]
    evaluations += reader.ratings()
    compared = [*map(reader.comparison, pairs), *reader.choices()]
    troubles = [
        Trouble(row, reader.reason(index)[1])
        for index, row in enumerate(membership.rows)
        if not row.stage.is_scored and plan.states[index] != RowState.DONE
    ]
    names = tuple(membership.cohort_id for membership in memberships)
    lists = source.concepts({row.combo_id for row in membership.rows})
    concepts = {combo: JOINT.join(names) for combo, names in lists.items()}
    axes = tuple(reader.axes.values())
    return Scores(names, plan, evaluations, axes, troubles, concepts, lists, compared)


class _Reader:
    def __init__(self, source: Source, plan: Plan) -> None:
        self.source = source
        self.plan = plan
        self.rows = plan.membership.rows
        self.places: dict[tuple[Stage, str], int] = {
            (row.stage, row.gen_id): index for index, row in enumerate(self.rows) if not row.stage.is_scored
        }
        self.essays: dict[tuple[str, str], Essay] = {}
        self.axes: dict[tuple[str, str], Axis] = {}
        self.call_errors: dict[str, str] | None = None
        self.stage_dirs = {stage: str(source.paths.stage_dir(stage)) for stage in Stage}

    def evaluation(self, index: int) -> Evaluation:
        row = self.rows[index]
        axis = self._axis(row.template_id, row.llm_model_id or "")
        essay = self._essay(row.combo_id, row.parent_gen_id or "")
        if self.plan.states[index] == RowState.DONE:
            return Evaluation(row, axis, essay, *self._read(row.gen_id, read_score, "score from 0 to 10"))
        outcome, error = self.reason(index)
        held = outcome in (Outcome.FAILED, Outcome.UNPARSEABLE)
        path = f"{self.stage_dirs[row.stage]}/{row.gen_id}/{RAW_FILE}" if held else None
        return Evaluation(row, axis, essay, outcome, None, error, path)

    def comparison(self, index: int) -> Compared:
        """One planned comparison of two essays."""
        row = self.rows[index]
        axis = Axis(row.template_id, row.llm_model_id or "")
        first = self._essay(row.combo_id, row.parent_gen_id or "")
        second = self._other(row.second_parent_gen_id or "")
        if self.plan.states[index] == RowState.DONE:
            return Compared(row, axis, first, second, *self._read(row.gen_id, read_choice, "choice"))
        outcome, error = self.reason(index)
        held = outcome in (Outcome.FAILED, Outcome.UNPARSEABLE)
        path = f"{self.stage_dirs[row.stage]}/{row.gen_id}/{RAW_FILE}" if held else None
        return Compared(row, axis, first, second, outcome, None, error, path)

    def _other(self, gen_id: str) -> Essay:
        """The essay that stands second, under the combo that it is about itself."""
        place = self.places.get((Stage.ESSAY, gen_id))
        if place is not None:
            return self._essay(self.rows[place].combo_id, gen_id)
        combo = ""
        with contextlib.suppress(StoreError, ValueError):
            combo = self.source.generation(Stage.ESSAY, gen_id).facts.combo_id or ""
        return self._essay(combo, gen_id)

    def choices(self) -> Iterable[Compared]:
        """What people chose between two of the cohort's essays."""
        for chosen in self.source.choices():
            places = [self.places.get((Stage.ESSAY, name)) for name in (chosen.first, chosen.second)]
            if places[0] is None or places[1] is None:
                continue
            first, second = self.rows[places[0]], self.rows[places[1]]
            model = f"{HUMAN}:{chosen.rater}"
            row = MembershipRow(
                Stage.EVALUATION,
                chosen.name,
                first.cohort_id,
                first.gen_id,
                first.combo_id,
                HUMAN,
                model,
                1,
                None,
                second.gen_id,
            )
            one, two = (self._essay(row.combo_id, row.gen_id) for row in (first, second))
            judge = Axis(HUMAN, model)
            yield Compared(row, judge, one, two, Outcome.SCORED, chosen.choice, None, chosen.path)

    def ratings(self) -> Iterable[Evaluation]:
        """Ratings of the cohort's essays: each rater is one more evaluator, with the plan that they made."""
        for rated in self.source.ratings():
            place = self.places.get((Stage.ESSAY, rated.essay))
            if place is None:
                continue
            essay = self.rows[place]
            model = f"{HUMAN}:{rated.rater}"
            row = MembershipRow(
                Stage.EVALUATION,
                rated.name,
                essay.cohort_id,
                essay.gen_id,
                essay.combo_id,
                HUMAN,
                model,
                1,
                None,
            )
            axis = self._axis(HUMAN, model)
            found = self._essay(essay.combo_id, essay.gen_id)
            yield Evaluation(row, axis, found, Outcome.SCORED, rated.score, None, rated.path)

    def _read(
        self, gen_id: str, reader: Callable[[str], Mark | None], what: str
    ) -> tuple[Outcome, Mark | None, str | None, str | None]:
        """(outcome, what the evaluation says, why it says nothing, its file)."""
        try:
            text, path = self.source.evaluation(gen_id)
        except StoreError as error:
            return Outcome.UNPARSEABLE, None, _one_line(f"unparseable: {error}"), None
        found = reader(text)
        if found is not None:
            return Outcome.SCORED, found, None, path
        shown = visible(text, limit=60, one_line=True)
        return Outcome.UNPARSEABLE, None, f"unparseable: parsed.txt is no {what}: {shown!r}", path

    def reason(self, index: int) -> tuple[Outcome, str]:
        """Why a row that is not done is not, in one line."""
        state = self.plan.states[index]
        if state == RowState.FAILED:
            failure = self.plan.failures[index]
            unparseable = failure.kind is FailureKind.UNPARSEABLE
            outcome = Outcome.UNPARSEABLE if unparseable else Outcome.FAILED
            return outcome, _one_line(f"{failure.kind.value}: {failure.message}")
        if state == RowState.BLOCKED:
            return Outcome.BLOCKED, self._blocked(index)
        if self.call_errors is None:
            self.call_errors = self.source.call_errors()
        error = self.call_errors.get(self.rows[index].gen_id)
        if error is not None:
            return Outcome.MISSING, _one_line(f"missing: the last call failed: {error}")
        return Outcome.MISSING, "missing: no answer yet"

    def _blocked(self, index: int) -> str:
        blocker = self.plan.blockers[index]
        if blocker < 0:
            row = self.rows[index]
            parent = row.stage.parent.value if row.stage.parent else "parent"
            names = " or ".join(row.above)
            return f"blocked: its {parent} {names} is neither in the cohort nor in the store"
        ancestor, failure = self.rows[blocker], self.plan.failures[blocker]
        return _one_line(
            f"blocked: {ancestor.stage.value} {ancestor.gen_id} is {failure.kind.value}: {failure.message}"
        )

    def _axis(self, template: str, model: str) -> Axis:
        axis = self.axes.get((template, model))
        if axis is None:
            axis = self.axes[template, model] = Axis(template, model)
        return axis

    def _essay(self, combo_id: str, gen_id: str) -> Essay:
        essay = self.essays.get((combo_id, gen_id))
        if essay is None:
            essay = self.essays[combo_id, gen_id] = self._read_essay(combo_id, gen_id)
        return essay

    def _read_essay(self, combo_id: str, gen_id: str) -> Essay:
        template, model, replicate, draft_id = self._facts(Stage.ESSAY, gen_id)
        draft_template, draft_model, draft_replicate, _ = self._facts(Stage.DRAFT, draft_id)
        key = PivotKey(combo_id, ESSAY_STAGE, draft_template, template, model or draft_model)
        done = self.source.is_done(Stage.ESSAY, gen_id)
        path = f"{self.stage_dirs[Stage.ESSAY]}/{gen_id}/{PARSED_FILE}" if done else None
        return Essay(gen_id, key, replicate, draft_id, draft_replicate, path)

    def _facts(self, stage: Stage, gen_id: str) -> tuple[str, str, int, str]:
        """Template, model, replicate and parent of a generation: from the cohort, else from the store."""
        place = self.places.get((stage, gen_id))
        if place is not None:
            row = self.rows[place]
            return row.template_id, row.llm_model_id or "", row.replicate, row.parent_gen_id or ""
        if not gen_id:
            return "", "", 1, ""
        try:
            generation = self.source.generation(stage, gen_id)
        except (StoreError, ValueError):  # cleaned up, damaged, or named by damaged metadata
            return "", "", 1, ""
        facts = generation.facts
        return facts.template_id or "", facts.model_id or "", facts.replicate or 1, facts.parent_gen_id or ""


def _one_line(text: str) -> str:
    return visible(text, limit=REASON_CHARS, one_line=True)
