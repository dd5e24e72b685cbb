"""Membership rows: which generations exist. Reads records, checks them all, reports every fault.

Knows nothing of files: the reader passes records in, and asks for the parents that stand outside.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from genworker.core.ids import (
    MAX_ID_BYTES,
    draft_task_id,
    essay_task_id,
    evaluation_task_id,
    id_fault,
    pair_task_id,
)
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
SECOND_PARENT = "second_parent_gen_id"
"""The column of evaluations that compare two texts; an older reader sees the first of them alone."""
OPTIONAL_COLUMNS = ("replicate", "task_id", SECOND_PARENT)
MAX_FAULTS = 1000
"""Faults collected before reading stops: a file that is wrong in every row says so in fewer."""

_STAGES = {stage.value: stage for stage in STAGES}
_UNLINKED = -2
"""Used for a parent's row number until every row has been read."""


def is_older_header(names: Sequence[str]) -> bool:
    """Whether these are the columns of the older layout: stage and gen_id, and none that says more."""
    return {"stage", "gen_id"} <= set(names) and not (set(REQUIRED_COLUMNS) - {"stage", "gen_id"}) & set(
        names
    )


class MembershipRow(NamedTuple):
    """One generation of a cohort. A named tuple, since a cohort may have a million.

    Attributes:
        parent_gen_id: ``None`` for drafts.
        llm_model_id: an essay's is its draft's when the file leaves it empty; ``None`` where none is known
            (a copy in a file that names no model).
        replicate: from 1.
        task_id: as the file has it, else ``None`` (see `Membership.task_id`).
        second_parent_gen_id: the other text, where two are compared: `parent_gen_id` stands first in the
            prompt, this one second. ``None`` for everything else.
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
    second_parent_gen_id: str | None = None

    @property
    def above(self) -> tuple[str, ...]:
        """The gen_ids that it is made from, in the order of its prompt: none, one or two."""
        return tuple(name for name in (self.parent_gen_id, self.second_parent_gen_id) if name)


@dataclass(frozen=True, slots=True)
class Known:
    """What the catalogue and the configuration know, by which rows are checked.

    Attributes:
        templates: the template ids of each stage.
        copies: those of them whose generator is ``copy``, which need no model.
        pairs: those of them that compare two texts; ``None`` where a row itself is believed.
        models: model ids that some endpoint serves.
        template_files: where each stage's templates are registered, for messages.
        models_file: where models are registered, for messages.
    """

    templates: Mapping[Stage, Collection[str]]
    copies: Mapping[Stage, Collection[str]]
    models: Collection[str]
    template_files: Mapping[Stage, str]
    models_file: str
    pairs: Mapping[Stage, Collection[str]] | None = None


class Membership:
    """The checked rows of one cohort.

    Attributes:
        rows: in the file's order.
        parents: for each row the index of its parent's row; -1 when it has none or it stands outside.
        seconds: the index of the second parent's row, for those rows that have it in this cohort.
    """

    __slots__ = ("cohort_id", "parents", "rows", "seconds")

    def __init__(
        self,
        cohort_id: str,
        rows: Sequence[MembershipRow],
        parents: array[int],
        seconds: dict[int, int] | None = None,
    ) -> None:
        self.cohort_id = cohort_id
        self.rows = rows
        self.parents = parents
        self.seconds = {} if seconds is None else seconds

    @classmethod
    def empty(cls, cohort_id: str) -> Membership:
        """A cohort of which rows come later."""
        return cls(cohort_id, [], array("i"))

    def append(self, row: MembershipRow, parent: int, second: int = -1) -> None:
        """Take one more row, whose parents stand before it; for memberships that began `empty`."""
        assert isinstance(self.rows, list)
        if second >= 0:
            self.seconds[len(self.rows)] = second
        self.rows.append(row)
        self.parents.append(parent)

    def __len__(self) -> int:
        return len(self.rows)

    def parents_of(self, index: int) -> tuple[int, ...]:
        """The rows in this cohort that a row is made from, in the order of its prompt: none, one or two."""
        found = (self.parents[index], self.seconds.get(index, -1))
        return tuple(parent for parent in found if parent >= 0)

    def task_id(
        self, index: int, parent_task_id: str | None = None, parent_model_id: str | None = None
    ) -> str:
        """The task of a row: as the file has it, else made from its parts.

        Args:
            parent_task_id: the draft's task, for an essay whose draft stands outside this cohort.
            parent_model_id: its model, likewise.
        """
        row = self.rows[index]
        if row.task_id is not None:
            return row.task_id
        model = row.llm_model_id or ""
        if row.stage.is_root:
            return draft_task_id(row.combo_id, row.template_id, model)
        if row.second_parent_gen_id is not None:
            return pair_task_id(row.parent_gen_id or "", row.second_parent_gen_id, row.template_id, model)
        if not row.stage.inherits_model:
            return evaluation_task_id(row.parent_gen_id or "", row.template_id, model)
        parent = self.parents[index]
        if parent >= 0:
            parent_task_id, parent_model_id = self.task_id(parent), self.rows[parent].llm_model_id
        other = model if model and parent_model_id and model != parent_model_id else None
        return essay_task_id(parent_task_id or row.parent_gen_id or "", row.template_id, other)


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


class _Kind(NamedTuple):
    """What rows with the same stage, cohort, template and model share, once one was examined.

    Attributes:
        llm_model_id: ``None`` for essays that take their draft's.
        siblings: row numbers of the stage by gen_id.
        parents: row numbers of the parents' stage by gen_id; for drafts the empty name, as -1.
        seconds: the same for rows that compare two texts; for all others the empty name, as -1.
    """

    stage: Stage
    cohort_id: str
    template_id: str
    llm_model_id: str | None
    siblings: dict[str, int]
    parents: dict[str, int]
    seconds: dict[str, int]


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
        self.parents = array("i")
        self.seconds: dict[int, int] = {}
        self.interned: dict[str, str] = {}
        self.judged: dict[tuple[str, Stage, str], bool] = {}
        self.kinds: dict[tuple[str, str, str, str], _Kind] = {}
        self.replicates: dict[str, int] = {"": 1}
        self.header = [name.strip() for name in header]

    def fault(self, line: int, column: str | None, what: str, fix: str) -> None:
        self.faults.append(Fault(what, where=self.where, line=line, column=column, fix=fix))

    def read(self, records: Iterable[tuple[int, Sequence[str]]]) -> tuple[Membership, list[Fault]]:
        missing = [name for name in REQUIRED_COLUMNS if name not in self.header]
        repeated = sorted({name for name in self.header if name and self.header.count(name) > 1})
        if is_older_header(self.header):
            self.fault(
                1,
                None,
                "this is a membership of an older layout, whose metadata say what its columns do not: "
                + ", ".join(missing),
                f"write the full one from the metadata: genworker cohort adopt {self.cohort_id}",
            )
        elif missing:
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
        return Membership(self.cohort_id, self.rows, self.parents, self.seconds), self.faults

    def _read_rows(self, records: Iterable[tuple[int, Sequence[str]]]) -> None:
        """Read every row. Most are like one before them, and are only compared: there may be a million."""
        columns = {name: number for number, name in enumerate(self.header)}
        at_stage, at_gen, at_cohort, at_parent, at_combo, at_template, at_model = (
            columns[name] for name in REQUIRED_COLUMNS
        )
        at_replicate, at_task, at_second = (columns.get(name, -1) for name in OPTIONAL_COLUMNS)
        width = len(self.header)
        rows, lines, parents, kinds = self.rows, self.lines, self.parents, self.kinds
        seconds = self.seconds
        replicates = self.replicates
        intern = self.interned.setdefault
        new_row = partial(tuple.__new__, MembershipRow)  # half the time of calling the class
        for line, cells in records:
            if len(self.faults) >= MAX_FAULTS:
                # A file of a million wrong rows is one mistake; the first faults say which.
                break
            if len(cells) != width:
                if any(cells):
                    self.fault(
                        line,
                        None,
                        f"{len(cells)} cells in a file of {width} columns",
                        "quote cells that hold commas; every row needs as many cells as the header",
                    )
                continue
            gen_id = cells[at_gen]
            replicate_text = cells[at_replicate] if at_replicate >= 0 else ""
            replicate = replicates.get(replicate_text)
            task = (cells[at_task] or None) if at_task >= 0 else None
            second_id = cells[at_second] if at_second >= 0 else ""
            kind = kinds.get((cells[at_stage], cells[at_cohort], cells[at_template], cells[at_model]))
            is_plain = gen_id.isalnum() and gen_id.isascii() and len(gen_id) <= MAX_ID_BYTES
            # A row whose stage, cohort, template and model have been examined together can only be wrong in
            # its ids, its parent and its replicate. Where one of these is not plainly right, the row is
            # examined whole: that way alone finds the words for a fault.
            if kind is not None and replicate is not None and is_plain:
                stage, cohort_id, template_id, model, siblings, above, others = kind
                parent, second = above.get(cells[at_parent]), others.get(second_id)
                number = len(rows)
                if parent is not None and second is not None and (second < 0 or second != parent):
                    parent_gen_id = None
                    if parent >= 0:
                        parent_gen_id = rows[parent].gen_id  # one string for a parent and its children
                        model = model or rows[parent].llm_model_id
                    # `setdefault` returns another number where the id is taken: a duplicate.
                    if model is not None and siblings.setdefault(gen_id, number) == number:
                        combo = cells[at_combo]
                        combo = intern(combo, combo)
                        row = (
                            stage,
                            gen_id,
                            cohort_id,
                            parent_gen_id,
                            combo,
                            template_id,
                            model,
                            replicate,
                            task,
                            rows[second].gen_id if second >= 0 else None,
                        )
                        if second >= 0:
                            seconds[number] = second
                        rows.append(new_row(row))
                        lines.append(line)
                        parents.append(parent)
                        continue
            if any(cells):
                names = (cells[at_cohort], cells[at_combo], cells[at_template], cells[at_model])
                above_ids = (cells[at_parent], second_id)
                self._examine(line, cells[at_stage], gen_id, above_ids, names, replicate_text, task)

    def _examine(
        self,
        line: int,
        stage_name: str,
        gen_id: str,
        parents: tuple[str, str],
        names: tuple[str, str, str, str],
        replicate: str,
        task_id: str | None,
    ) -> None:
        """Check everything of a row, and note its kind when rows like it need no more than a comparison."""
        # An unknown stage ends the row: which templates and parents are allowed depends on it.
        stage = _STAGES.get(stage_name)
        if stage is None:
            self.fault(line, "stage", f"unknown stage {stage_name!r}", f"use one of: {', '.join(_STAGES)}")
            return
        cohort, combo, template, model = (self.interned.setdefault(name, name) for name in names)
        before = len(self.faults)
        row = MembershipRow(
            stage,
            gen_id,
            cohort or self.cohort_id,
            parents[0] or None,
            combo,
            template,
            model or None,
            self._replicate(line, replicate),
            task_id,
            parents[1] or None,
        )
        siblings = self.index[stage]
        self._check_names(line, row)
        self._check_ids(line, row)
        self._check_second(line, row)
        if gen_id in siblings:
            first = self.lines[siblings[gen_id]]
            self.fault(
                line,
                "gen_id",
                f"{stage.value} {gen_id!r} stands twice, first in line {first}",
                "remove one of the two rows",
            )
            return
        if gen_id:  # else rows that name no parent would find this one
            siblings[gen_id] = len(self.rows)
        self.rows.append(row)
        self.lines.append(line)
        # The parent may stand further down in the file, so parents are looked for when all rows are known.
        self.parents.append(_UNLINKED)
        # Only a row without a fault stands for its kind: the others must each get the words for theirs.
        if len(self.faults) == before and (row.llm_model_id is not None or stage.inherits_model):
            above = self.index[stage.parent] if stage.parent is not None else {"": -1}
            others = above if row.second_parent_gen_id is not None else {"": -1}
            self.kinds[stage_name, cohort, template, model] = _Kind(
                stage, row.cohort_id, template, row.llm_model_id, siblings, above, others
            )

    def _replicate(self, line: int, text: str) -> int:
        known = self.replicates.get(text)
        if known is not None:
            return known
        if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1:
            return self.replicates.setdefault(text, int(text))
        self.fault(line, "replicate", f"replicate is {text[:40]!r}", "use a whole number from 1")
        return 1

    def _check_ids(self, line: int, row: MembershipRow) -> None:
        reason = id_fault(row.gen_id)
        if reason:
            self.fault(
                line,
                "gen_id",
                f"gen_id {row.gen_id[:60]!r} {reason}",
                "a gen_id names a directory: use letters, digits, '-' and '_'",
            )
        if row.stage.is_root and row.parent_gen_id is not None:
            self.fault(line, "parent_gen_id", "a draft has no parent", "leave the cell empty")
        elif not row.stage.is_root and row.parent_gen_id is None:
            parent_stage = row.stage.parent
            assert parent_stage is not None
            self.fault(
                line,
                "parent_gen_id",
                f"the {row.stage.value} names no parent",
                f"name the {parent_stage.value}'s gen_id that it is made from",
            )

    def _check_second(self, line: int, row: MembershipRow) -> None:
        """Check that a row names two texts where its template compares two, and one where it reads one."""
        second = row.second_parent_gen_id
        pairs = None if self.known.pairs is None else self.known.pairs.get(row.stage, ())
        what = fix = ""
        if second is None:
            if pairs is not None and row.template_id in pairs:
                what = f"the template {row.template_id!r} compares two texts, and the row names one"
                fix = "name the gen_id of the text that stands second"
        elif not row.stage.pair_variables:
            what, fix = f"a row of stage {row.stage.value} has one parent at most", "leave the cell empty"
        elif pairs is not None and row.template_id in set(self.known.templates[row.stage]) - set(pairs):
            what = f"the template {row.template_id!r} reads one text, and the row names two"
            fix = "leave the cell empty, or name a template that compares two"
        if not what and second is not None and second == row.parent_gen_id:
            what, fix = "the row compares a text with itself", "name two different texts"
        if what:
            self.fault(line, SECOND_PARENT, what, fix)

    def _check_names(self, line: int, row: MembershipRow) -> None:
        """Check the names of a row, each distinct one once; report it in every row that has it."""
        # Names repeat in nearly every row and templates need a look at the disk: each is judged once.
        for column in ("cohort_id", "template_id", "llm_model_id"):
            value = getattr(row, column)
            if value is None:
                continue
            key = (column, row.stage, value)
            good = self.judged.get(key)
            if good is None:
                good = self.judged[key] = self._is_known(column, row.stage, value)
            if not good:
                what, fix = self._unknown(column, row.stage, value)
                self.fault(line, column, what, fix)

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
        """Find the parents that are not found yet; inherit models; check that one is there where needed."""
        for number, parent in enumerate(self.parents):
            if parent != _UNLINKED:
                continue
            if len(self.faults) >= MAX_FAULTS:
                return
            row = self.rows[number]
            self.parents[number] = -1
            parent_stage = row.stage.parent
            if parent_stage is not None and row.parent_gen_id is not None:
                index = self.index[parent_stage].get(row.parent_gen_id)
                if index is not None:
                    self.parents[number] = index
                    above = self.rows[index]
                    row = row._replace(parent_gen_id=above.gen_id)  # one string for parent and child
                    if row.llm_model_id is None and row.stage.inherits_model:
                        row = row._replace(llm_model_id=above.llm_model_id)
                    self.rows[number] = row
                else:
                    self._check_outside(number, row, parent_stage, "parent_gen_id", row.parent_gen_id or "")
            if parent_stage is not None and (second := row.second_parent_gen_id) is not None:
                index = self.index[parent_stage].get(second)
                if index is not None:
                    self.seconds[number] = index
                    self.rows[number] = row._replace(second_parent_gen_id=self.rows[index].gen_id)
                else:
                    self._check_outside(number, row, parent_stage, SECOND_PARENT, second)
            if row.llm_model_id is None and row.template_id not in self.known.copies[row.stage]:
                self.fault(
                    self.lines[number],
                    "llm_model_id",
                    f"the {row.stage.value} names no model",
                    "name a model id of the catalogue",
                )

    def _check_outside(
        self, number: int, row: MembershipRow, parent_stage: Stage, column: str, parent: str
    ) -> None:
        line = self.lines[number]
        reason = id_fault(parent)
        if reason is not None:
            self.fault(
                line,
                column,
                f"{column} {parent[:60]!r} {reason}",
                "use the gen_id of the parent",
            )
            return
        # A parent may be of another cohort, or of a membership that has gone: then the store is the witness.
        if self.on_disk(parent_stage, parent):
            return
        # The commonest slip is the grandparent's id, which a search of all stages names.
        other = next((s for s in STAGES if s is not parent_stage and parent in self.index[s]), None)
        if other is not None:
            self.fault(
                line,
                column,
                f"the parent {parent!r} is of stage {other.value}; "
                f"the parent of a row of stage {row.stage.value} is of stage {parent_stage.value}",
                f"name the {parent_stage.value} that it is made from",
            )
            return
        self.fault(
            line,
            column,
            f"the parent {parent_stage.value} {parent!r} is neither in this file nor in the store",
            f"add its row, or correct the id (stage directory: gens/{parent_stage.value})",
        )
