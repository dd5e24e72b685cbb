"""An older specification as a cohort.toml: the same lineages, and every rule that has no such form is named."""

from __future__ import annotations

import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest

from genworker.cohorts.axes import AXES
from genworker.cohorts.older_spec import Imported, OlderSpecError, import_spec
from genworker.errors import ConfigError
from genworker.store.older_spec import read_older_spec

AXES_TEXT = """
axes:
  combo_id: [c1, c2]
  draft_template: [plain, tagged]
  draft_llm: [alpha, beta]
  essay_template: [rewrite, keep]
  essay_llm: [alpha, beta, gamma]
  evaluation_template: '@file:items/judged.csv'
  evaluation_llm: [alpha]
  evaluation_template_replicate: ['1', '2']
"""


def imported(tmp_path: Path, text: str, **files: str) -> Imported:
    path = tmp_path / "spec" / "config.yaml"
    (path.parent / "items").mkdir(parents=True, exist_ok=True)
    (path.parent / "items" / "judged.csv").write_text("evaluation_template\nnovelty\nrigour\n")
    for name, content in files.items():
        (path.parent / "items" / f"{name}.csv").write_text(content)
    path.write_text(text)
    document, load = read_older_spec(path)
    return import_spec(document, load, path.name)


def lineages(text: str) -> set[tuple[str, ...]]:
    """What the cohort.toml allows, by brute force."""
    document: dict[str, Any] = tomllib.loads(text)
    values: dict[str, list[str]] = {
        "combo": document["combos"],
        "essay_model": document.get("essay_models", [""]),
    }
    for stage in ("draft", "essay", "evaluation"):
        values[f"{stage}_template"] = document[stage]["templates"]
        values.setdefault(f"{stage}_model", document[stage].get("models", [""]))
    found = set()
    for lineage in itertools.product(*(values[axis] for axis in AXES)):
        named = dict(zip(AXES, lineage, strict=True))
        if all(
            len({named[axis] for axis in couple["axes"]}) == 1
            if couple.get("tie")
            else [named[axis] for axis in couple["axes"]] in couple["allow"]
            for couple in document.get("couple", [])
        ):
            found.add(lineage)
    return found


RULES = """
rules:
  subsets:
    draft_template: [plain]
  ties:
    writer: [draft_llm, essay_llm]
  tuples:
    bundle:
      axes: [essay_template, evaluation_template]
      items: '@file:items/bundle.csv'
  pairs:
    of_writer:
      left: writer
      right: bundle
      allowed:
        - [alpha, [rewrite, novelty]]
        - [beta, [keep, rigour]]
        - [beta, [rewrite, novelty]]
"""


def test_every_rule_is_carried_over(tmp_path: Path) -> None:
    bundle = "essay_template,evaluation_template\nrewrite,novelty\nkeep,rigour\nkeep,novelty\n"
    found = imported(tmp_path, AXES_TEXT + RULES, bundle=bundle)
    assert found.left_out == []
    assert lineages(found.text) == {
        (combo, "plain", writer, essay, writer, judged, "alpha")
        for combo in ("c1", "c2")
        for writer, essay, judged in (
            ("alpha", "rewrite", "novelty"),
            ("beta", "keep", "rigour"),
            ("beta", "rewrite", "novelty"),
        )
    }
    assert tomllib.loads(found.text)["evaluation"]["replicates"] == 2
    assert tomllib.loads(found.text)["draft"]["replicates"] == 1


def test_without_rules_it_is_the_product(tmp_path: Path) -> None:
    assert len(lineages(imported(tmp_path, AXES_TEXT).text)) == 2 * 2 * 2 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("  link_template: [a]", "axes.link_template: there is no such axis here"),
        ("  draft_replicate: ['2', '3']", "numbered from 1 without gaps, not 2, 3"),
        ("rules:\n  weights:\n    w: {a: 1}", "rules.weights.w: rules of this kind are not known"),
        (
            "rules:\n  pairs:\n    p: {left: draft_template, right: evaluation_replicate, allowed: [[plain, '1']]}",
            "evaluation_replicate: a replicate is not coupled",
        ),
        (
            "rules:\n  pairs:\n    p: {left: combo_id, right: draft_llm, balance: left, allowed: [[c1, alpha]]}",
            "rules.pairs.p.balance",
        ),
        ("rules:\n  subsets:\n    nowhere: [a]", "rules.subsets.nowhere"),
        ("output:\n  seed: 3", "output.seed"),
        ("notes: x", "the section 'notes' is not known"),
    ],
)
def test_what_has_no_form_here_is_named(tmp_path: Path, text: str, what: str) -> None:
    (left,) = imported(tmp_path, f"{AXES_TEXT}{text}\n").left_out
    assert what in left


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("- a", "no mapping of axes and rules"),
        ("axes: 3", "axes is no mapping"),
        ("axes:\n  draft_template: 3", "neither a list nor @file"),
        ("axes:\n  draft_template: '@file:../../secret.csv'", "lies outside"),
        ("axes:\n  draft_template: '@file:items/nowhere.csv'", "does not exist"),
        ("axes:\n  draft_template: '@file:items/judged.exe'", "a file of this kind is not known"),
        ("axes:\n  combo_id: [a]\nrules:\n  subsets:\n    combo_id: [b]", "leave nothing"),
        (
            "axes:\n  combo_id: [a]\nrules:\n  tuples:\n    t: {axes: [combo_id, draft_llm], items: [[a]]}",
            "one value each",
        ),
    ],
)
def test_what_cannot_be_understood_is_refused(tmp_path: Path, text: str, what: str) -> None:
    with pytest.raises(OlderSpecError, match=what):
        imported(tmp_path, text)


@pytest.mark.parametrize("text", ["axes: [", "a: !!python/object/apply:os.system ['true']\n b", "\xff"])
def test_what_is_no_yaml_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError):
        read_older_spec(path)
