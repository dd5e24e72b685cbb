"""``report.html`` and the pages that it links to: lays out what is shown, renders it, writes it.

Every page is one file: no script, no outside request, a policy that allows its own style sheet and nothing
else. All that comes from a store goes through `visible` and the template engine's escaping, at one place.
Anchors and file names are gen_ids: a link leads to the same text for as long as the store has it.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from genworker.core.membership import MembershipRow
from genworker.core.stages import Stage
from genworker.core.visible import visible
from genworker.reports.choices import ESSAY, FACTORS, Choices, choice_sentences
from genworker.reports.comparison import MOST_ROWS as MOST_CHANGES
from genworker.reports.comparison import Beside, Comparison
from genworker.reports.comparison import sentence as comparison_sentence
from genworker.reports.failures import failure_groups
from genworker.reports.files import open_whole, replaced_directory
from genworker.reports.front import front_view, level_name
from genworker.reports.judges import Histogram, judges_view
from genworker.reports.lineage import EssayScores, Lineages, LineageView, PromptView, essays_of, ranked
from genworker.reports.overview import (
    HeatCell,
    heat_cell,
    heat_scale,
    mean_view,
    money_view,
    shared_axes,
    stage_views,
    varying_fields,
)
from genworker.reports.reading import Reading
from genworker.reports.replicates import replicate_views
from genworker.reports.scores import Axis, Outcome, PivotKey, Source
from genworker.reports.statistics import mean, score_interval, spread
from genworker.reports.tables import PivotRow, Table, tallies
from genworker.reports.words import NOUNS, direction, figure, interval_text, judges_sentence, pairs_text

HEAT_ROWS = 100
"""Rows of scores on one page."""
BEST = 5
"""Best essays that are shown first, and as many worst ones."""
MAIN_ROWS = 500
"""Generations whose texts ``report.html`` holds; every other essay has a page of its own."""
PAGE_BYTES = 3_000_000
"""A page of texts that is larger than this is not filled further."""
WIDEST = 4
"""Groups of replicates that are compared, of each stage."""
CHOICE_ROWS = 20
"""Texts of a ranking by comparisons that the page shows."""
AGREEMENT_ROWS = 60
FAILURE_GROUPS = 60
MATRIX_JUDGES = 40
TEXT_ROWS = 2000
"""Generations whose texts a report holds unless more are asked for: a page per essay."""


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
    environment = Environment(
        loader=PackageLoader("genworker.reports", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    loader = environment.loader
    assert loader is not None
    style = loader.get_source(environment, "style.css")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment.filters["exp"] = math.exp
    environment.globals.update(style=Markup(style), style_hash=f"sha256-{digest}")
    return environment


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) or not isinstance(value, str) else visible(value)


def anchor(gen_id: str, stage: Stage = Stage.ESSAY) -> str:
    """The ``id`` of a generation's text on a page, also what stands behind the ``#`` of a link to it.

    An essay's is its gen_id; those of other stages say their stage too, since ids are told apart by stage.
    """
    name = quote(gen_id, safe="")
    return name if stage is Stage.ESSAY else f"{stage.value}-{name}"


def page_name(gen_id: str) -> str:
    """The file of an essay that has a page of its own."""
    return f"{gen_id}.html"


@dataclass(slots=True)
class _Page:
    """One page of texts while it is filled; each prompt and each draft stands on it once.

    Attributes:
        alone: whether it holds one essay only, whose text is open then.
    """

    alone: bool = False
    articles: list[Markup] = field(default_factory=list)
    prompts: dict[PromptView, int] = field(default_factory=dict)
    drafts: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    size_bytes: int = 0

    def prompt(self, view: PromptView) -> int:
        number = self.prompts.get(view)
        if number is None:
            number = self.prompts[view] = len(self.prompts) + 1
            for text in (view.before, *view.rest):
                self.size_bytes += sum(len(span.text.encode()) for span in text.spans)
        return number

    def draft_of(self, view: LineageView) -> str:
        """The essay whose article shows this one's draft."""
        assert view.draft is not None
        return self.drafts.setdefault(view.draft.gen_id, view.gen_id)


class _HeatRow(NamedTuple):
    key: list[str]
    links: list[tuple[str | None, str]]
    cells: list[tuple[HeatCell, str | None]]
    total: str
    is_planted: bool


