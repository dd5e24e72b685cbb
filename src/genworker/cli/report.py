"""``report``, ``export`` and ``reparse``: what a cohort's texts say, as tables, pages and rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import (
    CohortArgument,
    ConfigOption,
    DataRootOption,
    JsonOption,
    app,
    command,
    put,
    put_json,
    say,
)
from genworker.cli.tables import shorten, table
from genworker.core.stages import Stage
from genworker.core.visible import visible
from genworker.errors import Fault, UsageError

if TYPE_CHECKING:
    from genworker.paths import Paths
    from genworker.reparse import Reparsed, ReparseResult
    from genworker.reports.export import GenerationRow
    from genworker.reports.scores import Scores
    from genworker.reports.tables import PivotRow, Table
    from genworker.store.reader import StoreReader

SHOWN_ROWS = 60
SHOWN_CHANGES = 20
CohortsArgument = Annotated[
    list[str], typer.Argument(metavar="COHORT...", help="One cohort, or several to average together.")
]


@app.command("report")
@command
def report(
    cohorts: CohortsArgument,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Write the tables, not the page.")
    ] = False,
    all_texts: Annotated[
        bool, typer.Option("--all-texts", help="Pages for the texts of every essay, however many they are.")
    ] = False,
    json_: JsonOption = False,
) -> int:
    """Write the scores of COHORT as tables and as a page, and print the pivot.

    One cohort's report lies in its directory `reports`, one over several in `7_cross_experiment`.
    Reads only the store: no call is made, and neither catalogue nor keys are needed.
    """
    from genworker.api import read_scores
    from genworker.reports.files import write_csv
    from genworker.reports.tables import all_tables, pivot
    from genworker.store.reader import StoreReader

    paths = data_paths(config, data_root)
    reader = StoreReader(paths)
    scores = read_scores(reader, cohorts)
    one = scores.cohort_ids[0] if len(scores.cohort_ids) == 1 else None
    directory = paths.cross_experiment_dir if one is None else paths.cohort_reports_dir(one)
    rows = pivot(scores)
    contents = all_tables(scores, rows)
    files: dict[str, Path] = {}
    for name, content in contents.items():
        files[name] = directory / f"{name}.csv"
        write_csv(content, files[name])
    if not tables_only:
        files["report"] = write_report(
            scores, rows, contents["agreement"], reader, directory, files, all_texts=all_texts
        )
    if json_:
        put_json(report_record(scores, files))
        return 0
    for line in pivot_lines(scores, rows):
        put(line)
    for path in files.values():
        say(f"wrote {path}")
    say(outcome_line(scores))
    return 0


def outcome_line(scores: Scores) -> str:
    """How much of the plan has a score, and what became of the rest."""
    counts = outcome_counts(scores)
    rest = [f"{number} {word}" for word, number in counts.items() if word not in ("planned", "scored")]
    head = f"{counts['scored']} of {counts['planned']} evaluations have a score"
    return f"{head}: {', '.join(rest)}" if rest else head


def outcome_counts(scores: Scores) -> dict[str, int]:
    """Evaluations planned and scored, and those that came to something else."""
    from genworker.reports.scores import Outcome

    outcomes = [evaluation.outcome for evaluation in scores.evaluations]
    counts = {outcome.value: outcomes.count(outcome) for outcome in Outcome}
    return {"planned": len(outcomes)} | {
        word: number for word, number in counts.items() if number or word == Outcome.SCORED
    }


def write_report(
    scores: Scores,
    rows: list[PivotRow],
    agreed: Table,
    reader: StoreReader,
    directory: Path,
    files: dict[str, Path],
    *,
    all_texts: bool,
) -> Path:
    """Write the page and those that it links to; returns the page's path."""
    import shlex
    from datetime import UTC, datetime

    from genworker import __version__
    from genworker.reports.page import TEXT_ROWS, write_pages

    return write_pages(
        scores,
        rows,
        agreed,
        reader,
        directory,
        read_at=datetime.now(UTC),
        version=__version__,
        files=[path.name for path in files.values()],
        text_rows=None if all_texts else TEXT_ROWS,
        all_texts_command=f"genworker report {shlex.join(scores.cohort_ids)} --all-texts",
    )[0]


