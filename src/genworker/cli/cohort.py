"""``cohort build``: from the catalogue, a specification or a list to a cohort's membership."""

from __future__ import annotations

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
from genworker.cli.words import money_record
from genworker.core.stages import STAGES
from genworker.errors import ExitCode

if TYPE_CHECKING:
    from genworker.project.adopt import AdoptResult
    from genworker.project.build import CohortPlan, Survey

SHOWN_VALUES_CHARS = 72
SHOWN_GONE = 50

cohort_app = typer.Typer(
    name="cohort",
    help="Cohorts: which generations an experiment consists of.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(cohort_app)


@cohort_app.callback()
def cohort() -> None:
    """Cohorts: which generations an experiment consists of."""


@cohort_app.command("build")
@command
def build(
    cohort: Annotated[
        str | None,
        typer.Argument(metavar="[COHORT]", help="The cohort's id; without one it is made from the axes."),
    ] = None,
    k_max: Annotated[
        int | None,
        typer.Option(
            "--k-max", metavar="N", help="Concepts per combo [default: as built before, else 2].", min=1
        ),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            "--level",
            metavar="LEVEL",
            help="sentence, paragraph or article [default: as built before, else paragraph].",
        ),
    ] = None,
    essays: Annotated[
        Path | None,
        typer.Option("--essays", metavar="FILE", help="Evaluate the essays of this list, a gen_id per line."),
    ] = None,
    drafts: Annotated[
        Path | None,
        typer.Option("--drafts", metavar="FILE", help="Write essays from the drafts of this list."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and stop.")] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Drop rows that the experiment does not have any more.")
    ] = False,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Write the membership of COHORT: the exact list of its generations.

    What is multiplied stands in the catalogue (data/1_raw); in cohorts/COHORT/cohort.toml, when that
    exists; or in a list of essays or drafts that are built upon. Building again keeps every row that
    exists and adds what is new. Makes no call.

    Exit codes: 0 written, 2 wrong input, or rows would disappear, 4 another build is writing.
    """
    from genworker.project.build import BuildOptions, plan_build, survey, write_build
    from genworker.project.open import open_project

    project = open_project(config, data_root)
    plan = plan_build(project, BuildOptions(cohort, k_max, level, essays, drafts))
    found = survey(plan) if dry_run else write_build(plan, prune=prune)
    if json_:
        money = money_record(project.paths, project.loaded.settings, [plan.cohort_id])
        put_json(build_record(plan, found, dry_run=dry_run) | {"money": money})
        return 0
    for note in plan.notes:
        say(note)
    for line in build_lines(plan, found, dry_run=dry_run):
        put(line)
    if found.older_manifest is not None:
        say(f"The manifest of another tool is kept as {found.older_manifest}.")
    return 0


@cohort_app.command("adopt")
@command
def adopt(
    cohort: CohortArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and stop.")] = False,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Write the full membership of COHORT from the metadata, where an older tool wrote two columns.

    The older file stays beside the new one. A row that the metadata do not complete is left out and named
    with its reason. No generation is touched, and no call is made.

    Exit codes: 0 every row was completed, 1 some were left out, 2 wrong input.
    """
    from genworker.project.adopt import adopt_cohort
    from genworker.project.open import open_project

    project = open_project(config, data_root)
    result = adopt_cohort(project, cohort, dry_run=dry_run)
    if json_:
        money = money_record(project.paths, project.loaded.settings, [cohort])
        put_json(adopt_record(result, dry_run=dry_run) | {"money": money})
    else:
        for line in adopt_lines(result, dry_run=dry_run):
            put(line)
    return int(ExitCode.FAILURES if result.left_out else ExitCode.OK)


@cohort_app.command("import-spec")
@command
def import_older_spec(
    cohort: CohortArgument,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The older file [default: COHORT's spec/config.yaml]."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cohort.toml instead.")] = False,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Write COHORT's cohort.toml from an older project's axes and rules; that file stays as it is.

    Subsets, ties, pairs and tuples are carried over, files that they name included. What has no form in a
    cohort.toml is named.

    Exit codes: 0 all of it was carried over, 1 something was left out, 2 wrong input.
    """
    from genworker.project.import_spec import import_cohort_spec
    from genworker.project.open import open_project

    project = open_project(config, data_root)
    path, found = import_cohort_spec(project, cohort, source, dry_run=dry_run)
    if json_:
        record = {"cohort": cohort, "dry_run": dry_run, "written": str(path)}
        money = money_record(project.paths, project.loaded.settings, [cohort])
        put_json({**record, "text": found.text, "left_out": found.left_out, "money": money})
    else:
        if dry_run:
            put(found.text.rstrip("\n"))
        for what in found.left_out:
            say(f"left out: {what}")
        if not dry_run:
            put(f"Wrote {path}. Next: genworker cohort build {cohort} --dry-run")
    return int(ExitCode.FAILURES if found.left_out else ExitCode.OK)


def adopt_record(result: AdoptResult, *, dry_run: bool) -> dict[str, Any]:
    """An adoption's outcome for machines."""
    return {
        "cohort": result.cohort_id,
        "dry_run": dry_run,
        "rows": {stage.value: number for stage, number in result.rows.items()},
        "left_out": [
            {
                "line": left.listed.line,
                "stage": left.listed.stage,
                "gen_id": left.listed.gen_id,
                "reason": left.reason,
            }
            for left in result.left_out
        ],
        "older_membership": None if result.kept is None else str(result.kept),
        "new_combos": result.new_combos,
        "changed_since": result.unmade,
        "notes": result.notes,
    }


def adopt_lines(result: AdoptResult, *, dry_run: bool) -> list[str]:
    """An adoption's outcome for people."""
    if result.is_adopted_already:
        return [f"{result.cohort_id} has the full membership already: there is nothing to adopt."]
    lines = [
        f"left out: {left.listed.stage} {left.listed.gen_id} (line {left.listed.line}): {left.reason}"
        for left in result.left_out
    ]
    if result.unmade:
        lines.append(
            f"{len(result.unmade)} combos: concepts or templates have changed since the drafts were made."
        )
    lines += result.notes
    counts = ", ".join(f"{number} {stage.value}" for stage, number in result.rows.items())
    total = sum(result.rows.values())
    if dry_run:
        return [*lines, f"Nothing was written. {total} rows would be adopted: {counts}."]
    lines.append(f"Adopted {total} rows: {counts}. The older file is {result.kept}.")
    return [*lines, f"Next: genworker status {result.cohort_id}"]


def build_record(plan: CohortPlan, found: Survey, *, dry_run: bool) -> dict[str, Any]:
    """A build's outcome for machines."""
    from genworker.project.build import estimate_tokens

    paths, growth = plan.project.paths, found.growth
    tokens = estimate_tokens(plan, found)
    return {
        "cohort": plan.cohort_id,
        "mode": plan.source.mode,
        "dry_run": dry_run,
        "axes": plan.axes.to_json(),
        "rows": sum(found.rows.values()),
        "new": sum(growth.new.values()),
        "kept": sum(growth.kept.values()),
        "calls": sum(found.calls.values()),
        "copies": sum(found.copies.values()),
        "est_input_tokens": sum(tokens.values()),
        "stages": {
            stage.value: {
                "rows": found.rows[stage],
                "new": growth.new[stage],
                "kept": growth.kept[stage],
                "in_store": found.in_store[stage],
                "calls": found.calls_of(stage),
                "copies": found.copies[stage],
                "est_input_tokens": tokens[stage],
            }
            for stage in STAGES
        },
        "gone": [{"stage": stage, "gen_id": gen_id} for stage, gen_id in growth.gone],
        "new_combos": found.new_combos,
        "changed": found.changed,
        "membership": str(paths.cohort_membership_csv(plan.cohort_id)),
        "manifest": str(paths.cohort_manifest_json(plan.cohort_id)),
        "notes": list(plan.notes),
    }


def build_lines(plan: CohortPlan, found: Survey, *, dry_run: bool) -> list[str]:
    """What the cohort consists of, what a run would cost in calls, and what has been written."""
    from genworker.project.build import estimate_tokens

    growth = found.growth
    tokens = estimate_tokens(plan, found)
    lines = [f"{plan.cohort_id}: {_origin(plan)}", *_axis_lines(plan), ""]
    rows = [
        [
            stage.value,
            str(found.rows[stage]),
            str(growth.new[stage]),
            str(found.in_store[stage]),
            str(found.calls_of(stage)),
            str(found.copies[stage]),
            str(tokens[stage]),
        ]
        for stage in STAGES
        if found.rows[stage]
    ]
    header = ["stage", "rows", "new", "in store", "calls", "free copies", "est. input tokens"]
    lines += [*table(header, rows, right=range(1, 7)), ""]
    calls, total = sum(found.calls.values()), sum(tokens.values())
    lines.append(
        f"A run would make {calls} calls. Est. {total} input tokens (characters / 4 × 1.2; essays and "
        "evaluations without the texts that they build upon)."
    )
    lines += _gone_lines(found) if dry_run else []
    return [*lines, _outcome(plan, found, dry_run=dry_run)]


def _origin(plan: CohortPlan) -> str:
    if plan.source.mode == "spec":
        return f"as {plan.project.paths.cohort_spec_toml(plan.cohort_id)} states"
    if plan.given is not None:
        essays = "" if plan.given.essays is None else f"{len(plan.given.essays)} essays and their "
        return f"builds upon {essays}{len(plan.given.drafts)} drafts of {plan.source.file}"
    if plan.choice.selected is not None:
        return "the selected combos × what is active in the catalogue"
    return f"k_max {plan.choice.k_max}, level {plan.choice.level}, what is active in the catalogue"


def _axis_lines(plan: CohortPlan) -> list[str]:
    from genworker.project.build import axis_values

    concepts = plan.project.catalog.concepts
    names = {
        combo.combo_id: " + ".join(
            concepts[concept].name if concept in concepts else concept for concept in combo.concept_ids
        )
        for combo in plan.axes.combos[:20]
    }
    rows = []
    for name, values in axis_values(plan).items():
        shown = ", ".join(names.get(value, value) for value in values[:20])
        rows.append([name, str(len(values)), shorten(shown, SHOWN_VALUES_CHARS)])
    for stage in STAGES:
        if plan.axes.templates[stage]:
            rows.append([f"{stage.value} replicates", str(plan.axes.replicates[stage]), ""])
    for coupling in plan.axes.couplings:
        rows.append([" with ".join(coupling.axes), str(len(coupling.allowed)), "allowed tuples"])
    if plan.axes.pairs is not None:
        rows.append(["pairs", "", plan.axes.pairs.words()])
    return table(["axis", "values", ""], rows, right=(1,))


def _gone_lines(found: Survey) -> list[str]:
    gone = len(found.growth.gone)
    if not gone:
        return []
    texts = [f"  {text}" for text in found.gone_texts(SHOWN_GONE)]
    return [f"{gone} rows would disappear; to write, add --prune:", *texts]


def _outcome(plan: CohortPlan, found: Survey, *, dry_run: bool) -> str:
    path = plan.project.paths.cohort_membership_csv(plan.cohort_id)
    new, kept, gone = sum(found.growth.new.values()), sum(found.growth.kept.values()), len(found.growth.gone)
    counts = f"{new} new, {kept} kept" + (f", {gone} gone" if gone else "")
    if dry_run:
        return f"Nothing was written. {path} would have {new + kept} rows: {counts}."
    if not found.changed:
        return f"{path} is as it was: {kept} rows."
    return f"Wrote {path}: {counts}. Next: genworker run {plan.cohort_id}"
