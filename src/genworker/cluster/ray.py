"""Workers on the hosts of a Ray cluster. Ray places processes, and carries nothing.

Each worker is a process of its own below a Ray actor, as on one host: it speaks to the driver over TCP, finds
settings, ``.env`` and data root by path, and inherits the environment that ``ray start`` had. So no key goes
through Ray: not as an argument, not in a ``runtime_env``, not in its logs. That a worker is dead is proven by
the lock of its run, not by Ray, which needs a minute for a lost host.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Any

from genworker.cluster.crew import Call
from genworker.errors import CrewError, Fault, UsageError

LOOK_S = 0.5
CONNECT_S = 5.0
PLACED_S = 300.0
"""How long a worker may wait for a host with a free processor."""


class Placed:
    """The actor: keeps one worker's process on the host that Ray has chosen."""

    def start(self, directory: str, slot: int, arguments: list[str], token: str, log: str) -> None:
        """Start it in a directory that all hosts see."""
        from genworker.cluster.processes import start_process

        os.chdir(directory)
        self._process = start_process(slot, arguments, token, Path(log))

    def look(self) -> tuple[int | None, str]:
        """Its exit code, and what it said at the end."""
        code = self._process.exit_code()
        return code, "" if code is None else self._process.last_words()

    def kill(self) -> None:
        """End it."""
        self._process.kill()


class RayProcess:
    """A worker's process as the driver sees it: as it was at the last look."""

    def __init__(self, slot: int, actor: Any) -> None:
        self.slot = slot
        self._actor = actor
        self._code: int | None = None
        self._words = ""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        import ray

        while self._code is None:
            await asyncio.sleep(LOOK_S)
            try:
                self._code, self._words = await self._actor.look.remote()
            except ray.exceptions.RayError as error:
                self._code, self._words = -9, f"Ray has lost it: {type(error).__name__}"
        ray.kill(self._actor)  # its place is wanted by the next one

    def exit_code(self) -> int | None:
        """See `genworker.cluster.crew.Process`."""
        return self._code

    def last_words(self) -> str:
        """See `genworker.cluster.crew.Process`."""
        return self._words

    def kill(self) -> None:
        """See `genworker.cluster.crew.Process`."""
        import ray

        with contextlib.suppress(Exception):  # its host is gone, and so is the process
            ray.get(self._actor.kill.remote(), timeout=10)
        self._task.cancel()


class RayEngine:
    """Places workers with Ray.

    Args:
        address: of a cluster, such as ``auto``; ``None`` starts Ray on this host for the run.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    async def open(self) -> str | None:
        """See `genworker.cluster.crew.Engine`."""
        return await asyncio.to_thread(self._open)

    def _open(self) -> str:
        # Before the import: Ray reads them once. It tells its makers nothing, and ships no directory.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
        if self._address is not None and _has_token():
            os.environ.setdefault("RAY_AUTH_MODE", "token")  # as `ray start` does where there is one
        try:
            import ray
        except ImportError:
            fix = "install it: pip install 'genworker[ray]'"
            raise UsageError(
                [Fault("--engine ray needs the package ray, which is not installed", fix=fix)]
            ) from None
        _check_address(self._address)
        try:
            ray.init(
                # Without an address Ray would join whatever cluster was started here last, dead or alive.
                address=self._address or "local",
                include_dashboard=False if self._address is None else None,
                log_to_driver=False,
                configure_logging=False,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            # Among them: Ray or Python of another version than the cluster's. Ray says which.
            raise CrewError(f"Ray cannot be used: {str(error).strip()[:1000]}") from None
        self._placed = ray.remote(Placed)
        return str(ray.util.get_node_ip_address())

    async def start(self, call: Call) -> RayProcess:
        """See `genworker.cluster.crew.Engine`."""
        resources = dict(call.resources)
        cpus, gpus = max(1.0, resources.pop("cpu", 1.0)), resources.pop("gpu", 0.0)
        options = {"num_cpus": cpus, "num_gpus": gpus, "resources": resources, "max_restarts": 0}
        actor = self._placed.options(**options).remote()
        directory = str(Path.cwd())
        arguments = [*call.arguments()]
        started = actor.start.remote(directory, call.slot, arguments, call.token, str(call.log.absolute()))
        with contextlib.ExitStack() as stack:
            stack.callback(_forget, actor)  # should it be placed later, nobody would look after it
            try:
                await asyncio.wait_for(asyncio.wrap_future(started.future()), PLACED_S)
            except TimeoutError:
                raise CrewError(
                    f"Ray has found no host with room ({_needs(options)}) for worker {call.slot} within "
                    f"{PLACED_S:g} s\n"
                    "  fix:   start fewer workers, or a larger cluster"
                ) from None
            except Exception as error:  # noqa: BLE001 (whatever the actor raised, wrapped by Ray)
                text = str(error).strip()[-1000:]
                raise CrewError(f"a worker cannot be started on its host: {text}") from None
            stack.pop_all()
        return RayProcess(call.slot, actor)

    async def close(self) -> None:
        """See `genworker.cluster.crew.Engine`."""
        import ray

        await asyncio.to_thread(ray.shutdown)


def _forget(actor: Any) -> None:
    """Give its place back. A process that it has started meanwhile ends when nobody welcomes it."""
    import ray

    with contextlib.suppress(Exception):  # its host is gone, and so is the actor
        ray.kill(actor)


def _needs(options: dict[str, Any]) -> str:
    wanted = {"cpu": options["num_cpus"], "gpu": options["num_gpus"], **options["resources"]}
    return ", ".join(f"{amount:g} {name}" for name, amount in wanted.items() if amount)


def _has_token() -> bool:
    """Whether Ray's token can be had here: then the cluster asks for it."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return True
    return (Path.home() / ".ray" / "auth_token").is_file()


def _check_address(address: str | None) -> None:
    """Refuse a cluster that cannot be reached: Ray would try for minutes.

    Raises:
        UsageError: the address is one of Ray's client protocol: the driver would be outside the cluster.
        CrewError: nobody answers.
    """
    if address is not None and address.lower().startswith("ray://"):
        fault = f"Ray cannot be used: its client protocol ({address}) is not supported"
        fix = "run genworker on a host of the cluster, with --address auto"
        raise UsageError([Fault(fault, fix=fix)])
    host, _, port = (address or "").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise CrewError(f"Ray cannot be used: nobody answers at {address} ({error})") from None
