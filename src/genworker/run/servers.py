"""The servers of one endpoint while a run lasts: one address, a list that may change, or own processes.

Rows belong to none of them (see `genworker.core.lane`): here it is only known who there is.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from genworker.errors import ConfigError
from genworker.ports import Provider
from genworker.project.endpoints import HttpSettings, kind_of, read_urls
from genworker.project.settings import LoadedSettings
from genworker.run.serving import Server, all_given_up, start_servers

REREAD_S = 10.0
"""A file of addresses is read again so often."""

Tell = Callable[[int, str, bool], None]
"""A server's number, its name, and whether it gets calls from now on."""


class Servers:
    """The servers of one endpoint.

    Args:
        name: the endpoint's.
        log: where a server that the run starts writes to, by its number.

    Attributes:
        providers: by the server's number. Grows when one joins; one that has left keeps its place.
    """

    def __init__(self, loaded: LoadedSettings, name: str, log: Callable[[str], Path]) -> None:
        self.providers: list[Provider] = []
        self._section, self._access = loaded.settings.endpoints[name], loaded.access(name)
        self._kind = kind_of(self._section)
        self._urls: list[str] = []
        self._is_in: list[bool] = []
        self._started: list[Server] = []
        self._tell: Tell = lambda number, name, is_in: None
        self._warn: Callable[[str], None] = lambda what: None
        self._lose: Callable[[str], None] = lambda reason: None
        self._task: asyncio.Task[None] | None = None
        if isinstance(self._section, HttpSettings) and self._section.serve:
            for number in range(self._section.serve_count):
                self._started.append(
                    Server(
                        self._section.serve,
                        self._section.serve_ready_s,
                        log(f"{re.sub(r'[^A-Za-z0-9_-]', '_', name)}-{number}"),
                        partial(self._served, number),
                    )
                )
            for server in self._started:
                self._add(self._section, server.url + self._kind.served_path, is_in=False)
        elif isinstance(self._section, HttpSettings) and self._section.base_urls is not None:
            for url in read_urls(self._section):
                self._add(self._section, url)
        else:
            self.providers.append(self._kind.make(self._section, self._access))
            self._urls.append("")
            self._is_in.append(True)

    def _add(self, section: HttpSettings, url: str, *, is_in: bool = True) -> None:
        self.providers.append(self._kind.make(section.at(url), self._access))
        self._urls.append(url)
        self._is_in.append(is_in)

    @property
    def names(self) -> list[str]:
        """For people, by the server's number; empty for an endpoint that is one address."""
        return [urlsplit(url).netloc for url in self._urls]

    async def open(self, *, hurry: asyncio.Event) -> None:
        """Open the connections; start what is to be started, until one of it answers.

        Args:
            hurry: nobody waits any more.

        Raises:
            ServeError: nothing that was started answers.
        """
        for provider in self.providers:
            await provider.open()
        if self._started:
            await start_servers(self._started, hurry=hurry)

    def listen(self, tell: Tell, warn: Callable[[str], None], lose: Callable[[str], None]) -> None:
        """Tell from now on who joins and leaves.

        Args:
            warn: gets what is wrong with a list that has changed.
            lose: called once when no server will come back, with the reason.
        """
        self._tell, self._warn, self._lose = tell, warn, lose
        for number, name in enumerate(self.names):
            if not self._is_in[number]:
                tell(number, name, False)
        loop = asyncio.get_running_loop()
        if self._started:
            self._task = loop.create_task(self._until_given_up())
        elif isinstance(self._section, HttpSettings) and isinstance(self._section.base_urls, Path):
            self._task = loop.create_task(self._reread(self._section))

    async def _until_given_up(self) -> None:
        await all_given_up(self._started)
        self._lose("\n".join(dict.fromkeys(server.gave_up or "" for server in self._started)))

    def _served(self, number: int, is_ready: bool) -> None:
        self._is_in[number] = is_ready
        self._tell(number, self.names[number], is_ready)

    async def _reread(self, section: HttpSettings) -> None:
        said = ""
        while True:
            await asyncio.sleep(REREAD_S)
            try:
                urls = await asyncio.to_thread(read_urls, section)
            except ConfigError as error:
                # Half written, perhaps: the list that was read last holds until there is a good one.
                if str(error) != said:
                    self._warn(f"the list of servers is not taken over: {error}")
                said = str(error)
                continue
            said = ""
            for number, url in enumerate(self._urls):
                if self._is_in[number] != (url in urls):
                    self._served(number, url in urls)
            for url in urls:
                if url not in self._urls:
                    self._add(section, url)
                    await self.providers[-1].open()
                    self._served(len(self._urls) - 1, True)

    async def aclose(self) -> None:
        """Close the connections; end what was started. What fails at it is raised once all is done."""
        ended: list[BaseException | None] = []
        if self._task is not None:
            self._task.cancel()
            ended += await asyncio.gather(self._task, return_exceptions=True)
        connections = (provider.aclose() for provider in self.providers)
        ended += await asyncio.gather(*connections, return_exceptions=True)
        ended += await asyncio.gather(*(server.stop() for server in self._started), return_exceptions=True)
        for fault in ended:
            if isinstance(fault, Exception):  # not that the task was cancelled
                raise fault
