"""Shows a run while it lasts: a display that redraws itself, or a line now and then."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from genworker.cli.app import use_colour, write_line
from genworker.core.controller import Belief
from genworker.core.events import Event
from genworker.core.lane import Wait
from genworker.core.money import money_text
from genworker.core.progress import StageProgress
from genworker.core.stages import STAGES
from genworker.core.visible import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from genworker.run.engine import RunInProgress
    from genworker.run.tender import Held

REDRAW_S = 0.25
LINE_EVERY_S = 30.0
FIRST_LINE_S = 1.0
LOOK_EVERY_S = 1.0
WORTH_TELLING_S = 5.0
"""A lane that has waited for so long is told in a line of its own."""
WAITS_SHOWN = 3
BAR = 28
LIMITS_SHOWN = 4
"""Lanes whose limits are shown: the display must fit a small terminal."""

BATCHES_SHOWN = 4
_SHOWN = {
    "failed": ("stage", "gen_id", "kind", "error"),
    "lane_stopped": ("lane", "error"),
    "stopped": ("stage", "gen_id", "error"),
    "interrupted": ("signal", "deadline_s"),
    "interrupted_again": ("signal",),
    "store_refused": ("stage", "gen_id", "error", "pause_s"),
    "answer_not_stored": ("stage", "gen_id", "error"),
    "taken_elsewhere": ("stage", "gen_id"),
    "locked": ("cohort", "holder", "then"),
    "warning": ("what",),
    "worker_lost": ("slot", "worker", "why"),
    "batch_trouble": ("batch", "error"),
}
"""Events that a person wants to see, and what of them."""
_SHOWN_VERBOSE = {
    **_SHOWN,
    "retry": ("stage", "gen_id", "attempt", "kind", "error", "pause_s"),
    "salvaged": ("stage", "gen_id", "what"),
    "batch_created": ("batch", "batch_id"),
    "batch_settled": ("batch", "status", "answered", "failed", "lapsed", "missing"),
    "committed": ("stage", "gen_id", "failure", "reason"),
}


def _visible_values(_logger: Any, _method: str, event: Any) -> Any:
    return {
        key: visible(value, one_line=True, limit=300) if isinstance(value, str) else value
        for key, value in event.items()
        if value is not None
    }


class Display:
    """Lines on stderr: one per failure, one per lane that waits, and one on the whole every half minute."""

    def __init__(self, cohort_id: str, *, quiet: bool = False, verbose: bool = False) -> None:
        self._cohort_id = cohort_id
        self._quiet = quiet
        self._shown = _SHOWN_VERBOSE if verbose else _SHOWN
        self._run: RunInProgress | None = None
        self._task: asyncio.Task[None] | None = None

    @cached_property
    def _log(self) -> Any:
        """The logger of lines; made for the first one, since a tenth of a second goes into its import."""
        import structlog

        return structlog.wrap_logger(
            structlog.WriteLogger(_Lines(self._write_line)),  # type: ignore[arg-type]
            wrapper_class=structlog.BoundLogger,
            processors=[
                structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False, key="time"),
                _visible_values,
                structlog.processors.LogfmtRenderer(
                    key_order=["time", "event", "run"], drop_missing=True, bool_as_flag=False
                ),
            ],
        )

    def _write_line(self, line: str) -> None:
        write_line(line)

    def hear(self, event: Event) -> None:
        """A journal event."""
        shown = self._shown.get(event.word)
        if shown is None or (self._quiet and event.word != "lane_stopped"):
            return
        facts = event.to_json()
        self._log.info(event.word, **{name: facts[name] for name in shown if facts.get(name) is not None})

    def watch(self, run: RunInProgress) -> None:
        """The run has begun; called from its event loop."""
        self._run = run
        if not self._quiet:
            self._task = asyncio.get_running_loop().create_task(self._tick())

    def begin(self) -> None:
        """Say at once that something goes on: the plan of a large cohort takes a while."""
        if not self._quiet:
            self._log.info("begin", run=self._cohort_id)

    async def _tick(self) -> None:
        run = self._run
        assert run is not None
        told: set[str] = set()
        next_s = run.clock() + FIRST_LINE_S
        while True:
            await asyncio.sleep(min(LOOK_EVERY_S, FIRST_LINE_S))
            now = run.clock()
            waits = {wait.lane: wait for wait in run.activity.waits(now)}
            told &= waits.keys()
            for name, wait in waits.items():
                if wait.for_s >= WORTH_TELLING_S and name not in told:
                    told.add(name)
                    self._log.info("waiting", what=wait_words(wait))
            if now >= next_s:
                next_s = now + LINE_EVERY_S
                self._log.info("progress", run=self._cohort_id, **summary_facts(run))

    def close(self) -> None:
        """The run has ended; its event loop may be gone."""


class LiveDisplay(Display):
    """Draws the run's state in place, and lets lines scroll by above it."""

    def __init__(self, cohort_id: str, *, verbose: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(cohort_id, verbose=verbose)
        self._console: Console = Console(
            stderr=True, highlight=False, markup=False, emoji=False, no_color=not use_colour()
        )
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._started = False

    def _write_line(self, line: str) -> None:
        from rich.text import Text

        with contextlib.suppress(OSError):  # its terminal has gone
            self._console.print(Text(line))

    def begin(self) -> None:
        """The display shows itself."""

    def watch(self, run: RunInProgress) -> None:
        """The run has begun; called from its event loop."""
        self._live.start()
        self._started = True
        super().watch(run)

    async def _tick(self) -> None:
        while True:
            self._live.update(self._draw(), refresh=True)
            await asyncio.sleep(REDRAW_S)

    def close(self) -> None:
        """Take the display away; the summary follows."""
        if self._started:
            with contextlib.suppress(OSError):  # its terminal has gone
                self._live.stop()

    def _draw(self) -> RenderableType:
        from rich.text import Text

        run = self._run
        assert run is not None
        text = Text(no_wrap=True, overflow="ellipsis")
        text.append("genworker run", style="bold")
        text.append(f"  {visible(self._cohort_id)}")
        if run.progress.resumed:
            text.append(f"   resumed: {run.progress.resumed} already in store", style="dim")
        text.append("\n")
        widest = max(len(str(stage.planned)) for stage in run.progress.stages.values())
        for stage in STAGES:
            progress = run.progress.stages[stage]
            if progress.planned:
                text.append(f"{stage.value:<12} ")
                for glyphs, style in bar_parts(progress):
                    text.append(glyphs, style=style)
                text.append(f"  {progress.done:>{widest}}/{progress.planned:<{widest}}")
                for count, word, style in trouble(progress):
                    text.append(f"  {count} {word}", style=style)
                text.append("\n")
        for line in status_lines(run):
            text.append(f"{line}\n")
        ending = "Stopping: waiting for answers in flight. Ctrl-C again abandons them."
        calm = "Ctrl-C stops cleanly: answers in flight are saved."
        text.append(ending if run.activity.draining else calm, style="dim")
        return text


class _Lines:
    """A file that hands whole lines on."""

    def __init__(self, write_line: Any) -> None:
        self._write_line = write_line

    def write(self, text: str) -> None:
        line = text.rstrip("\n")
        if line:
            self._write_line(line)

    def flush(self) -> None:
        pass


def trouble(progress: StageProgress) -> list[tuple[int, str, str]]:
    """(count, word, style) of what went wrong in a stage, in the one vocabulary."""
    found = (
        (progress.unparseable, "unparseable", "yellow"),
        (progress.failed, "failed", "red"),
        (progress.blocked, "blocked", "magenta"),
        (progress.stopped, "stopped", "magenta"),
    )
    return [item for item in found if item[0]]


def bar_parts(progress: StageProgress) -> list[tuple[str, str]]:
    """A stage's bar as (glyphs, style): each kind of trouble has a glyph of its own, not only a colour."""
    counts = (
        (progress.done, "█", "green"),
        (progress.unparseable, "▒", "yellow"),
        (progress.failed, "×", "red"),
        (progress.blocked + progress.stopped, "-", "magenta"),
    )
    parts = []
    used = 0
    for count, glyph, style in counts:
        cells = min(BAR - used, (max(1, count * BAR // progress.planned)) if count else 0)
        used += cells
        parts.append((glyph * cells, style))
    parts.append(("·" * (BAR - used), "dim"))
    return parts


def wait_words(wait: Wait) -> str:
    """Which lane waits, for how long, and why."""
    so_far = f" for {duration(wait.for_s)}" if wait.for_s >= 1 else ""
    asks = "it is asked now" if wait.left_s is None else f"asked again in {duration(wait.left_s)}"
    why = f": {visible(wait.why, limit=160, one_line=True)}" if wait.why else ""
    return f"{visible(wait.lane)} waits{so_far}, {asks}{why}"


def belief_words(belief: Belief) -> str:
    """What a lane believes of its endpoint, in words; empty where it knows of no limit."""
    words = []
    if belief.at_once is not None:
        words.append(f"{belief.at_once} at once")
    if belief.per_min is not None:
        words.append(f"{belief.per_min:,.0f} a minute")
    if belief.slow_at_once is not None:
        words.append(f"slows down past {belief.slow_at_once} at once")
    if belief.chance is not None:
        words.append(f"refuses {100 * belief.chance:.0f} % by chance")
    return " · ".join(words)


def status_lines(run: RunInProgress) -> list[str]:
    """What the endpoints are doing."""
    now = run.clock()
    rate = run.progress.rate_per_min(now, run.started_s)
    parts = [f"{rate:.0f} answers/min", f"{run.activity.in_flight} in flight"]
    if run.crew is not None:
        parts.insert(1, run.crew())
    eta = run.progress.eta_s(rate)
    if eta is not None:
        parts.append(f"eta {duration(eta)}")
    lines = ["rate  " + " · ".join(parts)]
    if run.tender is not None:
        lines.extend(batch_lines(run.tender.batches))
    lines += [f"wait  {wait_words(wait)}" for wait in run.activity.waits(now)[:WAITS_SHOWN]]
    believed = [(name, belief_words(belief)) for name, belief in run.activity.beliefs()]
    lines += [f"limit {visible(name)}: {words}" for name, words in believed if words][:LIMITS_SHOWN]
    progress = run.progress
    money = progress.money.total
    if money.most_usd or money.unpriced or progress.cap_usd is not None:
        cap = f" (cap ${progress.cap_usd})" if progress.cap_usd is not None else ""
        earlier = " in all runs" if progress.earlier.total.calls else ""
        lines.append(f"cost  {visible(money_text(money), limit=160)}{earlier}{cap}")
    tokens = run.progress
    if tokens.input_tokens or tokens.output_tokens:
        lines.append(f"used  {tokens.input_tokens:,} tokens in, {tokens.output_tokens:,} out")
    lines.extend(
        f"stop  {visible(name)}: {visible(why, limit=100)}" for name, why in run.activity.stopped_lanes()
    )
    return lines


def batch_lines(batches: Sequence[Held]) -> list[str]:
    """The batches that are out: rows, state, age, and how long such batches usually took here."""
    lines = []
    for held in batches[:BATCHES_SHOWN]:
        usual = "" if held.usual_s is None else f", usually {duration(held.usual_s)}"
        age = f"{duration(held.age_s)}{usual}"
        lines.append(f"batch {held.intent.count} rows of {visible(held.endpoint.name)}, {held.word}, {age}")
    if len(batches) > BATCHES_SHOWN:
        more = batches[BATCHES_SHOWN:]
        lines.append(f"batch {sum(held.intent.count for held in more)} rows in {len(more)} more")
    return lines


def summary_facts(run: RunInProgress) -> dict[str, Any]:
    """The whole state in one line's facts."""
    progress = run.progress
    now = run.clock()
    rate = progress.rate_per_min(now, run.started_s)
    eta = progress.eta_s(rate)
    facts: dict[str, Any] = {
        stage.value: f"{progress.stages[stage].done}/{progress.stages[stage].planned}"
        for stage in STAGES
        if progress.stages[stage].planned
    }
    facts["failed"] = sum(stage.failed for stage in progress.stages.values())
    facts["unparseable"] = sum(stage.unparseable for stage in progress.stages.values())
    facts["blocked"] = sum(stage.blocked + stage.stopped for stage in progress.stages.values())
    facts["in_flight"] = run.activity.in_flight
    if run.tender is not None and (batches := run.tender.batches):
        facts["batches"] = len(batches)
        facts["in_batches"] = sum(held.intent.count for held in batches)
    if run.crew is not None:
        facts["crew"] = run.crew()
    if waits := run.activity.waits(now)[:WAITS_SHOWN]:
        facts["waits"] = "; ".join(map(wait_words, waits))
    money = progress.money.total
    facts["spent_usd"] = f"{money.spent_usd:.2f}"
    if money.possible_usd:
        facts["possible_usd"] = f"{money.possible_usd:.2f}"
    if money.unpriced:
        facts["unpriced"] = ",".join(sorted(money.unpriced))
    facts["rate"] = f"{rate:.0f}/min"
    if eta is not None:
        facts["eta"] = duration(eta)
    return facts


def duration(seconds: float) -> str:
    """Seconds as people say them: ``12 s``, ``3 m 20 s``, ``2 h 5 m``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} m"


def wall_clock() -> float:
    """Seconds of a clock that only goes forward."""
    return time.monotonic()
