"""The command line. Each module holds the commands of one subject; importing it registers them."""

from __future__ import annotations

from typing import Annotated

import typer

from genworker.cli import report, run, status
from genworker.cli.app import app

__all__ = ["app", "main", "report", "run", "status"]


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
    app(prog_name="genworker")
