"""The table of kinds: what holds it together, and that nobody asks for a kind elsewhere."""

from __future__ import annotations

import re
import typing
from pathlib import Path

import pytest
from pydantic import TypeAdapter

import genworker
from genworker.core.completion import Sampling
from genworker.project.endpoints import KINDS, AnyEndpoint, kind_of

HOME = Path(genworker.__file__).parent


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_in_the_table_and_in_the_union_under_one_name(name: str) -> None:
    section = TypeAdapter[typing.Any](AnyEndpoint).validate_python({"kind": name})
    assert type(section) is KINDS[name].settings
    assert kind_of(section) is KINDS[name]


def test_the_union_has_no_kind_that_the_table_lacks() -> None:
    union = typing.get_args(AnyEndpoint)[0]
    assert set(typing.get_args(union)) == {kind.settings for kind in KINDS.values()}


def test_no_other_module_asks_for_a_kind_by_its_name() -> None:
    names = "|".join(KINDS)
    asks = re.compile(rf"kind\s*(?:==|!=|in|not in)\s*[(\[{{]?\s*['\"](?:{names})['\"]")
    found = [str(path) for path in HOME.rglob("*.py") if asks.search(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    ("kind", "extra", "most"),
    [
        ("openai", {}, 100),
        ("openai", {"max_completion_tokens": 300}, 300),
        ("openai", {"n": 3}, 300),
        ("openai", {"max_output_tokens": 200, "best_of": 2}, 400),
        ("openai", {"options": {"num_predict": 700}}, 700),
        ("openai", {"n_predict": True, "n": "many"}, 100),
        ("anthropic", {"thinking": {"type": "enabled", "budget_tokens": 5000}}, 5000),
        ("anthropic", {"n": 3}, 100),
        ("local", {"n_predict": 128}, 128),
    ],
)
def test_the_longest_answer_counts_what_bounds_it(kind: str, extra: dict[str, object], most: int) -> None:
    assert KINDS[kind].longest_answer(Sampling(max_tokens=100, extra_body=extra)) == most


def test_nothing_bounds_an_answer_where_nothing_says_so() -> None:
    assert KINDS["openai"].longest_answer(Sampling(extra_body={"n": 3})) is None
