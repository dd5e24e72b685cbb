"""A free look at the lists of models before a call is paid for: are key, address and name right?"""

from __future__ import annotations

import asyncio
import difflib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from genworker.core.lane import LaneSpec
from genworker.core.scheduler import NO_LANE
from genworker.core.visible import visible
from genworker.errors import ConfigError, Fault, ProviderError, ProviderUnavailableError, RequestRejectedError
from genworker.project.endpoints import kind_of
from genworker.project.settings import LoadedSettings
from genworker.run.routes import Route

LOOK_S = 2.5
"""For all tries of one look: a list that is slower says nothing."""
AGAIN_S = 1.05
"""Between two tries without a connection; after the third a name that does not resolve is a wrong one."""
LEAST_CALLS = 10
"""An endpoint that gets fewer calls is not looked at by a run: its first ones say the same as soon."""
_NARROW = ("scope", "permission", "route")
"""A key that may not read the list says so in these words; it may be good for answers."""


@dataclass(slots=True)
class Look:
    """What the lists of models say.

    Attributes:
        listed: the models of each endpoint that has told them.
        faults: what no other try mends.
    """

    listed: dict[str, Collection[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def warnings(self, routes: Iterable[Route]) -> list[str]:
        """The models that an endpoint's list lacks, in sentences. Gateways list incompletely."""
        lines: dict[str, None] = {}
        for route in routes:
            names = self.listed.get(route.endpoint)
            if names and route.model not in names and route.model.partition(":")[0] not in names:
                near = difflib.get_close_matches(route.model, names, 1)
                hint = f"; did you mean {visible(near[0], limit=100, one_line=True)!r}?" if near else ""
                lines[f"{route.endpoint} does not list the model {route.model!r}{hint}"] = None
        return list(lines)

    def marked(
        self, specs: Iterable[LaneSpec], routes: Iterable[Route], asked: Iterable[str]
    ) -> list[LaneSpec]:
        """The specs, with those lanes marked of which nothing is known.

        Args:
            asked: endpoints that are servers.
        """
        servers = frozenset(asked)
        return [
            replace(
                spec,
                is_unknown=spec.batch is None
                and route.endpoint in servers
                and (route.endpoint not in self.listed or bool(self.warnings([route]))),
            )
            for spec, route in zip(specs, routes, strict=True)
        ]


def servers(loaded: LoadedSettings, names: Iterable[str]) -> list[str]:
    """Those endpoints that are asked over a network."""
    sections = loaded.settings.endpoints
    return [name for name in dict.fromkeys(names) if kind_of(sections[name]).models is not None]


def busy(lanes: Iterable[int], routes: list[Route]) -> set[str]:
    """The endpoints that get `LEAST_CALLS` calls or more.

    Args:
        lanes: each job's lane.
    """
    calls = Counter[str]()
    for lane, number in Counter(lanes).items():
        if lane != NO_LANE:
            calls[routes[lane].endpoint] += number
    return {name for name, number in calls.items() if number >= LEAST_CALLS}


async def look(loaded: LoadedSettings, names: Iterable[str]) -> Look:
    """Ask endpoints for their models, all at once. Costs nothing, and at most `LOOK_S`.

    Raises:
        ConfigError: a key is not set.
    """
    result = Look()
    await asyncio.gather(*(_look_at(loaded, name, result) for name in servers(loaded, names)))
    return result


async def look_or_refuse(loaded: LoadedSettings, names: Iterable[str]) -> Look:
    """As `look`.

    Raises:
        ConfigError: a key or an address is wrong; nothing was sent but the look.
    """
    found = await look(loaded, names)
    if found.faults:
        raise ConfigError(found.faults, title="endpoints that cannot be used")
    return found


async def _look_at(loaded: LoadedSettings, name: str, result: Look) -> None:
    section = loaded.settings.endpoints[name]
    kind = kind_of(section)
    assert kind.models is not None, "asked of servers"
    lister = kind.models(section, loaded.access(name))
    try:
        async with asyncio.timeout(LOOK_S):
            while True:
                try:
                    names = await lister.models()
                except ProviderUnavailableError as error:
                    if error.status is not None or error.may_be_billed:
                        return
                    await asyncio.sleep(AGAIN_S)
                else:
                    break
        if names is not None:
            result.listed[name] = names
    except TimeoutError:
        return
    except RequestRejectedError as error:
        if (fix := _fix(error, getattr(section, "api_key_env", None))) is not None:
            what = f"{name} cannot be used: {error.message}"
            result.faults.append(Fault(what, where=f"[endpoints.{name}]", fix=fix))
    except ProviderError:
        return
    finally:
        await lister.aclose()


def _fix(error: RequestRejectedError, variable: str | None) -> str | None:
    """How to mend what refuses the list; ``None`` when answers may come all the same."""
    if error.status is None:
        return "nothing was paid for; the sentence above says what to set"
    if error.status not in (401, 403) or any(word in error.message.lower() for word in _NARROW):
        return None
    if variable is None:
        return "name the variable that holds the key in api_key_env"
    return f"put a key that this endpoint takes into {variable}, or correct base_url"
