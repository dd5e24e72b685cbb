"""What each row of a cohort asks: prompt, request, provenance; and the trial before the first is paid for."""

from __future__ import annotations

import contextlib
import difflib
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from genworker.core.budget import Charge
from genworker.core.catalog import Combo
from genworker.core.completion import Completion, CompletionRequest, Sampling
from genworker.core.facts import MODE_COPY, MODE_LLM, CallFacts, RowFacts
from genworker.core.generation import file_digest
from genworker.core.membership import Membership, MembershipRow
from genworker.core.prefixes import Frame, Prefix, frame, is_long, prefix_of
from genworker.core.prompts import TRIAL_TEXT, child_values, draft_values
from genworker.core.scheduler import NO_LANE
from genworker.core.stages import STAGES, Stage
from genworker.errors import (
    CatalogError,
    ConfigError,
    Fault,
    FaultyInputError,
    StoreError,
    TemplateError,
)
from genworker.project.endpoints import kind_of
from genworker.project.open import Project, cohort_combos, pair_fault
from genworker.run.routes import ONE, Route, Routes, cost, excess_of, unbounded_case, worst_case
from genworker.store.catalog import TemplateFiles
from genworker.store.reading import read_generation

EXCESS_MARGIN = Decimal("1.25")
"""How much more than the largest excess that was seen is reserved."""
PROVEN_BY = 20
"""Earlier answers of a route that are looked at: what it bills is known then."""
PARENTS_NOTED = 65_536
"""Digests of parents' texts that are kept for the metadata: far more than calls can be out at a time."""


