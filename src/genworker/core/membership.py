"""Membership rows: which generations exist. Reads records, checks them all, reports every fault.

Knows nothing of files: the reader passes records in, and asks for the parents that stand outside.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from genworker.core.ids import draft_task_id, essay_task_id, evaluation_task_id, id_fault
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault

REQUIRED_COLUMNS = (
    "stage",
    "gen_id",
    "cohort_id",
    "parent_gen_id",
    "combo_id",
    "template_id",
    "llm_model_id",
)
OPTIONAL_COLUMNS = ("replicate", "task_id")
MAX_FAULTS = 1000
"""Faults collected before reading stops: a file that is wrong in every row says so in fewer."""


class MembershipRow(NamedTuple):
    """One generation of a cohort. A named tuple, since a cohort may have a million.

    Attributes:
        parent_gen_id: ``None`` for drafts.
        llm_model_id: an essay's is its draft's when the file leaves it empty; ``None`` where none is known
            (a copy in a file that names no model).
        replicate: from 1.
        task_id: as the file has it, else ``None`` (see `Membership.task_id`).
    """

    stage: Stage
    gen_id: str
    cohort_id: str
    parent_gen_id: str | None
    combo_id: str
    template_id: str
    llm_model_id: str | None
    replicate: int
    task_id: str | None


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalogue and the configuration know, by which rows are checked.

    Attributes:
        templates: the template ids of each stage.
        copies: those of them whose generator is ``copy``, which need no model.
        models: model ids that some endpoint serves.
        template_files: where each stage's templates are registered, for messages.
        models_file: where models are registered, for messages.
    """

    templates: Mapping[Stage, Collection[str]]
    copies: Mapping[Stage, Collection[str]]
    models: Collection[str]
    template_files: Mapping[Stage, str]
    models_file: str


class Membership:
    """The checked rows of one cohort.

    Attributes:
        rows: in the file's order.
        parents: for each row the index of its parent's row; -1 when it has none or it stands outside.
    """

    __slots__ = ("cohort_id", "parents", "rows")

    def __init__(self, cohort_id: str, rows: Sequence[MembershipRow], parents: array[int]) -> None:
        self.cohort_id = cohort_id
        self.rows = rows
        self.parents = parents

    def __len__(self) -> int:
        return len(self.rows)

    def task_id(self, index: int, parent_task_id: str | None = None) -> str:
        """The task of a row: as the file has it, else made from its parts.

        Args:
            parent_task_id: the draft's task, for an essay whose draft stands outside this cohort.
        """
        row = self.rows[index]
        if row.task_id is not None:
            return row.task_id
        model = row.llm_model_id or ""
        if row.stage is Stage.DRAFT:
            return draft_task_id(row.combo_id, row.template_id, model)
        if row.stage is Stage.EVALUATION:
            return evaluation_task_id(row.parent_gen_id or "", row.template_id, model)
        parent = self.parents[index]
        if parent >= 0:
            return essay_task_id(self.task_id(parent), row.template_id)
        return essay_task_id(parent_task_id or row.parent_gen_id or "", row.template_id)


def read_membership(
    header: Sequence[str],
    records: Iterable[tuple[int, Sequence[str]]],
    *,
    cohort_id: str,
    where: str,
    known: Known,
    on_disk: Callable[[Stage, str], bool],
) -> tuple[Membership, list[Fault]]:
    """Turn records into checked rows.

    Args:
        header: the first record.
        records: (line number from 1, cells), without the header.
        where: the file's name, for faults.
        on_disk: whether a generation is in the store; asked only for parents outside the file.

    Returns:
        The rows that could be read, and every fault, at most `MAX_FAULTS`. Rows may be used only when
        there is no fault.
    """
    return _Reader(header, cohort_id, where, known, on_disk).read(records)


