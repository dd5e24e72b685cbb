"""``explain``: what a message means, and what mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from genworker.cli.app import JsonOption, app, command, put, put_json
from genworker.errors import ExitCode, Fault, UsageError


@app.command("explain")
@command
def explain(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME | MESSAGE]", help="A message's short name, or its words as they were printed."
        ),
    ] = None,
    json_: JsonOption = False,
) -> int:
    """Say what a message means and what mends it. Without an argument: list the short names.

    The words of a message may be pasted as they are: `genworker explain "HTTP 402: insufficient_quota"`.

    Exit codes: 0, 2 no message has these words.
    """
    from genworker.messages import MESSAGES, find

    if not words:
        if json_:
            put_json([message._asdict() for message in MESSAGES])
            return ExitCode.OK
        for message in sorted(MESSAGES):
            put(f"{message.name:<24} {message.means}")
        return ExitCode.OK
    text = " ".join(words)
    found = find(text)
    if found is None:
        fix = "`genworker explain` lists the short names"
        raise UsageError([Fault(f"no message has these words: {text[:200]}", fix=fix)])
    if json_:
        put_json(found._asdict())
    else:
        put(f"{found.name} ({found.chapter})\n\n{found.means}\n\n{found.mends}")
    return ExitCode.OK
