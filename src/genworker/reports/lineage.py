"""Essays with the draft behind them and the evaluations that they got: their texts, as a page shows them."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from markupsafe import Markup

from genworker.core.completion import Usage
from genworker.core.facts import NO_FACTS, Facts
from genworker.core.generation import Generation
from genworker.core.membership import MembershipRow
from genworker.core.stages import Stage
from genworker.core.visible import visible
from genworker.errors import StoreError
from genworker.reports.overview import WHOLE_SCALE, HeatCell, Scale, heat_cell
from genworker.reports.prose import prose
from genworker.reports.scores import Axis, Essay, Evaluation, PivotKey, Scores, Source
from genworker.reports.statistics import mean
from genworker.reports.tables import PivotCell

MAX_TEXT_CHARS = 40_000
"""Characters of one text that a page shows; it says how many it leaves off."""
EXCERPT_CHARS = 260


@dataclass(slots=True)
class EssayScores:
    """One essay with all its evaluations, by evaluator.

    Attributes:
        number: from 1, in the plan's order.
    """

    essay: Essay
    number: int
    by_axis: dict[Axis, list[Evaluation]] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """The mean of the evaluators' means, each evaluator counting the same; ``None`` without a score."""
        means = [
            value
            for evaluations in self.by_axis.values()
            if (value := mean([e.score for e in evaluations if e.score is not None])) is not None
        ]
        return mean(means)

    @property
    def planned(self) -> int:
        """Evaluations that the plan has."""
        return sum(map(len, self.by_axis.values()))

    @property
    def scored(self) -> int:
        """Evaluations with a score."""
        return sum(e.score is not None for evaluations in self.by_axis.values() for e in evaluations)


def essays_of(scores: Scores) -> list[EssayScores]:
    """Every evaluated essay, in order of first appearance."""
    found: dict[str, EssayScores] = {}
    for evaluation in scores.evaluations:
        essay = found.get(evaluation.essay.gen_id)
        if essay is None:
            essay = EssayScores(evaluation.essay, len(found) + 1)
            found[evaluation.essay.gen_id] = essay
        essay.by_axis.setdefault(evaluation.axis, []).append(evaluation)
    for compared in scores.compared:
        for text in (compared.first, compared.second):
            if text.gen_id not in found:
                found[text.gen_id] = EssayScores(text, len(found) + 1)
    return list(found.values())


def ranked(essays: Iterable[EssayScores], count: int) -> tuple[list[EssayScores], list[EssayScores]]:
    """At most `count` best and as many worst essays, none of them in both lists; the worst one last."""
    means = [(essay.mean, essay) for essay in essays]
    scored = sorted(
        ((value, essay) for value, essay in means if value is not None),
        key=lambda pair: (-pair[0], pair[1].number),
    )
    best = min(count, math.ceil(len(scored) / 2))
    worst = min(count, len(scored) - best)
    in_order = [essay for _, essay in scored]
    return in_order[:best], in_order[len(in_order) - worst :]


class Span(NamedTuple):
    """A run of characters, and whether it tries to sway the evaluator."""

    text: str
    is_planted: bool


class TextView(NamedTuple):
    """A text as a page shows it.

    Attributes:
        left_off: characters behind what is shown.
    """

    spans: tuple[Span, ...]
    left_off: int

    @property
    def is_planted(self) -> bool:
        """Whether any part tries to sway the evaluator."""
        return any(span.is_planted for span in self.spans)


def text_view(text: str, *, look: bool = False) -> TextView:
    """A text, cut to what a page can hold.

    Args:
        look: mark what is meant for the evaluator rather than for a reader.
    """
    shown = text[:MAX_TEXT_CHARS]
    spans: list[Span] = []
    end = 0
    for start, stop in planted(shown) if look else ():
        spans += [Span(shown[end:start], False), Span(shown[start:stop], True)]
        end = stop
    spans.append(Span(shown[end:], False))
    return TextView(tuple(span for span in spans if span.text), len(text) - len(shown))


def excerpt(text: str) -> str:
    """How a text begins, on one line, cut between words where there are any."""
    start = " ".join(text[: 4 * EXCERPT_CHARS].split())
    if len(start) <= EXCERPT_CHARS:
        return start
    return f"{start[:EXCERPT_CHARS].rsplit(' ', 1)[0]} …"


