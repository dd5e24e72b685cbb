"""Questions to the index: which rows, in which order, how many. A question is what stands in an address."""

from __future__ import annotations

import csv
import io
import math
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple
from urllib.parse import urlencode

from genworker.core.stages import STAGES
from genworker.core.visible import visible

PAGE_ROWS = 100
SORTS = {
    "plan": "row.id",
    "score": "row.score IS NULL, row.score",
    "cost": "row.cost IS NULL, row.cost",
    "finished": "row.finished IS NULL, row.finished",
    "length": "row.chars IS NULL, row.chars",
    "tokens": "row.tokens IS NULL, row.tokens",
}
_WORDS = ("template", "model", "author", "draft_template", "essay_template", "combo", "run", "state")
"""Columns that hold the number of a word."""


_SAME = ("combo", "template", "model", "author", "draft_template", "essay_template")
"""Columns in which replicates are equal."""


class FilterError(ValueError):
    """An address asks for something that cannot be; the message says what."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a view shows. Every field is a parameter of the address; an empty one does not filter.

    Attributes:
        q: words that the text has, all of them; a phrase stands in double quotes.
        model: who wrote or judged the row itself; `author` wrote the essay that it belongs to.
        concept: a concept's id or name: rows whose combo has it.
        min_score: lowest score, of evaluations.
        sort: a key of `SORTS`; a minus before it turns the order around.
        page: from 1.
    """

    q: str = ""
    stage: str = ""
    template: str = ""
    model: str = ""
    author: str = ""
    draft_template: str = ""
    essay_template: str = ""
    concept: str = ""
    combo: str = ""
    state: str = ""
    run: str = ""
    replicate: str = ""
    min_score: str = ""
    max_score: str = ""
    min_cost: str = ""
    sort: str = ""
    page: str = ""

    @classmethod
    def from_address(cls, parameters: Mapping[str, str]) -> Filter:
        """The filter that an address asks for; parameters that it does not know are passed over."""
        known = {field.name for field in fields(cls)}
        return cls(**{name: value.strip()[:500] for name, value in parameters.items() if name in known})

    def address(self, **changes: str | int) -> str:
        """The query of an address that shows this filter, with changes."""
        changed = replace(self, **{name: str(value) for name, value in changes.items()})
        values = {field.name: getattr(changed, field.name) for field in fields(self)}
        return urlencode(
            {name: value for name, value in values.items() if value and (name, value) != ("page", "1")}
        )

    @property
    def number(self) -> int:
        """The page, from 1."""
        return (
            int(self.page)
            if self.page.isascii() and self.page.isdecimal() and len(self.page) < 7 and int(self.page)
            else 1
        )

    def shown(self) -> list[tuple[str, str]]:
        """(name, value) of what filters, for people."""
        return [
            (field.name.replace("_", " "), getattr(self, field.name))
            for field in fields(self)
            if field.name not in ("sort", "page") and getattr(self, field.name)
        ]


class Row(NamedTuple):
    """One row of a view.

    Attributes:
        other: the essay that stood second, of an evaluation that compares two; `parent` stood first.
        choice: of such a one, ``first``, ``second`` or ``tie``.
    """

    id: int
    stage: str
    gen_id: str
    parent: str | None
    other: str | None
    combo: str | None
    template: str | None
    model: str | None
    author: str | None
    draft_template: str | None
    essay_template: str | None
    replicate: int
    state: str
    score: float | None
    cost: float | None
    tokens: int | None
    chars: int | None
    run: str | None
    finished: str | None
    reason: str | None
    choice: str | None


_COLUMNS = ", ".join(
    f"(SELECT text FROM word WHERE id = row.{name}) AS {name}" if name in _WORDS else f"row.{name}"
    for name in Row._fields
)


class Found(NamedTuple):
    """A page of rows.

    Attributes:
        total: rows of all pages.
    """

    rows: list[Row]
    total: int

    @property
    def pages(self) -> int:
        """How many pages there are, at least 1."""
        return max(1, math.ceil(self.total / PAGE_ROWS))


