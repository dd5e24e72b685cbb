"""Axes and a cohort's id in, membership rows out: drafts, then essays, then evaluations.

Replicates vary fastest, and whatever is added to an experiment leaves every id that exists as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from genworker.cohorts.axes import Axes, Lineages, Registers
from genworker.core.catalog import Catalog
from genworker.core.ids import (
    draft_task_id,
    essay_salt,
    essay_task_id,
    evaluation_task_id,
    gen_id,
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


class _Draft(NamedTuple):
    row: MembershipRow
    values: tuple[str, str, str]
    task_id: str


class _Essay(NamedTuple):
    gen_id: str
    draft: tuple[str, str, str]
    template: str


def compile_rows(axes: Axes, cohort_id: str, given: Given | None = None) -> Iterator[MembershipRow]:
    """The rows of a cohort, parents before their children.

    Args:
        given: stands in place of the stages that it holds.
    """
    lineages = Lineages(axes)
    drafts: list[_Draft] = []
    for draft in _drafts(axes, lineages, cohort_id) if given is None else map(_given_draft, given.drafts):
        drafts.append(draft)
        yield draft.row
    essays: list[_Essay] = []
    if given is not None and given.essays is not None:
        by_id = {draft.row.gen_id: draft for draft in drafts}
        for row in given.essays:
            essays.append(_Essay(row.gen_id, by_id[row.parent_gen_id or ""].values, row.template_id))
            yield row
    else:
        for row, essay in _essays(axes, lineages, cohort_id, drafts):
            essays.append(essay)
            yield row
    yield from _evaluations(axes, lineages, cohort_id, essays)


def _given_draft(row: MembershipRow) -> _Draft:
    values = (row.combo_id, row.template_id, row.llm_model_id or "")
    return _Draft(row, values, draft_task_id(*values))


def _drafts(axes: Axes, lineages: Lineages, cohort_id: str) -> Iterator[_Draft]:
    replicates = range(1, axes.replicates[Stage.DRAFT] + 1)
    for values in lineages.drafts():
        combo, template, model = values
        task_id = draft_task_id(combo, template, model)
        for replicate in replicates:
            name = gen_id(Stage.DRAFT, task_id, cohort_id, replicate_salt(replicate))
            row = MembershipRow(Stage.DRAFT, name, cohort_id, None, combo, template, model, replicate, None)
            yield _Draft(row, values, task_id)


def _essays(
    axes: Axes, lineages: Lineages, cohort_id: str, drafts: Sequence[_Draft]
) -> Iterator[tuple[MembershipRow, _Essay]]:
    replicates = range(1, axes.replicates[Stage.ESSAY] + 1)
    for draft in drafts:
        parent = draft.row
        for template in lineages.essays(draft.values):
            task_id = essay_task_id(draft.task_id, template)
            for replicate in replicates:
                name = gen_id(Stage.ESSAY, task_id, cohort_id, essay_salt(parent.replicate, replicate))
                yield (
                    MembershipRow(
                        Stage.ESSAY,
                        name,
                        cohort_id,
                        parent.gen_id,
                        parent.combo_id,
                        template,
                        parent.llm_model_id,
                        replicate,
                        None,
                    ),
                    _Essay(name, draft.values, template),
                )


def _evaluations(
    axes: Axes, lineages: Lineages, cohort_id: str, essays: Sequence[_Essay]
) -> Iterator[MembershipRow]:
    salts = [(n, replicate_salt(n)) for n in range(1, axes.replicates[Stage.EVALUATION] + 1)]
    for essay in essays:
        parent, combo = essay.gen_id, essay.draft[0]
        for template, model in lineages.evaluations(essay.draft, essay.template):
            task_id = evaluation_task_id(parent, template, model)
            for replicate, salt in salts:
                name = gen_id(Stage.EVALUATION, task_id, cohort_id, salt)
                yield MembershipRow(
                    Stage.EVALUATION, name, cohort_id, parent, combo, template, model, replicate, None
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
    if row.stage is not Stage.ESSAY:
        names.append(f"model {row.llm_model_id!r}")
    if _may_be_ambiguous(row.combo_id):
        names.append(f"combo {row.combo_id!r}")
    return " ".join(names)


__all__ = ["Given", "ambiguous_names", "compile_rows", "twins"]
