"""Reads the catalogue, templates and membership of a data root, and reports every fault at once."""

from __future__ import annotations

import contextlib
import difflib
import gc
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from genworker.core.catalog import LEVELS, Catalog, Combo, Concept, ModelEntry, TemplateEntry
from genworker.core.generation import file_digest
from genworker.core.ids import combo_id, id_fault
from genworker.core.membership import Known, Membership, MembershipRow, is_older_header, read_membership
from genworker.core.parsers import get_parser
from genworker.core.prompts import PromptTemplate
from genworker.core.stages import STAGES, Stage
from genworker.errors import (
    ANY,
    CatalogError,
    CatalogFault,
    Fault,
    MembershipError,
    TemplateError,
    UsageError,
)
from genworker.paths import TEMPLATES_ROOT_VARIABLE, Paths
from genworker.store.csvfile import CsvFault, open_csv

MAX_TEMPLATE_BYTES = 4_000_000
STREAMED_ROWS = 1000

TEMPLATE_COLUMNS = (
    "template_name",
    "description",
    "parser",
    "generator",
    "active",
    "min_lines",
    "min_chars",
)
MODEL_COLUMNS = ("provider", "display_name", "for_generation", "for_evaluation")
NEARLY = 0.84
"""How alike two names are (difflib's ratio) when one is taken for a slip of the other: a letter or two."""

_TRUE = ("true", "1", "yes")
_FALSE = ("false", "0", "no")


