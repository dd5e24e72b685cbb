"""``top``: the best essays of a cohort, as a list that the next cohort can be built upon."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
)
from genworker.cli.options import data_paths_and_settings
from genworker.core.visible import visible
from genworker.errors import ExitCode, Fault, UsageError

if TYPE_CHECKING:
    from genworker.reports.top import TopEssay


@app.command("top")
@command
def top(
    cohort: CohortArgument,
    count: Annotated[int, typer.Option("-n", metavar="N", min=1, help="Essays at most.")] = 10,
    by: Annotated[
        str | None,
        typer.Option(
            "--by", metavar="EVALUATOR", help="By this evaluator alone: TEMPLATE_MODEL or TEMPLATE."
        ),
    ] = None,
    min_scores: Annotated[
        int, typer.Option("--min-scores", metavar="K", min=1, help="Only essays with K scores or more.")
    ] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write it there [default: stdout]."),
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """List the best essays of COHORT, a gen_id per line with its scores as a comment. Reads only.

    The list is what data/2_tasks/selected_essays.txt and `cohort build --essays` take. Essays stand by the
    mean of their evaluators' means; of equal ones the one with more scores comes first.

    Exit codes: 0, 1 when no essay has enough scores, 2 wrong input.
    """
    from genworker.api import read_cohorts_money, read_scores
    from genworker.reports.top import top_essays
    from genworker.store.reader import StoreReader

    paths, settings = data_paths_and_settings(config, data_root)
    reader = StoreReader(paths)
    scores = read_scores(reader, cohort)
    try:
        found = top_essays(scores, count, by=by, min_scores=min_scores)
    except LookupError as error:
        raise UsageError([Fault(str(error.args[0]), fix="name one of these with --by")]) from None
    if json_:
        money = read_cohorts_money(reader, cohort, settings).to_json()
        put_json({"cohort": cohort, "essays": [essay.to_json() for essay in found], "money": money})
        return 0
    lines = [
        f"# The best {len(found)} essays of {cohort}" + (f" by {by}" if by else ""),
        *map(line_of, found),
    ]
    if output is not None:
        try:
            with output.open("x", encoding="utf-8") as stream:
                stream.write("\n".join(lines) + "\n")
        except FileExistsError:
            fix = "name another file, or remove it"
            raise UsageError([Fault("the file is there already", where=str(output), fix=fix)]) from None
        except OSError as error:
            raise UsageError([Fault(f"cannot be written: {error.strerror}", where=str(output))]) from None
        put(f"Wrote {output}: {len(found)} essays. Next: genworker cohort build NEW --essays {output}")
    else:
        for line in lines:
            put(line)
    return int(ExitCode.OK if found else ExitCode.FAILURES)


def line_of(essay: TopEssay) -> str:
    """One line of the list."""
    parts = [f"{name} {value:.2f}" for name, value in essay.by_axis]
    comment = (
        f"{essay.mean:.2f} from {essay.count} scores ({', '.join(parts)}); {essay.template} by {essay.model}"
    )
    return f"{essay.gen_id}  # {visible(comment, one_line=True)}"
