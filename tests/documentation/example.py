"""A small made store with planted effects: the example report and the example notebook are about it.

``make example`` lays it out below ``build/example`` and writes its report; ``docs/pictures/report.png`` shows that
report's first screen.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from random import Random

from genworker.core.ids import combo_id
from support.stores import StoreBuilder

CONCEPTS = ("Tide pools", "Night trains", "Seed libraries", "Desire paths", "Rain gauges")
COHORT = "tides"


def lay_out(root: Path) -> StoreBuilder:
    """Ten pairs of concepts, two draft templates, two essay templates, two authors, three judges.

    Planted: one pair is 1.3 better, the template ``dialogue`` 0.6; the judge ``alder`` gives its own texts 0.9 more, and
    ``cedar`` gives everybody 0.4 less.
    """
    random = Random(7)
    store = StoreBuilder(root / "data", COHORT)
    catalogue = root / "data" / "1_raw"
    catalogue.mkdir(parents=True)
    names = "".join(f"c{number},{name}\n" for number, name in enumerate(CONCEPTS))
    (catalogue / "concepts_metadata.csv").write_text(f"concept_id,name\n{names}")
    mappings = ["combo_id,version,concept_id,description_level,k_max,created_at"]
    for first, second in itertools.combinations(range(len(CONCEPTS)), 2):
        ids = [f"c{first}", f"c{second}"]
        combo = combo_id(ids, "paragraph", 2)
        mappings += [f"{combo},v1,{name},paragraph,2,2026-11-01T00:00:00+00:00" for name in ids]
        worth = 5.2 + random.gauss(0, 0.5) + (1.3 if (first, second) == (0, 3) else 0.0)
        for template, author in itertools.product(("plain", "dialogue"), ("alder", "birch")):
            draft = store.draft(
                template=template, model=author, combo=combo, answer="A draft.", cost_usd="0.002"
            )
            for essay_template in ("clear", "story"):
                text = f"An essay about {CONCEPTS[first]} and {CONCEPTS[second]}. " * 3
                essay = store.essay(draft, template=essay_template, answer=text, cost_usd="0.004")
                own = worth + (0.6 if template == "dialogue" else 0.0) + random.gauss(0, 0.6)
                for judge, favour in (
                    ("alder", 0.9 if author == "alder" else 0.0),
                    ("cedar", -0.4),
                    ("elder", 0.2),
                ):
                    score = min(max(round((own + favour + random.gauss(0, 0.5)) * 2) / 2, 0), 10)
                    store.evaluation(
                        essay,
                        template="clarity",
                        model=judge,
                        answer=f"Why.\n\nSCORE: {score}",
                        cost_usd="0.001",
                    )
    (root / "data" / "combo_mappings.csv").write_text("\n".join(mappings) + "\n")
    store.write_membership()
    return store


if __name__ == "__main__":
    lay_out(Path(sys.argv[1]))
