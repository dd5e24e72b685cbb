"""Which texts are compared."""

from __future__ import annotations

from typing import Any

from genworker.cohorts.pairs import PairDesign, Text, drawn


class Counted(list[Text]):
    """Texts that count how often one of them is looked at."""

    looks = 0

    def __getitem__(self, number: Any) -> Any:
        self.looks += 1
        return super().__getitem__(number)


def test_texts_are_compared_with_a_baseline_in_their_order_and_each_is_looked_at_once() -> None:
    texts = Counted(Text(f"t{number}", (), number in (3, 50)) for number in range(1000))
    found = list(drawn(PairDesign(baseline=(("model", "alpha"),)), texts))
    others = [number for number in range(1000) if number not in (3, 50)]
    assert found == [(min(base, other), max(base, other)) for base in (3, 50) for other in others]
    assert texts.looks <= 2 * len(texts)
