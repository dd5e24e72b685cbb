"""Bugs on purpose, each a function that breaks this process's genworker: the harness must see every one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from genworker.core.generation import encode_metadata, finish
from genworker.run import runner
from genworker.store import answers, filesystem, sweep
from genworker.store.filesystem import FilesystemStore
from genworker.store.lock import FileLock

Store: Any = FilesystemStore


def put(module: ModuleType, name: str, value: object) -> None:
    """Put another object in the place of a module's own; one that has moved away would be a bug not seeded."""
    assert name in vars(module), f"{module.__name__} has no {name}"
    vars(module)[name] = value


def no_staging() -> None:
    """Files are written where they belong, one after the other."""

    def stage(self: Any, item: Any) -> None:
        answer = item.answer
        item.staged = f"{self.paths.stage_dir(answer.stage)}/{answer.gen_id}"
        os.makedirs(item.staged, exist_ok=True)
        generation = item.generation = finish(answer)
        for name, text in (
            ("raw.txt", answer.raw_text),
            ("prompt.txt", answer.prompt_text),
            ("parsed.txt", generation.parsed_text),
        ):
            if text is not None:
                self._write(f"{item.staged}/{name}", text.encode())
        self._write(f"{item.staged}/metadata.json", encode_metadata(generation.metadata))

    def place(self: Any, item: Any) -> None:
        item.result = item.generation

    Store._stage, Store._place = stage, place


def metadata_last() -> None:
    """The directory is renamed first and gets its metadata in place."""
    real_stage, real_place = Store._stage, Store._place

    def stage(self: Any, item: Any) -> None:
        real_stage(self, item)
        os.unlink(f"{item.staged}/metadata.json")

    def place(self: Any, item: Any) -> None:
        real_place(self, item)
        final = f"{self.paths.stage_dir(item.answer.stage)}/{item.answer.gen_id}"
        self._write(f"{final}/metadata.json", encode_metadata(item.generation.metadata))

    Store._stage, Store._place = stage, place


def no_sync() -> None:
    """Files are renamed without being synced."""
    Store._sync = lambda self, items: self._whole.update({item.staged: item.answer for item in items})


def no_directory_sync() -> None:
    """The stage directory is not synced after the renames."""

    class Os:
        def __getattr__(self, name: str) -> Any:
            return (lambda fd: None) if name == "fsync" else getattr(os, name)

    put(filesystem, "os", Os())


def no_lock() -> None:
    """Whoever asks for a lock has it."""

    def acquire(self: Any, facts: Any = None, *, shared: bool = False) -> bool:
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        return True

    FileLock.acquire = acquire  # type: ignore[method-assign]


def blind_sweep() -> None:
    """The sweep takes every staging directory for a dead run's."""

    class Blind(FileLock):
        def acquire(self, facts: Any = None, *, shared: bool = False) -> bool:
            return True

    real = sweep.sweep_staging

    def blind(*arguments: Any, **named: Any) -> sweep.Sweep:
        held = FileLock
        put(sweep, "FileLock", Blind)
        try:
            return real(*arguments, **named)
        finally:
            put(sweep, "FileLock", held)

    import genworker.run.planning

    put(genworker.run.planning, "sweep_staging", blind)


def drain_off() -> None:
    """A signal abandons the calls that are out."""
    runner.Runner.drain = lambda self, timeout_s: self.abandon_calls()  # type: ignore[method-assign]


def no_claim() -> None:
    """Every generation is free."""

    async def claim(self: Any, stage: Any, gen_id: str) -> bool:
        return True

    Store.claim = claim


def parse_first() -> None:
    """The answer is parsed before a byte of it is on the disk."""
    real = Store.commit

    async def commit(self: Any, answer: Any, *, replace: bool = False) -> Any:
        vars(filesystem)["finish"](answer)
        return await real(self, answer, replace=replace)

    Store.commit = commit


def no_salvage() -> None:
    """What the log of a dead run holds is not read."""
    put(sweep, "read_answers", lambda paths, run_id: answers.LoggedAnswers())


