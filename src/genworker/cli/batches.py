"""``batches``: shows the provider batches that are out, and lets a person cancel, resubmit or forget one."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Annotated

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json
from genworker.cli.tables import table
from genworker.cli.words import money_record
from genworker.core.money import dollars

if TYPE_CHECKING:
    from genworker.run.batch_desk import OpenRecord

ACTIONS = ("cancel", "resubmit", "forget")


@app.command("batches")
@command
def batches(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[COHORT]|cancel|resubmit|forget", help="A cohort's id, or what to do."),
    ] = None,
    batch: Annotated[str | None, typer.Argument(metavar="[ID]", help="A batch.")] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Show the batches that are out: rows, age, state, cost at most, and what is uncertain and why.

    `batches cancel ID` asks the provider to end one; the next run collects what it has done and asks for the
    rest. `batches resubmit ID` sends one again whose making is uncertain: look first that the provider has
    none, since else it is paid for twice. `batches forget ID` gives up one whose results are gone: its rows
    are asked again. ID may be the beginning of a batch's name.
    """
    from genworker.errors import Fault, UsageError
    from genworker.project.open import open_project
    from genworker.run import batch_desk as desk

    project = open_project(config, data_root)
    if batch is not None:
        acts = {"cancel": desk.cancel_batch, "resubmit": desk.resubmit_batch, "forget": desk.forget_batch}
        if what not in acts:
            fix = f"one of: {', '.join(f'genworker batches {action} {batch}' for action in ACTIONS)}"
            raise UsageError([Fault(f"{what!r} is nothing that can be done with a batch", fix=fix)])
        put(acts[what](project, desk.find_batch(project, batch)))
        return 0
    if what in ACTIONS and not project.paths.cohort_dir(what).is_dir():
        raise UsageError([Fault(f"which batch: genworker batches {what} ID", fix="see: genworker batches")])
    if what is not None and not project.paths.cohort_dir(what).is_dir():
        fix = f"see below {project.paths.cohorts_dir}"
        raise UsageError([Fault(f"there is no cohort {what!r}", fix=fix)])
    records = desk.open_records(project, what)
    if json_:
        cohorts = None if what is None else [what]
        money = money_record(project.paths, project.loaded.settings, cohorts)
        put_json({"batches": [record.to_json() for record in records], "money": money})
        return 0
    for line in batch_lines(records):
        put(line)
    return 0


def batch_lines(records: list[OpenRecord]) -> list[str]:
    """The table."""
    from genworker.cli.display import duration

    if not records:
        return ["No batches are out."]
    rows = [
        [
            record.intent.batch,
            record.intent.cohort_id,
            f"{record.intent.endpoint}/{record.intent.model_id or record.intent.model}",
            str(record.intent.count),
            record.story.word,
            duration(record.age_s),
            "?" if record.usual_s is None else duration(record.usual_s),
            "unpriced" if record.intent.price is None else dollars(Decimal(record.intent.worst.usd)),
        ]
        for record in records
    ]
    header = ["batch", "cohort", "model", "rows", "state", "age", "usual", "at most"]
    lines = table(header, rows, right=(3, 5, 6, 7))
    for record in records:
        if record.tended_by is not None:
            lines.append(f"{record.intent.batch} is tended by {record.tended_by}")
        if record.what_to_do is not None:
            lines.append(f"{record.intent.batch}: {record.what_to_do}")
    return lines
