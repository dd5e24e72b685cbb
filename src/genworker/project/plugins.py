"""Parsers from other packages: found by entry points, registered once per process.

A package names them in its metadata, the stage before the first dot and the parser's name behind it::

    [project.entry-points."genworker.parsers"]
    "evaluation.verdict" = "my_package.parsers:verdict"

The object is a function from a model's answer to its parsed text (`genworker.core.parsers.Parser`).
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points

from genworker.core.parsers import register
from genworker.core.stages import STAGES, Stage
from genworker.errors import ANY, CatalogFault, Fault

GROUP = "genworker.parsers"


@cache
def load_parser_plugins() -> tuple[Fault, ...]:
    """Register every parser that an installed package offers.

    Returns:
        What is wrong with those that could not be registered; the others work.
    """
    return tuple(fault for entry in entry_points(group=GROUP) if (fault := _load(entry)) is not None)


def _load(entry: EntryPoint) -> Fault | None:
    word, _, name = entry.name.partition(".")
    if word not in {stage.value for stage in STAGES} or not name:
        stages = ", ".join(f"{stage.value}.NAME" for stage in STAGES)
        # Which parser it was to be nobody knows: it concerns those whose parser is missing.
        return _fault(entry, f"its name is {entry.name!r}", f"call it one of: {stages}", ANY)
    try:
        parser = entry.load()
    except Exception as error:  # noqa: BLE001 (another package's code may raise anything when imported)
        return _fault(entry, f"it cannot be imported: {type(error).__name__}: {error}")
    if not callable(parser):
        return _fault(entry, "it is not a function")
    try:
        register(Stage(word), name, parser)
    except ValueError as error:
        return _fault(entry, str(error))
    return None


def _fault(
    entry: EntryPoint, what: str, fix: str = "mend or uninstall that package", concerns: str | None = None
) -> Fault:
    package = entry.dist.name if entry.dist is not None else "an unknown package"
    return CatalogFault(
        f"the parser plugin {entry.name!r} of {package} cannot be used: {what}",
        where=f'entry point [{GROUP}] "{entry.name}" = "{entry.value}"',
        fix=fix,
        concerns=("parser", concerns or entry.name),
    )