def data_paths(config: Path | None, data_root: Path | None) -> Paths:
    """The data root's layout; the settings are read only when no data root is named."""
    from genworker.paths import Paths

    if data_root is not None and config is None:
        return Paths.from_str(data_root)
    from genworker.settings import load_settings

    loaded = load_settings(config, {} if data_root is None else {"data_root": data_root})
    return Paths.from_str(loaded.settings.data_root)


def report_record(scores: Scores, files: dict[str, Path]) -> dict[str, Any]:
    """What was written, for machines."""
    return {
        "cohorts": list(scores.cohort_ids),
        "evaluations": outcome_counts(scores),
        "files": {name: str(path) for name, path in files.items()},
    }


def pivot_lines(scores: Scores, rows: list[PivotRow]) -> list[str]:
    """The pivot for a terminal: key columns that never change stand above it, once."""
    from genworker.reports.scores import PivotKey
    from genworker.reports.statistics import mean

    if not rows:
        return [f"{' + '.join(scores.cohort_ids)}: no evaluations are planned"]
    keys = [name for name in PivotKey._fields if name != "stage"]
    varying = [name for name in keys if len({getattr(row.key, name) for row in rows}) > 1]
    lines = [
        f"{name.replace('_', ' ')}: {getattr(rows[0].key, name)}" for name in keys if name not in varying
    ]
    evaluators = [f"{number}: {axis.template} by {axis.model}" for number, axis in enumerate(scores.axes, 1)]
    lines += [f"evaluator {line}" for line in evaluators]
    body = []
    for row in rows[:SHOWN_ROWS]:
        line = [shorten(getattr(row.key, name), 36) for name in varying]
        for axis in scores.axes:
            cell = row.cells.get(axis)
            value = mean(cell.scores) if cell is not None else None
            count = f"{len(cell.scores)}/{cell.planned}" if cell is not None else "not planned"
            line.append(f"{'-' if value is None else f'{value:.2f}'} ({count})")
        total = row.total()
        body.append([*line, "-" if total is None else f"{total:.2f}"])
    header = [name.replace("_", " ") for name in varying]
    header += [f"evaluator {number}" for number in range(1, len(scores.axes) + 1)] + ["sum"]
    right = range(len(varying), len(header))
    lines += ["", *table(header, body, right=tuple(right))]
    if len(rows) > SHOWN_ROWS:
        lines.append(f"… and {len(rows) - SHOWN_ROWS} more; the file has them all")
    return lines


# Export


