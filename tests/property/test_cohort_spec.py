"""Whatever stands in a specification: faults with places, or axes that compile; never an exception."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from genworker.cohorts.axes import AXES, ComboChoice
from genworker.cohorts.compile import compile_rows
from genworker.cohorts.spec import COUPLE_KEYS, KEYS, STAGE_KEYS, PairTable, Specification, spec_axes
from genworker.cohorts.toml_lines import TomlLines
from genworker.core.stages import STAGES
from genworker.errors import Fault
from support.cohorts import REGISTERS, make_catalog

WORDS = st.sampled_from(
    ["kites", "moss", "plain", "tagged", "rewrite", "novelty", "alpha", "essay", "x", "", *AXES]
)
SCALARS = st.one_of(WORDS, st.integers(-2, 3), st.booleans(), st.floats(), st.text(max_size=3), st.none())
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=2)
)
NAMES = st.lists(WORDS, max_size=3)
COUPLES = st.fixed_dictionaries(
    {}, optional={key: VALUES | NAMES | st.lists(NAMES, max_size=3) for key in COUPLE_KEYS}
)
DOCUMENTS = st.fixed_dictionaries(
    {},
    optional={
        **{key: VALUES for key in KEYS},
        **{
            stage.value: st.fixed_dictionaries(
                {}, optional={key: VALUES | NAMES for key in STAGE_KEYS[stage]}
            )
            for stage in STAGES
        },
        "couple": st.lists(COUPLES, max_size=2),
    },
)


def read_table(name: str) -> PairTable | Fault:
    if name == "x":
        return Fault("the file does not exist", where=name)
    return PairTable(name, ("draft_template", "draft_model"), [(2, ("plain", "alpha")), (3, ("tagged",))])


@settings(max_examples=300, deadline=None)
@given(DOCUMENTS, st.text(alphabet="[]draft=couple.\"'\n #", max_size=60))
def test_no_document_breaks_the_reader(document: dict[str, Any], text: str) -> None:
    spec = Specification(document, text, "cohort.toml", read_table)
    draft = spec_axes(spec, make_catalog(), ComboChoice(), REGISTERS)
    assert all(fault.where for fault in draft.faults)
    if not draft.faults:
        rows = list(compile_rows(draft.axes, "trial"))
        assert rows
        for axis in AXES:
            assert all(isinstance(value, str) for value in draft.axes.values(axis))


@given(
    st.text(alphabet="[]ab=.\"'\n #", max_size=80), st.lists(st.sampled_from(["a", "b", 0, 1]), max_size=3)
)
def test_a_line_is_a_line_of_the_text(text: str, path: list[str | int]) -> None:
    line = TomlLines(text).of(*path, value="b")
    assert line is None or 1 <= line <= len(text.splitlines())