@dataclass(slots=True)
class CohortWork:
    """Prompts, requests and provenance of a cohort's rows."""

    project: Project
    membership: Membership
    templates: TemplateFiles
    combos: dict[str, Combo]
    run_id: str
    version: str
    answer_tokens: int | None = None
    batch: bool | None = None
    is_capped: bool = False
    replaced: Container[int] = frozenset()
    """Jobs whose answer replaces one that the store holds: those are asked with another seed."""
    _excess: dict[Route, Decimal] = field(default_factory=dict)  # of routes that have answered
    _warnings: list[str] = field(default_factory=list)
    _drafts: dict[tuple[str, str], str] = field(default_factory=dict)
    _parents: dict[str | None, str] = field(default_factory=dict)
    _frames: dict[tuple[Stage, str], Frame | None] = field(default_factory=dict)
    _copies: dict[Stage, frozenset[str]] = field(init=False)
    _in_batches: dict[tuple[Stage, str], bool] = field(default_factory=dict)
    _sharing: Counter[tuple[int, Stage, str, str]] = field(default_factory=Counter)
    _children: dict[int, list[int]] = field(default_factory=dict)
    routes: Routes = field(init=False)

    def __post_init__(self) -> None:
        self._copies = {stage: self.project.catalog.copies(stage) for stage in STAGES}
        self.routes = Routes(self.project.loaded, self.model_name, in_batches=self.in_batches)

    def route(self, job: int) -> Route:
        """The endpoint that a row is asked at now, and the model's name there."""
        return self.routes.of(job, self.membership.rows[job].llm_model_id or "")

    def in_batches(self, job: int) -> bool:
        """Whether a row is asked in batches: as the command says, else as the settings do."""
        row, loaded = self.membership.rows[job], self.project.loaded
        key = row.stage, row.llm_model_id or ""
        found = self._in_batches.get(key)
        if found is None:
            endpoint = loaded.endpoint_of(key[1])
            found = False
            if endpoint is not None:
                section = loaded.settings.endpoints[endpoint]
                can = kind_of(section).takes_batches(section)
                said = loaded.asks_in_batches(*key, endpoint) if self.batch is None else self.batch
                found = can and said
            self._in_batches[key] = found
        return found

    def is_copy(self, job: int) -> bool:
        """Whether a row's text is its parent's, and no model is asked."""
        row = self.membership.rows[job]
        return row.template_id in self._copies[row.stage]

    def joined(self, first: int) -> None:
        """Rows from number `first` on have been appended to the membership, and their lanes to the routes."""
        rows, lanes = self.membership.rows, self.routes.lanes
        new = range(first, len(rows))
        wanted = {rows[job].combo_id for job in new if rows[job].stage.is_root} - self.combos.keys()
        if wanted:
            self.combos.update(cohort_combos(self.project, self.membership))
        if self._sharing:
            called = (job for job in new if lanes[job] != NO_LANE)
            self._sharing.update((lanes[job], *_prompt_family(rows[job])) for job in called)
        if self._children:
            self._note_children(new)

    def prompt(self, job: int, parent_text: str | None, second_text: str | None = None) -> str:
        """See `genworker.ports.Work.prompt`."""
        row = self.membership.rows[job]
        template = self.templates.get(row.stage, row.template_id)
        if not row.stage.is_root:
            text = parent_text or ""
            self._note_parent(row.parent_gen_id, text)
            if second_text is not None:
                self._note_parent(row.second_parent_gen_id, second_text)
            return template.render(child_values(row.stage, text, second_text))
        # Replicates and models have one draft prompt in common: it depends on combo and template alone.
        key = (row.combo_id, row.template_id)
        prompt = self._drafts.get(key)
        if prompt is None:
            if len(self._drafts) > 512:
                self._drafts.clear()
            concepts = self.project.catalog.draft_concepts(self.combos[row.combo_id])
            prompt = self._drafts[key] = template.render(draft_values(concepts))
        return prompt

    def _note_parent(self, gen_id: str | None, text: str) -> None:
        if len(self._parents) >= PARENTS_NOTED:
            del self._parents[next(iter(self._parents))]
        self._parents[gen_id] = file_digest(text.encode("utf-8", "replace"))

    def model_name(self, model_id: str) -> str:
        """The name that the endpoint is asked for."""
        configured = self.project.loaded.settings.models.get(model_id)
        if configured is not None and configured.model:
            return configured.model
        return self.project.catalog.models[model_id].model

    def request(self, job: int, prompt: str) -> CompletionRequest:
        """See `genworker.ports.Work.request`."""
        row = self.membership.rows[job]
        model_id = row.llm_model_id or ""
        route = self.route(job)
        prefix = self._prefix(job, route, prompt)
        return CompletionRequest(
            model=route.model,
            prompt=prompt,
            cache_at=() if prefix is None else prefix.cache_at,
            prefix=None if prefix is None else prefix.name,
            sampling=self.sampling(
                row.stage, model_id, route.endpoint, row.gen_id, after=self._seed_before(job)
            ),
            timeout_s=self.project.loaded.settings.endpoints[route.endpoint].timeout_s,
        )

    def sampling(
        self, stage: Stage, model_id: str, endpoint: str, gen_id: str, *, after: int | None = None
    ) -> Sampling:
        """The parameters of a call; see `genworker.project.settings.LoadedSettings.sampling`."""
        sampling = self.project.loaded.sampling(stage, model_id, endpoint, gen_id, after=after)
        return sampling if self.answer_tokens is None else replace(sampling, max_tokens=self.answer_tokens)

    def _seed_before(self, job: int) -> int | None:
        """The seed of the answer that a row's next one replaces: with it the same text would come again."""
        if job not in self.replaced:
            return None
        row = self.membership.rows[job]
        with contextlib.suppress(StoreError, ValueError):
            return read_generation(self.project.paths.gens_root, row.stage, row.gen_id).facts.seed
        return None

    def worst_case(self, job: int, request: CompletionRequest) -> Charge:
        """See `genworker.ports.Work.worst_case`."""
        route = self.route(job)
        prices = self.routes.prices_at_most(route, request.sampling.service_tier)
        return worst_case(route, request, self._excess.get(route, ONE), prices)

    def unproven_case(self, job: int, request: CompletionRequest) -> Charge | None:
        """See `genworker.ports.Work.unproven_case`."""
        route = self.route(job)
        if route in self._excess or not self.is_capped:
            return None
        prices = self.routes.prices_at_most(route, request.sampling.service_tier)
        return unbounded_case(route, request, prices)

    def cost(self, job: int, request: CompletionRequest, completion: Completion) -> Charge | None:
        """See `genworker.ports.Work.cost`."""
        route = self.route(job)
        price = self.routes.price_at(route, completion.service_tier)
        charge = cost(route, completion.usage, completion.told_cost_usd, price)
        if charge is not None:
            self._learn(route, request, charge)
        return charge

    def learn_from_store(self, jobs: Iterable[int]) -> None:
        """See what earlier answers were billed: under a cap a route need not prove itself in each run.

        Args:
            jobs: those that the store holds an answer of.
        """
        missing = {route: PROVEN_BY for route in self.routes.by_lane}
        for job in jobs:
            route = self.route(job)
            if not missing.get(route):
                continue
            row = self.membership.rows[job]
            try:
                facts = read_generation(self.project.paths.gens_root, row.stage, row.gen_id).facts
            except (StoreError, ValueError):
                continue
            times = excess_of(route, facts)
            if times is None or (facts.endpoint, facts.model) != (route.endpoint, route.model):
                continue
            self._excess[route] = max(
                self._excess.get(route, ONE), times * EXCESS_MARGIN if times > 1 else ONE
            )
            missing[route] -= 1
            if not any(missing.values()):
                return

    def excess(self) -> dict[str, str]:
        """How many times more than its bound each route was seen to bill, by its name."""
        return {route.name: str(times) for route, times in self._excess.items()}

    def adopt_excess(self, known: Mapping[str, str]) -> None:
        """Take over what another process has seen; see `excess`."""
        for route in self.routes.by_lane:
            if (times := known.get(route.name)) is not None:
                self._excess[route] = Decimal(times)

    def _learn(self, route: Route, request: CompletionRequest, charge: Charge) -> None:
        """Compare a bill with what list price and `max_tokens` bound it to."""
        known = self._excess.setdefault(route, ONE)
        prices = self.routes.prices_at_most(route, request.sampling.service_tier)
        bound = worst_case(route, request, prices=prices)
        times = max(
            Decimal(charge.tokens) / bound.tokens if bound.tokens else ONE,
            charge.usd / bound.usd if bound.usd else ONE,
        )
        if times <= known:
            return
        # Some more than was seen: the next answer may be longer.
        self._excess[route] = times * EXCESS_MARGIN
        if known == ONE:
            self._warnings.append(
                f"{route.name} bills up to {times:.1f} times what its list price and max_tokens allow; "
                "caps count with that from now on"
            )

    def take_warnings(self) -> list[str]:
        """See `genworker.ports.Work.take_warnings`."""
        taken, self._warnings = self._warnings, []
        return taken

    def _prefix(self, job: int, route: Route, prompt: str) -> Prefix | None:
        """The beginnings of a prompt that the endpoint is asked to keep, where that pays."""
        endpoint = self.project.loaded.settings.endpoints[route.endpoint]
        if not kind_of(endpoint).has_prompt_cache(endpoint) or not is_long(len(prompt)):
            return None
        row = self.membership.rows[job]
        shape = self._frame(row.stage, row.template_id)
        if shape is None:
            return None
        rows, lanes, lane = self.membership.rows, self.routes.lanes, self.routes.lanes[job]
        if not self._sharing:
            called = (other for other, number in enumerate(lanes) if number != NO_LANE)
            self._sharing.update((lanes[other], *_prompt_family(rows[other])) for other in called)
        alike = [rows[other] for other in self._siblings(job) if lanes[other] == lane]
        frames = [self._frame(other.stage, other.template_id) for other in alike]
        same_template = self._sharing[lane, *_prompt_family(row)]
        same_prompt = sum(1 for other in alike if other.template_id == row.template_id)
        return prefix_of(
            prompt,
            shape,
            model=route.model,
            same_template=same_template,
            same_text=sum(1 for other in frames if other is not None and other.head == shape.head),
            same_prompt=same_template if row.stage.is_root else same_prompt,
        )

    def _siblings(self, job: int) -> Sequence[int]:
        """The rows that are made from the same parent, this one included."""
        parent = self.membership.parents[job]
        if parent < 0:
            return (job,)
        if not self._children:  # counted when it is first asked for: most runs have no use for it
            self._note_children(range(len(self.membership)))
        return self._children[parent]

    def _note_children(self, jobs: Iterable[int]) -> None:
        parents = self.membership.parents
        for job in jobs:
            if parents[job] >= 0:
                self._children.setdefault(parents[job], []).append(job)

    def _frame(self, stage: Stage, template_id: str) -> Frame | None:
        key = (stage, template_id)
        if key not in self._frames:
            self._frames[key] = frame(self.templates.get(stage, template_id))
        return self._frames[key]

    def facts(self, job: int) -> RowFacts:
        """See `genworker.ports.Work.facts`."""
        row = self.membership.rows[job]
        copy = self.is_copy(job)
        demands = self.project.demands(row.stage, row.template_id) or {"parser": "identity"}
        return RowFacts(
            task_id=self._task_id(job),
            template_id=row.template_id,
            model_id=row.llm_model_id or "",
            parent_gen_id=row.parent_gen_id or "",
            stage=row.stage,
            gen_id=row.gen_id,
            cohort_id=row.cohort_id,
            combo_id=row.combo_id,
            replicate=row.replicate,
            function=row.stage.function,
            mode=MODE_COPY if copy else MODE_LLM,
            run_id=self.run_id,
            genworker_version=self.version,
            parser=demands["parser"],
            template_sha256=None if copy else self.templates.digest(row.stage, row.template_id),
            # What the prompt was made from: a child of a text that has been replaced since is stale.
            parent_sha256=None if copy else self._parents.get(row.parent_gen_id),
            second_parent_gen_id=row.second_parent_gen_id,
            second_parent_sha256=self._parents.get(row.second_parent_gen_id),
            min_lines=None if copy else demands.get("min_lines"),
            min_chars=None if copy else demands.get("min_chars"),
        )

    def _task_id(self, job: int) -> str:
        row = self.membership.rows[job]
        above = row.stage.parent if row.stage.inherits_model else None
        if above is None or row.task_id is not None or self.membership.parents[job] >= 0:
            return self.membership.task_id(job)
        try:
            parent = read_generation(self.project.paths.gens_root, above, row.parent_gen_id or "")
        except (StoreError, ValueError):
            return self.membership.task_id(job)
        return self.membership.task_id(job, parent.facts.task_id or None, parent.model_id)

    def call_facts(self, job: int, request: CompletionRequest) -> CallFacts:
        """See `genworker.ports.Work.call_facts`."""
        route = self.route(job)
        return CallFacts(
            endpoint=route.endpoint,
            provider=route.kind,
            model=request.model,
            fallback=route.is_fallback,
            sampling=request.sampling,
        )


