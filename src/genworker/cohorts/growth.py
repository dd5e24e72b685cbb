"""How a membership grows: which rows of the file stay, which are new, which would disappear."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from genworker.core.membership import REQUIRED_COLUMNS, SECOND_PARENT, MembershipRow
from genworker.core.stages import STAGES, Stage

COLUMNS = (*REQUIRED_COLUMNS, "replicate")
"""Columns of a membership that is written anew. A task's id follows from the others, and would double it."""


@dataclass(slots=True)
class FileRows:
    """The rows of a membership file as they stand in it.

    Attributes:
        header: the names of its columns.
        rows: each row's text with its line end, by stage and gen_id.
        twice: (stage, gen_id) of rows that repeat an earlier one.
        line_end: what the file ends its lines with.
        pairs: (first, second) of the rows that compare two texts.
    """

    header: tuple[str, ...] = COLUMNS
    rows: dict[str, dict[str, str]] = field(default_factory=lambda: {stage.value: {} for stage in STAGES})
    twice: list[tuple[str, str]] = field(default_factory=list)
    line_end: str = "\n"
    pairs: list[tuple[str, str]] = field(default_factory=list)

    def columns(self, replicates: int, *, pairs: bool = False) -> tuple[str, ...]:
        """The columns to write.

        One for replicates, and one for the second text of a pair, are added to a file without them only
        when they are needed.
        """
        missing = [name for name in COLUMNS if replicates > 1 and name not in self.header]
        missing += [SECOND_PARENT] if pairs and SECOND_PARENT not in self.header else []
        return (*self.header, *missing)


class Growth:
    """Goes through the compiled rows in their order, and keeps account.

    Attributes:
        kept: rows that stay, per stage.
        new: rows that are added, per stage.
    """

    def __init__(self, file: FileRows) -> None:
        self._file = file
        self._taken: dict[str, set[str]] = {stage: set() for stage in file.rows}
        self.kept: Counter[Stage] = Counter()
        self.new: Counter[Stage] = Counter()

    def take(self, row: MembershipRow) -> str | None:
        """The text of `row` in the file; ``None`` when it is new."""
        text = self._file.rows[row.stage].get(row.gen_id)
        if text is None:
            self.new[row.stage] += 1
        else:
            self.kept[row.stage] += 1
            self._taken[row.stage].add(row.gen_id)
        return text

    @property
    def gone(self) -> list[tuple[str, str]]:
        """(stage, gen_id) of the rows that no compiled row has asked for."""
        left = [
            (stage, gen_id)
            for stage, rows in self._file.rows.items()
            for gen_id in rows
            if gen_id not in self._taken[stage]
        ]
        return left + self._file.twice
