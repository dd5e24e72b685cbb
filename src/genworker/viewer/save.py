"""The whole view as static pages, for somebody who has neither the store nor genworker.

The pages are those that the server would have sent. Links among them are made relative, what asks a server is
left out, and what is searched lies in scripts beside the pages, so that all of it works from a disk.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import secrets
import shutil
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from starlette.types import ASGIApp, Message

from genworker.core.stages import STAGES, Stage
from genworker.errors import Fault, StoreError, UsageError
from genworker.paths import PARSED_FILE, RAW_FILE
from genworker.viewer.queries import Filter, Row
from genworker.viewer.server import make_app
from genworker.viewer.state import Viewer, read_text

PAGE_ROWS = 500
SCRIPT_ROWS = 2000
"""Rows of one script that is searched: a browser reads several small ones sooner than a large one."""
SEARCHED_CHARS = 20_000
"""Of one text, what can be searched in saved pages."""
_STATIC = ("style.css", "saved.js")
_LINK = re.compile(r'(href|src)="([^"]*)"')


def save(viewer: Viewer, directory: Path, make_report: Any) -> int:
    """Write everything that the view has into a new directory; returns how many pages it has.

    Args:
        make_report: (cohort, directory): writes a cohort's report.

    Raises:
        UsageError: the directory is there and not empty.
        StoreError: it cannot be written.
    """
    if directory.is_symlink() or (
        directory.exists() and (not directory.is_dir() or any(directory.iterdir()))
    ):
        fix = "name a directory that is not there yet"
        raise UsageError([Fault("the directory is not empty", where=str(directory), fix=fix)])
    scratch = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.part")
    try:
        scratch.mkdir(parents=True)
        viewer.is_saving = True
        viewer.watcher.look()
        viewer.index.update(full=True)
        pages = asyncio.run(_Saving(viewer, scratch).all(make_report))
        if directory.exists():
            directory.rmdir()
        scratch.rename(directory)
    except OSError as error:
        raise StoreError(
            f"{directory} cannot be written: {error.strerror}", path=str(directory), errno=error.errno
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        viewer.index.close()
    return pages


class _Saving:
    def __init__(self, viewer: Viewer, directory: Path) -> None:
        self.viewer, self.directory = viewer, directory
        self.app: ASGIApp = make_app(viewer)
        self.pages = 0
        self.compared: dict[str, str] = {}

    async def all(self, make_report: Any) -> int:
        """Every page of every cohort."""
        for name in _STATIC:
            self._put(f"static/{name}", await ask(self.app, self.viewer.root, f"static/{name}"))
        await self._page("", "index.html")
        for found in self.viewer.cohorts():
            await self._cohort(found["name"], make_report)
        return self.pages

    async def _cohort(self, cohort: str, make_report: Any) -> None:
        place = f"c/{cohort}"
        reports = self.directory / place / "report"
        reports.mkdir(parents=True)
        await asyncio.to_thread(make_report, cohort, reports)
        await self._page(f"{place}/", f"{place}/index.html")
        self._rows(cohort)
        self._put(f"{place}/rows.csv", await ask(self.app, self.viewer.root, f"{place}/rows.csv"))
        with self.viewer.queries(cohort) as queries:
            for row in queries.each(Filter()):
                name = f"g/{row.stage}/{row.gen_id}"
                await self._page(f"{place}/{name}", f"{place}/{name}.html")
        while self.compared:
            query, name = self.compared.popitem()
            await self._page(f"{place}/compare?{query}", f"{place}/{name}", is_last=True)

    # Rows

    def _rows(self, cohort: str) -> None:
        """The table of all rows in pages, and the scripts that are searched."""
        scripts: list[str] = []
        states: dict[str, None] = {}
        part: list[list[Any]] = []
        rows: list[Row] = []
        with self.viewer.queries(cohort) as queries:
            total = queries.find(Filter()).total
            for row in queries.each(Filter()):
                states[row.state] = None
                part.append(self._searched(row))
                if len(part) == SCRIPT_ROWS:
                    scripts.append(self._script(cohort, len(scripts), part))
                    part = []
            scripts.append(self._script(cohort, len(scripts), part))
            pages = max(1, -(-total // PAGE_ROWS))
            number = 0
            for row in queries.each(Filter()):
                rows.append(row)
                if len(rows) == PAGE_ROWS:
                    number += 1
                    self._rows_page(cohort, rows, number, pages, total, scripts, list(states))
                    rows = []
        if rows or not number:
            self._rows_page(cohort, rows, number + 1, pages, total, scripts, list(states))

    def _rows_page(
        self,
        cohort: str,
        rows: list[Row],
        number: int,
        pages: int,
        total: int,
        scripts: list[str],
        states: list[str],
    ) -> None:
        html = self.viewer.render(
            "saved_rows.html",
            cohort=cohort,
            here="rows",
            rows=rows,
            number_of_page=number,
            pages=pages,
            total=total,
            scripts=scripts if number == 1 else [],
            stages=[stage.value for stage in STAGES],
            states=["failed", *states],
        )
        name = "rows.html" if number == 1 else f"rows-{number}.html"
        self._put_page(f"c/{cohort}/{name}", html, f"c/{cohort}/rows")

    def _searched(self, row: Row) -> list[Any]:
        stage = Stage(row.stage)
        directory = self.viewer.paths.generation_dir(stage, row.gen_id)
        names = (RAW_FILE, PARSED_FILE) if stage.is_scored else (PARSED_FILE, RAW_FILE)
        text = next((text for name in names if (text := read_text(f"{directory}/{name}"))), "")
        concepts = self.viewer.concepts(row.combo)
        known = [row.gen_id, row.template, row.model, row.author, row.parent, concepts, text[:SEARCHED_CHARS]]
        words = " ".join(one for one in known if one).lower()
        shown = [row.stage, row.gen_id, row.state, row.score, row.template, row.model, concepts]
        return [*shown, row.replicate, words]

    def _script(self, cohort: str, number: int, part: list[list[Any]]) -> str:
        """A script of rows. JSON within a script: what a script would end at is escaped."""
        text = json.dumps(part, ensure_ascii=True).replace("</", "<\\/")
        name = f"rows-data-{number + 1}.js"
        self._put(f"c/{cohort}/{name}", f"(window.ROWS ??= []).push(...{text});\n".encode())
        return name

    # Pages

    async def _page(self, address: str, name: str, *, is_last: bool = False) -> None:
        html = (await ask(self.app, self.viewer.root, address)).decode()
        self._put_page(name, html, address.partition("?")[0], is_last=is_last)

    def _put_page(self, name: str, html: str, address: str, *, is_last: bool = False) -> None:
        up = "../" * name.count("/")
        place = f"{self.viewer.root}{address}"

        def linked(match: re.Match[str]) -> str:
            return f'{match[1]}="{self._target(match[2].replace("&amp;", "&"), place, up, is_last=is_last)}"'

        # Texts of the store are escaped: what looks like an attribute here was written by a template.
        self._put(name, _LINK.sub(linked, html).encode("utf-8", "replace"))
        self.pages += 1

    def _target(self, link: str, place: str, up: str, *, is_last: bool) -> str:
        """Where a link of the view leads among the saved pages."""
        if link.startswith(("#", "data:")) or (link.endswith((".js", ".html")) and "/" not in link):
            return link
        parts = urlsplit(link)
        path = parts.path if parts.path.startswith("/") else f"{place.rpartition('/')[0]}/{parts.path}"
        path = path.removeprefix(self.viewer.root)
        if path == "":
            return f"{up}index.html"
        if path.startswith("static/"):
            return up + path
        match = re.fullmatch(r"c/([^/]+)/(.*)", path)
        if match is None:
            return "#"
        cohort, rest = match[1], match[2]
        head = f"{up}c/{cohort}/"
        if rest == "":
            return f"{head}index.html"
        if rest == "report/":
            return f"{head}report/report.html"
        if rest == "rows":
            known = [
                (key, value)
                for key, value in parse_qsl(parts.query)
                if key in ("q", "stage", "state", "sort")
            ]
            return f"{head}rows.html" + (
                "#" + "&amp;".join(f"{key}={value}" for key, value in known) if known else ""
            )
        if rest == "compare" and parts.query and not is_last:
            ids = "-".join(value.rpartition("/")[2] for _, value in parse_qsl(parts.query))
            # Texts of two stages may share an id, and an id may have a hyphen.
            name = f"compare-{ids}-{hashlib.sha256(parts.query.encode()).hexdigest()[:8]}.html"
            if len(name) > 200 or "aside" in parts.query:
                return "#"  # what was replaced is not among the saved pages
            self.compared[parts.query] = name
            return head + quote(name)
        return f"{head}{rest}.html" if rest.startswith("g/") else head + rest

    def _put(self, name: str, content: bytes) -> None:
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "wb") as stream:
            stream.write(content)


async def ask(app: ASGIApp, root: str, address: str) -> bytes:
    """One request to the application, without a socket.

    Args:
        root: what every address begins with.

    Raises:
        StoreError: the answer is none.
    """
    path, _, query = address.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": f"{root}{path}",
        "raw_path": f"{root}{path}".encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(b"host", b"localhost")],
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 0),
    }
    status, body, sent = 0, bytearray(), False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # nobody hangs up; what streams stops waiting for it at its end
        sent = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            body.extend(message.get("body", b""))

    await app(scope, receive, send)
    if status != 200:
        raise StoreError(
            f"the page {address} cannot be written: {status} {bytes(body[:200]).decode()}",
            path=address,
        )
    return bytes(body)
