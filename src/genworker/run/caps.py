"""Caps that could not be kept are refused before anything is spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from genworker.core.budget import Caps
from genworker.core.completion import Sampling
from genworker.core.loose_fields import Loose, loose_fields
from genworker.core.stages import Stage
from genworker.errors import ConfigError, Fault
from genworker.project.settings import LoadedSettings
from genworker.run.ledger import Ledger
from genworker.run.routes import Route, longest_answer

_FIXES = {
    Loose.FEE: 'add what one call may cost on top at most: [models."{model}".price] per_call = …, or take '
    "the field out, or cap with --max-tokens or --max-calls",
    Loose.OTHER_MODEL: "take the field out (fallback_model does the same, and its price counts), or cap with "
    "--max-tokens or --max-calls",
}


def check_caps(
    caps: Caps,
    loaded: LoadedSettings,
    ledger: Ledger,
    routes: Iterable[tuple[Stage, Route]],
    sampling: Callable[[Stage, str, str, str], Sampling],
) -> None:
    """Refuse caps that could not be kept, before anything is spent.

    Args:
        routes: every stage and route that the run may call, fallbacks included.

    Raises:
        ConfigError: every fault at once.
    """
    faults: dict[str, Fault] = {}
    config = str(loaded.config or "config/genworker.toml")
    for stage, route in routes:
        if caps.usd is not None and route.price is None:
            model = route.model_id
            faults[f"price {route.name}"] = Fault(
                f"{route.name} has no known price, so a cap on money cannot be kept",
                where=f"{config} [models.{model!r}]",
                fix=f'add: [models."{model}".price] input = …, output = … (USD per million tokens), '
                "or cap with --max-tokens or --max-calls",
            )
        limited = sampling(stage, route.model_id, route.endpoint, "x")
        if (caps.usd is not None or caps.tokens is not None) and longest_answer(route, limited) is None:
            faults[f"{stage} {route.name}"] = Fault(
                f"{route.name} has no max_tokens for the stage {stage.value}: an answer could cost anything",
                where=f"{config} [stages.{stage.value}]",
                fix="add: max_tokens = …",
            )
        for loose in loose_fields(limited.extra_body) if caps.usd is not None else ():
            is_bounded = loose.why is Loose.FEE and route.price is not None and route.price.per_call > 0
            if loose.why in (Loose.FEE, Loose.OTHER_MODEL) and not is_bounded:
                faults[f"{loose.name} {route.name}"] = Fault(
                    f"{route.name} is asked with {loose.name} in extra_body: {loose.why}, so a cap on money "
                    "cannot be kept",
                    where=f"{config} [models.{route.model_id!r}]",
                    fix=_FIXES[loose.why].format(model=route.model_id),
                )
    if caps.usd is not None:
        for model in sorted(ledger.unpriced):
            faults[f"past {model}"] = Fault(
                f"earlier runs of this cohort called {model}, which has no known price",
                where=f"{config} [models.{model!r}]",
                fix=f'add: [models."{model}".price] input = …, output = … (0 where it was free)',
            )
    if faults:
        raise ConfigError(list(faults.values()), title="the caps cannot be kept, nothing was sent")
