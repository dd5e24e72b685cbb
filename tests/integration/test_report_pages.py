"""The pages: what they show, that nothing in them runs, and where the texts of large cohorts go."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import genworker.reports.page as page_module
from genworker.api import read_report
from genworker.paths import Paths
from genworker.reports.page import write_pages
from genworker.reports.tables import agreement, pivot
from genworker.store.reader import StoreReader
from support.pages import Page
from support.stores import StoreBuilder

NOW = datetime(2026, 11, 22, 19, 20, 4, tzinfo=UTC)
HOSTILE = (
    "<script>document.title='PWNED'</script><img src=x onerror=\"document.title='PWNED'\">"
    '<a href="javascript:alert(1)">x</a> [link](javascript:alert(1)) </textarea></pre></details>'
    "</article></main><style>*{display:none}</style><!-- --> ]]> {{ 7 * 7 }} {% raw %} &lt;b&gt; "
    "\x1b[31mred\x1b[0m \x9b31m \x07 \x00 \u202eright to left\u202c \u2066isolate\u2069 \u2028 \ufeff end"
)


def write(root: Path, *cohorts: str, **options: Any) -> list[Page]:
    reader = StoreReader(Paths.from_str(root))
    reading = read_report(reader, cohorts or ("pilot",))
    directory = root / "out"
    settings: dict[str, Any] = {"read_at": NOW, "version": "1.2.3", "files": []} | options
    written = write_pages(
        reading, pivot(reading.scores), agreement(reading.scores), reader, directory, **settings
    )
    pages = [Page(path) for path in written]
    for page in pages:
        assert page.faults == []
        assert page.dead_links() == []
        assert len(set(page.ids)) == len(page.ids)
        assert (
            page.policy
            == f"default-src 'none'; style-src '{page.style_hash()}'; base-uri 'none'; form-action 'none'"
        )
    assert {path.name for path in directory.iterdir()} <= {"report.html", "pages"}, "no scratch is left"
    return pages


@pytest.fixture
def messy(tmp_path: Path) -> StoreBuilder:
    """Something of everything that a cohort can come to."""
    store = StoreBuilder(tmp_path, "tides-pilot")
    for number in range(1, 4):
        draft = store.draft(
            template=f"d{number}", answer=f"Draft {number} about the tide. " * 10, cost_usd="0.5"
        )
        essay = store.essay(draft, answer=f"Essay {number} about what the tide leaves. " * 10)
        for replicate in (1, 2):
            store.evaluation(
                essay, model="good", replicate=replicate, answer=f"Why.\n\nSCORE: {number + replicate}"
            )
            store.evaluation(essay, model="mute", replicate=replicate, answer="I will not.")
    lost = store.draft(template="d4", finish_reason="length", sampling={"max_tokens": 9}, answer="Cut o")
    store.evaluation(store.essay(lost, answer=None), model="good", answer=None)
    store.evaluation(essay, model="late", answer=None)
    store.write_membership()
    return store


def test_the_page_says_how_far_the_cohort_is(messy: StoreBuilder) -> None:
    (page,) = write(messy.paths.data_root, "tides-pilot")
    text = " ".join(page.text.split())
    assert "6 of 14 evaluations scored · 6 unparseable · 1 blocked · 1 missing" in text
    assert "drafts 3 / 4 0 1 0 0 400 → 200 $1.50 + ? –" in text
    assert "essays 3 / 4 0 0 1 0 300 → 150 unpriced –" in text
    assert "evaluations 6 / 14 6 0 1 1 1,200 → 600 unpriced –" in text
    assert "cost $1.50 + unpriced: good, m1, mute" in text
    assert "read 2026-11-22 19:20:04 UTC" in text


def test_cells_show_mean_marks_and_share_and_empty_ones_are_hatched(messy: StoreBuilder) -> None:
    (page,) = write(messy.paths.data_root, "tides-pilot")
    text = " ".join(page.text.split())
    assert "d1 2.50 2–3 · scores: 2 – ⚠ some came to nothing: scores: 0/2" in text
    assert "d3 2 of 5 scores 4.50" in text, "the mean of a template says what it is of"
    assert "4.50 4–5 · scores: 2 – ⚠ some came to nothing: scores: 0/2 – scores: 0/1" in text, (
        "what is merely missing asks nobody to act"
    )
    assert "2.50 4.50: the means that occur" in text
    assert page.classes.count("empty") == 1 + 3 + 1 + 1, (
        "the legend, the mute judge, the late one, the lost row"
    )
    assert {"h0", "h5", "h10"} <= set(page.classes), "shades run from the lowest mean to the highest"


def test_the_best_and_the_worst_essay_come_with_their_lineage(messy: StoreBuilder) -> None:
    (page,) = write(messy.paths.data_root, "tides-pilot")
    text = " ".join(page.text.split())
    text = text.partition("Best and worst essays")[2]
    best, worst = text.index("4.50 combo-1 · d3 → e1 · m1"), text.index("2.50 combo-1 · d1 → e1 · m1")
    assert text.index("Best 4.50 combo-1") < best < worst
    for part in (
        "Draft 3 about the tide.",
        "Essay 3 about what the tide leaves.",
        "Why. SCORE: 4",
        '"template_id": "novelty"',
        "genworker retry tides-pilot --only",
        "Instructions of novelty.",
        "the text stood here",
    ):
        assert part in text
    assert text.count("Instructions of novelty.") == 1, "each prompt once"


def test_failures_stand_by_cause_with_what_mends_them(messy: StoreBuilder) -> None:
    (page,) = write(messy.paths.data_root, "tides-pilot")
    failures = " ".join(page.text.split()).partition("What came to nothing")[2].partition("Replicates")[0]
    for part in (
        "6 unparseable no score in the last three non-empty lines; the last line is 'I will not.'",
        "genworker reparse tides-pilot genworker retry tides-pilot --unparseable",
        "truncated the answer was cut off at max_tokens = 9",
        "genworker retry tides-pilot --truncated",
        "genworker run tides-pilot",
        "otherwise a retry is cut off again",
    ):
        assert part in failures


def test_replicates_stand_side_by_side(messy: StoreBuilder) -> None:
    (page,) = write(messy.paths.data_root, "tides-pilot")
    replicates = " ".join(page.text.split()).partition("Answers to one prompt side by side")[2]
    assert "r1 4 r2 5 spread 0.71" in replicates
    assert "2 identical texts" in replicates
    assert "differs" in page.classes


def test_nothing_of_a_hostile_store_runs_and_nothing_vanishes(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    essay = store.essay(store.draft(template="<b>d<b>", answer=HOSTILE), answer=HOSTILE + "\n\nSCORE: 9")
    for replicate in (1, 2):
        store.evaluation(
            essay,
            model='"><script>alert(1)<script>',
            replicate=replicate,
            answer=HOSTILE,
            prompt=HOSTILE,
            usage={"input_tokens": HOSTILE},
            finish_reason=HOSTILE,
        )
    (page,) = write(store.write_membership())
    assert page.text.count("<script>document.title='PWNED'</script>") >= 6
    for shown in (
        "⟨U+001B⟩[31mred",
        "⟨U+009B⟩31m",
        "⟨U+0000⟩",
        "⟨U+202E⟩right to left⟨U+202C⟩",
        "⟨U+2066⟩",
        "{{ 7 * 7 }}",
    ):
        assert shown in page.text
    assert "&lt;b&gt;" in page.text, "what was escaped once already is shown as it was"
    assert "<b>d<b>" in page.text
    for char in "\x00\x07\x1b\x9b\u202e\u202c\u2066\u2069\u2028\ufeff":
        assert char not in page.source
    assert page.tags.count("main") == 1
    assert "speaks to its evaluator" in page.text
    assert page.tags.count("mark") >= 1


def test_scripts_that_need_joiners_keep_them(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    store.evaluation(store.essay(store.draft(), answer="می\u200cخواهم, नमस्ते, שלום"))
    (page,) = write(store.write_membership())
    assert "می\u200cخواهم, नमस्ते, שלום" in page.text
    assert '<pre dir="auto">' in page.source


def test_a_copied_essay_is_not_shown_twice(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    text = "The very text. " * 20
    store.evaluation(store.essay(store.draft(answer=text), answer=text, mode="copy"))
    (page,) = write(store.write_membership())
    assert "The same text as its draft." in page.text


def test_a_shared_draft_stands_once(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    draft = store.draft(answer="One draft for two essays. " * 5)
    for number in (1, 2):
        store.evaluation(store.essay(draft, template=f"e{number}"), answer=f"SCORE: {number}")
    (page,) = write(store.write_membership())
    assert "The same draft as of" in page.text
    assert page.source.count('class="excerpt" dir="auto">One draft for two essays.') == 1
    assert page.text.count("One draft for two essays. One draft") > 1


def test_larger_cohorts_go_to_linked_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HEAT_ROWS", 10), ("MAIN_ROWS", 60)):
        monkeypatch.setattr(page_module, name, value)
    store = StoreBuilder(tmp_path)
    essays = []
    for number in range(35):
        essays.append(store.essay(store.draft(template=f"d{number:03}")))
        store.evaluation(essays[-1], answer=f"SCORE: {number % 10}")
    root = store.write_membership()
    main, *others = write(root)
    parts = {page.path.name: page for page in others}
    on_main = [essay for essay in essays if essay in main.ids]
    assert len(on_main) == 20
    rows = [f"scores-{essays[start]}.html" for start in (10, 20, 30)]
    assert set(parts) == {*rows, *(f"{essay}.html" for essay in essays if essay not in on_main)}
    assert all(essay in parts[f"{essay}.html"].ids for essay in essays if essay not in on_main)
    assert "Rows 11 to 20 of 35" in parts[rows[0]].text
    linked = {link for name in rows for link in parts[name].links} | set(main.links)
    assert {f"pages/{essay}.html" for essay in essays[:10] if essay not in on_main} <= {
        link.partition("#")[0] for link in linked
    }
    assert any(link.startswith("../report.html#evaluation-") for link in linked)
    # With less to show the pages of before are gone.
    small = StoreBuilder(root, "small")
    small.evaluation(small.essay(small.draft()))
    small.write_membership()
    assert len(write(root, "small")) == 1
    assert not (root / "out" / "pages").exists()


def test_a_report_holds_as_many_texts_as_it_is_told(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    essays = []
    for number in range(40):
        essays.append(store.essay(store.draft(template=f"d{number:02}")))
        store.evaluation(essays[-1], answer="SCORE: 5" if number != 30 else "no")
    root = store.write_membership()
    (page,) = write(root, text_rows=45, all_texts_command="genworker report pilot --all-texts")
    assert sum(essay in page.ids for essay in essays) == 15
    assert essays[30] in page.ids, "what has trouble comes first"
    assert "The texts of 25 more essays are left out" in " ".join(page.text.split())
    (page,) = write(root, text_rows=None)
    assert "left out" not in page.text


def test_350_rows_of_long_texts_stay_under_five_megabytes(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    for number in range(35):
        draft = store.draft(template=f"d{number}", answer=f"{number} draft word " * 700)
        essay = store.essay(draft, answer=f"{number} essay word " * 700)
        for judge in range(4):
            for replicate in (1, 2):
                answer = f"{number} because of this " * 1500 + f"\n\nSCORE: {judge + replicate}"
                store.evaluation(essay, model=f"j{judge}", replicate=replicate, answer=answer)
    main, *parts = write(store.write_membership())
    sizes = [len(page.source.encode()) for page in (main, *parts)]
    assert max(sizes) < 5_000_000 < sum(sizes)
    assert sum(page.source.count("</article>") for page in (main, *parts)) >= 35


def test_a_cohort_without_evaluations_has_a_page(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    store.essay(store.draft(), answer=None)
    (page,) = write(store.write_membership())
    assert "No evaluations are planned." in page.text
    assert "Nobody has asked for 1 essay yet" in " ".join(page.text.split())


def test_several_cohorts_share_a_page(tmp_path: Path) -> None:
    for cohort in ("one", "two"):
        store = StoreBuilder(tmp_path, cohort)
        store.evaluation(store.essay(store.draft()), answer="SCORE: 5" if cohort == "one" else "no")
        store.write_membership()
    (page,) = write(tmp_path, "one", "two")
    assert "one + two" in page.text
    assert "genworker retry two --unparseable" in page.text
    assert "genworker retry one --unparseable" not in page.text


def test_commands_quote_names_that_a_shell_would_read_otherwise(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path, "it's $HOME")
    store.evaluation(store.essay(store.draft()), answer="no")
    (page,) = write(store.write_membership(), "it's $HOME")
    assert """genworker reparse 'it'"'"'s $HOME'""" in page.text


def test_damage_in_the_store_does_not_stop_the_page(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    draft = store.draft()
    essay = store.essay(draft)
    evaluation = store.evaluation(essay)
    root = store.write_membership()
    store.paths.raw_path("draft", draft).write_bytes(b"\xff\xfe")
    store.paths.metadata_path("essay", essay).write_text("{")
    store.paths.metadata_path("evaluation", evaluation).write_text(
        '{"usage": 3, "attempts": [1], "replicate": "x"}'
    )
    (page,) = write(root)
    assert "1 of 1 evaluations scored" in " ".join(page.text.split())


def test_reasons_that_differ_in_their_words_alone_are_one_cause(tmp_path: Path) -> None:
    store = StoreBuilder(tmp_path)
    essay = store.essay(store.draft())
    for replicate, answer in enumerate(("I pass.", "Ask another."), 1):
        store.evaluation(essay, replicate=replicate, answer=answer)
    (page,) = write(store.write_membership())
    text = " ".join(page.text.split())
    assert "2 unparseable no score in the last three non-empty lines; the last line is …" in text
    assert "the last line is 'I pass.'" in text
    assert "the last line is 'Ask another.'" in text
