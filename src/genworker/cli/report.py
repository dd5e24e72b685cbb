"""``report``: a cohort's scores as tables and a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import (
    ConfigOption,
    DataRootOption,
    JsonOption,
    app,
    command,
    put,
    put_json,
    say,
)
from genworker.cli.options import data_paths_and_settings
from genworker.cli.tables import shorten, table
from genworker.core.stages import STAGES
from genworker.errors import Fault, UsageError

if TYPE_CHECKING:
    from genworker.core.stages import Stage
    from genworker.paths import Paths
    from genworker.reports.comparison import Beside, Comparison
    from genworker.reports.pairwise import Comparison as Pair
    from genworker.reports.provenance import StaleGroup
    from genworker.reports.reading import Reading
    from genworker.reports.scores import Evaluation, Scores
    from genworker.reports.tables import PivotRow, Table
    from genworker.store.reader import StoreReader

SHOWN_ROWS = 60
SHOWN_CHANGES = 20


@app.command("report")
@command
def report(
    cohorts: Annotated[
        list[str] | None,
        typer.Argument(metavar="COHORT...", help="One cohort, or several to average together."),
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Write the tables, not the page.")
    ] = False,
    all_texts: Annotated[
        bool, typer.Option("--all-texts", help="Pages for the texts of every essay, however many they are.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="COHORT", help="Also say what differs from this cohort."),
    ] = None,
    before: Annotated[
        bool,
        typer.Option(
            "--before", help="Also say what differs from the answers that a retry or refresh replaced."
        ),
    ] = False,
    comparisons: Annotated[
        Path | None,
        typer.Option(
            "--comparisons",
            metavar="FILE",
            help="Also rank texts that were compared two by two: a CSV with judge, first, second, winner.",
        ),
    ] = None,
    json_: JsonOption = False,
) -> int:
    """Say what the scores of COHORT show: findings, tables and a page.

    One cohort's report lies in its directory `reports`, one over several in `7_cross_experiment`.
    Reads only the store: no call is made, and neither catalogue nor keys are needed.
    """
    from genworker.api import read_report
    from genworker.reports.choices import choice_tables
    from genworker.reports.files import write_csv
    from genworker.reports.tables import all_tables, pivot
    from genworker.store.reader import StoreReader

    compared = [] if comparisons is None else compared_texts(comparisons)
    if not cohorts:
        return report_comparisons(compared, as_json=json_)
    paths, settings = data_paths_and_settings(config, data_root)
    reader = StoreReader(paths)
    stale = None if tables_only else what_is_stale(config, data_root, reader.paths, cohorts)
    reading = read_report(reader, cohorts, settings=settings, comparisons=compared, stale=stale)
    scores = reading.scores
    one = scores.cohort_ids[0] if len(scores.cohort_ids) == 1 else None
    directory = paths.cross_experiment_dir if one is None else paths.cohort_reports_dir(one)
    rows = pivot(scores)
    contents = all_tables(scores, rows) | choice_tables(scores, reading.choices)
    files: dict[str, Path] = {}
    for name, content in contents.items():
        files[name] = directory / f"{name}.csv"
        write_csv(content, files[name])
    if not tables_only:
        files["report"] = write_report(
            reading, rows, contents["agreement"], reader, directory, files, all_texts=all_texts
        )
    compared_with = None
    if against is not None or before:
        compared_with = compare(reader, reading, directory, against, files)
    if json_:
        record = report_record(reading, files)
        put_json(record if compared_with is None else record | {"comparison": compared_with.to_json()})
        return 0
    for line in pivot_lines(scores, rows):
        put(line)
    put()
    for line in finding_lines(reading):
        put(line)
    if compared_with is not None:
        from genworker.reports.comparison import sentence

        put(sentence(compared_with, " + ".join(cohorts)))
    for path in files.values():
        say(f"wrote {path}")
    say(outcome_line(scores))
    return 0


def compare(
    reader: StoreReader, reading: Reading, directory: Path, against: str | None, files: dict[str, Path]
) -> Comparison:
    """Compare with another cohort, or with what was replaced; writes the table and the page.

    Raises:
        UsageError: there is no such cohort, or nothing was replaced.
    """
    from datetime import UTC, datetime

    from genworker import __version__
    from genworker.api import read_scores
    from genworker.core.stages import Stage
    from genworker.reports.comparison import beside, changes_table, compare_scores, replaced_scores
    from genworker.reports.files import write_csv
    from genworker.reports.page import write_comparison

    scores = after = reading.scores
    name = " + ".join(scores.cohort_ids)
    if against is None:
        called = "before"
        after, other = replaced_scores(scores, lambda evaluation: earlier_score(reader, evaluation))
        if not other.evaluations:
            raise UsageError([Fault(f"nothing of {name} with a score was replaced by a retry or a refresh")])
    else:
        called, other = against, read_scores(reader, against)
    found = compare_scores(after, other, called)

    def text_after(gen_id: str) -> str | None:
        return text_of(reader, gen_id)

    def text_before(gen_id: str) -> str | None:
        if against is None:
            kept = reader.replaced(Stage.ESSAY, gen_id)
            if kept is not None:
                return kept.parsed_text
        return text_of(reader, gen_id)

    concepts = {**other.concepts, **scores.concepts}
    files["comparison"] = directory / "comparison.csv"
    write_csv(changes_table(found, concepts), files["comparison"])
    files["compare"] = directory / f"against-{called}.html"
    write_comparison(
        found,
        name,
        template_differences(reader, after, None if against is None else other),
        beside(found.changes, concepts, text_after, text_before),
        concepts,
        files["compare"],
        read_at=datetime.now(UTC),
        version=__version__,
    )
    return found


def earlier_score(reader: StoreReader, evaluation: Evaluation) -> float | None:
    """The score that an evaluation had before it was made again."""
    from genworker.core.parsers import read_score

    kept = reader.replaced(evaluation.row.stage, evaluation.row.gen_id)
    return None if kept is None else read_score(kept.parsed_text or "")


def text_of(reader: StoreReader, gen_id: str) -> str | None:
    """An essay's text; ``None`` where it cannot be read."""
    from genworker.core.stages import Stage
    from genworker.errors import StoreError

    try:
        return reader.generation(Stage.ESSAY, gen_id).parsed_text
    except (StoreError, ValueError):
        return None


