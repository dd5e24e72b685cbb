"""The command line. Each module holds the commands of one subject; importing it registers them."""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer

from genworker import signals
from genworker.cli import (
    aside,
    batches,
    cohort,
    explain,
    export,
    init,
    plan,
    remove,
    reparse,
    report,
    retry,
    run,
    show,
    status,
    tidy,
    top,
    verify,
    view,
)
from genworker.cli.app import app

__all__ = [
    "app",
    "aside",
    "batches",
    "cohort",
    "explain",
    "export",
    "init",
    "main",
    "plan",
    "remove",
    "reparse",
    "report",
    "retry",
    "run",
    "show",
    "status",
    "tidy",
    "top",
    "verify",
    "view",
]


def _version(value: bool) -> None:
    if value:
        from genworker import __version__

        print(f"genworker {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Run cohorts of LLM generations: every paid answer is kept, nothing is paid for twice."""


def main() -> None:
    """The console script."""
    signals.listen()
    try:
        app(prog_name="genworker")
    except signals.Stopped as stopped:  # before any command has begun
        raise SystemExit(128 + stopped.number) from None
    finally:
        if "duckdb" not in sys.modules:  # its binding reports as leaked what was not searched for
            gc.freeze()  # what is left goes with the process: the interpreter need not search it for garbage