class _Table:
    """One CSV of the catalogue: draws records as mappings and collects faults with their places."""

    def __init__(
        self,
        path: Path,
        required: Sequence[str],
        faults: list[Fault],
        kind: str,
        optional: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.kind = kind
        self.required = required
        self.optional = optional
        self.faults = faults

    def fault(
        self,
        line: int | None,
        column: str | None,
        what: str,
        fix: str | None = None,
        *,
        about: str | None = None,
    ) -> None:
        """Note a fault; one that is `about` an entry hinders only cohorts that use the entry."""
        concerns = (self.kind, ANY if about is None else about)
        where = str(self.path)
        self.faults.append(
            CatalogFault(what, where=where, line=line, column=column, fix=fix, concerns=concerns)
        )

    def rows(self) -> Iterable[tuple[int, dict[str, str]]]:
        try:
            with open_csv(self.path) as (header, records):
                names = [name.strip() for name in header]
                missing = [name for name in self.required if name not in names]
                if missing:
                    self.fault(1, None, f"missing columns: {', '.join(missing)}", "add them to the header")
                    return
                self._look_for_slips(names)
                for line, cells in records:
                    if not any(cells):
                        continue
                    if len(cells) != len(names):
                        self.fault(
                            line,
                            None,
                            f"{len(cells)} cells in a file of {len(names)} columns",
                            "quote cells that hold commas",
                        )
                        continue
                    yield line, dict(zip(names, map(str.strip, cells), strict=True))
        except CsvFault as error:
            found = error.fault
            self.fault(found.line, found.column, found.what, found.fix)

    def _look_for_slips(self, names: Sequence[str]) -> None:
        """Further columns are anybody's own; one that is nearly a known one was meant to be it."""
        absent = [name for name in self.optional if name not in names]
        for name in names:
            if name in self.required or name in self.optional:
                continue
            close = difflib.get_close_matches(name.lower(), absent, n=1, cutoff=NEARLY)
            if close:
                self.fault(1, name, f"unknown column {name[:40]!r}", f"did you mean {close[0]}?")

    def flag(self, line: int, row: Mapping[str, str], column: str, default: bool) -> bool:
        text = row.get(column)
        if text is None:
            return default
        if text.lower() in _TRUE:
            return True
        if text.lower() not in _FALSE:
            # Of nobody alone: what it would say decides who uses the entry.
            self.fault(line, column, f"{column} is {text[:40]!r}", "write true or false")
        return False

    def count(self, line: int, row: Mapping[str, str], column: str) -> int | None:
        """A whole number from 1; ``None`` for an empty cell."""
        text = row.get(column) or ""
        if not text:
            return None
        if text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= 1:
            return int(text)
        fix = "use a whole number from 1, or leave it empty"
        self.fault(line, column, f"{column} is {text[:40]!r}", fix, about=self._id(row))
        return None

    def _id(self, row: Mapping[str, str]) -> str | None:
        """The id of a row's entry: that of the column which the register must have first."""
        value = row.get(self.required[0])
        return value if value and id_fault(value) is None else None

    def plain_id(self, line: int, row: Mapping[str, str], column: str, taken: Collection[str]) -> str | None:
        """The row's id when it can be one and is new; else a fault and ``None``."""
        value = row[column]
        reason = id_fault(value)
        if reason is not None:
            self.fault(line, column, f"{column} {value[:60]!r} {reason}", "use a plain name")
            return None
        if value in taken:
            fix = "remove one of the two rows"
            self.fault(line, column, f"{column} {value!r} stands twice", fix, about=value)
            return None
        return value


def read_catalog(paths: Paths) -> tuple[Catalog, list[Fault]]:
    """Read ``1_raw`` and ``combo_mappings.csv``.

    Template files are not read here, see `TemplateFiles`; a concept's descriptions are when one of them is
    asked for, and what is wrong with them joins the faults then. Files that an experiment may lack
    (replicates, combos, a stage's templates, concepts) read as empty.

    Returns:
        What could be read, and every fault with its file and line.
    """
    faults: list[Fault] = []
    if not paths.catalog_dir.is_dir():
        faults.append(
            Fault(
                "there is no catalogue",
                where=str(paths.catalog_dir),
                fix="name the right directory with --data-root; the catalogue is its folder 1_raw",
            )
        )
        return Catalog({stage: {} for stage in STAGES}, {}, {}, {}), faults
    concepts = _read_concepts(paths, faults)
    catalog = Catalog(
        templates={stage: _read_templates(paths, stage, faults) for stage in STAGES},
        models=_read_models(paths, faults),
        concepts=concepts,
        combos={
            **read_combos(paths.selected_combos_csv, faults),
            **read_combos(paths.combo_mappings_csv, faults),
        },
        replicates=_read_replicates(paths, faults),
    )
    return catalog, faults


def _read_templates(paths: Paths, stage: Stage, faults: list[Fault]) -> dict[str, TemplateEntry]:
    entries: dict[str, TemplateEntry] = {}
    path = paths.templates_csv(stage)
    if not path.exists():
        return entries
    table = _Table(path, ("template_id",), faults, stage.value, TEMPLATE_COLUMNS)
    for line, row in table.rows():
        template_id = table.plain_id(line, row, "template_id", entries)
        generator = row.get("generator") or "llm"
        parser = row.get("parser") or None
        least = {name: table.count(line, row, name) for name in ("min_lines", "min_chars")}
        active = table.flag(line, row, "active", True)
        kind: Literal["llm", "copy"] = "copy" if generator == "copy" else "llm"
        if generator not in ("llm", "copy"):
            what = f"unknown generator {generator!r}"
            table.fault(line, "generator", what, "use llm or copy", about=template_id)
        elif generator == "copy" and stage.is_root:
            table.fault(line, "generator", "a draft has no parent to copy", "use llm", about=template_id)
        try:
            get_parser(stage, parser)
        except LookupError as error:
            table.fault(line, "parser", str(error.args[0]), about=template_id)
        if template_id is not None:
            entries[template_id] = TemplateEntry(
                stage,
                template_id,
                row.get("template_name") or template_id,
                row.get("description", ""),
                parser,
                kind,
                active,
                line,
                **least,
            )
    return entries


def _read_models(paths: Paths, faults: list[Fault]) -> dict[str, ModelEntry]:
    entries: dict[str, ModelEntry] = {}
    if not paths.models_csv.exists():
        return entries
    table = _Table(paths.models_csv, ("id", "model"), faults, "model", MODEL_COLUMNS)
    for line, row in table.rows():
        model_id = table.plain_id(line, row, "id", entries)
        if not row["model"]:
            fix = "write the name that the endpoint knows"
            table.fault(line, "model", "the model's name is empty", fix, about=model_id)
        generation = table.flag(line, row, "for_generation", True)
        evaluation = table.flag(line, row, "for_evaluation", True)
        if model_id is not None:
            entries[model_id] = ModelEntry(
                model_id,
                row["model"],
                row.get("provider", ""),
                row.get("display_name") or model_id,
                generation,
                evaluation,
                line,
            )
    return entries


class _Descriptions(Mapping[str, str]):
    """A concept's descriptions by level, read when one is asked for: a catalogue may have 50,000 concepts."""

    __slots__ = ("_concept_id", "_faults", "_found", "_paths")

    def __init__(self, paths: Paths, concept_id: str, faults: list[Fault]) -> None:
        self._paths = paths
        self._concept_id = concept_id
        self._faults = faults
        self._found: dict[str, str] | None = None

    def __getitem__(self, level: str) -> str:
        return self._read()[level]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> dict[str, str]:
        if self._found is None:
            self._found = {}
            for level in LEVELS:
                path = self._paths.concept_description(self._concept_id, level)
                try:
                    if path.is_file():
                        self._found[level] = path.read_text(encoding="utf-8-sig").strip()
                except (UnicodeDecodeError, OSError) as error:
                    what, concerns = f"cannot be read as UTF-8 text: {error}", ("concept", self._concept_id)
                    self._faults.append(CatalogFault(what, where=str(path), concerns=concerns))
        return self._found


def _read_concepts(paths: Paths, faults: list[Fault]) -> dict[str, Concept]:
    entries: dict[str, Concept] = {}
    if not paths.concepts_csv.exists():
        return entries
    table = _Table(paths.concepts_csv, ("concept_id", "name"), faults, "concept", ("active",))
    for line, row in table.rows():
        concept_id = table.plain_id(line, row, "concept_id", entries)
        active = table.flag(line, row, "active", True)
        if concept_id is not None:
            descriptions = _Descriptions(paths, concept_id, faults)
            entries[concept_id] = Concept(concept_id, row["name"] or concept_id, active, descriptions, line)
    return entries


def _read_replicates(paths: Paths, faults: list[Fault]) -> dict[Stage, int]:
    replicates = dict.fromkeys(STAGES, 1)
    if not paths.replication_csv.exists():
        return replicates
    table = _Table(paths.replication_csv, ("stage", "replicates"), faults, "replicates")
    seen: set[str] = set()
    for line, row in table.rows():
        name, text = row["stage"], row["replicates"]
        if name not in {stage.value for stage in STAGES}:
            table.fault(line, "stage", f"unknown stage {name!r}", "use draft, essay or evaluation")
        elif name in seen:
            table.fault(line, "stage", f"{name} stands twice", "remove one of the two rows")
        elif not (text.isascii() and text.isdecimal() and len(text) < 7 and int(text) >= 1):
            table.fault(line, "replicates", f"replicates is {text[:40]!r}", "use a whole number from 1")
        else:
            replicates[Stage(name)] = int(text)
        seen.add(name)
    return replicates


def read_combos(path: Path, faults: list[Fault]) -> dict[str, Combo]:
    """Read a file with a row per combo and concept, in its order; empty when there is none."""
    if not path.exists():
        return {}
    table = _Table(path, ("combo_id", "concept_id"), faults, "combo")
    concepts: dict[str, list[str]] = {}
    facts: dict[str, tuple[str, int, int]] = {}
    for line, row in table.rows():
        name = row["combo_id"]
        reason = id_fault(name) or id_fault(row["concept_id"])
        if reason is not None:
            table.fault(line, "combo_id", f"an id of this row {reason}", "use plain names")
            continue
        level = row.get("description_level") or "paragraph"
        k_text = row.get("k_max") or "0"
        k_max = int(k_text) if k_text.isascii() and k_text.isdecimal() and len(k_text) < 6 else 0
        if level not in LEVELS:
            table.fault(line, "description_level", f"unknown level {level!r}", f"use {', '.join(LEVELS)}")
            continue
        first = facts.setdefault(name, (level, k_max, line))
        if first[:2] != (level, k_max):
            table.fault(
                line,
                "description_level",
                f"combo {name} has another level or k_max in line {first[2]}",
                "a combo has one of each",
            )
        members = concepts.setdefault(name, [])
        if row["concept_id"] not in members:
            members.append(row["concept_id"])
    combos = {}
    for name, members in concepts.items():
        level, k_max, line = facts[name]
        k_max = k_max or len(members)
        if name.startswith("combo_v1_") and name != combo_id(members, level, k_max):
            table.fault(
                line,
                "combo_id",
                f"combo {name} stands here with other concepts than its id was made from",
                "correct its rows, or remove them: the id is a digest of concepts, level and k_max",
            )
        combos[name] = Combo(name, tuple(members), level, k_max)
    return combos


class TemplateFiles:
    """Reads and compiles template files, each once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._compiled: dict[tuple[Stage, str], PromptTemplate] = {}
        self._digests: dict[tuple[Stage, str], str] = {}

    def get(self, stage: Stage, template_id: str) -> PromptTemplate:
        """The compiled template; cheap after the first call.

        Raises:
            CatalogError: the file is missing, too large, not UTF-8, or not a valid template of its stage.
        """
        key = (stage, template_id)
        if key not in self._compiled:
            content = self._read(stage, template_id)
            self._digests[key] = file_digest(content.encode())
            try:
                self._compiled[key] = PromptTemplate(content, stage)
            except TemplateError as error:
                raise self._fault(stage, template_id, str(error), line=error.line) from None
        return self._compiled[key]

    def text(self, stage: Stage, template_id: str) -> str:
        """The template's text as it stands, whether or not it can be used.

        Raises:
            CatalogError: the file is missing, too large, or not UTF-8.
        """
        return self._read(stage, template_id)

    def digest(self, stage: Stage, template_id: str) -> str:
        """SHA-256 of the template's text, in hex."""
        self.get(stage, template_id)
        return self._digests[stage, template_id]

    def _read(self, stage: Stage, template_id: str) -> str:
        path = self._paths.template_file(stage, template_id)
        try:
            if path.stat().st_size > MAX_TEMPLATE_BYTES:
                raise self._fault(
                    stage, template_id, f"the template is larger than {MAX_TEMPLATE_BYTES} bytes"
                )
            return path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            raise self._fault(
                stage,
                template_id,
                f"the {stage.value} template {template_id!r} has no file",
                fix=f"write it, or point {TEMPLATES_ROOT_VARIABLE} at the directory that has it",
            ) from None
        except UnicodeDecodeError as error:
            raise self._fault(stage, template_id, f"the template is not UTF-8: {error.reason}") from None
        except OSError as error:
            raise self._fault(stage, template_id, f"the template cannot be read: {error.strerror}") from None

    def _fault(
        self, stage: Stage, template_id: str, what: str, *, line: int | None = None, fix: str | None = None
    ) -> CatalogError:
        path = self._paths.template_file(stage, template_id)
        return CatalogError([Fault(what, where=str(path), line=line, fix=fix)])


def list_cohorts(paths: Paths) -> list[str]:
    """Ids of the cohorts that have a membership, sorted."""
    try:
        with os.scandir(paths.cohorts_dir) as entries:
            return sorted(
                entry.name for entry in entries if paths.cohort_membership_csv(entry.name).is_file()
            )
    except OSError:
        return []


class _Anything(frozenset[str]):
    """A container in which every string is found."""

    def __contains__(self, item: object) -> bool:
        return True


_EVERY_NAME = Known(
    templates=dict.fromkeys(STAGES, _Anything()),
    copies=dict.fromkeys(STAGES, _Anything()),
    models=_Anything(),
    template_files={},
    models_file="",
)


def load_membership_as_it_stands(paths: Paths, cohort_id: str) -> Membership:
    """Read a cohort for commands that only look: every name is taken, also where the catalogue is gone.

    Raises:
        UsageError, MembershipError: as `load_membership`.
    """
    return load_membership(paths, cohort_id, _EVERY_NAME, lambda stage, gen_id: True)


def _membership_path(paths: Paths, cohort_id: str) -> Path:
    reason = id_fault(cohort_id)
    if reason is not None:
        raise UsageError([Fault(f"cohort {cohort_id[:60]!r} {reason}", fix="name a cohort")])
    path = paths.cohort_membership_csv(cohort_id)
    if not path.exists():
        cohorts = list_cohorts(paths)
        there = f"cohorts here: {', '.join(cohorts[:20])}" if cohorts else "there are no cohorts here yet"
        raise UsageError(
            [
                Fault(
                    f"there is no cohort {cohort_id!r}",
                    where=str(path),
                    fix=f"{there}; build one with: genworker cohort build {cohort_id}",
                )
            ]
        )
    return path


def is_two_column(paths: Paths, cohort_id: str) -> bool:
    """Whether a cohort has the membership of an older layout: stage and gen_id, all else in the metadata."""
    try:
        with open_csv(paths.cohort_membership_csv(cohort_id)) as (header, _):
            return is_older_header([name.strip() for name in header])
    except CsvFault:
        return False


def stream_membership(paths: Paths, cohort_id: str) -> Iterator[MembershipRow]:
    """The rows of a cohort in order, few at a time: for what runs in flat memory, whatever their number.

    Rows are checked as `load_membership_as_it_stands` does, as far as a batch of them shows it.

    Raises:
        UsageError, MembershipError: as `load_membership`, but when the batch with the fault is reached.
    """
    path = _membership_path(paths, cohort_id)
    try:
        with open_csv(path) as (header, records):
            while batch := list(islice(records, STREAMED_ROWS)):
                membership, faults = read_membership(
                    header,
                    batch,
                    cohort_id=cohort_id,
                    where=str(path),
                    known=_EVERY_NAME,
                    on_disk=lambda stage, gen_id: True,
                )
                if faults:
                    raise MembershipError(faults)
                yield from membership.rows
    except CsvFault as error:
        raise MembershipError([error.fault]) from None


def listed_combos(paths: Paths) -> dict[str, str]:
    """The combo of each draft that any membership of the store names, those that can be read."""
    found: dict[str, str] = {}
    for cohort_id in list_cohorts(paths):
        with contextlib.suppress(MembershipError):
            for row in stream_membership(paths, cohort_id):
                if row.stage.is_root:
                    found.setdefault(row.gen_id, row.combo_id)
    return found


def load_membership(
    paths: Paths,
    cohort_id: str,
    known: Known,
    on_disk: Callable[[Stage, str], bool],
) -> Membership:
    """Read and check a cohort's ``membership.csv``.

    Raises:
        UsageError: there is no such cohort; the message lists those that exist.
        MembershipError: the file is wrong; every fault at once.
    """
    path = _membership_path(paths, cohort_id)
    was_enabled = gc.isenabled()
    gc.disable()  # a million rows are allocated and none is garbage: it would walk them again and again
    try:
        with open_csv(path) as (header, records):
            membership, faults = read_membership(
                header, records, cohort_id=cohort_id, where=str(path), known=known, on_disk=on_disk
            )
    except CsvFault as error:
        raise MembershipError([error.fault]) from None
    finally:
        if was_enabled:
            gc.enable()
    if faults:
        raise MembershipError(faults, title=f"{path} is refused, nothing was sent")
    return membership
