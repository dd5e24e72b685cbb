"""Reads generations from a store, written by genworker or by any tool that follows the same layout."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from genworker.core.facts import NO_FACTS, OWN_MARK, Facts, facts_of, says_cut
from genworker.core.generation import Generation
from genworker.core.ids import id_fault
from genworker.core.stages import Stage
from genworker.errors import StoreError
from genworker.paths import (
    GENERATION_FILES,
    METADATA_FILE,
    OLDER_METADATA_FILES,
    PARSED_FILE,
    PROMPT_FILE,
    RAW_FILE,
    REASONING_FILE,
)

MAX_FILE_BYTES = 256_000_000
"""Largest file of a generation that is read: what genworker writes is far below it."""

MAX_METADATA_BYTES = 16_000_000
"""Most bytes that `read_bytes` reads of a file."""

_BLOCK_BYTES = 16_384
_OWN_AND_WHOLE = b'\n  "truncated": false,\n  "failure": null,\n  "files": {\n'
"""In every ``metadata.json`` that genworker wrote for a usable answer; no string value can contain it."""
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_generation(gens_root: str | Path, stage: Stage | str, gen_id: str) -> Generation:
    """Read one generation, all its files from the same directory even while it is being replaced.

    Args:
        gens_root: the directory ``gens`` of a data root.

    Raises:
        StoreError: there is no such directory, or a file of it cannot be read as UTF-8 text or JSON.
        ValueError: `stage` is not a stage, or `gen_id` cannot be the name of a directory.
    """
    return read_directory(generation_directory(gens_root, stage, gen_id), Stage(stage), gen_id)


def generation_directory(gens_root: str | Path, stage: Stage | str, gen_id: str) -> Path:
    """Where a generation lies.

    Raises:
        ValueError: `stage` is not a stage, or `gen_id` cannot be the name of a directory.
    """
    reason = id_fault(gen_id)
    if reason is not None:
        raise ValueError(f"gen_id {gen_id[:60]!r} {reason}")
    return Path(gens_root) / Stage(stage).value / gen_id


def read_directory(directory: Path, stage: Stage, gen_id: str) -> Generation:
    """Read the files of a generation's directory, wherever it lies.

    Raises:
        StoreError: as `read_generation`.
    """
    try:
        fd = os.open(directory, _OPEN | os.O_DIRECTORY)
    except OSError as error:
        if error.errno == errno.ENOENT:
            message = f"there is no generation {directory}"
        else:
            message = f"{directory} cannot be read: {error.strerror}"
        raise StoreError(message, path=str(directory), errno=error.errno) from None
    try:
        # A Path for each file would take as long as to read it.
        texts = {name: _read_text(f"{directory}/{name}", name, fd) for name in GENERATION_FILES}
        metadata = _decode_metadata(texts[METADATA_FILE], f"{directory}/{METADATA_FILE}")
        beside = () if OWN_MARK in metadata else tuple(read_beside(str(directory)))
    finally:
        os.close(fd)
    raw_text = texts[RAW_FILE] or ""
    return Generation(
        stage,
        gen_id,
        texts[PROMPT_FILE],
        raw_text,
        texts[PARSED_FILE],
        metadata,
        beside,
        has_metadata=texts[METADATA_FILE] is not None,
        reasoning_text=texts[REASONING_FILE],
    )


class Metadata:
    """The metadata files of one directory, read with as few system calls as possible: there may be a million.

    What is not there, or is no JSON object, says nothing: `verify` names it.

    Attributes:
        content: ``metadata.json`` as it lies; empty where it cannot be read.
    """

    __slots__ = ("_beside", "_directory", "_record", "content")

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._record: dict[str, Any] | None = None
        self._beside: Sequence[dict[str, Any]] | None = None
        self.content = read_bytes(f"{directory}/{METADATA_FILE}")

    @property
    def is_there(self) -> bool:
        """Whether there is a ``metadata.json``, whatever it says."""
        return bool(self.content) or os.access(f"{self._directory}/{METADATA_FILE}", os.F_OK)

    @property
    def record(self) -> dict[str, Any]:
        """``metadata.json``."""
        if self._record is None:
            self._record = json_object(self.content)
        return self._record

    @property
    def beside(self) -> Sequence[dict[str, Any]]:
        """What another tool's further metadata files say; genworker itself writes none."""
        if self._beside is None:
            self._beside = () if OWN_MARK in self.record else read_beside(self._directory)
        return self._beside

    @property
    def is_cut(self) -> bool:
        """Whether any of them says that the answer was cut off."""
        if _OWN_AND_WHOLE in self.content and self.content.endswith(b"}\n"):
            return False  # known before it is parsed
        if says_cut(self.record):
            return True
        beside = self.beside
        return bool(beside) and any(says_cut(other) for other in beside)

    def facts(self, stage: Stage) -> Facts:
        """All that they say, under the names of today."""
        return facts_of(stage, self.record, self.beside) if self.content else NO_FACTS