_PLANTED = re.compile(
    r"^[ \t>*_#-]{0,20}(?:final |total |overall )?score[*_ \t]{0,5}[:=][*_ \t]{0,5}[0-9][^\n]{0,20}"
    r"|\b(?:ignore|disregard|forget)\b[^.\n]{0,40}\b(?:above|previous|prior|earlier|instructions?)\b[^.\n]{0,40}",
    re.IGNORECASE | re.MULTILINE,
)


def planted(text: str) -> list[tuple[int, int]]:
    """Where a text that is evaluated speaks to its evaluator: a line with a score, "ignore the above".

    A hint for the reader and no more: scores are read from the evaluators' answers alone.
    """
    return [match.span() for match in _PLANTED.finditer(text)]


class PromptView(NamedTuple):
    """A prompt whose parent's text is left out, since it stands on the page already.

    Attributes:
        before: the text up to the first place where the parent's text stood.
        rest: what follows each such place.
    """

    title: str
    before: TextView
    rest: tuple[TextView, ...]


MIN_HOLE_CHARS = 80


def prompt_view(title: str, prompt: str, parent_text: str | None) -> PromptView:
    """A prompt, so that prompts that differ by their parents' texts alone are equal."""
    parts = [prompt]
    if parent_text is not None and len(parent_text) >= MIN_HOLE_CHARS:
        parts = prompt.split(parent_text)
    first, *rest = map(text_view, parts)
    return PromptView(title, first, tuple(rest))


@dataclass(frozen=True, slots=True)
class GenerationView:
    """One generation on a page.

    Attributes:
        word: ``done`` or what it is instead.
        reason: why it is not done.
        facts: (name, value) of what is worth a glance.
        excerpt: how the parsed text begins, on one line.
        parsed: ``None`` when there is none.
        prose: the parsed text laid out, of drafts and essays; ``None`` where it is too long for that.
        raw: ``None`` when there is none, or when it equals the parsed text (`raw_is_parsed`).
        prompt: ``None`` when it was not kept.
        redo: the command that asks for it, again or at last.
    """

    stage: Stage
    gen_id: str
    template: str
    model: str
    replicate: int
    word: str
    reason: str | None
    facts: tuple[tuple[str, str], ...]
    excerpt: str
    parsed: TextView | None
    prose: Markup | None
    raw: TextView | None
    raw_is_parsed: bool
    copies_parent: bool
    prompt: PromptView | None
    metadata: TextView | None
    redo: str
    score: str | None = None


@dataclass(frozen=True, slots=True)
class EvaluatorView:
    """One evaluator's answers on one essay."""

    axis: Axis
    cell: HeatCell
    answers: tuple[GenerationView, ...]


@dataclass(frozen=True, slots=True)
class LineageView:
    """One essay with the draft that it was made from and the evaluations that it got.

    Attributes:
        draft: ``None`` when it is not known.
    """

    gen_id: str
    key: PivotKey
    concepts: str
    mean: str
    count: str
    needs_care: bool
    draft: GenerationView | None
    essay: GenerationView
    evaluators: tuple[EvaluatorView, ...]

    @property
    def is_planted(self) -> bool:
        """Whether the evaluated text tries to sway its evaluators."""
        return self.essay.parsed is not None and self.essay.parsed.is_planted


