from __future__ import annotations

from pathlib import Path

import pytest

from genworker.core.catalog import Catalog, guess_combos
from genworker.core.ids import combo_id
from genworker.core.membership import Known
from genworker.core.stages import STAGES, Stage
from genworker.errors import CatalogError, MembershipError, UsageError
from genworker.paths import Paths
from genworker.project.open import open_membership, open_project
from genworker.store.catalog import TemplateFiles, load_membership, read_catalog
from support.project import COHORT, COMBO, CONCEPTS, make_project, write


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_project(tmp_path).data


def faults(data: Path) -> list[str]:
    return [str(fault) for fault in read_catalog(Paths.from_str(data))[1]]


def catalog(data: Path) -> Catalog:
    found, wrong = read_catalog(Paths.from_str(data))
    assert wrong == []
    return found


def append(path: Path, line: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")


def test_a_good_catalogue_reads_without_a_fault(data: Path) -> None:
    found = catalog(data)
    assert list(found.templates[Stage.ESSAY]) == ["rewrite", "keep"]
    assert found.copies(Stage.ESSAY) == {"keep"}
    assert found.models["alpha"].model == "vendor/alpha"
    assert found.combos[COMBO].concept_ids == CONCEPTS


def test_bom_crlf_and_quotes_are_read(data: Path) -> None:
    path = data / "1_raw" / "essay_templates.csv"
    text = '\ufefftemplate_id,template_name,description,parser,generator,active\r\nq,"A ""b"", c",é,,llm,true\r\n'
    path.write_bytes(text.encode())
    assert catalog(data).templates[Stage.ESSAY]["q"].name == 'A "b", c'


def test_a_description_is_read_when_it_is_asked_for_and_its_faults_are_known_then(data: Path) -> None:
    (data / "1_raw/concepts/descriptions-paragraph/moss.txt").write_bytes(b"\xff")
    found, wrong = read_catalog(Paths.from_str(data))
    assert wrong == []
    assert found.concepts["locks"].content("paragraph") == "All about locks."
    assert wrong == []
    for _ in range(2):
        assert found.concepts["moss"].content("paragraph") == "Moss"
    (fault,) = wrong
    assert "moss.txt" in str(fault)
    assert "UTF-8" in str(fault)


def test_a_description_that_is_no_text_hinders_who_uses_it(data: Path) -> None:
    (data / "1_raw/concepts/descriptions-article/moss.txt").parent.mkdir()
    (data / "1_raw/concepts/descriptions-article/moss.txt").write_bytes(b"\xff")
    config = data.parent / "config/genworker.toml"
    project = open_project(config if config.exists() else None, data)
    assert len(open_membership(project, COHORT, strict=False))
    with pytest.raises(CatalogError, match=r"moss\.txt"):
        open_membership(project, COHORT, strict=True)


def test_concepts_fall_back_to_what_they_have(data: Path) -> None:
    raw = data / "1_raw"
    write(raw / "concepts/descriptions-sentence/locks.txt", "A sentence on locks.")
    (raw / "concepts/descriptions-paragraph/locks.txt").unlink()
    (raw / "concepts/descriptions-paragraph/moss.txt").unlink()
    write(raw / "concepts/descriptions-article/kites.txt", "An article on kites.")
    found = catalog(data).concepts
    assert [found[name].content("article") for name in CONCEPTS] == [
        "An article on kites.",
        "A sentence on locks.",
        "Moss",
    ]
    assert found["kites"].content("paragraph") == "All about kites."


def test_a_drafts_concepts_come_in_the_catalogues_order(data: Path) -> None:
    found = catalog(data)
    assert [name for name, _ in found.draft_concepts(found.combos[COMBO])] == ["Kites", "Locks", "Moss"]


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("draft_templates.csv", "plain,x,,,llm,True", "template_id 'plain' stands twice"),
        ("draft_templates.csv", "new,x,,nope,llm,True", "nope"),
        ("draft_templates.csv", "new,x,,,magic,True", "unknown generator 'magic'"),
        ("draft_templates.csv", "new,x,,,copy,True", "a draft has no parent to copy"),
        ("draft_templates.csv", "new,x,,,llm,perhaps", "active is 'perhaps'"),
        ("draft_templates.csv", "../new,x,,,llm,True", "path separator"),
        ("draft_templates.csv", "new,x,,llm,True", "5 cells in a file of 6 columns"),
        ("evaluation_templates.csv", "new,x,,,llm,True", "parser"),
        ("llm_models.csv", "alpha,vendor/x,v,X,True,True", "id 'alpha' stands twice"),
        ("llm_models.csv", "new,,v,X,True,True", "the model's name is empty"),
        ("llm_models.csv", "new,vendor/x,v,X,si,True", "for_generation is 'si'"),
        ("concepts_metadata.csv", "kites,K,True", "concept_id 'kites' stands twice"),
        ("../combo_mappings.csv", f"{COMBO},v1,extra,paragraph,3,now", "other concepts than its id"),
        ("../combo_mappings.csv", f"{COMBO},v1,kites,novel,3,now", "unknown level 'novel'"),
    ],
)
def test_each_fault_has_its_file_and_line(data: Path, file: str, line: str, expected: str) -> None:
    path = (data / "1_raw" / file).resolve()
    append(path, line)
    number = len(path.read_text(encoding="utf-8").splitlines())
    matching = [fault for fault in faults(data) if expected in fault]
    assert matching, faults(data)
    where = f"{path.name}:{2 if 'other concepts' in expected else number}"
    assert where in matching[0]


