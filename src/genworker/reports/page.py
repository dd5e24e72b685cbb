"""``report.html`` and the pages that it links to: lays out what is shown, renders it, writes it.

Every page is one file: no script, no outside request, a policy that allows its own style sheet and nothing
else. All that comes from a store goes through `visible` and the template engine's escaping, at one place.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from genworker.core.membership import MembershipRow
from genworker.core.visible import visible
from genworker.reports.failures import failure_groups
from genworker.reports.files import open_whole, replaced_directory
from genworker.reports.lineage import EssayScores, Lineages, LineageView, PromptView, essays_of, ranked
from genworker.reports.overview import HeatCell, heat_cell, mean_view, money_view, stage_views, varying_fields
from genworker.reports.reading import Reading
from genworker.reports.replicates import replicate_views
from genworker.reports.scores import Axis, Outcome, PivotKey, Source
from genworker.reports.statistics import spread
from genworker.reports.tables import PivotRow, Table, Tally, tallies

HEAT_ROWS = 100
"""Rows of scores on one page."""
BEST = 5
"""Best essays that are shown first, and as many worst ones."""
MAIN_ROWS, PART_ROWS = 500, 100
"""Generations whose texts ``report.html`` and each further page hold."""
PAGE_BYTES = 3_000_000
"""A page of texts that is larger than this is not filled further."""
WIDEST = 4
"""Groups of replicates that are compared, of each stage."""
AGREEMENT_ROWS = 60
FAILURE_GROUPS = 60
TEXT_ROWS = 2000
"""Generations whose texts a report holds unless more are asked for: a page per hundred."""


def write_pages(
    reading: Reading,
    rows: Sequence[PivotRow],
    agreed: Table,
    source: Source,
    directory: Path,
    *,
    read_at: datetime,
    version: str,
    files: Sequence[str] = (),
    text_rows: int | None = TEXT_ROWS,
    all_texts_command: str = "",
) -> list[Path]:
    """Write ``report.html`` and, where that would grow too large, the directory ``pages`` beside it.

    Args:
        rows: the pivot.
        agreed: the table of agreement.
        read_at: when the store was read, in UTC.
        files: names of files beside the page that it links to.
        text_rows: generations whose texts are shown at most, essays with trouble first; ``None`` for all.
        all_texts_command: what to type for those that are left off.

    Returns:
        What was written, ``report.html`` first.

    Raises:
        StoreError: the directory cannot be written.
    """
    pages = directory / "pages"
    with replaced_directory(pages) as scratch:
        report = _Report(reading, rows, agreed, source, scratch)
        report.lay_out_texts(text_rows)
        report.lay_out_scores()
        main = report.render_main(
            read_at=f"{read_at:%Y-%m-%d %H:%M:%S} UTC",
            version=version,
            files=files,
            all_texts_command=all_texts_command,
        )
    with open_whole(directory / "report.html") as stream:
        stream.write(main)
    further = sorted(pages.iterdir()) if pages.is_dir() else []
    return [directory / "report.html", *further]


def make_environment() -> Environment:
    """The template engine: everything escaped, and made visible before that."""
    return Environment(
        loader=PackageLoader("genworker.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


@dataclass(slots=True)
class _Page:
    """One page of texts while it is filled; each prompt and each draft stands on it once."""

    articles: list[Markup] = field(default_factory=list)
    prompts: dict[PromptView, int] = field(default_factory=dict)
    drafts: dict[str, int] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0

    def prompt(self, view: PromptView) -> int:
        number = self.prompts.get(view)
        if number is None:
            number = self.prompts[view] = len(self.prompts) + 1
            for text in (view.before, *view.rest):
                self.size_bytes += sum(len(span.text.encode()) for span in text.spans)
        return number

    def draft_of(self, view: LineageView) -> int:
        """The number of the essay whose article shows this one's draft."""
        assert view.draft is not None
        return self.drafts.setdefault(view.draft.gen_id, view.number)


