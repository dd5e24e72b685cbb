"""When a generation is stale: only on evidence."""

from __future__ import annotations

from typing import Any

import pytest

from genworker.cohorts.freshness import Rendered, StaleReason, rendered, stale_reason
from genworker.core.facts import Facts

MADE = Rendered("llm", "t1", "p1", "d1", "r1", "s1")
PARENT = Rendered("llm", None, None, None, None, "d1")
SAME: dict[str, Any] = {
    "template_sha256": "t1",
    "first_sha256": "t0",
    "prompt_sha256": "p1",
    "parent": PARENT,
}


@pytest.mark.parametrize(
    ("made", "today", "reason"),
    [
        (MADE, {}, None),
        (MADE, {"template_sha256": "t2"}, StaleReason.TEMPLATE),
        (MADE, {"template_sha256": None}, None),
        (MADE, {"prompt_sha256": "p2"}, StaleReason.CONCEPTS),
        (MADE, {"prompt_sha256": None}, None),
        (MADE, {"parent": PARENT._replace(parsed_sha256="d2")}, StaleReason.PARENT),
        (MADE, {"parent": PARENT._replace(parsed_sha256=None)}, None),
        (MADE, {"parent": None}, None),
        (MADE._replace(parent_sha256=None), {"parent": PARENT._replace(parsed_sha256="d2")}, None),
        # A copy has its parent's text as its own raw text, and no template.
        (MADE._replace(mode="copy", raw_sha256="d1", parent_sha256=None), {"template_sha256": None}, None),
        (
            MADE._replace(mode="copy", raw_sha256="d0", template_sha256=None),
            {"template_sha256": None},
            StaleReason.PARENT,
        ),
        # Another tool's generation has no digests: the cohort's first build stands for them.
        (Rendered(None, None, None, None, None, None), {"template_sha256": "t0"}, None),
        (Rendered(None, None, None, None, None, None), {}, StaleReason.TEMPLATE),
        (Rendered(None, None, None, None, None, None), {"first_sha256": None}, None),
    ],
)
def test_the_rule(made: Rendered, today: dict[str, Any], reason: StaleReason | None) -> None:
    assert stale_reason(made, **{**SAME, **today}) is reason


def test_metadata_of_any_shape_can_be_read() -> None:
    files = {"prompt.txt": {"sha256": "p"}, "raw.txt": None, "parsed.txt": {"sha256": 3}}
    assert rendered(Facts({"mode": "llm", "files": files, "template_sha256": ["x"]})) == Rendered(
        "llm", None, "p", None, None, None
    )
    assert rendered(Facts({"files": "none"})) == Rendered(None, None, None, None, None, None)
