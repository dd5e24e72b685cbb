"""What the live view knows: the index, the journals, and what pages are made of."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.responses import (
    Response,
)

from genworker.core.stages import Stage
from genworker.core.visible import visible
from genworker.errors import GenworkerError
from genworker.paths import METADATA_FILE, PARSED_FILE, PROMPT_FILE, RAW_FILE, Paths
from genworker.reports.prose import prose
from genworker.run.batch_money import open_intents
from genworker.run.now import running
from genworker.store.reading import read_bytes
from genworker.viewer.guard import PAGE_HEADERS
from genworker.viewer.index import BLOCKED, DONE, MISSING, Index
from genworker.viewer.live import Run, Watcher
from genworker.viewer.queries import Filter, Queries

SHOWN_CHARS = 40_000
"""Of one text on a page; the page says how many it leaves off."""
LOOK_EVERY_S = 1.0
FULL_LOOK_EVERY_S = 60.0
"""How often the stage directories are listed, for what no journal tells."""


class Background(threading.Thread):
    """Follows journals and brings the index up to date, as long as the view lasts."""

    def __init__(self, index: Index, watcher: Watcher) -> None:
        super().__init__(name="genworker-view", daemon=True)
        self.index, self.watcher = index, watcher
        self.version = 0
        self._living: set[str] = set()
        self._stop = threading.Event()

    def run(self) -> None:
        """Look until `stop`."""
        last_full = 0.0
        while not self._stop.is_set():
            grown = self.watcher.look()
            living = {run.run_id for run in self.watcher.living()}
            if living != self._living:  # one has ended, or died without a word
                self._living = living
                self.version += 1
            full = time.monotonic() - last_full > FULL_LOOK_EVERY_S
            try:
                if full or grown or not last_full:
                    read = self.index.update(full=full or not last_full)
                    last_full = time.monotonic() if full or not last_full else last_full
                    if read or grown:
                        self.version += 1
                self.index.progress.trouble = None
            except InterruptedError:
                break
            except (GenworkerError, OSError) as error:
                self.index.progress.trouble = str(error)
                self.version += 1
                last_full = time.monotonic()
            self._stop.wait(LOOK_EVERY_S)

    def stop(self) -> None:
        """End soon."""
        self._stop.set()
        self.index.stop()


MakeReport = Callable[[str, Path], None]
"""(cohort, directory): writes ``report.html`` and its pages into a directory."""
ReadMoney = Callable[[str], str]
"""A cohort's money in words."""
ReadCombos = Callable[[], Mapping[str, tuple[tuple[str, ...], str]]]
"""Combo id → (ids and names of its concepts, the names joined for people)."""


