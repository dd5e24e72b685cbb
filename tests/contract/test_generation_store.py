"""What every store does, whatever it is made of: the suite of `genworker.ports.GenerationStore`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from genworker.core.facts import Facts
from genworker.core.generation import Answer, FailureKind
from genworker.core.stages import Stage
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.ports import GenerationStore
from genworker.store.filesystem import FilesystemStore
from genworker.store.memory import MemoryStore

Two = tuple[GenerationStore, GenerationStore]
Body = Callable[[GenerationStore, GenerationStore], Awaitable[None]]
Check = Callable[[Body], int]


@asynccontextmanager
async def two_on_disk(root: Path) -> AsyncIterator[Two]:
    paths = Paths.from_str(root)
    async with FilesystemStore(paths, "run-1") as first, FilesystemStore(paths, "run-2") as second:
        yield first, second


@asynccontextmanager
async def two_in_memory(root: Path) -> AsyncIterator[Two]:
    async with MemoryStore() as first, MemoryStore(first) as second:
        yield first, second


@pytest.fixture(params=[two_on_disk, two_in_memory], ids=["filesystem", "memory"])
def check(request: pytest.FixtureRequest, tmp_path: Path) -> Check:
    """Runs a body with two workers' stores over one place; returns how many versions lie aside."""

    def run(body: Body) -> int:
        async def main() -> int:
            async with request.param(tmp_path) as (first, second):
                await body(first, second)
                if isinstance(first, MemoryStore):
                    return len(first.aside)
            return len(list((tmp_path / ".genworker/aside").glob("*/*/*/raw.txt")))

        return asyncio.run(main())

    return run


def answer(gen_id: str = "a1", text: str = "some text", stage: Stage = Stage.DRAFT, **facts: Any) -> Answer:
    known = {"task_id": "t", "template_id": "x", "model_id": "m", "parent_gen_id": "", "run_id": "run-1"}
    return Answer(stage, gen_id, "the prompt", text, Facts({**known, "finish_reason": "stop", **facts}))


def test_what_is_committed_is_found(check: Check) -> None:
    async def body(first: GenerationStore, second: GenerationStore) -> None:
        assert await first.find(Stage.DRAFT, "a1") is None
        committed = await first.commit(answer())
        assert committed.is_done
        for store in (first, second):
            found = await store.find(Stage.DRAFT, "a1")
            assert found is not None
            assert (found.raw_text, found.prompt_text, found.parsed_text) == (
                "some text",
                "the prompt",
                "some text",
            )
            assert found.metadata["task_id"] == "t"
            assert await store.load_parsed(Stage.DRAFT, "a1") == "some text"
        assert await first.find(Stage.ESSAY, "a1") is None

    assert check(body) == 0


@pytest.mark.parametrize("text", ["a\r\nb\rc\n", "\ufeffb\u0000\u2028c", "日本", "x" * 300_000], ids=range(4))
def test_texts_come_back_as_they_went_in(check: Check, text: str) -> None:
    async def body(first: GenerationStore, second: GenerationStore) -> None:
        await first.commit(answer(text=text))
        found = await second.find(Stage.DRAFT, "a1")
        assert found is not None
        assert found.raw_text == text

    check(body)


def test_a_failed_answer_is_kept_and_found_as_such(check: Check) -> None:
    async def body(first: GenerationStore, second: GenerationStore) -> None:
        generation = await first.commit(
            answer(text="no number", stage=Stage.EVALUATION, parser="in_last_line")
        )
        assert generation.failure is not None
        assert generation.failure.kind is FailureKind.UNPARSEABLE
        found = await second.find(Stage.EVALUATION, "a1")
        assert found is not None, "or the other worker would pay once more"
        assert found.failure == generation.failure
        assert not found.is_done
        with pytest.raises(StoreError):
            await second.load_parsed(Stage.EVALUATION, "a1")
        empty = await first.commit(answer("a2", text=""))
        assert empty.failure is not None
        assert await second.find(Stage.DRAFT, "a2") is not None

    assert check(body) == 0


def test_the_first_answer_stays_and_the_second_is_kept_aside(check: Check) -> None:
    async def body(first: GenerationStore, second: GenerationStore) -> None:
        await first.commit(answer(text="first"))
        standing = await second.commit(answer(text="second", run_id="run-2"))
        assert standing.raw_text == "first"
        assert await first.load_parsed(Stage.DRAFT, "a1") == "first"

    assert check(body) == 1


def test_a_replacement_takes_the_place_and_keeps_the_old_version(check: Check) -> None:
    async def body(first: GenerationStore, second: GenerationStore) -> None:
        await first.commit(answer(text="old"))
        assert (await first.commit(answer(text="new"), replace=True)).raw_text == "new"
        assert (await first.commit(answer(text="newer"), replace=True)).raw_text == "newer"
        assert await second.load_parsed(Stage.DRAFT, "a1") == "newer"
        assert (await first.commit(answer("a2"), replace=True)).is_done, "there need not be an old one"

    assert check(body) == 2


def test_a_claim_keeps_others_out_until_it_is_released(check: Check) -> None:
    async def body(first: GenerationStore, second: GenerationStore) -> None:
        assert await first.claim(Stage.DRAFT, "a1")
        assert await first.claim(Stage.DRAFT, "a1"), "the owner may ask again"
        assert not await second.claim(Stage.DRAFT, "a1")
        assert await second.claim(Stage.ESSAY, "a1")
        assert await second.claim(Stage.DRAFT, "a2")
        await second.release(Stage.DRAFT, "a1")
        assert not await second.claim(Stage.DRAFT, "a1"), "another's claim cannot be released"
        await first.release(Stage.DRAFT, "a1")
        assert await second.claim(Stage.DRAFT, "a1")

    check(body)


def test_many_commits_at_once(check: Check) -> None:
    async def body(first: GenerationStore, second: GenerationStore) -> None:
        jobs = [
            store.commit(answer(f"g{n}", text=f"text {n}")) for n in range(40) for store in (first, second)
        ]
        results = await asyncio.gather(*jobs)
        assert all(generation.is_done for generation in results)
        for n in range(40):
            assert await first.load_parsed(Stage.DRAFT, f"g{n}") == f"text {n}"

    check(body)


def test_a_cancelled_caller_does_not_undo_a_commit(check: Check) -> None:
    async def body(first: GenerationStore, second: GenerationStore) -> None:
        task = asyncio.ensure_future(first.commit(answer()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _ in range(200):
            if await second.find(Stage.DRAFT, "a1") is not None:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the answer is lost")

    check(body)


@pytest.mark.parametrize("replace", [False, True])
def test_a_link_that_appears_in_a_generations_place_is_neither_followed_nor_replaced(
    tmp_path: Path, replace: bool
) -> None:
    paths = Paths.from_str(tmp_path / "data")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").write_text("mine")

    async def body() -> None:
        async with FilesystemStore(paths, "20260101T000000Z-linked00") as store:
            link = paths.generation_dir(Stage.DRAFT, "a1")
            link.symlink_to(elsewhere)
            with pytest.raises(StoreError, match="symbolic link"):
                await store.commit(answer(), replace=replace)
            assert link.is_symlink()

    asyncio.run(body())
    assert [path.name for path in elsewhere.iterdir()] == ["mine.txt"]