def test_replicates_are_whole_numbers(data: Path) -> None:
    write(
        data / "1_raw" / "replication_config.csv", "stage,replicates\ndraft,2\nessay,none\npoem,1\ndraft,3\n"
    )
    text = "\n".join(faults(data))
    for part in ("replicates is 'none'", "unknown stage 'poem'", "draft stands twice"):
        assert part in text


def test_a_catalogue_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert "there is no catalogue" in faults(tmp_path / "nowhere")[0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "the file is empty"),
        (b"template_id,active\n\xff\xfe,True\n", "byte 0xff at column 1 is not UTF-8"),
        (b"template_id,active\na\0b,True\n", "NUL"),
        (b"template_id,active\n" + b"x" * 200_000 + b",True\n", "field larger"),
        (b"name,active\nx,True\n", "missing columns: template_id"),
    ],
)
def test_files_that_are_no_csv_are_refused(data: Path, content: bytes, expected: str) -> None:
    (data / "1_raw" / "draft_templates.csv").write_bytes(content)
    assert expected in "\n".join(faults(data))


def test_a_directory_in_place_of_a_file_is_said(data: Path) -> None:
    path = data / "1_raw" / "draft_templates.csv"
    path.unlink()
    path.mkdir()
    assert "directory" in "\n".join(faults(data))


def test_combos_are_found_from_their_ids(data: Path) -> None:
    concepts = list(catalog(data).concepts.values())
    wanted = {
        combo_id(["kites", "moss"], "sentence", 2),
        combo_id(CONCEPTS, "article", 3),
        "combo_v1_unknown",
    }
    found = guess_combos(wanted, concepts)
    assert len(found) == 2
    assert {combo.level for combo in found.values()} == {"sentence", "article"}


# Template files


def test_templates_are_compiled_once(data: Path) -> None:
    files = TemplateFiles(Paths.from_str(data))
    assert files.get(Stage.DRAFT, "plain") is files.get(Stage.DRAFT, "plain")
    assert len(files.digest(Stage.DRAFT, "plain")) == 64


def test_the_templates_root_can_be_elsewhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "elsewhere" / "draft" / "plain.txt", "other")
    monkeypatch.setenv("GEN_TEMPLATES_ROOT", str(tmp_path / "elsewhere"))
    template = TemplateFiles(Paths.from_str(data)).get(Stage.DRAFT, "plain")
    assert template.render({"concepts": []}) == "other"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "has no file"),
        (b"\xff", "not UTF-8"),
        (b"a\n{{ nope }}", "plain.txt:2"),
        (b"{% if %}", "not valid"),
        (b"x" * 4_000_001, "larger than"),
    ],
)
def test_a_bad_template_file_is_named(data: Path, content: bytes | None, expected: str) -> None:
    path = data / "1_raw/templates/draft/plain.txt"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CatalogError, match=expected):
        TemplateFiles(Paths.from_str(data)).get(Stage.DRAFT, "plain")


# Membership files


def known(data: Path) -> Known:
    found = catalog(data)
    return Known(
        templates=found.templates,
        copies={stage: found.copies(stage) for stage in STAGES},
        models=found.models,
        template_files=dict.fromkeys(STAGES, "templates.csv"),
        models_file="models.csv",
    )


def test_a_cohort_is_read(data: Path) -> None:
    membership = load_membership(Paths.from_str(data), COHORT, known(data), lambda stage, gen_id: False)
    assert len(membership) == 2 + 4 + 4 * 2 * 2 * 2


def test_an_unknown_cohort_is_answered_with_those_there_are(data: Path) -> None:
    with pytest.raises(UsageError, match=f"cohorts here: {COHORT}"):
        load_membership(Paths.from_str(data), "other", known(data), lambda stage, gen_id: False)
    with pytest.raises(UsageError, match="path separator"):
        load_membership(Paths.from_str(data), "../other", known(data), lambda stage, gen_id: False)


def test_a_fault_behind_a_cell_of_several_lines_has_the_right_line(data: Path) -> None:
    path = Paths.from_str(data).cohort_membership_csv(COHORT)
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    text = [f"{header},note", f'{rows[0]},"two\nlines"', rows[1].replace("plain", "nope") + ",x"]
    path.write_text("\n".join(text), encoding="utf-8")
    with pytest.raises(MembershipError) as caught:
        load_membership(Paths.from_str(data), COHORT, known(data), lambda stage, gen_id: False)
    assert caught.value.faults[0].line == 4
