"""What comes early, late or never between a crew's driver, its engine and its workers."""

from __future__ import annotations

import asyncio
import concurrent.futures
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from genworker import __version__
from genworker.cluster import processes
from genworker.cluster.crew import Call, Crew, Member
from genworker.cluster.processes import LocalEngine, LocalProcess
from genworker.cluster.ray import RayEngine, _check_address
from genworker.cluster.wire import pack
from genworker.errors import UsageError
from genworker.project.open import open_project
from genworker.run.engine import RunOptions, run_cohort
from support.project import COHORT, make_project


def a_call(tmp_path: Path) -> Call:
    project = make_project(tmp_path)
    project.use_script()
    return Call(0, "unix:nowhere", "token", open_project(project.config, project.data), tmp_path / "log")


class Writer:
    def __init__(self) -> None:
        self.said = b""
        self.is_closed = False

    def write(self, content: bytes) -> None:
        self.said += content

    async def drain(self) -> None:
        pass

    def close(self) -> None:
        self.is_closed = True


def serve(crew: Crew, *messages: dict[str, Any]) -> Writer:
    """Say this to the driver, and leave."""

    async def play() -> Writer:
        reader, writer = asyncio.StreamReader(), Writer()
        for message in messages:
            reader.feed_data(pack(message))
        reader.feed_eof()
        async with asyncio.timeout(10):
            await crew._serve(reader, cast("Any", writer))
        return writer

    return asyncio.run(play())


@pytest.mark.parametrize("token", ["", "wrong", "größer", None, 7, ["a"]])
def test_a_token_of_somebody_else_is_refused_without_a_word(token: object) -> None:
    writer = serve(Crew(LocalEngine(), 1), {"token": token, "hello": {}})
    assert writer.is_closed
    assert not writer.said


def test_a_worker_that_no_member_knows_is_turned_away() -> None:
    crew = Crew(LocalEngine(), 1)
    crew._order = cast("Any", SimpleNamespace(endpoints={}))
    crew._station = cast("Any", None)
    crew._digest = "digest"
    dead = Member(cast("Any", SimpleNamespace(slot=0)), run_id="earlier", is_gone=True)
    crew._members.append(dead)
    hello = {"slot": 0, "run_id": "later", "version": __version__, "digest": "digest", "missing_keys": {}}
    writer = serve(crew, {"token": crew._token, "hello": hello})
    assert writer.is_closed
    assert not writer.said
    assert dead.run_id == "earlier", "it is not taken for the one before it"


@pytest.mark.slow
def test_a_worker_may_speak_before_its_engine_says_that_it_runs(tmp_path: Path) -> None:
    class Late(LocalEngine):
        starts = 0

        async def start(self, call: Call) -> LocalProcess:
            self.starts += 1
            process = await super().start(call)
            await asyncio.sleep(2.0)
            return process

    project = make_project(tmp_path)
    project.use_script()
    engine = Late()
    opened = open_project(project.config, project.data)
    result = run_cohort(opened, COHORT, RunOptions(), maker=Crew(engine, 1))
    assert engine.starts == 1
    assert sum(counts.done for counts in result.progress.stages.values()) > 0


def test_workers_that_are_being_started_are_given_up_when_the_run_fails(tmp_path: Path) -> None:
    heard: list[str] = []

    class Broken(LocalEngine):
        async def start(self, call: Call) -> LocalProcess:
            if call.slot == 0:
                await asyncio.sleep(0.1)
                raise RuntimeError("broken")
            try:
                await asyncio.sleep(60)
            finally:
                heard.append("given up")
            raise AssertionError

        async def close(self) -> None:
            heard.append("closed")

    project = make_project(tmp_path)
    project.use_script()
    opened = open_project(project.config, project.data)
    with pytest.raises(RuntimeError, match="broken"):
        run_cohort(opened, COHORT, RunOptions(), maker=Crew(Broken(), 2))
    assert heard == ["given up", "closed"]


def test_a_process_whose_start_is_given_up_does_not_come_without_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []

    def start_slowly(*arguments: object) -> object:
        time.sleep(0.3)
        made.append(arguments)
        return arguments

    monkeypatch.setattr(processes, "start_process", start_slowly)
    call = a_call(tmp_path)

    async def play() -> list[object]:
        task = asyncio.create_task(LocalEngine().start(call))
        await asyncio.sleep(0.05)
        task.cancel()
        return [*(await asyncio.gather(task, return_exceptions=True))]

    assert asyncio.run(play()) == made


@pytest.mark.parametrize("is_cancelled", [True, False])
def test_ray_forgets_an_actor_whose_start_is_given_up(
    is_cancelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[object] = []
    monkeypatch.setitem(sys.modules, "ray", cast("Any", SimpleNamespace(kill=killed.append)))
    answer: concurrent.futures.Future[None] = concurrent.futures.Future()
    starting = SimpleNamespace(future=lambda: answer)
    actor = SimpleNamespace(start=SimpleNamespace(remote=lambda *_: starting))
    engine = RayEngine(None)
    engine._placed = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda: actor))
    call = a_call(tmp_path)

    async def play() -> None:
        task = asyncio.create_task(engine.start(call))
        await asyncio.sleep(0.05)
        if is_cancelled:
            task.cancel()
        else:
            answer.set_exception(OSError("no such directory"))
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(ended, BaseException)

    asyncio.run(play())
    assert killed == [actor]


@pytest.mark.parametrize("address", ["ray://head:10001", "ray://127.0.0.1", "RAY://head:10001"])
def test_the_client_protocol_of_ray_is_refused_with_what_to_do(address: str) -> None:
    with pytest.raises(UsageError, match="Ray cannot be used: its client protocol") as caught:
        _check_address(address)
    assert "on a host of the cluster" in str(caught.value)
