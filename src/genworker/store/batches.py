"""What is known of provider batches, on disk before anything is sent: intents, items, log, results.

``.genworker/batches/<id>/`` appears whole, by one rename, before the provider hears of it, and from then on
holds its rows against every worker and cohort, until ``settled.json`` is in it. So a batch can be found,
finished and paid for by whoever opens the data root next. Nothing here asks a provider, and nothing decides.

==================  ============================================================================
``intent.json``     what was to be asked: endpoint, model, price, how many rows, for which cohort
``items.jsonl``     a row each: what it is, what it may cost, its prompt, what metadata will say
``requests.jsonl``  the bytes that are sent, a line for each item
``log.jsonl``       what has happened, a line each (`genworker.core.batches.Line`), each synced
``lock``            held by the process that tends the batch; the kernel drops it when that one ends
``*.results``       what came back, whole; ``*.part`` while it comes
``settled.json``    at the end, alone: what it has cost
==================  ============================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final

import orjson

from genworker.core.batches import (
    BadLogError,
    Line,
    Story,
    custom_id,
    price_from_json,
    price_to_json,
    read_log,
)
from genworker.core.budget import NOTHING, Charge, Price
from genworker.core.ids import id_fault
from genworker.core.stages import Stage
from genworker.errors import StoreError
from genworker.paths import Paths
from genworker.store.answers import json_line
from genworker.store.durable import cannot_write, make_directories, sync_path, write_all
from genworker.store.lock import FileLock, holder_facts

INTENT, ITEMS, REQUESTS, LOG = "intent.json", "items.jsonl", "requests.jsonl", "log.jsonl"
SETTLED, LOCK = "settled.json", "lock"
FORMING: Final = ".forming-"
FRESH_NS: Final = 2_000_000_000
"""A directory that was changed so lately is looked at again: its time stamp may not show another change."""


class UnreadableBatchError(StoreError):
    """A batch's files do not say what they have to."""


@dataclass(frozen=True, slots=True)
class Intent:
    """What is to be asked in one batch.

    Attributes:
        batch: the directory's name: when it was formed, and the nonce.
        nonce: 32 hex digits, drawn for this batch alone.
        cohort_id, run_id: whose run formed it, and whose account it is on.
        endpoint: the section's name in the settings.
        url: the endpoint's address; ``None`` for one without.
        model_id: the model's id in the catalogue; ``None`` where it stands in for another.
        price: what a batch costs there; ``None`` when nobody knows it.
        is_free_when_lapsed: whether the provider says that what expired or was cancelled costs nothing.
        count: rows.
        digest: SHA-256 of the requests, in hex.
        key_tag: tells whether two keys are the same, and nothing else about them.
        worsts: what the rows of each stage may cost at most.
        formed_at: in UTC, ISO 8601.
    """

    batch: str
    nonce: str
    cohort_id: str
    run_id: str
    endpoint: str
    url: str | None
    kind: str
    model_id: str
    model: str
    price: Price | None
    is_free_when_lapsed: bool
    count: int
    size_bytes: int
    digest: str
    key_tag: str
    worsts: Mapping[Stage, Charge]
    formed_at: str

    @property
    def worst(self) -> Charge:
        """What all rows may cost at most."""
        whole = sum(self.worsts.values(), start=NOTHING)
        return replace(whole, priced=self.price is not None)

    def to_json(self) -> dict[str, Any]:
        """The record in ``intent.json``."""
        record = {name: getattr(self, name) for name in Intent.__slots__ if name not in ("price", "worsts")}
        worsts = {stage.value: charge_to_json(charge) for stage, charge in self.worsts.items()}
        return {**record, "price": price_to_json(self.price), "worsts": worsts}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Intent:
        """The reverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError, ArithmeticError: it is none.
        """
        values = {name: record[name] for name in Intent.__slots__ if name not in ("price", "worsts")}
        wrong = [
            name
            for name, value in values.items()
            if not isinstance(value, _INTENT_TYPES.get(name, str)) and not (name == "url" and value is None)
        ]
        if wrong:
            raise ValueError(f"{wrong[0]} is {values[wrong[0]]!r}")
        worsts = {Stage(name): charge_from_json(charge) for name, charge in record["worsts"].items()}
        return cls(**values, price=price_from_json(record["price"]), worsts=worsts)


_INTENT_TYPES: dict[str, type] = {"count": int, "size_bytes": int, "is_free_when_lapsed": bool}


