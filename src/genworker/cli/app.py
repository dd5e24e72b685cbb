"""What every command shares: options, streams, and how an error becomes a sentence and an exit code.

Data goes to stdout, everything else to stderr. Imports that cost time stand inside the commands, so that
``--help`` answers at once.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec, TextIO

import typer

from genworker.core.visible import visible
from genworker.errors import ExitCode, GenworkerError, exit_code_for
from genworker.signals import Stopped

P = ParamSpec("P")

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Configuration file [default: config/genworker.toml]."),
]
DataRootOption = Annotated[
    Path | None,
    typer.Option("--data-root", metavar="DIR", help="Data root [default: data, or as configured]."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
CohortArgument = Annotated[str, typer.Argument(metavar="COHORT", help="The cohort's id.")]

app = typer.Typer(
    name="genworker",
    help="Run cohorts of LLM generations: every paid answer is kept, nothing is paid for twice.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def say(text: str = "") -> None:
    """A line for people, on stderr; what comes from outside is made visible."""
    write_line(visible(text))


def write_line(line: str) -> None:
    """A line on stderr that is visible already. When its reader has left, the command goes on."""
    try:
        print(line, file=sys.stderr, flush=True)  # noqa: T201
    except OSError:  # nobody is there to read it; the exit code still tells
        let_go(sys.stderr)


def let_go(stream: TextIO) -> None:
    """Send a stream nowhere whose reader has left: else Python complains once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def put(text: str = "") -> None:
    """A line of data, on stdout."""
    print(visible(text), flush=True)  # noqa: T201


def put_json(record: Any) -> None:
    """A JSON object, on stdout."""
    import json

    print(json.dumps(record, indent=2, default=str), flush=True)  # noqa: T201


def fail(error: BaseException) -> NoReturn:
    """Say what is wrong, and where more is said about it, and leave."""
    from genworker.messages import names_of

    say(f"error: {error}")
    for name in names_of(error):
        say(f"  help:  genworker explain {name}")
    raise typer.Exit(int(exit_code_for(error)))


def command(function: Callable[P, int | None]) -> Callable[P, None]:
    """Turn what a command returns or raises into an exit code and, for an error, a sentence."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            code = function(*args, **kwargs)
        except GenworkerError as error:
            fail(error)
        except Stopped as stopped:
            say(f"stopped by {stopped}")
            raise typer.Exit(128 + stopped.number) from None
        except BrokenPipeError:  # whoever read our output has left, as `head` does
            let_go(sys.stdout)
            raise typer.Exit(int(ExitCode.OK)) from None
        raise typer.Exit(int(code or 0))

    return wrapped


def use_colour() -> bool:
    """Whether stderr takes colour: a terminal, and ``NO_COLOR`` is not set."""
    return sys.stderr.isatty() and "NO_COLOR" not in os.environ


def use_live_display(plain: bool) -> bool:
    """Whether a display that redraws itself is wanted: a terminal, not CI, not ``TERM=dumb``."""
    return (
        not plain
        and sys.stderr.isatty()
        and not os.environ.get("CI")
        and os.environ.get("TERM", "") not in ("", "dumb")
    )