def read_beside(directory: str) -> Sequence[dict[str, Any]]:
    """What another tool's further metadata files say; one that cannot be read says nothing."""
    found: Sequence[dict[str, Any]] = ()
    for name in OLDER_METADATA_FILES:
        path = f"{directory}/{name}"
        # Asked for before it is opened: to fail at opening takes many times as long.
        if os.access(path, os.F_OK):
            found = (*found, json_object(read_bytes(path)))
    return found


def json_object(content: bytes) -> dict[str, Any]:
    """A JSON object out of a file; empty where it holds none."""
    try:
        return decode_object(content)
    except ValueError:
        return {}


def decode_object(content: bytes) -> dict[str, Any]:
    """A JSON object out of a file's bytes, also with a BOM, ``NaN`` or numbers past 64 bits.

    Raises:
        ValueError: it is none.
    """
    try:
        record = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            record = json.loads(content.decode("utf-8-sig"))
        except RecursionError:
            raise ValueError("nested too deeply") from None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    return record


def facts_in(directory: str, stage: Stage) -> Facts:
    """What the metadata files of a directory say; nothing where there is none that can be read. Cheap."""
    return Metadata(directory).facts(stage)


def done_metadata(directory: str) -> Metadata | None:
    """The metadata of a directory that is done, as `Generation.is_done` defines it; ``None`` of any other."""
    try:
        # Strings and plain calls: a Path per generation would double the time over a million.
        if os.stat(f"{directory}/{PARSED_FILE}").st_size == 0:  # noqa: PTH116
            return None
    except OSError:
        return None
    found = Metadata(directory)
    return found if found.is_there and not found.is_cut else None


def read_metadata(directory: str) -> Mapping[str, Any]:
    """``metadata.json`` of a directory alone; empty when there is none.

    Raises:
        StoreError: it cannot be read as a JSON object.
    """
    path = f"{directory}/{METADATA_FILE}"
    return _decode_metadata(_read_text(path, path), path)


def read_bytes(path: str) -> bytes:
    """A small file's content, at most `MAX_METADATA_BYTES`; empty where it cannot be read.

    Plain system calls, for those who look into a million files.
    """
    try:
        fd = os.open(path, _OPEN | os.O_NONBLOCK)
    except OSError:
        return b""
    try:
        content = block = os.read(fd, _BLOCK_BYTES)
        while len(block) == _BLOCK_BYTES and len(content) < MAX_METADATA_BYTES:
            block = os.read(fd, _BLOCK_BYTES)
            content += block
    except OSError:
        return b""
    finally:
        os.close(fd)
    return content


def _read_text(path: str, name: str, directory_fd: int | None = None) -> str | None:
    """The text of a file: `name` in the directory that is open as `directory_fd`, `path` for people."""
    try:
        # Without O_NONBLOCK a pipe with this name would wait for a writer for ever.
        fd = os.open(name, _OPEN | os.O_NONBLOCK, dir_fd=directory_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}", path=path, errno=error.errno) from None
    with open(fd, "rb", buffering=0) as stream:  # noqa: PTH123 (a descriptor)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{path} is not a file", path=path)
        if status.st_size > MAX_FILE_BYTES:
            raise StoreError(f"{path} is larger than {MAX_FILE_BYTES} bytes", path=path)
        content = stream.read()
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise StoreError(f"{path} is not UTF-8", path=path) from None


def _decode_metadata(text: str | None, path: str) -> Mapping[str, Any]:
    if text is None:
        return {}
    try:
        return decode_object(text.encode())
    except ValueError:
        raise StoreError(f"{path} is not a JSON object", path=path) from None


def load_generation(gens_root: str | Path, stage: Stage | str, gen_id: str) -> dict[str, Any]:
    """Read one generation as a dictionary, for notebooks.

    Args:
        gens_root: the directory ``gens`` of a data root (`Paths.gens_root`).

    Returns:
        ``stage``, ``gen_id``, ``prompt_text``, ``raw_text`` (``""`` when its file is absent),
        ``parsed_text``, ``reasoning_text``, ``metadata`` and ``parent_gen_id`` (each ``None`` when absent).

    Raises:
        StoreError: as `read_generation`; the message names the path.
        ValueError: as `read_generation`.
    """
    generation = read_generation(gens_root, stage, gen_id)
    return {
        "stage": generation.stage.value,
        "gen_id": generation.gen_id,
        "parent_gen_id": generation.parent_gen_id,
        "prompt_text": generation.prompt_text,
        "raw_text": generation.raw_text,
        "parsed_text": generation.parsed_text,
        "reasoning_text": generation.reasoning_text,
        "metadata": dict(generation.metadata) or None,
    }