def match_expression(text: str) -> str | None:
    """Words of a person as a full-text query: every one is meant as it stands, phrases in double quotes.

    Returns:
        ``None`` when there is nothing to look for.
    """
    phrases = re.findall(r'"([^"]+)"|(\S+)', text)
    terms = []
    for phrase, word in phrases:
        term = (phrase or word).replace('"', " ").strip()
        prefix = "*" if not phrase and term.endswith("*") and len(term) > 2 else ""
        term = term.rstrip("*")
        if re.search(r"\w", term):
            terms.append(f'"{term}"{prefix}')
    return " ".join(terms) or None


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise FilterError(f"{name.replace('_', ' ')} is {visible(text, limit=40)!r}, not a number")
    return value


class Queries:
    """Asks the index about one cohort, over one connection.

    Args:
        combos: combo id to the ids and names of its concepts, for the filter `concept`.

    Raises:
        KeyError: the index has no such cohort.
    """

    def __init__(
        self, database: sqlite3.Connection, cohort: str, combos: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self._database = database
        found = database.execute("SELECT id FROM cohort WHERE name = ?", (cohort,)).fetchone()
        if found is None:
            raise KeyError(cohort)
        self._cohort = int(found[0])
        self._combos = combos or {}

    def find(self, asked: Filter) -> Found:
        """A page of rows.

        Raises:
            FilterError: a value cannot be what its field wants.
        """
        where, values = self._where(asked)
        total = self._database.execute(f"SELECT count(*) FROM row WHERE {where}", values).fetchone()[0]
        rows = self._database.execute(
            f"SELECT {_COLUMNS} FROM row WHERE {where} ORDER BY {_order(asked.sort)} LIMIT ? OFFSET ?",
            (*values, PAGE_ROWS, (asked.number - 1) * PAGE_ROWS),
        )
        return Found([_row(one) for one in rows], total)

    def each(self, asked: Filter) -> Iterator[Row]:
        """All rows, in order, few at a time."""
        where, values = self._where(asked)
        for one in self._database.execute(
            f"SELECT {_COLUMNS} FROM row WHERE {where} ORDER BY {_order(asked.sort)}", values
        ):
            yield _row(one)

    def csv(self, asked: Filter) -> Iterator[str]:
        """The rows as CSV, a piece at a time; a cell that a spreadsheet would run as a formula is quoted."""
        yield ",".join(Row._fields[1:]) + "\r\n"
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        for count, row in enumerate(self.each(asked), 1):
            writer.writerow(_harmless(value) for value in row[1:])
            if count % 500 == 0:
                yield buffer.getvalue()
                buffer.seek(0)
                buffer.truncate()
        yield buffer.getvalue()

    def counts(self) -> dict[str, dict[str, int]]:
        """Stage → state → rows."""
        found: dict[str, dict[str, int]] = {stage.value: {} for stage in STAGES}
        for order, state, count in self._database.execute(
            "SELECT stage, (SELECT text FROM word WHERE id = state), count(*) FROM row WHERE cohort = ? "
            "GROUP BY stage, state",
            (self._cohort,),
        ):
            found[STAGES[order].value][state] = count
        return found

    def choices(self, column: str) -> list[str]:
        """The words that a column has in this cohort, in order."""
        assert column in _WORDS
        return [
            one[0]
            for one in self._database.execute(
                f"SELECT text FROM word WHERE id IN (SELECT DISTINCT {column} FROM row WHERE cohort = ?) "
                "ORDER BY text",
                (self._cohort,),
            )
        ]

    def children(self, gen_id: str, stage: str) -> list[Row]:
        """The rows that are made from a generation."""
        child = next((one.child for one in STAGES if one.value == stage), None)
        if child is None:
            return []
        return [
            _row(one)
            for one in self._database.execute(
                f"SELECT {_COLUMNS} FROM row WHERE cohort = ? AND (parent = ? OR other = ?) AND stage = ? "
                "ORDER BY id",
                (self._cohort, gen_id, gen_id, child.order),
            )
        ]

    def one(self, stage: str, gen_id: str) -> Row | None:
        """A row by its name."""
        order = next((one.order for one in STAGES if one.value == stage), -1)
        found = self._database.execute(
            f"SELECT {_COLUMNS} FROM row WHERE cohort = ? AND stage = ? AND gen_id = ?",
            (self._cohort, order, gen_id),
        ).fetchone()
        return None if found is None else _row(found)

    def replicates(self, row: Row) -> list[Row]:
        """Rows that differ from this one by their replicate alone; itself included."""
        return [
            _row(one)
            for one in self._database.execute(
                f"SELECT {_COLUMNS} FROM row WHERE cohort = ? AND stage = ? AND "
                + " AND ".join(f"{name} IS (SELECT id FROM word WHERE text = ?)" for name in _SAME)
                + " ORDER BY replicate, id LIMIT 50",
                (
                    self._cohort,
                    next(one.order for one in STAGES if one.value == row.stage),
                    *(getattr(row, name) for name in _SAME),
                ),
            )
        ]

    def spread(self) -> dict[str, float]:
        """Essay → the difference of its highest and lowest score: how little its judges agree."""
        return dict(
            self._database.execute(
                "SELECT parent, max(score) - min(score) FROM row WHERE cohort = ? AND score IS NOT NULL "
                "GROUP BY parent",
                (self._cohort,),
            )
        )

    def _where(self, asked: Filter) -> tuple[str, list[object]]:
        parts = ["row.cohort = ?"]
        conditions: list[object] = [self._cohort]
        if asked.stage:
            order = next((stage.order for stage in STAGES if stage.value == asked.stage), None)
            if order is None:
                raise FilterError(f"there is no stage {visible(asked.stage, limit=40)!r}")
            parts.append("row.stage = ?")
            conditions.append(order)
        for name in ("template", "model", "author", "draft_template", "essay_template", "combo", "run"):
            if value := getattr(asked, name):
                parts.append(f"row.{name} = (SELECT id FROM word WHERE text = ?)")
                conditions.append(value)
        if asked.state:
            if asked.state == "failed":  # every kind of it
                parts.append(
                    "row.state NOT IN (SELECT id FROM word WHERE text IN ('done', 'missing', 'blocked'))"
                )
            else:
                parts.append("row.state = (SELECT id FROM word WHERE text = ?)")
                conditions.append(asked.state)
        if asked.concept:
            wanted = asked.concept.casefold()
            chosen = [
                combo
                for combo, names in self._combos.items()
                if wanted in {name.casefold() for name in names}
            ]
            if len(chosen) > 30_000:
                raise FilterError("too many combos have this concept")
            marks = ", ".join("?" * len(chosen)) or "NULL"
            parts.append(f"row.combo IN (SELECT id FROM word WHERE text IN ({marks}))")
            conditions += chosen
        if asked.replicate:
            parts.append("row.replicate = ?")
            conditions.append(int(_number("replicate", asked.replicate)))
        for name, sign, column in (
            ("min_score", ">=", "score"),
            ("max_score", "<=", "score"),
            ("min_cost", ">=", "cost"),
        ):
            if value := getattr(asked, name):
                parts.append(f"row.{column} {sign} ?")
                conditions.append(_number(name, value))
        if asked.q:
            expression = match_expression(asked.q)
            if expression is not None:
                parts.append("(row.doc IN (SELECT rowid FROM text WHERE text MATCH ?) OR row.gen_id = ?)")
                conditions += [expression, asked.q]
        return " AND ".join(parts), conditions


def _order(sort: str) -> str:
    name = sort.removeprefix("-")
    column = SORTS.get(name, SORTS["plan"])
    if sort.startswith("-"):
        column += " DESC"
    return column if name in ("", "plan") else f"{column}, row.id"


def _row(found: Sequence[object]) -> Row:
    values = list(found)
    values[1] = STAGES[int(str(values[1]))].value
    return Row(*values)  # type: ignore[arg-type]


def _harmless(value: object) -> object:
    """A cell that no spreadsheet takes for a formula (CSV injection)."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return "" if value is None else value
