"""``aside``: what was replaced, removed or broken, and lies beside the store until it is emptied."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json, say
from genworker.cli.options import data_paths_and_settings
from genworker.cli.tables import table
from genworker.cli.words import money_record
from genworker.errors import ExitCode

if TYPE_CHECKING:
    from genworker.store.remove import Kept

DAY_S = 86_400.0

aside_app = typer.Typer(
    name="aside",
    help="What was replaced or removed, and lies aside.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(aside_app)

OlderThanOption = Annotated[
    float | None,
    typer.Option("--older-than", metavar="DAYS", min=0.0, help="Only what lies there for so many days."),
]


@aside_app.callback()
def aside() -> None:
    """What was replaced or removed, and lies aside."""


@aside_app.command("list")
@command
def list_(
    older_than: OlderThanOption = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """List what lies in .genworker/aside: earlier answers, removed and broken generations, cohorts."""
    from genworker.store.remove import list_aside

    paths, settings = data_paths_and_settings(config, data_root)
    kept = _old_enough(list_aside(paths), older_than)
    if json_:
        record = {"aside": [item.to_json() for item in kept], "size_bytes": sum(k.size_bytes for k in kept)}
        put_json({**record, "money": money_record(paths, settings)})
        return 0
    for line in aside_lines(kept):
        put(line)
    return 0


@aside_app.command("empty")
@command
def empty(
    older_than: OlderThanOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and stop.")] = False,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    json_: JsonOption = False,
) -> int:
    """Delete what lies aside, for good. These are answers that were paid for.

    Exit codes: 0, 1 when something could not be deleted.
    """
    from genworker.store.remove import empty_aside, list_aside

    paths, settings = data_paths_and_settings(config, data_root)
    kept = _old_enough(list_aside(paths), older_than)
    size = sum(item.size_bytes for item in kept)
    failed = [] if dry_run else empty_aside(kept)
    if json_:
        record = {"dry_run": dry_run, "deleted": len(kept) - len(failed), "size_bytes": size}
        put_json({**record, "failed": failed, "money": money_record(paths, settings)})
    else:
        verb = "would be deleted" if dry_run else "deleted"
        put(f"{len(kept) - len(failed)} directories {verb}, {size:,} bytes.")
        for line in failed:
            say(f"not deleted: {line}")
    return int(ExitCode.FAILURES if failed else ExitCode.OK)


def _old_enough(kept: list[Kept], days: float | None) -> list[Kept]:
    if days is None:
        return kept
    latest_s = time.time() - days * DAY_S
    return [item for item in kept if item.modified_s <= latest_s]


def aside_lines(kept: list[Kept]) -> list[str]:
    """What lies aside, for people: per kind, then each."""
    if not kept:
        return ["Nothing lies aside."]
    counts = Counter(item.kind for item in kept)
    sizes: Counter[str] = Counter()
    for item in kept:
        sizes[item.kind] += item.size_bytes
    rows = [[item.kind, item.name, item.label, f"{item.size_bytes:,}"] for item in kept]
    totals = ", ".join(f"{number} {kind} ({sizes[kind]:,} bytes)" for kind, number in counts.items())
    return [*table(["kind", "name", "put there by", "bytes"], rows, right=(3,)), "", f"In all: {totals}."]
