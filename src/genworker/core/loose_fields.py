"""Fields of ``extra_body`` under which list price and ``max_tokens`` do not bound what a call costs. Pure.

A fee for each search or tool is in no count of tokens; a list of other models is served at other prices; what
a model thinks may be billed beside what it writes. The first two are refused under a cap on money (a fee only
where no ``per_call`` of the price bounds it); `plan` speaks of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Loose(StrEnum):
    """Why a field makes a bound none; the value says it to people."""

    FEE = "searches and tools are billed apart from tokens"
    OTHER_MODEL = "another model may answer, at its own price"
    THOUGHT = "what is thought may be billed beyond max_tokens; under a cap the first call goes alone"
    COPIES = "several answers are paid for, and one is kept"


@dataclass(frozen=True, slots=True)
class LooseField:
    """One field."""

    name: str
    why: Loose


_FEES = (
    "code_execution",
    "container",
    "enable_search",
    "mcp_servers",
    "plugins",
    "search_parameters",
    "web_search",
    "web_search_options",
)
_OTHER_MODELS = ("fallbacks", "models")
_THOUGHTS = (
    "enable_thinking",
    "prediction",
    "reasoning",
    "reasoning_effort",
    "thinking",
    "thinking_budget",
    "thinking_config",
    "verbosity",
)
_COPIES = ("best_of", "n")
_FREE_TOOLS = frozenset({"custom", "function"})
"""Tools that the caller would run: nothing is done for them, so nothing is billed."""


def loose_fields(extra_body: Mapping[str, object]) -> list[LooseField]:
    """The fields of a request's extra body that loosen its bound; one that switches something off is none."""
    found = [
        LooseField(name, why)
        for names, why in ((_FEES, Loose.FEE), (_OTHER_MODELS, Loose.OTHER_MODEL), (_THOUGHTS, Loose.THOUGHT))
        for name in names
        if extra_body.get(name) not in (None, False, 0, "", "none", [])  # an empty object asks for a search
    ]
    tools = extra_body.get("tools")
    kinds = (
        (tool.get("type", "function") for tool in tools if isinstance(tool, Mapping))
        if isinstance(tools, list)
        else ()
    )
    if any(kind not in _FREE_TOOLS for kind in kinds):
        found.append(LooseField("tools", Loose.FEE))
    for name in _COPIES:
        number = extra_body.get(name)
        if isinstance(number, int) and number > 1:
            found.append(LooseField(name, Loose.COPIES))
    return found