def template_differences(reader: StoreReader, after: Scores, other: Scores | None) -> list[Beside]:
    """What was asked otherwise: templates by another name, or prompts of what was replaced."""
    from genworker.reports.comparison import Beside
    from genworker.reports.differences import compare as compare_texts

    found = []
    if other is not None:
        for stage in STAGES:
            mine, theirs = (
                list(dict.fromkeys(r.template_id for r in side.plan.membership.rows if r.stage is stage))
                for side in (after, other)
            )
            new, old = [n for n in mine if n not in theirs], [n for n in theirs if n not in mine]
            for one, another in zip(new, old, strict=False):
                texts = [(name, reader.template(stage, name)[0]) for name in (another, one)]
                pairs = [(name, text) for name, text in texts if text is not None]
                if len(pairs) == len(texts):
                    title = f"{stage.value} template: {another} → {one}"
                    found.append(Beside(title, tuple(compare_texts(pairs))))
        return found
    seen: set[tuple[Stage, str]] = set()
    for row in after.plan.membership.rows:
        if (row.stage, row.template_id) in seen:
            continue
        kept = reader.replaced(row.stage, row.gen_id)
        if kept is None or not kept.prompt_text or not reader.is_done(row.stage, row.gen_id):
            continue
        prompt = reader.generation(row.stage, row.gen_id).prompt_text
        if prompt and prompt != kept.prompt_text:
            seen.add((row.stage, row.template_id))
            title = f"{row.stage.value} prompt of {row.template_id}, {row.gen_id}"
            pairs = [("before", kept.prompt_text), ("after", prompt)]
            found.append(Beside(title, tuple(compare_texts(pairs))))
    return found


def what_is_stale(
    config: Path | None, data_root: Path | None, paths: Paths, cohorts: list[str]
) -> list[StaleGroup] | None:
    """What is stale and why; ``None`` without a catalogue and settings that could be read."""
    from genworker.cli.refresh import stale_groups
    from genworker.errors import GenworkerError
    from genworker.project.open import open_project

    if not paths.catalog_dir.is_dir():
        return None
    try:
        return stale_groups(open_project(config, data_root), cohorts)
    except GenworkerError:  # a report needs neither; `plan` says what is wrong with them
        return None


