"""``gc``: packs the journals of ended runs, and drops old ones when told to."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json
from genworker.cli.options import data_paths_and_settings
from genworker.cli.words import money_record


@app.command("gc")
@command
def tidy(
    keep_days: Annotated[
        float | None,
        typer.Option(
            "--keep-days",
            metavar="N",
            min=0.0,
            help="Also remove journals of runs that ended more than N days ago; their sums stay.",
        ),
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Make months of journals small: those of ended runs are packed.

    What runs have spent, made and failed at stays known without them. Generations are not touched, and what
    was kept aside is emptied by `genworker aside empty` alone.
    """
    from genworker.store.format import refuse_newer
    from genworker.store.gc import pack_journals

    paths, settings = data_paths_and_settings(config, data_root)
    refuse_newer(paths)
    done = pack_journals(paths, time.time(), keep_days=keep_days)
    if json_:
        put_json(
            {
                "packed": done.packed,
                "before_bytes": done.before_bytes,
                "after_bytes": done.after_bytes,
                "dropped": done.dropped,
                "dropped_bytes": done.dropped_bytes,
                "busy": done.busy,
                "money": money_record(paths, settings),
            }
        )
        return 0
    put(f"Packed {done.packed} journals: {_mb(done.before_bytes)} to {_mb(done.after_bytes)}.")
    if keep_days is not None:
        put(f"Removed {done.dropped} older than {keep_days:g} days: {_mb(done.dropped_bytes)}.")
    if done.busy:
        put(f"Left alone {done.busy} of runs that are under way or were killed; the next run cleans up.")
    return 0


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