class _HeatRow(NamedTuple):
    key: list[str]
    links: list[tuple[str | None, str]]
    cells: list[tuple[HeatCell, str | None]]
    total: str
    is_planted: bool


@dataclass(slots=True)
class _Heat:
    key_title: str
    axes: Sequence[Axis]
    rows: list[_HeatRow]
    part: str = ""
    fixed: Sequence[tuple[str, str]] = ()
    pages: Sequence[tuple[str, str]] = ()
    has_links: bool = False

    @property
    def has_planted(self) -> bool:
        return any(row.is_planted for row in self.rows)


class _Report:
    def __init__(
        self, reading: Reading, rows: Sequence[PivotRow], agreed: Table, source: Source, scratch: Path
    ) -> None:
        self.reading = reading
        scores = self.scores = reading.scores
        self.pivot = rows
        self.agreed = agreed
        self.source = source
        self.scratch = scratch
        self.environment = make_environment()
        loader = self.environment.loader
        assert loader is not None
        style = loader.get_source(self.environment, "style.css")[0]
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        self.environment.globals.update(
            style=Markup(style),
            style_hash=f"sha256-{digest}",
            cohort=" + ".join(scores.cohort_ids),
            show_combo=len({row.key.combo_id for row in rows}) > 1,
        )
        self.macros: Any = self.environment.get_template("macros.html").module
        self.essays = essays_of(scores)
        self.numbers = {essay.essay.gen_id: essay.number for essay in self.essays}
        self.main = _Page()
        self.shelves: list[tuple[str, list[Markup]]] = []
        self.places: dict[str, tuple[str, EssayScores]] = {}
        """Where each essay's texts stand: the page's name (``""`` for the main one) and the essay."""
        self.planted: set[str] = set()
        self.text_pages: list[tuple[str, str]] = []
        self.texts_left_off = 0

    # Texts

    def lay_out_texts(self, limit: int | None) -> None:
        """Render the essays: the best and the worst first, then those with trouble, then the others."""
        best, worst = ranked(self.essays, BEST)
        chosen = {id(essay) for essay in (*best, *worst)}
        others = [essay for essay in self.essays if id(essay) not in chosen]
        if limit is not None:
            others.sort(key=lambda essay: (essay.scored == essay.planned, essay.number))
            budget = limit - sum(essay.planned + 2 for essay in (*best, *worst))
            kept = []
            for essay in others:
                budget -= essay.planned + 2
                if budget < 0:
                    break
                kept.append(essay)
            self.texts_left_off = len(others) - len(kept)
            others = sorted(kept, key=lambda essay: essay.number)
        lineages = Lineages(self.scores, self.source)
        for title, essays in (("Best", best), ("Worst", worst[::-1])):
            if essays:
                articles = [self._article(self.main, "", lineages, essay) for essay in essays]
                self.shelves.append((title, articles))
        self._shelve_others(lineages, others)

    def _shelve_others(self, lineages: Lineages, others: Sequence[EssayScores]) -> None:
        rest = iter(others)
        articles: list[Markup] = []
        pending: EssayScores | None = None
        for essay in rest:
            if self.main.rows + essay.planned + 2 > MAIN_ROWS or self.main.size_bytes > PAGE_BYTES:
                pending = essay
                break
            articles.append(self._article(self.main, "", lineages, essay))
        if articles:
            self.shelves.append(("All other essays" if pending is None else "Other essays", articles))
        page, name = _Page(), "texts-1.html"
        while pending is not None:
            if page.rows and (page.rows + pending.planned + 2 > PART_ROWS or page.size_bytes > PAGE_BYTES):
                self._close(page, name, more=True)
                page, name = _Page(), f"texts-{len(self.text_pages) + 1}.html"
            page.articles.append(self._article(page, name, lineages, pending))
            pending = next(rest, None)
        if page.rows:
            self._close(page, name, more=False)

    def _article(self, page: _Page, name: str, lineages: Lineages, essay: EssayScores) -> Markup:
        view = lineages.view(essay)
        article: Markup = self.macros.lineage(view, page)
        page.rows += essay.planned + 2
        page.size_bytes += len(article.encode())
        page.numbers.append(essay.number)
        self.places[essay.essay.gen_id] = (name, essay)
        if view.is_planted:
            self.planted.add(essay.essay.gen_id)
        return article

    def _close(self, page: _Page, name: str, *, more: bool) -> None:
        heading = f"Essays {page.numbers[0]} to {page.numbers[-1]}"
        before = len(self.text_pages)
        neighbours = [(f"texts-{before}.html", "Previous")] if before else []
        neighbours += [(f"texts-{before + 2}.html", "Next")] if more else []
        self._write_part(name, heading, neighbours, articles=page.articles, page=page, heat=None)
        self.text_pages.append((f"pages/{name}", heading))

    def _write_part(
        self, name: str, heading: str, neighbours: Sequence[tuple[str, str]], **parts: Any
    ) -> None:
        template = self.environment.get_template("part.html")
        with open_whole(self.scratch / name) as stream:
            stream.write(template.render(heading=heading, neighbours=neighbours, **parts))

    # Scores

    def lay_out_scores(self) -> None:
        """Write all rows of scores but the first ones to pages of their own."""
        self.varying = varying_fields(self.pivot)
        self.heat_pages: list[tuple[str, str]] = []
        for number, start in enumerate(range(HEAT_ROWS, len(self.pivot), HEAT_ROWS), 1):
            stop = min(start + HEAT_ROWS, len(self.pivot))
            heading = f"Rows {start + 1} to {stop} of {len(self.pivot)}"
            neighbours = [(f"scores-{number - 1}.html", "Previous")] if number > 1 else []
            if stop < len(self.pivot):
                neighbours.append((f"scores-{number + 1}.html", "Next"))
            heat = self._heat(self.pivot[start:stop], prefix="")
            self._write_part(
                f"scores-{number}.html", heading, neighbours, heat=heat, articles=[], page=_Page()
            )
            self.heat_pages.append((f"pages/scores-{number}.html", heading))

    def _heat(self, rows: Sequence[PivotRow], *, prefix: str) -> _Heat:
        title = " · ".join(name.replace("_", " ") for name in self.varying)
        return _Heat(title, self.scores.axes, [self._heat_row(row, prefix) for row in rows])

    def _heat_row(self, row: PivotRow, prefix: str) -> _HeatRow:
        hrefs = {essay: self._href(essay, prefix) for essay in row.essay_ids}
        first = next(iter(row.essay_ids))
        cells = []
        for axis in self.scores.axes:
            href = hrefs[first]
            if href is not None and axis in row.cells:
                place = list(self.places[first][1].by_axis)
                href = f"{href}-a{place.index(axis) + 1}" if axis in place else href
            cells.append((heat_cell(row.cells.get(axis)), href))
        total = row.total()
        return _HeatRow(
            [getattr(row.key, name) or "?" for name in self.varying],
            [(href, f"essay {self.numbers[essay]}") for essay, href in hrefs.items()],
            cells,
            "–" if total is None else f"{total:.2f}",
            not self.planted.isdisjoint(row.essay_ids),
        )

    def _href(self, gen_id: str, prefix: str) -> str | None:
        """The link to an essay's texts, from the main page (``pages/``) or from another page (``""``)."""
        if gen_id not in self.places:
            return None
        name, essay = self.places[gen_id]
        main = "" if prefix else "../report.html"
        return f"{prefix + name if name else main}#e{essay.number}"

    # The main page

    def render_main(self, **facts: Any) -> str:
        """``report.html``; after everything else, since it links there."""
        scores = self.scores
        stages = stage_views(scores, self.reading.provenance, self.reading.money)
        heat = self._heat(self.pivot[:HEAT_ROWS], prefix="pages/")
        heat.has_links = bool(self.places)
        heat.pages = self.heat_pages
        if self.heat_pages:
            heat.part = f", rows 1 to {HEAT_ROWS} of {len(self.pivot)}"
        if self.pivot:
            key = self.pivot[0].key
            heat.fixed = [
                (name.replace("_", " "), getattr(key, name))
                for name in PivotKey._fields
                if name != "stage" and name not in self.varying
            ]
        failures = failure_groups(scores)
        replicates, replicate_count = replicate_views(scores, self.essays, self.source, WIDEST)
        agreed = list(self._agreement())
        return self.environment.get_template("report.html").render(
            summary=self._summary(),
            stages=stages,
            heat=heat,
            factors=list(self._factors()),
            evaluators=list(self._evaluators()),
            agreement=agreed[:AGREEMENT_ROWS],
            agreement_left_off=max(len(agreed) - AGREEMENT_ROWS, 0),
            shelves=self.shelves,
            text_pages=self.text_pages,
            texts_left_off=self.texts_left_off,
            failures=failures[:FAILURE_GROUPS],
            failures_left_off=max(len(failures) - FAILURE_GROUPS, 0),
            failure_count=sum(len(group.rows) for group in failures),
            replicates=replicates,
            number_href=self._number_href,
            row_href=self._row_href,
            replicate_count=replicate_count,
            cohort_ids=scores.cohort_ids,
            page=self.main,
            **facts,
        )

    def _number_href(self, number: int | None) -> str | None:
        return None if number is None else self._href(self.essays[number - 1].essay.gen_id, "pages/")

    def _row_href(self, row: MembershipRow) -> str | None:
        essay = row.parent_gen_id if row.stage.is_scored else row.gen_id
        return self._href(essay or "", "pages/")

    def _summary(self) -> dict[str, Any]:
        outcomes = [evaluation.outcome for evaluation in self.scores.evaluations]
        wrong = [(outcome.value, outcomes.count(outcome)) for outcome in Outcome]
        return {
            "planned": f"{len(outcomes):,}",
            "scored": f"{outcomes.count(Outcome.SCORED):,}",
            "wrong": [
                (word, f"{number:,}") for word, number in wrong if number and word != Outcome.SCORED.value
            ],
            "money": money_view(self.reading.money.total),
        }

    def _factors(self) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
        """Draft templates, essay templates and models, where there is more than one of a kind."""
        by_key = tallies(self.scores, lambda evaluation: evaluation.essay.key)
        for name, title in (
            ("draft_template", "Draft template"),
            ("generation_template", "Essay template"),
            ("generation_model", "Generation model"),
        ):
            groups: dict[str, Tally] = {}
            for key, tally in by_key.items():
                groups.setdefault(getattr(key, name), Tally()).merge(tally)
            if len(groups) > 1:
                views = [(group, mean_view(tally)) for group, tally in groups.items()]
                yield (
                    title,
                    sorted(views, key=lambda view: math.inf if view[1].mean is None else -view[1].mean),
                )

    def _evaluators(self) -> Iterator[tuple[Axis, Any, str, str, str]]:
        for axis, tally in tallies(self.scores, lambda evaluation: evaluation.axis).items():
            values = tally.scores()
            around = spread(values)
            ends = [f"{end:g} ({values.count(end) / len(values):.0%})" for end in _ends(values)]
            lowest, highest = ends or ("–", "–")
            yield axis, mean_view(tally), "–" if around is None else f"{around:.2f}", lowest, highest

    def _agreement(self) -> Iterator[list[str]]:
        for row in self.agreed.rows:
            compared, *axes, n, difference, low, high, r, alpha = row
            a, b = f"{axes[0]} by {axes[1]}", f"{axes[2]} by {axes[3]}"
            what = f"replicates of {a}" if compared == "replicates" else f"{a} − {b}"
            interval = "–" if low is None else f"{_figure(low)} to {_figure(high)}"
            if n:
                yield [what, str(n), _figure(difference), interval, _figure(r), _figure(alpha)]


def _ends(values: Sequence[float]) -> tuple[float, ...]:
    return (min(values), max(values)) if values else ()


def _figure(value: Any) -> str:
    return "–" if value is None else f"{value:.2f}".replace("-", "−")
