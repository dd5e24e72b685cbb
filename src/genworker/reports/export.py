"""Every generation of a cohort as one flat row, streamed: memory does not grow with the rows.

What a row needs of its ancestors is looked up in a private temporary database, on disk and gone when the
rows have been drawn.
"""

from __future__ import annotations

import csv
import json
import math
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import orjson

from genworker.core.facts import NO_FACTS
from genworker.core.generation import FailureKind, Generation
from genworker.core.membership import MembershipRow
from genworker.core.parsers import read_choice, read_score
from genworker.core.stages import Stage
from genworker.core.visible import visible
from genworker.errors import StoreError
from genworker.reports.files import csv_cell
from genworker.reports.scores import JOINT


class RowSource(Protocol):
    """What an export reads; `genworker.store.reader.StoreReader` is the real one."""

    def rows(self, cohort_id: str) -> Iterator[MembershipRow]:
        """The cohort's rows, in order."""
        ...

    def stands(self, stage: Stage, gen_id: str) -> bool:
        """Whether a generation is in the store and good."""
        ...

    def concepts(self, combos: Collection[str]) -> Mapping[str, tuple[str, ...]]:
        """The names of each combo's concepts, as far as the store knows them."""
        ...

    def generation(self, stage: Stage, gen_id: str) -> Generation:
        """One generation; raises `StoreError` when it cannot be read."""
        ...


class GenerationRow(NamedTuple):
    """One planned generation, whatever became of it. ``None`` stands for what is not known or not there.

    Attributes:
        parent_gen_id: the draft of an essay, the essay of an evaluation; ``None`` for a draft.
        state: ``done``, the kind of failure (``unparseable``, ``truncated``, …), ``blocked`` or ``missing``.
        error: why it is not done, in one line.
        draft_gen_id: of its lineage, as `essay_gen_id`; a draft's and an essay's own included.
        draft_template: of its lineage, as `generation_template` (the essay's) and `generation_model`.
        evaluation_template: of an evaluation, as `evaluation_llm_model`.
        score: an evaluation's, from 0 to 10; the same as in ``aggregated_scores.csv``.
        prompt: the prompt that was sent.
        raw: the model's whole answer.
        parsed: what downstream stages consume.
        cost_usd: in US dollars; ``None`` when unpriced, which is not the same as 0.
        started_at: ISO 8601 in UTC, as `finished_at`.
        latency_s: seconds.
        fallback: whether the row had been handed to its second endpoint.
        sampling: how the model was asked, as JSON.
        request_id: the endpoint's name for the call.
        reasoning: what the model thought, where that came apart from its answer.
        concepts: the names of the combo's concepts, joined by `` + ``.
        draft_replicate: of its lineage, from 1, as `essay_replicate`.
        second_parent_gen_id: the essay that stood second, of an evaluation that compares two.
        choice: of such an evaluation, ``first``, ``second`` or ``tie``.
    """

    stage: str
    gen_id: str
    cohort_id: str
    parent_gen_id: str | None
    combo_id: str
    template_id: str
    llm_model_id: str | None
    replicate: int
    state: str
    error: str | None
    draft_gen_id: str | None
    essay_gen_id: str | None
    draft_template: str | None
    generation_template: str | None
    generation_model: str | None
    evaluation_template: str | None
    evaluation_llm_model: str | None
    score: float | None
    prompt: str | None
    raw: str | None
    parsed: str | None
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: float | None
    attempts: int | None
    started_at: str | None
    finished_at: str | None
    latency_s: float | None
    response_model: str | None
    mode: str | None
    endpoint: str | None
    fallback: bool | None
    sampling: str | None
    request_id: str | None
    reasoning: str | None
    concepts: str | None
    draft_replicate: int | None
    essay_replicate: int | None
    second_parent_gen_id: str | None
    choice: str | None


