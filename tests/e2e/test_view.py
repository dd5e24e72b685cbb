"""The live view over its socket: who may ask, what hostile texts do, what a rating does. No browser here."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from genworker.store.ratings import read_ratings
from support.project import Project, make_project
from support.view import View, start_view, view_of

HOSTILE = (
    '<script>alert(1)</script> <a href="javascript:alert(1)">x</a> \x1b[31mred \u202eback ' + "a" * 100_000
)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = make_project(tmp_path_factory.mktemp("view"))
    project.use_script()
    assert project.run("run", "trial").returncode in (0, 1)
    essay = next((project.paths.gens_root / "essay").iterdir())
    (essay / "parsed.txt").write_text(HOSTILE)
    return project


@pytest.fixture(scope="module")
def view(project: Project) -> Iterator[View]:
    with start_view(view_of(project), project.root) as view:
        view.settled("c/trial/", "done")
        yield view


def essay_ids(project: Project) -> list[str]:
    return sorted(path.name for path in (project.paths.gens_root / "essay").iterdir() if path.name[0] != ".")


PAGES = [
    "",
    "c/trial/",
    "c/trial/live",
    "c/trial/rows",
    "c/trial/rows?q=tide&sort=-score",
    "c/trial/rate",
    "metrics",
]


@pytest.mark.parametrize("path", PAGES)
def test_a_page_is_there_under_its_policy(path: str, view: View) -> None:
    answer = view.ask(path)
    assert answer.status == 200
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["referrer-policy"] == "same-origin"
    assert len(answer.text) < 300_000


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "evil.example:80",
        "",
        "localhost@evil.example",
        "127.0.0.1:x",
    ],
)
def test_a_host_of_somebody_else_is_refused(host: str, view: View) -> None:
    assert view.ask("", headers={"Host": host}).status in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8000", "LOCALHOST:1"])
def test_this_machine_may_be_called_by_its_names_through_any_tunnel(host: str, view: View) -> None:
    assert view.ask("", headers={"Host": host}).status == 200


@pytest.mark.parametrize("path", ["/", "/c/trial/", "/wrong/", "//", "/static/view.js"])
def test_without_the_token_there_is_nothing(path: str, view: View) -> None:
    assert view.ask(path, absolute=True).status == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "", "file://"])
def test_a_rating_from_another_page_is_refused(origin: str, view: View, project: Project) -> None:
    form = {"rater": "eve", "mode": "score", "seed": "1", "gen_id": essay_ids(project)[0], "score": "1"}
    answer = view.ask("c/trial/rate", form=form, headers={"Origin": origin})
    assert answer.status == 403
    assert not list(read_ratings(project.paths, "eve"))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"gen_id": "../x"}, "no such essay"),
        ({"gen_id": "unknown"}, "no such essay"),
        ({"rater": "../x"}, "rater"),
        ({"score": "11"}, "from 0 to 10"),
        ({"score": "nan"}, "from 0 to 10"),
        ({"score": "x"}, "from 0 to 10"),
        ({"mode": "pair"}, "two texts"),
    ],
)
def test_a_rating_that_cannot_be_is_refused_by_name(
    changes: dict[str, str], word: str, view: View, project: Project
) -> None:
    form = {
        "rater": "mal",
        "mode": "score",
        "seed": "1",
        "gen_id": essay_ids(project)[0],
        "score": "1",
        **changes,
    }
    answer = view.ask("c/trial/rate", form=form)
    assert answer.status == 400
    assert word in answer.text
    assert not list(read_ratings(project.paths, "mal"))
    assert not (project.data / "x").exists()


def test_a_form_that_is_too_large_is_refused(view: View) -> None:
    assert view.ask("c/trial/rate", form={"reason": "x" * 20_000}).status == 413


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE"])
def test_other_methods_are_refused(method: str, view: View) -> None:
    assert view.ask("", method=method).status in (400, 405)


@pytest.mark.parametrize(
    "path",
    [
        "c/trial/g/essay/..%2f..%2fx",
        "c/trial/g/dream/x",
        "c/trial/g/essay/unknown",
        "c/unknown/",
        "c/trial/report/..%2f..%2f..%2fconfig",
        "c/trial/report/../../../etc/passwd",
        "static/..%2fserver.py",
        "nowhere",
    ],
)
def test_an_address_that_names_nothing_is_404(path: str, view: View) -> None:
    view.ask("c/trial/report/")
    assert view.ask(path).status in (303, 404)
    assert "root:" not in view.ask(path).text


def test_hostile_texts_do_nothing(view: View, project: Project) -> None:
    essay = next(
        name
        for name in essay_ids(project)
        if "<script>" in project.paths.parsed_path("essay", name).read_text()
    )
    for path in (
        f"c/trial/g/essay/{essay}",
        f"c/trial/compare?id=essay/{essay}&id=essay/{essay_ids(project)[-1]}",
    ):
        text = view.ask(path).text
        assert "<script>alert" not in text
        assert '<a href="javascript' not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "⟨U+202E⟩" in text
        assert len(text) < 300_000
    assert "more stand in" in view.ask(f"c/trial/g/essay/{essay}").text


def test_a_queue_is_blind_and_a_rating_is_kept(view: View, project: Project) -> None:
    page = view.ask("c/trial/rate?rater=ann&mode=score&seed=5").text
    shown = re.findall(r'name="gen_id" value="([^"]+)"', page)
    assert len(shown) == 1
    body = page[page.index("<main") : page.index("</main>")]
    for word in ("alpha", "beta", "plain", "rewrite", "novelty", "rigour"):
        assert word not in body.replace(shown[0], ""), word
    form = {
        "rater": "ann",
        "mode": "score",
        "seed": "5",
        "gen_id": shown[0],
        "score": "8",
        "reason": "<b>good</b>",
    }
    answer = view.ask("c/trial/rate", form=form)
    assert answer.status == 303
    assert [(one.gen_id, one.score, one.reason) for one in read_ratings(project.paths, "ann")] == [
        (shown[0], 8.0, "<b>good</b>")
    ]
    following = view.ask(f"c/trial/{answer.headers['location']}").text
    assert f'value="{shown[0]}"' not in following
    assert "1 rated" in following


def test_a_pair_is_shown_and_the_choice_kept(view: View, project: Project) -> None:
    page = view.ask("c/trial/rate?rater=bob&mode=pair").text
    shown = re.findall(r'name="gen_id" value="([^"]+)"', page)
    assert len(shown) == 2
    form = [
        ("rater", "bob"),
        ("mode", "pair"),
        ("seed", "1"),
        *(("gen_id", name) for name in shown),
        ("choice", "b"),
    ]
    assert view.ask("c/trial/rate", form=form).status == 303
    (path,) = (project.data / "ratings" / "bob" / "pairs").iterdir()
    kept = json.loads(path.read_text())
    assert (kept["first"], kept["second"], kept["choice"]) == (*shown, "b")


def test_a_skipped_text_comes_no_more(view: View) -> None:
    page = view.ask("c/trial/rate?rater=cyd").text
    (shown,) = re.findall(r'name="gen_id" value="([^"]+)"', page)
    form = {"rater": "cyd", "mode": "score", "seed": "1", "gen_id": shown, "skip": "1"}
    following = view.ask(f"c/trial/{view.ask('c/trial/rate', form=form).headers['location']}").text
    assert f'name="gen_id" value="{shown}"' not in following


def test_the_report_is_the_report(view: View) -> None:
    view.settled("c/trial/report/report.html", "evaluations")
    assert view.ask("c/trial/report/").headers.get("location") == "report.html"
    assert "aggregated_scores.csv" in view.ask("c/trial/report/report.html").text
    assert view.ask("c/trial/report/aggregated_scores.csv").text.startswith("gen_id,")


def test_every_view_of_rows_is_a_csv_too(view: View) -> None:
    answer = view.ask("c/trial/rows.csv?stage=essay&state=done")
    assert answer.headers["content-type"].startswith("text/csv")
    lines = answer.text.splitlines()
    assert lines[0].startswith("stage,gen_id,")
    assert len(lines) > 1
    assert all(line.startswith("essay,") for line in lines[1:])
    assert view.ask("c/trial/rows?min_score=x").status == 400
    assert view.ask("c/trial/rows.csv?min_score=x").status == 400


def test_metrics_are_what_prometheus_reads(view: View) -> None:
    text = view.ask("metrics").text
    for line in text.splitlines():
        assert line.startswith("# ") or re.fullmatch(r'\w+\{(\w+="[^"]*",?)+\} [0-9.]+', line), line
    assert 'genworker_rows{cohort="trial",stage="draft",state="done"}' in text


def test_it_takes_no_lock_and_writes_nothing_of_the_store(project: Project) -> None:
    before = project.tree()
    with start_view(view_of(project), project.root) as view:
        view.settled("c/trial/", "done")
        assert project.run("run", "trial").returncode in (0, 1)
        assert project.run("verify", "trial").returncode in (0, 1)
    assert project.tree() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_when_it_is_asked_to(number: signal.Signals, project: Project) -> None:
    with start_view(view_of(project), project.root) as view:
        view.process.send_signal(number)
        view.process.wait(60)
        assert view.process.returncode in (0, 130, 143, -signal.SIGTERM)


def test_what_cannot_be_served_is_said(project: Project, tmp_path: Path) -> None:
    unknown = project.run("view", "--no-open", "nobody")
    assert unknown.returncode == 2
    assert "there is no cohort 'nobody'" in unknown.stderr
    with start_view(view_of(project), project.root) as view:
        taken = project.run("view", "--no-open", "--port", str(view.port))
        assert taken.returncode == 2
        assert "cannot be used" in taken.stderr


def test_the_whole_is_saved_as_pages_that_lead_nowhere_else(project: Project, tmp_path: Path) -> None:
    place = tmp_path / "saved"
    done = project.run("view", "--save", str(place))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(place / "index.html")
    pages = list(place.rglob("*.html"))
    essays = essay_ids(project)
    assert {path.stem for path in (place / "c" / "trial" / "g" / "essay").iterdir()} == set(essays)
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert "default-src 'none'" in text
        assert "http://" not in re.sub(r"http://www.w3.org/\S+", "", text) or "report" in page.parts
        assert "<script>" not in text
        for link in re.findall(r'(?:href|src)="([^"#]*)', text):
            if link and not link.startswith("data:"):
                assert (page.parent / unquote(link)).exists(), (page, link)
    hostile = next(path for path in pages if path.parent.name == "essay" and "alert(1)" in path.read_text())
    assert "&lt;script&gt;" in hostile.read_text()
    assert "\x1b" not in hostile.read_text()
    data = (place / "c" / "trial" / "rows-data-1.js").read_text()
    assert "</script" not in data
    assert "alert(1)" in data
    refused = project.run("view", "--save", str(place))
    assert refused.returncode == 2
    assert "not empty" in refused.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