class _Reader:
    def __init__(
        self,
        header: Sequence[str],
        cohort_id: str,
        where: str,
        known: Known,
        on_disk: Callable[[Stage, str], bool],
    ) -> None:
        self.cohort_id = cohort_id
        self.where = where
        self.known = known
        self.on_disk = on_disk
        self.faults: list[Fault] = []
        self.rows: list[MembershipRow] = []
        self.lines = array("I")
        self.index: dict[Stage, dict[str, int]] = {stage: {} for stage in STAGES}
        self.interned: dict[str, str] = {}
        self.judged: dict[tuple[str, Stage, str], bool] = {}
        self.good: set[tuple[Stage, str, str, str | None]] = set()
        self.replicates: dict[str, int] = {"": 1}
        self.header = [name.strip() for name in header]

    def fault(self, line: int, column: str | None, what: str, fix: str) -> None:
        self.faults.append(Fault(what, where=self.where, line=line, column=column, fix=fix))

    def read(self, records: Iterable[tuple[int, Sequence[str]]]) -> tuple[Membership, list[Fault]]:
        missing = [name for name in REQUIRED_COLUMNS if name not in self.header]
        repeated = sorted({name for name in self.header if name and self.header.count(name) > 1})
        if missing:
            self.fault(
                1,
                None,
                f"missing columns: {', '.join(missing)}",
                f"the header needs: {', '.join(REQUIRED_COLUMNS)}",
            )
        if repeated:
            self.fault(1, None, f"columns stand twice: {', '.join(repeated)}", "keep one of each")
        if not missing and not repeated:
            self._read_rows(records)
            self._link()
        parents = self._parents if not missing and not repeated else array("i")
        return Membership(self.cohort_id, self.rows, parents), self.faults

    def _read_rows(self, records: Iterable[tuple[int, Sequence[str]]]) -> None:
        columns = [self.header.index(name) for name in REQUIRED_COLUMNS]
        optional = [self.header.index(name) if name in self.header else -1 for name in OPTIONAL_COLUMNS]
        width = len(self.header)
        stages = {stage.value: stage for stage in STAGES}
        intern = self.interned.setdefault
        at_stage, at_gen, at_cohort, at_parent, at_combo, at_template, at_model = columns
        at_replicate, at_task = optional
        replicates = self.replicates
        for line, cells in records:
            if len(self.faults) >= MAX_FAULTS:
                break
            if not any(cells):
                continue
            if len(cells) != width:
                self.fault(
                    line,
                    None,
                    f"{len(cells)} cells in a file of {width} columns",
                    "quote cells that hold commas; every row needs as many cells as the header",
                )
                continue
            stage = stages.get(cells[at_stage])
            if stage is None:
                self.fault(
                    line,
                    "stage",
                    f"unknown stage {cells[at_stage]!r}",
                    f"use one of: {', '.join(stages)}",
                )
                continue
            gen_id = cells[at_gen]
            parent = cells[at_parent] or None
            model = cells[at_model] or None
            cohort = cells[at_cohort] or self.cohort_id
            row = MembershipRow(
                stage,
                gen_id,
                intern(cohort, cohort),
                parent if parent is None else intern(parent, parent),
                intern(cells[at_combo], cells[at_combo]),
                intern(cells[at_template], cells[at_template]),
                model if model is None else intern(model, model),
                (replicates.get(cells[at_replicate]) or self._replicate(line, cells[at_replicate]))
                if at_replicate >= 0
                else 1,
                (cells[at_task] or None) if at_task >= 0 else None,
            )
            self._check_ids(line, row)
            seen = self.index[stage]
            if gen_id in seen:
                first = self.lines[seen[gen_id]]
                self.fault(
                    line,
                    "gen_id",
                    f"{stage.value} {gen_id!r} stands twice, first in line {first}",
                    "remove one of the two rows",
                )
                continue
            seen[intern(gen_id, gen_id)] = len(self.rows)
            self.rows.append(row)
            self.lines.append(line)

    def _replicate(self, line: int, text: str) -> int:
        if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1:
            return self.replicates.setdefault(text, int(text))
        self.fault(line, "replicate", f"replicate is {text[:40]!r}", "use a whole number from 1")
        return 1

    def _check_ids(self, line: int, row: MembershipRow) -> None:
        if not (row.gen_id.isalnum() and row.gen_id.isascii() and len(row.gen_id) <= 128):
            reason = id_fault(row.gen_id)
            if reason:
                self.fault(
                    line,
                    "gen_id",
                    f"gen_id {row.gen_id[:60]!r} {reason}",
                    "a gen_id names a directory: use letters, digits, '-' and '_'",
                )
        names = (row.stage, row.cohort_id, row.template_id, row.llm_model_id)
        if names not in self.good and self._are_known(line, row):
            self.good.add(names)
        if row.stage is Stage.DRAFT and row.parent_gen_id is not None:
            self.fault(line, "parent_gen_id", "a draft has no parent", "leave the cell empty")
        elif row.stage is not Stage.DRAFT and row.parent_gen_id is None:
            parent_stage = row.stage.parent
            assert parent_stage is not None
            self.fault(
                line,
                "parent_gen_id",
                f"the {row.stage.value} names no parent",
                f"name the {parent_stage.value}'s gen_id that it is made from",
            )

    def _are_known(self, line: int, row: MembershipRow) -> bool:
        """Check the names of a row, each distinct one once; report it in every row that has it."""
        all_good = True
        for column in ("cohort_id", "template_id", "llm_model_id"):
            value = getattr(row, column)
            if value is None:
                continue
            key = (column, row.stage, value)
            good = self.judged.get(key)
            if good is None:
                good = self.judged[key] = self._is_known(column, row.stage, value)
            if not good:
                all_good = False
                what, fix = self._unknown(column, row.stage, value)
                self.fault(line, column, what, fix)
        return all_good

    def _is_known(self, column: str, stage: Stage, value: str) -> bool:
        if id_fault(value) is not None:
            return False
        if column == "template_id":
            return value in self.known.templates[stage]
        if column == "llm_model_id":
            return value in self.known.models
        return True

    def _unknown(self, column: str, stage: Stage, value: str) -> tuple[str, str]:
        reason = id_fault(value)
        if reason is not None:
            return f"{column} {value[:60]!r} {reason}", "use a plain name: letters, digits, '-', '_', '.'"
        if column == "template_id":
            return (
                f"unknown {stage.value} template {value!r}",
                f"register it in {self.known.template_files[stage]}",
            )
        return (
            f"unknown model {value!r}",
            f"register it in {self.known.models_file}, or give it a section "
            f'[models."{value}"] with an endpoint in the configuration',
        )

    def _link(self) -> None:
        """Find every parent; inherit models; check that a model is there where one is needed."""
        self._parents = parents = array("i", bytes(4 * len(self.rows)))
        for number, row in enumerate(self.rows):
            parents[number] = -1
            parent_stage = row.stage.parent
            if len(self.faults) >= MAX_FAULTS:
                return
            if parent_stage is not None and row.parent_gen_id is not None:
                index = self.index[parent_stage].get(row.parent_gen_id)
                if index is not None:
                    parents[number] = index
                    if row.llm_model_id is None and row.stage is Stage.ESSAY:
                        inherited = self.rows[index].llm_model_id
                        row = self.rows[number] = row._replace(llm_model_id=inherited)
                else:
                    self._check_outside(number, row, parent_stage)
            if row.llm_model_id is None and row.template_id not in self.known.copies[row.stage]:
                self.fault(
                    self.lines[number],
                    "llm_model_id",
                    f"the {row.stage.value} names no model",
                    "name a model id of the catalogue",
                )

    def _check_outside(self, number: int, row: MembershipRow, parent_stage: Stage) -> None:
        line, parent = self.lines[number], row.parent_gen_id or ""
        reason = id_fault(parent)
        if reason is not None:
            self.fault(
                line,
                "parent_gen_id",
                f"parent_gen_id {parent[:60]!r} {reason}",
                "use the gen_id of the parent",
            )
            return
        if self.on_disk(parent_stage, parent):
            return
        other = next((s for s in STAGES if s is not parent_stage and parent in self.index[s]), None)
        if other is not None:
            self.fault(
                line,
                "parent_gen_id",
                f"the parent {parent!r} is of stage {other.value}; "
                f"the parent of a row of stage {row.stage.value} is of stage {parent_stage.value}",
                f"name the {parent_stage.value} that it is made from",
            )
            return
        self.fault(
            line,
            "parent_gen_id",
            f"the parent {parent_stage.value} {parent!r} is neither in this file nor in the store",
            f"add its row, or correct the id (stage directory: gens/{parent_stage.value})",
        )
