"""Axes and a cohort's id in, membership rows out: drafts, then essays, then evaluations.

Replicates vary fastest, and whatever is added to an experiment leaves every id that exists as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from genworker.cohorts.axes import AXES, INHERITED, Axes, Lineages, Registers
from genworker.cohorts.pairs import Text, drawn
from genworker.core.catalog import Catalog
from genworker.core.ids import (
    draft_task_id,
    essay_salt,
    essay_task_id,
    evaluation_task_id,
    gen_id,
    pair_task_id,
    replicate_salt,
)
from genworker.core.membership import MembershipRow
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault


@dataclass(frozen=True, slots=True)
class Given:
    """Generations that exist and are built upon, under the ids that they have.

    Attributes:
        drafts: rows of stage draft.
        essays: rows of stage essay, children of `drafts`; ``None`` when essays are to be made from them.
    """

    drafts: Sequence[MembershipRow]
    essays: Sequence[MembershipRow] | None = None


class _Made(NamedTuple):
    """A generation as its children need it.

    Attributes:
        values: what has been decided on the way to it, in the order of `genworker.cohorts.axes.AXES`.
    """

    gen_id: str
    values: tuple[str, ...]
    task_id: str
    model: str | None
    replicate: int


def compile_rows(
    axes: Axes,
    cohort_id: str,
    given: Given | None = None,
    earlier: Collection[tuple[str, str]] = (),
) -> Iterator[MembershipRow]:
    """The rows of a cohort, parents before their children.

    Args:
        given: rows of some stages that are taken as they are, instead of compiled ones.
        earlier: pairs of gen_ids that the cohort compares already; a sample of pairs keeps them.
    """
    lineages = Lineages(axes)
    parents: list[_Made] = []
    for stage in STAGES:
        rows = _given(stage, given, parents) if given is not None else None
        if rows is None:
            if not axes.templates[stage]:
                return
            made = _roots(axes, lineages, cohort_id) if stage.is_root else None
            rows = made or _children(stage, axes, lineages, cohort_id, parents)
        # The last stage has no children, and most of the rows.
        keeps = stage.child is not None and bool(axes.templates[stage.child])
        keeps = keeps or (given is not None and stage.is_root and given.essays is not None)
        above, parents = parents, []
        for row, generation in rows:
            if keeps:
                parents.append(generation)
            yield row
        if axes.pairs is not None and stage is axes.last_stage:
            yield from _comparisons(stage, axes, lineages, cohort_id, above, earlier)


_Rows = Iterator[tuple[MembershipRow, _Made]]


def _given(stage: Stage, given: Given, parents: Sequence[_Made]) -> _Rows | None:
    """The rows of a stage that are given; ``None`` when they are to be made."""
    if stage is Stage.DRAFT:
        return ((row, _given_draft(row)) for row in given.drafts)
    if stage is Stage.ESSAY and given.essays is not None:
        by_id = {parent.gen_id: parent for parent in parents}
        return ((row, _given_essay(row, by_id[row.parent_gen_id or ""])) for row in given.essays)
    return None


def _given_draft(row: MembershipRow) -> _Made:
    values = (row.combo_id, row.template_id, row.llm_model_id or "")
    return _Made(row.gen_id, values, draft_task_id(*values), row.llm_model_id, row.replicate)


def _given_essay(row: MembershipRow, draft: _Made) -> _Made:
    values = (*draft.values, row.template_id, INHERITED)
    task_id = essay_task_id(draft.task_id, row.template_id)
    return _Made(row.gen_id, values, task_id, row.llm_model_id, row.replicate)


def _roots(axes: Axes, lineages: Lineages, cohort_id: str) -> _Rows:
    stage = STAGES[0]
    replicates = range(1, axes.replicates[stage] + 1)
    for values in lineages.drafts():
        combo, template, model = values
        task_id = draft_task_id(combo, template, model)
        for replicate in replicates:
            name = gen_id(stage, task_id, cohort_id, replicate_salt(replicate))
            row = MembershipRow(stage, name, cohort_id, None, combo, template, model, replicate, None)
            yield row, _Made(name, values, task_id, model, replicate)


def _children(
    stage: Stage, axes: Axes, lineages: Lineages, cohort_id: str, parents: Sequence[_Made]
) -> _Rows:
    replicates = range(1, axes.replicates[stage] + 1)
    for parent in parents:
        for template, stated in lineages.steps(parent.values):
            if template in axes.pair_templates:
                continue  # these read two parents: `_comparisons`
            if stage.inherits_model:
                model = stated or parent.model
                other = model if model != parent.model else None
                task_id = essay_task_id(parent.task_id, template, other)
            else:
                model = stated
                task_id = evaluation_task_id(parent.gen_id, template, stated)
            for replicate in replicates:
                salt = replicate_salt(replicate)
                if stage.inherits_model:
                    salt = essay_salt(parent.replicate, replicate)
                name = gen_id(stage, task_id, cohort_id, salt)
                combo = parent.values[0]
                row = MembershipRow(
                    stage, name, cohort_id, parent.gen_id, combo, template, model, replicate, None
                )
                yield row, _Made(name, (*parent.values, template, stated), task_id, model, replicate)


def _comparisons(
    stage: Stage,
    axes: Axes,
    lineages: Lineages,
    cohort_id: str,
    texts: Sequence[_Made],
    earlier: Collection[tuple[str, str]],
) -> Iterator[MembershipRow]:
    """Rows that compare two texts, each pair in both orders; both texts must allow the judge."""
    design = axes.pairs
    assert design is not None
    places = tuple(AXES.index(axis) for axis in design.same)
    baseline = tuple((AXES.index(axis), value) for axis, value in design.baseline)
    choices = [
        Text(
            text.gen_id,
            tuple(text.values[place] for place in places),
            bool(baseline) and all(text.values[place] == value for place, value in baseline),
        )
        for text in texts
    ]
    replicates = range(1, axes.replicates[stage] + 1)
    for one, two in drawn(design, choices, earlier):
        judges = [
            judge
            for judge in lineages.steps(texts[one].values)
            if judge[0] in axes.pair_templates and judge in lineages.steps(texts[two].values)
        ]
        for template, model in judges:
            for first, second in ((texts[one], texts[two]), (texts[two], texts[one])):
                task_id = pair_task_id(first.gen_id, second.gen_id, template, model)
                for replicate in replicates:
                    yield MembershipRow(
                        stage,
                        gen_id(stage, task_id, cohort_id, replicate_salt(replicate)),
                        cohort_id,
                        first.gen_id,
                        first.values[0],
                        template,
                        model,
                        replicate,
                        None,
                        second.gen_id,
                    )


# Two tasks with one id


def _may_be_ambiguous(name: str) -> bool:
    return "__" in name or "|" in name or name[:1] == "_" or name[-1:] == "_"


def ambiguous_names(axes: Axes, cohort_id: str) -> list[str]:
    """Names that could run into their neighbours in a task id; empty in nearly every catalogue."""
    names = {cohort_id, *(combo.combo_id for combo in axes.combos)}
    for stage in STAGES:
        names.update(axes.templates[stage], axes.models.get(stage, ()))
    return sorted(filter(_may_be_ambiguous, names))


def twins(
    axes: Axes, cohort_id: str, catalog: Catalog, registers: Registers, given: Given | None = None
) -> Iterator[Fault]:
    """Rows with one id, one fault for each pair of tasks.

    A task id joins names by ``__``: where a name holds that itself, two tasks can have one id. Without
    such a name there is nothing to look for, except among drafts that come from several cohorts.
    """
    if not ambiguous_names(axes, cohort_id) and (given is None or given.essays is not None):
        return
    seen: dict[tuple[Stage, str], MembershipRow] = {}
    reported: set[tuple[str, ...]] = set()
    for row in compile_rows(axes, cohort_id, given):
        first = seen.setdefault((row.stage, row.gen_id), row)
        if first is row:
            continue
        pair = (row.stage.value, _names(first), _names(row))
        if pair in reported:
            continue
        reported.add(pair)
        entry = catalog.templates[row.stage].get(row.template_id)
        if given is not None and first.parent_gen_id != row.parent_gen_id:
            yield Fault(
                f"the drafts {first.parent_gen_id} and {row.parent_gen_id} are the same replicate of the "
                f"same task, so their essays with template {row.template_id!r} would have one id",
                fix="keep one of them in the list, or build two cohorts",
            )
            continue
        yield Fault(
            f"two {row.stage.value} tasks have one id: {_names(first)}; and {_names(row)}",
            where=registers.templates[row.stage],
            line=entry.line if entry is not None else None,
            column="template_id",
            fix="rename a template or a model: '__' separates the names in a task id",
        )


def _names(row: MembershipRow) -> str:
    names = [f"template {row.template_id!r}"]
    if not row.stage.inherits_model:
        names.append(f"model {row.llm_model_id!r}")
    if _may_be_ambiguous(row.combo_id):
        names.append(f"combo {row.combo_id!r}")
    return " ".join(names)


__all__ = ["Given", "ambiguous_names", "compile_rows", "twins"]