def compared_texts(path: Path) -> list[Pair]:
    """Comparisons from a file.

    Raises:
        UsageError: it cannot be read, or a row of it is wrong.
    """
    from genworker.reports.pairwise import read_comparisons

    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return read_comparisons(stream, str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError([Fault(f"cannot be read: {reason}", where=str(path))]) from error


def report_comparisons(compared: list[Pair], *, as_json: bool) -> int:
    """What comparisons say by themselves, where no cohort is named."""
    from genworker.reports.findings import Findings
    from genworker.reports.pairwise import one_order_only, pairwise_findings
    from genworker.reports.words import sentence

    if not compared:
        raise UsageError([Fault("nothing to report on", fix="name a cohort, or --comparisons FILE")])
    found = pairwise_findings(compared)
    silent = [{"kind": "one_order_only", "judge": judge} for judge in one_order_only(compared)]
    if as_json:
        put_json({"findings": [finding.to_json() for finding in found], "warnings": silent})
        return 0
    claimed = [finding for finding in found if finding.claimed]
    for finding in claimed:
        put(f"{sentence(finding, Findings())}.")
    for warning in silent:
        put(f"{warning['judge']} saw no pair in both orders: place and quality cannot be told apart.")
    if not claimed:
        put("No difference is larger than chance explains.")
    return 0


def finding_lines(reading: Reading) -> list[str]:
    """What was found and what it cost, in plain words."""
    from genworker.core.money import money_text
    from genworker.reports.choices import choice_sentences
    from genworker.reports.words import answer

    lines = answer(reading.findings) or ["Too few scores to say what is better."]
    if reading.choices is not None:
        lines = [*lines, *choice_sentences(reading.choices)]
    return [*lines, f"Cost {money_text(reading.money.total)}."]


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
    reading: Reading,
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

    scores = reading.scores
    return write_pages(
        reading,
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


def report_record(reading: Reading, files: dict[str, Path]) -> dict[str, Any]:
    """What was found and written, for machines."""
    from genworker.reports.words import answer

    found = reading.findings
    return {
        "cohorts": list(reading.scores.cohort_ids),
        "evaluations": outcome_counts(reading.scores),
        "answer": answer(found),
        "findings": [
            {**finding.to_json(), "level_name": found.name(finding.factor, finding.level)}
            for finding in found.findings
        ],
        "warnings": found.warnings(),
        "comparisons": None if reading.choices is None else reading.choices.to_json(),
        "money": reading.money.to_json(),
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

    def shown(row: PivotRow, name: str) -> str:
        value: str = getattr(row.key, name)
        return scores.concepts.get(value, value) if name == "combo_id" else value

    def title(name: str) -> str:
        return "concepts" if name == "combo_id" and scores.concepts else name.replace("_", " ")

    lines = [f"{title(name)}: {shown(rows[0], name)}" for name in keys if name not in varying]
    evaluators = [f"{number}: {axis.template} by {axis.model}" for number, axis in enumerate(scores.axes, 1)]
    lines += [f"evaluator {line}" for line in evaluators]
    body = []
    for row in rows[:SHOWN_ROWS]:
        line = [shorten(shown(row, name), 36) for name in varying]
        for axis in scores.axes:
            cell = row.cells.get(axis)
            value = mean(cell.scores) if cell is not None else None
            count = f"{len(cell.scores)}/{cell.planned}" if cell is not None else "not planned"
            line.append(f"{'-' if value is None else f'{value:.2f}'} ({count})")
        total = row.total()
        body.append([*line, "-" if total is None else f"{total:.2f}"])
    header = [title(name) for name in varying]
    header += [f"evaluator {number}" for number in range(1, len(scores.axes) + 1)] + ["sum"]
    right = range(len(varying), len(header))
    lines += ["", *table(header, body, right=tuple(right))]
    if len(rows) > SHOWN_ROWS:
        lines.append(f"… and {len(rows) - SHOWN_ROWS} more; the file has them all")
    return lines
