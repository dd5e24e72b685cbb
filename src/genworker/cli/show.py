"""``show``: one generation in the terminal: lineage, texts, scores, attempts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from genworker.cli.app import ConfigOption, DataRootOption, JsonOption, app, command, put, put_json
from genworker.cli.options import data_paths_and_settings
from genworker.cli.words import money_record
from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault, UsageError

if TYPE_CHECKING:
    from genworker.core.generation import Generation
    from genworker.paths import Paths

SHOWN_CHARS = 1500
"""Characters of a text that stand in the terminal unless all are asked for."""
SHOWN_CHILDREN = 100


@app.command("show")
@command
def show(
    gen_id: Annotated[
        str, typer.Argument(metavar="GEN_ID", help="A generation, as pages and tables name it.")
    ],
    stage: Annotated[
        Stage | None, typer.Option("--stage", help="Of this stage, where two stages have the same id.")
    ] = None,
    config: ConfigOption = None,
    data_root: DataRootOption = None,
    whole: Annotated[bool, typer.Option("--whole", help="The texts to their ends.")] = False,
    json_: JsonOption = False,
) -> int:
    """Show one generation: what it was made from, its texts, what was made from it, what it took."""
    paths, settings = data_paths_and_settings(config, data_root)
    generation, cohorts = find(paths, gen_id, stage)
    record = show_record(paths, generation, cohorts)
    if json_:
        put_json(record | {"money": money_record(paths, settings, cohorts)})
        return 0
    for line in show_lines(record, whole=whole):
        put(line)
    return 0


def find(paths: Paths, gen_id: str, stage: Stage | None) -> tuple[Generation, list[str]]:
    """The generation of that name, and the cohorts whose membership has it.

    Raises:
        UsageError: no stage has it, or several have.
        StoreError: it cannot be read.
    """
    from genworker.core.ids import id_fault
    from genworker.store.reading import read_generation

    reason = id_fault(gen_id)
    if reason is not None:
        raise UsageError([Fault(f"GEN_ID {gen_id[:60]!r} {reason}", fix="name one as pages and tables do")])
    found = [
        at for at in STAGES if (stage is None or at is stage) and paths.generation_dir(at, gen_id).is_dir()
    ]
    cohorts = planned_in(paths, gen_id)
    if not found:
        where = f"; cohort {cohorts[0]} plans it, and nobody has made it yet" if cohorts else ""
        raise UsageError(
            [Fault(f"the store has no generation {gen_id!r}{where}", where=str(paths.gens_root))]
        )
    if len(found) > 1:
        names = " or ".join(f"--stage {at.value}" for at in found)
        raise UsageError([Fault(f"several stages have a generation {gen_id!r}", fix=f"add {names}")])
    return read_generation(paths.gens_root, found[0], gen_id), cohorts


def planned_in(paths: Paths, gen_id: str) -> list[str]:
    """The cohorts whose membership names the id; a look for the text itself tells most of them apart."""
    from genworker.store.catalog import list_cohorts

    found = []
    for cohort in list_cohorts(paths):
        try:
            if gen_id.encode() in paths.cohort_membership_csv(cohort).read_bytes():
                found.append(cohort)
        except OSError:
            continue
    return found


def show_record(paths: Paths, generation: Generation, cohorts: list[str]) -> dict[str, Any]:
    """All that is known of a generation."""
    return {
        **brief(generation),
        "cohorts": cohorts,
        "ancestors": [brief(parent) for parent in ancestors(paths, generation)],
        "children": list(children(paths, generation, cohorts)),
        "prompt": generation.prompt_text,
        "raw": generation.raw_text or None,
        "reasoning": generation.reasoning_text,
        "parsed": generation.parsed_text,
        "metadata": dict(generation.metadata),
        "path": str(paths.generation_dir(generation.stage, generation.gen_id)),
    }


def brief(generation: Generation) -> dict[str, Any]:
    """What is worth a glance."""
    facts, failure = generation.facts, generation.failure
    return {
        "stage": generation.stage.value,
        "gen_id": generation.gen_id,
        "state": "done" if generation.is_done else failure.kind.value if failure else "unparsed",
        "error": None if failure is None else failure.message,
        "template": facts.template_id,
        "model": facts.model_id,
        "replicate": facts.replicate,
        "combo_id": facts.combo_id,
        "parent_gen_id": facts.parent_gen_id,
        "second_parent_gen_id": facts.second_parent_gen_id,
        "endpoint": facts.endpoint,
        "response_model": facts.response_model,
        "finish_reason": facts.finish_reason,
        "attempts": facts.attempts,
        "input_tokens": facts.usage.input_tokens,
        "output_tokens": facts.usage.output_tokens,
        "cost_usd": None if facts.cost_usd is None else str(facts.cost_usd),
        "finished_at": facts.finished_at,
        "latency_s": facts.latency_s,
    }


def ancestors(paths: Paths, generation: Generation) -> Iterator[Generation]:
    """The parent, its parent, and so on, as far as the store has them; where two are compared, both lines."""
    from genworker.errors import StoreError
    from genworker.store.reading import read_generation

    wanted = [(generation.stage.parent, generation.facts.second_parent_gen_id)]
    wanted.append((generation.stage.parent, generation.parent_gen_id))
    seen: set[tuple[Stage, str]] = set()
    while wanted:
        stage, parent_id = wanted.pop()
        if stage is None or not parent_id or (stage, parent_id) in seen:
            continue
        seen.add((stage, parent_id))
        try:
            parent = read_generation(paths.gens_root, stage, parent_id)
        except (StoreError, ValueError):
            continue
        yield parent
        wanted.append((parent.stage.parent, parent.parent_gen_id))


def children(paths: Paths, generation: Generation, cohorts: list[str]) -> Iterator[dict[str, Any]]:
    """What these cohorts plan to be made from it, and what came of that."""
    from genworker.core.parsers import FIRST, SECOND, TIE, read_choice, read_score
    from genworker.errors import StoreError
    from genworker.store.catalog import stream_membership
    from genworker.store.reading import read_generation

    seen: set[tuple[Stage, str]] = set()
    for cohort in cohorts:
        for row in stream_membership(paths, cohort):
            key = (row.stage, row.gen_id)
            if generation.gen_id not in row.above or row.stage.parent is not generation.stage or key in seen:
                continue
            seen.add(key)
            if len(seen) > SHOWN_CHILDREN:
                return
            child = {
                "stage": row.stage.value,
                "gen_id": row.gen_id,
                "template": row.template_id,
                "model": row.llm_model_id,
                "replicate": row.replicate,
            }
            if row.second_parent_gen_id is not None:
                child["against"] = next(name for name in row.above if name != generation.gen_id)
            try:
                made = read_generation(paths.gens_root, row.stage, row.gen_id)
            except (StoreError, ValueError):
                yield child | {"state": "missing", "score": None}
                continue
            score = read_score(made.parsed_text or "") if made.is_done and row.stage.is_scored else None
            if row.second_parent_gen_id is not None:
                choice = read_choice(made.parsed_text or "") if made.is_done else None
                own = FIRST if row.parent_gen_id == generation.gen_id else SECOND
                child["choice"] = choice if choice in (None, TIE) else "won" if choice == own else "lost"
            yield child | {"state": brief(made)["state"], "score": score}


def show_lines(record: dict[str, Any], *, whole: bool) -> Iterator[str]:
    """A generation for a terminal."""
    yield f"{record['stage']} {record['gen_id']}: {record['state']}"
    if record["error"]:
        yield f"  {record['error']}"
    for name in ("template", "model", "replicate", "combo_id", "endpoint", "response_model", "finish_reason"):
        if record[name] is not None:
            yield f"  {name.replace('_', ' '):<15} {record[name]}"
    tokens = f"{record['input_tokens']} → {record['output_tokens']}"
    yield f"  {'tokens':<15} {tokens.replace('None', '?')}"
    yield f"  {'cost':<15} {'unpriced' if record['cost_usd'] is None else '$' + record['cost_usd']}"
    for name, unit in (("attempts", ""), ("latency_s", " s"), ("finished_at", "")):
        if record[name] is not None:
            yield f"  {name.removesuffix('_s').replace('_', ' '):<15} {record[name]}{unit}"
    yield f"  {'cohorts':<15} {', '.join(record['cohorts']) or 'none'}"
    yield f"  {'files':<15} {record['path']}"
    for parent in record["ancestors"]:
        what = f"{parent['template'] or '?'} by {parent['model'] or '?'}"
        yield f"  made from {parent['stage']} {parent['gen_id']}: {what}, {parent['state']}"
    for name in ("prompt", "reasoning", "raw", "parsed"):
        text = record[name]
        if not text or (name == "parsed" and text == record["raw"]):
            continue
        yield ""
        yield f"── {name} ──"
        yield text if whole else text[:SHOWN_CHARS]
        if not whole and len(text) > SHOWN_CHARS:
            yield f"… and {len(text) - SHOWN_CHARS:,} more characters: --whole"
    if record["children"]:
        yield ""
        yield "── made from it ──"
    for child in record["children"]:
        score = "" if child["score"] is None else f" {child['score']:g}"
        what = f"{child['template']} by {child['model'] or '?'} r{child['replicate']}"
        if child.get("against"):
            what += f", against {child['against']}"
        score = f" {child['choice']}" if child.get("choice") else score
        yield f"  {child['stage']} {child['gen_id']}: {what}, {child['state']}{score}"
    failure = record["metadata"].get("failure")
    if failure:
        yield ""
        yield f"why it is no good: {json.dumps(failure, ensure_ascii=False)}"
