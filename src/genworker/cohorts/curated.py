"""Generations that exist, chosen by hand, as the rows that a cohort builds upon."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from genworker.cohorts.axes import Registers
from genworker.cohorts.compile import Given
from genworker.core.catalog import Catalog
from genworker.core.facts import Facts
from genworker.core.ids import id_fault
from genworker.core.membership import MembershipRow
from genworker.core.stages import Stage
from genworker.errors import Fault

ReadFacts = Callable[[Stage, str], Facts | str]
"""The metadata of a generation that is done; else why it cannot be used, in words."""


def read_ids(text: str, where: str) -> tuple[list[tuple[int, str]], list[Fault]]:
    """(line, gen_id) of each line that holds one; ``#`` begins a comment, repetitions are passed over."""
    ids: dict[str, int] = {}
    faults: list[Fault] = []
    for line, content in enumerate(text.splitlines(), start=1):
        name = content.partition("#")[0].strip()
        if not name:
            continue
        reason = id_fault(name)
        if reason is not None:
            faults.append(
                Fault(f"gen_id {name[:60]!r} {reason}", where=where, line=line, fix="one gen_id per line")
            )
        else:
            ids.setdefault(name, line)
    return [(line, name) for name, line in ids.items()], faults


def given_rows(
    stage: Stage,
    ids: Sequence[tuple[int | None, str]],
    cohort_id: str,
    read: ReadFacts,
    catalog: Catalog,
    registers: Registers,
    models: Collection[str],
    where: str,
) -> tuple[Given, list[Fault]]:
    """The rows of chosen generations and of the drafts that they come from.

    Args:
        stage: of the generations that are chosen: draft or essay.
        ids: (line in the list, gen_id).
        models: ids that only the configuration knows.
        where: the list's name, for messages.

    Returns:
        The rows that could be made out, and a fault for each of the others.
    """
    return _Lineage(cohort_id, read, catalog, registers, models, where).rows(stage, ids)


class _Unusable(Exception):
    """This generation cannot be built upon; the message says why."""


class _Lineage:
    def __init__(
        self,
        cohort_id: str,
        read: ReadFacts,
        catalog: Catalog,
        registers: Registers,
        models: Collection[str],
        where: str,
    ) -> None:
        self.cohort_id = cohort_id
        self.read = read
        self.catalog = catalog
        self.models = {*catalog.models, *models}
        self.registers = registers
        self.where = where
        self.drafts: dict[str, MembershipRow] = {}

    def rows(self, stage: Stage, ids: Sequence[tuple[int | None, str]]) -> tuple[Given, list[Fault]]:
        faults: list[Fault] = []
        essays: list[MembershipRow] = []
        for line, name in ids:
            try:
                if stage is Stage.DRAFT:
                    self._draft(name)
                else:
                    essays.append(self._essay(name))
            except _Unusable as error:
                faults.append(
                    Fault(
                        f"{stage.value} {name}: {error}",
                        where=self.where,
                        line=line,
                        fix="remove it from the list",
                    )
                )
        given = Given(tuple(self.drafts.values()), None if stage is Stage.DRAFT else tuple(essays))
        return given, faults

    def _facts(self, stage: Stage, name: str) -> Facts:
        found = self.read(stage, name)
        if isinstance(found, str):
            raise _Unusable(found)
        return found

    def _draft(self, name: str) -> MembershipRow:
        row = self.drafts.get(name)
        if row is None:
            facts = self._facts(Stage.DRAFT, name)
            template, model = self._template(Stage.DRAFT, facts), facts.model_id
            if not model:
                raise _Unusable("its metadata name no model")
            if model not in self.models:
                raise _Unusable(f"its model {model!r} is not registered in {self.registers.models}")
            combo = facts.combo_id or combo_of_task(facts.task_id or "", template, model)
            if id_fault(combo) is not None:
                raise _Unusable("its metadata name no combo, and its task_id does not hold one")
            row = self.drafts[name] = self._row(Stage.DRAFT, name, None, combo, template, model, facts)
        return row

    def _essay(self, name: str) -> MembershipRow:
        facts = self._facts(Stage.ESSAY, name)
        template = self._template(Stage.ESSAY, facts)
        parent = facts.parent_gen_id
        if not parent or id_fault(parent) is not None:
            raise _Unusable("its metadata name no parent")
        try:
            draft = self._draft(parent)
        except _Unusable as error:
            raise _Unusable(f"its draft {parent}: {error}") from None
        model = facts.model_id or draft.llm_model_id
        return self._row(Stage.ESSAY, name, parent, draft.combo_id, template, model, facts)

    def _template(self, stage: Stage, facts: Facts) -> str:
        template = facts.template_id
        if not template:
            raise _Unusable("its metadata name no template")
        if template not in self.catalog.templates[stage]:
            register = self.registers.templates[stage]
            raise _Unusable(f"its template {template!r} is not registered in {register} (inactive would do)")
        return template

    def _row(
        self,
        stage: Stage,
        name: str,
        parent: str | None,
        combo: str,
        template: str,
        model: str | None,
        facts: Facts,
    ) -> MembershipRow:
        replicate = facts.replicate or 1
        return MembershipRow(stage, name, self.cohort_id, parent, combo, template, model, replicate, None)


def combo_of_task(task_id: str, template: str, model: str) -> str:
    """A draft's task is ``<combo_id>__<template>__<model>``."""
    end = f"__{template}__{model}"
    return task_id.removesuffix(end) if task_id.endswith(end) else ""