class Viewer:
    """What the pages need, for one data root.

    Args:
        make_report: the one that ``genworker report`` uses.

    Attributes:
        is_saving: whether pages are made to be kept: they have nothing then that asks a server.
    """

    def __init__(
        self,
        paths: Paths,
        *,
        cohorts: Sequence[str] | None,
        version: str,
        make_report: MakeReport,
        read_money: ReadMoney,
        read_combos: ReadCombos,
        token: str | None = None,
    ) -> None:
        self.paths = paths
        self.token = token or secrets.token_urlsafe(24)
        self.version = version
        self.is_saving = False
        self.index = Index(paths, cohorts)
        self.watcher = Watcher(paths)
        self.background = Background(self.index, self.watcher)
        self._make_report = make_report
        self._read_money = read_money
        self._combos = read_combos()
        self._reports: dict[str, _Report] = {}
        self._moneys: dict[str, _Money] = {}
        self._templates = Environment(
            loader=PackageLoader("genworker.viewer", "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=_finalize,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    @property
    def root(self) -> str:
        """What every address begins with."""
        return f"/{self.token}/"

    def concepts(self, combo: str | None) -> str:
        """A combo for people: the names of its concepts."""
        if combo is None:
            return ""
        found = self._combos.get(combo)
        return found[1] if found else combo

    @contextlib.contextmanager
    def queries(self, cohort: str) -> Iterator[Queries]:
        """Ask the index about a cohort; raises `KeyError` when it has none of that name."""
        database = self.index.reader()
        try:
            yield Queries(database, cohort, {combo: names for combo, (names, _) in self._combos.items()})
        finally:
            database.close()

    def page(self, template: str, status: int = 200, **values: Any) -> Response:
        """Render a page under the policy that all pages have."""
        text = self.render(template, **values)
        return Response(text, status, media_type="text/html", headers=PAGE_HEADERS)

    def render(self, template: str, **values: Any) -> str:
        """A template's text with what every page needs."""
        common = {
            "root": self.root,
            "cohort": None,
            "here": "",
            "events": "",
            "reload_s": 0,
            "version": self.version,
            "data_root": str(self.paths.data_root),
            "progress": self.index.progress,
            "concepts": self.concepts,
            "saved": self.is_saving,
        }
        return self._templates.get_template(template).render({**common, **values})

    # What is shown

    def cohorts(self) -> list[dict[str, Any]]:
        """Every cohort of the index with its stages."""
        database = self.index.reader()
        try:
            names = [one[0] for one in database.execute("SELECT name FROM cohort ORDER BY name")]
        finally:
            database.close()
        return [
            {"name": name, "stages": self.stages(name), "living": bool(self.watcher.living(name))}
            for name in names
        ]

    def stages(self, cohort: str) -> list[dict[str, Any]]:
        """A bar per stage."""
        with self.queries(cohort) as queries:
            counts = queries.counts()
        return [_bar(stage, found) for stage, found in counts.items() if found]

    def live(self, cohort: str) -> dict[str, Any]:
        """What changes while a run goes on."""
        now = time.time()
        stages = self.stages(cohort)
        missing = sum(part["count"] for stage in stages for part in stage["parts"] if part["word"] == MISSING)
        runs = self.watcher.living(cohort)
        with self.queries(cohort) as queries:
            found = queries.find(Filter(stage="evaluation", state=DONE, sort="-finished"))
        failures = [happened for run in self.watcher.runs(cohort)[:3] for happened in run.failures]
        told = {str(record.get("run_id")): record for record in running(self.paths, cohort)}
        return {
            "stages": stages,
            "missing": missing,
            "runs": [_run_view(run, now, missing, told.get(run.run_id, {})) for run in runs],
            "batches": self._batches(cohort),
            "scores": [row for row in found.rows if row.score is not None or row.choice][:10],
            "failures": sorted(failures, key=lambda one: one.at, reverse=True)[:10],
            "money": self.money(cohort),
        }

    def _batches(self, cohort: str) -> tuple[int, int]:
        """How many rows are out in how many batches, of any run."""
        try:
            intents = open_intents(self.paths, cohort)
        except (GenworkerError, OSError):  # `verify` says what is wrong with them
            return 0, 0
        return sum(intent.count for intent in intents), len(intents)

    def money(self, cohort: str) -> str:
        """A cohort's money in words; it is read in the background, for at most a tenth of the time."""
        held = self._moneys.get(cohort)
        if held is None or (held.version != self.background.version and held.may_begin):
            held = _Money(self.background.version, held.words if held else "")
            self._moneys[cohort] = held
            thread = threading.Thread(target=held.read, args=(lambda: self._read_money(cohort),), daemon=True)
            thread.start()
            thread.join(0.3)  # most are there in a moment
        return held.words

    def report(self, cohort: str) -> _Report:
        """The report of a cohort, made in the background when it is older than the store."""
        held = self._reports.get(cohort)
        stale = held is None or (held.is_done and held.version != self.background.version and held.age_s > 10)
        if stale:
            directory = self.paths.private_dir / "view" / "reports" / quote(cohort, safe="")
            held = _Report(self.background.version, directory, held)
            self._reports[cohort] = held
            held.start(lambda: self._make_report(cohort, directory))
        assert held is not None
        return held

    def texts(self, stage: Stage, gen_id: str) -> list[dict[str, Any]]:
        """The files of a generation as a page shows them."""
        directory = self.paths.generation_dir(stage, gen_id)
        titles = (
            (PARSED_FILE, "Text", not stage.is_scored),
            (RAW_FILE, "The model's whole answer", True),
            ("reasoning.txt", "Reasoning", True),
            (PROMPT_FILE, "Prompt", False),
            (METADATA_FILE, "Metadata", False),
        )
        shown = []
        parsed = None
        for name, title, is_prose in titles:
            text = read_text(f"{directory}/{name}")
            if text is None or (name == RAW_FILE and text == parsed):
                continue
            parsed = text if name == PARSED_FILE else parsed
            shown.append(
                {
                    "name": name.partition(".")[0],
                    "title": title,
                    "shown": text[:SHOWN_CHARS],
                    "left_off": max(0, len(text) - SHOWN_CHARS),
                    "path": f"{directory}/{name}",
                    "is_prose": is_prose,
                    "laid_out": prose(text) if name == PARSED_FILE and is_prose else None,
                }
            )
        return shown

    def aside(self, stage: Stage, gen_id: str) -> list[Path]:
        """Directories of earlier versions of a generation, the newest first."""
        try:
            found = sorted(self.paths.aside_dir(stage, gen_id).iterdir(), reverse=True)
        except OSError:
            return []
        return [path for path in found if path.is_dir() and not path.is_symlink()]


class _Money:
    """What a cohort has cost, as it was known at a moment."""

    def __init__(self, version: int, words: str) -> None:
        self.version, self.words = version, words
        self._next_s = float("inf")

    @property
    def may_begin(self) -> bool:
        """Whether it may be read again."""
        return time.monotonic() >= self._next_s

    def read(self, read: Callable[[], str]) -> None:
        """Read it once."""
        began = time.monotonic()
        try:
            self.words = read()
        except (GenworkerError, OSError) as error:
            self.words = f"What it has cost cannot be read: {error}"
        now = time.monotonic()
        self._next_s = now + max(2.0, 10 * (now - began))


class _Report:
    """A report that is being made, or was.

    Attributes:
        version: of the store when it was begun.
        directory: where ``report.html`` lies.
    """

    def __init__(self, version: int, directory: Path, earlier: _Report | None) -> None:
        self.version, self.directory = version, directory
        self.trouble: str | None = None
        self.is_done = False
        self.has_page: bool = earlier is not None and earlier.has_page
        self._ended = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._ended

    def start(self, make: Callable[[], None]) -> None:
        """Make it in a thread."""

        def work() -> None:
            try:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                make()
                self.has_page = True
            except (GenworkerError, OSError) as error:
                self.trouble = str(error)
            finally:
                self._ended, self.is_done = time.monotonic(), True

        threading.Thread(target=work, name="genworker-view-report", daemon=True).start()


def read_text(path: str) -> str | None:
    """A file of the store as text; ``None`` when it is not there."""
    content = read_bytes(path)
    return content.decode("utf-8", "replace") if content else None


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


_KINDS = {DONE: "done", "unparseable": "unparseable", BLOCKED: "blocked", MISSING: "missing"}


def _bar(stage: str, counts: Mapping[str, int]) -> dict[str, Any]:
    """A bar of a stage: parts from done to missing, and the same in words."""
    total = sum(counts.values())
    order = {DONE: 0, "unparseable": 1, BLOCKED: 8, MISSING: 9}
    parts, at = [], 0.0
    for word, count in sorted(counts.items(), key=lambda item: (order.get(item[0], 5), item[0])):
        width = 100 * count / total
        parts.append(
            {
                "kind": _KINDS.get(word, "failed"),
                "word": word,
                "count": count,
                "x": round(at, 3),
                "width": round(width, 3),
            }
        )
        at += width
    rest = ", ".join(f"{part['count']:,} {part['word']}" for part in parts if part["word"] != DONE)
    words = f"{counts.get(DONE, 0):,}/{total:,} done" + (f", {rest}" if rest else "")
    return {"name": stage, "parts": parts, "words": words}


def _run_view(run: Run, now_s: float, missing: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """A run as its journal tells it, and as it tells of itself where it runs on this machine.

    Args:
        told: see `genworker.run.now.now_record`; empty where there is none. Of a crew the driver's.
    """
    rate = _number(told.get("rate_per_min"), run.rate_per_min(now_s))
    eta_s = _number(told.get("eta_s"), 60 * missing / rate if rate > 0 and missing else 0.0)
    waits: dict[str, tuple[float | None, str]] = {
        lane: (seconds, why) for lane, seconds, why in run.waits(now_s)
    }
    for one in _records(told.get("waiting")):
        left = one.get("seconds")
        waits[str(one.get("lane"))] = None if left is None else _number(left, 0.0), str(one.get("why"))
    stopped = dict(run.stopped)
    for one in _records(told.get("stopped")):
        stopped[str(one.get("lane"))] = str(one.get("why"))
    return {
        "run_id": run.run_id,
        "pid": run.pid,
        "calls": run.calls,
        "answers": run.answers,
        "in_flight": int(_number(told.get("in_flight"), run.in_flight)),
        "rate": rate,
        "eta": _duration(eta_s) if eta_s > 0 else "",
        "is_stopping": told.get("stopping") is True,
        "crew": str(told.get("crew_words") or ""),
        "waits": [(lane, seconds, why) for lane, (seconds, why) in sorted(waits.items())],
        "stopped": stopped,
    }


def _number(value: object, otherwise: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return float(otherwise)


def _records(value: object) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
