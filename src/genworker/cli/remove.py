"""``remove``: takes a cohort, generations, or all that a template or a model made out of the store."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json, say
from genworker.cli.words import money_record
from genworker.errors import ExitCode, Fault, UsageError

if TYPE_CHECKING:
    from genworker.store.remove import Removal

SHOWN = 50


@app.command("remove")
@command
def remove(
    cohort: Annotated[
        str | None,
        typer.Argument(metavar="[COHORT]", help="Only what this cohort lists; alone: the cohort as a whole."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="GEN_ID", help="These generations; repeatable.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option("--template", metavar="ID", help="What it made; repeatable."),
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="ID", help="What it made; repeatable.")
    ] = None,
    even_if_listed: Annotated[
        bool, typer.Option("--even-if-listed", help="Also what other cohorts list: their runs make it again.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and stop.")] = False,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Move generations out of the store, with all that was made from them, to .genworker/aside.

    Nothing is deleted; `genworker aside empty` does that. What another cohort lists is refused unless
    --even-if-listed is given. Memberships stay as they are but for a cohort that goes as a whole: what one
    still lists is made again by its next run.

    Exit codes: 0, 1 when something stayed, 2 wrong input or listed elsewhere, 4 a worker has the cohort.
    """
    import asyncio

    from genworker.project.open import open_project
    from genworker.run.lock import cohort_lock, new_run_id
    from genworker.store import remove as removing

    choice = removing.Choice(cohort, only or (), template or (), model or ())
    if cohort is None and not (only or template or model):
        fix = "name a cohort, --only GEN_ID, --template ID or --model ID"
        raise UsageError([Fault("nothing is chosen", fix=fix)])
    project = open_project(config, data_root)
    group = project.loaded.settings.group_permissions
    found = removing.find_removal(project.paths, choice)
    refuse(found, even_if_listed=even_if_listed)
    stayed: dict[tuple[str, str], str] = {}

    def tell(key: tuple[str, str], reason: str | None) -> None:
        if reason is not None:
            stayed[key] = reason

    if not dry_run:
        run_id = new_run_id()

        def work() -> None:
            asyncio.run(removing.remove(project.paths, found, run_id, tell, group_permissions=group))
            if choice.is_whole_cohort and cohort is not None and not stayed:
                removing.remove_cohort_files(project.paths, cohort, run_id, 0o770 if group else 0o700)

        if cohort is None:
            work()
        else:
            with cohort_lock(project, cohort, run_id):
                work()
    counts = Counter(stage.value for stage, _ in found.chosen)
    if json_:
        put_json(
            {
                "dry_run": dry_run,
                "removed": len(found.chosen) - len(stayed),
                "descendants": found.descendants,
                "stages": dict(counts),
                "generations": [{"stage": stage.value, "gen_id": name} for stage, name in found.chosen],
                "cohort": cohort if choice.is_whole_cohort else None,
                "stayed": [{"stage": s, "gen_id": g, "reason": r} for (s, g), r in stayed.items()],
                "money": money_record(project.paths, project.loaded.settings),
            }
        )
        return int(ExitCode.FAILURES if stayed else ExitCode.OK)
    for (stage, name), reason in list(stayed.items())[:SHOWN]:
        say(f"stayed: {stage} {name}: {reason}")
    words = ", ".join(f"{number} {kind}" for kind, number in counts.items()) or "nothing"
    along = f" ({found.descendants} as descendants of others)" if found.descendants else ""
    whole = f", and the cohort {cohort}" if choice.is_whole_cohort else ""
    verb = "Would move aside" if dry_run else "Moved aside"
    put(f"{verb}: {words}{along}{whole}.")
    return int(ExitCode.FAILURES if stayed else ExitCode.OK)


def refuse(found: Removal, *, even_if_listed: bool) -> None:
    """Refuse what is not there, and what another cohort lists.

    Raises:
        UsageError: every fault at once.
    """
    faults = [Fault(f"the store has no generation {name!r}", fix="correct --only") for name in found.unknown]
    if not even_if_listed:
        for (stage, name), cohorts in list(found.listed.items())[:SHOWN]:
            what = f"{stage.value} {name} is listed by {', '.join(cohorts[:5])}"
            faults.append(Fault(what, fix="add --even-if-listed: the next run of these makes it again"))
        if len(found.listed) > SHOWN:
            faults.append(Fault(f"… and {len(found.listed) - SHOWN} more are listed by other cohorts"))
        faults += [
            Fault(
                f"the cohort {name} cannot be read, so nobody knows what it lists", fix="mend its membership"
            )
            for name in found.unread
        ]
    if faults:
        raise UsageError(faults, title="nothing was removed")