PARQUET_TYPES = dict.fromkeys(GenerationRow._fields, "VARCHAR") | {
    "replicate": "BIGINT",
    "score": "DOUBLE",
    "input_tokens": "BIGINT",
    "output_tokens": "BIGINT",
    "cached_input_tokens": "BIGINT",
    "reasoning_tokens": "BIGINT",
    "cost_usd": "DOUBLE",
    "attempts": "BIGINT",
    "latency_s": "DOUBLE",
    "started_at": "TIMESTAMP",
    "finished_at": "TIMESTAMP",
    "fallback": "BOOLEAN",
    "draft_replicate": "BIGINT",
    "essay_replicate": "BIGINT",
}


ROW_GROUP_ROWS = 2048
"""Rows that a Parquet writer holds in memory."""


class _Facts(NamedTuple):
    """What a descendant's row says of an ancestor."""

    template: str | None
    model: str | None
    parent: str | None
    replicate: int | None

    @classmethod
    def of(cls, row: MembershipRow) -> _Facts:
        """A row's own."""
        return cls(row.template_id, row.llm_model_id, row.parent_gen_id, row.replicate)


_UNKNOWN = _Facts(None, None, None, None)
_NOBODY: tuple[str | None, _Facts] = (None, _UNKNOWN)
"""In the place of an ancestor that is not known."""


def generation_rows(source: RowSource, cohort_id: str, stage: Stage | None = None) -> Iterator[GenerationRow]:
    """The rows of a cohort, in the membership's order.

    Args:
        stage: only this one.

    Raises:
        UsageError: there is no such cohort.
        MembershipError: a row of it is wrong.
    """
    # An empty name: a database in a temporary file, of which SQLite keeps no more than 2 MB in memory.
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        exporter = _Exporter(source, database)
        exporter.index(cohort_id)
        for row in source.rows(cohort_id):
            if stage is None or row.stage is stage:
                yield exporter.row(row)


