"""A free look at the lists of models before a call is paid for: are key, address and name right?"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from genworker.core.lane import LaneSpec
from genworker.core.scheduler import NO_LANE
from genworker.core.trust import FIRST_CALLS
from genworker.core.visible import visible
from genworker.errors import ConfigError, Fault, ProviderError, ProviderUnavailableError, RequestRejectedError
from genworker.project.endpoints import EndpointSettings, HttpSettings, kind_of, read_urls
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
        silent: why another has told none, in words.
        elsewhere: where another has its list; calls may find nothing where they are to be sent.
        faults: what no other try mends.
    """

    listed: dict[str, Collection[str]] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def warnings(self, routes: Iterable[Route]) -> list[str]:
        """The models that an endpoint's list lacks, in sentences. Gateways list incompletely."""
        lines: dict[str, None] = {}
        for route in routes:
            if (address := self.elsewhere.get(route.endpoint)) is not None:
                lines[
                    f"{route.endpoint} has its list of models below {address}, not where base_url points: "
                    f'set base_url = "{address}"'
                ] = None
            if self.lacks(route):
                near = difflib.get_close_matches(route.model, self.listed[route.endpoint], 1)
                hint = f"; did you mean {visible(near[0], limit=100, one_line=True)!r}?" if near else ""
                lines[f"{route.endpoint} does not list the model {route.model!r}{hint}"] = None
        return list(lines)

    def lacks(self, route: Route) -> bool:
        """Whether a list does not have the model of a route."""
        names = self.listed.get(route.endpoint) or ()
        return bool(names) and route.model not in names and route.model.partition(":")[0] not in names

    def to_json(self, routes: Iterable[Route]) -> dict[str, Any]:
        """What was found of the endpoints of these routes, for machines."""
        lacking: dict[str, set[str]] = {}
        for route in routes:
            if self.lacks(route):
                lacking.setdefault(route.endpoint, set()).add(route.model)
        return {
            name: {
                "lists_models": name in self.listed,
                "why_not": self.silent.get(name),
                "list_below": self.elsewhere.get(name),
                "not_listed": sorted(lacking.get(name, ())),
            }
            for name in sorted({*self.listed, *self.silent})
        }

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
                first_calls=FIRST_CALLS
                if spec.batch is None
                and route.endpoint in servers
                and (route.endpoint not in self.listed or self.lacks(route))
                else 0,
            )
            for spec, route in zip(specs, routes, strict=True)
        ]


def servers(loaded: LoadedSettings, names: Iterable[str]) -> list[str]:
    """Those endpoints that are asked over a network, but for those that the run starts itself."""
    sections = loaded.settings.endpoints
    return [
        name
        for name in dict.fromkeys(names)
        if kind_of(sections[name]).models is not None and not getattr(sections[name], "serve", None)
    ]


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
    await asyncio.gather(*(_look_at_all(loaded, name, result) for name in servers(loaded, names)))
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


async def _look_at_all(loaded: LoadedSettings, name: str, result: Look) -> None:
    """Look at an endpoint; of several servers one that is good is enough."""
    section = loaded.settings.endpoints[name]
    if not isinstance(section, HttpSettings) or not section.is_several:
        await _look_at(loaded, name, section, result)
        return
    urls = read_urls(section)
    found = [Look() for _ in urls]
    pairs = zip(urls, found, strict=True)
    await asyncio.gather(*(_look_at(loaded, name, section.at(url), one) for url, one in pairs))
    listed = [one.listed[name] for one in found if name in one.listed]
    if listed:
        result.listed[name] = frozenset().union(*listed)
        return
    result.silent[name] = found[0].silent.get(name, "")
    if all(one.faults for one in found):
        result.faults += found[0].faults


async def _look_at(loaded: LoadedSettings, name: str, section: EndpointSettings, result: Look) -> None:
    kind = kind_of(section)
    assert kind.models is not None, "asked of servers"
    lister = kind.models(section, loaded.access(name))
    is_elsewhere = False
    try:
        async with asyncio.timeout(LOOK_S):
            while True:
                try:
                    names = await lister.models()
                except ProviderUnavailableError as error:
                    if error.was_sent:
                        result.silent[name] = error.message
                        return
                    await asyncio.sleep(AGAIN_S)
                else:
                    break
        if names is None:
            result.silent[name], is_elsewhere = "its answer is no list of models", True
        else:
            result.listed[name] = names
    except TimeoutError:
        result.silent[name] = f"it did not answer within {LOOK_S:g} s"
    except RequestRejectedError as error:
        result.silent[name], is_elsewhere = error.message, error.status in (404, 405)
        if (fix := _fix(error, getattr(section, "api_key_env", None))) is not None:
            what = f"{name} cannot be used: {error.message}"
            result.faults.append(Fault(what, where=f"[endpoints.{name}]", fix=fix))
    except ProviderError as error:
        result.silent[name] = error.message
    finally:
        await lister.aclose()
    if is_elsewhere:
        await _look_below_v1(loaded, name, section, result)


async def _look_below_v1(loaded: LoadedSettings, name: str, section: EndpointSettings, result: Look) -> None:
    """Look where the list would be if ``base_url`` lacked its version: the usual reason why there is none."""
    kind = kind_of(section)
    given = kind.address(section)
    if given is None or not kind.has_version or _VERSION.search(urlsplit(given).path):
        return
    place, _, query = given.partition("?")
    address = f"{place.rstrip('/')}/v1"
    changed = section.model_copy(update={"base_url": f"{address}?{query}" if query else address})
    assert kind.models is not None, "asked of servers"
    lister = kind.models(changed, loaded.access(name))
    with contextlib.suppress(TimeoutError, ProviderError):
        async with asyncio.timeout(LOOK_S):
            if await lister.models() is not None:
                result.elsewhere[name] = address
    await lister.aclose()


_VERSION = re.compile(r"/v\d|/openai(?:/|$)")
"""Of a path that has its version, or is Azure's or Google's."""


def _fix(error: RequestRejectedError, variable: str | None) -> str | None:
    """How to mend what refuses the list; ``None`` when answers may come all the same."""
    if error.status is None:
        return "nothing was paid for; the sentence above says what to set"
    if error.status not in (401, 403) or any(word in error.message.lower() for word in _NARROW):
        return None
    if variable is None:
        return "name the variable that holds the key in api_key_env"
    return f"put a key that this endpoint takes into {variable}, or correct base_url"