class ExportFormat(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@app.command("export")
@command
def export(
    cohort: CohortArgument,
    format_: Annotated[
        ExportFormat | None,
        typer.Option("--format", help="Without it what FILE's name ends in, else jsonl."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Instead of stdout.")
    ] = None,
    stage: Annotated[Stage | None, typer.Option("--stage", help="Only this stage.")] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
) -> int:
    """Write every generation of COHORT as one row: ids, lineage, texts, score, usage, cost and times.

    JSON lines go to stdout or to FILE; Parquet needs a FILE and the extra `duckdb`. Rows are streamed: a
    million need no more memory than ten thousand.
    """
    from genworker.reports.export import generation_rows, write_jsonl
    from genworker.store.reader import StoreReader

    suffix = output.suffix.lower().removeprefix(".") if output is not None else ""
    chosen = format_ or (ExportFormat.PARQUET if suffix == "parquet" else ExportFormat.JSONL)
    if chosen is ExportFormat.PARQUET and output is None:
        raise UsageError([Fault("Parquet cannot be written to stdout", fix="name a file: -o FILE.parquet")])
    if chosen is ExportFormat.PARQUET:
        require_duckdb()
    rows = generation_rows(StoreReader(data_paths(config, data_root)), cohort, stage)
    if output is None:
        # A terminal must not obey what a model wrote; a pipe gets the plain text.
        write_jsonl(rows, sys.stdout, ascii_only=sys.stdout.isatty())
        sys.stdout.flush()
        return 0
    count = write_export(rows, output, chosen)
    say(f"wrote {count} rows to {output}")
    return 0


def require_duckdb() -> None:
    """Refuse at once what would only fail at the end.

    Raises:
        UsageError: duckdb is not installed.
    """
    from importlib.util import find_spec

    if find_spec("duckdb") is None:
        raise UsageError(
            [Fault("Parquet needs duckdb, which is not installed", fix="pip install 'genworker[duckdb]'")]
        )


def write_export(rows: Iterator[GenerationRow], output: Path, chosen: ExportFormat) -> int:
    """Write a file that appears whole; returns the number of rows."""
    from genworker.reports.export import jsonl_to_parquet, write_jsonl
    from genworker.reports.files import open_whole, replaced_file

    if chosen is ExportFormat.JSONL:
        with open_whole(output) as stream:
            return write_jsonl(rows, stream)[0]
    with replaced_file(output) as scratch:
        lines = scratch.with_suffix(".jsonl")
        with lines.open("w", encoding="utf-8") as stream:
            count, longest = write_jsonl(rows, stream)
        jsonl_to_parquet(lines, scratch, longest)
    return count


# Reparse


@app.command("reparse")
@command
def reparse(
    cohort: CohortArgument,
    stage: Annotated[
        list[Stage] | None,
        typer.Option("--stage", help="Only this stage, also where texts were made from it; repeatable."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change, and stop.")] = False,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Apply the present parsers to the answers of COHORT that are paid for. Makes no call.

    What an answer said before is kept aside. Drafts and essays that other texts were made from stay as
    they are unless `--stage` names them.
    """
    from genworker.project import open_project
    from genworker.reparse import reparse_cohort

    project = open_project(config, data_root)
    result = reparse_cohort(project, cohort, stages=stage or None, dry_run=dry_run)
    if json_:
        put_json(reparse_record(cohort, result, dry_run))
        return 0
    for line in reparse_lines(result, dry_run):
        put(line)
    return 0


def reparse_record(cohort: str, result: ReparseResult, dry_run: bool) -> dict[str, Any]:
    """What changed, for machines."""
    return {
        "cohort": cohort,
        "dry_run": dry_run,
        "parsed": result.parsed,
        "unknown": result.unknown,
        "kept": result.kept,
        "busy": result.busy,
        "children": result.children,
        "changes": [
            {
                "stage": change.row.stage.value,
                "gen_id": change.row.gen_id,
                "change": change.change.value,
                "old": change.old,
                "new": change.new,
                "reason": change.reason,
            }
            for change in result.changes
        ],
    }


def reparse_lines(result: ReparseResult, dry_run: bool) -> list[str]:
    """What changed, for people: some in full, all as counts."""
    from collections import Counter

    from genworker.reparse import Change

    counts = Counter((change.row.stage, change.change) for change in result.changes)
    rows = [[stage.value, *(str(counts[stage, change]) for change in Change)] for stage in Stage]
    lines = [change_line(change) for change in result.changes[:SHOWN_CHANGES]]
    if len(result.changes) > SHOWN_CHANGES:
        lines.append(f"… and {len(result.changes) - SHOWN_CHANGES} more; --json has them all")
    lines += ["", *table(["stage", "other text", "gained", "lost"], rows, right=(1, 2, 3)), ""]
    verb = "would change" if dry_run else "changed"
    lines.append(f"{len(result.changes)} of {result.parsed} answers {verb}; no call was needed.")
    if not dry_run and result.changes:
        lines.append("What they said before is kept aside.")
    if result.kept:
        lines.append(
            f"{result.kept} drafts or essays parse differently now, but texts were made from them: "
            "they stay. Name their stage with --stage to change them all the same."
        )
    if result.children:
        lines.append(f"{result.children} texts were made from what these drafts and essays said before.")
    if result.unknown:
        lines.append(
            f"{result.unknown} answers stay as they are: the catalogue does not know their template."
        )
    if result.busy:
        lines.append(f"{result.busy} answers stay as they are: another worker is about to replace them.")
    return lines


def change_line(change: Reparsed) -> str:
    """One answer that says something else now."""
    what = f"{parsed_word(change.old)} → {parsed_word(change.new)}"
    reason = visible(change.reason or "", one_line=True)
    return f"{change.row.stage.value}  {change.row.gen_id}  {what}  {reason}".rstrip()


def parsed_word(text: str | None) -> str:
    """A parsed text in a few characters."""
    if text is None:
        return "no text"
    return visible(text, one_line=True) if len(text) <= 12 else f"{len(text)} characters"