class _Exporter:
    def __init__(self, source: RowSource, database: sqlite3.Connection) -> None:
        self.source = source
        self.database = database
        self.concepts: dict[str, str] = {}
        self.facts = lru_cache(maxsize=4096)(self._facts)
        self.state = lru_cache(maxsize=4096)(self._state)

    def index(self, cohort_id: str) -> None:
        """Note drafts and essays for their descendants."""
        combos: set[str] = set()
        self.database.execute("CREATE TABLE ancestor (stage, gen_id, template, model, parent, replicate)")
        self.database.execute("BEGIN")
        self.database.executemany(
            "INSERT INTO ancestor VALUES (?, ?, ?, ?, ?, ?)",
            (
                (row.stage.value, row.gen_id, *_Facts.of(row))
                for row in self.source.rows(cohort_id)
                if _noted(combos, row.combo_id) and row.stage.child is not None
            ),
        )
        self.database.execute("COMMIT")
        self.database.execute("CREATE INDEX by_id ON ancestor (stage, gen_id)")
        self.concepts = {combo: JOINT.join(names) for combo, names in self.source.concepts(combos).items()}

    def row(self, row: MembershipRow) -> GenerationRow:
        generation, state, error = self._read(row)
        facts = NO_FACTS if generation is None else generation.facts
        lineage = self._lineage(row)
        draft_id, draft = lineage.get(Stage.DRAFT, _NOBODY)
        essay_id, essay = lineage.get(Stage.ESSAY, _NOBODY)
        model = row.llm_model_id
        if model is None and row.stage.inherits_model and row.stage.parent is not None:
            model = lineage.get(row.stage.parent, _NOBODY)[1].model
        evaluation = row.stage.is_scored
        score = choice = None
        if row.second_parent_gen_id is not None:
            if state == "done" and generation is not None:
                choice = read_choice(generation.parsed_text or "")
                if choice is None:
                    shown = visible(generation.parsed_text or "", limit=60, one_line=True)
                    state, error = "unparseable", f"parsed.txt is no choice (A, B or tie): {shown!r}"
        elif evaluation and state == "done" and generation is not None:
            score = read_score(generation.parsed_text or "")
            if score is None:
                shown = visible(generation.parsed_text or "", limit=60, one_line=True)
                state, error = "unparseable", f"parsed.txt is no score from 0 to 10: {shown!r}"
        generation_model = essay.model or draft.model
        usage, cost = facts.usage, facts.cost_usd
        return GenerationRow(
            stage=row.stage.value,
            gen_id=row.gen_id,
            cohort_id=row.cohort_id,
            parent_gen_id=row.parent_gen_id,
            combo_id=row.combo_id,
            template_id=row.template_id,
            llm_model_id=model,
            replicate=row.replicate,
            state=state,
            error=None if error is None else visible(error, limit=300, one_line=True),
            draft_gen_id=draft_id,
            essay_gen_id=essay_id,
            draft_template=draft.template,
            generation_template=essay.template,
            generation_model=generation_model,
            evaluation_template=row.template_id if evaluation else None,
            evaluation_llm_model=model if evaluation else None,
            score=score,
            prompt=generation.prompt_text if generation else None,
            raw=(generation.raw_text or None) if generation else None,
            parsed=generation.parsed_text if generation else None,
            finish_reason=_text(facts.finish_reason),
            input_tokens=_whole(usage.input_tokens),
            output_tokens=_whole(usage.output_tokens),
            cached_input_tokens=_whole(usage.cached_input_tokens),
            reasoning_tokens=_whole(usage.reasoning_tokens),
            cost_usd=None if cost is None else float(cost),
            attempts=_whole(facts.attempts),
            started_at=_moment(facts.started_at),
            finished_at=_moment(facts.finished_at),
            latency_s=_number(facts.latency_s),
            response_model=_text(facts.response_model),
            mode=_text(facts.mode),
            endpoint=_text(facts.endpoint),
            fallback=fallback if isinstance(fallback := facts.record.get("fallback"), bool) else None,
            sampling=_sampling(facts.record.get("sampling")),
            request_id=_text(facts.request_id),
            reasoning=_text(generation.reasoning_text) if generation else None,
            concepts=_text(self.concepts.get(row.combo_id)),
            draft_replicate=draft.replicate,
            essay_replicate=essay.replicate,
            second_parent_gen_id=row.second_parent_gen_id,
            choice=choice,
        )

    def _lineage(self, row: MembershipRow) -> dict[Stage, tuple[str | None, _Facts]]:
        """The id and the facts of the row itself and of each of its ancestors that is known, by stage."""
        facts = _Facts.of(row)
        found: dict[Stage, tuple[str | None, _Facts]] = {row.stage: (row.gen_id, facts)}
        stage = row.stage.parent
        while stage is not None and facts.parent:
            name = facts.parent
            facts = self.facts(stage, name)
            found[stage] = (name, facts)
            stage = stage.parent
        return found

    def _facts(self, stage: Stage, gen_id: str) -> _Facts:
        """An ancestor's facts: from the cohort, else from the store."""
        found = self.database.execute(
            "SELECT template, model, parent, replicate FROM ancestor WHERE stage = ? AND gen_id = ?",
            (stage.value, gen_id),
        ).fetchone()
        if found is not None:
            return _Facts(*found)
        try:
            generation = self.source.generation(stage, gen_id)
        except (StoreError, ValueError):
            return _UNKNOWN
        facts = generation.facts
        return _Facts(
            facts.template_id or None, generation.model_id, generation.parent_gen_id, facts.replicate
        )

    def _read(self, row: MembershipRow) -> tuple[Generation | None, str, str | None]:
        try:
            generation = self.source.generation(row.stage, row.gen_id)
        except StoreError as error:
            if error.errno is not None and not self.source.stands(row.stage, row.gen_id):
                return None, *self._absent(row)
            return None, FailureKind.UNPARSEABLE.value, str(error)
        if generation.is_done:
            return generation, "done", None
        if generation.failure is not None:
            return generation, generation.failure.kind.value, generation.failure.message
        if generation.raw_text:
            return generation, FailureKind.UNPARSEABLE.value, "the answer has not been parsed"
        return None, *self._absent(row)

    def _absent(self, row: MembershipRow) -> tuple[str, str]:
        parent_stage = row.stage.parent
        if parent_stage is not None:
            for parent_id in row.above:
                state = self.state(parent_stage, parent_id)
                if state not in ("done", "missing"):
                    return "blocked", f"{parent_stage.value} {parent_id} is {state}"
        return "missing", "no answer yet"

    def _state(self, stage: Stage, gen_id: str) -> str:
        """``done``, ``missing``, ``blocked`` or the kind of failure of an ancestor."""
        if self.source.stands(stage, gen_id):
            return "done"
        try:
            generation = self.source.generation(stage, gen_id)
        except (StoreError, ValueError):
            generation = None
        if generation is not None and generation.failure is not None:
            return generation.failure.kind.value
        if generation is not None and generation.raw_text:
            return FailureKind.UNPARSEABLE.value
        parent = self.facts(stage, gen_id).parent
        if (
            stage.parent is not None
            and parent
            and self.state(stage.parent, parent) not in ("done", "missing")
        ):
            return "blocked"
        return "missing"