def sweep_deletes() -> None:
    """A dead run's staging and log are thrown away."""

    def throw_away(paths: Any, stage: Any, staging: Any, run_id: str, *rest: Any) -> None:
        shutil.rmtree(staging, ignore_errors=True)
        answers.remove_answer_log(paths, run_id)

    put(sweep, "_sweep_run", throw_away)
    no_salvage()


def no_log() -> None:
    """Answers are not logged on arrival."""
    answers.AnswerLog.append = lambda self, answer, *, replace: None  # type: ignore[method-assign]


def errors_swallowed() -> None:
    """A commit that the disk refused counts as made."""
    real = Store._commit_group

    def commit(self: Any, group: Any) -> None:
        real(self, group)
        for item in group:
            if item.error is not None:
                item.error, item.result = None, item.generation or finish(item.answer)

    Store._commit_group = commit


def gives_up_at_once() -> None:
    """What the disk refuses once is not tried again."""
    put(runner, "COMMIT_RETRY_PAUSES_S", ())


def keeps_buying() -> None:
    """New calls begin while the disk refuses the answers of the old ones."""
    runner.Runner._refusing = property(lambda self: 0, lambda self, value: None)  # type: ignore[assignment]


def replaced_is_deleted() -> None:
    """What a forced generation replaces is deleted."""

    def keep_aside(paths: Any, stage: Any, gen_id: str, directory: Any, *rest: Any) -> None:
        shutil.rmtree(directory)

    put(filesystem, "keep_aside", keep_aside)


def replaced_in_two_steps() -> None:
    """A replacement moves the old version away first, and then the new one in."""

    def exchange(self: Any, item: Any, final: str) -> None:
        self._keep_aside(item.answer.stage, item.answer.gen_id, final)
        vars(filesystem)["rename_no_replace"](item.staged, final)

    Store._exchange = exchange


def replacement_goes_aside() -> None:
    """What the log of a dead run says of replacing is forgotten."""
    real = answers.read_answers

    def read(paths: Any, run_id: str) -> Any:
        found = real(paths, run_id)
        found.answers = [(answer, False) for answer, _ in found.answers]
        return found

    put(sweep, "read_answers", read)


def repair_deletes() -> None:
    """`verify --repair` throws away what is broken."""
    from genworker.store import check

    def keep_aside(paths: Any, stage: Any, gen_id: str, directory: Any, *rest: Any) -> Any:
        shutil.rmtree(directory)
        return directory

    put(check, "keep_aside", keep_aside)
    put(filesystem, "keep_aside", keep_aside)


def init_in_place() -> None:
    """`init` writes files where they belong, a half after the other."""
    from pathlib import Path

    import genworker.cli.init as init

    def write(directory: Any, name: str, content: bytes) -> bool:
        path = Path(directory) / name
        if path.exists():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.write(fd, content[: len(content) // 2])
        os.write(fd, content[len(content) // 2 :])
        os.close(fd)
        return True

    put(init, "_write_new", write)


def build_in_place() -> None:
    """`cohort build` writes the membership where it belongs, a half after the other."""
    import io

    from genworker.store import cohorts

    def replace_file(path: Any, write: Any, modes: Any) -> bool:
        text = io.StringIO()
        write(text)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = text.getvalue().encode()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, content[: len(content) // 2])
        os.write(fd, content[len(content) // 2 :])
        os.close(fd)
        return True

    put(cohorts, "replace_file", replace_file)


def every_signal_counts() -> None:
    """The same request on two ways abandons what is in flight."""
    from genworker import signals

    put(signals, "is_new_request", lambda number, **_: True)


def reparse_deletes() -> None:
    """What an answer said under the earlier parser is deleted."""
    replaced_is_deleted()


ALL: dict[str, Callable[[], None]] = {
    function.__name__: function
    for function in (
        no_staging,
        metadata_last,
        no_sync,
        no_directory_sync,
        no_lock,
        blind_sweep,
        drain_off,
        no_claim,
        parse_first,
        no_salvage,
        sweep_deletes,
        no_log,
        errors_swallowed,
        gives_up_at_once,
        keeps_buying,
        replaced_is_deleted,
        replaced_in_two_steps,
        replacement_goes_aside,
        repair_deletes,
        init_in_place,
        build_in_place,
        every_signal_counts,
        reparse_deletes,
    )
}
