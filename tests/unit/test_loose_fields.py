"""Which extra fields of a request make its list price no bound."""

from __future__ import annotations

import pytest

from genworker.core.loose_fields import Loose, loose_fields


@pytest.mark.parametrize(
    ("extra", "found"),
    [
        ({"top_k": 40, "n": 1, "reasoning_effort": "none", "enable_search": False, "plugins": []}, {}),
        ({"web_search_options": {}}, {"web_search_options": Loose.FEE}),
        ({"n": 3}, {"n": Loose.COPIES}),
        ({"best_of": 2}, {"best_of": Loose.COPIES}),
        ({"web_search_options": {"search_context_size": "low"}}, {"web_search_options": Loose.FEE}),
        (
            {"plugins": [{"id": "web"}], "models": ["a/b"]},
            {"plugins": Loose.FEE, "models": Loose.OTHER_MODEL},
        ),
        ({"tools": [{"type": "function", "function": {"name": "f"}}, {"name": "g"}]}, {}),
        ({"tools": [{"type": "web_search_20260209", "name": "web_search"}]}, {"tools": Loose.FEE}),
        ({"reasoning": {"effort": "high"}}, {"reasoning": Loose.THOUGHT}),
        ({"thinking": {"type": "enabled", "budget_tokens": 4000}}, {"thinking": Loose.THOUGHT}),
        ({"tools": "all", "n": "many"}, {}),
    ],
)
def test_what_loosens_a_bound(extra: dict[str, object], found: dict[str, Loose]) -> None:
    assert {field.name: field.why for field in loose_fields(extra)} == found