@dataclass(slots=True)
class _Heat:
    """The scores as a table.

    Attributes:
        total_of: evaluators that the totals are over; 0 where there is no total to speak of.
    """

    key_title: str
    axes: Sequence[Axis]
    rows: list[_HeatRow]
    total_of: int
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
        self.scale = heat_scale(rows)
        self.shared = shared_axes(rows, scores.axes)
        self.environment = make_environment()
        self.environment.globals.update(
            cohort=" + ".join(scores.cohort_ids),
            show_combo=len({row.key.combo_id for row in rows}) > 1,
            anchor=anchor,
            Stage=Stage,
        )
        self.macros: Any = self.environment.get_template("macros.html").module
        self.essays = essays_of(scores)
        self.main = _Page()
        self.shelves: list[tuple[str, list[Markup]]] = []
        self.places: dict[str, tuple[str, EssayScores]] = {}
        """Where each essay's texts stand: the page's name (``""`` for the main one) and the essay."""
        self.planted: set[str] = set()
        self.own_pages = 0
        self.texts_left_off = 0
        self.best: list[EssayScores] = []

    # Texts

    def lay_out_texts(self, limit: int | None) -> None:
        """Render the essays: the best and the worst first, then those with trouble, then the others."""
        best, worst = ranked(self.essays, BEST)
        self.best = best
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
        lineages = Lineages(self.scores, self.source, self.scale)
        for title, essays in (("Best", best), ("Worst", worst[::-1])):
            if essays:
                articles = [self._article(self.main, "", lineages, essay) for essay in essays]
                self.shelves.append((title, articles))
        self._shelve_others(lineages, others)

    def _shelve_others(self, lineages: Lineages, others: Sequence[EssayScores]) -> None:
        """On the main page as far as there is room, else on pages of their own."""
        articles: list[Markup] = []
        for essay in others:
            if self.main.rows + essay.planned + 2 > MAIN_ROWS or self.main.size_bytes > PAGE_BYTES:
                break
            articles.append(self._article(self.main, "", lineages, essay))
        apart = others[len(articles) :]
        if articles:
            self.shelves.append(("Other essays" if apart else "All other essays", articles))
        for number, essay in enumerate(apart):
            page, name = _Page(alone=True), page_name(essay.essay.gen_id)
            article = self._article(page, name, lineages, essay)
            neighbours = [
                (quote(page_name(apart[at].essay.gen_id)), title)
                for at, title in ((number - 1, "Previous essay"), (number + 1, "Next essay"))
                if 0 <= at < len(apart)
            ]
            heading = f"Essay {essay.essay.gen_id}"
            self._write_part(name, heading, neighbours, articles=[article], page=page, heat=None)
        self.own_pages = len(apart)

    def _article(self, page: _Page, name: str, lineages: Lineages, essay: EssayScores) -> Markup:
        view = lineages.view(essay)
        article: Markup = self.macros.lineage(view, page)
        page.rows += essay.planned + 2
        page.size_bytes += len(article.encode())
        self.places[essay.essay.gen_id] = (name, essay)
        if view.is_planted:
            self.planted.add(essay.essay.gen_id)
        return article

    def _write_part(
        self, name: str, heading: str, neighbours: Sequence[tuple[str, str]], **parts: Any
    ) -> None:
        """One further page; the directory appears whole, so that each of its files need not."""
        template = self.environment.get_template("part.html")
        text = template.render(heading=heading, neighbours=neighbours, scale=self.scale, **parts)
        (self.scratch / name).write_text(text, encoding="utf-8", errors="replace", newline="")

    # Scores

    def lay_out_scores(self) -> None:
        """Write all rows of scores but the first ones to pages of their own."""
        self.varying = varying_fields(self.pivot)
        self.heat_pages: list[tuple[str, str]] = []
        starts = list(range(0, len(self.pivot), HEAT_ROWS))
        names = [f"scores-{next(iter(self.pivot[start].essay_ids))}.html" for start in starts]
        for number, start in list(enumerate(starts))[1:]:
            stop = min(start + HEAT_ROWS, len(self.pivot))
            heading = f"Rows {start + 1} to {stop} of {len(self.pivot)}"
            neighbours = [(quote(names[number - 1]), "Previous")] if number > 1 else []
            if stop < len(self.pivot):
                neighbours.append((quote(names[number + 1]), "Next"))
            heat = self._heat(self.pivot[start:stop], prefix="")
            self._write_part(names[number], heading, neighbours, heat=heat, articles=[], page=_Page())
            self.heat_pages.append((f"pages/{quote(names[number])}", heading))

    def _heat(self, rows: Sequence[PivotRow], *, prefix: str) -> _Heat:
        titles = {"combo_id": "concepts"}
        title = " · ".join(titles.get(name, name.replace("_", " ")) for name in self.varying)
        total_of = len(self.shared) if len(self.shared) > 1 else 0
        return _Heat(title, self.scores.axes, [self._heat_row(row, prefix) for row in rows], total_of)

    def _heat_row(self, row: PivotRow, prefix: str) -> _HeatRow:
        hrefs = {essay: self._href(essay, prefix) for essay in row.essay_ids}
        first = next(iter(row.essay_ids))
        cells = []
        for axis in self.scores.axes:
            href = hrefs[first]
            if href is not None and axis in row.cells:
                answers = self.places[first][1].by_axis.get(axis)
                if answers:
                    target = anchor(answers[0].row.gen_id, answers[0].row.stage)
                    href = f"{href.partition('#')[0]}#{target}"
            cells.append((heat_cell(row.cells.get(axis), self.scale), href))
        total = sum(mean(row.cells[axis].scores) or 0.0 for axis in self.shared)
        return _HeatRow(
            [self._key_text(row.key, name) for name in self.varying],
            [(href, essay) for essay, href in hrefs.items()],
            cells,
            f"{total:.2f}",
            not self.planted.isdisjoint(row.essay_ids),
        )

    def _key_text(self, key: PivotKey, name: str) -> str:
        value: str = getattr(key, name)
        return self.scores.concepts.get(value, value) if name == "combo_id" else value or "not known"

    def _href(self, gen_id: str, prefix: str) -> str | None:
        """The link to an essay's texts, from the main page (``pages/``) or from another page (``""``)."""
        if gen_id not in self.places:
            return None
        name, essay = self.places[gen_id]
        main = "" if prefix else "../report.html"
        return f"{prefix + quote(name) if name else main}#{anchor(essay.essay.gen_id)}"

    # The main page

    def render_main(self, **facts: Any) -> str:
        """``report.html``; after everything else, since it links there."""
        scores, reading = self.scores, self.reading
        judges = judges_view(self.pivot, scores.axes, reading.findings)
        heat = self._heat(self.pivot[:HEAT_ROWS], prefix="pages/")
        heat.has_links = bool(self.places)
        heat.pages = self.heat_pages
        if self.heat_pages:
            heat.part = f", rows 1 to {HEAT_ROWS} of {len(self.pivot)}"
        if self.pivot:
            key = self.pivot[0].key
            heat.fixed = [
                ("concepts" if name == "combo_id" else name.replace("_", " "), self._key_text(key, name))
                for name in PivotKey._fields
                if name != "stage" and name not in self.varying
            ]
        groups = failure_groups(scores)
        failures = [group for group in groups if not group.is_pending]
        replicates, replicate_count = replicate_views(scores, self.essays, self.source, WIDEST)
        agreed = list(self._agreement())
        return self.environment.get_template("report.html").render(
            summary=self._summary(),
            front=front_view(reading.findings, judges),
            best=list(self._best()),
            concepts=list(self._concepts()),
            stages=stage_views(scores, reading.provenance, reading.money),
            models=[(model, money_view(part)) for model, part in sorted(reading.money.by_model.items())],
            money=money_view(reading.money.total),
            heat=heat,
            scale=self.scale,
            judges=judges,
            judges_sentence=judges_sentence(reading.findings),
            matrix_judges=judges.judges[:MATRIX_JUDGES],
            evaluators=list(self._evaluators(judges.by_axis)),
            nouns=NOUNS,
            name_of=lambda factor, level: level_name(reading.findings, factor, level),
            figure=figure,
            interval_text=interval_text,
            agreement=agreed[:AGREEMENT_ROWS],
            agreement_left_off=max(len(agreed) - AGREEMENT_ROWS, 0),
            shelves=self.shelves,
            own_pages=self.own_pages,
            texts_left_off=self.texts_left_off,
            failures=failures[:FAILURE_GROUPS],
            failures_left_off=max(len(failures) - FAILURE_GROUPS, 0),
            failure_count=sum(len(group.rows) for group in failures),
            rows_out=reading.rows_out,
            pending=[(group.stage, len(group.rows)) for group in groups if group.is_pending],
            replicates=replicates,
            essay_href=lambda gen_id: None if gen_id is None else self._href(gen_id, "pages/"),
            row_href=self._row_href,
            replicate_count=replicate_count,
            cohort_ids=scores.cohort_ids,
            page=self.main,
            history=reading.history,
            run_money={run: money_view(part) for run, part in reading.money.by_run.items()},
            provenance=reading.provenance,
            missing=reading.findings.missing,
            choices=None if reading.choices is None else self._choices(reading.choices),
            **facts,
        )

    def _choices(self, choices: Choices) -> dict[str, Any]:
        """Ranks and position biases of comparisons, as the page shows them."""
        rankings = []
        for ranks in choices.ranks:
            rows = []
            for item in ranks.items[:CHOICE_ROWS]:
                low, high = (None, None) if item.estimate is None else item.estimate.interval()
                essay = choices.essays.get(item.item) if ranks.kind == ESSAY else None
                what = "" if essay is None else self._key_text(essay.key, "combo_id")
                if essay is not None:
                    what += f" · {essay.key.draft_template} → {essay.key.generation_template}"
                    what += f" · {essay.key.generation_model}"
                href = None if essay is None else self._href(item.item, "pages/")
                rows.append((item, interval_text(low, high), what, href))
            kind = FACTORS.get(ranks.kind, ESSAY)
            title = f"{kind[0].upper()}{kind[1:]}s, asked by {ranks.question}"
            rankings.append((title, kind, rows, len(ranks.items) - len(rows), ranks.groups))
        biases = []
        for axis, bias in choices.biases:
            low, high = (None, None) if bias.estimate is None else bias.estimate.interval()
            biases.append((axis, bias, interval_text(low, high)))
        return {"sentences": list(choice_sentences(choices)), "rankings": rankings, "biases": biases}

    def _row_href(self, row: MembershipRow) -> str | None:
        essay = row.parent_gen_id if row.stage.is_scored else row.gen_id
        return self._href(essay or "", "pages/")

    def _best(self) -> Iterator[tuple[str, str, str, str | None]]:
        """(mean, concepts, templates and model, link) of the best essays."""
        for essay in self.best:
            key = essay.essay.key
            what = f"{key.draft_template} → {key.generation_template} · {key.generation_model}"
            name = self._key_text(key, "combo_id")
            yield f"{essay.mean:.2f}", name, what, self._href(essay.essay.gen_id, "pages/")

    def _concepts(self) -> Iterator[tuple[str, str, str, int]]:
        """(concept, mean of the combos that have it, their interval, how many) where there are several."""
        by_concept: dict[str, list[float]] = {}
        by_combo: dict[str, list[float]] = {}
        for row in self.pivot:
            values = [score for cell in row.cells.values() for score in cell.scores]
            by_combo.setdefault(row.key.combo_id, []).extend(values)
        for combo, values in by_combo.items():
            if values:
                for concept in self.scores.concept_lists.get(combo, ()):
                    by_concept.setdefault(concept, []).append(mean(values) or 0.0)
        if len(by_combo) > 1:
            for concept, means in sorted(by_concept.items(), key=lambda item: -(mean(item[1]) or 0.0)):
                low, high = score_interval([[value] for value in means]) or (None, None)
                yield concept, f"{mean(means):.2f}", interval_text(low, high), len(means)

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

    def _evaluators(
        self, marks: Mapping[Axis, Histogram]
    ) -> Iterator[tuple[Axis, Histogram, Any, str, str, str]]:
        for axis, tally in tallies(self.scores, lambda evaluation: evaluation.axis).items():
            values = tally.scores()
            around = spread(values)
            ends = [f"{end:g} ({values.count(end) / len(values):.0%})" for end in _ends(values)]
            lowest, highest = ends or ("–", "–")
            yield (
                axis,
                marks[axis],
                mean_view(tally),
                "–" if around is None else f"{around:.2f}",
                lowest,
                highest,
            )

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
    return "–" if value is None else figure(value)


def write_comparison(
    comparison: Comparison,
    name: str,
    templates: Sequence[Beside],
    texts: Sequence[Beside],
    concepts: Mapping[str, str],
    path: Path,
    *,
    read_at: datetime,
    version: str,
) -> None:
    """Write the page of a comparison.

    Args:
        name: of the side that is reported on.
        templates: what differs in what was asked; `texts` in what came.

    Raises:
        StoreError: it cannot be written.
    """
    environment = make_environment()
    environment.globals["cohort"] = name
    text = environment.get_template("compare.html").render(
        comparison=comparison,
        name=name,
        answer=comparison_sentence(comparison, name),
        templates=templates,
        texts=texts,
        concepts=concepts,
        nouns=NOUNS,
        figure=figure,
        interval_text=interval_text,
        direction=direction,
        pairs_text=pairs_text,
        most=MOST_CHANGES,
        read_at=f"{read_at:%Y-%m-%d %H:%M:%S} UTC",
        version=version,
    )
    with open_whole(path) as stream:
        stream.write(text)
