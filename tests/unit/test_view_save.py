"""Where the links of saved pages lead."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from genworker.viewer.save import _Saving

PLACE = "/t/c/trial/g/essay/a"


def test_each_set_of_compared_texts_has_a_page_of_its_own() -> None:
    saving = _Saving.__new__(_Saving)
    saving.viewer = cast("Any", SimpleNamespace(root="/t/"))
    saving.compared = {}
    queries = ["id=essay%2Fa&id=essay%2Fb-c", "id=essay%2Fa-b&id=essay%2Fc", "id=draft%2Fa&id=essay%2Fb-c"]
    links = [
        saving._target(f"/t/c/trial/compare?{query}", PLACE, "../" * 4, is_last=False)
        for query in [*queries, *queries]
    ]
    assert len(set(links)) == len(queries)
    assert links[:3] == links[3:], "and one page has one name"
    assert set(saving.compared) == set(queries)
    assert all(link.startswith("../../../../c/trial/compare-a-b-c-") for link in links)