def _noted(names: set[str], name: str) -> bool:
    """Note a name in passing."""
    names.add(name)
    return True


def _text(value: str | None) -> str | None:
    """A string of the metadata, without the lone surrogates that JSON can smuggle in."""
    return value.encode("utf-8", "replace").decode() if value is not None else None


def _moment(value: str | None) -> str | None:
    """A time as every format can read it, in UTC; ``None`` for what is none or names no zone."""
    try:
        parsed = datetime.fromisoformat(value or "")
        return None if parsed.tzinfo is None else parsed.astimezone(UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return None


def _sampling(value: object) -> str | None:
    return _text(json.dumps(value, ensure_ascii=False, default=str)) if isinstance(value, Mapping) else None


def _whole(value: int | None) -> int | None:
    """A count that every format can hold."""
    return value if value is not None and abs(value) < 2**53 else None


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# Files


def write_jsonl(
    rows: Iterator[GenerationRow], stream: TextIO, *, ascii_only: bool = False
) -> tuple[int, int]:
    """Write a JSON object per line; returns (rows, bytes of the longest line).

    Args:
        ascii_only: escape all that is not ASCII, for a terminal: it must not obey what a model wrote.
    """
    count = longest = 0
    for row in rows:
        line = _ascii_line(row._asdict()) if ascii_only else orjson.dumps(row._asdict())
        stream.write(f"{line.decode()}\n")
        count += 1
        longest = max(longest, len(line))
    return count, longest


def write_csv_rows(rows: Iterator[GenerationRow], stream: TextIO) -> int:
    """Write a line of CSV per row under a header; returns how many. No text becomes a formula."""
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(GenerationRow._fields)
    count = 0
    for row in rows:
        writer.writerow([csv_cell(cell) for cell in row])
        count += 1
    return count


def _ascii_line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record).replace("\x7f", "\\u007f").encode()


def jsonl_to_parquet(jsonl: Path, parquet: Path, longest_line_bytes: int) -> None:
    """Turn a JSONL export into Parquet, in a stream as well. Needs the extra ``duckdb``.

    Raises:
        ImportError: duckdb is not installed.
        StoreError: it cannot be written.
    """
    import duckdb

    target = str(parquet).replace("'", "''")
    with closing(duckdb.connect(config={"threads": 1})) as database:
        try:
            database.execute(
                "COPY (SELECT * FROM read_json($source, format = 'newline_delimited', columns = $columns, "
                f"maximum_object_size = $size)) TO '{target}' "
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})",
                {
                    "source": str(jsonl),
                    "columns": PARQUET_TYPES,
                    "size": max(longest_line_bytes + 1024, 1 << 20),
                },
            )
        except duckdb.Error as error:
            raise StoreError(f"{parquet} cannot be written: {error}", path=str(parquet)) from error