def _prompt_family(row: MembershipRow) -> tuple[Stage, str, str]:
    """What a prompt's beginning depends on besides its parent: all drafts of one combo have the same one."""
    return row.stage, row.template_id, row.combo_id if row.stage.is_root else ""


def open_work(
    project: Project,
    membership: Membership,
    *,
    run_id: str = "",
    answer_tokens: int | None = None,
    batch: bool | None = None,
    templates: TemplateFiles | None = None,
) -> CohortWork:
    """The work of a cohort, with the combos that its drafts are about.

    Args:
        run_id: of the run that makes the rows; empty where none are made.
        answer_tokens: replaces ``max_tokens`` of the settings.
        batch: over what the settings say of batches.
        templates: those that have been read already, where several cohorts are looked at.
    """
    from genworker import __version__

    return CohortWork(
        project,
        membership,
        templates or TemplateFiles(project.paths),
        cohort_combos(project, membership),
        run_id,
        __version__,
        answer_tokens=answer_tokens,
        batch=batch,
    )


def odd_sections(work: CohortWork) -> list[str]:
    """Sections of models that no catalogue and no row knows, in words: what they say reaches nobody."""
    loaded = work.project.loaded
    known = {*work.project.catalog.models, *(row.llm_model_id or "" for row in work.membership.rows)}
    lines = []
    for model_id in loaded.settings.models:
        if model_id not in known:
            close = difflib.get_close_matches(model_id, known, n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            where = loaded.origin(f"models.{model_id}")
            lines.append(f"{where}: the section [models.{model_id!r}] belongs to no model{meant}")
    return lines


def check_jobs(work: CohortWork, jobs: Iterable[int]) -> None:
    """Try everything that a call needs, without calling: templates, combos, endpoints, keys.

    Raises:
        FaultyInputError: every fault at once.
    """
    faults: list[Fault] = []
    templates: dict[tuple[Stage, str], int] = {}
    models: dict[str, int] = {}
    combos: dict[str, int] = {}
    seen: set[tuple[str, ...]] = set()
    for job in jobs:
        row = work.membership.rows[job]
        kind = (row.stage, row.template_id, row.llm_model_id or "", row.combo_id)
        if kind in seen:
            continue
        seen.add(kind)
        if work.is_copy(job):
            continue
        templates.setdefault((row.stage, row.template_id), job)
        models.setdefault(row.llm_model_id or "", job)
        if row.stage.is_root:
            combos.setdefault(row.combo_id, job)
    known_combos = _check_combos(work, combos, faults)
    for (stage, template_id), job in templates.items():
        if stage.is_root and work.membership.rows[job].combo_id not in known_combos:
            continue
        try:
            pair = TRIAL_TEXT if work.membership.rows[job].second_parent_gen_id is not None else None
            if (fault := pair_fault(work.project, work.templates, stage, template_id)) is not None:
                faults.append(fault)
                continue
            work.prompt(job, TRIAL_TEXT, pair)
            if work.templates.get(stage, template_id).is_blind:
                offered = " or ".join(f"{{{{ {name} }}}}" for name in stage.variables)
                faults.append(
                    Fault(
                        f"the {stage.value} template {template_id!r} uses none of its variables: all its "
                        "prompts would be the same",
                        where=str(work.project.paths.template_file(stage, template_id)),
                        fix=f"write {offered} where it belongs, with two braces on each side",
                    )
                )
        except CatalogError as error:
            faults.extend(error.faults)
        except TemplateError as error:
            path = work.project.paths.template_file(stage, template_id)
            faults.append(Fault(str(error), where=str(path), line=error.line, fix="correct the template"))
    _check_models(work, models, faults)
    if faults:
        raise FaultyInputError(faults, title="nothing was sent")


def _check_combos(work: CohortWork, combos: Mapping[str, int], faults: list[Fault]) -> set[str]:
    catalog, paths = work.project.catalog, work.project.paths
    good: set[str] = set()
    for combo_id in combos:
        combo = work.combos.get(combo_id)
        if combo is None:
            faults.append(
                Fault(
                    f"combo {combo_id!r} is registered nowhere, and no set of the concepts has this id",
                    where=str(paths.combo_mappings_csv),
                    fix="add its rows: combo_id, version, concept_id, description_level, k_max, created_at",
                )
            )
            continue
        missing = [name for name in combo.concept_ids if name not in catalog.concepts]
        if missing:
            faults.append(
                Fault(
                    f"combo {combo_id!r} names concepts that are not registered: {', '.join(missing)}",
                    where=str(paths.concepts_csv),
                    fix="register them",
                )
            )
            continue
        good.add(combo_id)
    return good


def _check_models(work: CohortWork, models: Iterable[str], faults: list[Fault]) -> None:
    loaded = work.project.loaded
    used: set[str] = set()
    for model_id in models:
        endpoint = loaded.endpoint_of(model_id)
        if endpoint is None:
            faults.append(
                Fault(
                    f"no endpoint serves the model {model_id!r}",
                    where=str(loaded.config or "config/genworker.toml"),
                    fix=f'set default_endpoint, or add: [models."{model_id}"] endpoint = "…"',
                )
            )
        else:
            used.add(endpoint)
    for endpoint in sorted(used):
        try:
            loaded.access(endpoint)
        except ConfigError as error:
            faults.extend(error.faults)