class Lineages:
    """Reads the texts behind essays."""

    def __init__(self, scores: Scores, source: Source, scale: Scale = WHOLE_SCALE) -> None:
        self._source = source
        self._scale = scale
        self._scores = scores
        self._rows: dict[tuple[Stage, str], MembershipRow] = {
            (row.stage, row.gen_id): row for row in scores.plan.membership.rows if not row.stage.is_scored
        }
        self._reasons = {(row.stage, row.gen_id): reason for row, reason in scores.troubles}

    def view(self, essay: EssayScores) -> LineageView:
        """One essay's lineage; reads all its generations."""
        facts = essay.essay
        cells = {axis: _cell(answers) for axis, answers in essay.by_axis.items()}
        draft, draft_text = self._ancestor(Stage.DRAFT, facts.draft_id, None)
        essay_view, essay_text = self._ancestor(Stage.ESSAY, facts.gen_id, draft_text)
        evaluators = tuple(
            EvaluatorView(
                axis, heat_cell(cells[axis], self._scale), tuple(self._answers(answers, essay_text))
            )
            for axis, answers in essay.by_axis.items()
        )
        return LineageView(
            facts.gen_id,
            facts.key,
            self._scores.concepts.get(facts.key.combo_id, facts.key.combo_id),
            "–" if essay.mean is None else f"{essay.mean:.2f}",
            f"{essay.scored}/{essay.planned}",
            any(cell.wrong for cell in cells.values()),
            draft if facts.draft_id else None,
            essay_view,
            evaluators,
        )

    def _ancestor(
        self, stage: Stage, gen_id: str, parent_text: str | None
    ) -> tuple[GenerationView, str | None]:
        row = self._rows.get((stage, gen_id))
        generation = self._read(stage, gen_id)
        reason = self._reasons.get((stage, gen_id))
        if row is None and generation is None:
            reason = "missing: neither in the cohort nor in the store"
        word = "done" if reason is None else _word(reason)
        view = self._generation_view(stage, gen_id, row, generation, word, reason, parent_text)
        return view, None if generation is None else generation.parsed_text

    def _answers(self, evaluations: Iterable[Evaluation], essay_text: str | None) -> Iterator[GenerationView]:
        for evaluation in evaluations:
            row, score = evaluation.row, evaluation.score
            generation = self._read(row.stage, row.gen_id)
            yield self._generation_view(
                row.stage,
                row.gen_id,
                row,
                generation,
                "done" if score is not None else _word(evaluation.error),
                evaluation.error,
                essay_text,
                score=None if score is None else f"{score:g}",
            )

    def _read(self, stage: Stage, gen_id: str) -> Generation | None:
        if not gen_id or not self._source.holds(stage, gen_id):
            return None
        try:
            return self._source.generation(stage, gen_id)
        except (StoreError, ValueError):  # damaged: the row says so
            return None

    def _generation_view(
        self,
        stage: Stage,
        gen_id: str,
        row: MembershipRow | None,
        generation: Generation | None,
        word: str,
        reason: str | None,
        parent_text: str | None,
        *,
        score: str | None = None,
    ) -> GenerationView:
        facts = NO_FACTS if generation is None else generation.facts
        template = row.template_id if row else facts.template_id or ""
        model = (row.llm_model_id if row else None) or (generation.model_id if generation else None) or ""
        replicate = row.replicate if row else facts.replicate
        look = not stage.is_scored
        raw = generation.raw_text if generation else ""
        parsed = generation.parsed_text if generation else None
        prompt = generation.prompt_text if generation else None
        title = f"{stage.value} · {template}"
        cohort = shlex.quote(row.cohort_id if row else self._scores.cohort_ids[0])
        again = f"retry {cohort} --only {shlex.quote(gen_id)}" if generation else f"run {cohort}"
        return GenerationView(
            stage,
            gen_id,
            template,
            model,
            replicate or 1,
            word,
            reason.partition(": ")[2] if reason else None,
            tuple(_shown(facts)),
            excerpt(parsed or ""),
            None if parsed is None else text_view(parsed, look=look),
            prose(parsed) if parsed and look else None,
            text_view(raw, look=look) if raw and raw != parsed else None,
            bool(raw) and raw == parsed,
            bool(parsed) and facts.is_copy and parsed == parent_text,
            prompt_view(title, prompt, parent_text) if prompt else None,
            text_view(json.dumps(facts.record, indent=2, ensure_ascii=False, default=str)) if facts else None,
            f"genworker {again}",
            score,
        )


def _word(reason: str | None) -> str:
    return reason.partition(":")[0] if reason else "missing"


def _cell(evaluations: Iterable[Evaluation]) -> PivotCell:
    cell = PivotCell()
    for evaluation in evaluations:
        cell.add(evaluation)
    return cell


def _shown(facts: Facts) -> Iterator[tuple[str, str]]:
    """What a person wants to see of the metadata at once, as (title, value)."""
    if not facts:
        return
    usage = facts.usage
    if usage != Usage():
        known = ("?" if count is None else str(count) for count in (usage.input_tokens, usage.output_tokens))
        yield "tokens", " → ".join(known)
    if facts.is_copy:
        yield "mode", "copied from its draft, no call"
    else:
        cost = facts.cost_usd
        yield "cost", "unpriced" if cost is None else f"${cost:.4f}"
    for value, title in (
        (facts.finish_reason, "finish"),
        (facts.attempts, "attempts"),
        (facts.latency_s, "seconds"),
    ):
        if value is not None:
            yield title, visible(str(value), limit=80, one_line=True)