@dataclass(frozen=True, slots=True)
class Item:
    """One row of a batch.

    Attributes:
        number: from 0, its place in the batch.
        replace: whether its answer replaces what stands in the store.
        worst: what it may cost at most.
        facts: what the metadata will say, as far as it is known.
        failures, lapses: earlier batches that brought it nothing: by an outage, or by not running it.
    """

    number: int
    stage: Stage
    gen_id: str
    replace: bool
    worst: Charge
    prompt: str
    facts: Mapping[str, Any]
    failures: int = 0
    lapses: int = 0

    def to_json(self) -> dict[str, Any]:
        """The line in ``items.jsonl``."""
        return {
            "number": self.number,
            "stage": self.stage.value,
            "gen_id": self.gen_id,
            "replace": self.replace,
            "worst": charge_to_json(self.worst),
            "failures": self.failures,
            "lapses": self.lapses,
            "prompt": self.prompt,
            "facts": dict(self.facts),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Item:
        """The reverse of `to_json`.

        Raises:
            KeyError, TypeError, ValueError, ArithmeticError: it is none.
        """
        gen_id, prompt, facts = record["gen_id"], record["prompt"], record["facts"]
        if not isinstance(gen_id, str) or not isinstance(prompt, str) or not isinstance(facts, dict):
            raise TypeError("gen_id, prompt or facts")
        if (fault := id_fault(gen_id)) is not None:
            raise ValueError(fault)
        return cls(
            int(record["number"]),
            Stage(record["stage"]),
            gen_id,
            bool(record["replace"]),
            charge_from_json(record["worst"]),
            prompt,
            facts,
            int(record["failures"]),
            int(record["lapses"]),
        )


def charge_to_json(charge: Charge) -> dict[str, Any]:
    """A charge for a file; money as exact text, or nothing where there is no price."""
    usd = format(charge.usd, "f") if charge.priced else None
    return {"usd": usd, "calls": charge.calls, "tokens": charge.tokens}


def charge_from_json(record: Mapping[str, Any]) -> Charge:
    """The reverse of `charge_to_json`.

    Raises:
        KeyError, TypeError, ValueError, ArithmeticError: it is none.
    """
    usd = record["usd"]
    calls, tokens = int(record["calls"]), int(record["tokens"])
    return (
        Charge(calls=calls, tokens=tokens, priced=False)
        if usd is None
        else Charge(Decimal(usd), calls, tokens)
    )


def key_tag(secret: str | None) -> str:
    """Eight hex digits that are equal for equal keys; too few to try keys on."""
    digest = hashlib.pbkdf2_hmac("sha256", (secret or "").encode(), b"genworker batches", 50_000)
    return digest[:4].hex()


def batch_fault(name: str) -> str | None:
    """Why a text cannot be the name of a batch; ``None`` when it can."""
    return (
        None
        if name and name.replace("-", "").isalnum() and name.isascii() and len(name) <= 80
        else "no batch"
    )


class Forming:
    """A batch that is being filled. Nobody else sees it; when its process dies it is swept away.

    Attributes:
        rows: items so far.
        size_bytes: of the requests.
        worsts: what those of each stage may cost at most.
    """

    def __init__(self, shelf: Shelf, number: int) -> None:
        self.nonce = secrets.token_hex(16)
        self.formed = datetime.now(UTC)
        self._shelf = shelf
        self._place = shelf.root / f"{FORMING}{shelf.run_id}-{number}"
        make_directories(shelf.root, shelf.dir_mode)
        os.mkdir(self._place, shelf.dir_mode)  # noqa: PTH102
        self._lock = FileLock(self._place / LOCK, shelf.file_mode)
        if not self._lock.acquire(holder_facts(shelf.run_id)):
            raise OSError(f"{self._lock.path} is locked")
        self._items = self._open(ITEMS)
        self._requests = self._open(REQUESTS)
        self._ends: list[tuple[int, int, Stage, Charge]] = []
        self.worsts: dict[Stage, Charge] = {}

    def _open(self, name: str) -> IO[bytes]:
        return open(
            self._place / name, "xb", opener=lambda path, flags: os.open(path, flags, self._shelf.file_mode)
        )

    @property
    def rows(self) -> int:
        """Items so far."""
        return len(self._ends)

    @property
    def size_bytes(self) -> int:
        """Of the requests so far."""
        return self._ends[-1][1] if self._ends else 0

    @property
    def next_id(self) -> str:
        """The name of the next request."""
        return custom_id(self.nonce, self.rows)

    def add(self, item: Item, request: bytes) -> None:
        """Append a row; its bytes reach the disk at the latest with `publish`.

        Raises:
            OSError: the disk refuses.
        """
        items_end, requests_end = (self._ends[-1][:2]) if self._ends else (0, 0)
        line = json_line(item.to_json())
        try:
            self._items.write(line)
            self._requests.write(request + b"\n")
        except OSError:
            self._cut(items_end, requests_end)
            raise
        ends = (items_end + len(line), requests_end + len(request) + 1)
        self._ends.append((*ends, item.stage, item.worst))
        self.worsts[item.stage] = self.worsts.get(item.stage, NOTHING) + item.worst

    def keep(self, rows: int) -> None:
        """Drop the last items, down to so many."""
        for _, _, stage, worst in self._ends[rows:]:
            self.worsts[stage] -= worst
        del self._ends[rows:]
        self._cut(*(self._ends[-1][:2] if self._ends else (0, 0)))

    def _cut(self, items_end: int, requests_end: int) -> None:
        for stream, end in ((self._items, items_end), (self._requests, requests_end)):
            with contextlib.suppress(OSError):
                stream.flush()
            stream.truncate(end)
            stream.seek(end)

    def publish(self, facts: Mapping[str, Any]) -> OpenBatch:
        """Put it in place, whole and synced: from here on it holds its rows. It is locked by this process.

        Args:
            facts: what `Intent` has besides what is known here.

        Raises:
            OSError: the disk refuses; nothing is in place.
        """
        shelf = self._shelf
        digest = hashlib.sha256()
        for stream in (self._items, self._requests):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        with open(self._place / REQUESTS, "rb") as stream:  # noqa: PTH123
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        batch = f"{self.formed:%Y%m%dT%H%M%SZ}-{self.nonce}"
        intent = Intent(
            batch=batch,
            nonce=self.nonce,
            run_id=shelf.run_id,
            count=self.rows,
            size_bytes=self.size_bytes,
            digest=digest.hexdigest(),
            worsts={stage: worst for stage, worst in self.worsts.items() if worst.calls},
            formed_at=self.formed.isoformat(timespec="milliseconds"),
            **facts,
        )
        _write(self._place / INTENT, orjson.dumps(intent.to_json()), shelf.file_mode)
        _write(self._place / LOG, b"", shelf.file_mode)
        sync_path(self._place)
        place = shelf.root / batch
        os.rename(self._place, place)  # noqa: PTH104
        self._lock.path = place / LOCK
        sync_path(shelf.root)
        return OpenBatch(shelf, place, intent, Story(), self._lock)

    def drop(self) -> None:
        """Nothing was sent: forget it."""
        for stream in (self._items, self._requests):
            with contextlib.suppress(OSError):
                stream.close()
        shutil.rmtree(self._place, ignore_errors=True)
        self._lock.release()


class OpenBatch:
    """A batch that is not settled, held by this process's lock.

    Attributes:
        story: what its log says.
    """

    def __init__(self, shelf: Shelf, place: Path, intent: Intent, story: Story, lock: FileLock) -> None:
        self.intent = intent
        self.story = story
        self.place = place
        self._shelf = shelf
        self._lock = lock
        self._lines: list[dict[str, Any]] = []
        self._offsets: array[int] | None = None

    @property
    def requests_path(self) -> Path:
        """The bytes that are sent, a line for each row."""
        return self.place / REQUESTS

    def note(self, line: Line, at_s: float | None = None, **facts: Any) -> Story:
        """Write a line into the log, synced when this returns, and fold it.

        Raises:
            StoreError: the disk refuses; what the line announces must not be done.
        """
        record = {"line": line.value, "at_s": time.time() if at_s is None else at_s, **facts}
        path = self.place / LOG
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                size = os.fstat(fd).st_size
                content = json_line(record)
                if os.write(fd, content) != len(content):
                    os.ftruncate(fd, size)
                    raise OSError(28, "No space left on device", str(path))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise cannot_write(error, path) from error
        self._lines = [*_read_lines(path)]
        self.story = read_log(self._lines)
        return self.story

    def items(self) -> Iterator[Item]:
        """The rows, in their order.

        Raises:
            UnreadableBatchError: a line is torn or foreign.
        """
        with _opened(self.place / ITEMS) as stream:
            for number, line in enumerate(stream):
                yield self._item(line, number)

    def item(self, number: int) -> Item:
        """One row.

        Raises:
            UnreadableBatchError: its line is torn or foreign.
        """
        with _opened(self.place / ITEMS) as stream:
            if self._offsets is None:
                self._offsets = array("q")
                at = 0
                for line in stream:
                    self._offsets.append(at)
                    at += len(line)
            stream.seek(self._offsets[number])
            return self._item(stream.readline(), number)

    def _item(self, line: bytes, number: int) -> Item:
        try:
            item = Item.from_json(orjson.loads(line))
            if item.number != number:
                raise ValueError(f"it is numbered {item.number}")
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            path = self.place / ITEMS
            raise UnreadableBatchError(
                f"{path}, line {number + 1}, cannot be read: {error}", path=str(path)
            ) from error
        return item

    def result_names(self) -> list[str]:
        """The files of results that are whole."""
        return sorted(path.name for path in self.place.glob("*.results"))

    def count_lines(self) -> int:
        """Lines of all results that have been fetched."""
        return sum(1 for name in self.result_names() for _ in self.result_lines(name))

    def drop_results(self) -> None:
        """Forget what was fetched, so that it is fetched again."""
        for name in self.result_names():
            (self.place / name).unlink()

    def part(self, name: str) -> IO[bytes]:
        """A file to write results into, from its beginning; `keep_part` makes it whole."""
        return open(
            self.place / f"{name}.part",
            "wb",
            opener=lambda path, flags: os.open(path, flags | os.O_NOFOLLOW, self._shelf.file_mode),
        )

    def keep_part(self, name: str, stream: IO[bytes]) -> None:
        """Results have come whole: sync them, and give them their name."""
        stream.flush()
        os.fsync(stream.fileno())
        stream.close()
        os.replace(self.place / f"{name}.part", self.place / f"{name}.results")  # noqa: PTH105
        sync_path(self.place)

    def result_lines(self, name: str) -> Iterator[bytes]:
        """The lines of a results file that are not empty; only LF ends a line."""
        with _opened(self.place / name) as stream:
            for line in stream:
                if line.strip():
                    yield line

    def set_aside(self, lines: Sequence[bytes], name: str) -> Path:
        """Keep what belongs to no row; returns the file."""
        path = self._shelf.root / "aside" / f"{self.intent.batch}-{name}.jsonl"
        make_directories(path.parent, self._shelf.dir_mode)
        _write(
            path,
            b"".join(line if line.endswith(b"\n") else line + b"\n" for line in lines),
            self._shelf.file_mode,
        )
        return path

    def settle(self, record: Mapping[str, Any]) -> None:
        """Close it: the record stays, and everything else goes. Its rows are free from here on.

        Raises:
            StoreError: the disk refuses; it stays open.
        """
        try:
            _write(self.place / SETTLED, json_line(record), self._shelf.file_mode)
            sync_path(self.place)
        except OSError as error:
            raise cannot_write(error, self.place) from error
        _drop_bodies(self.place)
        self._lock.release(remove=True)

    def release(self) -> None:
        """Let somebody else tend it."""
        self._lock.release()


class Shelf:
    """The batches of one data root.

    Args:
        run_id: names what this process forms.
    """

    def __init__(self, paths: Paths, run_id: str, *, group_permissions: bool = False) -> None:
        self.paths = paths
        self.root = paths.batches_dir
        self.run_id = run_id
        self.dir_mode = 0o770 if group_permissions else 0o700
        self.file_mode = 0o660 if group_permissions else 0o600
        self._formed = 0
        self._settled: set[str] = set()
        self._stamp_ns = 0
        self._open: list[str] = []

    def form(self) -> Forming:
        """Begin a batch.

        Raises:
            OSError: the disk refuses.
        """
        self._formed += 1
        return Forming(self, self._formed)

    def open_batches(self) -> list[str]:
        """The names of those that are not settled, oldest first.

        What another process has put in place before this call is seen: the caller relies on it between a
        claim and a payment.

        Raises:
            StoreError: the directory cannot be read.
        """
        try:
            stamp_ns = self.root.stat().st_mtime_ns
            if stamp_ns == self._stamp_ns and time.time_ns() - stamp_ns > FRESH_NS and not self._open:
                return []
            names = os.listdir(self.root)  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as error:
            raise cannot_write(error, self.root) from error
        found = []
        for name in sorted(names):
            if (
                name in self._settled
                or name.startswith(".")
                or batch_fault(name) is not None
                or name == "aside"
            ):
                continue
            if (self.root / name / SETTLED).exists():
                self._settled.add(name)
            else:
                found.append(name)
        self._stamp_ns, self._open = stamp_ns, found
        return found

    def peek(self, batch: str) -> tuple[Intent, Story]:
        """What a batch's files say, whoever tends it.

        Raises:
            UnreadableBatchError: they cannot be read.
        """
        place = self.root / batch
        try:
            intent = Intent.from_json(orjson.loads((place / INTENT).read_bytes()))
            return intent, read_log(_read_lines(place / LOG))
        except (OSError, KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise UnreadableBatchError(f"{place} cannot be read: {error}", path=str(place)) from error

    def take(self, batch: str) -> OpenBatch | None:
        """Tend a batch; ``None`` when another process does, or when it is settled.

        Raises:
            UnreadableBatchError: its files cannot be read.
            StoreError: it cannot be locked.
        """
        place = self.root / batch
        lock = FileLock(place / LOCK, self.file_mode)
        if not lock.acquire(holder_facts(self.run_id)):
            return None
        try:
            if (place / SETTLED).exists():
                lock.release(remove=True)
                return None
            intent, _ = self.peek(batch)
            _cut_torn_line(place / LOG)
            story = read_log(_read_lines(place / LOG))
            for part in place.glob("*.part"):
                part.unlink()
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError):
                raise cannot_write(error, place) from error
            raise
        return OpenBatch(self, place, intent, story, lock)

    def rows(self, batch: str) -> Iterator[tuple[Stage, str]]:
        """The generations that a batch holds.

        Raises:
            UnreadableBatchError: they cannot be read.
        """
        place = self.root / batch
        intent, story = self.peek(batch)
        looked_at = OpenBatch(self, place, intent, story, FileLock(place / LOCK))
        for item in looked_at.items():
            yield item.stage, item.gen_id

    def holder(self, batch: str) -> dict[str, Any]:
        """Who tends a batch, or did so last."""
        return FileLock(self.root / batch / LOCK).holder()

    def settled(self) -> Iterator[dict[str, Any]]:
        """The records of batches that are closed."""
        try:
            names = sorted(os.listdir(self.root))  # noqa: PTH208
        except OSError:
            return
        for name in names:
            if name.startswith(".") or name == "aside":
                continue
            try:
                record = orjson.loads((self.root / name / SETTLED).read_bytes())
            except (OSError, orjson.JSONDecodeError):
                continue
            if isinstance(record, dict):
                yield record

    def sweep(self) -> int:
        """Remove what processes that have died were forming: nothing of it was sent; returns how many.

        Also what they had still to remove of batches that they closed.
        """
        removed = 0
        for path in self.root.glob(f"*/{LOCK}"):
            if (path.parent / SETTLED).exists():
                _drop_bodies(path.parent)
                lock = FileLock(path, self.file_mode)
                if lock.acquire():
                    lock.release(remove=True)
        for place in self.root.glob(f"{FORMING}*"):
            lock = FileLock(place / LOCK, self.file_mode)
            with contextlib.suppress(StoreError):
                if lock.path.exists() and lock.acquire():  # without the file it is being made this moment
                    shutil.rmtree(place, ignore_errors=True)
                    lock.release()
                    removed += 1
        return removed


def _drop_bodies(place: Path) -> None:
    """Remove everything of a closed batch but its record and its lock, which shows that more is there."""
    for path in list(place.iterdir()):
        if path.name not in (SETTLED, LOCK):
            with contextlib.suppress(OSError):
                path.unlink()


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise UnreadableBatchError(f"{path} cannot be read: {error.strerror}", path=str(path)) from error


def _write(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole and synced, by a rename; the caller syncs its directory."""
    part = path.with_name(f"{path.name}.new")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        write_all(fd, content)
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(part, path)  # noqa: PTH105


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a log. A last one without its end was never synced: what it announces was not done.

    Raises:
        BadLogError: a line is not a JSON object.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1]):
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise BadLogError(f"{path}, line {number + 1}: {error}") from error
        if not isinstance(record, dict):
            raise BadLogError(f"{path}, line {number + 1}: not a JSON object")
        yield record


def _cut_torn_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.ftruncate(fd, whole)
            os.fsync(fd)
        finally:
            os.close(fd)
