"""``export``: all generations of cohorts as rows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genworker.cli.app import (
    CohortArgument,
    ConfigOption,
    DataRootOption,
    app,
    command,
    say,
)
from genworker.cli.options import data_paths
from genworker.core.stages import Stage
from genworker.errors import Fault, UsageError

if TYPE_CHECKING:
    from genworker.reports.export import GenerationRow


class ExportFormat(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    PARQUET = "parquet"
    CSV = "csv"


_ENDINGS = frozenset(kind.value for kind in ExportFormat)


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

    JSON lines and CSV go to stdout or to FILE; Parquet needs a FILE and the extra `duckdb`. Rows are
    streamed: a million need no more memory than ten thousand.
    """
    from genworker.reports.export import generation_rows, write_csv_rows, write_jsonl
    from genworker.store.reader import StoreReader

    suffix = output.suffix.lower().removeprefix(".") if output is not None else ""
    chosen = format_ or (ExportFormat(suffix) if suffix in _ENDINGS else ExportFormat.JSONL)
    if chosen is ExportFormat.PARQUET and output is None:
        raise UsageError([Fault("Parquet cannot be written to stdout", fix="name a file: -o FILE.parquet")])
    if chosen is ExportFormat.PARQUET:
        require_duckdb()
    rows = generation_rows(StoreReader(data_paths(config, data_root)), cohort, stage)
    if output is None:
        # A terminal must not obey what a model wrote; a pipe gets the plain text.
        if chosen is ExportFormat.CSV:
            write_csv_rows(rows, sys.stdout)
        else:
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
    from genworker.reports.export import jsonl_to_parquet, write_csv_rows, write_jsonl
    from genworker.reports.files import open_output, replaced_file

    if chosen is ExportFormat.JSONL:
        with open_output(output) as stream:
            return write_jsonl(rows, stream)[0]
    if chosen is ExportFormat.CSV:
        with open_output(output) as stream:
            return write_csv_rows(rows, stream)
    target = output.resolve() if output.is_symlink() else output
    if target.exists() and not target.is_file():
        fix = "name a file, or export JSON Lines"
        raise UsageError([Fault("Parquet cannot be written into what is no regular file", fix=fix)])
    with replaced_file(target) as scratch:
        lines = scratch.with_suffix(".jsonl")
        with lines.open("w", encoding="utf-8") as stream:
            count, longest = write_jsonl(rows, stream)
        jsonl_to_parquet(lines, scratch, longest)
    return count


# Reparse
