"""The live view in a real headless Chromium: ``make view-test``. Skipped where the browser or its driver is missing."""

from __future__ import annotations

import csv
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from genworker.store.ratings import read_ratings
from support.project import Project, make_project
from support.view import View, start_view, view_of

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make view-test")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = make_project(tmp_path)
    project.configure(
        'default_endpoint = "fake"\n[endpoints.fake]\nkind = "scripted"\nlatency_s = 0.3\nmax_concurrency = 2\n'
    )
    return project


@pytest.fixture
def view(project: Project) -> Iterator[View]:
    with start_view(view_of(project), project.root) as view:
        view.settled("c/trial/", "missing")
        yield view


def open_page(browser: Any, **options: Any) -> Any:
    context = browser.new_context(**options)
    page = context.new_page()
    page.faults = []
    page.on("console", lambda message: page.faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on(
        "request", lambda request: None if "127.0.0.1" in request.url else page.faults.append(request.url)
    )
    return page


def shows(page: Any, words: Any) -> None:
    sync_api.expect(page.locator("#live")).to_contain_text(words, timeout=20_000)


def test_a_run_is_watched_killed_and_gone_on_with(browser: Any, view: View, project: Project) -> None:
    page = open_page(browser)
    page.goto(view.address + "c/trial/")
    assert "missing" in page.inner_text("#live")
    run = project.start("run", "trial")
    shows(page, "A run goes on")
    shows(page, re.compile("[1-9][0-9]* answers"))
    run.send_signal(signal.SIGKILL)
    run.communicate()
    shows(page, "No run goes on")
    assert project.run("run", "trial").returncode in (0, 1)
    sync_api.expect(page.locator("#live")).not_to_contain_text("missing", timeout=20_000)
    assert page.faults == []


def test_a_filter_a_lineage_and_a_comparison_by_hand(browser: Any, view: View, project: Project) -> None:
    assert project.run("run", "trial").returncode in (0, 1)
    view.settled("c/trial/", "0 missing", 3.0)
    page = open_page(browser)
    page.goto(view.address + "c/trial/rows")
    page.select_option("select[name=stage]", "essay")
    page.select_option("select[name=state]", "done")
    page.click("button:has-text('Show')")
    assert "stage=essay" in page.url
    assert set(page.locator("tbody tr td:nth-child(2)").all_inner_texts()) == {"essay"}
    for box in page.locator("tbody input[type=checkbox]").all()[:2]:
        box.check()
    page.click("button:has-text('Compare')")
    assert page.locator("article").count() >= 1
    page.go_back()
    page.locator("tbody a.gen").first.click()
    assert "Essay" in page.inner_text("h1")
    assert page.locator(".lineage li").count() == 2
    page.locator(".lineage a").first.click()
    assert "Draft" in page.inner_text("h1")
    assert page.faults == []


def test_ten_texts_are_rated_by_keyboard_and_stand_in_the_tables(
    browser: Any, view: View, project: Project
) -> None:
    assert project.run("run", "trial").returncode in (0, 1)
    view.settled("c/trial/rows?stage=essay&state=done", "essay")
    essays = len([path for path in (project.paths.gens_root / "essay").iterdir() if path.name[0] != "."])
    wanted = min(10, essays)
    page = open_page(browser)
    page.goto(view.address + "c/trial/rate")
    page.fill("input[name=rater]", "ann")
    page.click("button:has-text('Begin')")
    for number in range(wanted):
        page.wait_for_selector("form.rating")
        before = page.locator("input[name=gen_id]").get_attribute("value")
        page.keyboard.press(str(number))
        sync_api.expect(page.locator(f'input[name=gen_id][value="{before}"]')).to_have_count(0)
    assert sorted(one.score for one in read_ratings(project.paths, "ann")) == [
        float(n) for n in range(wanted)
    ]
    assert page.faults == []
    assert project.run("report", "trial", "--tables-only").returncode == 0
    with (project.paths.cohort_reports_dir("trial") / "agreement.csv").open() as stream:
        assert any("human:ann" in row.values() for row in csv.DictReader(stream))


def test_everything_but_live_updating_works_without_script(
    browser: Any, view: View, project: Project
) -> None:
    assert project.run("run", "trial").returncode in (0, 1)
    view.settled("c/trial/rows?stage=essay&state=done", "essay")
    page = open_page(browser, java_script_enabled=False)
    page.goto(view.address)
    page.click("a:has-text('trial')")
    page.click("nav a:has-text('Texts')")
    page.fill("input[name=q]", "nothingofthekind")
    page.click("button:has-text('Show')")
    assert "0 of this cohort" in page.inner_text("main")
    page.click("nav a:has-text('Rate')")
    page.fill("input[name=rater]", "bob")
    page.click("button:has-text('Begin')")
    page.click("button[name=score][value='6']")
    assert [one.score for one in read_ratings(project.paths, "bob")] == [6.0]


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_is_wider_than_the_window(
    width: int, theme: str, browser: Any, view: View, project: Project
) -> None:
    assert project.run("run", "trial").returncode in (0, 1)
    view.settled("c/trial/rows?stage=essay&state=done", "essay")
    page = open_page(browser, viewport={"width": width, "height": 900}, color_scheme=theme)
    for path in ("", "c/trial/", "c/trial/rows", "c/trial/rate", "c/trial/rate?rater=ann"):
        page.goto(view.address + path)
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, path
    assert page.faults == []


def test_saved_pages_are_searched_from_a_disk_and_work_without_script(
    browser: Any, project: Project, tmp_path: Path
) -> None:
    assert project.run("run", "trial").returncode in (0, 1)
    place = tmp_path / "saved"
    assert project.run("view", "--save", str(place)).returncode == 0
    page = open_page(browser)
    page.goto((place / "index.html").as_uri())
    page.click("main a:has-text('trial')")
    page.click("nav a:has-text('Texts')")
    everything = page.locator("#rows tr").count()
    page.fill("#q", "lantern")
    sync_api.expect(page.locator("#found")).to_contain_text(re.compile(r"[0-9]+ of [0-9]+ rows"))
    assert 0 < page.locator("#rows tr").count() < everything
    assert page.url.endswith("#q=lantern")
    page.locator("#rows a").first.click()
    assert page.locator(".lineage li").count() >= 1
    assert not [fault for fault in page.faults if not fault.startswith("file:")]
    bare = open_page(browser, java_script_enabled=False)
    bare.goto((place / "c" / "trial" / "rows.html").as_uri())
    assert bare.locator("#rows tr").count() == everything
    bare.locator("#rows a").first.click()
    assert bare.locator("h1").count() == 1
