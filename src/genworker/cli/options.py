"""Options that several commands share."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from genworker.core.selection import StaticShard
from genworker.core.stages import Stage
from genworker.errors import Fault, UsageError
from genworker.store.lock import IfLocked

if TYPE_CHECKING:
    from genworker.paths import Paths
    from genworker.project.settings import Settings
    from genworker.run.engine import Maker


StageOption = Annotated[
    list[Stage] | None, typer.Option("--stage", help="Only this stage; may be given several times.")
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option("--only", metavar="GEN_ID", help="Only this generation and its missing ancestors."),
]
LimitOption = Annotated[
    int | None,
    typer.Option("--limit", min=0, metavar="N", help="At most N new answers, whole lineages first."),
]
IfLockedOption = Annotated[
    IfLocked,
    typer.Option(
        help="When another worker has the cohort: leave (exit code 4), wait for its end, or share the work."
    ),
]


def _ratio(text: str, option: str) -> Fraction:
    try:
        above, _, below = text.partition("/")
        value = Fraction(int(above), int(below))
    except (ValueError, ZeroDivisionError):
        value = Fraction(-1)
    if not 0 < value <= 1:
        raise typer.BadParameter(f"{text!r} is not a part of a whole such as {option}")
    return value


ShardOption = Annotated[
    str | None,
    typer.Option(
        "--shard",
        metavar="I/N",
        help="Make only the I-th of N parts of the cohort, beside other runs that make the others.",
    ),
]
LimitShareOption = Annotated[
    str | None,
    typer.Option(
        "--limit-share",
        metavar="1/N",
        help="With --shard: the part of rates, of calls at once and of caps that is this run's "
        "[default: 1/N of --shard I/N].",
    ),
]


def static_shard(shard: str | None, limit_share: str | None) -> StaticShard | None:
    """What --shard and --limit-share say.

    Raises:
        UsageError: the second without the first.
    """
    if shard is None:
        if limit_share is not None:
            raise UsageError([Fault("--limit-share says nothing without --shard", fix="add --shard I/N")])
        return None
    _ratio(shard, "3/16")
    number, _, of = shard.partition("/")
    share = Fraction(1, int(of)) if limit_share is None else _ratio(limit_share, "1/16")
    return StaticShard(int(number), int(of), share)


class EngineName(StrEnum):
    """What places the workers of a crew."""

    LOCAL = "local"
    """Processes of this host."""
    RAY = "ray"
    """Processes on the hosts of a Ray cluster."""


EngineOption = Annotated[
    EngineName | None,
    typer.Option("--engine", help="Share the work among several processes; see docs/cluster.md."),
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, max=10_000, metavar="N", help="How many, with --engine.")
]


AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="With --engine ray: the cluster, such as auto [default: a Ray of our own].",
    ),
]


def make_crew(engine: EngineName | None, workers: int | None, address: str | None = None) -> Maker | None:
    """What makes a run's rows; ``None``: the run's own process.

    Raises:
        UsageError: one of the options without the other.
    """
    if address is not None and engine is not EngineName.RAY:
        raise UsageError([Fault("--address says where a Ray cluster is", fix="add --engine ray")])
    if engine is None and workers is None:
        return None
    if engine is None or workers is None:
        given, missing = ("--workers", "--engine local") if engine is None else ("--engine", "--workers N")
        raise UsageError([Fault(f"{given} says nothing without its other half", fix=f"add {missing}")])
    from genworker.cluster.crew import Crew
    from genworker.cluster.processes import LocalEngine
    from genworker.cluster.ray import RayEngine

    return Crew(LocalEngine() if engine is EngineName.LOCAL else RayEngine(address), workers)


def _usd(text: str) -> Decimal:
    try:
        value = Decimal(text.strip().removeprefix("$"))
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0:
        raise typer.BadParameter(f"{text!r} is not an amount of US dollars such as 2.50")
    return value


MaxCostOption = Annotated[
    Decimal | None,
    typer.Option(
        "--max-cost",
        parser=_usd,
        metavar="USD",
        help="Spend at most so much on COHORT, all its runs together; never a cent more.",
    ),
]
MaxCallsOption = Annotated[
    int | None,
    typer.Option("--max-calls", min=0, metavar="N", help="Calls at most, all runs together."),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        "--max-tokens", min=0, metavar="N", help="Tokens at most, prompts and answers of all runs together."
    ),
]
MaxWaitOption = Annotated[
    float | None,
    typer.Option(
        "--max-wait",
        min=0.0,
        metavar="SECONDS",
        help="Stop asking an endpoint that wants a longer wait, such as for a daily quota "
        "[default: 600, or as configured].",
    ),
]
PlainOption = Annotated[bool, typer.Option("--plain", help="Lines instead of a display that redraws itself.")]
QuietOption = Annotated[bool, typer.Option("-q", "--quiet", help="Only errors and the summary.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Also retries and commits.")]


def data_paths(config: Path | None, data_root: Path | None) -> Paths:
    """The data root's layout, as named or as configured."""
    return data_paths_and_settings(config, data_root)[0]


def data_paths_and_settings(config: Path | None, data_root: Path | None) -> tuple[Paths, Settings | None]:
    """As `data_paths`, with the settings: where a data root is named, nobody needs any that can be read."""
    from genworker.errors import ConfigError
    from genworker.paths import Paths
    from genworker.project.settings import load_settings

    try:
        loaded = load_settings(config, {} if data_root is None else {"data_root": data_root})
    except ConfigError:
        if data_root is None or config is not None:
            raise
        return Paths.from_str(data_root), None
    return Paths.from_str(loaded.settings.data_root), loaded.settings


BatchOption = Annotated[
    bool | None,
    typer.Option("--batch/--no-batch", help="Ask in provider batches, or not [default: as configured]."),
]
