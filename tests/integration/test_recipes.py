"""CONTRIBUTING's recipes, each performed on a copy of the package: a stage, a parser, a provider, a table."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import genworker
from support.project import Project, clean_environment, membership_rows, write, write_catalog, write_csv

pytestmark = pytest.mark.slow
PACKAGE = Path(genworker.__file__).parent


class Copy(Project):
    """A project that is run by an edited copy of the package."""

    def edit(self, module: str, old: str, new: str) -> None:
        path = self.root / "src" / "genworker" / module
        text = path.read_text()
        assert text.count(old) == 1, f"{module} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))

    def json(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> dict[str, object]:
        done = self.call(*arguments, "--json", ok=ok)
        record = json.loads(done.stdout)
        assert isinstance(record, dict)
        return record

    def call(self, *arguments: str, ok: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "genworker", *arguments],
            cwd=self.root,
            env={**clean_environment(), "PYTHONPATH": str(self.root / "src")},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert done.returncode in ok, done.stderr
        return done


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    shutil.copytree(PACKAGE, tmp_path / "src" / "genworker", ignore=shutil.ignore_patterns("__pycache__"))
    write_catalog(tmp_path / "data")
    project = Copy(tmp_path)
    project.use_script()
    return project


def add_stage(copy: Copy) -> None:
    copy.edit(
        "core/stages.py",
        '    EVALUATION = "evaluation"\n',
        '    EVALUATION = "evaluation"\n    REPLY = "reply"\n',
    )
    copy.edit(
        "core/stages.py",
        '(("response",), 500, is_scored=True),\n',
        '(("response",), 500, is_scored=True),\n    Stage.REPLY: _Rules(("verdict",), 300),\n',
    )


def test_a_stage_at_the_end(copy: Copy) -> None:
    add_stage(copy)
    assert "Left out: replys" in copy.call("cohort", "build", "short").stderr, "its register is not there yet"
    raw = copy.data / "1_raw"
    write_csv(raw / "reply_templates.csv", [{"template_id": "answer", "parser": "", "active": "True"}])
    write(raw / "templates/reply/answer.txt", "The judge says {{ verdict }}. Answer him.")
    write(
        copy.data / "cohorts/trial/cohort.toml",
        'combos = [["kites", "moss"]]\n'
        'draft = { templates = ["plain"], models = ["alpha"] }\n'
        'essay = { templates = ["rewrite"] }\n'
        'evaluation = { templates = ["novelty"], models = ["beta"] }\n'
        'reply = { templates = ["answer"], models = ["alpha", "beta"], replicates = 2 }\n',
    )
    built = copy.json("cohort", "build", "trial")
    assert built["calls"] == 1 + 1 + 1 + 4
    assert copy.json("plan", "trial")["calls"] == 7
    copy.call("run", "trial")
    stages = copy.json("status", "trial")["stages"]
    assert {name: facts["done"] for name, facts in stages.items()} == {  # type: ignore[attr-defined]
        "draft": 1,
        "essay": 1,
        "evaluation": 1,
        "reply": 4,
    }
    assert copy.json("plan", "trial")["calls"] == 0
    copy.call("verify")
    rows = [json.loads(line) for line in copy.call("export", "trial").stdout.splitlines()]
    draft, essay, evaluation, *replies = rows
    for reply in replies:
        assert reply["parent_gen_id"] == evaluation["gen_id"]
        assert reply["essay_gen_id"] == essay["gen_id"]
        assert reply["draft_gen_id"] == draft["gen_id"]
        assert (reply["draft_template"], reply["generation_template"]) == ("plain", "rewrite")
        assert reply["evaluation_template"] is None
        assert reply["score"] is None
        assert reply["prompt"] == f"The judge says {evaluation['parsed']}. Answer him."
    copy.call("report", "trial")
    with next(copy.paths.cohort_reports_dir("trial").rglob("aggregated_scores.csv")).open() as stream:
        (score,) = csv.DictReader(stream)
    assert score["gen_id"] == evaluation["gen_id"]
    assert score["generation_template"] == "rewrite"


def make_rows(copy: Copy) -> None:
    copy.write_membership(membership_rows(models=("alpha",), essays=("rewrite",), replicates=1))


def test_a_parser(copy: Copy) -> None:
    make_rows(copy)
    register = copy.data / "1_raw/evaluation_templates.csv"
    register.write_text(
        register.read_text().replace("in_last_line", "word_count").replace("complex", "word_count")
    )
    assert "no evaluation parser is called 'word_count'" in copy.call("plan", "trial", ok=(2,)).stderr
    copy.edit(
        "core/parsers.py",
        "_SCORE_PARSERS: dict[str, Parser] = {",
        "def _word_count(text: str) -> str:\n"
        '    if "many" in text:\n'
        '        raise ParseFailedError("too many words to count")\n'
        "    return format_score(min(len(text.split()), 100) / 10)\n\n\n"
        '_SCORE_PARSERS: dict[str, Parser] = {\n    "word_count": _word_count,\n',
    )
    copy.call("run", "trial")
    rows = [json.loads(line) for line in copy.call("export", "trial").stdout.splitlines()]
    scored = [row for row in rows if row["stage"] == "evaluation"]
    assert [row["score"] for row in scored] == [min(len(row["raw"].split()), 100) / 10 for row in scored]


def test_a_provider(copy: Copy) -> None:
    make_rows(copy)
    write(
        copy.root / "src/genworker/providers/parrot.py",
        '"""An endpoint that says what it is asked."""\n\n'
        "from genworker.core.completion import Completion, CompletionRequest, FinishReason, Usage\n\n\n"
        "class ParrotProvider:\n"
        "    def __init__(self, ending: str) -> None:\n        self.ending = ending\n\n"
        "    async def open(self) -> None: ...\n\n"
        "    async def aclose(self) -> None: ...\n\n"
        "    async def complete(self, request: CompletionRequest) -> Completion:\n"
        '        text = f"{request.prompt}\\n{self.ending}"\n'
        "        return Completion(text, FinishReason.STOP, Usage(1, 1), 0.0)\n",
    )
    copy.configure('default_endpoint = "bird"\n[endpoints.bird]\nkind = "parrot"\nending = "SCORE: 6"\n')
    assert "parrot" in copy.call("plan", "trial", ok=(2,)).stderr
    copy.edit(
        "project/endpoints.py",
        "AnyEndpoint = Annotated[\n    OpenAISettings",
        'class ParrotSettings(EndpointSettings):\n    kind: Literal["parrot"]\n    ending: str = ""\n\n\n'
        "def _make_parrot(section: ParrotSettings, _access: Access) -> Provider:\n"
        "    from genworker.providers.parrot import ParrotProvider\n\n"
        "    return ParrotProvider(section.ending)\n\n\n"
        "AnyEndpoint = Annotated[\n    ParrotSettings | OpenAISettings",
    )
    copy.edit(
        "project/endpoints.py",
        "KINDS: Final[Mapping[str, EndpointKind]] = {\n",
        "KINDS: Final[Mapping[str, EndpointKind]] = {\n"
        '    "parrot": EndpointKind(ParrotSettings, _make_parrot, is_free=True),\n',
    )
    copy.call("run", "trial")
    rows = [json.loads(line) for line in copy.call("export", "trial").stdout.splitlines()]
    assert {row["score"] for row in rows if row["stage"] == "evaluation"} == {6.0}
    assert rows[0]["raw"] == f"{rows[0]['prompt']}\nSCORE: 6"
    copy.configure('default_endpoint = "bird"\n[endpoints.bird]\nkind = "parrot"\nlatency_s = 1\n')
    assert "latency_s" in copy.call("plan", "trial", ok=(2,)).stderr, "a key of another kind is a named fault"


def test_a_table(copy: Copy) -> None:
    make_rows(copy)
    copy.call("run", "trial", ok=(0, 1))
    copy.edit(
        "reports/tables.py",
        "def all_tables(",
        "def outcomes(scores: Scores) -> Table:\n"
        "    counts = [(word.value, sum(e.outcome is word for e in scores.evaluations)) for word in Outcome]\n"
        '    return Table(("outcome", "evaluations"), [list(pair) for pair in counts], decimals=0)\n\n\n'
        "def all_tables(",
    )
    copy.edit(
        "reports/tables.py",
        '        "agreement": agreement(scores),\n',
        '        "agreement": agreement(scores),\n        "outcomes": outcomes(scores),\n',
    )
    copy.call("report", "trial")
    with (copy.paths.cohort_reports_dir("trial") / "outcomes.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert sum(int(row["evaluations"]) for row in rows) == 2
